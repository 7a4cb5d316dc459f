//! `crate::sync`, as far as the checked files use it.

pub(crate) mod prim;
#[path = "../../../../src/sync/semaphore.rs"]
pub(crate) mod semaphore;
#[path = "../../../../src/sync/thread.rs"]
pub(crate) mod thread;
#[path = "../../../../src/sync/unwind.rs"]
pub(crate) mod unwind;
