//! Manager: opens connections through the `SqliteConnectionManager` that the program configures.
//! It finds out which file the manager opens, and reads nothing from that file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode};

use super::open::discard;
use super::retry::{until, while_busy};
use super::{Access, Fault, Settings};
use crate::error::{Error, caught};

/// A manager, and the file that it opens.
#[derive(Clone)]
pub(super) struct Managed {
    manager: Arc<SqliteConnectionManager>,
    /// The path as SQLite names it: the manager may have been given a relative path.
    path: PathBuf,
    only_reads: bool,
    busy_timeout: Duration,
    attach_limit: usize,
}

impl Managed {
    /// Opens one connection, to learn what the manager does not say: which file it opens, and whether the
    /// file may be written.
    ///
    /// # Errors
    /// [`Error::Config`] if a pool cannot have such a database.
    pub(super) fn new(
        manager: Arc<SqliteConnectionManager>,
        settings: &Settings,
    ) -> Result<Self, Error> {
        check_source(&manager)?;
        let mut managed = Managed {
            manager,
            path: PathBuf::new(),
            only_reads: false,
            busy_timeout: settings.busy_timeout,
            attach_limit: settings.attach_limit,
        };
        let failed = |source| match is_misuse(&source) {
            true => config(
                "a manager whose flags open nothing".to_owned(),
                "flags with SQLITE_OPEN_READ_WRITE, or with SQLITE_OPEN_READ_ONLY and reads_only(true)",
            ),
            false => Error::Open {
                target: "the manager's database".to_owned(),
                source,
            },
        };
        let connection = managed.connect().map_err(failed)?;
        let learned = managed.learn(&connection);
        discard(connection);
        learned.map_err(|error| failed(error.into()))?;
        match managed.path.as_os_str().is_empty() {
            true => Err(no_file()),
            false => Ok(managed),
        }
    }

    fn learn(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        // If `with_init` has read the file, the last connection to it would run a checkpoint as it closes.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        self.path = PathBuf::from(connection.path().unwrap_or_default());
        self.only_reads = connection.is_readonly("main")?;
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What leases may do, if the builder asked for `access`.
    ///
    /// # Errors
    /// [`Error::Config`] if the manager opens the file for less.
    pub(super) fn access(&self, settings: &Settings) -> Result<Access, Error> {
        match (self.only_reads, settings.access) {
            (false, access) => Ok(access),
            (true, Access::ReadWrite) => Err(config(
                format!(
                    "a manager that opens {} for reading only",
                    self.path.display()
                ),
                "a file that may be written and flags with SQLITE_OPEN_READ_WRITE, or reads_only(true)",
            )),
            (true, _) if settings.setup.is_some() => Err(Error::Config {
                option: "setup",
                value: "a function".to_owned(),
                expected: "none, as the manager opens the file for reading only".to_owned(),
            }),
            (true, _) => Ok(Access::ReadOnlyFile),
        }
    }

    /// Opens a connection to that file.
    pub(super) fn open(&self) -> Result<Connection, Fault> {
        let connection = self.connect()?;
        match self.check(&connection) {
            Ok(()) => Ok(connection),
            Err(fault) => {
                discard(connection);
                Err(fault)
            }
        }
    }

    /// Opens a connection to whatever the manager names now. `with_init` may need a lock that another process
    /// holds.
    fn connect(&self) -> Result<Connection, Fault> {
        let deadline = Instant::now() + self.busy_timeout;
        // If a callback panics, its connection is closed, and with it whatever the callback broke.
        let connect = || caught("with_init", || self.manager.connect());
        let connected = while_busy(until(deadline), || match connect() {
            Ok(connected) => connected.map(Ok),
            Err(panic) => Ok(Err(panic)),
        })?;
        Ok(connected?)
    }

    /// Whether the connection is to the pool's file, and has no database attached that the pool does not
    /// count.
    fn check(&self, connection: &Connection) -> Result<(), Fault> {
        let found = Path::new(connection.path().unwrap_or_default());
        if found != self.path {
            return Err(refused(format!(
                "the manager opened {}: give it an absolute path, or change no working directory and no link",
                found.display()
            )));
        }
        if !connection.is_autocommit() {
            connection.execute_batch("COMMIT")?;
        }
        let attached = attached(connection)?;
        match attached <= self.attach_limit {
            true => Ok(()),
            false => Err(refused(format!(
                "with_init has attached {attached} databases, and attach_limit is {}",
                self.attach_limit
            ))),
        }
    }
}

/// Refuses a manager before it opens anything, by its `Debug` text: a URI may say more than the file's path.
fn check_source(manager: &SqliteConnectionManager) -> Result<(), Error> {
    let shown = format!("{manager:?}");
    if shown.contains("source: Memory(") {
        return Err(no_file());
    }
    // A quote within a path would appear as \".
    if shown.contains("source: File(\"file:") {
        return Err(config(
            "a manager for a URI".to_owned(),
            "a manager for the path of a file; for one that is called so, a path that begins with ./",
        ));
    }
    Ok(())
}

/// How many databases are attached. This reads nothing from the file, which may need a key first.
fn attached(connection: &Connection) -> rusqlite::Result<usize> {
    const MAIN_AND_TEMP: [&str; 2] = ["main", "temp"];
    let mut list = connection.prepare("PRAGMA database_list")?;
    let names = list.query_map([], |row| row.get::<_, String>("name"))?;
    let mut attached = 0;
    for name in names {
        attached += usize::from(!MAIN_AND_TEMP.contains(&name?.as_str()));
    }
    Ok(attached)
}

/// Whether SQLite got flags that it does not accept.
fn is_misuse(fault: &Fault) -> bool {
    let error = fault.downcast_ref::<rusqlite::Error>();
    error.and_then(rusqlite::Error::sqlite_error_code) == Some(ErrorCode::ApiMisuse)
}

fn no_file() -> Error {
    config(
        "a manager without a file".to_owned(),
        "SqliteConnectionManager::file with the path of a file; for a database in memory, Database::memory()",
    )
}

fn config(value: String, expected: &str) -> Error {
    Error::Config {
        option: "database",
        value,
        expected: expected.to_owned(),
    }
}

fn refused(text: String) -> Fault {
    Box::new(io::Error::new(io::ErrorKind::InvalidInput, text))
}
