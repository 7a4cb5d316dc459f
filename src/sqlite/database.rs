//! Which database a pool lends connections to: the type that users give to the builder.
//! It touches no file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

#[cfg(feature = "r2d2_sqlite")]
use r2d2_sqlite::SqliteConnectionManager;

use super::budget::Sharing;

/// What a pool lends connections to.
#[derive(Debug, Clone)]
pub struct Database(pub(crate) Kind);

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// One file for all agents.
    File(PathBuf),
    /// One file for all agents, which others write.
    ReadOnly(PathBuf),
    /// One file for all agents, which a manager of the program's opens.
    #[cfg(feature = "r2d2_sqlite")]
    Manager(Arc<SqliteConnectionManager>),
    /// A file for each agent.
    Agents(Place),
    /// One database in memory for all agents.
    Memory,
}

/// Which file is an agent's.
#[derive(Clone)]
pub(crate) enum Place {
    /// In this folder, under a name made of the agent's id.
    Folder(PathBuf),
    /// Where the function says.
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
    /// At checkpoints. In WAL mode the database survives a crash of the machine, but the last commits
    /// may be lost in it. A crash of the process loses nothing.
    Normal,
    /// At every commit. What is committed stays committed.
    #[default]
    Full,
    /// As `Full`, and in rollback-journal mode the folder as well.
    Extra,
}

impl Database {
    /// One file that all agents share, in WAL mode. It is created if it does not exist; its folder is
    /// not.
    ///
    /// One process may have one pool on a file at a time, whatever the file is called: symbolic and
    /// hard links and relative paths all count as the same. A second `build` fails with
    /// [`Error::AlreadyPooled`](crate::Error::AlreadyPooled); clone the first pool instead.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Database(Kind::File(path.as_ref().to_path_buf()))
    }

    /// One file that all agents read, and that another process writes. It is opened for reading only
    /// (`SQLITE_OPEN_READONLY`): the pool never creates it, never changes its journal mode, whatever that is, and runs no
    /// checkpoint. Leases are as with [`Builder::reads_only`](crate::Builder::reads_only), and writes are refused with
    /// [`Error::ReadOnly`](crate::Error::ReadOnly). A [`setup`](crate::Builder::setup) is refused by `build`.
    ///
    /// In WAL mode, a reader needs the files `-wal` and `-shm`, which the writer's connection keeps. While no writer has
    /// the file open, SQLite makes them anew, and leaves them there, if the folder may be written; otherwise `build` or the
    /// lease fails with [`Error::Open`](crate::Error::Open), and the source says what is needed
    /// ([sqlite.org/wal.html](https://sqlite.org/wal.html#read_only_databases)). In rollback mode, a read keeps the writer
    /// from committing for as long as it lasts.
    ///
    /// A file that is replaced is noticed as with [`Database::file`]; and so is a second pool of this process on the same
    /// file, which fails with [`Error::AlreadyPooled`](crate::Error::AlreadyPooled), whether it writes or not.
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
        Database(Kind::ReadOnly(path.as_ref().to_path_buf()))
    }

    /// One file that all agents share, like [`Database::file`], opened through the manager that a program of r2d2_sqlite
    /// has configured already: with its flags, and with what its `with_init` does to each connection. It takes the
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
    /// [`setup`](crate::Builder::setup), and one in `build` that tells which file it is. `with_init` runs on each
    /// before [`on_connect`](crate::Builder::on_connect) and before the pool's own pragmas, which replace its
    /// `busy_timeout`, `synchronous`, `journal_mode`, `temp_store`, `mmap_size` and `foreign_keys`: the builder has options
    /// for these. A transaction that it leaves open is committed. It may run on any thread, and may not lease from the
    /// pool. Databases that it attaches count for [`attach_limit`](crate::Builder::attach_limit).
    ///
    /// `build` fails with [`Error::Config`](crate::Error::Config) for a manager whose database is in memory or named by a
    /// URI, and for one that opens the file for reading only, unless
    /// [`reads_only`](crate::Builder::reads_only) is set: the pool is then as with [`Database::read_only`]. Whatever
    /// `with_init` returns is the source of an [`Error::Open`](crate::Error::Open), and a panic in it becomes
    /// [`Error::Panicked`](crate::Error::Panicked) there.
    ///
    /// - A manager with `SQLITE_OPEN_CREATE`, as it is by default, can make the file anew if it is deleted in the moment
    ///   in which a connection is opened. Without that flag the file must exist.
    /// - If the manager has a relative path, and the program then changes its working directory, connections fail to
    ///   open: they would be to another file.
    /// - A copy made by a [backup](crate::Pool::backup) is no file of the manager's, so `with_init` does not run on it.
    ///   Give SQLCipher's key by `on_connect` or [`pragma`](crate::Builder::pragma), which do.
    /// - Do not use `SQLITE_OPEN_SHARED_CACHE`: connections then fail with `SQLITE_LOCKED` where they would otherwise wait.
    #[cfg(feature = "r2d2_sqlite")]
    #[cfg_attr(docsrs, doc(cfg(feature = "r2d2_sqlite")))]
    pub fn manager(manager: SqliteConnectionManager) -> Self {
        Database(Kind::Manager(Arc::new(manager)))
    }

    /// A file for each agent, in `folder`: any number of agents, and never more than `max_connections` files
    /// open. A file is created when its agent is first lent a connection (readable by nobody but the user),
    /// and so is the folder when the pool is built.
    ///
    /// The file of agent `session-1` is `session-1.db`. Small letters, digits, `-` and `_` of an id stand
    /// for themselves; every other byte of it in UTF-8, capitals among them, is written as `%` and two small
    /// hexadecimal digits. So no id leads out of the folder, no two ids have one file, also on file systems
    /// that do not tell capitals, and each id can be read back. Ids whose name would be longer than 255
    /// bytes with what SQLite adds to it, and the names of devices (`con`, `nul`, ...), are refused
    /// with [`Error::InvalidAgent`](crate::Error::InvalidAgent).
    ///
    /// A connection serves its agent only, and an agent has one at a time: a second borrower of the same agent
    /// waits until the first returns it, and takes no other agent's place meanwhile.
    ///
    /// One process may have one pool on a folder at a time.
    pub fn per_agent(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref().to_path_buf();
        Database(Kind::Agents(Place::Folder(folder)))
    }

    /// Like [`Database::per_agent`], with files where `place` says. It is called with the agent's id, on
    /// the borrower's thread, whenever a file may have to be opened; it must always say the same for the same
    /// id, and be quick. Folders are not created. Agents with the same path share one file, and wait for each
    /// other. An id may contain anything: do not make a path of it without looking.
    pub fn per_agent_with<F>(place: F) -> Self
    where
        F: Fn(&str) -> PathBuf + Send + Sync + 'static,
    {
        Database(Kind::Agents(Place::Function(Arc::new(place))))
    }

    /// A database in memory that all agents of this pool share, and that ends with the pool. It costs
    /// no descriptors. It has no WAL: a writer waits for readers, and readers for a writer, for at
    /// most `busy_timeout`.
    pub fn memory() -> Self {
        Database(Kind::Memory)
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

/// What a database in memory is called in messages.
pub(super) const IN_MEMORY: &str = "a database in memory";

/// A name that no other database in memory of this process has. The memdb VFS shares a database
/// among the connections that open the same name, if it starts with a slash.
pub(crate) fn memory_name() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    format!("file:/leasepool-{}?vfs=memdb", MADE.fetch_add(1, Relaxed))
}
