//! The life of an agent's own database: [`Database::per_agent`](crate::Database::per_agent).
//! It takes what must not be used meanwhile out of use, and leaves the files to the backend.

use std::panic::Location;
use std::path::Path;
use std::time::Duration;

use super::{Pool, at_most};
use crate::core::backend::Backend;
use crate::core::request::{Request, check_agent};
use crate::error::Error;
use crate::sqlite::AgentIds;

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
    /// Waits for at most `lease_timeout` until the agent's connection is returned, and those who came
    /// before have had it.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if the connection was still lent then.
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

    /// Copies the agent's database, as the last commit left it, to the file `to`, which may not exist yet.
    /// The agent may be in use meanwhile: its connection reads and writes on. (With
    /// [`Builder::exclusive_locking`](crate::Builder::exclusive_locking) it waits for the agent's connection.)
    ///
    /// It uses SQLite's online backup, in one step, on connections of its own; for that it takes two places
    /// of the pool (one, if there is only one). The copy is readable by nobody but the user.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if no connection came free within `lease_timeout`.
    /// - [`Error::Open`] if the agent has no file, or `to` exists, or the copy fails; then there is none.
    /// - [`Error::Config`] if agents have no files of their own.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for as long as the copy takes.
    #[track_caller]
    pub fn backup_agent(&self, agent: impl AsRef<str>, to: impl AsRef<Path>) -> Result<(), Error> {
        let (agent, place) = (agent.as_ref(), Location::caller());
        check_agent(agent)?;
        let core = &self.shared().core;
        if !core.backend.is_per_agent() {
            // It says why not.
            return core.backend.backup(agent, to.as_ref());
        }
        let request = Request::new(agent, Some(core.options.lease_timeout), place);
        // Where no other connection may open a file that is open, the agent's must be closed first.
        let exclusively = core.backend.locks_exclusively();
        let places = core.options.max_connections.min(2);
        let _aside = core.set_aside(&request, places, exclusively)?;
        core.backend.backup(agent, to.as_ref())
    }

    fn remove_agent_within(
        &self,
        agent: &str,
        wait: Duration,
        place: &'static Location<'static>,
    ) -> Result<bool, Error> {
        check_agent(agent)?;
        let core = &self.shared().core;
        let request = Request::new(agent, Some(wait), place);
        // Before the files go, whatever the pool has open on them must.
        let _aside = core.set_aside(&request, 0, true)?;
        core.backend.remove_file(agent)
    }
}
