//! What a pool of SQLite's connections has beside its core: the writer.
//! It decides nothing itself.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::builder::SqliteOptions;
use super::pooled::{Lent, Pooled};
use crate::error::Error;
use crate::observe::health::Signs;
use crate::observe::stats::{Stats, count};
use crate::sqlite::{Cancel, Commits, Overlong, Sqlite};
use crate::sync::ticker::Ticker;
#[cfg(feature = "tokio")]
use crate::sync::virtual_time::Threads;
use crate::sync::wait::await_until;
use crate::write::Writer;

/// Beside the core of a pool of SQLite's connections.
pub struct SqliteSide {
    pub(crate) writer: Arc<Writer>,
    /// The thread of `keep_read_lock`.
    pub(super) _read_lock: Option<Ticker>,
}

impl Pooled for Sqlite {
    type Beside = SqliteSide;
    type Options = SqliteOptions;

    #[cfg(feature = "tokio")]
    fn threads(beside: &SqliteSide) -> Vec<&dyn Threads> {
        vec![&**beside.writer.workers()]
    }

    fn check_anonymous(&self) -> Result<(), Error> {
        self.check_shared(
            "a connection without an agent",
            "each agent has a file of its own",
        )
    }

    fn maintain(beside: &SqliteSide) {
        beside.writer.maintain();
    }

    fn add_to(beside: &SqliteSide, stats: &mut Stats) {
        beside.writer.observe(stats);
    }

    fn tell(beside: &SqliteSide, signs: &mut Signs) {
        beside.writer.tell(&mut signs.writes);
        signs.backlog = signs.backlog.max(beside.writer.backlog());
    }

    fn check_ready(beside: &SqliteSide) -> Result<(), Error> {
        beside.writer.check_ready()
    }

    async fn drain(beside: &SqliteSide, deadline: Instant) {
        // Writes that are not done in time are refused.
        let _ = await_until(deadline, pin!(beside.writer.drain())).await;
        beside.writer.refuse();
    }

    fn refuse(beside: &SqliteSide) {
        beside.writer.refuse();
    }

    #[inline]
    fn used(lent: &Lent<Self>) {
        // A borrower that has set its own WAL hook may go on for ever, so the pool looks at the log now and then.
        if lent.connection().is_to_be_looked_at() {
            look_if_unnoted(lent);
        }
    }

    type Cancel = Cancel;
    type Interrupt = (rusqlite::InterruptHandle, Cancel);

    fn interrupt_of(lent: &Lent<Self>, cancel: &Cancel) -> Self::Interrupt {
        (lent.connection().get_interrupt_handle(), cancel.clone())
    }

    fn interrupt((handle, cancel): &Self::Interrupt) {
        cancel.cancel();
        handle.interrupt();
    }

    fn interruptible<R>(
        lent: &mut Lent<Self>,
        cancel: &Cancel,
        work: impl FnOnce(&mut rusqlite::Connection) -> R,
    ) -> R {
        let shared = Arc::clone(lent.handle());
        let backend = &shared.core.backend;
        let (result, has_waited) = backend.cancellable(lent.connection_mut(), cancel, work);
        if has_waited {
            shared.runners.conflicted();
        }
        // The lease may end on another thread.
        note_commits(lent);
        result
    }

    fn end(mut lent: Lent<Self>) {
        match lent.connection_mut().take_noted() {
            Commits::None => drop(lent),
            Commits::Unnoted => {
                look_at_log(&lent);
                drop(lent);
            }
            Commits::Noted(noted) => {
                let shared = Arc::clone(lent.handle());
                drop(lent);
                shared.beside.writer.noted(noted);
            }
        }
    }
}

/// Passes to the writer what commits on this connection and this thread have noted.
pub(super) fn note_commits(lent: &mut Lent<Sqlite>) {
    match lent.connection_mut().take_noted() {
        Commits::None => {}
        Commits::Noted(noted) => lent.handle().beside.writer.noted(noted),
        Commits::Unnoted => look_at_log(lent),
    }
}

#[cold]
fn look_if_unnoted(lent: &Lent<Sqlite>) {
    if lent.connection().has_unnoted_commits() {
        look_at_log(lent);
    }
}

/// Looks at the length of the log, if commits have noted nothing, and starts a checkpoint if the log is too long.
fn look_at_log(lent: &Lent<Sqlite>) {
    let shared: &Arc<Shared<Sqlite>> = lent.handle();
    match shared.core.backend.look_at_log(lent.connection()) {
        Overlong::No => {}
        Overlong::Yes => shared.beside.writer.overlong(),
        Overlong::Done => count(&shared.core.counters.checkpoints),
    }
}
