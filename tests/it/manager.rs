//! A manager of r2d2_sqlite's opens each connection to the file, with its flags and its `with_init`; and what no pool can
//! have is refused.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use leasepool::rusqlite::{self, Connection, ErrorCode, OpenFlags, TransactionBehavior};
use leasepool::{Builder, Database, Error, Pool};
use r2d2_sqlite::SqliteConnectionManager;

use crate::common::*;

const WRITING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE;

fn builder(manager: SqliteConnectionManager) -> Builder {
    Pool::builder(Database::manager(manager)).max_connections(3)
}

fn create(path: &Path) {
    let conn = Connection::open(path).unwrap();
    conn.execute_batch("CREATE TABLE t (x)").unwrap();
}

/// What `PRAGMA cache_size` says: -8000 where `with_init` has run.
fn cache_size(conn: &Connection) -> rusqlite::Result<i64> {
    conn.pragma_query_value(None, "cache_size", |row| row.get(0))
}

fn code(error: &Error) -> Option<ErrorCode> {
    let Error::Open { source, .. } = error else {
        panic!("{error:?}");
    };
    let source: &rusqlite::Error = source.downcast_ref().unwrap();
    source.sqlite_error_code()
}

#[test]
fn with_init_runs_first_on_each_connection() {
    let fixture = Fixture::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let manager = SqliteConnectionManager::file(&fixture.path).with_init(move |conn| {
        counted.fetch_add(1, Relaxed);
        conn.execute_batch("PRAGMA cache_size = -8000")
    });
    let seen = Arc::new(Mutex::new(Vec::new()));
    let see = |name: &'static str| {
        let seen = Arc::clone(&seen);
        move |conn: &mut Connection| -> rusqlite::Result<()> {
            seen.lock().unwrap().push((name, cache_size(conn)?));
            Ok(())
        }
    };
    let set_up = see("setup");
    let pool = builder(manager)
        .on_connect(see("on_connect"))
        .on_open(see("on_open"))
        .setup(move |conn| {
            set_up(conn)?;
            conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)")
        })
        .build()
        .unwrap();
    // One that tells the path, that of `setup`, and the first that could be lent.
    assert_eq!(runs.load(Relaxed), 3);
    let leases: Vec<_> = (0..3)
        .map(|i| pool.lease(format!("a{i}")).unwrap())
        .collect();
    assert_eq!(runs.load(Relaxed), 6);
    for lease in &leases {
        assert_eq!(cache_size(lease), Ok(-8000));
        insert(lease);
    }
    let seen = seen.lock().unwrap();
    for (name, times) in [("on_connect", 5), ("on_open", 5), ("setup", 1)] {
        let found = seen.iter().filter(|seen| **seen == (name, -8000));
        assert_eq!(found.count(), times, "{name}: {seen:?}");
    }
}

#[test]
fn all_of_a_pool_works() {
    let fixture = Fixture::new();
    let manager = SqliteConnectionManager::file(&fixture.path);
    let pool = builder(manager)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    assert_eq!(pool.name(), "agents.db");
    insert(&pool.lease("a").unwrap());
    pool.write("b", |tx| tx.execute("INSERT INTO t VALUES (2)", []))
        .unwrap();
    let found = pool.read("c", |tx| Ok(count(tx)));
    assert_eq!(found.unwrap(), 2);
    let copy = fixture.in_folder("copy.db");
    pool.backup(&copy).unwrap();
    assert_eq!(count(&Connection::open(copy).unwrap()), 2);
    pool.vacuum().unwrap();
    assert_whole(&pool);
}

#[test]
fn the_pools_own_pragmas_come_after_with_init() {
    let fixture = Fixture::new();
    let manager = SqliteConnectionManager::file(&fixture.path).with_init(|conn| {
        conn.execute_batch(
            "PRAGMA journal_mode = DELETE; PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF;
             PRAGMA busy_timeout = 1; BEGIN; CREATE TABLE IF NOT EXISTS of_init (x)",
        )
    });
    let pool = builder(manager).max_connections(1).build().unwrap();
    let lease = pool.lease("a").unwrap();
    for (pragma, expected) in [
        ("journal_mode", "wal"),
        ("synchronous", "2"),
        ("foreign_keys", "1"),
        ("busy_timeout", "5000"),
    ] {
        let found = lease.pragma_query_value(None, pragma, |row| {
            Ok(match row.get_ref(0)? {
                rusqlite::types::ValueRef::Integer(number) => number.to_string(),
                text => text.as_str()?.to_owned(),
            })
        });
        assert_eq!(found.as_deref(), Ok(expected), "{pragma}");
    }
    // Its transaction was committed.
    assert!(lease.is_autocommit());
    lease.execute_batch("SELECT * FROM of_init").unwrap();
}

/// What `with_init` says about transactions is what an agent finds that comes after one that changed it.
#[test]
fn the_behavior_of_transactions_is_that_of_with_init() {
    let fixture = Fixture::new();
    create(&fixture.path);
    let manager = SqliteConnectionManager::file(&fixture.path).with_init(|conn| {
        conn.set_transaction_behavior(TransactionBehavior::Immediate);
        Ok(())
    });
    let pool = builder(manager).max_connections(1).build().unwrap();
    let other = Connection::open(&fixture.path).unwrap();
    other.busy_timeout(std::time::Duration::ZERO).unwrap();
    for agent in ["a", "b"] {
        let mut lease = pool.lease(agent).unwrap();
        let tx = lease.transaction().unwrap();
        let locked = other.execute_batch("BEGIN IMMEDIATE").unwrap_err();
        assert_eq!(locked.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
        drop(tx);
        lease.set_transaction_behavior(TransactionBehavior::Deferred);
    }
}

#[test]
fn flags_are_the_managers() {
    let fixture = Fixture::new();
    let manager = |flags| SqliteConnectionManager::file(&fixture.path).with_flags(flags);
    // No SQLITE_OPEN_CREATE.
    let error = builder(manager(WRITING)).build().unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::CannotOpen), "{error:?}");
    assert!(!fixture.path.exists());
    create(&fixture.path);
    let pool = builder(manager(WRITING)).build().unwrap();
    insert(&pool.lease("a").unwrap());
    pool.close().unwrap();
    // No links.
    let link = fixture.in_folder("link.db");
    std::os::unix::fs::symlink(&fixture.path, &link).unwrap();
    let no_follow =
        SqliteConnectionManager::file(&link).with_flags(WRITING | OpenFlags::SQLITE_OPEN_NOFOLLOW);
    let error = builder(no_follow).build().unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::CannotOpen), "{error:?}");
    let follow = SqliteConnectionManager::file(&link).with_flags(WRITING);
    let pool = builder(follow).build().unwrap();
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
    assert_eq!(fixture.descriptors().db, 1);
}

#[test]
fn a_manager_that_only_reads() {
    let fixture = Fixture::new();
    create(&fixture.path);
    let reading = || {
        let manager = SqliteConnectionManager::file(&fixture.path);
        builder(manager.with_flags(OpenFlags::SQLITE_OPEN_READ_ONLY))
    };
    assert_eq!(refused(reading()).0, "database");
    let set_up = reading()
        .reads_only(true)
        .setup(|_| Ok::<_, leasepool::Error>(()));
    assert_eq!(refused(set_up).0, "setup");
    let pool = reading().reads_only(true).build().unwrap();
    let lease = pool.lease("a").unwrap();
    assert_eq!(count(&lease), 0);
    assert_eq!(lease.is_readonly("main"), Ok(true));
    assert!(lease.execute("INSERT INTO t VALUES (1)", []).is_err());
    drop(lease);
    pool.close().unwrap();
    // One that may write, in a pool that only reads.
    let manager = SqliteConnectionManager::file(&fixture.path);
    let pool = builder(manager).reads_only(true).build().unwrap();
    let lease = pool.lease("a").unwrap();
    assert_eq!(lease.is_readonly("main"), Ok(false));
    assert!(lease.execute("INSERT INTO t VALUES (1)", []).is_err());
}

fn refused(builder: Builder) -> (&'static str, String) {
    match builder.build() {
        Err(Error::Config { option, value, .. }) => (option, value),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let fixture = Fixture::new();
    let path = fixture.path.display();
    for manager in [
        SqliteConnectionManager::memory(),
        SqliteConnectionManager::memory().with_flags(WRITING | OpenFlags::SQLITE_OPEN_CREATE),
        SqliteConnectionManager::file(""),
        SqliteConnectionManager::file(":memory:"),
        SqliteConnectionManager::file(format!("file:{path}")),
        SqliteConnectionManager::file("file:/manager?vfs=memdb"),
        SqliteConnectionManager::file(format!("file:{path}?cache=shared")),
        SqliteConnectionManager::file(&fixture.path).with_flags(OpenFlags::empty()),
        SqliteConnectionManager::file(&fixture.path)
            .with_flags(WRITING | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_MEMORY),
    ] {
        let shown = format!("{manager:?}");
        assert_eq!(refused(builder(manager)).0, "database", "{shown}");
        assert!(!fixture.path.exists(), "{shown}");
    }
    let of_folder = builder(SqliteConnectionManager::file(fixture.folder.path()));
    assert!(matches!(of_folder.build(), Err(Error::Open { .. })));
    let in_none = builder(SqliteConnectionManager::file(
        fixture.in_folder("none/a.db"),
    ));
    assert!(matches!(in_none.build(), Err(Error::Open { .. })));
}

/// A manager whose `with_init` fails from some run on.
fn failing(
    fixture: &Fixture,
    fails: &Arc<AtomicBool>,
    fail: fn() -> rusqlite::Result<()>,
) -> SqliteConnectionManager {
    let fails = Arc::clone(fails);
    SqliteConnectionManager::file(&fixture.path).with_init(move |_| match fails.load(Relaxed) {
        true => fail(),
        false => Ok(()),
    })
}

/// The error is checked at `build`, where nothing stays open, and at a lease, which costs the pool no connection.
fn fails_at_build_and_at_a_lease(fail: fn() -> rusqlite::Result<()>, check: impl Fn(Error)) {
    let fixture = Fixture::new();
    let fails = Arc::new(AtomicBool::new(true));
    check(
        builder(failing(&fixture, &fails, fail))
            .build()
            .unwrap_err(),
    );
    assert_eq!(fixture.descriptors().all(), 0);
    fails.store(false, Relaxed);
    let pool = builder(failing(&fixture, &fails, fail)).build().unwrap();
    let lease = pool.lease("a").unwrap();
    fails.store(true, Relaxed);
    check(pool.lease("b").unwrap_err());
    fails.store(false, Relaxed);
    drop(lease);
    assert_whole(&pool);
}

#[test]
fn an_error_of_with_init_is_the_cause() {
    let fail = || {
        Err(rusqlite::Error::InvalidParameterName(
            "of with_init".to_owned(),
        ))
    };
    let check = |error: Error| {
        let Error::Open { source, .. } = &error else {
            panic!("{error:?}");
        };
        let source = source.downcast_ref::<rusqlite::Error>();
        let expected = rusqlite::Error::InvalidParameterName("of with_init".to_owned());
        assert_eq!(source, Some(&expected));
    };
    fails_at_build_and_at_a_lease(fail, check);
}

#[test]
fn a_panic_in_with_init_is_the_cause() {
    let fail = || panic!("with_init gives up");
    let check = |error: Error| {
        let Error::Open { source, .. } = &error else {
            panic!("{error:?}");
        };
        match source.downcast_ref() {
            Some(Error::Panicked {
                callback, message, ..
            }) => {
                assert_eq!(*callback, "with_init");
                assert_eq!(message, "with_init gives up");
            }
            other => panic!("{other:?}"),
        }
    };
    fails_at_build_and_at_a_lease(fail, check);
}

#[test]
fn the_ceiling_holds() {
    let fixture = Fixture::new();
    let most = Arc::new(Mutex::new(Descriptors::default()));
    let (path, seen) = (fixture.path.clone(), Arc::clone(&most));
    let manager = SqliteConnectionManager::file(&fixture.path).with_init(move |conn| {
        conn.execute_batch("SELECT * FROM sqlite_master")?;
        let mut most = seen.lock().unwrap();
        *most = most.max(Descriptors::on(&path));
        Ok(())
    });
    let pool = builder(manager)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    for _ in 0..3 {
        let leases: Vec<_> = (0..3)
            .map(|i| pool.lease(format!("a{i}")).unwrap())
            .collect();
        leases.iter().for_each(|lease| insert(lease));
        let found = fixture.descriptors();
        assert_eq!((found.db, found.wal, found.shm), (3, 3, 1), "{found:?}");
        for lease in leases {
            leasepool::Lease::discard(lease);
        }
    }
    let most = *most.lock().unwrap();
    assert!(most.all() <= pool.fd_ceiling(), "{most:?}");
    // Those that are opened one after the other find each other's descriptors.
    assert_eq!((most.db, most.shm), (3, 1), "{most:?}");
}

#[test]
fn what_with_init_attaches_counts() {
    for limit in [0, 1] {
        let fixture = Fixture::new();
        let attached = fixture.in_folder("attached.db");
        create(&attached);
        let manager = SqliteConnectionManager::file(&fixture.path).with_init(move |conn| {
            conn.execute("ATTACH ?1 AS other", [attached.to_str()])?;
            Ok(())
        });
        let built = builder(manager).attach_limit(limit).build();
        match limit {
            0 => assert!(matches!(built, Err(Error::Open { .. })), "{built:?}"),
            _ => assert_eq!(
                built.unwrap().lease("a").unwrap().query_row(
                    "SELECT count(*) FROM other.t",
                    [],
                    |row| row.get(0)
                ),
                Ok(0)
            ),
        }
    }
}

#[test]
fn one_pool_has_a_file() {
    let fixture = Fixture::new();
    let managed = || builder(SqliteConnectionManager::file(&fixture.path));
    let link = fixture.in_folder("link.db");
    std::os::unix::fs::symlink(&fixture.path, &link).unwrap();
    let plain = || fixture.builder(3);
    for (first, others) in [
        (
            managed(),
            [
                managed(),
                plain(),
                builder(SqliteConnectionManager::file(&link)),
            ],
        ),
        (
            plain(),
            [
                managed(),
                plain(),
                builder(SqliteConnectionManager::file(&link)),
            ],
        ),
    ] {
        let pool = first
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
            .build()
            .unwrap();
        let lease = pool.lease("a").unwrap();
        for other in others {
            let error = other.build().unwrap_err();
            assert!(matches!(error, Error::AlreadyPooled { .. }), "{error:?}");
        }
        insert(&lease);
        let found = fixture.descriptors().all();
        assert!(found <= pool.fd_ceiling(), "{found}");
        drop(lease);
        assert_whole(&pool);
        pool.close().unwrap();
        assert_eq!(fixture.descriptors().all(), 0);
    }
}

#[test]
fn a_relative_path_is_that_of_build() {
    in_child("manager::a_relative_path_is_that_of_build", || {
        let (here, there) = (Fixture::new(), Fixture::new());
        create(&here.path);
        create(&there.path);
        std::env::set_current_dir(here.folder.path()).unwrap();
        let manager = SqliteConnectionManager::file("agents.db").with_flags(WRITING);
        let pool = builder(manager).build().unwrap();
        let lease = pool.lease("a").unwrap();
        insert(&lease);
        std::env::set_current_dir(there.folder.path()).unwrap();
        let error = pool.lease("b").unwrap_err();
        assert!(matches!(error, Error::Open { .. }), "{error:?}");
        assert_eq!(there.descriptors().all(), 0);
        std::env::set_current_dir(here.folder.path()).unwrap();
        assert_eq!(count(&pool.lease("b").unwrap()), 1);
        drop(lease);
        assert_whole(&pool);
    });
}

#[test]
fn a_file_that_takes_its_place_is_opened_and_set_up() {
    let fixture = Fixture::new();
    let manager = SqliteConnectionManager::file(&fixture.path);
    let pool = builder(manager)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS u (x)"))
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    let next = fixture.in_folder("next.db");
    create(&next);
    for suffix in ["-wal", "-shm"] {
        let mut beside = fixture.path.clone().into_os_string();
        beside.push(suffix);
        std::fs::remove_file(beside).unwrap();
    }
    std::fs::rename(next, &fixture.path).unwrap();
    let_a_change_show();
    let lease = pool.lease("a").unwrap();
    assert_eq!(count(&lease), 0);
    lease.execute_batch("SELECT * FROM u").unwrap();
}

/// What another process is to copy stays in the log, though `with_init` reads the file in `build`, before the pool has it.
#[test]
fn an_external_checkpointer_is_left_the_log() {
    let fixture = Fixture::new();
    let conn = Connection::open(&fixture.path).unwrap();
    conn.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        .unwrap();
    conn.set_db_config(
        rusqlite::config::DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
        true,
    )
    .unwrap();
    conn.close().unwrap();
    let wal = fixture.in_folder("agents.db-wal");
    let before = std::fs::metadata(&wal).unwrap().len();
    assert!(before > 0);
    let manager = SqliteConnectionManager::file(&fixture.path)
        .with_init(|conn| conn.execute_batch("SELECT * FROM t"));
    let pool = builder(manager).external_checkpoints(None).build().unwrap();
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
    pool.close().unwrap();
    assert_eq!(std::fs::metadata(&wal).unwrap().len(), before);
}

/// Another process holds a lock that `with_init` needs, and lets go of it.
#[test]
fn a_lock_that_with_init_needs_is_waited_for() {
    let fixture = Fixture::new();
    create(&fixture.path);
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let manager = SqliteConnectionManager::file(&fixture.path).with_init(move |conn| {
        counted.fetch_add(1, Relaxed);
        conn.busy_timeout(std::time::Duration::ZERO)?;
        conn.execute_batch("PRAGMA journal_mode = WAL")
    });
    let other = Connection::open(&fixture.path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    std::thread::scope(|scope| {
        let built = scope.spawn(|| builder(manager).busy_timeout(LONG).build());
        eventually("it is tried again", || tries.load(Relaxed) > 3);
        other.execute_batch("ROLLBACK").unwrap();
        insert(&built.join().unwrap().unwrap().lease("a").unwrap());
    });
}

#[cfg(feature = "sqlcipher")]
#[test]
fn with_init_gives_the_key() {
    let fixture = Fixture::new();
    let managed = || {
        let manager = SqliteConnectionManager::file(&fixture.path)
            .with_init(|conn| conn.pragma_update(None, "key", "a long passphrase"));
        builder(manager).setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
    };
    let pool = managed().build().unwrap();
    insert(&pool.lease("a").unwrap());
    let copy = fixture.in_folder("copy.db");
    // The copy has no key.
    let error = pool.backup(&copy).unwrap_err();
    assert!(matches!(error, Error::Backup { .. }), "{error:?}");
    assert!(!copy.exists());
    pool.close().unwrap();
    let error = Pool::builder(Database::file(&fixture.path))
        .build()
        .unwrap_err();
    assert_eq!(code(&error), Some(ErrorCode::NotADatabase), "{error:?}");
    let pool = managed().on_connect(|conn| conn.pragma_update(None, "key", "a long passphrase"));
    let pool = pool.build().unwrap();
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
    pool.backup(&copy).unwrap();
    pool.close().unwrap();
    let manager = SqliteConnectionManager::file(&copy)
        .with_init(|conn| conn.pragma_update(None, "key", "a long passphrase"));
    assert_eq!(
        count(&builder(manager).build().unwrap().lease("a").unwrap()),
        1
    );
}
