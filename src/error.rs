//! One error enum, with one variant for each thing a caller can do something about.
//! It builds no error itself: the module that finds the fault does.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::observe::stats::Holder;
use crate::sync::unwind::drop_quietly;

/// Everything that can go wrong between asking for a connection and returning it.
///
/// SQL that a caller runs through a [`Lease`](crate::Lease) returns rusqlite's own errors, not this enum.
/// [`Error::Sqlite`] exists so that `?` works in functions that do both.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Timed out: every connection stayed lent until the deadline, or the turn to write did not come. Return
    /// leases sooner, write less at a time, wait longer, or allow more connections. `holders` lists the
    /// leases in the way.
    #[error(
        "timed out after {waited:?} waiting {wanted}: {lent} of {max_connections} lent, {waiting} waiting{}{}{}",
        StuckNote(*stuck), HolderList(holders), DeadlockNote(*all_holders_wait)
    )]
    #[non_exhaustive]
    Exhausted {
        /// What the call waited for.
        wanted: Wanted,
        /// How long this call waited.
        waited: Duration,
        /// The size of the pool.
        max_connections: usize,
        /// How many connections were lent, or granted to a caller that had not taken its connection yet.
        lent: usize,
        /// How many other callers were waiting for the same thing when this call gave up.
        waiting: usize,
        /// Connections that cannot be closed, and so cannot be lent (see [`Stats::stuck`](crate::Stats::stuck)).
        stuck: usize,
        /// The leases held at that moment, the oldest first. A caller that had been granted a connection, or
        /// its agent's turn, and had not taken it yet counts as a holder.
        holders: Vec<Holder>,
        /// Whether every thread that took one of these leases was itself waiting for a connection: most
        /// likely a deadlock. It is not certain, since a lease may have moved to another thread.
        all_holders_wait: bool,
    },

    /// The pool was closed. It lends no more connections.
    #[error("the pool is closed")]
    Closed,

    /// The pool takes no more writes, because [`Pool::close_writes`](crate::Pool::close_writes) was called.
    /// Leases that only read still work.
    #[error("the pool is closed to writes")]
    WritesClosed,

    /// The pool is read-only: it was built with [`Builder::reads_only`](crate::Builder::reads_only), or on
    /// [`Database::read_only`](crate::Database::read_only).
    #[error("the pool is read-only")]
    ReadOnly,

    /// The work given to [`Pool::read`](crate::Pool::read) ended its transaction, or removed the guard that
    /// would have prevented that. So its statements may not all have seen one snapshot. The connection is not
    /// used again.
    #[error(
        "the work given to read ended its transaction: its statements did not see one snapshot"
    )]
    SnapshotLost,

    /// The database could not be opened or prepared. The source says why.
    #[error("cannot open {target}")]
    #[non_exhaustive]
    Open {
        /// What the pool tried to open: for a file, its path; for a server, the pool's name.
        target: String,
        /// An [`std::io::Error`] if the path is at fault, a [`rusqlite::Error`] if SQLite reports the fault,
        /// a [`Panicked`](Error::Panicked) if a callback panicked. For a server, an error whose own source is that
        /// of the manager.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The schema function given to [`Builder::setup`](crate::Builder::setup) failed.
    #[error("setup of {target} failed")]
    #[non_exhaustive]
    Setup {
        /// The database that `setup` ran on.
        target: String,
        /// What the function returned, or a [`Panicked`](Error::Panicked).
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A callback panicked: one given to the builder, or the work given to `run` or `write`.
    #[error("{callback} panicked: {message}")]
    #[non_exhaustive]
    Panicked {
        /// Which callback.
        callback: &'static str,
        /// The panic's message.
        message: String,
    },

    /// The database file was deleted, replaced or damaged while the pool was using it, and cannot be used as
    /// it is now. leasepool never creates the file again: put a database back at the path, and the next lease
    /// opens it.
    #[error("the pool's database file {} was {found}", path.display())]
    #[non_exhaustive]
    FileReplaced {
        /// The database file.
        path: PathBuf,
        /// What the pool found at the path.
        found: FileState,
    },

    /// Another pool of this process has this file open, under this or another name. Two pools on one file
    /// would use twice the descriptors that each allows: clone the first pool instead.
    #[error("{} is already open in another pool of this process: clone that pool", path.display())]
    #[non_exhaustive]
    AlreadyPooled {
        /// The database file, as this pool names it.
        path: PathBuf,
    },

    /// The pool could need more descriptors than it may use. Allow fewer connections, raise the budget, or
    /// raise the process's limit.
    #[error(
        "{max_connections} connections can need {ceiling} descriptors, but {available} are available ({limited_by})"
    )]
    #[non_exhaustive]
    Budget {
        /// The size of the pool that was asked for.
        max_connections: usize,
        /// The most descriptors it can need, see [`Pool::fd_ceiling`](crate::Pool::fd_ceiling).
        ceiling: usize,
        /// The descriptors it may use.
        available: usize,
        /// Which limit that is.
        limited_by: &'static str,
    },

    /// Opening the database would exceed the pool's ceiling of descriptors, because connections to files that
    /// were replaced still hold some, or SQLite does for them. The pool closes those when the leases on them
    /// end: try again later.
    #[error(
        "cannot open {target} now: the pool has reached its limit of descriptors, try again later"
    )]
    #[non_exhaustive]
    NoDescriptors {
        /// The database.
        target: String,
    },

    /// A backup failed. A file that was at its path before is still there, unchanged.
    #[error("the backup to {} failed", to.display())]
    #[non_exhaustive]
    Backup {
        /// The path of the backup.
        to: PathBuf,
        /// Why not: an [`std::io::Error`] or a [`rusqlite::Error`].
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// This agent id cannot be used.
    #[error("invalid agent id: {reason}")]
    #[non_exhaustive]
    InvalidAgent {
        /// Why not.
        reason: &'static str,
    },

    /// Another node serves this agent, as the function given to [`Database::owner`](crate::Database::owner) says.
    /// Nothing was done: repeat the request there.
    #[error("agent {agent:?} is not here: send the request to {node:?}")]
    #[non_exhaustive]
    NotHere {
        /// The agent.
        agent: String,
        /// The node that the function named.
        node: String,
    },

    /// The agent has no database here, and the pool may not make one: [`Database::create`](crate::Database::create)
    /// is `false`, and [`on_missing`](crate::Database::on_missing) has brought none.
    #[error("agent {agent:?} has no database: there is none at {}", path.display())]
    #[non_exhaustive]
    NoDatabase {
        /// The agent.
        agent: String,
        /// Where its file would be.
        path: PathBuf,
    },

    /// The agent was not handed over: [`Agent::hand_over`](crate::Agent::hand_over). Its database is where it was,
    /// unchanged.
    #[error("agent {agent:?} was not handed over: its database is where it was")]
    #[non_exhaustive]
    HandOver {
        /// The agent.
        agent: String,
        /// What the work returned, or a [`Panicked`](Error::Panicked); or that the agent still belongs to this
        /// process after the work.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// An option of the builder is out of its range.
    #[error("{option} = {value}: expected {expected}")]
    #[non_exhaustive]
    Config {
        /// The option's name.
        option: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        expected: String,
    },

    /// This pool cannot do that, because of its [`Database`](crate::Database) or of an option.
    #[error("{operation} is not supported by this pool: {reason}")]
    #[non_exhaustive]
    Unsupported {
        /// The operation that was called.
        operation: &'static str,
        /// Why not, and what to call instead.
        reason: &'static str,
    },

    /// The layer or the application data that finds the request's agent is missing: the request did not pass
    /// it.
    #[error("{what} is not installed: add it around this handler")]
    #[non_exhaustive]
    NotInstalled {
        /// What is missing.
        what: &'static str,
    },

    /// A connection could not be closed, because a statement or a blob handle on it was given to
    /// [`std::mem::forget`] and still uses it. Its descriptors stay open, and the pool keeps counting them.
    #[error("a connection to {target} cannot be closed")]
    #[non_exhaustive]
    NotClosed {
        /// The database.
        target: String,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The pool, or its writer, was closed from within one of its own calls: closing would wait for that call
    /// forever.
    #[error("close was called within {within} of the same pool: call it after that")]
    #[non_exhaustive]
    Reentrant {
        /// Which call.
        within: &'static str,
    },

    /// This process is a fork of the process that built the pool. SQLite's locks and the pool's threads
    /// belong to the other process: build a pool here.
    #[error("the pool belongs to the process that this one was forked from: build a pool here")]
    Forked,

    /// No thread could be started. Raise the limit on threads or processes (`ulimit -u`), and try again.
    #[error("cannot start a thread: raise the limit on threads or processes")]
    #[non_exhaustive]
    NoThread {
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A write was called within a write of the same pool, on the same thread: it would wait for itself. Do
    /// both in one write, or use a savepoint.
    #[error("nested write: already inside a write of this pool")]
    NestedWrite,

    /// The work given to `write` ran a statement that would affect more than its own savepoint (BEGIN,
    /// COMMIT, ATTACH and the like). The pool rolled its changes back.
    #[error("{action} is not allowed within a write: the pool rolled the write back")]
    #[non_exhaustive]
    NotInWrite {
        /// The first such statement that it tried.
        action: String,
    },

    /// The transaction of this write was rolled back while this write, or another write of its group, was
    /// running: the disk was full or failed, a statement was interrupted or used `OR ROLLBACK`, or the work
    /// tried to end the transaction. No write of the group was kept; trying again is safe.
    #[error("the transaction of this write was rolled back: nothing was kept, try again")]
    #[non_exhaustive]
    RolledBack {
        /// The error that SQLite returned when the pool noticed, if it returned one. The caller whose work
        /// caused the rollback gets the cause as its own error.
        source: Option<rusqlite::Error>,
    },

    /// The deadline passed while the work given to `run` was running. The pool interrupted the work and
    /// rolled back its transaction.
    #[error("the work was interrupted after {after:?}")]
    #[non_exhaustive]
    Interrupted {
        /// How long ago it was called.
        after: Duration,
    },

    /// The tokio runtime that the pool's connections live on has ended: of [`Pool::awaited`](crate::Pool) alone.
    #[error("the tokio runtime of the pool's connections has ended")]
    NoRuntime,

    /// An error from SQLite.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// How long a client should wait before it tries again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// Whether the same call may succeed a moment later, with no change by the caller: every connection was
    /// lent or the turn to write did not come ([`Exhausted`](Error::Exhausted)), no descriptor was left
    /// ([`NoDescriptors`](Error::NoDescriptors)), another connection or process held a lock (`SQLITE_BUSY` or
    /// `SQLITE_LOCKED`, also as the cause of [`Open`](Error::Open), [`Setup`](Error::Setup) and
    /// [`Backup`](Error::Backup)), a server could not be reached ([`Open`](Error::Open)), a transaction was rolled back ([`RolledBack`](Error::RolledBack)), or the
    /// time was too short ([`Interrupted`](Error::Interrupted)). Nothing of the failed call was kept, so it
    /// can be made again.
    ///
    /// After `SQLITE_BUSY` from a statement in a transaction of your own, begin that transaction again.
    ///
    /// ```
    /// use leasepool::{Error, Pool};
    ///
    /// fn write_twice(pool: &Pool) -> Result<usize, Error> {
    ///     let write = || pool.execute("alice", "DELETE FROM note", []);
    ///     match write() {
    ///         Err(error) if error.is_retryable() => write(),
    ///         result => result,
    ///     }
    /// }
    /// ```
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Exhausted { .. }
            | Error::NoDescriptors { .. }
            | Error::RolledBack { .. }
            | Error::Interrupted { .. } => true,
            Error::Sqlite(error) => is_locked(error),
            Error::Open { source, .. } if source.is::<Unreachable>() => true,
            Error::Open { source, .. }
            | Error::Setup { source, .. }
            | Error::Backup { source, .. } => is_locked(&**source),
            _ => false,
        }
    }

    /// Whether the call timed out while it waited: [`Error::Exhausted`].
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Error::Exhausted { .. })
    }

    /// The HTTP status for this error: 503 if it [is retryable](Error::is_retryable) or the pool (or its
    /// writer) is closed, 421 if another node serves the agent ([`NotHere`](Error::NotHere)), 404 if the agent has no
    /// database and none is made ([`NoDatabase`](Error::NoDatabase)), 400 if the agent's id cannot be used, 500
    /// otherwise. The features `axum` and `actix` answer with it; call it yourself with another framework, or none.
    ///
    /// ```
    /// use leasepool::Error;
    ///
    /// fn head(error: &Error) -> String {
    ///     let mut head = format!("HTTP/1.1 {}\r\n", error.http_status());
    ///     if let Some(wait) = error.retry_after() {
    ///         head += &format!("Retry-After: {}\r\n", wait.as_secs());
    ///     }
    ///     head
    /// }
    /// # assert_eq!(head(&Error::Closed), "HTTP/1.1 503\r\n");
    /// ```
    pub fn http_status(&self) -> u16 {
        match self {
            Error::Closed | Error::WritesClosed => 503,
            Error::InvalidAgent { .. } => 400,
            Error::NoDatabase { .. } => 404,
            Error::NotHere { .. } => 421,
            error if error.is_retryable() => 503,
            _ => 500,
        }
    }

    /// How long a client should wait before it tries again, in whole seconds, as the header `Retry-After`
    /// wants them. `None` if the error [is not retryable](Error::is_retryable).
    pub fn retry_after(&self) -> Option<Duration> {
        self.is_retryable().then_some(RETRY_AFTER)
    }

    pub(crate) fn no_thread(source: std::io::Error) -> Error {
        Error::NoThread { source }
    }

    /// Makes an error from a panic in user code.
    pub(crate) fn panicked(callback: &'static str, panic: Box<dyn Any + Send>) -> Error {
        let message = if let Some(message) = panic.downcast_ref::<&str>() {
            (*message).to_owned()
        } else if let Some(message) = panic.downcast_ref::<String>() {
            message.clone()
        } else {
            "no message".to_owned()
        };
        drop_quietly(panic);
        Error::Panicked { callback, message }
    }
}

/// Runs code of the user's. A panic becomes an error.
pub(crate) fn caught<T>(callback: &'static str, work: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| Error::panicked(callback, panic))
}

/// Why no connection to a server could be opened. Several callers may get it.
#[cfg_attr(
    not(any(feature = "managed", feature = "bb8")),
    allow(dead_code, reason = "only pools over servers make it")
)]
pub(crate) struct Unreachable(pub(crate) std::sync::Arc<Box<dyn std::error::Error + Send + Sync>>);

impl std::fmt::Debug for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Unreachable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Unreachable {
    /// The manager's own error, so that a caller can downcast it.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&**self.0)
    }
}

/// Whether SQLite returned BUSY or LOCKED: as the error itself, or as its cause.
fn is_locked(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let code = match error.downcast_ref::<rusqlite::Error>() {
            Some(error) => error.sqlite_error_code(),
            None => None,
        };
        if matches!(
            code,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
        ) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What a call waited for until it timed out: [`Error::Exhausted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// A connection.
    Connection,
    /// The turn to write.
    TurnToWrite,
    /// The one connection of an agent that has its own file.
    Agent,
    /// The opening of a connection.
    Opening,
    /// The return of every lease, so that the pool can be closed.
    Close,
    /// The end of every write, so that the pool takes no more.
    CloseWrites,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wanted::Connection => "for a connection",
            Wanted::TurnToWrite => "to write",
            Wanted::Agent => "for this agent's connection",
            Wanted::Opening => "for a connection to be opened",
            Wanted::Close => "for every lease to be returned",
            Wanted::CloseWrites => "for every write to end",
        })
    }
}

/// What the pool found where its database file used to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileState {
    /// No file.
    Deleted,
    /// A file too short to be a database.
    Truncated,
    /// A different file each time the pool looked at the path.
    Unstable,
    /// The database, without the write-ahead log that connections are using: another process deleted or
    /// replaced the log. What was committed since the last checkpoint is lost with it. The pool opens the
    /// database anew once those connections are returned and closed.
    LogRemoved,
    /// Another database, next to the write-ahead log (`-wal`) or its index (`-shm`) of the previous one.
    /// SQLite would replay that log into the new database. Remove both files.
    LogLeft,
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileState::Deleted => "deleted",
            FileState::Truncated => "truncated",
            FileState::Unstable => "replaced repeatedly",
            FileState::LogRemoved => "separated from its write-ahead log (-wal)",
            FileState::LogLeft => {
                "replaced, but the -wal or -shm of the old file is still there: remove both"
            }
        })
    }
}

struct StuckNote(usize);

impl fmt::Display for StuckNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            n => write!(f, ", {n} cannot be closed"),
        }
    }
}

struct DeadlockNote(bool);

impl fmt::Display for DeadlockNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 {
            f.write_str(
                "; each of them was taken by a thread that is itself waiting for a connection: most likely a deadlock",
            )
        } else {
            Ok(())
        }
    }
}

/// Only as many holders as fit a log line; the error's field has them all.
struct HolderList<'a>(&'a [Holder]);

impl fmt::Display for HolderList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (i, holder) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{} {holder}", if i == 0 { ":" } else { ";" })?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
