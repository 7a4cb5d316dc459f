//! A read: one snapshot for all statements of some work. The work can change nothing and cannot end the snapshot.
//! It knows no queue and no pool.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::thread;

use rusqlite::{Transaction, TransactionBehavior};

use super::connection::Connection;
use super::group::without_busy_timeout;
use super::retry::while_busy;

/// How the work and the connection ended.
pub(crate) struct Read<R> {
    /// What the work returned, or its panic.
    pub(crate) result: thread::Result<R>,
    /// Whether all of its statements saw one snapshot.
    pub(crate) whole: bool,
    /// Whether the connection is as it was, as far as the pool can tell.
    pub(crate) clean: bool,
}

impl Connection {
    /// Runs `work` in a read transaction whose snapshot is taken before `work` begins. While a lock prevents
    /// that, the pool tries again, as long as `patience` says.
    ///
    /// `query_only` is on meanwhile, and applies to all statements, also those prepared before. The
    /// authorizer keeps `work` from turning it off and from ending the transaction. If `work` removes the
    /// authorizer, the commit hook still lets nothing be committed.
    pub(crate) fn read<R>(
        &mut self,
        patience: impl FnMut() -> bool,
        work: impl FnOnce(&Transaction<'_>) -> R,
    ) -> rusqlite::Result<Read<R>> {
        let watch = self.change_tracker();
        watch.guard_transactions(self)?;
        let was_blind = watch.is_blind();
        let quiet = watch.quiet();
        let was_query_only = self.is_query_only()?;
        let transaction = snapshot(self, patience)?;
        if !was_query_only && let Err(error) = set_query_only(&transaction, true) {
            drop(transaction);
            return Err(error);
        }
        drop(quiet);
        let reading = watch.read();
        let result = catch_unwind(AssertUnwindSafe(|| work(&transaction)));
        drop(reading);
        let _quiet = watch.quiet();
        let got_loose = watch.is_blind() && !was_blind;
        let lost = transaction.is_autocommit() || (got_loose && watch.is_unguarded());
        // Rolled back: if `work` changed anything in spite of all guards, the change is not kept.
        let ended = transaction.finish();
        let restored = match was_query_only {
            true => Ok(()),
            false => set_query_only(self, false),
        };
        let clean = !lost && !got_loose && ended.is_ok() && restored.is_ok() && !self.is_busy();
        Ok(Read {
            result,
            whole: !lost,
            clean,
        })
    }
}

/// Begins a read transaction and takes its snapshot. SQLite alone would take it at the first statement that
/// reads.
fn snapshot(
    connection: &rusqlite::Connection,
    patience: impl FnMut() -> bool,
) -> rusqlite::Result<Transaction<'_>> {
    // SQLite might wait longer than the caller does.
    let busy_timeout = without_busy_timeout(connection)?;
    let begun = while_busy(patience, || try_snapshot(connection));
    connection.busy_timeout(busy_timeout)?;
    begun
}

pub(super) fn try_snapshot(connection: &rusqlite::Connection) -> rusqlite::Result<Transaction<'_>> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    first_read(connection)?;
    Ok(transaction)
}

/// Reads as little of the database as possible.
pub(super) fn first_read(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    // The old name: every SQLite knows it.
    let mut select = connection.prepare_cached("SELECT 1 FROM sqlite_master LIMIT 1")?;
    select.query([])?.next()?;
    Ok(())
}

/// Turns `PRAGMA query_only` on or off.
///
/// SQLite sets this flag when it compiles the pragma. Running the pragma as well would make SQLite compile
/// all statements of the connection again, including cached ones. Whether the linked SQLite behaves like this
/// is checked once.
pub(super) fn set_query_only(connection: &rusqlite::Connection, on: bool) -> rusqlite::Result<()> {
    static SET_BY_COMPILING: OnceLock<bool> = OnceLock::new();
    let sql = match on {
        true => "PRAGMA query_only = ON",
        false => "PRAGMA query_only = OFF",
    };
    match SET_BY_COMPILING.get() {
        Some(true) => connection.prepare(sql).map(drop),
        Some(false) => connection.execute_batch(sql),
        None => {
            drop(connection.prepare(sql)?);
            let _ = SET_BY_COMPILING.set(query_only(connection)? == on);
            connection.execute_batch(sql)
        }
    }
}

pub(super) fn query_only(connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
    connection.pragma_query_value(None, "query_only", |row| row.get(0))
}
