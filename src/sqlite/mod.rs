//! Sqlite: the default backend. Connections to one database file, or to one in memory.
//! It knows no pools and no agents: any connection serves anybody, once it is reset.

mod budget;
#[cfg(feature = "tokio")]
mod busy;
mod connection;
mod database;
mod group;
mod registered;
mod reset;
mod wal;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;
use rusqlite::types::Value;

use crate::backend::{Backend, Ending, Fate, NotClosed};
use crate::error::Error;
use crate::events;
use crate::hands::Hands;
use crate::queue::{Job, Lane};
use crate::stats::Stats;

pub(crate) use budget::Budget;
#[cfg(feature = "tokio")]
pub(crate) use busy::Cancel;
pub(crate) use connection::Connection;
pub use connection::Synchronous;
pub use database::Database;
pub(crate) use group::{Group, Member, begin_immediate, same, until};
pub(crate) use wal::{Checkpointed, Mode, Wal, checkpoint, take_noted};

use database::{File, Generation};
use watch::Watch;

/// A callback of the builder's: on a new connection, or on a database to be set up.
pub(crate) type Callback =
    Box<dyn Fn(&mut rusqlite::Connection) -> rusqlite::Result<()> + Send + Sync>;

/// What every connection gets.
pub(crate) struct Settings {
    pub(crate) busy_timeout: Duration,
    pub(crate) synchronous: Synchronous,
    pub(crate) statement_cache: usize,
    pub(crate) attach_limit: usize,
    pub(crate) mmap_size: u64,
    /// In bytes: from which length on the write-ahead log is checkpointed, and to which it is cut.
    pub(crate) wal_size: u32,
    pub(crate) pragmas: Vec<(String, Value)>,
    pub(crate) setup: Option<Callback>,
    pub(crate) on_open: Option<Callback>,
}

impl Settings {
    /// What `n` connections can cost, see [`budget::ceiling`].
    pub(crate) fn fd_ceiling(&self, is_file: bool, n: usize) -> usize {
        budget::ceiling(is_file, n, self.attach_limit)
    }

    /// The largest pool on a file whose ceiling stays within `descriptors`.
    pub(crate) fn affordable(&self, descriptors: usize) -> Option<usize> {
        budget::affordable(descriptors, self.attach_limit)
    }
}

/// The default [`Backend`]: connections to the [`Database`] given to
/// [`Pool::builder`](crate::Pool::builder).
pub struct Sqlite {
    settings: Settings,
    source: Source,
    pub(crate) writes: Writes,
}

/// How writes are queued and grouped, and the queue.
pub(crate) struct Writes {
    /// How many may wait at most.
    pub(crate) queue: usize,
    /// How many a group may have, and after which time it is committed.
    pub(crate) group_members: usize,
    pub(crate) group_time: Duration,
    /// As which agent the pool itself borrows the connection that writes.
    pub(crate) writer: Arc<str>,
    pub(crate) hands: Arc<Hands>,
    lane: Arc<Lane<Arc<dyn Job>>>,
}

impl Writes {
    pub(crate) fn new(queue: usize, group_members: usize, group_time: Duration) -> Self {
        Writes {
            queue,
            group_members,
            group_time,
            writer: "leasepool: writer".into(),
            // One leads the lane, one runs checkpoints.
            hands: Hands::new(2),
            lane: Arc::new(Lane::new()),
        }
    }
}

enum Source {
    File {
        file: File,
        /// Opens the file if it is there. Whoever opened a database with other flags would get a
        /// descriptor that SQLite cannot use again for the next connection.
        opener: SqliteConnectionManager,
    },
    Memory {
        opener: SqliteConnectionManager,
        /// SQLite frees a database in memory with its last connection; this one is never lent.
        _anchor: Mutex<rusqlite::Connection>,
    },
}

/// A file under the pool may change between one look and the next open; so often at most.
const OPEN_ATTEMPTS: usize = 3;

impl Sqlite {
    /// Opens the database once, creates and sets it up if need be, and closes it again.
    pub(crate) fn new(
        database: Database,
        settings: Settings,
        writes: Writes,
    ) -> Result<Self, Error> {
        match database {
            Database::File(path) => {
                let file = File::claim(&path, Wal::new(settings.wal_size))?;
                let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
                let opener = SqliteConnectionManager::file(&file.path).with_flags(flags);
                let creator = SqliteConnectionManager::file(&file.path)
                    .with_flags(flags | OpenFlags::SQLITE_OPEN_CREATE);
                file.check_path()?;
                let connection = creator
                    .connect()
                    .map_err(|e| open_error(&file.target(), e))?;
                let sqlite = Sqlite {
                    settings,
                    source: Source::File { file, opener },
                    writes,
                };
                sqlite.first_open(connection)?;
                Ok(sqlite)
            }
            Database::Memory => {
                let name = database::memory_name();
                let opener = SqliteConnectionManager::file(name);
                let target = Database::Memory.to_string();
                let anchor = opener.connect().map_err(|e| open_error(&target, e))?;
                let sqlite = Sqlite {
                    settings,
                    source: Source::Memory {
                        opener,
                        _anchor: Mutex::new(anchor),
                    },
                    writes,
                };
                if let Source::Memory { opener, .. } = &sqlite.source {
                    let connection = opener.connect().map_err(|e| open_error(&target, e))?;
                    let connection = sqlite.set_up(connection, &target)?;
                    discard(connection);
                    discard(sqlite.configured(&target, opener, 0)?.into_inner());
                }
                Ok(sqlite)
            }
        }
    }

    /// The rest of `new` for a file that may just have been created.
    fn first_open(&self, connection: rusqlite::Connection) -> Result<(), Error> {
        let Source::File { file, opener } = &self.source else {
            return Ok(());
        };
        if let Err(error) = file.claim_identity() {
            discard(connection);
            return Err(error);
        }
        let generation = file.look();
        let target = file.target();
        let connection = self.set_up(connection, &target)?;
        if connection::has_memory_management(&connection) {
            events::memory_management();
        }
        discard(connection);
        file.mark_set_up(generation.number);
        // Whatever else can fail at opening a connection shall fail now.
        discard(
            self.configured(&target, opener, generation.number)?
                .into_inner(),
        );
        Ok(())
    }

    /// Turns WAL on and runs `setup`. The connection may be left in any state: it is to be closed.
    fn set_up(
        &self,
        mut connection: rusqlite::Connection,
        target: &str,
    ) -> Result<rusqlite::Connection, Error> {
        let prepared = connection::prepare(&connection, &self.settings, self.is_file());
        if let Err(source) = prepared {
            discard(connection);
            return Err(Error::Open {
                target: target.to_owned(),
                source,
            });
        }
        if let Some(setup) = &self.settings.setup
            && let Err(source) = call("setup", setup, &mut connection)
        {
            discard(connection);
            return Err(Error::Setup {
                target: target.to_owned(),
                source,
            });
        }
        if !connection.is_autocommit()
            && let Err(source) = connection.execute_batch("COMMIT")
        {
            discard(connection);
            return Err(Error::Setup {
                target: target.to_owned(),
                source: source.into(),
            });
        }
        Ok(connection)
    }

    /// Opens one connection with everything the builder asked for.
    fn configured(
        &self,
        target: &str,
        opener: &SqliteConnectionManager,
        generation: u64,
    ) -> Result<Connection, Error> {
        let mut connection = opener.connect().map_err(|e| open_error(target, e))?;
        let watch = Watch::install(&connection);
        let opened = watch.map_err(Into::into).and_then(|watch| {
            connection::prepare(&connection, &self.settings, self.is_file())?;
            connection::limit_attach(&connection, &self.settings)?;
            if let Some(on_open) = &self.settings.on_open {
                call("on_open", on_open, &mut connection)?;
                if !connection.is_autocommit() {
                    connection.execute_batch("COMMIT")?;
                }
            }
            let baseline = reset::Baseline::of(&connection, &self.settings, watch)?;
            Ok(baseline)
        });
        match opened {
            Ok(baseline) => Ok(Connection::new(connection, baseline, generation)),
            Err(source) => {
                discard(connection);
                Err(Error::Open {
                    target: target.to_owned(),
                    source,
                })
            }
        }
    }

    fn open_file(
        &self,
        file: &File,
        opener: &SqliteConnectionManager,
    ) -> Result<Connection, Error> {
        let target = file.target();
        for _ in 0..OPEN_ATTEMPTS {
            let generation = file.look();
            if let Some(found) = generation.lost {
                return Err(Error::FileReplaced {
                    path: file.path.clone(),
                    found,
                });
            }
            self.set_up_once(file, opener, &target, generation)?;
            let connection = self.configured(&target, opener, generation.number)?;
            if file.look() == generation {
                return Ok(connection);
            }
            discard(connection.into_inner());
        }
        Err(Error::FileReplaced {
            path: file.path.clone(),
            found: crate::error::FileState::Unstable,
        })
    }

    /// Sets up a file that took the place of the one this pool knew, before anybody else opens it.
    fn set_up_once(
        &self,
        file: &File,
        opener: &SqliteConnectionManager,
        target: &str,
        generation: Generation,
    ) -> Result<(), Error> {
        let mut set_up = file.set_up.lock();
        if *set_up != generation.number {
            file.claim_identity()?;
            let connection = opener.connect().map_err(|e| open_error(target, e))?;
            discard(self.set_up(connection, target)?);
            *set_up = generation.number;
        }
        Ok(())
    }

    /// The queue of those who write.
    pub(crate) fn lane(&self) -> Arc<Lane<Arc<dyn Job>>> {
        Arc::clone(&self.writes.lane)
    }

    /// The write-ahead log, if there is one that the pool is to keep short.
    pub(crate) fn wal(&self) -> Option<&Wal> {
        match &self.source {
            Source::File { file, .. } => Some(&file.wal),
            Source::Memory { .. } => None,
        }
    }

    pub(crate) fn busy_timeout(&self) -> Duration {
        self.settings.busy_timeout
    }

    fn is_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    fn target(&self) -> String {
        match &self.source {
            Source::File { file, .. } => file.target(),
            Source::Memory { .. } => Database::Memory.to_string(),
        }
    }

    /// Runs `work` on a connection, so that `cancel` ends its waits for locks.
    #[cfg(feature = "tokio")]
    pub(crate) fn cancellable<R>(
        &self,
        connection: &mut rusqlite::Connection,
        cancel: &Cancel,
        work: impl FnOnce(&mut rusqlite::Connection) -> R,
    ) -> R {
        busy::cancellable(connection, self.settings.busy_timeout, cancel, work)
    }

    /// `VACUUM`, on a connection whose limits the pool restores afterwards.
    pub(crate) fn vacuum(connection: &rusqlite::Connection) -> Result<(), Error> {
        use rusqlite::limits::Limit::SQLITE_LIMIT_ATTACHED;
        let limit = connection.set_limit(SQLITE_LIMIT_ATTACHED, 1)?;
        let vacuumed = connection.execute_batch("VACUUM");
        connection.set_limit(SQLITE_LIMIT_ATTACHED, limit)?;
        Ok(vacuumed?)
    }
}

impl Backend for Sqlite {
    type Connection = Connection;

    fn open(&self, _agent: &str) -> Result<Connection, Error> {
        match &self.source {
            Source::File { file, opener } => self.open_file(file, opener),
            Source::Memory { opener, .. } => self.configured(&self.target(), opener, 0),
        }
    }

    fn refresh(&self, now: Instant) {
        if let Source::File { file, .. } = &self.source {
            file.refresh(now);
        }
    }

    fn generation(&self) -> u64 {
        match &self.source {
            Source::File { file, .. } => file.generation(),
            Source::Memory { .. } => 0,
        }
    }

    fn fits(&self, connection: &Connection, _agent: Option<&str>) -> bool {
        connection.generation() == self.generation()
    }

    fn settle(&self, connection: &mut Connection) -> Fate {
        connection.settle()
    }

    fn reset(&self, connection: &mut Connection) -> Fate {
        connection.reset()
    }

    fn close(&self, connection: Connection, ending: Ending) -> Result<(), NotClosed<Connection>> {
        if ending == Ending::Faulty {
            // The last connection to a file would otherwise run a checkpoint as it closes.
            let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        }
        connection
            .close()
            .map_err(|(connection, source)| NotClosed {
                connection: Some(*connection),
                error: Error::NotClosed {
                    target: self.target(),
                    source: Box::new(source),
                },
            })
    }

    fn fd_ceiling(&self, max_connections: usize) -> usize {
        self.settings.fd_ceiling(self.is_file(), max_connections)
    }

    fn descriptors(&self) -> Option<usize> {
        match &self.source {
            Source::File { file, .. } => budget::descriptors_on(&file.path),
            Source::Memory { .. } => Some(0),
        }
    }

    fn observe(&self, stats: &mut Stats) {
        stats.writes_waiting = self.writes.lane.waiting();
        stats.wal_pages = self.wal().map_or(0, |wal| wal.pages() as usize);
    }

    fn check(&self) -> Result<(), Error> {
        match &self.source {
            Source::File { file, .. } => match file.look().lost {
                Some(found) => Err(Error::FileReplaced {
                    path: file.path.clone(),
                    found,
                }),
                None => Ok(()),
            },
            Source::Memory { .. } => Ok(()),
        }
    }

    fn closed(&self) {
        if let Source::File { file, .. } = &self.source {
            file.give_up_claim();
        }
    }
}

/// Closes a connection that was never lent. It has no statements left that could keep it open.
fn discard(connection: rusqlite::Connection) {
    if let Err((_, error)) = connection.close() {
        events::close_failed(&Error::Sqlite(error), false);
    }
}

fn open_error(target: &str, source: rusqlite::Error) -> Error {
    Error::Open {
        target: target.to_owned(),
        source: Box::new(source),
    }
}

/// Runs a user's callback; a panic in it becomes an error.
fn call(
    name: &'static str,
    callback: &Callback,
    connection: &mut rusqlite::Connection,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // The connection is closed if the callback does not return, so nobody sees what it broke.
    match catch_unwind(AssertUnwindSafe(|| callback(connection))) {
        Ok(result) => Ok(result?),
        Err(panic) => Err(Box::new(Error::panicked(name, &*panic))),
    }
}
