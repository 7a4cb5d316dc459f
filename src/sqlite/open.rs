//! Opening: the first connection to a database, its set-up, and every later connection.
//! It lends nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::types::Value;

use super::agents::{self, AgentFile, Agents, OpenPlan};
use super::budget::{SPARE, Sharing};
use super::change_tracker::ChangeTracker;
use super::connect::{call, connect};
use super::connection::{self, Connection};
use super::database::{self, Database, Kind};
use super::file::{File, Generation};
use super::hosting::no_database;
use super::identity::Claim;
#[cfg(feature = "r2d2_sqlite")]
use super::manager::Managed;
use super::open_files::{NoRoom, Reserved};
use super::opener::Opener;
use super::reset::Baseline;
use super::set_up_lock::SetUpLock;
use super::versions;
use super::wal::Wal;
use super::{Access, Fault, Settings, Source, Sqlite};
use crate::core::backend::{Fate, Patience};
use crate::error::Error;
use crate::observe::events;

/// The file may change between a look and the opening. This many attempts are made.
const OPEN_ATTEMPTS: usize = 3;
/// How long the opening of an agent's file waits until an earlier connection to the file is closed.
const LONGEST_CLOSE: Duration = Duration::from_secs(1);

impl Sqlite {
    /// Opens the database once, creates it and sets it up if necessary, and closes it again.
    pub(crate) fn new(
        database: Database,
        settings: Settings,
        max_connections: usize,
    ) -> Result<Self, Error> {
        let sharing = database.0.sharing(settings.synchronous);
        match database.0 {
            Kind::Agents(place) => {
                let agents = Agents::new(place, database.1, sharing, max_connections)?;
                Ok(Sqlite::of(sharing, settings, Source::Agents(agents)))
            }
            Kind::File(path) | Kind::ReadOnly(path) => {
                let opener = match settings.access {
                    Access::ReadOnlyFile => Opener::reading,
                    _ => Opener::existing,
                };
                Sqlite::on_file(&path, opener, settings, max_connections)
            }
            #[cfg(feature = "r2d2_sqlite")]
            Kind::Manager(manager) => {
                let managed = Managed::new(manager, &settings)?;
                let settings = Settings {
                    access: managed.access(&settings)?,
                    with_init: true,
                    ..settings
                };
                let path = managed.path().to_path_buf();
                let opener = |_: &Path| Opener::Manager(managed);
                Sqlite::on_file(&path, opener, settings, max_connections)
            }
            Kind::Memory => {
                let opener = Opener::memory(&database::memory_name());
                let target = database::IN_MEMORY;
                let anchor = connect(&opener, &settings, target)?;
                let source = Source::Memory {
                    opener,
                    _anchor: Mutex::new(anchor),
                };
                let sqlite = Sqlite::of(sharing, settings, source);
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

    /// The same for one file. `opener` makes what opens the file at its resolved path.
    fn on_file(
        path: &Path,
        opener: impl FnOnce(&Path) -> Opener,
        settings: Settings,
        max_connections: usize,
    ) -> Result<Self, Error> {
        let wal = Wal::new(&settings);
        let connections = max_connections + settings.unlent();
        let file = Box::new(File::claim(path, wal, connections)?);
        match settings.access {
            Access::ReadOnlyFile => file.check_readable()?,
            _ => file.check_path()?,
        }
        let opener = opener(&file.path);
        let source = Source::File {
            file,
            opener,
            read_lock: settings.keep_read_lock.then(Box::default),
        };
        let sqlite = Sqlite::of(Sharing::OneFile, settings, source);
        sqlite.first_open()?;
        Ok(sqlite)
    }

    fn of(sharing: Sharing, settings: Settings, source: Source) -> Self {
        Sqlite {
            settings,
            told_of_hook: AtomicBool::new(false),
            own_checkpoints: AtomicBool::new(false),
            sharing,
            source,
        }
    }

    /// The rest of `new` for a file, which may not exist yet.
    fn first_open(&self) -> Result<(), Error> {
        let Source::File { file, opener, .. } = &self.source else {
            return Ok(());
        };
        let target = file.target();
        {
            let _lock = self.set_up_lock(&file.path)?;
            let first = match self.settings.access {
                Access::ReadOnlyFile => opener.clone(),
                _ => opener.creating(),
            };
            let connection = connect(&first, &self.settings, &target)?;
            if let Err(error) = file.claim_identity() {
                discard(connection);
                return Err(error);
            }
            let generation = file.look();
            let connection = self.set_up(connection, &target)?;
            if connection::has_memory_management(&connection) {
                events::memory_management();
            }
            discard(connection);
            *file.set_up.lock() = generation.number;
        }
        // If opening a connection can fail in any other way, it must fail now.
        let connection = self.open_file(file, opener, &Patience::none())?;
        file.close_unlent(connection);
        Ok(())
    }

    /// The right, among all processes, to make a database and to set it up.
    fn set_up_lock(&self, path: &Path) -> Result<Option<SetUpLock>, Error> {
        match self.settings.access {
            // The process that writes the file sets it up.
            Access::ReadOnlyFile => Ok(None),
            _ => SetUpLock::acquire(path, Instant::now() + self.settings.busy_timeout),
        }
    }

    /// Turns WAL on and runs `setup`. The connection may be left in any state: the caller closes it.
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
        self.leave_log(&connection);
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

    /// Runs `on_open` before `setup`. It may need what `setup` is about to make. Then its error does not
    /// count, and it runs again on the next connection. Returns whether it succeeded on this one.
    fn try_on_open(&self, connection: &mut rusqlite::Connection) -> bool {
        let settings = &self.settings;
        let opened = call("on_open", &settings.on_open, connection, settings).is_ok();
        if !connection.is_autocommit() {
            // `setup` must not begin in a transaction that `on_open` could not finish.
            let _ = connection.execute_batch("ROLLBACK");
        }
        self.leave_log(connection);
        opened
    }

    /// Where another process runs the checkpoints: keeps callbacks from turning SQLite's own on again.
    fn leave_log(&self, connection: &rusqlite::Connection) {
        if self.settings.is_external() {
            // It fails only where there is no log.
            let _ = connection::keep_log(connection);
        }
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

    /// Turns WAL on and runs `setup` for an agent's file, after `on_open`. The connection comes back, ready
    /// to be lent, if `setup` left nothing on it: checking that takes less time than opening the file again.
    fn set_up_agent(
        &self,
        mut connection: rusqlite::Connection,
        target: &str,
        plan: &OpenPlan,
    ) -> Result<Option<(rusqlite::Connection, Baseline)>, Error> {
        let mut opened = false;
        let mut version = None;
        let begun = (|| {
            let watch = ChangeTracker::install(
                &mut connection,
                self.fixed_pragmas(),
                self.settings.is_external(),
            )?;
            self.prepare(&connection, &watch)?;
            version = connection::data_version(&connection).ok();
            opened = self.try_on_open(&mut connection);
            Ok(Baseline::of(&mut connection, &self.settings, watch)?)
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
                if opened
                    && matches!(baseline.restore(&mut connection, true), Ok(Fate::Reuse))
                    && self.finish(&mut baseline, &connection, target).is_ok()
                {
                    return Ok(Some((connection, baseline)));
                }
                // The next connection goes on with this one's log.
                let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
                discard(connection);
                Ok(None)
            }
            Err(error) => {
                if !connection.is_autocommit() {
                    let _ = connection.execute_batch("ROLLBACK");
                }
                let changed =
                    version.is_some() && connection::data_version(&connection).ok() != version;
                plan.others.set(changed);
                discard(connection);
                Err(error)
            }
        }
    }

    /// Makes a connection ready to be lent after callbacks ran on it, and notes what they decided about
    /// checkpoints.
    fn finish(
        &self,
        baseline: &mut Baseline,
        connection: &rusqlite::Connection,
        target: &str,
    ) -> rusqlite::Result<()> {
        if !self.takes_writes() {
            baseline.only_read(connection)?;
        }
        if !baseline.counts_on_pool() {
            self.own_checkpoints.store(true, Relaxed);
        }
        if baseline.replaced_wal_hook() && !self.told_of_hook.swap(true, Relaxed) {
            events::wal_hook_replaced(target);
        }
        Ok(())
    }

    fn prepare(
        &self,
        connection: &rusqlite::Connection,
        watch: &Arc<ChangeTracker>,
    ) -> Result<(), Fault> {
        // `prepare` sets pragmas that borrowers may not set.
        let _quiet = watch.quiet();
        connection::prepare(connection, &self.settings, self.is_file())?;
        if let Some(wal) = self.wal() {
            let size = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
            wal.set_page_size(match size {
                Value::Integer(bytes) => bytes.try_into().ok(),
                // SQLCipher answers for the pages that it encrypts, in words.
                Value::Text(bytes) => bytes.parse().ok(),
                _ => None,
            });
        }
        Ok(())
    }

    /// Pragmas by which a borrower could exceed the ceiling or change the whole process.
    fn fixed_pragmas(&self) -> &'static [&'static str] {
        const ALL: [&str; 11] = [
            "cipher_log",
            "cipher_log_level",
            "cipher_log_source",
            "cipher_memory_security",
            "cipher_profile",
            "hard_heap_limit",
            "soft_heap_limit",
            "temp_store_directory",
            "data_store_directory",
            "temp_store",
            // An unsynced file opens no folder: borrowers may not turn syncing on.
            "synchronous",
        ];
        match self.sharing {
            Sharing::UnsyncedFileEach => &ALL,
            _ => &ALL[..10],
        }
    }

    /// Opens one connection with everything that the builder asked for.
    pub(super) fn configured(
        &self,
        target: &str,
        opener: &Opener,
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
    ) -> Result<(rusqlite::Connection, Baseline), Error> {
        let settings = &self.settings;
        let watch = ChangeTracker::install(
            &mut connection,
            self.fixed_pragmas(),
            self.settings.is_external(),
        );
        let opened = watch.map_err(Fault::from).and_then(|watch| {
            self.prepare(&connection, &watch)?;
            call("on_open", &settings.on_open, &mut connection, settings)?;
            let mut baseline = Baseline::of(&mut connection, settings, watch)?;
            self.finish(&mut baseline, &connection, target)?;
            Ok(baseline)
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

    /// Opens a connection to the file, once there is room for its descriptors.
    pub(super) fn open_file(
        &self,
        file: &File,
        opener: &Opener,
        patience: &Patience<'_>,
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
            file.opening(generation.number, patience)?;
            let opened = self
                .set_up_once(file, opener, &target, generation)
                .and_then(|()| self.configured(&target, opener, generation.number, None));
            let connection = match opened {
                Ok(connection) => connection,
                Err(error) => {
                    file.closed(generation.number);
                    return Err(error);
                }
            };
            file.opened(generation.number);
            if file.look() == generation {
                return Ok(connection);
            }
            file.close_unlent(connection);
        }
        Err(Error::FileReplaced {
            path: file.path.clone(),
            found: crate::error::FileState::Unstable,
        })
    }

    /// Sets up a file that replaced the one this pool knew, before any other connection to it is opened.
    fn set_up_once(
        &self,
        file: &File,
        opener: &Opener,
        target: &str,
        generation: Generation,
    ) -> Result<(), Error> {
        let mut set_up = file.set_up.lock();
        if *set_up != generation.number {
            file.claim_identity()?;
            let _lock = self.set_up_lock(&file.path)?;
            let connection = connect(opener, &self.settings, target)?;
            discard(self.set_up(connection, target)?);
            *set_up = generation.number;
        }
        Ok(())
    }

    /// Opens the agent's file, and creates it and sets it up if it does not exist. No other thread of this
    /// process does so at the same time: the caller holds the agent's lock.
    pub(super) fn open_agent(
        &self,
        agents: &Agents,
        agent: &str,
        patience: &Patience<'_>,
    ) -> Result<Connection, Error> {
        let path = agents.path(agent)?;
        // With two connections, SQLite would keep the descriptor of the one that is closed first. If the
        // earlier connection cannot be closed, this does not wait long for it.
        let not_long = patience.deadline.min(Instant::now() + LONGEST_CLOSE);
        agents.open.wait_until_closed(&path, not_long);
        agents.opening(&path, patience)?;
        let opened = self.open_agent_at(agents, agent, &path, patience);
        if opened.is_err() {
            agents.open.closed(&path);
        }
        opened
    }

    fn open_agent_at(
        &self,
        agents: &Agents,
        agent: &str,
        path: &Path,
        patience: &Patience<'_>,
    ) -> Result<Connection, Error> {
        let target = format!("{} (agent {agent:?})", path.display());
        for _ in 0..OPEN_ATTEMPTS {
            let (plan, ready) = match agents.plan(path, false)? {
                Some(plan) if !self.wants_set_up(&plan) => {
                    agents.claim_identity(path, &plan)?;
                    (plan, None)
                }
                _ => {
                    agents.hosting.check_possible(agent, path)?;
                    let until = Instant::now() + self.settings.busy_timeout;
                    let _lock = self.agents_set_up_lock(agents, path, patience, until)?;
                    // Another process may have made or set up the file meanwhile.
                    if !agents.is_set_up(path) {
                        agents.hosting.bring(agent, path)?;
                    }
                    let Some(plan) = agents.plan(path, agents.hosting.create)? else {
                        return Err(no_database(agent, path));
                    };
                    agents.claim_identity(path, &plan)?;
                    let ready = connect(&Opener::existing(path), &self.settings, &target)
                        .and_then(|connection| self.set_up_agent(connection, &target, &plan));
                    match ready {
                        Ok(ready) => (plan, ready),
                        Err(error) => {
                            self.unmake(path, &plan);
                            return Err(error);
                        }
                    }
                }
            };
            let opened = match ready {
                Some(opened) => Ok(opened),
                None => connect(&Opener::existing(path), &self.settings, &target)
                    .and_then(|connection| self.configure(connection, &target)),
            };
            let (connection, baseline) = match opened {
                Ok(opened) => opened,
                Err(error) => {
                    if plan.made
                        && let Ok(_lock) =
                            self.agents_set_up_lock(agents, path, patience, Instant::now())
                    {
                        self.unmake(path, &plan);
                    }
                    return Err(error);
                }
            };
            if !agents.is_still(path, &plan) {
                discard(connection);
                continue;
            }
            let key: Box<str> = match agents.folder() {
                Some(_) => agent.into(),
                None => path.to_string_lossy().into(),
            };
            let agent_file = AgentFile::new(path.to_path_buf(), key, plan.identity, Instant::now());
            agents.remember(path, agent_file.known());
            return Ok(Connection::new(connection, baseline, 0, Some(agent_file)));
        }
        Err(Error::FileReplaced {
            path: path.to_path_buf(),
            found: crate::error::FileState::Unstable,
        })
    }

    /// Whether the file is to be made or set up, which only one process may do at a time.
    fn wants_set_up(&self, plan: &OpenPlan) -> bool {
        plan.is_empty || (plan.set_up && self.settings.setup.is_some())
    }

    /// Removes a file that was made in vain, unless another process has used it.
    fn unmake(&self, path: &Path, plan: &OpenPlan) {
        if plan.made && !plan.others.get() {
            let _ = self.remove_exclusively(path, Instant::now());
        }
    }

    /// The right, among all processes, to make, set up or remove an agent's file. Waits for room for its
    /// descriptor as `patience` says, and for other processes until `deadline`.
    pub(super) fn agents_set_up_lock<'a>(
        &self,
        agents: &'a Agents,
        path: &Path,
        patience: &Patience<'_>,
        deadline: Instant,
    ) -> Result<(Option<SetUpLock>, Reserved<'a, PathBuf, Claim>), Error> {
        let room = agents.open.reserve(SPARE, patience);
        let room = room.map_err(|NoRoom| agents::no_descriptors(path))?;
        Ok((SetUpLock::acquire(path, deadline)?, room))
    }
}

/// Closes a connection that was never lent. It has no statements left that could keep it open.
pub(super) fn discard(connection: rusqlite::Connection) {
    if let Err((_, error)) = versions::close(connection) {
        events::close_failed(&Error::Sqlite(error), false);
    }
}

pub(super) fn open_error(target: &str, source: rusqlite::Error) -> Error {
    Error::Open {
        target: target.to_owned(),
        source: Box::new(source),
    }
}
