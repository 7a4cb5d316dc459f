//! Unwind: values of the user's are dropped, and tasks woken, without an end to the thread.
//! It runs no other code of the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Wakes a task. A waker is foreign code: if it panics, the thread that wakes still has others to serve.
pub(crate) fn wake(waker: Waker) {
    drop_quietly(catch_unwind(AssertUnwindSafe(|| waker.wake())));
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
