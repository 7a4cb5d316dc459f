//! Builder: every option, with its default and its range.
//! It checks nothing and opens nothing: `build` does.

use std::fmt::{self, Debug};
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value};

use super::common::Common;
use super::pooled::Backend;
use crate::sqlite::{Access, Checkpoints, Database, Settings, Sqlite, Synchronous};

/// The options that only SQLite has.
pub struct SqliteOptions {
    pub(super) database: Database,
    pub(super) write_queue: usize,
    pub(super) write_group: (usize, Duration),
    pub(super) settings: Settings,
}

/// Builds a [`Pool`](crate::Pool): [`Pool::builder`](crate::Pool::builder).
///
/// No setter fails or panics, whatever its argument: [`build`](Builder::build) checks all options and names
/// the wrong one.
#[must_use = "nothing happens until `build` is called"]
pub struct Builder<B: Backend = Sqlite> {
    pub(super) common: Common,
    pub(super) own: B::Options,
}

impl Builder {
    pub(super) fn new(database: Database) -> Self {
        let own = SqliteOptions {
            database,
            write_queue: 1024,
            write_group: (256, Duration::from_millis(5)),
            settings: Settings {
                access: Access::ReadWrite,
                busy_timeout: Duration::from_secs(5),
                synchronous: Synchronous::default(),
                statement_cache: 32,
                attach_limit: 0,
                mmap_size: 0,
                wal_size: 4 << 20,
                checkpoints: Checkpoints::Pool,
                exclusive_locking: false,
                keep_read_lock: false,
                pragmas: Vec::new(),
                sqlite_version: rusqlite::version_number(),
                with_init: false,
                on_connect: None,
                setup: None,
                on_open: None,
            },
        };
        Builder {
            common: Common::default(),
            own,
        }
    }

    /// Creates the schema, or migrates it. Runs once for each database file, within `build`, before any other
    /// connection to it is lent; and again if the file is replaced while the pool uses it. It must change
    /// nothing if there is nothing to do (`CREATE TABLE IF NOT EXISTS`, `PRAGMA user_version`), and may not
    /// lease from the pool. The pool commits a transaction that it leaves open.
    ///
    /// With [`Database::per_agent`] it runs once for each agent's file and process, when the agent is first
    /// lent a connection. Other agents do not wait for it. If it fails, that lease fails too, and the pool
    /// removes a file that it made for it. The pool remembers at least the last 32,768 files that it has set
    /// up.
    ///
    /// Its connection has what `on_connect` and `on_open` register. Pragmas that it sets, and everything else
    /// that it does to its connection, do not stay. It may ATTACH as many databases as a lease, so `VACUUM`
    /// fails in it unless [`attach_limit`](Builder::attach_limit) allows one; see [`Pool::vacuum`](crate::Pool::vacuum).
    ///
    /// Defaults to doing nothing.
    pub fn setup<F, E>(mut self, setup: F) -> Self
    where
        F: Fn(&mut rusqlite::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.own.settings.setup = Some(Box::new(move |connection| {
            setup(connection).map_err(Into::into)
        }));
        self
    }

    /// Runs on every connection that is to be lent, when it is opened, after the pool's pragmas. For what all
    /// agents should find on a connection: SQL functions, collations, attached databases. It may run on any
    /// thread, outside the pool's locks.
    ///
    /// It also runs on the connection of [`setup`](Builder::setup), before `setup`. If it fails there,
    /// because it needs a table that `setup` is about to make, the error does not count, and it runs again on
    /// the next connection. It never runs twice on one connection.
    ///
    /// At each change of agents, the pool reads the temporary tables made here, to check that they are
    /// unchanged: keep them small.
    ///
    /// Hooks (commit, rollback, update, progress, authorizer) set here cannot be restored after an agent had
    /// the connection: a pool whose `on_open` sets one opens a new connection at each change of agents. Trace
    /// hooks and busy handlers set here last until the first such change. A WAL hook set here is never
    /// called: the pool replaces it with its own, which tells it when to run checkpoints, and reports that
    /// once as a `tracing` event. (A lease may set its own WAL hook. The pool then looks at the length of the
    /// log's file while the lease is used and when it ends.)
    ///
    /// Defaults to doing nothing.
    pub fn on_open<F, E>(mut self, on_open: F) -> Self
    where
        F: Fn(&mut rusqlite::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.own.settings.on_open = Some(Box::new(move |connection| {
            on_open(connection).map_err(Into::into)
        }));
        self
    }

    /// Runs on every connection before anything else: before the pool's own pragmas, and before the first
    /// read of the file. For what must come first: SQLCipher's key, `page_size` and `encoding` of a new file,
    /// functions and collations that the schema needs.
    ///
    /// It runs on connections that are lent, on that of [`setup`](Builder::setup), on both of a
    /// [backup](crate::Agent::backup), and on the one that keeps a database in memory alive. The order on
    /// each is: `on_connect`, the pool's pragmas, those of [`pragma`](Builder::pragma),
    /// [`on_open`](Builder::on_open), and finally `setup` or the first lease. All agents find what it
    /// registers, as with `on_open`. It may run on any thread, outside the pool's locks, and may not lease
    /// from the pool.
    ///
    /// ATTACH is already [limited](Builder::attach_limit). Hooks and busy handlers set here do not stay: set
    /// them in `on_open`.
    ///
    /// An error that it returns is the source of an [`Error::Open`](crate::Error::Open). If it panics, the source is an
    /// [`Error::Panicked`](crate::Error::Panicked).
    ///
    /// ```no_run
    /// # use leasepool::{Database, Error, Pool};
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder(Database::file("agents.db"))
    ///     .on_connect(|conn| conn.pragma_update(None, "page_size", 16_384))
    ///     .build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to doing nothing.
    pub fn on_connect<F, E>(mut self, on_connect: F) -> Self
    where
        F: Fn(&mut rusqlite::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.own.settings.on_connect = Some(Box::new(move |connection| {
            on_connect(connection).map_err(Into::into)
        }));
        self
    }

    /// A pragma that every connection gets when it is opened, after the pool's own. May be called again for
    /// more pragmas.
    ///
    /// Pragmas that count when a file is made come earlier: first SQLCipher's `key` and then its
    /// `cipher_...`, which connections of a [backup](crate::Agent::backup) get as well; and `page_size`,
    /// `auto_vacuum` and `encoding`. For an existing file, these three must name the values that the file
    /// has.
    ///
    /// If a pragma has no effect, opening a connection fails with an [`Error::Open`](crate::Error::Open) that names it: SQLite
    /// does not understand the value or does not know the pragma, the file has another `page_size`, or SQLite
    /// cannot encrypt and got a key.
    ///
    /// Defaults to `foreign_keys` ON, whatever SQLite was compiled with (rusqlite's bundled SQLite has it on
    /// by default, most systems' SQLite off). `.pragma("foreign_keys", false)` turns it off.
    pub fn pragma(
        mut self,
        name: impl Into<String>,
        value: impl Into<ToSqlOutput<'static>>,
    ) -> Self {
        let value = match value.into() {
            ToSqlOutput::Owned(value) => value,
            ToSqlOutput::Borrowed(value) => Value::try_from(value).unwrap_or(Value::Null),
            // Blobs of zeros, pointers: no pragma takes one.
            _ => Value::Null,
        };
        self.own.settings.pragmas.push((name.into(), value));
        self
    }

    /// When SQLite waits for the disk.
    ///
    /// Defaults to [`Synchronous::Full`], as SQLite itself does.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.own.settings.synchronous = synchronous;
        self
    }

    /// How long SQLite waits for a lock that another connection or process holds, before it returns
    /// `SQLITE_BUSY`; 0 to 24 hours.
    ///
    /// Defaults to 5 seconds.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.own.settings.busy_timeout = timeout;
        self
    }

    /// How long a borrower may hold a lease before the pool interrupts its statements; 1 ms to a year, or `None`: never.
    /// It applies to leases, reads and `run`. From then on, the pool interrupts (`sqlite3_interrupt`) whatever runs on the
    /// connection, four times a second or more often, until the lease is returned. The interrupted statement fails with
    /// `SQLITE_INTERRUPT`; if it is an INSERT, UPDATE or DELETE, SQLite rolls its transaction back.
    ///
    /// The lease stays its borrower's: the pool takes no connection away. So a borrower that runs no statement, or that is in
    /// a function of its own, keeps the connection for as long as it likes, and shows in
    /// [`Pool::holders`](crate::Pool::holders). A wait for another connection's lock ends by `busy_timeout`. What the pool
    /// does itself (writes through the queue, backups, checkpoints, VACUUM) is not limited.
    ///
    /// [`Stats::interrupted`](crate::Stats::interrupted) counts such leases, and a `tracing` event (with the feature of that
    /// name) names agent and source line. For one piece of work, see [`Agent::within`](crate::Agent::within) with `run`.
    ///
    /// Defaults to `None`. [`overdue_after`](Builder::overdue_after) only reports.
    pub fn max_hold(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.common.max_hold = time.into();
        self
    }

    /// How many writes ([`Pool::write`](crate::Pool::write)) may wait for their turn; 1 to 1,000,000. A further write fails at
    /// once with [`Error::Exhausted`](crate::Error::Exhausted).
    ///
    /// Defaults to 1,024.
    pub fn write_queue(mut self, writes: usize) -> Self {
        self.own.write_queue = writes;
        self
    }

    /// How large a group of writes ([`Pool::write`](crate::Pool::write)) may become: the pool commits it once it has `members`
    /// members (1 to 100,000), or as soon as it has been open for `time` (0 to a minute). With 1 or 0, each
    /// write is its own transaction. The pool never delays a commit to collect more writes.
    ///
    /// Defaults to 256 members and 5 milliseconds.
    pub fn write_group(mut self, members: usize, time: Duration) -> Self {
        self.own.write_group = (members, time);
        self
    }

    /// How long the write-ahead log may become, in bytes (for pages of the usual 4,096), before the pool runs
    /// a checkpoint; 65,536 to 1,073,741,824. A thread of the pool runs the checkpoint on a separate
    /// connection of the pool, and no commit waits for it.
    ///
    /// While a checkpoint runs, the log keeps growing, usually to twice this. At three times this, writes
    /// wait until the checkpoint has ended, because the disk is slower than they are. The file `-wal` is cut
    /// to four times this. The log grows without a bound only while a connection reads from it: a `tracing`
    /// event reports a read transaction that stays open, with the oldest lease.
    ///
    /// A transaction on a plain lease, outside the queue, runs its own checkpoint once the log exceeds 1.5
    /// times `wal_size`, or up to three times. A [`pragma`](Builder::pragma) `wal_autocheckpoint` turns
    /// SQLite's own checkpoints on for all connections.
    /// [`external_checkpoints`](Builder::external_checkpoints) leaves them to another process.
    ///
    /// SQLite before 3.51.3 can, rarely, [corrupt a database](https://sqlite.org/wal.html#walresetbug) when a
    /// second checkpoint follows a complete one while another connection commits. If such a SQLite is linked,
    /// the pool copies the log in one pass, and its writes wait for that; a `tracing` event says so at
    /// `build`. The pool cannot make leases that write without the queue, or other processes, wait: link a
    /// newer SQLite.
    ///
    /// Defaults to 4 MiB, the length at which SQLite would run its own checkpoints.
    pub fn wal_size(mut self, bytes: u32) -> Self {
        self.own.settings.wal_size = bytes;
        self
    }

    /// Leaves checkpoints to another process, such as Litestream, which copies the write-ahead log and must
    /// have read the part that a checkpoint allows to be overwritten. Then no connection of the pool runs a
    /// checkpoint: the pool does not, SQLite does not (`wal_autocheckpoint` is 0), and closing the last
    /// connection does not. The file `-wal` is never cut or removed. `wal_size` has no effect. If each agent
    /// has its own file, the other process must look after every file.
    ///
    /// If no process runs checkpoints, the log grows without a bound. `emergency` sets one, in bytes (for
    /// pages of the usual 4,096); 65,536 to 1,073,741,824, or `None`: never. When the log has become that
    /// long, the pool copies what it can into the database (a `PASSIVE` checkpoint, which makes no other
    /// connection wait), counts it in [`Stats::emergency_checkpoints`](crate::Stats::emergency_checkpoints),
    /// and reports it as a `tracing` event. For commits of leases that do not use the queue, and for agents'
    /// own files, this happens at the next power of two at the latest. If the other process is not running at
    /// that moment, the log may begin anew before it has been read, and Litestream has to copy the whole
    /// database again. So choose a length that the log reaches only when something is wrong.
    ///
    /// `build` refuses it together with [`exclusive_locking`](Builder::exclusive_locking),
    /// [`keep_read_lock`](Builder::keep_read_lock), [`Database::memory`], and the pragmas `wal_autocheckpoint` and
    /// `journal_size_limit`. [`Pool::vacuum`](crate::Pool::vacuum) and [`Agent::vacuum`](crate::Agent::vacuum) fail. In leases
    /// and `on_open`, a pragma that would turn SQLite's own checkpoints on fails as "not authorized". Your own `PRAGMA
    /// wal_checkpoint` is not refused, and no other code of the pool runs one. A [`busy_timeout`](Builder::busy_timeout) below 5
    /// seconds is reported as an event, because the other process takes the write lock now and then.
    ///
    /// See the guide [on backup and replication](crate::guide::backup_and_replication).
    ///
    /// Defaults to off: the pool runs checkpoints itself.
    pub fn external_checkpoints(mut self, emergency: Option<u32>) -> Self {
        self.own.settings.checkpoints = Checkpoints::External { emergency };
        self
    }

    /// Whether the pool only reads. Every lease then has `PRAGMA query_only` on. A statement that would
    /// change something, temporary tables included, fails with SQLite's error for a read-only database
    /// (`SQLITE_READONLY`). The pool refuses the pragma that would turn `query_only` off, and another
    /// `journal_mode` or `locking_mode`. [`Pool::write`](crate::Pool::write), [`Lease::write`](crate::Lease::write),
    /// [`Pool::vacuum`](crate::Pool::vacuum) and [`Agent::remove`](crate::Agent::remove) fail with [`Error::ReadOnly`](crate::Error::ReadOnly). A lease is
    /// not one transaction: each statement sees what has been committed by then. For one snapshot, use
    /// [`Pool::read`](crate::Pool::read), or begin a transaction.
    ///
    /// `setup` and `on_open` may write, and the pool creates the file if it does not exist. For a file that
    /// another process sets up and writes, see [`Database::read_only`].
    ///
    /// This protects from mistakes only. Rust code can still write if it removes both the pool's authorizer
    /// and its commit hook from the connection, or copies another database over it with SQLite's backup.
    /// [`Database::read_only`] protects the file from that, too.
    ///
    /// ```
    /// use leasepool::{Database, Error, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder(Database::memory())
    ///     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    ///     .reads_only(true)
    ///     .build()?;
    /// let lease = pool.lease("alice")?;
    /// assert!(lease.execute("DELETE FROM note", []).is_err());
    /// assert!(lease.execute_batch("PRAGMA query_only = OFF").is_err());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Defaults to `false`.
    pub fn reads_only(mut self, reads_only: bool) -> Self {
        self.own.settings.access = match reads_only {
            true => Access::Reads,
            false => Access::ReadWrite,
        };
        self
    }

    /// Opens agents' files in exclusive locking mode (SQLite's `locking_mode=EXCLUSIVE`), where no other process
    /// has them open; a file that another process has open is shared with it. For [`Database::per_agent`] only,
    /// where a file has one connection. SQLite then needs no `-shm` and hardly any locks, so opening a file
    /// costs about half, and so does a lease that misses.
    ///
    /// The price: other processes get `SQLITE_BUSY` even while the agent's connection is only parked.
    /// [`Pool::evict`](crate::Pool::evict) gives the file free for them, and so does
    /// [`idle_timeout`](Builder::idle_timeout), within a second of it. [`Agent::backup`](crate::Agent::backup)
    /// waits like another lease until the agent's connection is returned.
    ///
    /// Defaults to `false`.
    pub fn exclusive_locking(mut self, exclusive: bool) -> Self {
        self.own.settings.exclusive_locking = exclusive;
        self
    }

    /// Keeps a read lock on the database while many leases are taken, so that reads need no lock of their own from the
    /// operating system. For [`Database::file`]. Short reads become faster, most of all with two or three threads that read
    /// at once. Writes do not.
    ///
    /// SQLite makes two system calls for each read that begins while no other of this process goes on, and other readers
    /// wait for a mutex meanwhile. With this option, the pool opens one more connection, which it never lends, and keeps a
    /// read transaction open on it while some 1,600 leases a second or more are taken, and nothing has been committed for
    /// 10 to 20 milliseconds.
    ///
    /// The price:
    /// - The ceiling of descriptors ([`Pool::fd_ceiling`](crate::Pool::fd_ceiling)) is that of `max_connections` and one more.
    ///   `on_connect` and `on_open` run on that connection, too. [`Stats::open`](crate::Stats::open) does not count it.
    /// - Checkpoints of others (another process, or a `PRAGMA wal_checkpoint` on a lease) wait for that transaction, which
    ///   ends every 10 milliseconds, or give up if they do not wait. SQLite's automatic ones do not: where another process
    ///   commits, the log may grow to four times [`wal_size`](Builder::wal_size), at which the pool runs a checkpoint. The
    ///   pool's own checkpoints wait for nothing.
    /// - With one connection, a lease is not alone with the file, and cannot change its `journal_mode` for example.
    /// - One more thread.
    ///
    /// `build` refuses it together with [`external_checkpoints`](Builder::external_checkpoints) and the pragma
    /// `wal_autocheckpoint`. If `on_open` sets that pragma, no lock is kept.
    ///
    /// Defaults to `false`.
    pub fn keep_read_lock(mut self, keep: bool) -> Self {
        self.own.settings.keep_read_lock = keep;
        self
    }

    /// How many prepared statements each connection keeps for `prepare_cached`; 0 to 10,000.
    ///
    /// Defaults to 32.
    pub fn statement_cache(mut self, statements: usize) -> Self {
        self.own.settings.statement_cache = statements;
        self
    }

    /// How many databases a lease may ATTACH; 0 to 10. Each raises the ceiling by three descriptors for every
    /// connection. A file must exist to be attached. `VACUUM` counts as one database; see [`Pool::vacuum`](crate::Pool::vacuum).
    ///
    /// Defaults to 0: ATTACH fails.
    pub fn attach_limit(mut self, databases: usize) -> Self {
        self.own.settings.attach_limit = databases;
        self
    }

    /// How many bytes of the file SQLite may map into memory, instead of reading them into its cache; 0 to
    /// 2,147,418,112. It makes reads faster where SQLite is compiled with a shared page cache mutex (see the
    /// README). The price: if another process truncates the file, or its disk fails, this process dies of
    /// SIGBUS.
    ///
    /// Defaults to 0: nothing is mapped.
    pub fn mmap_size(mut self, bytes: u64) -> Self {
        self.own.settings.mmap_size = bytes;
        self
    }
}

impl<B: Backend> Debug for Builder<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.common.name)
            .field("max_connections", &self.common.max_connections)
            .finish_non_exhaustive()
    }
}
