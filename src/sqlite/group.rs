//! A group of writes: one transaction, in which each member has a savepoint of its own.
//! It knows no queue and no pool: who is in the group, and what they are told, is decided elsewhere.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{DropBehavior, Savepoint, Transaction, TransactionBehavior};

use super::connection::Connection;
use super::retry::while_busy;
use super::watch::{ChangeTracker, MEMBER, ModeGuard};
use crate::core::backend::Fate;
use crate::error::Error;

/// An open transaction. Dropping it rolls it back.
pub(crate) struct Group<'a> {
    connection: &'a mut Connection,
    over: bool,
}

/// What a member left behind.
pub(crate) enum Member {
    /// Its savepoint is part of the transaction, or (as it wished) rolled back.
    Done,
    /// Its savepoint was rolled back, and this is what it is to be told.
    Refused(Error),
    /// The transaction is lost, with all members' work, or may not be the group's any more; why, if SQLite said so.
    Lost(Option<rusqlite::Error>),
}

impl<'a> Group<'a> {
    /// Begins a transaction that writes. While another process, or a connection that takes no part in the
    /// pool's queue, holds the lock, it asks again and again, as long as `patience` says.
    pub(crate) fn begin(
        connection: &'a mut Connection,
        patience: impl FnMut() -> bool,
    ) -> rusqlite::Result<Self> {
        connection.enter_group()?;
        let mut group = Group {
            connection,
            over: true,
        };
        let mut transaction = begin_immediate(group.connection, patience)?;
        transaction.set_drop_behavior(DropBehavior::Ignore);
        drop(transaction);
        group.over = false;
        Ok(group)
    }

    /// Whether a member of this agent's may work here, where others may have worked before.
    pub(crate) fn welcomes(&mut self, agent: &Arc<str>) -> bool {
        matches!(self.connection.hand_on_to(agent), Ok(Fate::Reuse))
    }

    /// Lets one member work. `work` returns whether to keep what it did.
    pub(crate) fn member(&mut self, work: impl FnOnce(&mut Savepoint<'_>) -> bool) -> Member {
        // An error of a savepoint's own statements says that it is not there: the transaction is another one.
        self.try_member(work)
            .unwrap_or_else(|error| Member::Lost(Some(error)))
    }

    fn try_member(
        &mut self,
        work: impl FnOnce(&mut Savepoint<'_>) -> bool,
    ) -> rusqlite::Result<Member> {
        let watch = self.connection.watch();
        self.connection.begin_member()?;
        let quiet = watch.quiet();
        let mut savepoint = self.connection.savepoint_with_name(MEMBER)?;
        drop(quiet);
        watch.take_rolled_back();
        let fence = watch.fence();
        let keep = work(&mut savepoint);
        drop(fence);
        let refused = watch.take_refused();
        // SQLite may have rolled it back; and what our authorizer does not see may have ended it, and begun another one.
        if watch.take_rolled_back() || watch.is_blind() || savepoint.is_autocommit() {
            savepoint.set_drop_behavior(DropBehavior::Ignore);
            return Ok(Member::Lost(None));
        }
        let _quiet = watch.quiet();
        savepoint.set_drop_behavior(DropBehavior::Rollback);
        if keep && refused.is_none() {
            savepoint.commit()?;
        } else {
            savepoint.finish()?;
        }
        Ok(match refused {
            Some(action) => Member::Refused(Error::NotInWrite { action }),
            None => Member::Done,
        })
    }

    /// Commits. If that fails, nothing of the group is kept.
    pub(crate) fn commit(mut self, patience: impl FnMut() -> bool) -> rusqlite::Result<()> {
        // The last member may have left a hook that forbids it.
        self.connection.begin_member()?;
        let _quiet = self.connection.watch().quiet();
        // Busy it is only where the database is in memory, and a reader is at work.
        while_busy(patience, || self.connection.execute_batch("COMMIT"))?;
        self.over = true;
        Ok(())
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.over && !self.connection.is_autocommit() {
            let _quiet = self.connection.watch().quiet();
            // If it fails, the lease's end finds the transaction still open, and tries again.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        self.connection.leave_group();
    }
}

/// A lease's borrower works in a transaction that the pool commits.
pub(crate) struct Guard {
    watch: Arc<ChangeTracker>,
    mode: ModeGuard,
}

impl Guard {
    /// From now on, in a transaction that has just begun on the connection of this tracker.
    pub(super) fn begin(watch: Arc<ChangeTracker>) -> Self {
        watch.take_rolled_back();
        Guard {
            mode: watch.guard(),
            watch,
        }
    }

    /// Whether the transaction is still there, and still the same.
    pub(crate) fn end(self, transaction: &rusqlite::Connection) -> bool {
        drop(self.mode);
        let rolled_back = self.watch.take_rolled_back() || transaction.is_autocommit();
        // Since the work has replaced the hooks, nothing tells.
        !rolled_back && !self.watch.is_unguarded()
    }
}

/// `BEGIN IMMEDIATE`, again and again while the lock is taken, as long as `patience` says.
pub(crate) fn begin_immediate(
    connection: &rusqlite::Connection,
    patience: impl FnMut() -> bool,
) -> rusqlite::Result<Transaction<'_>> {
    while_busy(patience, || {
        Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
    })
}

/// Makes SQLite wait for no lock on this connection: the pool waits by itself. Returns how long it would have waited,
/// which the borrower may have set.
pub(crate) fn without_busy_timeout(
    connection: &rusqlite::Connection,
) -> rusqlite::Result<Duration> {
    let mut asked = connection.prepare_cached("PRAGMA busy_timeout")?;
    let milliseconds: u32 = asked.query_row([], |row| row.get(0))?;
    connection.busy_timeout(Duration::ZERO)?;
    Ok(Duration::from_millis(milliseconds.into()))
}

/// The same error once more: one commit may fail for many.
pub(crate) fn same(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => {
            rusqlite::Error::SqliteFailure(*failure, message.clone())
        }
        // A COMMIT has no parameters and no rows: it fails in no other way.
        other => rusqlite::Error::ToSqlConversionFailure(other.to_string().into()),
    }
}
