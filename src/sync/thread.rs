//! A number for each thread, for telling threads apart.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// This thread's number; 0 while it ends.
pub(crate) fn number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NUMBERS.fetch_add(1, Relaxed);
    }
    NUMBER.try_with(|number| *number).unwrap_or(0)
}
