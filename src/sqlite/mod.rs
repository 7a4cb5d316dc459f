//! Sqlite: the default backend. Its connections are to one database file, to a file for each agent, or to a database in
//! memory.
//! It knows no pools.

mod absent;
mod agents;
mod backup;
mod budget;
mod busy;
mod change_tracker;
mod connect;
mod connection;
mod database;
mod file;
mod group;
mod hand_over;
mod hosting;
mod id;
mod identity;
mod life;
#[cfg(feature = "r2d2_sqlite")]
mod manager;
mod open;
mod open_files;
mod opener;
mod pragmas;
mod read;
mod read_lock;
mod registered;
mod reset;
mod retry;
mod set_up_files;
mod set_up_lock;
mod temporary;
mod versions;
mod wal;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::config::DbConfig;
use rusqlite::types::Value;

use crate::core::backend::{Backend, CloseMode, Fate, NotClosed, Patience};
use crate::core::max_hold::Interrupter;
use crate::error::Error;
use crate::observe::stats::Stats;
use crate::sync::unwind::quietly;

pub use backup::{Backup, BackupProgress};
pub(crate) use budget::{Budget, Sharing};
pub(crate) use busy::Cancel;
pub(crate) use connection::Connection;
pub use database::{Database, Synchronous};
pub(crate) use database::{Kind, Place};
pub(crate) use group::{Group, Member, begin_immediate, same, without_busy_timeout};
pub use hosting::Owner;
pub use life::AgentIds;
pub(crate) use retry::{busy, until};
pub(crate) use wal::{Checkpointed, Commits, Mode, Noted, Passes, Wal, checkpoint};

use agents::{AgentFile, Agents};
use file::File;
use opener::Opener;
use read_lock::ReadLock;

/// Why the backend could not do something.
pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// A callback given to the builder: it runs on a new connection, or on a database to set up.
pub(crate) type Callback =
    Box<dyn Fn(&mut rusqlite::Connection) -> Result<(), Fault> + Send + Sync>;

/// Which process runs checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checkpoints {
    Pool,
    /// Another process. The pool runs one only when the log has reached this many bytes; `None`: never.
    External {
        emergency: Option<u32>,
    },
}

/// What leases may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everything.
    ReadWrite,
    /// Read only. The file is opened for writing, and set up.
    Reads,
    /// Read only. The file itself is opened read-only.
    ReadOnlyFile,
}

/// The settings of every connection.
pub(crate) struct Settings {
    pub(crate) access: Access,
    pub(crate) busy_timeout: Duration,
    pub(crate) synchronous: Synchronous,
    pub(crate) statement_cache: usize,
    pub(crate) attach_limit: usize,
    pub(crate) mmap_size: u64,
    /// The length, in bytes, from which on the write-ahead log needs a checkpoint.
    pub(crate) wal_size: u32,
    pub(crate) checkpoints: Checkpoints,
    /// One more connection keeps a read lock on the log while others read: see [`read_lock`].
    pub(crate) keep_read_lock: bool,
    /// No other process may open a file while this pool has it open.
    pub(crate) exclusive_locking: bool,
    pub(crate) pragmas: Vec<(String, Value)>,
    /// The version of the linked SQLite.
    pub(crate) sqlite_version: i32,
    /// A manager's callback runs on each connection before `on_connect`.
    pub(crate) with_init: bool,
    pub(crate) on_connect: Option<Callback>,
    pub(crate) setup: Option<Callback>,
    pub(crate) on_open: Option<Callback>,
}

impl Settings {
    /// Whether another process runs the checkpoints.
    pub(crate) fn is_external(&self) -> bool {
        matches!(self.checkpoints, Checkpoints::External { .. })
    }

    /// Whether code of the user's runs on each new connection.
    pub(crate) fn has_callbacks(&self) -> bool {
        self.on_connect.is_some() || self.on_open.is_some() || self.with_init
    }

    /// Whether more happens to a new connection than what the pool itself does.
    pub(crate) fn is_customised(&self) -> bool {
        self.has_callbacks() || !self.pragmas.is_empty()
    }

    /// How many descriptors `n` connections can need, see [`budget::ceiling`].
    pub(crate) fn fd_ceiling(&self, sharing: Sharing, n: usize) -> usize {
        budget::ceiling(sharing, n + self.unlent(), self.attach_limit)
    }

    /// The largest pool whose ceiling stays within `descriptors`.
    pub(crate) fn affordable(&self, sharing: Sharing, descriptors: usize) -> Option<usize> {
        let affordable = budget::affordable(sharing, descriptors, self.attach_limit)?;
        affordable.checked_sub(self.unlent()).filter(|n| *n > 0)
    }

    /// How many connections the pool has besides those that it lends.
    pub(crate) fn unlent(&self) -> usize {
        usize::from(self.keep_read_lock)
    }
}

/// The kind of pool that lends SQLite's connections, to the [`Database`] given to [`Pool::builder`](crate::Pool::builder).
pub struct Sqlite {
    settings: Settings,
    /// Whether an event has said that a WAL hook of `on_open` was replaced.
    told_of_hook: AtomicBool,
    /// A pragma of the builder or of `on_open` makes SQLite run its own checkpoints, or none.
    own_checkpoints: AtomicBool,
    sharing: Sharing,
    source: Source,
}

enum Source {
    File {
        file: Box<File>,
        /// Opens the file if it exists.
        opener: Opener,
        read_lock: Option<Box<ReadLock>>,
    },
    Agents(Agents),
    Memory {
        opener: Opener,
        /// SQLite frees a database in memory with its last connection. This connection keeps it alive and is
        /// never lent.
        _anchor: Mutex<rusqlite::Connection>,
    },
}

/// The result of a look at a log whose commits have noted nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overlong {
    No,
    /// It needs a checkpoint.
    Yes,
    /// This look ran one.
    Done,
}

/// The log of an evicted agent may stay for its next connection, instead of being copied and made again, if
/// it is no longer than this, in bytes.
const SHORT_WAL: u64 = 256 * 1024;

impl Sqlite {
    /// The write-ahead log, if all connections share one.
    pub(crate) fn wal(&self) -> Option<&Wal> {
        match &self.source {
            Source::File { file, .. } => Some(&file.wal),
            Source::Agents(_) | Source::Memory { .. } => None,
        }
    }

    /// Looks at the length of the log of this connection's file, if its commits have noted nothing. If other
    /// connections may use the file, this returns whether the log needs a checkpoint. If the file is the
    /// agent's own, this runs the checkpoint, and returns that it did.
    pub(crate) fn look_at_log(&self, connection: &Connection) -> Overlong {
        if !connection.counts_on_pool() || self.settings.is_external() {
            return Overlong::No;
        }
        let lengths = wal::file_lengths(self.settings.wal_size);
        match (&self.source, connection.agent_file()) {
            (Source::File { file, .. }, _) => {
                match file
                    .wal
                    .is_overlong(agents::wal_length(&file.path), lengths)
                {
                    true => Overlong::Yes,
                    false => Overlong::No,
                }
            }
            (_, Some(agent_file)) if connection.is_autocommit() => {
                let length = agents::wal_length(&agent_file.path);
                match connection.is_overlong(length, lengths) && connection.checkpoint().is_ok() {
                    true => Overlong::Done,
                    false => Overlong::No,
                }
            }
            _ => Overlong::No,
        }
    }

    /// The same without a connection, where all connections share one log: whether a lease that goes on, and
    /// whose commits note nothing, has made the log far longer than noted commits would have.
    pub(crate) fn is_log_far_too_long(&self) -> bool {
        let Source::File { file, .. } = &self.source else {
            return false;
        };
        if self.settings.is_external() || self.own_checkpoints.load(Relaxed) {
            return false;
        }
        let (_, longest) = wal::file_lengths(self.settings.wal_size);
        let length = agents::wal_length(&file.path);
        length > longest && file.wal.is_overlong(length, (longest, longest))
    }

    /// # Errors
    /// [`Error::Unsupported`] where another process runs the checkpoints: the whole database would go through
    /// the log.
    pub(crate) fn check_vacuum(&self) -> Result<(), Error> {
        if self.settings.is_external() {
            return Err(Error::Unsupported {
                operation: "VACUUM",
                reason: "with external_checkpoints, all of the database would go through the log that the other process \
                         copies; stop that process, and run VACUUM by another program",
            });
        }
        Ok(())
    }

    fn is_file(&self) -> bool {
        self.sharing != Sharing::NoFile
    }

    /// Whether the pool takes writes.
    pub(crate) fn takes_writes(&self) -> bool {
        self.settings.access == Access::ReadWrite
    }

    /// # Errors
    /// [`Error::ReadOnly`] if the pool takes no writes.
    pub(crate) fn check_writable(&self) -> Result<(), Error> {
        match self.takes_writes() {
            true => Ok(()),
            false => Err(Error::ReadOnly),
        }
    }

    /// The name of the one file, if there is one.
    pub(crate) fn file_name(&self) -> Option<String> {
        match &self.source {
            Source::File { file, .. } => Some(database::name_of(&file.path)),
            Source::Agents(_) | Source::Memory { .. } => None,
        }
    }

    pub(crate) fn passes(&self) -> Passes {
        Passes::of(self.settings.sqlite_version)
    }

    pub(crate) fn locks_exclusively(&self) -> bool {
        self.settings.exclusive_locking
    }

    /// Runs `work` on a connection. `cancel` ends its waits for locks. Returns, too, whether it waited for any.
    pub(crate) fn cancellable<R>(
        &self,
        connection: &mut rusqlite::Connection,
        cancel: &Cancel,
        work: impl FnOnce(&mut rusqlite::Connection) -> R,
    ) -> (R, bool) {
        busy::cancellable(connection, self.settings.busy_timeout, cancel, work)
    }

    /// `VACUUM`. Afterwards the connection has the pool's limits again.
    pub(crate) fn vacuum(connection: &rusqlite::Connection) -> Result<(), Error> {
        Ok(attaching_one(connection, || {
            connection.execute_batch("VACUUM")
        })?)
    }
}

impl std::fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sqlite").finish_non_exhaustive()
    }
}

impl Backend for Sqlite {
    type Connection = Connection;

    fn open(&self, agent: &str, patience: &Patience<'_>) -> Result<Connection, Error> {
        match &self.source {
            Source::File { file, opener, .. } => self.open_file(file, opener, patience),
            Source::Agents(agents) => self.open_agent(agents, agent, patience),
            Source::Memory { opener, .. } => self.configured(database::IN_MEMORY, opener, 0, None),
        }
    }

    fn wants_room(&self) -> bool {
        match &self.source {
            Source::File { file, .. } => file.open.is_short(),
            Source::Agents(agents) => agents.open.is_short(),
            Source::Memory { .. } => false,
        }
    }

    fn is_per_agent(&self) -> bool {
        matches!(self.source, Source::Agents(_))
    }

    fn lock_key<'a>(&self, agent: &'a str) -> Result<Cow<'a, str>, Error> {
        let Source::Agents(agents) = &self.source else {
            return Ok(Cow::Borrowed(agent));
        };
        let path = agents.path(agent)?;
        Ok(match agents.folder() {
            // In a folder, each agent has its own file.
            Some(_) => Cow::Borrowed(agent),
            None => Cow::Owned(path.to_string_lossy().into_owned()),
        })
    }

    fn admit(&self, agent: &str) -> Result<(), Error> {
        match &self.source {
            Source::Agents(agents) => agents.hosting.admit(agent),
            _ => Ok(()),
        }
    }

    fn asks_user(&self) -> bool {
        matches!(&self.source, Source::Agents(agents) if agents.folder().is_none())
    }

    fn serves(&self, connection: &Connection, key: &str) -> bool {
        match connection.agent_file() {
            Some(agent_file) => *agent_file.key == *key,
            None => true,
        }
    }

    fn is_open(&self, key: &str) -> bool {
        match &self.source {
            Source::Agents(agents) => agents.is_open(key),
            _ => false,
        }
    }

    fn wait_until_closed(&self, key: &str, deadline: Instant) -> bool {
        match &self.source {
            Source::Agents(agents) => agents.wait_until_key_closed(key, deadline),
            _ => true,
        }
    }

    fn keeps_others_open(&self, connection: &Connection) -> bool {
        match (&self.source, connection.agent_file()) {
            (Source::Agents(agents), Some(file)) => agents.open.keeps_closed(&file.path),
            _ => false,
        }
    }

    fn revisit(&self, connection: &mut Connection, now: Instant) {
        if let Some(agent_file) = connection.agent_file_mut() {
            agent_file.look(now);
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
            Source::Agents(_) | Source::Memory { .. } => 0,
        }
    }

    fn is_current(&self, connection: &Connection) -> bool {
        match connection.agent_file() {
            Some(agent_file) => !agent_file.is_lost(),
            None => connection.generation() == self.generation(),
        }
    }

    fn settle(&self, connection: &mut Connection) -> Fate {
        if let Source::File { file, .. } = &self.source
            && connection.tells_that_it_shuts_out()
        {
            file.shut_out(connection.generation());
        }
        match connection.settle() {
            Fate::Reuse if self.keeps_others_open(connection) => Fate::Close,
            fate => fate,
        }
    }

    fn reset(&self, connection: &mut Connection) -> Fate {
        // A reset drops values of the borrower, which may panic.
        quietly(|| connection.reset()).unwrap_or(Fate::Discard)
    }

    /// Unless it is the last to a file with a long log, and copies that.
    fn closes_briefly(&self, connection: &Connection, mode: CloseMode) -> bool {
        let generation = connection.generation();
        let path = match (&self.source, connection.agent_file()) {
            (Source::File { file, .. }, _) if file.open.are_several(&generation) => return true,
            (Source::File { file, .. }, _) => &file.path,
            (_, Some(file)) => &file.path,
            (_, None) => return true,
        };
        self.copies_nothing(mode) || agents::wal_length(path) <= SHORT_WAL
    }

    fn close(&self, connection: Connection, mode: CloseMode) -> Result<(), NotClosed<Connection>> {
        let path = connection
            .agent_file()
            .map(|agent_file| agent_file.path.clone());
        if self.leaves_log(&connection, mode) {
            // Otherwise the last connection to a file runs a checkpoint as it closes.
            let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        } else {
            // An interrupt that found no statement stays until the next one is compiled, and would end that checkpoint.
            let _ = connection.prepare("");
        }
        let generation = connection.generation();
        if let (Source::Agents(agents), Some(file)) = (&self.source, connection.agent_file())
            && let Some(news) = file.news()
        {
            agents.remember(&file.path, news);
        }
        // A connection that shuts others out left the list when the pool noticed that.
        let is_listed = !connection.has_told_that_it_shuts_out();
        if let Source::File { file, .. } = &self.source
            && is_listed
        {
            file.closing(generation);
        }
        // Closing drops a borrower's hooks, and their values may panic. Unwinding then drops the connection,
        // which closes it anyway.
        let closed = quietly(|| connection.close()).unwrap_or(Ok(()));
        match (&closed, &self.source) {
            (Ok(()), Source::Agents(agents)) => {
                if let Some(path) = &path {
                    agents.open.closed(path);
                }
            }
            (Ok(()), Source::File { file, .. }) => file.closed(generation),
            (Err(_), Source::File { file, .. }) if is_listed => file.not_closed(generation),
            _ => {}
        }
        closed.map_err(|(connection, source)| NotClosed {
            error: Error::NotClosed {
                target: self.target(&connection),
                source: Box::new(source),
            },
            connection: Some(*connection),
        })
    }

    fn fd_ceiling(&self, max_connections: usize) -> usize {
        self.settings.fd_ceiling(self.sharing, max_connections)
    }

    fn descriptors(&self) -> Option<usize> {
        match &self.source {
            Source::File { file, .. } => budget::descriptors_on(|path| path == file.path),
            Source::Agents(agents) => {
                let open: Vec<_> = agents.open.lock().keys().cloned().collect();
                let folder = agents.folder();
                budget::descriptors_on(|path| {
                    path.parent() == folder && folder.is_some() || open.iter().any(|p| p == path)
                })
            }
            Source::Memory { .. } => Some(0),
        }
    }

    fn counted_descriptors(&self) -> Option<usize> {
        Some(match &self.source {
            Source::File { file, .. } => file.open.descriptors(),
            Source::Agents(agents) => agents.open.descriptors(),
            Source::Memory { .. } => 0,
        })
    }

    fn is_short_of_descriptors(&self) -> bool {
        match &self.source {
            Source::File { file, .. } => file.open.is_short() || file.open.is_nearly_full(),
            // There, a call that waits for room gets it as soon as an idle connection is closed.
            Source::Agents(_) | Source::Memory { .. } => false,
        }
    }

    fn observe(&self, stats: &mut Stats) {
        stats.files = match &self.source {
            Source::File { .. } => usize::from(stats.open > 0),
            Source::Agents(agents) => agents.open.len(),
            Source::Memory { .. } => 0,
        };
        if let Some(wal) = self.wal() {
            let pages = wal.pages();
            stats.wal_pages = pages as usize;
            stats.wal_bytes = wal.bytes(pages);
        }
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
            Source::Agents(agents) => agents.check(),
            Source::Memory { .. } => Ok(()),
        }
    }

    fn interrupter(&self, connection: &Connection) -> Option<Interrupter> {
        let handle = connection.get_interrupt_handle();
        Some(Arc::new(move || handle.interrupt()))
    }

    fn closing(&self) {
        match &self.source {
            Source::File { file, .. } => file.leave_claim(),
            Source::Agents(agents) => agents.leave_claim(),
            Source::Memory { .. } => {}
        }
    }

    fn winding_up(&self) {
        self.close_read_lock();
    }

    fn is_wound_up(&self) -> bool {
        self.is_read_lock_closed()
    }

    fn closed(&self) {
        match &self.source {
            Source::File { file, .. } => file.give_up_claim(),
            Source::Agents(agents) => agents.give_up_claim(),
            Source::Memory { .. } => {}
        }
    }
}

impl Sqlite {
    /// Whether a connection is closed without a checkpoint.
    fn leaves_log(&self, connection: &Connection, mode: CloseMode) -> bool {
        let is_short = |file: &AgentFile| agents::wal_length(&file.path) <= SHORT_WAL;
        let is_evicted = mode == CloseMode::Evict;
        self.copies_nothing(mode) || is_evicted && connection.agent_file().is_some_and(is_short)
    }

    /// Whether a connection is closed without a checkpoint, however long the log is.
    fn copies_nothing(&self, mode: CloseMode) -> bool {
        // The process that runs the checkpoints has not read all of the log yet.
        self.settings.is_external() || mode == CloseMode::Abandon
    }

    /// The name of the connection's database in messages.
    fn target(&self, connection: &Connection) -> String {
        match (&self.source, connection.agent_file()) {
            (_, Some(agent_file)) => agent_file.path.display().to_string(),
            (Source::File { file, .. }, None) => file.target(),
            _ => database::IN_MEMORY.to_owned(),
        }
    }
}

/// Runs `work` that has to attach one database, as every form of `VACUUM` does.
fn attaching_one<T>(
    connection: &rusqlite::Connection,
    work: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    use rusqlite::limits::Limit::SQLITE_LIMIT_ATTACHED;
    let limit = connection.set_limit(SQLITE_LIMIT_ATTACHED, 1)?;
    let done = work();
    connection.set_limit(SQLITE_LIMIT_ATTACHED, limit)?;
    done
}
