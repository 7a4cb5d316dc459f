//! Which calls of a pool are running on this thread, so that a call that would wait for itself fails at once.
//! It knows pools only by a number.

use std::cell::RefCell;

thread_local! {
    /// The calls that this thread is in: the address of the core, and the name of the call.
    static WITHIN: RefCell<Vec<(usize, &'static str)>> = const { RefCell::new(Vec::new()) };
}

/// This thread is within a call until this is dropped.
pub(crate) struct Within(());

/// A write.
pub(crate) const WRITE: &str = "a write";
/// A read.
pub(crate) const READ: &str = "a read";
/// Work that `run` was given.
pub(crate) const RUN: &str = "a call of `run`";
/// What is told the progress of a backup.
pub(crate) const BACKUP: &str = "a backup";
/// The copying of an agent's file, as it is handed over.
pub(crate) const HAND_OVER: &str = "a hand-over";
/// `setup`, `on_open`, and every other callback that runs while a connection is opened.
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

/// For a call that waits for leases.
///
/// # Errors
/// Returns, as the error, the call of this core that the thread is in.
pub(crate) fn check(core: usize) -> Result<(), &'static str> {
    innermost(core, |_| true)
}

/// For a call that waits for writes alone.
///
/// # Errors
/// Those of [`check`].
pub(crate) fn check_for_writes(core: usize) -> Result<(), &'static str> {
    innermost(core, |call| ![RUN, BACKUP].contains(&call))
}

fn innermost(core: usize, counts: impl Fn(&'static str) -> bool) -> Result<(), &'static str> {
    let found = WITHIN.with_borrow(|within| {
        let mut within = within.iter().rev();
        within.find(|(c, call)| *c == core && counts(call)).copied()
    });
    match found {
        Some((_, call)) => Err(call),
        None => Ok(()),
    }
}

/// Whether the thread is in a write of this core.
pub(crate) fn is_in_write(core: usize) -> bool {
    WITHIN.with_borrow(|within| within.contains(&(core, WRITE)))
}
