//! Unwind: values of the user's are dropped without an end to the thread.
//! It runs no other code of the user's.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Drops a value, whatever its drop does: what a panic carries is any value of the user's, too.
pub(crate) fn drop_quietly<T>(value: T) {
    // A payload that panics when it is dropped leaves another, which is never dropped.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value)))
        && let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic)))
    {
        std::mem::forget(again);
    }
}
