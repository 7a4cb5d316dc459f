//! Opener: how connections to one database are opened: by the crate itself, or through a manager of the program.
//! It gives no pragma, and knows no pool.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::Fault;
#[cfg(feature = "r2d2_sqlite")]
use super::manager::Managed;

/// Opens connections to one database, always with the same flags: SQLite reuses a kept descriptor only for a
/// connection with the same flags.
#[derive(Clone)]
pub(super) enum Opener {
    /// The crate itself opens the file at the path.
    Own { path: PathBuf, flags: OpenFlags },
    #[cfg(feature = "r2d2_sqlite")]
    Manager(Managed),
}

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

const READ_ONLY: OpenFlags =
    OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

impl Opener {
    /// Opens a file that exists.
    pub(super) fn existing(path: &Path) -> Self {
        Opener::own(path, FLAGS)
    }

    /// The same, read-only.
    pub(super) fn reading(path: &Path) -> Self {
        Opener::own(path, READ_ONLY)
    }

    /// A database in memory, by the URI that names it.
    pub(super) fn memory(name: &str) -> Self {
        Opener::own(Path::new(name), OpenFlags::default())
    }

    fn own(path: &Path, flags: OpenFlags) -> Self {
        Opener::Own {
            path: path.to_path_buf(),
            flags,
        }
    }

    /// An opener that creates the file if it does not exist. For a manager, its own flags decide that.
    pub(super) fn creating(&self) -> Self {
        match self {
            Opener::Own { path, flags } => {
                Opener::own(path, *flags | OpenFlags::SQLITE_OPEN_CREATE)
            }
            #[cfg(feature = "r2d2_sqlite")]
            Opener::Manager(managed) => Opener::Manager(managed.clone()),
        }
    }

    pub(super) fn open(&self) -> Result<Connection, Fault> {
        match self {
            Opener::Own { path, flags } => Ok(Connection::open_with_flags(path, *flags)?),
            #[cfg(feature = "r2d2_sqlite")]
            Opener::Manager(managed) => managed.open(),
        }
    }
}

/// Opens a file that exists and is no pool's database.
pub(super) fn open_existing(path: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(path, FLAGS)
}
