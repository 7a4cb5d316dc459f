//! Builder: every option, its default, and its range, checked once, in `build`.
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
/// `SQLITE_MAX_MMAP_SIZE`, as SQLite is compiled unless told otherwise.
const MMAP: RangeInclusive<u64> = 0..=0x7fff_0000;
const WAL_SIZE: RangeInclusive<u32> = 1 << 16..=1 << 30;
/// What Litestream's authors ask for.
const PATIENT: Duration = Duration::from_secs(5);
const QUEUE: RangeInclusive<usize> = 1..=1_000_000;
const GROUP_MEMBERS: RangeInclusive<usize> = 1..=100_000;
const GROUP_TIME: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(60);
/// Threads that commit at the same time, where agents have files of their own.
const WRITERS: usize = 16;
/// Agents that are remembered.
const CACHED_AGENTS: usize = 10_000;
/// Chosen by the table of `cargo bench -p leasepool-benches --bench lease -- misses`.
const OVERTAKING: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const WAITS: RangeInclusive<Duration> = Duration::ZERO..=DAY;
const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_secs(365 * 24 * 60 * 60);
/// SQLite counts these in milliseconds, in an `int`.
const BUSY: RangeInclusive<Duration> = Duration::ZERO..=DAY;

/// Pragmas that an option here is for, or that would undo what the pool relies on.
const RESERVED: [(&str, &str); 19] = [
    ("busy_timeout", "use Builder::busy_timeout"),
    ("cipher_log", "it is the whole process's"),
    ("cipher_log_level", "it is the whole process's"),
    ("cipher_log_source", "it is the whole process's"),
    ("cipher_memory_security", "it is the whole process's"),
    ("cipher_profile", "it opens a file that nobody has counted"),
    ("data_store_directory", "it is the whole process's"),
    ("hard_heap_limit", "it is the whole process's"),
    ("journal_mode", "files are always in WAL mode"),
    (
        "locking_mode",
        "an exclusive lock would shut out the pool's other connections",
    ),
    ("hexrekey", REKEY),
    ("mmap_size", "use Builder::mmap_size"),
    ("query_only", "use Builder::reads_only"),
    ("rekey", REKEY),
    ("soft_heap_limit", "it is the whole process's"),
    ("synchronous", "use Builder::synchronous"),
    (
        "temp_store",
        "temporary files would be descriptors that nobody has counted",
    ),
    (
        "temp_store_directory",
        "temporary tables are kept in memory",
    ),
    ("textrekey", REKEY),
];

const REKEY: &str = "it would change the key with every connection";

/// Builds a [`Pool`]: [`Pool::builder`].
///
/// No setter fails or panics, whatever it is given: [`build`](Builder::build) checks all options and
/// says which one is wrong.
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

    /// What the pool is called in the log and in metrics.
    ///
    /// Defaults to the name of the database file, or to `memory`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// How many connections may be open at once; 1 to 10,000. This is the cap: on connections, and by
    /// [`Pool::fd_ceiling`] on descriptors. It bounds how many agents can be *served* at the same
    /// moment, not how many there are.
    ///
    /// Defaults to 8, or to what `fd_budget` allows.
    pub fn max_connections(mut self, n: usize) -> Self {
        self.max_connections = Some(n);
        self
    }

    /// How many descriptors the pool may use. Without `max_connections`, the pool gets as many
    /// connections as that allows; with it, `build` fails if they could need more.
    ///
    /// Defaults to what the process's limit (`RLIMIT_NOFILE`) leaves, which is checked in any case and
    /// never changed.
    pub fn fd_budget(mut self, descriptors: usize) -> Self {
        self.fd_budget = Some(descriptors);
        self
    }

    /// How many agents the pool remembers, at most. Each may have connections parked; the agent that was used least
    /// recently is forgotten first, and what is parked for it is given back. An agent that is remembered costs
    /// some hundred bytes, and its leases allocate nothing. 0 remembers none, and parks nothing.
    ///
    /// Defaults to 10,000. It may be far above `max_connections`.
    pub fn cached_agents(mut self, n: usize) -> Self {
        self.cached_agents = Some(n);
        self
    }

    /// How long a connection stays parked for an agent that does not come back; 1 ms to a year, or
    /// `None`: until another agent needs it. It is obeyed to within a second, also in a process that
    /// is doing nothing else.
    ///
    /// Defaults to 5 minutes.
    pub fn idle_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.idle_timeout = timeout.into();
        self
    }

    /// How long [`Pool::lease`] waits when every connection is lent; 0 to 24 hours.
    ///
    /// Defaults to 5 seconds.
    pub fn lease_timeout(mut self, timeout: Duration) -> Self {
        self.lease_timeout = timeout;
        self
    }

    /// How long a caller that waits may be overtaken by others; 0 to 24 hours. A connection that is returned goes to
    /// whichever caller runs at that moment, which saves a change of threads, unless the first in the queue
    /// has waited for longer than this: then it goes to that one. Zero serves callers strictly in the order
    /// in which they came. It holds for connections, for agents' own connections and for the turn to write.
    ///
    /// Higher values raise throughput under contention, and the slowest waits with it; see
    /// `cargo bench -p leasepool-benches --bench lease`.
    ///
    /// Defaults to 1 millisecond.
    pub fn overtaking(mut self, time: Duration) -> Self {
        self.overtaking = time;
        self
    }

    /// How old a connection may be when it is lent; 1 ms to a year, or `None`. An older one is closed
    /// and opened anew first.
    ///
    /// Defaults to `None`.
    pub fn max_lifetime(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.max_lifetime = age.into();
        self
    }

    /// How long a lease may be held before it is reported, once, and once more when it comes back, as
    /// a `tracing` event (with the feature of that name) that names agent and source line; 1 ms to a
    /// year, or `None`: never.
    ///
    /// Defaults to 60 seconds.
    pub fn overdue_after(mut self, age: impl Into<Option<Duration>>) -> Self {
        self.overdue_after = age.into();
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

    /// When SQLite waits for the disk.
    ///
    /// Defaults to [`Synchronous::Full`], as SQLite itself does.
    pub fn synchronous(mut self, synchronous: Synchronous) -> Self {
        self.settings.synchronous = synchronous;
        self
    }

    /// How many prepared statements each connection keeps for `prepare_cached`; 0 to 10,000.
    ///
    /// Defaults to 32.
    pub fn statement_cache(mut self, statements: usize) -> Self {
        self.settings.statement_cache = statements;
        self
    }

    /// How many databases a lease may ATTACH; 0 to 10. Each raises the ceiling by three descriptors
    /// for every connection. A file to be attached must exist. `VACUUM` counts as one; see
    /// [`Pool::vacuum`].
    ///
    /// Defaults to 0: ATTACH fails.
    pub fn attach_limit(mut self, databases: usize) -> Self {
        self.settings.attach_limit = databases;
        self
    }

    /// How many bytes of the file SQLite may map into memory, instead of reading them into its cache;
    /// 0 to 2,147,418,112. It makes reads faster where SQLite is compiled with a shared page cache
    /// mutex (see the README). The price: if the file is truncated by others, or its disk fails, the
    /// process dies of SIGBUS.
    ///
    /// Defaults to 0: nothing is mapped.
    pub fn mmap_size(mut self, bytes: u64) -> Self {
        self.settings.mmap_size = bytes;
        self
    }

    /// Whether an agent's file is the pool's alone for as long as it is open there: SQLite's
    /// `locking_mode=EXCLUSIVE`. For [`Database::per_agent`] only, where a file has one connection. SQLite then
    /// needs no `-shm` and hardly any locks, so that opening a file, and a lease that misses, cost about half.
    ///
    /// The price: other processes get `SQLITE_BUSY`, also while the agent's connection is only parked, and
    /// [`Agent::backup`](crate::Agent::backup) waits until the agent's connection is returned, as another lease would.
    ///
    /// Defaults to `false`.
    pub fn exclusive_locking(mut self, exclusive: bool) -> Self {
        self.settings.exclusive_locking = exclusive;
        self
    }

    /// Whether the pool only reads. Every lease then has `PRAGMA query_only` on: a statement that would change anything,
    /// temporary tables included, fails with SQLite's error for a read-only database (`SQLITE_READONLY`), and the pragma
    /// that would turn it off is refused, as is another `journal_mode` or `locking_mode`. [`Pool::write`],
    /// [`Lease::write`](crate::Lease::write), [`Pool::vacuum`] and [`Agent::remove`](crate::Agent::remove) fail with [`Error::ReadOnly`]. A
    /// lease is not one transaction: each statement sees what has been committed by then. For one snapshot, use
    /// [`Pool::read`], or begin a transaction.
    ///
    /// `setup` and `on_open` may write, and the file is created if there is none. For a file that others set up and write,
    /// see [`Database::read_only`].
    ///
    /// It guards against mistakes: Rust code that takes both the pool's authorizer and its commit hook off the connection,
    /// or copies another database over it with SQLite's backup, is not kept from writing; [`Database::read_only`] keeps
    /// that, too, from the file.
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

    /// How many writes ([`Pool::write`]) may wait for their turn; 1 to 1,000,000. One more fails at once with
    /// [`Error::Exhausted`].
    ///
    /// Defaults to 1,024.
    pub fn write_queue(mut self, writes: usize) -> Self {
        self.write_queue = writes;
        self
    }

    /// How large a group of writes ([`Pool::write`]) may become: it is committed once it has so many members
    /// (1 to 100,000), or as soon as it has been open for so long (0 to a minute). With 1 or 0, each write is
    /// a transaction of its own. A group never waits for members: it ends when nobody is left.
    ///
    /// Defaults to 256 members and 5 milliseconds.
    pub fn write_group(mut self, members: usize, time: Duration) -> Self {
        self.write_group = (members, time);
        self
    }

    /// How long the write-ahead log may become before the pool runs a checkpoint, in bytes (for pages of the
    /// usual 4,096); 65,536 to 1,073,741,824. A thread of the pool's does that, on a connection of the
    /// pool's, and no commit waits for it.
    ///
    /// While a checkpoint runs, the log grows on: usually to twice this; at three times, writes wait until the
    /// checkpoint has ended, as the disk is slower than they are. The file `-wal` is cut to four times this.
    /// The log grows without a bound only for as long as somebody reads from it: a read transaction that
    /// stays open is reported as a `tracing` event, with the oldest lease.
    ///
    /// Commits of leases that do not use the queue run SQLite's own checkpoint once the log is half as long
    /// again, or up to three times as long. A [`pragma`](Builder::pragma) `wal_autocheckpoint` brings SQLite's own
    /// checkpoints back for all; [`external_checkpoints`](Builder::external_checkpoints) leaves them to another process.
    ///
    /// SQLite before 3.51.3 can, rarely, [corrupt a database](https://sqlite.org/wal.html#walresetbug) when a second
    /// checkpoint follows a complete one while another connection commits. Where such a SQLite is linked, which a `tracing`
    /// event says at `build`, the pool copies the log in one pass, and its writes wait for that. It cannot keep leases
    /// that write without the queue, and other processes, from it: link a newer SQLite.
    ///
    /// Defaults to 4 MiB, which is also when SQLite runs its own.
    pub fn wal_size(mut self, bytes: u32) -> Self {
        self.settings.wal_size = bytes;
        self
    }

    /// Leaves checkpoints to another process, such as Litestream, which copies the write-ahead log and must have read
    /// what a checkpoint lets be overwritten. Then no connection of the pool's runs one, neither by the pool, nor by
    /// SQLite (`wal_autocheckpoint` is 0), nor as the last connection closes; and the file `-wal` is never cut or
    /// removed. `wal_size` means nothing. Where agents have files of their own, that process must look after each of
    /// them.
    ///
    /// If nobody runs them, the log grows without a bound. `emergency` bounds that, in bytes (for pages of the usual
    /// 4,096); 65,536 to 1,073,741,824, or `None`: never. When the log has become so long, the pool copies what it
    /// can into the database (a `PASSIVE` checkpoint, for which nobody waits), counts it in
    /// [`Stats::emergency_checkpoints`](crate::Stats::emergency_checkpoints), and reports it as a `tracing` event. For
    /// commits of leases that do not use the queue, and for agents' own files, that is so at the next power of two at
    /// the latest. If the other process is not there at that moment, the log may then begin anew before it has been
    /// read, and Litestream has to copy the whole database again; so choose a length that the log reaches only when
    /// something is wrong.
    ///
    /// Not together with: [`exclusive_locking`](Builder::exclusive_locking), [`Database::memory`], and the pragmas
    /// `wal_autocheckpoint` and `journal_size_limit`, all of which `build` refuses; nor with [`Pool::vacuum`] and
    /// [`Agent::vacuum`](crate::Agent::vacuum), which then fail. Within leases and `on_open`, a pragma that would bring SQLite's own
    /// checkpoints back is refused as "not authorized". A `PRAGMA wal_checkpoint` of your own is not: nothing else in
    /// the pool runs one. A [`busy_timeout`](Builder::busy_timeout) below 5 seconds is reported as an event,
    /// as the other process takes the lock to write now and then.
    ///
    /// See the guide [on backup and replication](crate::guide::backup_and_replication).
    ///
    /// Defaults to not being called: the pool runs checkpoints itself.
    pub fn external_checkpoints(mut self, emergency: Option<u32>) -> Self {
        self.settings.checkpoints = Checkpoints::External { emergency };
        self
    }

    /// A pragma that every connection gets when it is opened, after the pool's own. May be called
    /// again for others.
    ///
    /// What is decided as a file is made comes before that: `page_size`, `auto_vacuum`, `encoding`, and, first of all,
    /// SQLCipher's `key` and then its `cipher_...`, which also the connections of a [backup](crate::Agent::backup) get. On
    /// a file that is there already, the first three must say what it has.
    ///
    /// One that has no effect makes the opening fail with an [`Error::Open`] that names it: a value that SQLite does not
    /// understand, a pragma that it does not know, another `page_size` than the file's, a key where SQLite cannot encrypt.
    ///
    /// Defaults to `foreign_keys` ON, whatever SQLite was compiled with: rusqlite's bundled one has it on by itself, the
    /// one of most systems off. `.pragma("foreign_keys", false)` turns it off.
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

    /// Creates the schema, or migrates it. Runs once for each database file, within `build`, before
    /// anybody gets a connection to it; again if the file is replaced under the pool. It must change
    /// nothing if there is nothing to do (`CREATE TABLE IF NOT EXISTS`, `PRAGMA user_version`), and may
    /// not lease from the pool. A transaction it leaves open is committed.
    ///
    /// With [`Database::per_agent`] it runs once for each agent's file and process, when the agent is first lent a
    /// connection; nobody else waits for it. If it fails, so does that lease, and a file that was made for it is
    /// removed. The pool remembers at least the last 32,768 files that were set up.
    ///
    /// Its connection has what `on_connect` and `on_open` register. Pragmas it sets, and whatever else it does to its
    /// connection, do not stay. It may ATTACH no more than a lease, so `VACUUM` fails in it unless
    /// [`attach_limit`](Builder::attach_limit) allows one; see [`Pool::vacuum`].
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

    /// Runs on every connection before anything else is done with it: before the pool's own pragmas, and before the
    /// first look into the file. For what must come first: SQLCipher's key, `page_size` and `encoding` of a new file,
    /// functions and collations that the schema needs.
    ///
    /// Every connection means: those that are lent, that of [`setup`](Builder::setup), both of a
    /// [backup](crate::Agent::backup), and the one that keeps a database in memory. The order on each is `on_connect`, the
    /// pool's pragmas, those of [`pragma`](Builder::pragma), [`on_open`](Builder::on_open), and at last `setup` or the
    /// first lease. What it registers is there for all agents, as with `on_open`. It may run on any thread, outside the pool's
    /// locks, and may not lease from the pool.
    ///
    /// ATTACH is [limited](Builder::attach_limit) already. Hooks and busy handlers set here do not stay: set them in
    /// `on_open`.
    ///
    /// Whatever error it returns is the source of an [`Error::Open`]. A panic becomes [`Error::Panicked`] there.
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

    /// Runs on every connection that is to be lent when it is opened, after the pool's pragmas, for what all agents are
    /// to find on it: SQL functions, collations, attached databases. It may run on any thread, outside the pool's locks.
    ///
    /// It also runs on the connection of [`setup`](Builder::setup), before that. If it fails there, because it needs a
    /// table that `setup` is about to make, that does not count: it runs again on the next connection. It never runs
    /// twice on one.
    ///
    /// Temporary tables made here are read at each change of agents, to see that they are as they were: keep them small.
    ///
    /// Hooks (commit, rollback, update, progress, authorizer) set here cannot be restored after an
    /// agent had the connection: a pool whose `on_open` sets one opens a new connection at each change
    /// of agents. Trace hooks and busy handlers set here last until the first such change. A WAL hook set here is never
    /// called: the pool sets its own in its place, as it runs checkpoints by what that notes, and reports so as a
    /// `tracing` event, once. (A lease may set one for itself; the pool then looks at the length of the file, as
    /// the lease is used and when it ends.)
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

    /// Checks the options, creates the database if there is none, sets it up, and opens one connection
    /// to it, so that what can fail fails now.
    ///
    /// # Errors
    /// - [`Error::Config`] for an option out of its range, or one that the database cannot have.
    /// - [`Error::Budget`] if the pool could need more descriptors than it may use.
    /// - [`Error::NoThread`] if the pool's threads cannot be started.
    /// - [`Error::AlreadyPooled`] if another pool of this process has the file.
    /// - [`Error::Open`], [`Error::Setup`] with the cause, for everything else.
    ///
    /// # Blocking
    /// For as long as `setup` takes, and for `busy_timeout` if other processes hold locks.
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

    /// Every range, and what SQLite would silently misread.
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
                expected: "false, as connections to one database have to share it".to_owned(),
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
                expected: "none, as others write the file of Database::read_only".to_owned(),
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

    /// What does not go with checkpoints that another process runs.
    fn check_external(&self, emergency: Option<u32>) -> Result<(), Error> {
        const OPTION: &str = "external_checkpoints";
        let settings = &self.settings;
        if let Some(bytes) = emergency {
            within(OPTION, bytes, &WAL_SIZE)?;
        }
        let expected = if matches!(self.database.0, Kind::Memory) {
            "a database in a file: one in memory has no log".to_owned()
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
            "another pragma: it is the whole process's".to_owned()
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
        "a path in UTF-8, as SQLite's are"
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

    /// The first without the fault, and the last with it.
    const VERSIONS: [(i32, &str); 2] = [(3_051_003, "passive"), (3_051_002, "restart")];

    fn builder(folder: &tempfile::TempDir, version: i32) -> Builder {
        let mut builder = Pool::builder(Database::file(folder.path().join("v.db")));
        builder.settings.sqlite_version = version;
        builder
    }

    /// What checkpoints have begun, on any connection.
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
                // One more may have been at work as they were counted.
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
