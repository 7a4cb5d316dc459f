//! Jitter: a random fraction, so that threads and processes that began together do not stay in step.

use std::hash::{BuildHasher, RandomState};

/// A number between 0 and 1, another each time.
pub(crate) fn fraction() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
