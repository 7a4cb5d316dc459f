//! Database: which database a pool lends connections to. Users give it to the builder.
//! It touches no file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(feature = "r2d2_sqlite")]
use r2d2_sqlite::SqliteConnectionManager;

use super::budget::Sharing;
use super::hosting::Hosting;

/// The database, or the databases, that a pool lends connections to.
#[derive(Debug, Clone)]
pub struct Database(pub(crate) Kind, pub(crate) Hosting);

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// One file for all agents.
    File(PathBuf),
    /// One file for all agents, which another process writes.
    ReadOnly(PathBuf),
    /// One file for all agents, which a manager of the program's opens.
    #[cfg(feature = "r2d2_sqlite")]
    Manager(Arc<SqliteConnectionManager>),
    /// A file for each agent.
    Agents(Place),
    /// One database in memory for all agents.
    Memory,
}

/// Where an agent's file is.
#[derive(Clone)]
pub(crate) enum Place {
    /// In this folder, under a name encoded from the agent's id.
    Folder(PathBuf),
    /// At the path that the function returns.
    Function(Arc<dyn Fn(&str) -> PathBuf + Send + Sync>),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(folder) => f.debug_tuple("Folder").field(folder).finish(),
            Place::Function(_) => f.write_str("Function"),
        }
    }
}

/// When SQLite waits for the disk: `PRAGMA synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Synchronous {
    /// Never. A crash of the machine can corrupt the database.
    Off,
    /// At checkpoints. In WAL mode the database survives a crash of the machine, but the last commits may be
    /// lost. A crash of the process loses nothing.
    Normal,
    /// At every commit. What is committed stays committed.
    #[default]
    Full,
    /// Like `Full`, and in rollback-journal mode it also waits for the folder.
    Extra,
}

impl Database {
    /// One file that all agents share, in WAL mode. The pool creates the file if it does not exist, but not
    /// its folder.
    ///
    /// One process may have one pool on a file at a time, whatever the file is called: symbolic links, hard
    /// links and relative paths to it count as the same file. A second `build` fails with
    /// [`Error::AlreadyPooled`](crate::Error::AlreadyPooled); clone the first pool instead.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Database::of(Kind::File(path.as_ref().to_path_buf()))
    }

    /// One file that all agents read and that another process writes. The pool opens it read-only
    /// (`SQLITE_OPEN_READONLY`). It never creates the file, keeps its journal mode, whatever that is, and
    /// runs no checkpoint. Leases are as with [`Builder::reads_only`](crate::Builder::reads_only), and writes
    /// fail with [`Error::ReadOnly`](crate::Error::ReadOnly). `build` refuses a
    /// [`setup`](crate::Builder::setup).
    ///
    /// In WAL mode, a reader needs the files `-wal` and `-shm`, which the writer's connection keeps. While no
    /// writer has the file open, SQLite creates them, and leaves them there, if it may write to the folder.
    /// Otherwise `build` or the lease fails with [`Error::Open`](crate::Error::Open), whose source says what
    /// is needed ([sqlite.org/wal.html](https://sqlite.org/wal.html#read_only_databases)). In rollback mode,
    /// the writer cannot commit while a read lasts.
    ///
    /// The pool notices a replaced file as with [`Database::file`]. A second pool of this process on the same
    /// file, writing or not, fails with [`Error::AlreadyPooled`](crate::Error::AlreadyPooled).
    ///
    /// ```no_run
    /// use leasepool::{Database, Error, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder(Database::read_only("/var/lib/app/app.db")).build()?;
    /// let notes: i64 = pool.read("report", |tx| {
    ///     tx.query_row("SELECT count(*) FROM note", [], |row| row.get(0))
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_only(path: impl AsRef<Path>) -> Self {
        Database::of(Kind::ReadOnly(path.as_ref().to_path_buf()))
    }

    /// One file that all agents share, like [`Database::file`], opened through a manager of r2d2_sqlite that the program
    /// has already configured: with its flags, and with what its `with_init` does to each connection. It takes the
    /// `SqliteConnectionManager` of [r2d2_sqlite 0.35](https://docs.rs/r2d2_sqlite/0.35), which is for rusqlite 0.40.
    ///
    /// ```
    /// use leasepool::{Database, Pool};
    /// use r2d2_sqlite::SqliteConnectionManager;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("app.db");
    /// let manager = SqliteConnectionManager::file(path)
    ///     .with_init(|conn| conn.execute_batch("PRAGMA cache_size = -8000"));
    /// let pool = Pool::builder(Database::manager(manager)).build()?;
    /// let lease = pool.lease("alice")?;
    /// let pages: i64 = lease.pragma_query_value(None, "cache_size", |row| row.get(0))?;
    /// assert_eq!(pages, -8000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The manager opens every connection to the file: those that are lent, that of
    /// [`setup`](crate::Builder::setup), and one in `build` that finds out which file it is. `with_init` runs on each
    /// before [`on_connect`](crate::Builder::on_connect) and before the pool's own pragmas, which replace its
    /// `busy_timeout`, `synchronous`, `journal_mode`, `temp_store`, `mmap_size` and `foreign_keys`: the builder has options
    /// for these. A transaction that it leaves open is committed. It may run on any thread, and may not lease from the
    /// pool. Databases that it attaches count for [`attach_limit`](crate::Builder::attach_limit).
    ///
    /// `build` fails with [`Error::Config`](crate::Error::Config) for a manager whose database is in memory or named by a
    /// URI, and for one that opens the file read-only, unless [`reads_only`](crate::Builder::reads_only) is set: the pool
    /// is then as with [`Database::read_only`]. An error of `with_init` is the source of an
    /// [`Error::Open`](crate::Error::Open); if `with_init` panics, the source is an
    /// [`Error::Panicked`](crate::Error::Panicked).
    ///
    /// - A manager with `SQLITE_OPEN_CREATE`, its default, can create the file again if it is deleted at the moment in
    ///   which a connection is opened. Without that flag the file must exist.
    /// - If the manager has a relative path, and the program then changes its working directory, connections fail to
    ///   open: they would be to another file.
    /// - The manager does not open the copy that a [backup](crate::Pool::backup) makes, so `with_init` does not run on it.
    ///   If `with_init` gives SQLCipher's key, give it with `on_connect` or [`pragma`](crate::Builder::pragma), too:
    ///   without it, the backup fails.
    /// - Do not use `SQLITE_OPEN_SHARED_CACHE`: connections then fail with `SQLITE_LOCKED` where they would otherwise wait.
    #[cfg(feature = "r2d2_sqlite")]
    #[cfg_attr(docsrs, doc(cfg(feature = "r2d2_sqlite")))]
    pub fn manager(manager: SqliteConnectionManager) -> Self {
        Database::of(Kind::Manager(Arc::new(manager)))
    }

    /// A file for each agent, in `folder`. There may be any number of agents, but never more than
    /// `max_connections` files are open. `build` creates the folder. The pool creates a file when its agent
    /// first gets a connection; only the user of the process may read it.
    ///
    /// The file of agent `session-1` is `session-1.db`. Small letters, digits, `-` and `_` of an id stand for
    /// themselves. Every other byte of it in UTF-8, capitals included, is written as `%` and two small
    /// hexadecimal digits. So no id leads out of the folder, two ids never share a file, also on file systems
    /// that do not distinguish capitals, and every id can be decoded. Ids whose file name, with what SQLite
    /// adds to it, would be longer than 255 bytes, and names of devices (`con`, `nul`, ...), fail with
    /// [`Error::InvalidAgent`](crate::Error::InvalidAgent).
    ///
    /// A connection serves only its agent, and an agent has one connection at a time. A second borrower of
    /// the same agent waits until the first returns it, and meanwhile takes no connection from other agents.
    ///
    /// One process may have one pool on a folder at a time.
    ///
    /// Where many machines share the agents, [`owner`](Database::owner) says which agents are here,
    /// [`create`](Database::create) and [`on_missing`](Database::on_missing) what happens if one has no file yet:
    /// see [the guide](crate::guide::scaling).
    pub fn per_agent(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref().to_path_buf();
        Database::of(Kind::Agents(Place::Folder(folder)))
    }

    /// Like [`Database::per_agent`], with files where `place` says. The pool calls `place` with the agent's
    /// id, on the borrower's thread or a thread of the pool, whenever it may have to open a file. `place`
    /// must always return the same path for the same id, and be quick. The pool does not create folders.
    /// Agents with the same path share one file and wait for each other. An id may contain anything: check it
    /// before you make a path of it.
    pub fn per_agent_with<F>(place: F) -> Self
    where
        F: Fn(&str) -> PathBuf + Send + Sync + 'static,
    {
        Database::of(Kind::Agents(Place::Function(Arc::new(place))))
    }

    /// A database in memory that all agents of this pool share and that ends with the pool. It needs no
    /// descriptors. It has no WAL: a writer waits for readers, and readers for a writer, for at most
    /// `busy_timeout`.
    pub fn memory() -> Self {
        Database::of(Kind::Memory)
    }

    fn of(kind: Kind) -> Self {
        Database(kind, Hosting::default())
    }
}

impl Kind {
    /// What connections to it share.
    pub(crate) fn sharing(&self, synchronous: Synchronous) -> Sharing {
        match (self, synchronous) {
            (Kind::File(_) | Kind::ReadOnly(_), _) => Sharing::OneFile,
            #[cfg(feature = "r2d2_sqlite")]
            (Kind::Manager(_), _) => Sharing::OneFile,
            (Kind::Memory, _) => Sharing::NoFile,
            (Kind::Agents(_), Synchronous::Off) => Sharing::UnsyncedFileEach,
            (Kind::Agents(_), _) => Sharing::FileEach,
        }
    }

    /// A short name for it, unless only the open file tells.
    pub(crate) fn name(&self) -> Option<String> {
        match self {
            Kind::File(path) | Kind::ReadOnly(path) | Kind::Agents(Place::Folder(path)) => {
                Some(name_of(path))
            }
            #[cfg(feature = "r2d2_sqlite")]
            Kind::Manager(_) => None,
            Kind::Agents(Place::Function(_)) => Some("agents".to_owned()),
            Kind::Memory => Some("memory".to_owned()),
        }
    }
}

pub(super) fn name_of(path: &Path) -> String {
    match path.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => "file".to_owned(),
    }
}

/// The name of a database in memory in messages.
pub(super) const IN_MEMORY: &str = "a database in memory";

/// A name that no other database in memory of this process has. SQLite's memdb VFS shares a database among
/// the connections that open the same name, if the name starts with a slash.
pub(crate) fn memory_name() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    format!("file:/leasepool-{}?vfs=memdb", MADE.fetch_add(1, Relaxed))
}
