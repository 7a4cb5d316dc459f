//! A read: one snapshot for all statements of one piece of work, which can change nothing and cannot end it.
//! It knows no queue and no pool.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::thread;

use rusqlite::{Transaction, TransactionBehavior};

use super::connection::Connection;
use super::group::without_busy_timeout;
use super::retry::while_busy;

/// What became of the work, and of the connection.
pub(crate) struct Read<R> {
    /// What the work returned, or its panic.
    pub(crate) result: thread::Result<R>,
    /// All of its statements saw one snapshot.
    pub(crate) whole: bool,
    /// The connection is as it was, as far as can be told.
    pub(crate) clean: bool,
}

impl Connection {
    /// Runs `work` in a read transaction whose snapshot is taken before. While a lock keeps it from being taken, it is
    /// tried again, as long as `patience` says.
    ///
    /// `query_only` is on meanwhile, for statements however they were prepared; the authorizer keeps `work` from turning
    /// it off and from ending the transaction; and should it get rid of the authorizer, the commit hook lets nothing be
    /// committed.
    pub(crate) fn read<R>(
        &mut self,
        patience: impl FnMut() -> bool,
        work: impl FnOnce(&Transaction<'_>) -> R,
    ) -> rusqlite::Result<Read<R>> {
        let watch = self.watch();
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
        // Rolled back: should it have changed anything, against all odds, that is not kept.
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

/// Begins a read transaction, and takes its snapshot: SQLite would leave that to the first statement that reads.
fn snapshot(
    connection: &rusqlite::Connection,
    patience: impl FnMut() -> bool,
) -> rusqlite::Result<Transaction<'_>> {
    // SQLite would wait for longer than there is time.
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

/// Reads as little of the database as there is.
pub(super) fn first_read(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    // The old name: it is known to every SQLite.
    let mut select = connection.prepare_cached("SELECT 1 FROM sqlite_master LIMIT 1")?;
    select.query([])?.next()?;
    Ok(())
}

/// Turns `PRAGMA query_only` on or off.
///
/// SQLite sets this flag as it compiles the pragma. To run it, too, would only make SQLite compile all statements of the
/// connection again, those in the cache included. Whether it is so is looked at once.
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
