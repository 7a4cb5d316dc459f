//! Build: makes a pool of a builder's options, after it has checked all of them once.
//! It knows no option's documentation.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::beside::SqliteSide;
use super::builder::{Builder, SqliteOptions};
use super::common::{DEFAULT_CONNECTIONS, WAITS as BUSY, check_budget, within};
use super::{Pool, Shared, read_lock};
use crate::core::Core;
use crate::error::Error;
use crate::observe::events;
use crate::sqlite::{Access, Checkpoints, Kind, Passes, Place, Sharing, Sqlite};
use crate::write::{Limits, Writer};

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

impl Builder {
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
        let limit = self.common.check()?;
        self.check()?;
        if let Kind::ReadOnly(_) = self.own.database.0 {
            self.own.settings.access = Access::ReadOnlyFile;
        }
        let Builder { mut common, own } = self;
        let SqliteOptions {
            database,
            write_queue,
            write_group,
            settings,
        } = own;
        let sharing = database.0.sharing(settings.synchronous);
        let max_connections = match (common.max_connections, &limit) {
            (Some(n), _) => n,
            (None, Some(budget)) if sharing != Sharing::NoFile => {
                let affordable = settings.affordable(sharing, budget.available);
                affordable.unwrap_or(1)
            }
            (None, _) => DEFAULT_CONNECTIONS,
        };
        let ceiling = settings.fd_ceiling(sharing, max_connections);
        check_budget(limit, max_connections, ceiling)?;
        let version = settings.sqlite_version;
        let busy_timeout = settings.busy_timeout;
        let keeps_read_lock = settings.keep_read_lock;
        let impatient = settings.is_external() && busy_timeout < PATIENT;
        let name = common.name.take().or_else(|| database.0.name());
        let shared = !matches!(database.0, Kind::Agents(_));
        let sqlite = Sqlite::new(database, settings, max_connections)?;
        let name = name.or_else(|| sqlite.file_name()).unwrap_or_default();
        if sharing != Sharing::NoFile && Passes::of(version) == Passes::One {
            events::old_sqlite(&name, version);
        }
        if impatient {
            events::short_busy_timeout(&name, busy_timeout);
        }
        let (members, time) = write_group;
        let threads = match shared {
            // One leads the queue, one runs checkpoints.
            true => 2,
            false => max_connections.clamp(2, WRITERS),
        };
        let limits = Limits {
            queue: write_queue,
            group_members: members,
            group_time: time,
        };
        let core = Core::new(sqlite, common.options(name, max_connections))?;
        let writer = Writer::new(Arc::clone(&core), limits, threads);
        let read_lock = keeps_read_lock.then(|| read_lock::start(&core));
        let beside = SqliteSide {
            _read_lock: read_lock.transpose()?,
            writer,
        };
        Ok(Pool::new(Shared::start(core, beside)?))
    }

    /// Checks every range, and every value that SQLite would silently misread.
    fn check(&self) -> Result<(), Error> {
        let SqliteOptions {
            database,
            write_queue,
            write_group,
            settings,
        } = &self.own;
        within("busy_timeout", settings.busy_timeout, &BUSY)?;
        within("statement_cache", settings.statement_cache, &STATEMENTS)?;
        within("attach_limit", settings.attach_limit, &ATTACHED)?;
        within("mmap_size", settings.mmap_size, &MMAP)?;
        within("wal_size", settings.wal_size, &WAL_SIZE)?;
        within("write_queue", *write_queue, &QUEUE)?;
        within("write_group", write_group.0, &GROUP_MEMBERS)?;
        within("write_group", write_group.1, &GROUP_TIME)?;
        for (name, _) in &settings.pragmas {
            check_pragma(name)?;
        }
        if settings.exclusive_locking && !matches!(database.0, Kind::Agents(_)) {
            let expected = "false, because all connections share one database";
            return Err(switched_on("exclusive_locking", expected));
        }
        if settings.keep_read_lock {
            self.check_read_lock()?;
        }
        self.own.database.check_hosting()?;
        if let Checkpoints::External { emergency } = settings.checkpoints {
            self.check_external(emergency)?;
        }
        if let Kind::ReadOnly(_) = database.0
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
            &database.0
        {
            check_path(path)?;
        }
        Ok(())
    }

    /// Options that do not go together with `keep_read_lock`.
    fn check_read_lock(&self) -> Result<(), Error> {
        let own = &self.own;
        let mut pragmas = own.settings.pragmas.iter().map(|(name, _)| name);
        let expected = if !matches!(own.database.0, Kind::File(_)) {
            "false, because only connections to one Database::file share a lock"
        } else if pragmas.any(|name| name.eq_ignore_ascii_case("wal_autocheckpoint")) {
            "a pool without the pragma wal_autocheckpoint: the lock is in the way of those checkpoints"
        } else {
            return Ok(());
        };
        Err(switched_on("keep_read_lock", expected))
    }

    /// Options that do not go together with checkpoints of another process.
    fn check_external(&self, emergency: Option<u32>) -> Result<(), Error> {
        const OPTION: &str = "external_checkpoints";
        let settings = &self.own.settings;
        if let Some(bytes) = emergency {
            within(OPTION, bytes, &WAL_SIZE)?;
        }
        let expected = if matches!(self.own.database.0, Kind::Memory) {
            "a database in a file, because one in memory has no log".to_owned()
        } else if settings.exclusive_locking {
            "a pool without exclusive_locking, which keeps the other process from the files"
                .to_owned()
        } else if settings.keep_read_lock {
            "a pool without keep_read_lock, which delays checkpoints of other processes".to_owned()
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

/// The error for an option that is on where it must not be.
fn switched_on(option: &'static str, expected: &str) -> Error {
    Error::Config {
        option,
        value: "true".to_owned(),
        expected: expected.to_owned(),
    }
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
    use crate::sqlite::{Database, Synchronous};

    /// The first version without the fault, and the last with it.
    const VERSIONS: [(i32, &str); 2] = [(3_051_003, "passive"), (3_051_002, "restart")];

    fn builder(folder: &tempfile::TempDir, version: i32) -> Builder {
        let mut builder = Pool::builder(Database::file(folder.path().join("v.db")));
        builder.own.settings.sqlite_version = version;
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

    /// Held by each test in which the event is made: tracing can lose an event that two threads make for the first time
    /// while a subscriber is being installed.
    static TELLING: Mutex<()> = Mutex::new(());

    /// C23.
    #[test]
    fn an_old_sqlite_gets_one_pass_for_each_checkpoint() {
        let _telling = TELLING.lock();
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
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
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

        let _telling = TELLING.lock();
        for (version, _) in VERSIONS {
            let folder = tempfile::tempdir().unwrap();
            let log = Log::default();
            tracing::subscriber::with_default(log.clone(), || {
                drop(builder(&folder, version).name("old").build().unwrap());
                let mut memory = Pool::builder(Database::memory());
                memory.own.settings.sqlite_version = version;
                drop(memory.build().unwrap());
            });
            let told = log.0.lock().unwrap();
            let lines = told.matches("SQLite before 3.51.3").count();
            assert_eq!(lines, usize::from(version < 3_051_003), "{told}");
            assert_eq!(told.contains("3.51.2"), version < 3_051_003, "{told}");
        }
    }
}
