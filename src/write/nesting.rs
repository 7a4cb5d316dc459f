//! What the thread knows of writes that are at work on it, so that a write within a write is told at once.
//! It knows no lanes.

use std::cell::RefCell;
use std::sync::Arc;

use crate::error::Error;
use crate::shared::Shared;
use crate::sqlite::Sqlite;

thread_local! {
    /// The pools in whose writes this thread is, each by its address.
    static WITHIN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// This thread is within a write, until it is dropped.
pub(super) struct Within(());

impl Within {
    pub(super) fn pool(shared: &Arc<Shared<Sqlite>>) -> Self {
        WITHIN.with_borrow_mut(|within| within.push(address(shared)));
        Within(())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        WITHIN.with_borrow_mut(|within| _ = within.pop());
    }
}

/// # Errors
/// If this thread is within a write of the pool's.
pub(super) fn check(shared: &Arc<Shared<Sqlite>>) -> Result<(), Error> {
    match WITHIN.with_borrow(|within| within.contains(&address(shared))) {
        true => Err(Error::NestedWrite),
        false => Ok(()),
    }
}

fn address(shared: &Arc<Shared<Sqlite>>) -> usize {
    Arc::as_ptr(shared).addr()
}
