//! Waiting, and work on other threads: a semaphore, a map of values in use, two kinds of worker threads, a oneshot.
//! Nothing here knows a pool or a connection.

pub(crate) mod alarm;
mod conflicts;
pub(crate) mod jitter;
pub(crate) mod job_queue;
pub(crate) mod keyed_map;
pub(crate) mod oneshot;
pub(crate) mod origin;
pub(crate) mod prim;
mod resting;
pub(crate) mod runners;
pub(crate) mod semaphore;
pub(crate) mod thread;
pub(crate) mod ticker;
pub(crate) mod unwind;
#[cfg(feature = "tokio")]
pub(crate) mod virtual_time;
pub(crate) mod wait;
pub(crate) mod workers;
