//! The life of an agent's own database: [`Database::per_agent`](crate::Database::per_agent).
//! It takes what must not be used meanwhile out of use, and leaves the files to the backend.

use std::panic::Location;
use std::path::Path;
use std::time::Duration;

use super::{Pool, at_most};
use crate::core::backend::Backend;
use crate::core::request::{Request, check_agent};
use crate::error::Error;
use crate::sqlite::{AgentIds, Backup};

impl Pool {
    /// The ids of the agents that have a file, in no particular order, read from the folder as you go.
    ///
    /// ```
    /// # use leasepool::{Database, Pool};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let pool = Pool::builder(Database::per_agent(folder.path().join("agents"))).build()?;
    /// drop(pool.lease("alice")?);
    /// for agent in pool.agents()? {
    ///     assert_eq!(agent?, "alice");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The iterator has a descriptor on the folder until it is dropped.
    ///
    /// # Errors
    /// [`Error::Config`] if the pool is not one of [`Database::per_agent`](crate::Database::per_agent);
    /// [`Error::Open`] if the folder cannot be read.
    ///
    /// # Blocking
    /// For as long as the folder takes to be read.
    pub fn agents(&self) -> Result<AgentIds, Error> {
        self.shared().core.backend.agent_ids()
    }

    /// Whether the agent has a file. A lease would make one.
    ///
    /// # Errors
    /// [`Error::Config`] if agents have no files of their own; [`Error::InvalidAgent`].
    pub fn has_agent(&self, agent: impl AsRef<str>) -> Result<bool, Error> {
        check_agent(agent.as_ref())?;
        self.shared().core.backend.has_file(agent.as_ref())
    }

    /// Removes the agent's database: closes its connection and deletes its files. The next lease of the agent
    /// begins with a new one. Returns whether there was one.
    ///
    /// Waits for at most `lease_timeout` until the agent's connection is returned, those who came before have had it,
    /// and no other process has the file open.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if the connection was still lent then.
    /// - [`Error::Open`] with `SQLITE_BUSY` inside if another process still had the file open then.
    /// - [`Error::AlreadyPooled`] if another pool of this process has it open.
    /// - [`Error::ReadOnly`] if the pool only reads.
    /// - [`Error::Config`] if agents have no files of their own; [`Error::Open`] if a file cannot be deleted.
    /// - [`Error::Closed`], [`Error::InvalidAgent`] as for [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for the disk.
    #[track_caller]
    pub fn remove_agent(&self, agent: impl AsRef<str>) -> Result<bool, Error> {
        let wait = self.shared().core.options.lease_timeout;
        self.remove_agent_within(agent.as_ref(), wait, Location::caller())
    }

    /// Like [`Pool::remove_agent`], but waits for at most `timeout`; zero: not at all.
    ///
    /// # Errors
    /// Those of [`Pool::remove_agent`].
    ///
    /// # Blocking
    /// Like [`Pool::remove_agent`].
    #[track_caller]
    pub fn remove_agent_timeout(
        &self,
        agent: impl AsRef<str>,
        timeout: Duration,
    ) -> Result<bool, Error> {
        self.remove_agent_within(agent.as_ref(), at_most(timeout), Location::caller())
    }

    /// Copies the database, as one commit left it, to the file `to`: the first backup there, or one that takes the
    /// place of another. Others read and write meanwhile. For agents with files of their own, see
    /// [`Pool::backup_agent`].
    ///
    /// The copy is made under a name beside `to` that ends with `.partial`, is synced to the disk, and then renamed.
    /// So there is the old file at `to` or the new one at every instant, also if the process or the machine dies; a
    /// process that is killed leaves the partial copy, which may be removed. Nobody but the user may read the copy.
    ///
    /// It is read in one transaction, so that no writer makes it begin again. The write-ahead log grows for as long.
    ///
    /// ```
    /// # use leasepool::{Database, Pool};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let folder = tempfile::tempdir()?;
    /// let pool = Pool::builder(Database::file(folder.path().join("app.db"))).build()?;
    /// pool.backup(folder.path().join("copy.db"))?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if no connection came free within `lease_timeout`; [`Error::NoDescriptors`] likewise.
    /// - [`Error::AlreadyPooled`] if `to` is a database that this process has open, or lies in a folder of agents'
    ///   files that a pool has.
    /// - [`Error::Backup`] if the copy cannot be made, or `to` has a `-wal` or `-journal` beside it, which SQLite would
    ///   replay into the copy.
    /// - [`Error::Config`] if agents have files of their own.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for as long as it takes to read and write the whole database.
    #[track_caller]
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        self.backup_with(to, Backup::new())
    }

    /// Like [`Pool::backup`]; `how` says whether to compact the copy, and is told how far it is.
    ///
    /// # Errors
    /// Those of [`Pool::backup`]; [`Error::Backup`] if `how` ends it.
    ///
    /// # Blocking
    /// Like [`Pool::backup`].
    #[track_caller]
    pub fn backup_with(&self, to: impl AsRef<Path>, mut how: Backup<'_>) -> Result<(), Error> {
        const AGENT: &str = "leasepool: backup";
        let core = &self.shared().core;
        if core.backend.is_per_agent() {
            return Err(Error::Config {
                option: "database",
                value: "a file for each agent".to_owned(),
                expected: "one database, or Pool::backup_agent".to_owned(),
            });
        }
        let wait = Some(core.options.lease_timeout);
        let request = Request::new(AGENT, wait, Location::caller());
        let done = self.shared().lease(&request).and_then(|lease| {
            let patience = core.patience(&request);
            core.backend
                .backup(&lease, to.as_ref(), &mut how, &patience)
        });
        core.evict(AGENT);
        done
    }

    /// Copies the agent's database, as one commit left it, to the file `to`, as [`Pool::backup`] does.
    /// The agent may be in use meanwhile: its connection reads and writes on. (With
    /// [`Builder::exclusive_locking`](crate::Builder::exclusive_locking) it waits for the agent's connection.) If the
    /// agent's `setup` is at work, the copy is made after it.
    ///
    /// It takes two places of the pool (one, if there is only one) for connections of its own.
    ///
    /// # Errors
    /// Those of [`Pool::backup`]; [`Error::Open`] if the agent has no file; [`Error::Config`] if agents have no files
    /// of their own.
    ///
    /// # Blocking
    /// Like [`Pool::backup`].
    #[track_caller]
    pub fn backup_agent(&self, agent: impl AsRef<str>, to: impl AsRef<Path>) -> Result<(), Error> {
        self.backup_agent_with(agent, to, Backup::new())
    }

    /// Like [`Pool::backup_agent`]; `how` says whether to compact the copy, and is told how far it is.
    ///
    /// # Errors
    /// Those of [`Pool::backup_agent`]; [`Error::Backup`] if `how` ends it.
    ///
    /// # Blocking
    /// Like [`Pool::backup_agent`].
    #[track_caller]
    pub fn backup_agent_with(
        &self,
        agent: impl AsRef<str>,
        to: impl AsRef<Path>,
        mut how: Backup<'_>,
    ) -> Result<(), Error> {
        let (agent, place) = (agent.as_ref(), Location::caller());
        check_agent(agent)?;
        let core = &self.shared().core;
        core.backend.check_per_agent()?;
        let request = Request::new(agent, Some(core.options.lease_timeout), place);
        // Where no other connection may open a file that is open, the agent's must be closed first.
        let exclusively = core.backend.locks_exclusively();
        let places = core.options.max_connections.min(2);
        let _aside = core.set_aside(&request, places, exclusively)?;
        let patience = core.patience(&request);
        core.backend
            .backup_agent(agent, to.as_ref(), &mut how, &patience)
    }

    /// Copies the database that the agent uses.
    #[cfg(any(feature = "tower", feature = "actix"))]
    #[track_caller]
    pub(crate) fn backup_database_of(&self, agent: &str, to: &Path) -> Result<(), Error> {
        match self.shared().core.backend.is_per_agent() {
            true => self.backup_agent(agent, to),
            false => self.backup(to),
        }
    }

    fn remove_agent_within(
        &self,
        agent: &str,
        wait: Duration,
        place: &'static Location<'static>,
    ) -> Result<bool, Error> {
        self.shared().core.backend.check_writable()?;
        check_agent(agent)?;
        let core = &self.shared().core;
        let request = Request::new(agent, Some(wait), place);
        core.backend.check_per_agent()?;
        // Before the files go, whatever the pool has open on them must. The place is for a connection that shuts out
        // other processes.
        let _aside = core.set_aside(&request, 1, true)?;
        core.backend.remove_file(agent, &core.patience(&request))
    }
}
