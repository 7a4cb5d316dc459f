//! Virtual time: keeps tokio's paused clock from jumping ahead while threads of the pool are at work.
//! Where the clock runs, it does nothing.
//!
//! A paused clock jumps to the next timer as soon as every task of the runtime waits: tokio cannot know that
//! another thread is about to wake a task. So a task that waits for the pool stays ready while the pool's
//! threads are at work. While they are idle, the task really waits, and the clock may jump. When another task
//! gives the pool's threads work, that wakes this task before the runtime finds all of its tasks waiting.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Context;
use std::thread;
use std::time::Instant;

use event_listener::EventListener;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::workers::WorkerPool;

/// Awaits a future that the threads of these pools, or other tasks, complete.
pub(crate) async fn await_threads<'a, F: Future>(
    future: F,
    pools: impl Fn() -> Vec<&'a WorkerPool>,
) -> F::Output {
    let mut future = pin!(future);
    let mut work: Vec<EventListener> = Vec::new();
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && is_paused() {
            work = stay_ready(&pools(), cx);
        }
        polled
    })
    .await
}

/// Makes sure that the task is polled again: at once, or when the pools get work, as long as the listeners live.
fn stay_ready(pools: &[&WorkerPool], cx: &mut Context<'_>) -> Vec<EventListener> {
    // It listens before it looks, so that it misses no work.
    let mut listening: Vec<_> = pools.iter().map(|pool| pool.listen()).collect();
    let are_at_work = pools.iter().any(|pool| pool.is_at_work());
    let mut told = false;
    // Each listener is polled, so that each knows which task to wake.
    for listener in &mut listening {
        told |= Pin::new(listener).poll(cx).is_ready();
    }
    if are_at_work || told {
        thread::yield_now();
        cx.waker().wake_by_ref();
    }
    listening
}

/// Whether this task's clock stands still while the machine's clock moves.
fn is_paused() -> bool {
    let Ok(runtime) = Handle::try_current() else {
        return false;
    };
    // tokio pauses no other runtime's clock.
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        return false;
    }
    let (before, real) = (tokio::time::Instant::now(), Instant::now());
    while Instant::now() == real {
        std::hint::spin_loop();
    }
    tokio::time::Instant::now() == before
}
