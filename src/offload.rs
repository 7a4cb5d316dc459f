//! Work that may block, on another thread, awaited from any executor.
//! It knows no pool.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, LazyLock};

use event_listener::Event;
use parking_lot::Mutex;

use crate::hands::Hands;

type Outcome<T> = Result<T, Box<dyn Any + Send>>;

struct Desk<F, T> {
    work: Mutex<Option<F>>,
    outcome: Mutex<Option<Outcome<T>>>,
    done: Event,
}

/// For all pools: opening files, and closing pools.
static HANDS: LazyLock<Arc<Hands>> = LazyLock::new(|| Hands::new("leasepool-work", 256));

/// Runs `work` on another thread. If the future is dropped, the work goes on, and its result is dropped
/// on that thread. A panic in it goes on in whoever awaits. If no thread can be started, the work is
/// done by the caller: late is better than never.
pub(crate) async fn off_thread<F, T>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let desk = Arc::new(Desk {
        work: Mutex::new(Some(work)),
        outcome: Mutex::new(None),
        done: Event::new(),
    });
    let theirs = Arc::clone(&desk);
    HANDS.take(Box::new(move || theirs.run()));
    loop {
        let done = desk.done.listen();
        let outcome = desk.outcome.lock().take();
        match outcome {
            Some(Ok(result)) => return result,
            Some(Err(panic)) => resume_unwind(panic),
            None => done.await,
        }
    }
}

impl<F: FnOnce() -> T, T> Desk<F, T> {
    fn run(self: Arc<Self>) {
        let Some(work) = self.work.lock().take() else {
            return;
        };
        // Whoever awaits sees the panic; nobody sees what it left half done but them.
        let outcome = catch_unwind(AssertUnwindSafe(work));
        *self.outcome.lock() = Some(outcome);
        self.done.notify(usize::MAX);
        // If nobody awaits, the outcome goes with the desk, and its drop may be the user's.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(self)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn the_result_comes_back_and_so_does_a_panic() {
        assert_eq!(smol::block_on(off_thread(|| 6 * 7)), 42);
        let panicking = || smol::block_on(off_thread(|| panic!("on purpose")));
        let panic = catch_unwind(AssertUnwindSafe(panicking)).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
    }

    #[test]
    fn a_dropped_future_leaves_its_result_to_the_thread() {
        let (finish, wait) = mpsc::channel::<()>();
        let result = Arc::new(());
        let held = Arc::clone(&result);
        let mut work = Box::pin(off_thread(move || {
            let _ = wait.recv();
            held
        }));
        assert!(smol::block_on(smol::future::poll_once(&mut work)).is_none());
        drop(work);
        finish.send(()).unwrap();
        while Arc::strong_count(&result) > 1 {
            thread::yield_now();
        }
    }
}
