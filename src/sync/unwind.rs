//! Unwind: values of the user's are dropped, and tasks woken, without an end to the thread.
//! It runs no other code of the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Wakes a task. A waker is foreign code: if it panics, the thread that wakes still has others to serve.
pub(crate) fn wake(waker: Waker) {
    _ = quietly(|| waker.wake());
}

/// Runs code of the user's. `None`: it panicked.
pub(crate) fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Some(done),
        Err(panic) => {
            drop_quietly(panic);
            None
        }
    }
}

/// Drops a value, whatever its drop does: what a panic carries is any value of the user's, too.
pub(crate) fn drop_quietly<T>(value: T) {
    // A payload that panics when it is dropped leaves another, which is never dropped.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value)))
        && let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        std::mem::forget(again);
    }
}
