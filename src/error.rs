//! One enum, one variant for each thing a caller can do something about.
//! It builds no error itself: the module that finds the fault does.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::ErrorCode;

use crate::observe::stats::Holder;

/// Everything that can go wrong between asking for a connection and giving it back.
///
/// Errors of the SQL a caller runs through a [`Lease`](crate::Lease) are rusqlite's own and do not
/// pass through here; [`Error::Sqlite`] exists so that `?` works in functions that do both.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Every connection stayed lent until the deadline, or the turn to write did not come. Return leases
    /// sooner, write less at a time, wait longer, or allow more connections; `holders` says who has them.
    #[error(
        "timed out after {waited:?} waiting {wanted}: {} of {max_connections} lent, {waiting} waiting{}{}{}",
        holders.len(), StuckNote(*stuck), HolderList(holders), DeadlockNote(*all_holders_wait)
    )]
    #[non_exhaustive]
    Exhausted {
        /// What was waited for.
        wanted: Wanted,
        /// How long this call waited.
        waited: Duration,
        /// The size of the pool.
        max_connections: usize,
        /// How many other callers were waiting for the same when this one gave up.
        waiting: usize,
        /// Connections that cannot be closed, and so cannot be lent (see [`Stats::stuck`](crate::Stats::stuck)).
        stuck: usize,
        /// Who held a connection at that moment, or had been granted one and had not taken it; the oldest first.
        holders: Vec<Holder>,
        /// Whether each holder's thread, the one that took the lease, was itself waiting for a connection: most
        /// likely a deadlock. It cannot be known for certain, since a lease may be given to another thread.
        all_holders_wait: bool,
    },

    /// The pool was closed. Nothing will be lent again.
    #[error("the pool is closed")]
    Closed,

    /// The pool takes no more writes, since [`Pool::close_writes`](crate::Pool::close_writes) was called. Leases that
    /// only read go on.
    #[error("the pool takes no more writes")]
    WritesClosed,

    /// The pool only reads: it was built with [`Builder::reads_only`](crate::Builder::reads_only), or on
    /// [`Database::read_only`](crate::Database::read_only).
    #[error("the pool only reads")]
    ReadOnly,

    /// The work given to [`Pool::read`](crate::Pool::read) ended its transaction, so that not all of its statements saw one
    /// snapshot, or took off what keeps it from that. The connection is not used again.
    #[error("the work given to read ended its transaction")]
    SnapshotLost,

    /// The database could not be opened or prepared. The source says why.
    #[error("cannot open {target}")]
    #[non_exhaustive]
    Open {
        /// What was to be opened: for a file, its path.
        target: String,
        /// An [`std::io::Error`] for a fault of the path, a [`rusqlite::Error`] for one that SQLite
        /// reports, a [`Panicked`](Error::Panicked) for a callback that panicked.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The schema function given to [`Builder::setup`](crate::Builder::setup) failed.
    #[error("setup of {target} failed")]
    #[non_exhaustive]
    Setup {
        /// The database that was being set up.
        target: String,
        /// What the function returned, or that it panicked.
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

    /// The file under the pool is not the one it was, and cannot be used as it is now. leasepool
    /// never creates it again: put a database back at the path, and the next lease opens it.
    #[error("{} was {found} under the pool", path.display())]
    #[non_exhaustive]
    FileReplaced {
        /// The database file.
        path: PathBuf,
        /// What is there now.
        found: FileState,
    },

    /// Another pool of this process has this file open, under this or another name. Two pools on
    /// one file would double the cap unseen: clone the first pool instead.
    #[error("{} is already open in another pool of this process", path.display())]
    #[non_exhaustive]
    AlreadyPooled {
        /// The database file, as this pool names it.
        path: PathBuf,
    },

    /// The pool could need more descriptors than it may use. Allow fewer connections, or raise the
    /// budget or the process's limit.
    #[error(
        "{max_connections} connections can need {ceiling} descriptors, but {available} are available ({limited_by})"
    )]
    #[non_exhaustive]
    Budget {
        /// The size of pool asked for.
        max_connections: usize,
        /// What it can need at most, see [`Pool::fd_ceiling`](crate::Pool::fd_ceiling).
        ceiling: usize,
        /// What it may use.
        available: usize,
        /// Which limit says so.
        limited_by: &'static str,
    },

    /// Opening the database would pass the pool's ceiling of descriptors, as connections to files that were replaced,
    /// or SQLite for them, have some open. They are closed when the leases on them end: trying again later helps.
    #[error("cannot open {target} now: the pool has as many descriptors open as it may")]
    #[non_exhaustive]
    NoDescriptors {
        /// The database.
        target: String,
    },

    /// A backup could not be made. What was at its path before is there still.
    #[error("no backup was made to {}", to.display())]
    #[non_exhaustive]
    Backup {
        /// Where it was to be.
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

    /// This pool cannot do that: because of its [`Database`](crate::Database), or of an option.
    #[error("{operation} is not supported by this pool: {reason}")]
    #[non_exhaustive]
    Unsupported {
        /// What was called for.
        operation: &'static str,
        /// Why not, and what to call instead.
        reason: &'static str,
    },

    /// The request did not pass the layer, or the application lacks the data, that finds its agent.
    #[error("{what} is not installed: add it around this handler")]
    #[non_exhaustive]
    NotInstalled {
        /// What is missing.
        what: &'static str,
    },

    /// A connection could not be closed, because something still uses it: a statement or a blob
    /// handle given to [`std::mem::forget`]. Its descriptors stay open, and stay counted.
    #[error("a connection to {target} cannot be closed")]
    #[non_exhaustive]
    NotClosed {
        /// The database.
        target: String,
        /// What SQLite said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The pool, or its writer, was to be closed from within one of its own calls, which would wait for itself.
    #[error("close was called within {within} of the same pool: call it after that")]
    #[non_exhaustive]
    Reentrant {
        /// Which call.
        within: &'static str,
    },

    /// This process is a fork of the one that has built the pool. SQLite's locks, and the pool's threads, are the
    /// other's: build a pool here.
    #[error("the pool belongs to the process that this one was forked from")]
    Forked,

    /// No thread can be started. Raise the limit on threads or processes (`ulimit -u`), and try again.
    #[error("no thread can be started")]
    #[non_exhaustive]
    NoThread {
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A write was called for within a write of the same pool, on the same thread. It would wait for
    /// itself. Do both in one, or use a savepoint.
    #[error("nested write: already inside a write of this pool")]
    NestedWrite,

    /// The work given to `write` ran a statement that would affect more than its own savepoint (BEGIN, COMMIT, ATTACH and
    /// the like). What it did was rolled back.
    #[error("{action} is not allowed within a write")]
    #[non_exhaustive]
    NotInWrite {
        /// What it tried first.
        action: String,
    },

    /// The transaction that this write was part of was rolled back while it, or another write of its group, was at
    /// work: the disk was full or failed, a statement was interrupted or used `OR ROLLBACK`, or the work tried to end
    /// the transaction. Nothing of the group was kept; trying again is safe.
    #[error("the transaction of this write was rolled back: nothing of it was kept")]
    #[non_exhaustive]
    RolledBack {
        /// What SQLite said when it was found, if it said anything. What made it do so is told to whose work it was.
        source: Option<rusqlite::Error>,
    },

    /// The deadline passed while the work given to `run` was running; it was interrupted, and its transaction rolled
    /// back.
    #[error("the work was interrupted after {after:?}")]
    #[non_exhaustive]
    Interrupted {
        /// How long it had been running.
        after: Duration,
    },

    /// This must be called within a tokio runtime, and one that is not shutting down.
    #[error("no tokio runtime is running here")]
    NoRuntime,

    /// An error of SQLite's.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
}

/// What a client that is told to come again should wait.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl Error {
    /// Whether the same call may well succeed a moment later, with nothing changed but what others do: every connection
    /// was lent or the turn did not come ([`Exhausted`](Error::Exhausted)), another connection or process held a lock
    /// (`SQLITE_BUSY` or `SQLITE_LOCKED`, also as the cause of [`Open`](Error::Open) and [`Setup`](Error::Setup)), a
    /// transaction was rolled back ([`RolledBack`](Error::RolledBack)), or the time was too short
    /// ([`Interrupted`](Error::Interrupted)). Nothing of the failed call was kept, so that it can be made again.
    ///
    /// After `SQLITE_BUSY` from a statement within a transaction of your own, begin that transaction again.
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
            Error::Open { source, .. }
            | Error::Setup { source, .. }
            | Error::Backup { source, .. } => is_locked(&**source),
            _ => false,
        }
    }

    /// Whether what was wanted did not come free in time: [`Error::Exhausted`].
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Error::Exhausted { .. })
    }

    /// The status that tells a client of this error over HTTP: 503 if it [is retryable](Error::is_retryable) or the pool
    /// (or its writer) is closed, 400 if the agent's id cannot be used, 500 otherwise. It is what the features `axum`
    /// and `actix` answer; use it where there is another framework, or none.
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
            error if error.is_retryable() => 503,
            _ => 500,
        }
    }

    /// How long a client should wait before it tries again, for errors that [are retryable](Error::is_retryable); whole
    /// seconds, as the header `Retry-After` wants them. `None`: to try again is of no use.
    pub fn retry_after(&self) -> Option<Duration> {
        self.is_retryable().then_some(RETRY_AFTER)
    }

    pub(crate) fn no_thread(source: std::io::Error) -> Error {
        Error::NoThread { source }
    }

    /// The error made of a panic in user code.
    pub(crate) fn panicked(callback: &'static str, panic: &(dyn Any + Send)) -> Error {
        let message = if let Some(message) = panic.downcast_ref::<&str>() {
            (*message).to_owned()
        } else if let Some(message) = panic.downcast_ref::<String>() {
            message.clone()
        } else {
            "no message".to_owned()
        };
        Error::Panicked { callback, message }
    }
}

/// Whether SQLite has returned BUSY or LOCKED: as the error itself, or as what caused it.
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

/// What somebody waited for in vain: [`Error::Exhausted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// A connection.
    Connection,
    /// The turn to write.
    TurnToWrite,
    /// The one connection of an agent that has a file of its own.
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

/// What was found where the pool's database file used to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileState {
    /// Nothing.
    Deleted,
    /// A file too short to be a database.
    Truncated,
    /// A different file each time the path was looked at.
    Unstable,
    /// The database, without the write-ahead log that connections are using: it was deleted or replaced. What was
    /// committed since the last checkpoint is lost with it. The pool opens the database anew once those
    /// connections are returned and closed.
    LogRemoved,
    /// Another database, and beside it the write-ahead log (`-wal`) or its index (`-shm`) of the one that was there
    /// before. SQLite would replay that log into the new database. Remove both files.
    LogLeft,
}

impl fmt::Display for FileState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileState::Deleted => "deleted",
            FileState::Truncated => "truncated",
            FileState::Unstable => "replaced again and again",
            FileState::LogRemoved => "left without its write-ahead log",
            FileState::LogLeft => "replaced, beside the -wal or -shm of the file before it,",
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
                "; each of them was taken by a thread that is itself waiting for a connection",
            )
        } else {
            Ok(())
        }
    }
}

/// As many holders as a log line can bear; the error's field has them all.
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
