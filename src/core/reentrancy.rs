//! What the thread knows of calls that are at work on it, so that one that would wait for itself is told at once.
//! It knows no pools but by a number.

use std::cell::RefCell;

thread_local! {
    /// The cores in whose calls this thread is, each by its address, and which call it is.
    static WITHIN: RefCell<Vec<(usize, &'static str)>> = const { RefCell::new(Vec::new()) };
}

/// This thread is within a call, until it is dropped.
pub(crate) struct Within(());

/// A write.
pub(crate) const WRITE: &str = "a write";
/// A read.
pub(crate) const READ: &str = "a read";
/// `setup`, `on_open`, and everything else that is called while a connection is opened.
pub(crate) const OPENING: &str = "the opening of a connection";

impl Within {
    pub(crate) fn enter(core: usize, call: &'static str) -> Self {
        WITHIN.with_borrow_mut(|within| within.push((core, call)));
        Within(())
    }
}

impl Drop for Within {
    fn drop(&mut self) {
        WITHIN.with_borrow_mut(|within| _ = within.pop());
    }
}

/// # Errors
/// The call of this core's that the thread is in.
pub(crate) fn check(core: usize) -> Result<(), &'static str> {
    let found = WITHIN.with_borrow(|within| within.iter().rfind(|(c, _)| *c == core).copied());
    match found {
        Some((_, call)) => Err(call),
        None => Ok(()),
    }
}

/// Whether the thread is in a write of this core's.
pub(crate) fn is_in_write(core: usize) -> bool {
    WITHIN.with_borrow(|within| within.contains(&(core, WRITE)))
}
