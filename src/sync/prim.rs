//! The lock and the atomics that `semaphore` and `lot` are made of.
//! Nothing else may be here: the model checker puts loom's in their place.
//!
//! The lock is the standard library's. What it protects is held for tens of nanoseconds, and its spinning is made
//! for that; parking_lot's yields the processor after a few rounds, which costs more than the wait
//! (`cargo bench -p leasepool-benches --bench lease -- misses`).

use std::sync::PoisonError;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};

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
