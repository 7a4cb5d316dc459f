//! Numbers threads, to tell them apart.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

thread_local! {
    /// 0: no number yet. It has no destructor, so it stays readable until the thread has ended.
    static NUMBER: Cell<u64> = const { Cell::new(0) };
}

/// This thread's number.
#[inline]
pub(crate) fn number() -> u64 {
    match NUMBER.get() {
        0 => new_number(),
        number => number,
    }
}

#[cold]
fn new_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    let number = NUMBERS.fetch_add(1, Relaxed);
    NUMBER.set(number);
    number
}
