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

/// Threads that complete what tasks wait for.
pub trait Threads {
    /// Becomes ready when they get more to do.
    fn listen(&self) -> EventListener;

    /// Whether one of them is at work, or is about to be.
    fn is_at_work(&self) -> bool;
}

/// Awaits a future that these threads, or other tasks, complete.
pub(crate) async fn await_threads<'a, F: Future>(
    future: F,
    threads: impl Fn() -> Vec<&'a dyn Threads>,
) -> F::Output {
    let mut future = pin!(future);
    let mut work: Vec<EventListener> = Vec::new();
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && is_paused() {
            work = stay_ready(&threads(), cx);
        }
        polled
    })
    .await
}

/// Makes sure that the task is polled again: at once, or when the threads get work, as long as the listeners live.
fn stay_ready(threads: &[&dyn Threads], cx: &mut Context<'_>) -> Vec<EventListener> {
    // It listens before it looks, so that it misses no work.
    let mut listening: Vec<_> = threads.iter().map(|threads| threads.listen()).collect();
    let are_at_work = threads.iter().any(|threads| threads.is_at_work());
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
