//! The lock and the atomics that `semaphore`, `lot` and `max_hold` are made of.
//! Nothing else may be here: the model checker replaces these with loom's.
//!
//! The lock is the standard library's. It is held for tens of nanoseconds, and its spinning suits that.
//! parking_lot's lock yields the processor after a few rounds, which costs more than the wait
//! (`cargo bench -p leasepool-benches --bench lease -- misses`).

use std::sync::PoisonError;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, fence};

pub(crate) use std::sync::MutexGuard as Guard;

/// A mutex that is never poisoned: nothing that can panic runs under it.
pub(crate) struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Mutex(std::sync::Mutex::new(value))
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
