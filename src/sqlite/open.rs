//! Opening: the first connection to a database, setting it up, and every connection after that.
//! It lends nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use r2d2::ManageConnection;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;

use super::agents::{self, AgentFile, Agents, OpenPlan};
use super::connection::{self, Connection};
use super::database::{self, Database, File, Generation, Kind};
use super::wal::{self, Wal};
use super::watch::ChangeTracker;
use super::{Callback, Settings, Source, Sqlite, reset};
use crate::core::backend::Fate;
use crate::error::Error;
use crate::observe::events;

/// A file under the pool may change between one look and the next open; so often at most.
const OPEN_ATTEMPTS: usize = 3;
/// How long the opening of an agent's file waits until an earlier connection to it is closed.
const LONGEST_CLOSE: Duration = Duration::from_secs(1);

impl Sqlite {
    /// Opens the database once, creates and sets it up if need be, and closes it again.
    pub(crate) fn new(database: Database, settings: Settings) -> Result<Self, Error> {
        let sharing = database.0.sharing(settings.synchronous);
        match database.0 {
            Kind::Agents(place) => Ok(Sqlite {
                settings,
                sharing,
                source: Source::Agents(Agents::new(place)?),
            }),
            Kind::File(path) => {
                let file = File::claim(&path, Wal::new(settings.wal_size))?;
                let opener = opener(&file.path);
                let creator = SqliteConnectionManager::file(&file.path)
                    .with_flags(FLAGS | OpenFlags::SQLITE_OPEN_CREATE);
                file.check_path()?;
                let connection = creator
                    .connect()
                    .map_err(|e| open_error(&file.target(), e))?;
                let sqlite = Sqlite {
                    settings,
                    sharing,
                    source: Source::File { file, opener },
                };
                sqlite.first_open(connection)?;
                Ok(sqlite)
            }
            Kind::Memory => {
                let name = database::memory_name();
                let opener = SqliteConnectionManager::file(name);
                let target = database::IN_MEMORY;
                let anchor = opener.connect().map_err(|e| open_error(target, e))?;
                let sqlite = Sqlite {
                    settings,
                    sharing,
                    source: Source::Memory {
                        opener,
                        _anchor: Mutex::new(anchor),
                    },
                };
                if let Source::Memory { opener, .. } = &sqlite.source {
                    let connection = opener.connect().map_err(|e| open_error(target, e))?;
                    let connection = sqlite.set_up(connection, target)?;
                    discard(connection);
                    discard(sqlite.configured(target, opener, 0, None)?.into_inner());
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
            self.configured(&target, opener, generation.number, None)?
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
        let set_up = match prepared {
            Ok(()) => self.run_setup(&mut connection, target),
            Err(source) => Err(Error::Open {
                target: target.to_owned(),
                source,
            }),
        };
        match set_up {
            Ok(()) => Ok(connection),
            Err(error) => {
                discard(connection);
                Err(error)
            }
        }
    }

    fn run_setup(&self, connection: &mut rusqlite::Connection, target: &str) -> Result<(), Error> {
        let Some(setup) = &self.settings.setup else {
            return Ok(());
        };
        let done = call("setup", setup, connection).and_then(|()| {
            if !connection.is_autocommit() {
                connection.execute_batch("COMMIT")?;
            }
            Ok(())
        });
        done.map_err(|source| Error::Setup {
            target: target.to_owned(),
            source,
        })
    }

    /// Runs `setup` for an agent's file. The connection comes back if nothing that `setup` did stays on it:
    /// opening a file takes longer than looking.
    fn set_up_agent(
        &self,
        mut connection: rusqlite::Connection,
        target: &str,
    ) -> Result<Option<rusqlite::Connection>, Error> {
        let begun = (|| {
            let watch = ChangeTracker::install(&connection)?;
            connection::prepare(&connection, &self.settings, true)?;
            Ok(reset::Baseline::of(&connection, &self.settings, watch)?)
        })();
        let set_up = begun
            .map_err(|source| Error::Open {
                target: target.to_owned(),
                source,
            })
            .and_then(|baseline| {
                self.run_setup(&mut connection, target)?;
                Ok(baseline)
            });
        match set_up {
            Ok(mut baseline) => {
                if let Ok(Fate::Reuse) = baseline.restore(&mut connection) {
                    return Ok(Some(connection));
                }
                // The next connection goes on with this one's log.
                let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
                discard(connection);
                Ok(None)
            }
            Err(error) => {
                discard(connection);
                Err(error)
            }
        }
    }

    /// Opens one connection with everything the builder asked for.
    pub(super) fn configured(
        &self,
        target: &str,
        opener: &SqliteConnectionManager,
        generation: u64,
        agent_file: Option<AgentFile>,
    ) -> Result<Connection, Error> {
        let connection = opener.connect().map_err(|e| open_error(target, e))?;
        self.configure(connection, target, generation, agent_file)
    }

    fn configure(
        &self,
        mut connection: rusqlite::Connection,
        target: &str,
        generation: u64,
        agent_file: Option<AgentFile>,
    ) -> Result<Connection, Error> {
        let watch = ChangeTracker::install(&connection);
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
            Ok(baseline) => Ok(Connection::new(
                connection, baseline, generation, agent_file,
            )),
            Err(source) => {
                discard(connection);
                Err(Error::Open {
                    target: target.to_owned(),
                    source,
                })
            }
        }
    }

    pub(super) fn open_file(
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
            let connection = self.configured(&target, opener, generation.number, None)?;
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

    /// Opens the agent's file, which is made and set up if there is none. Nobody else does so at the same
    /// time: whoever leases has passed the agent's gate.
    pub(super) fn open_agent(&self, agents: &Agents, agent: &str) -> Result<Connection, Error> {
        let path = agents.path(agent)?;
        // One that cannot be closed is not waited for long.
        agents.wait_until_closed(&path, Instant::now() + LONGEST_CLOSE);
        let plan = agents.plan(&path)?;
        agents.opening(&path)?;
        let opened = self.open_planned(agents, agent, &path, &plan);
        if opened.is_err() {
            if plan.made {
                // As it was: not there.
                let _ = agents::remove_files(&path);
            }
            agents.closed(&path);
        }
        opened
    }

    fn open_planned(
        &self,
        agents: &Agents,
        agent: &str,
        path: &Path,
        plan: &OpenPlan,
    ) -> Result<Connection, Error> {
        let target = format!("{} (agent {agent:?})", path.display());
        let connect = || {
            let connection = opener(path).connect();
            connection.map_err(|e| open_error(&target, e))
        };
        let mut connection = connect()?;
        if agents::wal_length(path) == 0 {
            // Now, and not within a commit of the agent's or of a callback's.
            let begun = {
                let _turn = wal::folder();
                connection::prepare(&connection, &self.settings, true)
                    .and_then(|()| Ok(connection::begin_log(&connection)?))
            };
            if let Err(source) = begun {
                discard(connection);
                return Err(Error::Open { target, source });
            }
        }
        if plan.set_up && self.settings.setup.is_some() {
            connection = match self.set_up_agent(connection, &target)? {
                Some(connection) => connection,
                None => connect()?,
            };
        }
        let key: Box<str> = match agents.folder() {
            Some(_) => agent.into(),
            None => path.to_string_lossy().into(),
        };
        let agent_file = AgentFile::new(path.to_path_buf(), key, plan.identity, Instant::now());
        let connection = self.configure(connection, &target, 0, Some(agent_file))?;
        if plan.set_up {
            agents.remember(path, plan.identity);
        }
        Ok(connection)
    }
}

const FLAGS: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Opens the file if it is there.
pub(super) fn opener(path: &Path) -> SqliteConnectionManager {
    SqliteConnectionManager::file(path).with_flags(FLAGS)
}

/// Closes a connection that was never lent. It has no statements left that could keep it open.
pub(super) fn discard(connection: rusqlite::Connection) {
    if let Err((_, error)) = connection.close() {
        events::close_failed(&Error::Sqlite(error), false);
    }
}

pub(super) fn open_error(target: &str, source: rusqlite::Error) -> Error {
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
