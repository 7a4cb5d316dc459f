//! P5: clean or gone. Nothing of one agent is seen by another; the same agent finds what it left.

use std::time::Duration;

use leasepool::rusqlite::config::DbConfig;
use leasepool::rusqlite::hooks::{Action, Authorization};
use leasepool::rusqlite::limits::Limit;
use leasepool::rusqlite::{Connection, Result};
use leasepool::{Pool, rusqlite};

use crate::common::*;

/// Lets A do something on the only connection, and B look. Returns the pool for what follows.
fn handed_over(leave: impl Fn(&mut Connection), look: impl Fn(&Connection)) -> (Fixture, Pool) {
    let fixture = Fixture::new();
    let pool = fixture.builder(1).attach_limit(1).build().unwrap();
    for round in 0..3 {
        leave(&mut pool.lease(format!("a-{round}")).unwrap());
        look(&pool.lease(format!("b-{round}")).unwrap());
    }
    (fixture, pool)
}

/// C9, P7: what keeps others from the file ends with the lease.
#[test]
fn a_connection_that_shuts_others_out_is_not_parked() {
    for leave in [
        "PRAGMA locking_mode = EXCLUSIVE; INSERT INTO t VALUES (1)",
        "PRAGMA main.locking_mode = exclusive; BEGIN; INSERT INTO t VALUES (1)",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA journal_mode = DELETE; BEGIN IMMEDIATE; INSERT INTO t VALUES (1)",
    ] {
        let fixture = Fixture::new();
        let pool = fixture.pool(3);
        // Alone, or it could not shut anybody out.
        let lease = pool.lease("a").unwrap();
        lease.execute_batch(leave).unwrap();
        drop(lease);
        for agent in ["b", "a", "c"] {
            let begun = std::time::Instant::now();
            insert(&pool.lease(agent).unwrap());
            assert!(begun.elapsed() < Duration::from_secs(2), "{leave}");
        }
        let shell = std::process::Command::new("sqlite3")
            .arg(&fixture.path)
            .arg("PRAGMA busy_timeout = 2000; SELECT count(*) >= 3 FROM t;")
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&shell.stdout);
        assert!(found.trim().ends_with('1'), "{leave}: {shell:?}");
        assert!(pool.stats().discarded_by_lease >= 1, "{leave}");
    }
}

/// A program that has been moved here may go on saying what is so.
#[test]
fn saying_that_the_file_is_in_wal_mode_costs_no_connection() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    for _ in 0..3 {
        let lease = pool.lease("a").unwrap();
        let mode: String = one(&lease, "PRAGMA journal_mode = WAL");
        assert_eq!(mode, "wal");
    }
    assert_eq!(pool.stats().opens, 1);
}

/// C10: what is the process's is nobody's.
#[test]
fn what_belongs_to_the_process_is_refused() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    for pragma in [
        "hard_heap_limit = 400000",
        "soft_heap_limit = 400000",
        "temp_store_directory = '/'",
        "data_store_directory = '/'",
        "main.hard_heap_limit(400000)",
    ] {
        assert!(
            lease.execute_batch(&format!("PRAGMA {pragma}")).is_err(),
            "{pragma}"
        );
    }
    assert_eq!(one::<i64>(&lease, "PRAGMA hard_heap_limit"), 0);
    for pragma in ["hard_heap_limit", "soft_heap_limit", "data_store_directory"] {
        let built = fixture.builder(1).pragma(pragma, 400_000).build();
        assert!(
            matches!(built, Err(leasepool::Error::Config { .. })),
            "{pragma}"
        );
    }
}

/// C11: by ALTER TABLE, and by a statement that `on_open` has cached.
#[test]
fn columns_and_rows_in_a_temporary_table_of_on_open() {
    const CACHED: &str = "INSERT INTO temp.ctx (x) VALUES ('a secret')";
    let leaves: [fn(&Connection); 3] = [
        |conn| {
            let alter = "ALTER TABLE temp.ctx ADD COLUMN s DEFAULT 'a secret'";
            conn.execute_batch(alter).unwrap();
        },
        |conn| {
            let rename = "ALTER TABLE temp.ctx RENAME COLUMN x TO a_secret";
            conn.execute_batch(rename).unwrap();
        },
        |conn| _ = conn.prepare_cached(CACHED).unwrap().execute([]).unwrap(),
    ];
    for leave in leaves {
        let fixture = Fixture::new();
        let pool = fixture
            .builder(1)
            .on_open(|conn| {
                conn.execute_batch("CREATE TEMP TABLE ctx (x)")?;
                conn.prepare_cached(CACHED)?.execute([])?;
                conn.execute_batch("DELETE FROM temp.ctx")
            })
            .build()
            .unwrap();
        leave(&pool.lease("a").unwrap());
        let lease = pool.lease("b").unwrap();
        assert_eq!(one::<i64>(&lease, "SELECT count(*) FROM temp.ctx"), 0);
        let columns = "SELECT group_concat(name) FROM pragma_table_info('ctx')";
        assert_eq!(one::<String>(&lease, columns), "x");
    }
}

/// How transactions begin by default: rusqlite keeps it, and does not say.
#[test]
fn the_default_behaviour_of_transactions() {
    use rusqlite::TransactionBehavior;
    // Whether it begins with the right to write: then nobody else can have that.
    let begins = |conn: &Connection| {
        let other = Connection::open(conn.path().unwrap()).unwrap();
        other.busy_timeout(Duration::ZERO).unwrap();
        let _transaction = conn.unchecked_transaction().unwrap();
        other.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_err()
    };
    let (_fixture, pool) = handed_over(
        |conn| conn.set_transaction_behavior(TransactionBehavior::Immediate),
        |conn| assert!(!begins(conn)),
    );
    assert_eq!(pool.stats().opens, 1);
    // What a callback set is for every agent.
    let immediate = |conn: &mut Connection| -> rusqlite::Result<()> {
        conn.set_transaction_behavior(TransactionBehavior::Immediate);
        Ok(())
    };
    for on_connect in [true, false] {
        let fixture = Fixture::new();
        let builder = match on_connect {
            true => fixture.builder(1).on_connect(immediate),
            false => fixture.builder(1).on_open(immediate),
        };
        let pool = builder.build().unwrap();
        let mut lease = pool.lease("a").unwrap();
        lease.set_transaction_behavior(TransactionBehavior::Deferred);
        drop(lease);
        assert!(begins(&pool.lease("b").unwrap()));
    }
    // And one that sets none leaves them as they are.
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .on_open(|_| Ok::<_, rusqlite::Error>(()))
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    assert!(!begins(&pool.lease("b").unwrap()));
}

/// Where functions or collations can be registered, a reset must take any invalidation of prepared
/// statements for a sign of that.
const TOLD_APART: bool = !cfg!(any(feature = "functions", feature = "collation"));

fn one<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> T {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn an_open_transaction_is_rolled_back_at_the_end_of_the_lease() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("a").unwrap();
    lease
        .execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
        .unwrap();
    drop(lease);
    // Parked, not handed over: the lock is gone all the same, for other processes, too.
    let shell = std::process::Command::new("sqlite3")
        .arg(&fixture.path)
        .arg("BEGIN IMMEDIATE; SELECT count(*) FROM t; COMMIT;")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&shell.stdout).trim(), "0");
    let lease = pool.lease("a").unwrap();
    assert!(lease.is_autocommit());
    assert_eq!(pool.stats().hits, 1);
}

#[test]
fn a_transaction_forgotten_is_rolled_back() {
    let (_fixture, pool) = handed_over(
        |conn| {
            let transaction = conn.transaction().unwrap();
            insert(&transaction);
            std::mem::forget(transaction);
        },
        |conn| {
            assert!(conn.is_autocommit());
            assert_eq!(count(conn), 0);
        },
    );
    assert_eq!(pool.stats().opens, 1);
}

#[test]
fn temporary_tables_views_and_triggers() {
    handed_over(
        |conn| {
            conn.execute_batch(
                "CREATE TEMP TABLE mine AS SELECT 1 AS secret;
                 CREATE TEMP VIEW also_mine AS SELECT * FROM mine;
                 CREATE TEMP TRIGGER spy AFTER INSERT ON t BEGIN INSERT INTO mine VALUES (new.x); END",
            )
            .unwrap();
        },
        |conn| {
            assert!(conn.prepare("SELECT * FROM mine").is_err());
            assert!(conn.prepare("SELECT * FROM also_mine").is_err());
            assert_eq!(
                one::<i64>(
                    conn,
                    "SELECT count(*) FROM sqlite_temp_schema WHERE name NOT LIKE 'leasepool%'"
                ),
                0
            );
            insert(conn);
        },
    );
}

#[test]
fn rows_in_a_temporary_table_of_on_open() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .on_open(|conn| conn.execute_batch("CREATE TEMP TABLE scratch (x)"))
        .build()
        .unwrap();
    let lease = pool.lease("a").unwrap();
    lease.execute("INSERT INTO scratch VALUES (1)", []).unwrap();
    drop(lease);
    let lease = pool.lease("b").unwrap();
    assert_eq!(one::<i64>(&lease, "SELECT count(*) FROM scratch"), 0);
}

#[test]
fn attached_databases() {
    let fixture = Fixture::new();
    let other = fixture.in_folder("other.db");
    Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE o (x)")
        .unwrap();
    handed_over(
        |conn| {
            conn.execute("ATTACH ?1 AS other", [other.to_str().unwrap()])
                .unwrap();
        },
        |conn| {
            assert_eq!(
                one::<i64>(
                    conn,
                    "SELECT count(*) FROM pragma_database_list WHERE name = 'other'"
                ),
                0
            );
        },
    );
    assert_eq!(Descriptors::on(&other).all(), 0);
}

#[test]
fn changed_pragmas() {
    let pragmas = [
        ("foreign_keys", "0", "1"),
        ("cache_size", "17", "-2000"),
        ("synchronous", "0", "2"),
        ("recursive_triggers", "1", "0"),
        ("query_only", "1", "0"),
        ("read_uncommitted", "1", "0"),
        // The pool's own hook is back, in place of SQLite's.
        ("wal_autocheckpoint", "7", "0"),
        ("busy_timeout", "1", "5000"),
        ("ignore_check_constraints", "1", "0"),
    ];
    for (pragma, left, found) in pragmas {
        handed_over(
            |conn| conn.pragma_update(None, pragma, left).unwrap(),
            |conn| {
                let now = conn
                    .pragma_query_value(None, pragma, |row| row.get::<_, i64>(0))
                    .unwrap();
                assert_eq!(now.to_string(), found, "{pragma}");
            },
        );
    }
}

#[test]
fn harmless_pragmas_do_not_cost_the_connection() {
    let (_fixture, pool) = handed_over(
        |conn| {
            conn.execute_batch("PRAGMA table_info(t); PRAGMA user_version = 3; PRAGMA optimize; PRAGMA integrity_check(1)")
                .unwrap();
        },
        |conn| assert_eq!(one::<i64>(conn, "PRAGMA user_version"), 3),
    );
    // PRAGMA optimize invalidates prepared statements, as a function that replaces another does.
    let stats = pool.stats();
    assert!(
        (stats.opens, stats.discarded_by_reset) == (1, 0) || !TOLD_APART,
        "{stats:?}"
    );
}

#[test]
fn limits_and_switches_and_the_size_of_the_statement_cache() {
    let (_fixture, pool) = handed_over(
        |conn| {
            conn.set_limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 1)
                .unwrap();
            conn.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 0).unwrap();
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)
                .unwrap();
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, true)
                .unwrap();
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
                .unwrap();
            conn.set_prepared_statement_cache_capacity(0);
        },
        |conn| {
            assert!(conn.limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER).unwrap() > 1);
            assert_eq!(conn.limit(Limit::SQLITE_LIMIT_ATTACHED).unwrap(), 1);
            assert!(
                conn.db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER)
                    .unwrap()
            );
            assert!(
                !conn
                    .db_config(DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA)
                    .unwrap()
            );
            assert!(
                !conn
                    .db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
                    .unwrap()
            );
        },
    );
    // A switch invalidates prepared statements, too.
    assert!(pool.stats().opens == 1 || !TOLD_APART);
}

/// C12: switches that rusqlite has a name for only where some crate of the program asked for a new SQLite; this
/// crate's features tell nothing of that.
#[test]
#[allow(
    dead_code,
    reason = "which of them are used depends on rusqlite's features"
)]
fn switches_that_only_some_rusqlites_name() {
    use std::any::Any;
    struct Absent;
    trait Newer {
        const SQLITE_DBCONFIG_ENABLE_COMMENTS: Absent = Absent;
        const SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE: Absent = Absent;
        const SQLITE_DBCONFIG_REVERSE_SCANORDER: Absent = Absent;
    }
    impl Newer for DbConfig {}
    let found = |switch: &dyn Any| switch.downcast_ref::<DbConfig>().copied();
    let switches = [
        found(&DbConfig::SQLITE_DBCONFIG_ENABLE_COMMENTS),
        found(&DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE),
        found(&DbConfig::SQLITE_DBCONFIG_REVERSE_SCANORDER),
    ];
    for switch in switches.into_iter().flatten() {
        let was = std::cell::Cell::new(None);
        handed_over(
            |conn| {
                // A SQLite that is too old for it says so.
                if let Ok(value) = conn.db_config(switch) {
                    was.set(Some(value));
                    conn.set_db_config(switch, !value).unwrap();
                }
            },
            |conn| {
                assert_eq!(conn.db_config(switch).ok(), was.get(), "{switch:?}");
                assert_eq!(one::<i64>(conn, "SELECT /* comment */ 1"), 1);
            },
        );
    }
}

#[test]
fn hooks() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let calls = Arc::new(AtomicUsize::new(0));
    let (_fixture, pool) = handed_over(
        |conn| {
            let seen = Arc::clone(&calls);
            conn.commit_hook(Some(move || seen.fetch_add(1, Relaxed) > usize::MAX - 1))
                .unwrap();
            let seen = Arc::clone(&calls);
            conn.rollback_hook(Some(move || _ = seen.fetch_add(1, Relaxed)))
                .unwrap();
            let seen = Arc::clone(&calls);
            conn.update_hook(Some(move |_: Action, _: &str, _: &str, _: i64| {
                seen.fetch_add(1, Relaxed);
            }))
            .unwrap();
            let seen = Arc::clone(&calls);
            conn.progress_handler(1, Some(move || seen.fetch_add(1, Relaxed) > usize::MAX - 1))
                .unwrap();
            conn.busy_handler(Some(|_| panic!("another agent's busy handler")))
                .unwrap();
            conn.wal_hook(Some(|_, _| panic!("another agent's WAL hook")));
            insert(conn);
            assert!(calls.swap(0, Relaxed) > 0);
        },
        |conn| {
            insert(conn);
            conn.execute_batch("BEGIN; INSERT INTO t VALUES (2); ROLLBACK")
                .unwrap();
            assert_eq!(calls.load(Relaxed), 0);
        },
    );
    assert_eq!(
        pool.stats().opens,
        1,
        "hooks are removed, not a reason to reopen"
    );
}

#[test]
fn a_wal_hook_does_not_stop_checkpoints_for_the_next_agent() {
    let (fixture, pool) = handed_over(|conn| conn.wal_hook(Some(|_, _| Ok(()))), insert);
    let lease = pool.lease("writer").unwrap();
    let blob = vec![7_u8; 64 * 1024];
    for _ in 0..200 {
        lease.execute("INSERT INTO t VALUES (?1)", [&blob]).unwrap();
    }
    // 12 MB were written; SQLite starts the WAL again after a checkpoint of all of it.
    let wal = std::fs::metadata(fixture.path.with_extension("db-wal"))
        .unwrap()
        .len();
    assert!(wal < 8 << 20, "{wal}");
}

#[test]
fn an_authorizer() {
    handed_over(
        |conn| {
            conn.authorizer(Some(|_: rusqlite::hooks::AuthContext<'_>| {
                Authorization::Deny
            }))
            .unwrap();
        },
        |conn| assert!(count(conn) >= 0),
    );
}

#[test]
fn an_authorizer_that_hides_a_pragma() {
    handed_over(
        |conn| {
            conn.authorizer(None::<fn(rusqlite::hooks::AuthContext<'_>) -> Authorization>)
                .unwrap();
            conn.pragma_update(None, "foreign_keys", 0).unwrap();
        },
        |conn| assert_eq!(one::<i64>(conn, "PRAGMA foreign_keys"), 1),
    );
}

#[test]
fn last_insert_rowid_and_changes() {
    let (_fixture, pool) = handed_over(
        |conn| {
            for _ in 0..7 {
                insert(conn);
            }
            conn.execute("UPDATE t SET x = 2", []).unwrap();
            assert!(conn.last_insert_rowid() >= 7 && conn.changes() >= 7);
        },
        |conn| {
            assert_eq!(conn.last_insert_rowid(), 0);
            assert!(conn.changes() <= 1);
        },
    );
    assert_eq!(pool.stats().opens, 1);
}

#[test]
fn a_cached_pragma_of_an_earlier_lease() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let set = |lease: &Connection| -> Result<()> {
        lease
            .prepare_cached("PRAGMA foreign_keys = 0")?
            .execute([])?;
        Ok(())
    };
    set(&pool.lease("a").unwrap()).unwrap();
    set(&pool.lease("a").unwrap()).unwrap();
    assert_eq!(
        one::<i64>(&pool.lease("b").unwrap(), "PRAGMA foreign_keys"),
        1
    );
}

#[test]
fn the_same_agent_finds_what_it_left() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("a").unwrap();
    lease
        .execute_batch(
            "CREATE TEMP TABLE mine (x); INSERT INTO mine VALUES (7); PRAGMA cache_size = 17",
        )
        .unwrap();
    drop(lease);
    drop(pool.lease("b").unwrap());
    let lease = pool.lease("a").unwrap();
    assert_eq!(one::<i64>(&lease, "SELECT x FROM mine"), 7);
    assert_eq!(one::<i64>(&lease, "PRAGMA cache_size"), 17);
    assert_eq!(
        (pool.stats().resets, pool.stats().discarded_by_reset),
        (0, 0)
    );
}

#[test]
fn a_database_swapped_for_another() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let mut lease = pool.lease("a").unwrap();
    let foreign = Connection::open_in_memory().unwrap();
    let ours = std::mem::replace(&mut *lease, foreign);
    drop(lease);
    drop(ours);
    assert_eq!(count(&pool.lease("b").unwrap()), 0);
    // With the last connection to its file, which is closed elsewhere, the log went.
    let stats = pool.stats();
    assert_eq!(stats.discarded_by_reset + stats.discarded_by_file, 1);
}

/// Hooks of `on_open` cannot be read back, so every agent gets them by opening anew.
#[test]
fn a_hook_of_on_open_is_there_for_every_agent() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    let calls = Arc::new(AtomicUsize::new(0));
    let fixture = Fixture::new();
    let pool = {
        let calls = Arc::clone(&calls);
        fixture
            .builder(1)
            .on_open(move |conn| {
                let calls = Arc::clone(&calls);
                conn.update_hook(Some(move |_: Action, _: &str, _: &str, _: i64| {
                    calls.fetch_add(1, Relaxed);
                }))
            })
            .build()
            .unwrap()
    };
    for agent in ["a", "b", "c"] {
        let lease = pool.lease(agent).unwrap();
        insert(&lease);
        lease
            .update_hook(None::<fn(Action, &str, &str, i64)>)
            .unwrap();
    }
    assert_eq!(calls.load(Relaxed), 3);
}

/// A statement that runs for ever keeps its connection from being cleaned, and from being closed.
/// The connection is given up, and counted.
#[test]
fn a_statement_forgotten_while_it_runs() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("a").unwrap();
    insert(&lease);
    insert(&lease);
    {
        let mut statement = lease.prepare("SELECT * FROM t").unwrap();
        let mut rows = statement.query([]).unwrap();
        assert!(rows.next().unwrap().is_some());
        std::mem::forget(rows);
        std::mem::forget(statement);
    }
    drop(lease);
    let (b, c) = (
        pool.lease("b").unwrap(),
        pool.agent("c").within(Duration::from_millis(20)).lease(),
    );
    assert!(!b.is_busy());
    assert_eq!(count(&b), 2);
    // One connection is left of two.
    let error = c.unwrap_err().to_string();
    assert!(error.contains("1 cannot be closed"), "{error}");
    drop(b);
    let stats = pool.stats();
    assert_eq!(
        (stats.stuck, stats.open, stats.close_failures),
        (1, 2, 1),
        "{stats:?}"
    );
    for i in 0..10 {
        drop(pool.try_lease(format!("{i}")).unwrap());
    }
    assert!(pool.close().is_err());
}

#[cfg(feature = "functions")]
mod functions {
    use super::*;
    use leasepool::rusqlite::functions::FunctionFlags;

    fn register(conn: &Connection, name: &str, answer: i64) {
        conn.create_scalar_function(name, 1, FunctionFlags::SQLITE_UTF8, move |_| Ok(answer))
            .unwrap();
    }

    #[test]
    fn a_new_function() {
        handed_over(
            |conn| register(conn, "secret", 42),
            |conn| assert!(conn.prepare("SELECT secret(1)").is_err()),
        );
    }

    #[test]
    fn a_function_that_replaces_one_of_sqlites() {
        handed_over(
            |conn| register(conn, "abs", 42),
            |conn| assert_eq!(one::<i64>(conn, "SELECT abs(-1)"), 1),
        );
    }

    #[test]
    fn a_function_that_replaces_one_of_on_open() {
        let fixture = Fixture::new();
        let pool = fixture
            .builder(1)
            .on_open(|conn| {
                conn.create_scalar_function("mine", 1, FunctionFlags::SQLITE_UTF8, |_| Ok(1))
            })
            .build()
            .unwrap();
        register(&pool.lease("a").unwrap(), "mine", 42);
        assert_eq!(one::<i64>(&pool.lease("b").unwrap(), "SELECT mine(0)"), 1);
    }

    #[test]
    fn a_pool_that_registers_nothing_keeps_its_connection() {
        let (_fixture, pool) = handed_over(|conn| insert(conn), |conn| assert!(count(conn) > 0));
        assert_eq!(pool.stats().opens, 1);
    }
}

#[cfg(feature = "collation")]
#[test]
fn collations() {
    handed_over(
        |conn| conn.create_collation("mine", |a, b| b.cmp(a)).unwrap(),
        |conn| {
            assert!(
                conn.prepare("SELECT x FROM t ORDER BY x COLLATE mine")
                    .is_err()
            )
        },
    );
    handed_over(
        |conn| {
            conn.create_collation("NOCASE", |_, _| std::cmp::Ordering::Equal)
                .unwrap()
        },
        |conn| assert!(!one::<bool>(conn, "SELECT 'a' = 'b' COLLATE NOCASE")),
    );
}

/// What the authorizer does not see: the backup API, and blob handles.
mod unseen {
    use leasepool::rusqlite::backup::Backup;

    use super::*;

    in_both_modes! {
        a_backup_into_the_temporary_schema,
        a_blob_of_a_temporary_table_of_on_opens,
        a_blob_of_the_temporary_schema,
        the_same_between_writes,
    }

    fn a_backup_into_the_temporary_schema(mode: Mode) {
        let fixture = mode.fixture();
        let pool = fixture.pool(1);
        let secret = Connection::open_in_memory().unwrap();
        secret
            .execute_batch("CREATE TABLE secret (x); INSERT INTO secret VALUES (7)")
            .unwrap();
        // Before and after the pool has made its own table there.
        for inserts in [0, 1, 0] {
            let mut lease = pool.lease("a").unwrap();
            (0..inserts).for_each(|_| insert(&lease));
            {
                let backup = Backup::new_with_names(&secret, "main", &mut lease, "temp").unwrap();
                backup
                    .run_to_completion(100, std::time::Duration::ZERO, None)
                    .unwrap();
            }
            assert_eq!(one::<i64>(&lease, "SELECT x FROM secret"), 7);
            drop(lease);
            let next = pool.lease(mode.either("b", "a-other")).unwrap();
            assert!(next.prepare("SELECT x FROM secret").is_err());
            insert(&next);
        }
        assert_whole(&pool);
    }

    fn a_blob_of_a_temporary_table_of_on_opens(mode: Mode) {
        let fixture = mode.fixture();
        let pool = fixture
            .builder(1)
            .on_open(|conn| {
                conn.execute_batch(
                    "CREATE TEMP TABLE ctx (x); INSERT INTO ctx VALUES (zeroblob(4))",
                )
            })
            .build()
            .unwrap();
        let lease = pool.lease("a").unwrap();
        let mut blob = lease.blob_open("temp", "ctx", "x", 1, false).unwrap();
        blob.write_at(b"mine", 0).unwrap();
        blob.close().unwrap();
        drop(lease);
        let next = pool.lease(mode.either("b", "a-other")).unwrap();
        assert_eq!(one::<Vec<u8>>(&next, "SELECT x FROM ctx"), [0; 4]);
        drop(next);
        // What changes nothing costs no connection.
        let before = pool.stats().opens;
        if mode == Mode::Shared {
            for agent in ["a", "b", "a"] {
                insert(&pool.lease(agent).unwrap());
            }
            assert_eq!(pool.stats().opens, before);
        }
    }

    /// The pool's own table is listed there.
    fn a_blob_of_the_temporary_schema(mode: Mode) {
        let fixture = mode.fixture();
        let pool = fixture.pool(1);
        insert(&pool.lease("a").unwrap());
        insert(&pool.lease(mode.either("b", "a-other")).unwrap());
        let lease = pool.lease("a").unwrap();
        let listed = "SELECT rowid FROM sqlite_temp_master";
        let rows: Vec<i64> = lease
            .prepare(listed)
            .unwrap()
            .query_map([], |row| row.get(0))
            .unwrap()
            .map(|row| row.unwrap())
            .collect();
        assert_eq!(rows.len(), usize::from(mode == Mode::Shared));
        for row in rows {
            let mut blob = lease
                .blob_open("temp", "sqlite_temp_master", "sql", row, false)
                .unwrap();
            blob.write_at(b"a message for b", 0).unwrap();
        }
        drop(lease);
        let next = pool.lease(mode.either("b", "a-other")).unwrap();
        let found: Result<String, _> = next.query_row(
            "SELECT sql FROM sqlite_temp_master WHERE sql LIKE '%message%'",
            [],
            |row| row.get(0),
        );
        assert!(found.is_err(), "{found:?}");
    }

    fn the_same_between_writes(mode: Mode) {
        let fixture = mode.fixture();
        let pool = fixture
            .builder(1)
            .on_open(|conn| {
                conn.execute_batch(
                    "CREATE TEMP TABLE ctx (x); INSERT INTO ctx VALUES (zeroblob(4))",
                )
            })
            .build()
            .unwrap();
        pool.write("a", |tx| {
            let mut blob = tx.blob_open("temp", "ctx", "x", 1, false)?;
            blob.write_at(b"mine", 0)?;
            Ok(())
        })
        .unwrap();
        let found = pool.write(mode.either("b", "a-other"), |tx| {
            let found: Vec<u8> = tx.query_row("SELECT x FROM ctx", [], |row| row.get(0))?;
            Ok(found)
        });
        assert_eq!(found.unwrap(), [0; 4]);
    }
}
