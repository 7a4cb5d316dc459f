//! Every option is checked in `build`, with an error that names option, value and range; and P16: one
//! pool on a file.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use leasepool::{Builder, Database, Error, Pool, Synchronous};
use proptest::prelude::*;

use crate::common::*;

fn config_error(builder: Builder) -> (&'static str, String) {
    let error = builder.build().unwrap_err();
    let text = error.to_string();
    match error {
        Error::Config { option, .. } => (option, text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_option_out_of_range_is_named() {
    let memory = || Pool::builder(Database::memory());
    let day = Duration::from_secs(24 * 60 * 60);
    let (option, text) = config_error(memory().max_connections(0));
    assert_eq!(option, "max_connections");
    assert_eq!(text, "max_connections = 0: expected 1 to 10000");
    let cases = [
        ("max_connections", memory().max_connections(usize::MAX)),
        ("idle_timeout", memory().idle_timeout(Duration::ZERO)),
        ("idle_timeout", memory().idle_timeout(Duration::MAX)),
        ("max_lifetime", memory().max_lifetime(Duration::ZERO)),
        ("overdue_after", memory().overdue_after(Duration::MAX)),
        ("slow_hold", memory().slow_hold(Duration::ZERO)),
        ("max_hold", memory().max_hold(Duration::ZERO)),
        ("max_hold", memory().max_hold(Duration::MAX)),
        ("lease_timeout", memory().lease_timeout(day * 2)),
        ("busy_timeout", memory().busy_timeout(Duration::MAX)),
        ("statement_cache", memory().statement_cache(10_001)),
        ("attach_limit", memory().attach_limit(11)),
        ("mmap_size", memory().mmap_size(u64::MAX)),
        ("pragma", memory().pragma("journal_mode", "delete")),
        ("pragma", memory().pragma("x; DROP TABLE t", 1)),
        ("pragma", memory().pragma("", 1)),
        ("database", Pool::builder(Database::file(""))),
        ("database", Pool::builder(Database::file(":memory:"))),
        (
            "database",
            Pool::builder(Database::file("file::memory:?cache=shared")),
        ),
        ("database", Pool::builder(Database::file("a\0b"))),
    ];
    for (expected, builder) in cases {
        assert_eq!(config_error(builder).0, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any setting either builds a pool that works, or is an error; none panics.
    #[test]
    fn no_setting_panics(
        connections in prop_oneof![0_usize..20, any::<usize>()],
        budget in prop::option::of(prop_oneof![0_usize..100, any::<usize>()]),
        cached in any::<usize>(),
        idle in prop::option::of(any::<Duration>()),
        lifetime in prop::option::of(any::<Duration>()),
        overdue in prop::option::of(any::<Duration>()),
        slow in prop::option::of(any::<Duration>()),
        hold in prop::option::of(any::<Duration>()),
        lease in any::<Duration>(),
        busy in any::<Duration>(),
        statements in any::<usize>(),
        attach in 0_usize..20,
        mmap in any::<u64>(),
        pragma in "[a-z_]{0,12}",
    ) {
        let mut builder = Pool::builder(Database::memory())
            .max_connections(connections)
            .cached_agents(cached)
            .idle_timeout(idle)
            .max_lifetime(lifetime)
            .overdue_after(overdue)
            .slow_hold(slow)
            .max_hold(hold)
            .lease_timeout(lease)
            .busy_timeout(busy)
            .statement_cache(statements)
            .attach_limit(attach)
            .mmap_size(mmap)
            .pragma(pragma, 1);
        if let Some(budget) = budget {
            builder = builder.fd_budget(budget);
        }
        if let Ok(pool) = builder.build() {
            drop(pool.try_lease("a").unwrap());
        }
    }
}

#[test]
fn the_options_reach_the_connections() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .synchronous(Synchronous::Normal)
        .mmap_size(1 << 20)
        .busy_timeout(Duration::from_millis(123))
        .pragma("cache_size", -4_000)
        .build()
        .unwrap();
    let lease = pool.lease("a").unwrap();
    let pragma = |name| {
        lease
            .pragma_query_value(None, name, |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(pragma("synchronous"), 1);
    assert_eq!(pragma("mmap_size"), 1 << 20);
    assert_eq!(pragma("busy_timeout"), 123);
    assert_eq!(pragma("cache_size"), -4_000);
    assert_eq!(pragma("temp_store"), 2);
    let mode: String = lease
        .pragma_query_value(None, "journal_mode", |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
}

#[test]
fn max_lifetime_is_obeyed_at_the_next_lease() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .max_lifetime(Duration::from_millis(30))
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    drop(pool.lease("a").unwrap());
    assert_eq!(pool.stats().opens, 1);
    std::thread::sleep(Duration::from_millis(40));
    drop(pool.lease("a").unwrap());
    let stats = pool.stats();
    assert_eq!((stats.opens, stats.discarded_by_age, stats.open), (2, 1, 1));
}

#[test]
fn a_descriptor_budget_decides_the_size() {
    let fixture = Fixture::new();
    let build = |budget: usize| {
        Pool::builder(Database::file(&fixture.path))
            .fd_budget(budget)
            .build()
    };
    let pool = build(22).unwrap();
    assert!(pool.fd_ceiling() <= 22);
    assert_eq!(pool.stats().max_connections, 8);
    drop(pool);
    let Err(Error::Budget {
        ceiling,
        available: 4,
        ..
    }) = build(4)
    else {
        panic!("a pool of nothing");
    };
    assert_eq!(ceiling, 7);
    let error = Pool::builder(Database::file(&fixture.path))
        .max_connections(100)
        .fd_budget(20)
        .build()
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Budget {
            max_connections: 100,
            ..
        }
    ));
}

#[test]
fn the_process_limit_is_checked_and_left_alone() {
    in_child(
        "options::the_process_limit_is_checked_and_left_alone",
        || {
            let fixture = Fixture::new();
            let limit = open_descriptors() + 22;
            limit_descriptors(limit);
            let error = fixture.builder(20).build().unwrap_err();
            let Error::Budget {
                ceiling: 45,
                available: 22,
                ..
            } = error
            else {
                panic!("{error:?}");
            };
            assert_whole(&fixture.pool(8));
            let now = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
            assert_eq!(now, Some(limit as u64));
        },
    );
}

#[test]
fn attach_and_vacuum() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("a").unwrap();
    assert!(lease.execute_batch("ATTACH ':memory:' AS other").is_err());
    assert!(lease.execute_batch("VACUUM").is_err());
    drop(lease);
    pool.vacuum().unwrap();
    let lease = pool.lease("a").unwrap();
    assert!(lease.execute_batch("ATTACH ':memory:' AS other").is_err());
    drop((lease, pool));

    let pool = fixture.builder(2).attach_limit(1).build().unwrap();
    assert_eq!(pool.fd_ceiling(), 2 * 2 + 1 + 2 * 3 + 4);
    let lease = pool.lease("a").unwrap();
    lease.execute_batch("ATTACH ':memory:' AS other").unwrap();
    assert!(lease.execute_batch("ATTACH ':memory:' AS another").is_err());
}

#[test]
fn one_pool_on_a_file_whatever_its_name() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let link = fixture.in_folder("link.db");
    let hard = fixture.in_folder("hard.db");
    let folder = fixture.in_folder("folder");
    std::os::unix::fs::symlink(&fixture.path, &link).unwrap();
    std::fs::hard_link(&fixture.path, &hard).unwrap();
    std::os::unix::fs::symlink(fixture.folder.path(), &folder).unwrap();
    let up = "../".repeat(std::env::current_dir().unwrap().components().count());
    let relative = std::path::Path::new(&up).join(fixture.path.strip_prefix("/").unwrap());
    for name in [
        &fixture.path,
        &link,
        &hard,
        &folder.join("./agents.db"),
        &relative,
    ] {
        let error = Pool::builder(Database::file(name)).build().unwrap_err();
        assert!(
            matches!(error, Error::AlreadyPooled { .. }),
            "{name:?}: {error:?}"
        );
    }
    // A clone is the way to have two.
    let clone = pool.clone();
    drop(pool);
    assert!(Pool::builder(Database::file(&link)).build().is_err());
    clone.close().unwrap();
    drop(Pool::builder(Database::file(&link)).build().unwrap());
}

/// A pool that is closed has its file until its last lease has ended. The next pool waits for that a moment.
#[test]
fn a_pool_waits_for_the_end_of_a_closed_one() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("a").unwrap();
    drop(pool);
    let error = fixture.builder(2).build().unwrap_err();
    assert!(matches!(error, Error::AlreadyPooled { .. }), "{error:?}");
    let next = std::thread::scope(|scope| {
        let next = scope.spawn(|| fixture.builder(2).build());
        drop(lease);
        next.join().unwrap()
    });
    assert_whole(&next.unwrap());
}

#[test]
fn a_file_not_yet_there_is_claimed_too() {
    let fixture = Fixture::new();
    let link = fixture.in_folder("link.db");
    std::os::unix::fs::symlink("agents.db", &link).unwrap();
    let pool = Pool::builder(Database::file(&link)).build().unwrap();
    assert!(fixture.path.exists());
    assert!(matches!(
        fixture.builder(1).build(),
        Err(Error::AlreadyPooled { .. })
    ));
    drop(pool);
    drop(fixture.pool(1));
}

/// It ran again at the first lease: the look at a file that the pool had just created took no note of
/// which file that was, so that the next look saw another one.
#[test]
fn setup_runs_once_for_a_file_also_for_a_new_one() {
    let fixture = Fixture::new();
    for runs in [1, 2] {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let pool = Pool::builder(Database::file(&fixture.path))
            .max_connections(3)
            .setup(move |conn| {
                counted.fetch_add(1, SeqCst);
                conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)")
            })
            .build()
            .unwrap();
        let leases = ["a", "b", "c"].map(|agent| pool.lease(agent).unwrap());
        for lease in &leases {
            lease.execute("INSERT INTO t VALUES (1)", ()).unwrap();
        }
        drop(leases);
        // Longer than a look is trusted.
        std::thread::sleep(Duration::from_millis(2));
        drop(pool.lease("d").unwrap());
        assert_eq!(count.load(SeqCst), 1, "build {runs}");
        assert_eq!(pool.stats().discarded_by_file, 0);
        pool.close().unwrap();
    }
}

mod pragmas {
    use super::*;

    in_both_modes!(
        a_pragma_that_has_no_effect_is_told,
        a_pragma_that_has_one_is_taken,
        what_a_new_file_has_is_decided_first,
        another_page_size_than_the_files_is_refused,
        pragmas_that_write_do_so_once,
        a_key_is_refused_where_sqlite_cannot_encrypt,
        foreign_keys_are_on_unless_told_otherwise,
    );

    fn open(builder: Builder) -> Result<Pool, Error> {
        let pool = builder.build()?;
        drop(pool.lease("a")?);
        Ok(pool)
    }

    /// The builder of each kind of database.
    fn builders(mode: Mode) -> [(Fixture, Builder); 2] {
        let of = |database: Database| {
            Pool::builder(database)
                .max_connections(2)
                .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        };
        let (file, memory) = (mode.fixture(), mode.fixture());
        let builder = of(mode.database(&file.path));
        [(file, builder), (memory, of(Database::memory()))]
    }

    fn assert_told(built: Result<Pool, Error>, name: &str) {
        let Err(Error::Open { source, .. }) = built else {
            panic!("{name}: {built:?}");
        };
        let text = source.to_string();
        assert!(text.contains(name) && text.contains("no effect"), "{text}");
    }

    /// C15: a value that SQLite does not understand, or a name that it does not know.
    fn a_pragma_that_has_no_effect_is_told(mode: Mode) {
        for (name, value) in [
            ("foreign_keys", "enabled"),
            ("foreign_keys", ""),
            ("foreign_key", "on"),
            ("recursive_triggers", "sure"),
            ("page_size", "1000"),
            ("auto_vacuum", "sometimes"),
            ("encoding", "utf"),
            ("secure_delete", "slow"),
        ] {
            for (_fixture, builder) in builders(mode) {
                let built = open(builder.pragma(name, value.to_owned()));
                match &built {
                    // SQLite has words of its own for this one.
                    Err(Error::Open { source, .. }) if name == "encoding" => {
                        assert!(source.to_string().contains("encoding"), "{source}");
                    }
                    _ => assert_told(built, name),
                }
            }
        }
    }

    fn a_pragma_that_has_one_is_taken(mode: Mode) {
        for (name, value) in [
            ("foreign_keys", "on"),
            ("foreign_keys", "YES"),
            ("foreign_keys", "0"),
            ("secure_delete", "fast"),
            ("cache_size", "-4000"),
            ("cache_spill", "on"),
            ("cache_spill", "off"),
            ("case_sensitive_like", "on"),
            ("cell_size_check", "true"),
            ("encoding", "utf-8"),
            ("encoding", "UTF16"),
            ("wal_autocheckpoint", "-1"),
            ("analysis_limit", "100"),
            ("optimize", "0x10002"),
        ] {
            for (_fixture, builder) in builders(mode) {
                let built = open(builder.pragma(name, value.to_owned()));
                assert!(built.is_ok(), "{name} = {value}: {built:?}");
            }
        }
    }

    /// C14: in whichever order they are given.
    fn what_a_new_file_has_is_decided_first(mode: Mode) {
        for (fixture, builder) in builders(mode) {
            let builder = builder
                .pragma("cache_size", 100)
                .pragma("auto_vacuum", "INCREMENTAL")
                .pragma("page_size", 8192)
                .pragma("encoding", "UTF-16be");
            let pool = open(builder).unwrap();
            let lease = pool.lease("a").unwrap();
            let number = |name| {
                let found = lease.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
                found.unwrap()
            };
            assert_eq!((number("page_size"), number("auto_vacuum")), (8192, 2));
            let encoding = lease.pragma_query_value(None, "encoding", |row| row.get(0));
            assert_eq!(encoding, Ok("UTF-16be".to_owned()));
            drop((lease, pool));
            if !fixture.path.exists() {
                continue;
            }
            // The file has them now: the same are fine, and so is none.
            let again = fixture
                .builder(1)
                .pragma("page_size", 8192)
                .pragma("auto_vacuum", 2)
                .pragma("encoding", "utf-16");
            drop(open(again).unwrap());
            drop(open(fixture.builder(1)).unwrap());
        }
    }

    fn another_page_size_than_the_files_is_refused(mode: Mode) {
        let fixture = mode.fixture();
        drop(open(fixture.builder(1)).unwrap());
        for (name, value) in [
            ("page_size", "8192"),
            ("auto_vacuum", "INCREMENTAL"),
            ("auto_vacuum", "FULL"),
            ("encoding", "UTF-16le"),
        ] {
            let built = open(fixture.builder(1).pragma(name, value.to_owned()));
            assert_told(built, name);
        }
        drop(open(fixture.builder(1)).unwrap());
    }

    /// One that writes takes the write lock, and a page of the log.
    fn pragmas_that_write_do_so_once(mode: Mode) {
        let fixture = mode.fixture();
        let builder = || {
            fixture
                .builder(2)
                .busy_timeout(Duration::from_millis(100))
                .pragma("auto_vacuum", "FULL")
                .pragma("application_id", 77)
                .pragma("user_version", 3)
        };
        drop(open(builder()).unwrap());
        // Another connection writes meanwhile.
        let other = leasepool::rusqlite::Connection::open(fixture.file("a")).unwrap();
        let version = "PRAGMA user_version";
        assert_eq!(other.query_row(version, [], |row| row.get(0)), Ok(3));
        // There is a log already: the pool begins one where there is none.
        let lock = "INSERT INTO t VALUES (1); BEGIN IMMEDIATE";
        other.execute_batch(lock).unwrap();
        let pool = Pool::builder(mode.database(&fixture.path))
            .busy_timeout(Duration::from_millis(100))
            .synchronous(Synchronous::Off)
            .pragma("auto_vacuum", "FULL")
            .pragma("application_id", 77)
            .pragma("user_version", 3)
            .build()
            .unwrap();
        drop(pool.lease("a").unwrap());
    }

    /// C14: or page 1 would be in plain text, and nobody the wiser.
    fn a_key_is_refused_where_sqlite_cannot_encrypt(mode: Mode) {
        let plain = leasepool::rusqlite::Connection::open_in_memory().unwrap();
        let version =
            plain.pragma_query_value(None, "cipher_version", |row| row.get::<_, String>(0));
        let can_encrypt = version.is_ok();
        for (name, value) in [("key", "rosebud"), ("cipher_page_size", "8192")] {
            for (fixture, builder) in builders(mode) {
                // SQLCipher wants a key before it does anything.
                let builder = match can_encrypt {
                    true => builder.pragma("key", "another"),
                    false => builder,
                };
                let built = open(builder.pragma(name, value));
                if can_encrypt {
                    assert!(built.is_ok(), "{built:?}");
                    continue;
                }
                assert!(!format!("{built:?}").contains("rosebud"), "{built:?}");
                assert_told(built, name);
                assert_eq!(fixture.descriptors().all(), 0);
            }
        }
    }

    /// What SQLite was compiled with does not count.
    fn foreign_keys_are_on_unless_told_otherwise(mode: Mode) {
        let schema = "CREATE TABLE IF NOT EXISTS p (id INTEGER PRIMARY KEY);
                      CREATE TABLE IF NOT EXISTS c (p REFERENCES p)";
        let orphan = "INSERT INTO c VALUES (1)";
        for off in [false, true] {
            for (_fixture, builder) in builders(mode) {
                let builder = builder.max_connections(1).setup(move |conn| {
                    conn.execute_batch(schema)?;
                    assert_eq!(conn.execute(orphan, []).is_ok(), off);
                    Ok::<_, rusqlite::Error>(())
                });
                let pool = match off {
                    false => open(builder).unwrap(),
                    true => open(builder.pragma("foreign_keys", false)).unwrap(),
                };
                for agent in ["a", "b"] {
                    let lease = pool.lease(agent).unwrap();
                    assert_eq!(lease.execute(orphan, []).is_ok(), off);
                    let other = if off { "ON" } else { "OFF" };
                    lease
                        .execute_batch(&format!("PRAGMA foreign_keys = {other}"))
                        .unwrap();
                }
                let written = pool.write("c", |tx| -> rusqlite::Result<usize> {
                    tx.execute(orphan, [])
                });
                assert_eq!(written.is_ok(), off);
            }
        }
    }
}
