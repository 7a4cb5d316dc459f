//! Files: whole databases, copied, rebuilt and removed, and the agents that have one.
//! It keeps borrowers from a database where necessary, and leaves the files to the backend.

use std::panic::Location;
use std::path::Path;

use super::Pool;
use super::agent::Agent;
use crate::core::backend::Backend;
use crate::core::request::Request;
use crate::error::Error;
use crate::sqlite::{AgentIds, Backup, Sqlite};

impl Pool {
    /// Copies the database, as one commit left it, to the file `to`, which may be a backup from before. Others read and
    /// write meanwhile. If agents have files of their own, use [`Agent::backup`](Agent::backup).
    ///
    /// The pool makes the copy under a name beside `to` that ends with `.partial`, syncs it to the disk, and renames it.
    /// So `to` is the old file or the new one at every instant, also if the process or the machine dies. A process that
    /// is killed leaves the partial copy behind; you may remove it. Only the user of the process may read the copy.
    ///
    /// The copy is read in one transaction, so that no writer makes it begin again. The write-ahead log grows meanwhile.
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
    /// - [`Error::AlreadyPooled`] if this process has the database `to` open, or `to` lies in a pool's folder of agents'
    ///   files.
    /// - [`Error::Backup`] if the copy cannot be made, or if a `-wal` or `-journal` lies beside `to`: SQLite would replay
    ///   it into the copy.
    /// - [`Error::Unsupported`] if agents have files of their own.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for as long as it takes to read and write the whole database.
    #[track_caller]
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        self.backup_with(to, Backup::new())
    }

    /// Like [`Pool::backup`]; `how` says whether to compact the copy, and is told the progress.
    ///
    /// # Errors
    /// Those of [`Pool::backup`]; [`Error::Backup`] if `how` ends it.
    ///
    /// # Blocking
    /// Like [`Pool::backup`].
    #[track_caller]
    pub fn backup_with(&self, to: impl AsRef<Path>, mut how: Backup<'_>) -> Result<(), Error> {
        const AGENT: &str = "leasepool: backup";
        let core = &self.shared.core;
        core.backend.check_shared(
            "Pool::backup",
            "use Agent::backup: agents have files of their own",
        )?;
        let request = Request::new(AGENT, Some(self.lease_timeout()), Location::caller());
        let done = self.shared.lease(&request).and_then(|lease| {
            let patience = core.patience(&request);
            core.backend
                .backup(&lease, to.as_ref(), &mut how, &patience)
        });
        core.evict(AGENT);
        done
    }

    /// Rebuilds the database file without its free pages, as `VACUUM` does. A lease cannot do this by itself, because
    /// VACUUM attaches a database. If agents have files of their own, use [`Agent::vacuum`](crate::Agent::vacuum).
    ///
    /// # Errors
    /// Those of [`Pool::lease`], and those of `VACUUM` as [`Error::Sqlite`]; [`Error::Unsupported`] if agents have files
    /// of their own, or if another process runs the checkpoints
    /// ([`Builder::external_checkpoints`](crate::Builder::external_checkpoints)); [`Error::ReadOnly`] if the pool only
    /// reads.
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and then for as long as SQLite takes to write the whole database again.
    #[track_caller]
    pub fn vacuum(&self) -> Result<(), Error> {
        const AGENT: &str = "leasepool: vacuum";
        let core = &self.shared.core;
        core.backend.check_vacuum()?;
        core.backend.check_shared(
            "Pool::vacuum",
            "use Agent::vacuum: agents have files of their own",
        )?;
        core.backend.check_writable()?;
        let request = Request::new(AGENT, Some(self.lease_timeout()), Location::caller());
        let vacuumed = self
            .shared
            .lease(&request)
            .and_then(|lease| Sqlite::vacuum(&lease));
        core.evict(AGENT);
        vacuumed
    }

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
    /// The iterator has a descriptor open on the folder until it is dropped.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the pool is not one of [`Database::per_agent`](crate::Database::per_agent);
    /// [`Error::Open`] if the folder cannot be read.
    ///
    /// # Blocking
    /// For as long as it takes to read the folder.
    pub fn agents(&self) -> Result<AgentIds, Error> {
        self.shared.core.backend.agent_ids()
    }
}

impl Agent {
    /// Whether the agent has a file. (A lease would make one.)
    ///
    /// # Errors
    /// [`Error::Unsupported`] if agents have no files of their own.
    ///
    /// # Blocking
    /// For as long as the file system takes to look.
    pub fn exists(&self) -> Result<bool, Error> {
        let agent = self.borrower()?;
        self.pool().shared().core.backend.has_file(agent)
    }

    /// Removes the agent's database: closes its connection and deletes its files. The next lease of the agent makes a new
    /// database. Returns whether there was one.
    ///
    /// The pool first waits until the agent's connection is returned, earlier callers have had it, and no other process
    /// has the file open. With `within(Duration::ZERO)` it does not wait.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if the connection was still lent at the end of the wait.
    /// - [`Error::Open`] with `SQLITE_BUSY` inside if another process still had the file open then.
    /// - [`Error::AlreadyPooled`] if another pool of this process has it open.
    /// - [`Error::ReadOnly`] if the pool only reads.
    /// - [`Error::Unsupported`] if agents have no files of their own; [`Error::Open`] if a file cannot be deleted.
    /// - [`Error::Closed`], [`Error::InvalidAgent`] as for [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for the disk.
    #[track_caller]
    pub fn remove(&self) -> Result<bool, Error> {
        let core = &self.pool().shared().core;
        core.backend.check_writable()?;
        let request = Request::new(self.borrower()?, Some(self.wait()), Location::caller());
        core.backend.check_per_agent()?;
        // The pool must close every connection to the files before it removes them. The room is for a connection that
        // shuts out other processes.
        let _aside = core.set_aside(&request, 1, true)?;
        core.backend
            .remove_file(request.agent(), &core.patience(&request))
    }

    /// Copies the database that the agent uses, as one commit left it, to the file `to`, as [`Pool::backup`] does.
    ///
    /// If agents have files of their own, the agent may be in use meanwhile: its connection reads and writes on. (With
    /// [`Builder::exclusive_locking`](crate::Builder::exclusive_locking), the copy waits for the agent's connection.) If
    /// the agent's `setup` is at work, the copy is made after it. It takes two of the pool's connections, or the only
    /// one.
    ///
    /// # Errors
    /// Those of [`Pool::backup`]; [`Error::Open`] if the agent has no file.
    ///
    /// # Blocking
    /// Like [`Pool::backup`]. In async code, call it on a blocking thread.
    #[track_caller]
    pub fn backup(&self, to: impl AsRef<Path>) -> Result<(), Error> {
        self.backup_with(to, Backup::new())
    }

    /// Like [`Agent::backup`]; `how` says whether to compact the copy, and is told the progress.
    ///
    /// # Errors
    /// Those of [`Agent::backup`]; [`Error::Backup`] if `how` ends it.
    ///
    /// # Blocking
    /// Like [`Agent::backup`].
    #[track_caller]
    pub fn backup_with(&self, to: impl AsRef<Path>, mut how: Backup<'_>) -> Result<(), Error> {
        let agent = self.borrower()?;
        let core = &self.pool().shared().core;
        if !core.backend.is_per_agent() {
            return self.pool().backup_with(to, how);
        }
        let request = Request::new(agent, Some(self.wait()), Location::caller());
        // In exclusive locking mode no second connection may open the file, so the agent's is closed first.
        let exclusively = core.backend.locks_exclusively();
        let places = core.options.max_connections.min(2);
        let _aside = core.set_aside(&request, places, exclusively)?;
        let patience = core.patience(&request);
        core.backend
            .backup_agent(agent, to.as_ref(), &mut how, &patience)
    }

    /// Rebuilds the database that the agent uses without its free pages, on the agent's connection: [`Pool::vacuum`].
    ///
    /// # Errors
    /// Those of [`Pool::vacuum`].
    ///
    /// # Blocking
    /// Like [`Pool::vacuum`].
    #[track_caller]
    pub fn vacuum(&self) -> Result<(), Error> {
        let backend = &self.pool().shared().core.backend;
        backend.check_vacuum()?;
        backend.check_writable()?;
        let lease = self.lease()?;
        Sqlite::vacuum(&lease)
    }
}
