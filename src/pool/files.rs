//! Files: whole databases, copied, rebuilt and removed, and the agents that have one.
//! It keeps borrowers from a database where necessary, and leaves the files to the backend.

use std::path::Path;

use super::Pool;
use super::agent::Agent;
use crate::core::backend::Backend;
use crate::core::reentrancy::{self, Within};
use crate::core::request::Request;
use crate::error::Error;
use crate::observe::call_site::CallSite;
use crate::observe::reserved::{BACKUP, VACUUM};
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
        let core = &self.shared.core;
        core.backend.check_shared(
            "Pool::backup",
            "use Agent::backup: agents have files of their own",
        )?;
        let request = Request::new(BACKUP, Some(self.lease_timeout()), CallSite::here());
        let done = self.shared.lease(&request).and_then(|lease| {
            let patience = core.patience(&request);
            let _within = Within::enter(core.address(), reentrancy::BACKUP);
            core.backend
                .backup(&lease, to.as_ref(), &mut how, &patience)
        });
        core.evict(BACKUP);
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
        let core = &self.shared.core;
        core.backend.check_vacuum()?;
        core.backend.check_shared(
            "Pool::vacuum",
            "use Agent::vacuum: agents have files of their own",
        )?;
        core.backend.check_writable()?;
        let request = Request::new(VACUUM, Some(self.lease_timeout()), CallSite::here());
        let vacuumed = self
            .shared
            .lease(&request)
            .and_then(|lease| Sqlite::vacuum(&lease));
        core.evict(VACUUM);
        vacuumed
    }

    /// The ids of the agents that have a file on this machine, whichever node [owns](crate::Database::owner) them, in no
    /// particular order, read from the folder as you go.
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
    /// Removes the agent's database: closes its connection and deletes its files. The next lease of the agent makes a new
    /// database. Returns whether there was one.
    ///
    /// The pool first waits until the agent's connection is returned, earlier callers have had it, and no other process
    /// has the file open. With `within(Duration::ZERO)` it does not wait. With
    /// [`Builder::external_checkpoints`](crate::Builder::external_checkpoints), the process that runs the checkpoints may
    /// have it open.
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if the connection was still lent at the end of the wait.
    /// - [`Error::Open`] with `SQLITE_BUSY` inside if another process still had the file open then.
    /// - [`Error::AlreadyPooled`] if another pool of this process has it open.
    /// - [`Error::ReadOnly`] if the pool only reads. [`Error::NotHere`] if another node serves the agent.
    /// - [`Error::Unsupported`] if agents have no files of their own; [`Error::Open`] if a file cannot be deleted.
    /// - [`Error::Closed`], [`Error::InvalidAgent`] as for [`Pool::lease`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`], and for the disk.
    #[track_caller]
    pub fn remove(&self) -> Result<bool, Error> {
        let core = &self.pool().shared().core;
        core.backend.check_writable()?;
        let request = Request::new(self.borrower()?, Some(self.wait()), self.here());
        core.backend.check_per_agent()?;
        // The pool must close every connection to the files before it removes them. The room is for a connection that
        // shuts out other processes.
        let _aside = core.set_aside(&request, 1, true)?;
        core.backend
            .remove_file(request.agent(), &core.patience(&request))
    }

    /// Removes what is left on this machine of an agent that another node serves. Returns whether there was something.
    ///
    /// Call it on the node that is to be the agent's next owner, *before* that is recorded: when a copy arrives, and
    /// before the node takes over the agent of a node that is lost. A process that dies at the end of a hand-over, or that
    /// is declared dead and comes back, leaves an old database. It is not served as long as the agent is another node's;
    /// without this call it would be when the agent returns.
    ///
    /// # Errors
    /// - [`Error::Unsupported`] if the agent belongs to this process, or if the pool has no
    ///   [`owner`](crate::Database::owner) function.
    /// - Otherwise those of [`Agent::remove`].
    ///
    /// # Blocking
    /// Like [`Agent::remove`]; if nothing is left, only to look.
    #[track_caller]
    pub fn remove_leftovers(&self) -> Result<bool, Error> {
        let core = &self.pool().shared().core;
        core.backend.check_writable()?;
        core.backend.check_has_owner()?;
        let place = self.here();
        let request = Request::new(self.borrower()?, Some(self.wait()), place).of_stranger();
        let is_strange = || {
            matches!(
                core.backend.admit(request.agent()),
                Err(Error::NotHere { .. })
            )
        };
        // No file appears of another node's agent, so no other borrower needs to make way.
        if !core.backend.has_file(request.agent())? && is_strange() {
            return Ok(false);
        }
        let _aside = core.set_aside(&request, 1, true)?;
        core.backend
            .remove_file(request.agent(), &core.patience(&request))
    }

    /// Moves the agent to another node: closes the agent's database, lets `work` copy it, and deletes it here, while
    /// no caller can use it. Needs [`Database::owner`](crate::Database::owner).
    ///
    /// 1. The pool waits until the agent's connection is returned and earlier callers have had it. If the agent has no
    ///    database, the pool makes it, or has it [brought](crate::Database::on_missing), as a lease would.
    /// 2. It runs a checkpoint, so that all is in one file, closes the connection, and renames the file. Now no process
    ///    can open it.
    /// 3. `work` gets the file's path. It copies the file to the other node, and then records the new owner, so that
    ///    the function given to `owner` says [`Owner::Elsewhere`](crate::Owner::Elsewhere). It runs on this thread, and
    ///    may take its time.
    /// 4. The pool asks that function. If the agent is elsewhere, the pool deletes the file and returns what `work`
    ///    returned. Callers that waited meanwhile, and queued writes, get [`Error::NotHere`].
    ///
    /// Otherwise nothing has happened: if `work` fails or panics, or if the agent still belongs to this process, the file
    /// is back at its path, and callers that waited go on. If this process dies meanwhile, the file lies at its path
    /// with `-leaving` added. If the agent is still this process's when it runs again, its next lease takes it from there.
    ///
    /// ```no_run
    /// use std::time::Duration;
    /// use leasepool::{Error, Pool};
    ///
    /// # fn copy_to(node: &str, agent: &str, file: &std::path::Path) -> std::io::Result<()> { Ok(()) }
    /// # fn record_owner(agent: &str, node: &str) -> std::io::Result<()> { Ok(()) }
    /// fn move_alice(pool: &Pool) -> Result<(), Error> {
    ///     let alice = pool.agent("alice").within(Duration::from_secs(2));
    ///     alice.hand_over(|file| {
    ///         copy_to("node-2", "alice", file)?; // it must be safe there before the next line
    ///         record_owner("alice", "node-2")
    ///     })
    /// }
    /// ```
    ///
    /// - The new node calls [`Agent::remove_leftovers`] when the copy arrives. It must not serve the agent before the owner
    ///   is recorded, nor make an empty database if the copy does not arrive: [the guide](crate::guide::scaling) has all
    ///   rules.
    /// - If recording may have happened although it failed (a time limit that passed), let `work` find out before it
    ///   returns.
    /// - It takes one of the pool's connections until it ends. [`Pool::close`] waits for it.
    /// - `work` must leave the file as it is. It may use the pool for other agents, but must not use it for this one, nor
    ///   close it.
    /// - With [`Builder::external_checkpoints`](crate::Builder::external_checkpoints), the process that runs the
    ///   checkpoints may have the file open. No other process may write to it.
    ///
    /// # Errors
    /// - [`Error::HandOver`] if `work` fails or panics, or if the agent is still this process's after it.
    /// - [`Error::NotHere`] if the agent is elsewhere already: a second hand-over of an agent gets this.
    /// - [`Error::Exhausted`] if the agent's connection was still lent at the end of the wait.
    /// - [`Error::Open`] with `SQLITE_BUSY` inside if another process still had the file open then; [`Error::Open`] for
    ///   other faults of the file, also if it cannot be deleted after all has been done.
    /// - [`Error::NoDatabase`] if the agent has none, and none may be made.
    /// - [`Error::Unsupported`] if the pool has no `owner` function; [`Error::ReadOnly`] if the pool only reads.
    /// - [`Error::Closed`], [`Error::InvalidAgent`], [`Error::AlreadyPooled`] as for [`Agent::remove`].
    ///
    /// # Blocking
    /// Like [`Pool::lease`], for the disk, and for as long as `work` takes. In async code, call it on a blocking thread.
    #[track_caller]
    pub fn hand_over<T, E, F>(&self, work: F) -> Result<T, Error>
    where
        F: FnOnce(&Path) -> Result<T, E>,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let core = &self.pool().shared().core;
        let backend = &core.backend;
        backend.check_writable()?;
        backend.check_has_owner()?;
        let place = self.here();
        let request = Request::new(self.borrower()?, Some(self.wait()), place);
        if !backend.has_file(request.agent())? {
            drop(self.pool().shared().lease(&request)?);
        }
        let _aside = core.set_aside(&request, 1, true)?;
        let _within = Within::enter(core.address(), reentrancy::HAND_OVER);
        backend.hand_over(request.agent(), &core.patience(&request), |file| {
            work(file).map_err(Into::into)
        })
    }

    /// Copies the database that the agent uses, as one commit left it, to the file `to`, as [`Pool::backup`] does.
    ///
    /// If agents have files of their own, the agent may be in use meanwhile: its connection reads and writes on. (With
    /// [`Builder::exclusive_locking`](crate::Builder::exclusive_locking), the copy waits for the agent's connection.) If
    /// the agent's `setup` is at work, the copy is made after it. It takes two of the pool's connections, or the only
    /// one.
    ///
    /// # Errors
    /// Those of [`Pool::backup`]; [`Error::Open`] if the agent has no file; [`Error::NotHere`] if another node serves the
    /// agent.
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
        let request = Request::new(agent, Some(self.wait()), self.here());
        // In exclusive locking mode no second connection may open the file, so the agent's is closed first.
        let exclusively = core.backend.locks_exclusively();
        let places = core.options.max_connections.min(2);
        let _aside = core.set_aside(&request, places, exclusively)?;
        let patience = core.patience(&request);
        let _within = Within::enter(core.address(), reentrancy::BACKUP);
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
