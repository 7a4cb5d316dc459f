//! A group of writes: one transaction, in which each member has its own savepoint.
//! It knows no queue and no pool: `write` chooses the members and answers them.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{DropBehavior, Savepoint, Transaction, TransactionBehavior};

use super::change_tracker::{ChangeTracker, MEMBER, ModeGuard};
use super::connection::Connection;
use super::retry::while_busy;
use crate::core::backend::Fate;
use crate::error::Error;

/// An open transaction. Dropping it rolls it back.
pub(crate) struct Group<'a> {
    connection: &'a mut Connection,
    over: bool,
}

/// How a member's work ended.
pub(crate) enum Member {
    /// Its savepoint became part of the transaction, or was rolled back as the work wished.
    Done,
    /// Its savepoint was rolled back, and its caller gets this error.
    Refused(Error),
    /// The transaction, with all members' work, is lost, or may no longer be the group's; with SQLite's
    /// error, if there was one.
    Lost(Option<rusqlite::Error>),
}

impl<'a> Group<'a> {
    /// Begins a transaction that writes. While another process, or a connection outside of the pool's queue,
    /// holds the lock, this tries again, as long as `patience` says.
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

    /// Whether a member of this agent may work here after other agents' members.
    pub(crate) fn welcomes(&mut self, agent: &Arc<str>) -> bool {
        matches!(self.connection.hand_on_to(agent), Ok(Fate::Reuse))
    }

    /// Runs the work of one member. `work` returns whether to keep its changes.
    pub(crate) fn member(&mut self, work: impl FnOnce(&mut Savepoint<'_>) -> bool) -> Member {
        // If a savepoint statement fails, the savepoint is gone: the transaction is another one.
        self.try_member(work)
            .unwrap_or_else(|error| Member::Lost(Some(error)))
    }

    fn try_member(
        &mut self,
        work: impl FnOnce(&mut Savepoint<'_>) -> bool,
    ) -> rusqlite::Result<Member> {
        let watch = self.connection.change_tracker();
        self.connection.begin_member()?;
        let quiet = watch.quiet();
        let mut savepoint = self.connection.savepoint(MEMBER)?;
        drop(quiet);
        watch.take_rolled_back();
        let fence = watch.fence();
        let keep = work(&mut savepoint);
        drop(fence);
        let refused = watch.take_refused();
        // SQLite may have rolled the transaction back. Or a statement that the authorizer did not see ended
        // it and began another.
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

    /// Commits. If that fails, no change of the group is kept.
    pub(crate) fn commit(mut self, patience: impl FnMut() -> bool) -> rusqlite::Result<()> {
        // The last member may have left a hook that would forbid the commit.
        self.connection.begin_member()?;
        let _quiet = self.connection.change_tracker().quiet();
        // SQLite returns busy here only for a database in memory, while another connection reads.
        while_busy(patience, || self.connection.execute_batch("COMMIT"))?;
        self.over = true;
        Ok(())
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        if !self.over && !self.connection.is_autocommit() {
            let _quiet = self.connection.change_tracker().quiet();
            // If this fails, the end of the lease finds the transaction still open and tries again.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        self.connection.leave_group();
    }
}

/// Protects a transaction in which a lease's borrower works and which the pool commits.
pub(crate) struct Guard {
    watch: Arc<ChangeTracker>,
    mode: ModeGuard,
}

impl Guard {
    /// Protects the transaction that has just begun on the connection of this tracker.
    pub(super) fn begin(watch: Arc<ChangeTracker>) -> Self {
        watch.take_rolled_back();
        Guard {
            mode: watch.guard(),
            watch,
        }
    }

    /// Whether the transaction still exists and is still the same one.
    pub(crate) fn end(self, transaction: &rusqlite::Connection) -> bool {
        drop(self.mode);
        let rolled_back = self.watch.take_rolled_back() || transaction.is_autocommit();
        // If the work replaced the hooks, the pool cannot know; then the answer is no.
        !rolled_back && !self.watch.is_unguarded()
    }
}

/// `BEGIN IMMEDIATE`. While the lock is taken, this tries again, as long as `patience` says.
pub(crate) fn begin_immediate(
    connection: &rusqlite::Connection,
    patience: impl FnMut() -> bool,
) -> rusqlite::Result<Transaction<'_>> {
    while_busy(patience, || {
        Transaction::new_unchecked(connection, TransactionBehavior::Immediate)
    })
}

/// Makes SQLite not wait for locks on this connection, because the pool waits itself. Returns the previous
/// timeout, which the borrower may have set.
pub(crate) fn without_busy_timeout(
    connection: &rusqlite::Connection,
) -> rusqlite::Result<Duration> {
    let mut asked = connection.prepare_cached("PRAGMA busy_timeout")?;
    let milliseconds: u32 = asked.query_row([], |row| row.get(0))?;
    connection.busy_timeout(Duration::ZERO)?;
    Ok(Duration::from_millis(milliseconds.into()))
}

/// A copy of the error: one commit may fail for many callers.
pub(crate) fn same(error: &rusqlite::Error) -> rusqlite::Error {
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => {
            rusqlite::Error::SqliteFailure(*failure, message.clone())
        }
        // A COMMIT has no parameters and no rows, so it fails in no other way.
        other => rusqlite::Error::ToSqlConversionFailure(other.to_string().into()),
    }
}
