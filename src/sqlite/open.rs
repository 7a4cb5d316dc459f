//! Opening: the first connection to a database, setting it up, and every connection after that.
//! It lends nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use r2d2_sqlite::SqliteConnectionManager;
use rusqlite::OpenFlags;
use rusqlite::config::DbConfig;

use super::agents::{self, AgentFile, Agents, OpenPlan};
use super::connect::{call, connect};
use super::connection::{self, Connection};
use super::database::{self, Database, File, Generation, Kind};
use super::wal::{self, Wal};
use super::watch::ChangeTracker;
use super::{Fault, Settings, Source, Sqlite, reset};
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
                let connection = connect(&creator, &settings, &file.target())?;
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
                let anchor = connect(&opener, &settings, target)?;
                let sqlite = Sqlite {
                    settings,
                    sharing,
                    source: Source::Memory {
                        opener,
                        _anchor: Mutex::new(anchor),
                    },
                };
                if let Source::Memory { opener, .. } = &sqlite.source {
                    let connection = connect(opener, &sqlite.settings, target)?;
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

    /// Turns WAL on and runs `setup`, after `on_open`. The connection may be left in any state: it is to be closed.
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

    /// Runs `setup`, if there is one, on a connection that has what `on_open` registers.
    fn run_setup(&self, connection: &mut rusqlite::Connection, target: &str) -> Result<(), Error> {
        if self.settings.setup.is_none() {
            return Ok(());
        }
        let _ = self.try_on_open(connection);
        self.run_setup_only(connection, target)
    }

    /// Runs `on_open` before `setup`. It may need what `setup` is about to make: then it fails here, which does not
    /// count, and runs on the next connection. Returns whether this one is as `on_open` leaves it.
    fn try_on_open(&self, connection: &mut rusqlite::Connection) -> bool {
        let settings = &self.settings;
        let opened = call("on_open", &settings.on_open, connection, settings).is_ok();
        if !connection.is_autocommit() {
            // What it could not finish is not `setup`'s.
            let _ = connection.execute_batch("ROLLBACK");
        }
        opened
    }

    fn run_setup_only(
        &self,
        connection: &mut rusqlite::Connection,
        target: &str,
    ) -> Result<(), Error> {
        let settings = &self.settings;
        let done = call("setup", &settings.setup, connection, settings);
        done.map_err(|source| Error::Setup {
            target: target.to_owned(),
            source,
        })
    }

    /// Runs `setup` for an agent's file, after `on_open`. The connection comes back, ready to be lent, if nothing that
    /// `setup` did stays on it: opening a file takes longer than looking.
    fn set_up_agent(
        &self,
        mut connection: rusqlite::Connection,
        target: &str,
    ) -> Result<Option<(rusqlite::Connection, reset::Baseline)>, Error> {
        let mut opened = false;
        let begun = (|| {
            let watch = ChangeTracker::install(&connection)?;
            connection::prepare(&connection, &self.settings, true)?;
            opened = self.try_on_open(&mut connection);
            Ok(reset::Baseline::of(&connection, &self.settings, watch)?)
        })();
        let set_up = begun
            .map_err(|source| Error::Open {
                target: target.to_owned(),
                source,
            })
            .and_then(|baseline| {
                self.run_setup_only(&mut connection, target)?;
                Ok(baseline)
            });
        match set_up {
            Ok(mut baseline) => {
                if opened && matches!(baseline.restore(&mut connection), Ok(Fate::Reuse)) {
                    return Ok(Some((connection, baseline)));
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
        let connection = connect(opener, &self.settings, target)?;
        let (connection, baseline) = self.configure(connection, target)?;
        Ok(Connection::new(
            connection, baseline, generation, agent_file,
        ))
    }

    fn configure(
        &self,
        mut connection: rusqlite::Connection,
        target: &str,
    ) -> Result<(rusqlite::Connection, reset::Baseline), Error> {
        let settings = &self.settings;
        let watch = ChangeTracker::install(&connection);
        let opened = watch.map_err(Fault::from).and_then(|watch| {
            connection::prepare(&connection, settings, self.is_file())?;
            call("on_open", &settings.on_open, &mut connection, settings)?;
            Ok(reset::Baseline::of(&connection, settings, watch)?)
        });
        match opened {
            Ok(baseline) => Ok((connection, baseline)),
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
            let connection = connect(opener, &self.settings, target)?;
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
        let connect = || connect(&opener(path), &self.settings, &target);
        let connection = connect()?;
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
        let (connection, baseline) = if plan.set_up && self.settings.setup.is_some() {
            match self.set_up_agent(connection, &target)? {
                Some(ready) => ready,
                None => self.configure(connect()?, &target)?,
            }
        } else {
            self.configure(connection, &target)?
        };
        let key: Box<str> = match agents.folder() {
            Some(_) => agent.into(),
            None => path.to_string_lossy().into(),
        };
        let agent_file = AgentFile::new(path.to_path_buf(), key, plan.identity, Instant::now());
        if plan.set_up {
            agents.remember(path, plan.identity);
        }
        Ok(Connection::new(connection, baseline, 0, Some(agent_file)))
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
