//! Builder: every option, with its default and its range. `build` checks all of them once.
//! It opens nothing itself.

use std::fmt::{self, Debug};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, Value};

use super::{Pool, Shared};
use crate::core::{Core, Options};
use crate::error::Error;
use crate::observe::events;
use crate::sqlite::{
    Access, Budget, Checkpoints, Database, Kind, Passes, Place, Settings, Sharing, Sqlite,
    Synchronous,
};
use crate::write::{Limits, Writer};

const MAX_CONNECTIONS: RangeInclusive<usize> = 1..=10_000;
const STATEMENTS: RangeInclusive<usize> = 0..=10_000;
const ATTACHED: RangeInclusive<usize> = 0..=10;
/// `SQLITE_MAX_MMAP_SIZE` of a SQLite that is compiled with its defaults.
const MMAP: RangeInclusive<u64> = 0..=0x7fff_0000;
const WAL_SIZE: RangeInclusive<u32> = 1 << 16..=1 << 30;
/// The timeout that Litestream's authors ask for.
const PATIENT: Duration = Duration::from_secs(5);
const QUEUE: RangeInclusive<usize> = 1..=1_000_000;
const GROUP_MEMBERS: RangeInclusive<usize> = 1..=100_000;
const GROUP_TIME: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
/// How many threads may commit at the same time, where each agent has its own file.
const WRITERS: usize = 16;
/// How many agents the pool remembers by default.
const CACHED_AGENTS: usize = 10_000;
/// Chosen from the table of `cargo bench -p leasepool-benches --bench lease -- misses`.
const OVERTAKING: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WAITS: RangeInclusive<Duration> = Duration::ZERO..=DAY;
const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(365 * 24 * 60 * 60);
/// SQLite counts these in milliseconds, in an `int`.
const BUSY: RangeInclusive<Duration> = Duration::ZERO..=DAY;

/// Pragmas that have their own option, or that would undo what the pool relies on.
const RESERVED: [(&str, &str); 19] = [
    ("busy_timeout", "use Builder::busy_timeout"),
    ("cipher_log", PROCESS),
    ("cipher_log_level", PROCESS),
    ("cipher_log_source", PROCESS),
    ("cipher_memory_security", PROCESS),
    (
        "cipher_profile",
        "it opens a file that the pool cannot count",
    ),
    ("data_store_directory", PROCESS),
    ("hard_heap_limit", PROCESS),
    ("journal_mode", "files are always in WAL mode"),
    (
        "locking_mode",
        "an exclusive lock would shut out the pool's other connections",
    ),
    ("hexrekey", REKEY),
    ("mmap_size", "use Builder::mmap_size"),
    ("query_only", "use Builder::reads_only"),
    ("rekey", REKEY),
    ("soft_heap_limit", PROCESS),
    ("synchronous", "use Builder::synchronous"),
    (
        "temp_store",
        "temporary files would be descriptors that the pool cannot count",
    ),
    (
        "temp_store_directory",
        "temporary tables are kept in memory",
    ),
    ("textrekey", REKEY),
];

const PROCESS: &str = "it changes the whole process";
const REKEY: &str = "it would change the key with every connection";

/// Builds a [`Pool`]: [`Pool::builder`].
///
/// No setter fails or panics, whatever its argument: [`build`](Builder::build) checks all options and names
/// the wrong one.
#[must_use = "nothing happens until `build` is called"]
pub struct Builder {
    database: Database,
    name: Option<String>,
    max_connections: Option<usize>,
    fd_budget: Option<usize>,
    cached_agents: Option<usize>,
    idle_timeout: Option<Duration>,
    lease_timeout: Duration,
    overtaking: Duration,
    max_lifetime: Option<Duration>,
    overdue_after: Option<Duration>,
    write_queue: usize,
    write_group: (usize, Duration),
    settings: Settings,
}

impl Builder {
    pub(super) fn new(database: Database) -> Self {
        Builder {
            database,
            name: None,
            max_connections: None,
            fd_budget: None,
            cached_agents: None,
            idle_timeout: Some(Duration::from_secs(300)),
            lease_timeout: Duration::from_secs(5),
            overtaking: OVERTAKING,
            max_lifetime: None,
            overdue_after: Some(Duration::from_secs(60)),
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
                pragmas: Vec::new(),
                sqlite_version: rusqlite::version_number(),
                with_init: false,
                on_connect: None,
                setup: None,
                on_open: None,
            },
        }
    }

    /// How many connections may be open at once; 1 to 10,000. This caps connections, and by
    /// [`Pool::fd_ceiling`] descriptors. It limits how many agents are *served* at the same moment, not how
    /// many agents there are.
    ///
    /// Defaults to 8, or to what `fd_budget` allows.
    pub fn max_connections(mut self, n: usize) -> Self {
        self.max_connections = Some(n);
        self
    }

    /// How many descriptors the pool may use. Without `max_connections`, the pool gets as many connections as
    /// this allows. With it, `build` fails if they could need more.
    ///
    /// `build` also checks what the process's limit (`RLIMIT_NOFILE`) leaves. It never changes that limit.
    ///
    /// Defaults to what the process's limit leaves.
    pub fn fd_budget(mut self, descriptors: usize) -> Self {
        self.fd_budget = Some(descriptors);
        self
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
    /// fails in it unless [`attach_limit`](Builder::attach_limit) allows one; see [`Pool::vacuum`].
    ///
    /// Defaults to doing nothing.
    pub fn setup<F, E>(mut self, setup: F) -> Self
    where
        F: Fn(&mut rusqlite::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.settings.setup = Some(Box::new(move |connection| {
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
        self.settings.on_open = Some(Box::new(move |connection| {
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
    /// An error that it returns is the source of an [`Error::Open`]. If it panics, the source is an
    /// [`Error::Panicked`].
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
        self.settings.on_connect = Some(Box::new(move |connection| {
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
    /// If a pragma has no effect, opening a connection fails with an [`Error::Open`] that names it: SQLite
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
        self.settings.pragmas.push((name.into(), value));
        self
    }

    /// How long a call waits for its turn ([`Pool::lease`], [`Pool::write`] and the like); 0 to 24 hours.
    ///
    /// Defaults to 5 seconds.
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.lease_timeout = timeout;
        self
    }

    /// How long later callers may overtake a waiting caller; 0 to 24 hours. A returned connection goes to the
    /// caller that runs at that moment, which saves a switch of threads. But if the first in the queue has
    /// waited for longer than this, the connection goes to the first. Zero serves callers strictly in the
    /// order in which they came. This applies to connections, to agents' own connections and to the turn to
    /// write.
    ///
    /// Higher values raise the throughput under contention, and also the slowest waits; see
    /// `cargo bench -p leasepool-benches --bench lease`.
    ///
    /// Defaults to 1 millisecond.
    pub fn overtaking(mut self, time: Duration) -> Self {
        self.overtaking = time;
        self
    }

    /// How many agents the pool remembers. Each may have parked connections. When there are more, the pool
    /// forgets the agent that was used least recently and frees its parked connections. A remembered agent
    /// costs some hundred bytes, and its leases allocate nothing. 0 remembers no agent and parks no
    /// connection.
    ///
    /// It may be far above `max_connections`.
    ///
    /// Defaults to 10,000.
    pub fn cached_agents(mut self, n: usize) -> Self {
        self.cached_agents = Some(n);
        self
    }

    /// How long a connection stays parked for an agent that does not come back; 1 ms to a year, or `None`:
    /// until another agent needs it. The pool obeys it to within a second, even if the process makes no
    /// calls.
    ///
    /// Defaults to 5 minutes.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = timeout.into();
        self
    }

    /// How old a connection may be when it is lent; 1 ms to a year, or `None`: any age. The pool closes an
    /// older connection and opens a new one first.
    ///
    /// Defaults to `None`.
    pub fn max_lifetime(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.max_lifetime = age.into();
        self
    }

    /// How long a borrower may hold a lease before the pool reports it; 1 ms to a year, or `None`: never. The
    /// report is a `tracing` event (with the feature of that name) that names agent and source line. A second
    /// event reports that the lease has come back.
    ///
    /// Defaults to 60 seconds.
    pub fn overdue_after(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.overdue_after = age.into();
        self
    }

    /// When SQLite waits for the disk.
    ///
    /// Defaults to [`Synchronous::Full`], as SQLite itself does.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.settings.synchronous = synchronous;
        self
    }

    /// How long SQLite waits for a lock that another connection or process holds, before it returns
    /// `SQLITE_BUSY`; 0 to 24 hours.
    ///
    /// Defaults to 5 seconds.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        self.settings.busy_timeout = timeout;
        self
    }

    /// How many writes ([`Pool::write`]) may wait for their turn; 1 to 1,000,000. A further write fails at
    /// once with [`Error::Exhausted`].
    ///
    /// Defaults to 1,024.
    pub fn write_queue(mut self, writes: usize) -> Self {
        self.write_queue = writes;
        self
    }

    /// How large a group of writes ([`Pool::write`]) may become: the pool commits it once it has `members`
    /// members (1 to 100,000), or as soon as it has been open for `time` (0 to a minute). With 1 or 0, each
    /// write is its own transaction. The pool never delays a commit to collect more writes.
    ///
    /// Defaults to 256 members and 5 milliseconds.
    pub fn write_group(mut self, members: usize, time: Duration) -> Self {
        self.write_group = (members, time);
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
        self.settings.wal_size = bytes;
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
    /// [`Database::memory`], and the pragmas `wal_autocheckpoint` and `journal_size_limit`. [`Pool::vacuum`]
    /// and [`Agent::vacuum`](crate::Agent::vacuum) fail. In leases and `on_open`, a pragma that would turn
    /// SQLite's own checkpoints on fails as "not authorized". Your own `PRAGMA wal_checkpoint` is not
    /// refused, and no other code of the pool runs one. A [`busy_timeout`](Builder::busy_timeout) below 5
    /// seconds is reported as an event, because the other process takes the write lock now and then.
    ///
    /// See the guide [on backup and replication](crate::guide::backup_and_replication).
    ///
    /// Defaults to off: the pool runs checkpoints itself.
    pub fn external_checkpoints(mut self, emergency: Option<u32>) -> Self {
        self.settings.checkpoints = Checkpoints::External { emergency };
        self
    }

    /// Whether the pool only reads. Every lease then has `PRAGMA query_only` on. A statement that would
    /// change something, temporary tables included, fails with SQLite's error for a read-only database
    /// (`SQLITE_READONLY`). The pool refuses the pragma that would turn `query_only` off, and another
    /// `journal_mode` or `locking_mode`. [`Pool::write`], [`Lease::write`](crate::Lease::write),
    /// [`Pool::vacuum`] and [`Agent::remove`](crate::Agent::remove) fail with [`Error::ReadOnly`]. A lease is
    /// not one transaction: each statement sees what has been committed by then. For one snapshot, use
    /// [`Pool::read`], or begin a transaction.
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
        self.settings.access = match reads_only {
            true => Access::Reads,
            false => Access::ReadWrite,
        };
        self
    }

    /// Opens agents' files in exclusive locking mode (SQLite's `locking_mode=EXCLUSIVE`): no other process
    /// can use a file while the pool has it open. For [`Database::per_agent`] only, where a file has one
    /// connection. SQLite then needs no `-shm` and hardly any locks, so opening a file costs about half, and
    /// so does a lease that misses.
    ///
    /// The price: other processes get `SQLITE_BUSY` even while the agent's connection is only parked, and
    /// [`Agent::backup`](crate::Agent::backup) waits like another lease until the agent's connection is
    /// returned.
    ///
    /// Defaults to `false`.
    pub fn exclusive_locking(mut self, exclusive: bool) -> Self {
        self.settings.exclusive_locking = exclusive;
        self
    }

    /// How many prepared statements each connection keeps for `prepare_cached`; 0 to 10,000.
    ///
    /// Defaults to 32.
    pub fn statement_cache(mut self, statements: usize) -> Self {
        self.settings.statement_cache = statements;
        self
    }

    /// How many databases a lease may ATTACH; 0 to 10. Each raises the ceiling by three descriptors for every
    /// connection. A file must exist to be attached. `VACUUM` counts as one database; see [`Pool::vacuum`].
    ///
    /// Defaults to 0: ATTACH fails.
    pub fn attach_limit(mut self, databases: usize) -> Self {
        self.settings.attach_limit = databases;
        self
    }

    /// How many bytes of the file SQLite may map into memory, instead of reading them into its cache; 0 to
    /// 2,147,418,112. It makes reads faster where SQLite is compiled with a shared page cache mutex (see the
    /// README). The price: if another process truncates the file, or its disk fails, this process dies of
    /// SIGBUS.
    ///
    /// Defaults to 0: nothing is mapped.
    pub fn mmap_size(mut self, bytes: u64) -> Self {
        self.settings.mmap_size = bytes;
        self
    }

    /// The pool's name in logs and metrics.
    ///
    /// Defaults to the name of the database file, or to `memory`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Checks the options, creates the database if it does not exist, sets it up, and opens one connection to
    /// it, so that every fault shows now.
    ///
    /// # Errors
    /// - [`Error::Config`] if an option is out of its range, or does not fit the database.
    /// - [`Error::Budget`] if the pool could need more descriptors than it may use.
    /// - [`Error::NoThread`] if the pool's threads cannot be started.
    /// - [`Error::AlreadyPooled`] if another pool of this process has the file.
    /// - [`Error::Open`] and [`Error::Setup`], with the cause, for every other fault.
    ///
    /// # Blocking
    /// For as long as `setup` takes, and for up to `busy_timeout` if other processes hold locks.
    pub fn build(mut self) -> Result<Pool, Error> {
        let limit = self.check()?;
        if let Kind::ReadOnly(_) = self.database.0 {
            self.settings.access = Access::ReadOnlyFile;
        }
        let Builder {
            database,
            max_connections,
            cached_agents,
            ..
        } = self;
        let sharing = database.0.sharing(self.settings.synchronous);
        let max_connections = match (max_connections, &limit) {
            (Some(n), _) => n,
            (None, Some(budget)) if sharing != Sharing::NoFile => {
                let affordable = self.settings.affordable(sharing, budget.available);
                affordable.unwrap_or(1)
            }
            (None, _) => 8,
        };
        let ceiling = self.settings.fd_ceiling(sharing, max_connections);
        for budget in [limit, Budget::of_process()].into_iter().flatten() {
            budget.check(max_connections, ceiling)?;
        }
        let version = self.settings.sqlite_version;
        let busy_timeout = self.settings.busy_timeout;
        let impatient = self.settings.is_external() && busy_timeout < PATIENT;
        let name = self.name.or_else(|| database.0.name());
        let shared = !matches!(database.0, Kind::Agents(_));
        let sqlite = Sqlite::new(database, self.settings, max_connections)?;
        let name = name.or_else(|| sqlite.file_name()).unwrap_or_default();
        if sharing != Sharing::NoFile && Passes::of(version) == Passes::One {
            events::old_sqlite(&name, version);
        }
        if impatient {
            events::short_busy_timeout(&name, busy_timeout);
        }
        let options = Options {
            name: name.into(),
            max_connections,
            cached_agents: cached_agents.unwrap_or(CACHED_AGENTS),
            idle_timeout: self.idle_timeout,
            lease_timeout: self.lease_timeout,
            overtaking: self.overtaking,
            max_lifetime: self.max_lifetime,
            overdue_after: self.overdue_after,
        };
        let (members, time) = self.write_group;
        let threads = match shared {
            // One leads the queue, one runs checkpoints.
            true => 2,
            false => max_connections.clamp(2, WRITERS),
        };
        let limits = Limits {
            queue: self.write_queue,
            group_members: members,
            group_time: time,
        };
        let core = Core::new(sqlite, options)?;
        let writer = Writer::new(Arc::clone(&core), limits, threads);
        Ok(Pool::new(Shared::start(core, writer)?))
    }

    /// Checks every range, and every value that SQLite would silently misread.
    fn check(&self) -> Result<Option<Budget>, Error> {
        let settings = &self.settings;
        if let Some(n) = self.max_connections {
            within("max_connections", n, &MAX_CONNECTIONS)?;
        }
        for (option, timeout) in [
            ("idle_timeout", self.idle_timeout),
            ("max_lifetime", self.max_lifetime),
            ("overdue_after", self.overdue_after),
        ] {
            if let Some(timeout) = timeout {
                within(option, timeout, &TIMEOUTS)?;
            }
        }
        within("lease_timeout", self.lease_timeout, &WAITS)?;
        within("overtaking", self.overtaking, &WAITS)?;
        within("busy_timeout", settings.busy_timeout, &BUSY)?;
        within("statement_cache", settings.statement_cache, &STATEMENTS)?;
        within("attach_limit", settings.attach_limit, &ATTACHED)?;
        within("mmap_size", settings.mmap_size, &MMAP)?;
        within("wal_size", settings.wal_size, &WAL_SIZE)?;
        within("write_queue", self.write_queue, &QUEUE)?;
        within("write_group", self.write_group.0, &GROUP_MEMBERS)?;
        within("write_group", self.write_group.1, &GROUP_TIME)?;
        for (name, _) in &settings.pragmas {
            check_pragma(name)?;
        }
        if settings.exclusive_locking && !matches!(self.database.0, Kind::Agents(_)) {
            return Err(Error::Config {
                option: "exclusive_locking",
                value: "true".to_owned(),
                expected: "false, because all connections share one database".to_owned(),
            });
        }
        if let Checkpoints::External { emergency } = settings.checkpoints {
            self.check_external(emergency)?;
        }
        if let Kind::ReadOnly(_) = self.database.0
            && settings.setup.is_some()
        {
            return Err(Error::Config {
                option: "setup",
                value: "a function".to_owned(),
                expected: "no function: another process writes the file of Database::read_only"
                    .to_owned(),
            });
        }
        if let Kind::File(path) | Kind::ReadOnly(path) | Kind::Agents(Place::Folder(path)) =
            &self.database.0
        {
            check_path(path)?;
        }
        Ok(self.fd_budget.map(|available| Budget {
            available,
            limited_by: "fd_budget",
        }))
    }

    /// Options that do not go together with checkpoints of another process.
    fn check_external(&self, emergency: Option<u32>) -> Result<(), Error> {
        const OPTION: &str = "external_checkpoints";
        let settings = &self.settings;
        if let Some(bytes) = emergency {
            within(OPTION, bytes, &WAL_SIZE)?;
        }
        let expected = if matches!(self.database.0, Kind::Memory) {
            "a database in a file, because one in memory has no log".to_owned()
        } else if settings.exclusive_locking {
            "a pool without exclusive_locking, which keeps the other process from the files"
                .to_owned()
        } else {
            let mut pragmas = settings.pragmas.iter().map(|(name, _)| name);
            let found = pragmas.find(|name| {
                let also = ["wal_autocheckpoint", "journal_size_limit"];
                also.iter().any(|other| name.eq_ignore_ascii_case(other))
            });
            match found {
                Some(name) => format!("a pool without the pragma {name}, which the option sets"),
                None => return Ok(()),
            }
        };
        Err(Error::Config {
            option: OPTION,
            value: format!("{emergency:?}"),
            expected,
        })
    }
}

impl Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("database", &self.database)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

fn within<T: PartialOrd + Debug>(
    option: &'static str,
    value: T,
    range: &RangeInclusive<T>,
) -> Result<(), Error> {
    if range.contains(&value) {
        return Ok(());
    }
    Err(Error::Config {
        option,
        value: format!("{value:?}"),
        expected: format!("{:?} to {:?}", range.start(), range.end()),
    })
}

fn check_pragma(name: &str) -> Result<(), Error> {
    let lower = name.to_ascii_lowercase();
    let reserved = RESERVED.iter().find(|(reserved, _)| *reserved == lower);
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let expected = match (reserved, is_name) {
        (None, _) if lower.starts_with("cipher_default_") => {
            format!("another pragma: {PROCESS}")
        }
        (Some((_, why)), _) => format!("another pragma: {why}"),
        (None, false) => "a name of letters, digits and underscores".to_owned(),
        (None, true) => return Ok(()),
    };
    Err(Error::Config {
        option: "pragma",
        value: format!("{name:?}"),
        expected,
    })
}

fn check_path(path: &PathBuf) -> Result<(), Error> {
    let expected = if path.as_os_str().is_empty() {
        "the path of a file"
    } else if path.as_os_str().as_encoded_bytes().contains(&0) {
        "a path without NUL"
    } else if path.to_str().is_none() {
        "a path in UTF-8, because SQLite's paths are"
    } else if path.as_os_str() == ":memory:" {
        "the path of a file; for a database in memory, Database::memory()"
    } else if path.as_os_str().as_encoded_bytes().starts_with(b"file:") {
        "the path of a file and not a URI; for a database in memory, Database::memory(); for a file that is \
         called so, a path that begins with ./"
    } else {
        return Ok(());
    };
    Err(Error::Config {
        option: "database",
        value: format!("{path:?}"),
        expected: expected.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Instant;

    use rusqlite::trace::{TraceEvent, TraceEventCodes};

    use super::*;

    /// The first version without the fault, and the last with it.
    const VERSIONS: [(i32, &str); 2] = [(3_051_003, "passive"), (3_051_002, "restart")];

    fn builder(folder: &tempfile::TempDir, version: i32) -> Builder {
        let mut builder = Pool::builder(Database::file(folder.path().join("v.db")));
        builder.settings.sqlite_version = version;
        builder
    }

    /// The checkpoints that any connection has begun.
    static BEGUN: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn note(event: TraceEvent<'_>) {
        if let TraceEvent::Stmt(_, sql) = event
            && sql.contains("wal_checkpoint(")
        {
            BEGUN.lock().unwrap().push(sql.to_ascii_lowercase());
        }
    }

    /// C23.
    #[test]
    fn an_old_sqlite_gets_one_pass_for_each_checkpoint() {
        for (version, first) in VERSIONS {
            let folder = tempfile::tempdir().unwrap();
            let pool = builder(&folder, version)
                .wal_size(1 << 16)
                .synchronous(Synchronous::Off)
                .setup(|conn| conn.execute_batch("CREATE TABLE t (x)"))
                .on_open(|conn| {
                    conn.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(note));
                    Ok::<_, rusqlite::Error>(())
                })
                .build()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            while pool.stats().checkpoints < 3 {
                assert!(Instant::now() < deadline, "{:?}", pool.stats());
                pool.write("a", |tx| -> rusqlite::Result<usize> {
                    tx.execute("INSERT INTO t VALUES (zeroblob(20000))", [])
                })
                .unwrap();
            }
            let checkpoints = pool.stats().checkpoints;
            pool.close().unwrap();
            let begun = std::mem::take(&mut *BEGUN.lock().unwrap());
            assert!(begun[0].contains(first), "{version}: {begun:?}");
            let one_pass = begun.iter().all(|sql| sql.contains("restart"));
            assert_eq!(one_pass, version < 3_051_003, "{begun:?}");
            if one_pass {
                // One more checkpoint may have been running when they were counted.
                let most = usize::try_from(checkpoints).unwrap() + 1;
                assert!(begun.len() <= most, "{checkpoints}: {begun:?}");
            }
        }
    }

    #[cfg(feature = "tracing")]
    #[test]
    fn an_old_sqlite_is_told_at_build() {
        use std::fmt::Write;
        use std::sync::Arc;

        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<String>>);

        impl tracing::field::Visit for Log {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
                write!(self.0.lock().unwrap(), "{field}={value:?} ").unwrap();
            }
        }

        impl tracing::Subscriber for Log {
            fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
                *metadata.level() == tracing::Level::WARN
            }
            fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
                tracing::span::Id::from_u64(1)
            }
            fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
            fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
            fn event(&self, event: &tracing::Event<'_>) {
                event.record(&mut self.clone());
            }
            fn enter(&self, _: &tracing::span::Id) {}
            fn exit(&self, _: &tracing::span::Id) {}
        }

        for (version, _) in VERSIONS {
            let folder = tempfile::tempdir().unwrap();
            let log = Log::default();
            tracing::subscriber::with_default(log.clone(), || {
                drop(builder(&folder, version).name("old").build().unwrap());
                let mut memory = Pool::builder(Database::memory());
                memory.settings.sqlite_version = version;
                drop(memory.build().unwrap());
            });
            let told = log.0.lock().unwrap();
            let lines = told.matches("SQLite before 3.51.3").count();
            assert_eq!(lines, usize::from(version < 3_051_003), "{told}");
            assert_eq!(told.contains("3.51.2"), version < 3_051_003, "{told}");
        }
    }
}
