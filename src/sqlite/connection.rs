//! Connection: rusqlite's connection, with what the backend remembers of it; and how a new one is prepared.
//! It runs no user code.

use std::cell::{Cell, RefCell};
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;

use super::agents::AgentFile;
use super::change_tracker::ChangeTracker;
use super::database::Synchronous;
use super::group::Guard;
use super::reset::Baseline;
use super::retry::{is_busy, until, while_busy};
use super::versions;
use super::wal::{self, Checkpointed, Commits, FileLength};
use super::{Access, Checkpoints, Fault, Settings, pragmas, read};
use crate::core::backend::Fate;

/// A connection in a slot.
pub struct Connection {
    inner: rusqlite::Connection,
    baseline: Baseline,
    generation: u64,
    /// Its file has been told that it shuts others out.
    shuts_out: bool,
    /// No cached statement was prepared outside of a group of writes.
    grouped: bool,
    /// The agent of the last member of a group of writes, since the connection was reset.
    last_member: Option<Arc<str>>,
    /// Where each agent has its own file: the file of this connection.
    agent_file: Option<AgentFile>,
    /// A borrower had `&mut` access since the last reset, which the backup API needs.
    borrowed_mutably: bool,
    /// How many rows it had changed when it was last asked what its commits noted.
    changes: u64,
    /// How often its lease was used since the pool last looked at its log.
    uses: Cell<u8>,
    /// The log of the agent's own file, for commits that note nothing.
    wal_file: RefCell<FileLength>,
}

/// The pool looks at the log after this many uses of a lease.
const USES: u8 = 16;

impl Connection {
    pub(super) fn new(
        inner: rusqlite::Connection,
        baseline: Baseline,
        generation: u64,
        agent_file: Option<AgentFile>,
    ) -> Self {
        Connection {
            inner,
            baseline,
            generation,
            shuts_out: false,
            grouped: false,
            last_member: None,
            agent_file,
            borrowed_mutably: false,
            changes: 0,
            uses: Cell::default(),
            wal_file: RefCell::default(),
        }
    }

    pub(super) fn agent_file(&self) -> Option<&AgentFile> {
        self.agent_file.as_ref()
    }

    /// Whether a borrower keeps others from the file while the connection is open, and the file was not told
    /// yet.
    pub(super) fn tells_that_it_shuts_out(&mut self) -> bool {
        let tells = self.baseline.watch.shuts_out() && !self.shuts_out;
        self.shuts_out |= tells;
        tells
    }

    /// Whether the file was told.
    pub(super) fn has_told_that_it_shuts_out(&self) -> bool {
        self.shuts_out
    }

    pub(super) fn agent_file_mut(&mut self) -> Option<&mut AgentFile> {
        self.agent_file.as_mut()
    }

    pub(super) fn change_tracker(&self) -> Arc<ChangeTracker> {
        Arc::clone(&self.baseline.watch)
    }

    /// Called before a group of writes begins on it. The group waits for locks itself, and the authorizer
    /// sees only statements that are prepared within the group.
    pub(super) fn enter_group(&mut self) -> rusqlite::Result<()> {
        self.inner.busy_timeout(Duration::ZERO)?;
        if self.agent_file.is_none() {
            self.baseline.make_rowid_table(&self.inner)?;
        }
        // The authorizer does not see a cached statement again.
        let may_break_out = match self.agent_file {
            // A lease of the agent may have cached some.
            Some(_) => self.baseline.watch.take_transactions(),
            None => !self.grouped,
        };
        if may_break_out {
            self.baseline.flush_statements(&self.inner)?;
            self.grouped = true;
        }
        Ok(())
    }

    /// Called before a member of this agent works. `Discard`: the member cannot work on this connection.
    pub(super) fn hand_on_to(&mut self, agent: &Arc<str>) -> rusqlite::Result<Fate> {
        match &self.last_member {
            Some(last) if last == agent => return Ok(Fate::Reuse),
            Some(_) if self.baseline.hand_on(&mut self.inner)? == Fate::Discard => {
                return Ok(Fate::Discard);
            }
            _ => {}
        }
        self.last_member = Some(Arc::clone(agent));
        Ok(Fate::Reuse)
    }

    /// Begins a member's savepoint. (Its work cannot get `&mut` access to the connection from it.)
    pub(super) fn savepoint(&mut self, name: &str) -> rusqlite::Result<rusqlite::Savepoint<'_>> {
        self.inner.savepoint_with_name(name)
    }

    /// Removes what one member of a group may have left for the next.
    pub(super) fn begin_member(&mut self) -> rusqlite::Result<()> {
        // Where the file is the agent's own, no other connection could run its checkpoints.
        let hook: Option<wal::Hook> = match self.agent_file {
            Some(_) => None,
            None => Some(wal::note),
        };
        self.baseline.begin_member(&mut self.inner, hook)
    }

    /// Called before a transaction that the pool commits: sets the hooks that protect it.
    pub(crate) fn prepare_guard(&mut self) -> rusqlite::Result<()> {
        self.baseline.watch.guard_transactions(&mut self.inner)
    }

    /// Called before the lease's borrower works in that transaction.
    pub(crate) fn guard(&self) -> Guard {
        Guard::begin(self.change_tracker())
    }

    /// Whether `PRAGMA query_only` is on: `on_open` or the borrower may have set it.
    pub(super) fn is_query_only(&self) -> rusqlite::Result<bool> {
        match self.baseline.watch.is_touched() {
            true => read::query_only(&self.inner),
            false => Ok(self.baseline.query_only),
        }
    }

    /// Called after a group of writes.
    pub(super) fn leave_group(&mut self) {
        self.baseline.end_group(&mut self.inner);
    }

    /// Takes what this connection's commits on this thread have noted since the last call. Notes of other
    /// connections on this thread stay.
    pub(crate) fn take_noted(&mut self) -> Commits {
        let changes = self.inner.total_changes();
        if std::mem::replace(&mut self.changes, changes) == changes {
            return Commits::None;
        }
        match wal::take_noted(self.baseline.watch.number()) {
            Some(noted) => Commits::Noted(noted),
            None => Commits::Unnoted,
        }
    }

    /// Counts a use of its lease. Returns whether to check now that its commits note anything. It costs
    /// almost nothing.
    #[inline]
    pub(crate) fn is_to_be_looked_at(&self) -> bool {
        let uses = self.uses.get().wrapping_add(1);
        self.uses.set(uses);
        uses.is_multiple_of(USES)
    }

    /// Whether it has changed rows since the last [`take_noted`](Connection::take_noted), and no commit has
    /// noted anything.
    pub(crate) fn has_unnoted_commits(&self) -> bool {
        self.inner.total_changes() != self.changes
            && !wal::has_noted(self.baseline.watch.number())
            && self.inner.is_autocommit()
    }

    /// Whether the pool runs its checkpoints, and not SQLite itself.
    pub(super) fn counts_on_pool(&self) -> bool {
        self.baseline.counts_on_pool()
    }

    /// Reports the length of the file `-wal`. Returns whether the log needs a checkpoint.
    pub(super) fn is_overlong(&self, length: u64, (first, longest): (u64, u64)) -> bool {
        let mut file = self.wal_file.borrow_mut();
        file.is_overlong(length, first, longest)
    }

    /// Copies as much of the log as possible, and waits for no other connection.
    pub(super) fn checkpoint(&self) -> rusqlite::Result<Checkpointed> {
        wal::checkpoint(&self.inner, wal::Mode::Passive)
    }

    /// Whether a reset could clean it, as far as a quick check can tell.
    pub(crate) fn is_clean(&self) -> bool {
        !self.baseline.watch.is_touched() && !self.inner.is_busy()
    }

    pub(super) fn into_inner(self) -> rusqlite::Connection {
        self.inner
    }

    /// The generation of the file that it is connected to.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Rolls back what the lease left open, so that the connection holds no lock while it is parked.
    /// `Discard`: it would still hold one.
    pub(super) fn settle(&mut self) -> Fate {
        // If the borrower removed the pool's authorizer, it may have turned writing on.
        let watch = &self.baseline.watch;
        if watch.shuts_out() || (watch.only_reads() && watch.is_blind()) {
            return Fate::Discard;
        }
        if self.inner.is_autocommit() {
            return Fate::Reuse;
        }
        let _quiet = self.baseline.watch.quiet();
        match self.inner.execute_batch("ROLLBACK") {
            Ok(()) => Fate::Reuse,
            // SQLite may have rolled back by itself meanwhile. Otherwise the disk is failing.
            Err(_) => Fate::Discard,
        }
    }

    pub(super) fn reset(&mut self) -> Fate {
        self.grouped = false;
        self.last_member = None;
        let borrowed_mutably = std::mem::take(&mut self.borrowed_mutably);
        match self.baseline.restore(&mut self.inner, borrowed_mutably) {
            Ok(fate) => fate,
            Err(_) => Fate::Discard,
        }
    }

    /// # Errors
    /// Returns the connection if forgotten statements or blob handles keep it open.
    pub(super) fn close(self) -> Result<(), (Box<Connection>, rusqlite::Error)> {
        let Connection {
            inner,
            baseline,
            generation,
            shuts_out,
            grouped,
            last_member,
            agent_file,
            borrowed_mutably,
            changes,
            uses,
            wal_file,
        } = self;
        versions::close(inner).map_err(|(inner, error)| {
            let connection = Connection {
                inner,
                baseline,
                generation,
                shuts_out,
                grouped,
                last_member,
                agent_file,
                borrowed_mutably,
                changes,
                uses,
                wal_file,
            };
            (Box::new(connection), error)
        })
    }
}

impl Deref for Connection {
    type Target = rusqlite::Connection;

    fn deref(&self) -> &rusqlite::Connection {
        &self.inner
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut rusqlite::Connection {
        self.borrowed_mutably = true;
        &mut self.inner
    }
}

/// Prepares a new connection, also the one that runs `setup`, before any other code uses it.
pub(super) fn prepare(
    connection: &rusqlite::Connection,
    settings: &Settings,
    is_file: bool,
) -> Result<(), Fault> {
    if settings.is_external() {
        // Before the first read of the file: after it, closing the connection may run a checkpoint.
        keep_log(connection)?;
    }
    connection.busy_timeout(settings.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(settings.statement_cache);
    // Temporary files would be descriptors that the ceiling does not count.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // SQLite's own default depends on how it was compiled.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
    if settings.exclusive_locking {
        lock_where_alone(connection, settings.busy_timeout)?;
    }
    pragmas::begin_file(connection, settings)?;
    if settings.access == Access::ReadOnlyFile {
        // If the file cannot be read, the error must come now.
        read::first_read(connection).map_err(why_not_read)?;
    } else if is_file {
        if connection.is_readonly("main")? {
            return Err(Box::new(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the file is read-only",
            )));
        }
        write_ahead(connection, settings.busy_timeout)?;
    }
    let synchronous = match settings.synchronous {
        Synchronous::Off => "OFF",
        Synchronous::Normal => "NORMAL",
        Synchronous::Full => "FULL",
        Synchronous::Extra => "EXTRA",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    let longest = match settings.checkpoints {
        Checkpoints::Pool => i64::from(settings.wal_size) * i64::from(wal::FILE),
        // The process that runs the checkpoints takes a log that became shorter than what it has read for a
        // new log.
        Checkpoints::External { .. } => -1,
    };
    connection.pragma_update(None, "journal_size_limit", longest)?;
    connection.pragma_update(
        None,
        "mmap_size",
        i64::try_from(settings.mmap_size).unwrap_or(i64::MAX),
    )?;
    pragmas::finish(connection, settings)
}

/// Locks the file for this connection alone. Where another process has it open, the file is shared with it.
fn lock_where_alone(
    connection: &rusqlite::Connection,
    busy_timeout: Duration,
) -> rusqlite::Result<()> {
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // The first read takes the lock. A process that has the file open is not about to close it, so this does not
    // wait. What else is wrong with the file is found by what comes next.
    connection.busy_timeout(Duration::ZERO)?;
    let read = read::first_read(connection);
    connection.busy_timeout(busy_timeout)?;
    match read {
        Err(error) if is_busy(&error) => connection.pragma_update(None, "locking_mode", "NORMAL"),
        _ => Ok(()),
    }
}

/// Keeps SQLite from running checkpoints by itself on this connection.
pub(super) fn keep_log(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "wal_autocheckpoint", 0)
}

/// Why a file that is opened read-only cannot be read, where SQLite's own message does not say it.
fn why_not_read(error: rusqlite::Error) -> Fault {
    use rusqlite::ErrorCode::{CannotOpen, ReadOnly};
    match error.sqlite_error_code() {
        Some(CannotOpen | ReadOnly) => Box::new(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "the file cannot be read without writing beside it: in WAL mode, -wal and -shm must be there and be \
                 readable, or the folder be writable; in rollback mode, no -journal of a crash may be left ({error})"
            ),
        )),
        _ => error.into(),
    }
}

/// Makes sure that the file is in WAL mode. If it is already, this changes nothing and takes no lock. This is
/// the first read of the file, so a file that is no database fails here.
fn write_ahead(connection: &rusqlite::Connection, patience: Duration) -> Result<(), Fault> {
    let mode = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    // Often SQLite does not wait by itself here: when it recovers the log, or when it has read the file
    // already and another connection is about to change the mode, too.
    let deadline = Instant::now() + patience;
    let now = while_busy(until(deadline), || {
        let now = connection.pragma_query_value(None, "journal_mode", mode)?;
        if now.eq_ignore_ascii_case("wal") {
            return Ok(now);
        }
        // The pragma returns the mode that is in force, whatever was asked for.
        connection.pragma_update_and_check(None, "journal_mode", "WAL", mode)
    })?;
    if now.eq_ignore_ascii_case("wal") {
        return Ok(());
    }
    Err(Box::new(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("journal mode stays {now}: this file system or SQLite cannot do WAL"),
    )))
}

/// A number that changes when another connection has committed.
pub(super) fn data_version(connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

/// Keeps ATTACH from opening files that the ceiling does not count.
pub(super) fn limit_attach(
    connection: &rusqlite::Connection,
    settings: &Settings,
) -> Result<(), Fault> {
    let limit = i32::try_from(settings.attach_limit).unwrap_or(i32::MAX);
    connection.set_limit(Limit::SQLITE_LIMIT_ATTACHED, limit)?;
    let now = connection.limit(Limit::SQLITE_LIMIT_ATTACHED)?;
    if now == limit {
        return Ok(());
    }
    Err(Box::new(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("attach_limit = {limit}: this SQLite can attach {now} databases at most"),
    )))
}

/// Whether SQLite was compiled with SQLITE_ENABLE_MEMORY_MANAGEMENT.
pub(super) fn has_memory_management(connection: &rusqlite::Connection) -> bool {
    connection
        .query_row(
            "SELECT sqlite_compileoption_used('ENABLE_MEMORY_MANAGEMENT')",
            [],
            |row| row.get(0),
        )
        .unwrap_or(false)
}
