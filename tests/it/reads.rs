//! Reads: one snapshot that nothing can be written in, pools that only read, and files that another process writes.

use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::hooks::{AuthContext, Authorization};
use leasepool::rusqlite::{self, Connection, ErrorCode, Transaction};
use leasepool::{Database, Error, FileState, Lease, Pool};

use crate::common::*;
use crate::shell::Shell;

in_both_modes! {
    a_read_sees_one_snapshot,
    nothing_is_written_in_a_read,
    a_read_leaves_the_connection_as_it_was,
    an_awaited_read_runs_on_another_thread,
    a_pool_that_only_reads_writes_nothing,
    a_read_that_is_called_off_leaves_a_connection_that_writes;
    only in shared:
    a_read_waits_for_a_foreign_lock_no_longer_than_it_may,
}

fn query_only(conn: &Connection) -> bool {
    conn.pragma_query_value(None, "query_only", |row| row.get(0))
        .unwrap()
}

fn code(error: &Error) -> Option<ErrorCode> {
    match error {
        Error::Sqlite(error) => error.sqlite_error_code(),
        _ => None,
    }
}

fn a_read_sees_one_snapshot(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    insert(&pool.lease("a").unwrap());
    // Another process, so that it is the same in both modes.
    let mut shell = Shell::on(&fixture.file("a"));
    let counts = pool.read("a", |tx| {
        // Before anything is read here.
        shell.run("INSERT INTO t VALUES (2)");
        let first = count(tx);
        shell.run("INSERT INTO t VALUES (3)");
        Ok((first, count(tx)))
    });
    assert_eq!(counts.unwrap(), (1, 1));
    let now = pool.read("a", |tx| Ok(count(tx))).unwrap();
    assert_eq!(now, 3);
    // What is left open would keep the log from beginning anew.
    shell.run("PRAGMA busy_timeout = 0; PRAGMA wal_checkpoint(TRUNCATE)");
    shell.end();
    let wal = fixture.file("a").with_extension("db-wal");
    assert_eq!(std::fs::metadata(wal).map_or(0, |wal| wal.len()), 0);
    assert_whole(&pool);
}

fn nothing_is_written_in_a_read(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    let allow = |_: AuthContext<'_>| Authorization::Allow;
    // The first read of a process finds out how SQLite takes the pragma, for which cached statements are compiled again.
    pool.read("a", |_| Ok(())).unwrap();
    {
        // What is cached was compiled before.
        let lease = pool.lease("a").unwrap();
        for sql in ["INSERT INTO t VALUES (1)", "COMMIT", "BEGIN"] {
            drop(lease.prepare_cached(sql).unwrap());
        }
    }
    type Work = fn(&Transaction<'_>) -> rusqlite::Result<()>;
    let refused: [Work; 9] = [
        |tx| tx.execute("INSERT INTO t VALUES (1)", []).map(drop),
        |tx| {
            let mut insert = tx.prepare_cached("INSERT INTO t VALUES (1)")?;
            insert.execute([]).map(drop)
        },
        |tx| tx.execute_batch("CREATE TEMP TABLE mine (x)"),
        |tx| tx.execute_batch("PRAGMA user_version = 7"),
        |tx| tx.execute_batch("PRAGMA query_only = OFF"),
        |tx| tx.execute_batch("PRAGMA Query_Only(0)"),
        |tx| tx.execute_batch("PRAGMA journal_mode = DELETE"),
        |tx| tx.execute_batch("COMMIT"),
        |tx| tx.execute_batch("ROLLBACK; BEGIN IMMEDIATE"),
    ];
    for (way, work) in refused.into_iter().enumerate() {
        let error = pool.read("a", work).unwrap_err();
        let expected = match way {
            0..4 => ErrorCode::ReadOnly,
            _ => ErrorCode::AuthorizationForStatementDenied,
        };
        assert_eq!(code(&error), Some(expected), "{way}: {error:?}");
    }
    // Ways around one of what guards it.
    let ended = pool.read("a", |tx| {
        tx.prepare_cached("COMMIT")?.execute([])?;
        Ok(())
    });
    assert!(matches!(ended, Err(Error::SnapshotLost)), "{ended:?}");
    let without_authorizer = pool.read("a", |tx| {
        tx.authorizer(Some(allow))?;
        tx.execute_batch("PRAGMA query_only = OFF; INSERT INTO t VALUES (1); COMMIT")?;
        Ok(())
    });
    assert!(without_authorizer.is_err());
    let uncommitted = pool.read("a", |tx| {
        tx.authorizer(Some(allow))?;
        tx.execute_batch("PRAGMA query_only = OFF; INSERT INTO t VALUES (1)")?;
        Ok(())
    });
    uncommitted.unwrap();
    let without_hook = pool.read("a", |tx| {
        tx.commit_hook(None::<fn() -> bool>)?;
        tx.execute_batch("PRAGMA query_only = OFF")?;
        Ok(())
    });
    assert!(without_hook.is_err());
    let lease = pool.lease("a").unwrap();
    assert_eq!(count(&lease), 0);
    assert!(!query_only(&lease));
    insert(&lease);
    drop(lease);
    assert_whole(&pool);
}

fn a_read_leaves_the_connection_as_it_was(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let odd = Duration::from_millis(1234);
    let asked = |conn: &Connection| -> i64 {
        conn.pragma_query_value(None, "busy_timeout", |row| row.get(0))
            .unwrap()
    };
    let lease = pool.lease("a").unwrap();
    lease.busy_timeout(odd).unwrap();
    lease.execute_batch("CREATE TEMP TABLE mine (x)").unwrap();
    drop(lease);
    let check = |on: bool| {
        let lease = pool.lease("a").unwrap();
        assert!(lease.is_autocommit());
        assert_eq!((query_only(&lease), asked(&lease)), (on, 1234));
        assert!(lease.prepare("SELECT x FROM mine").is_ok());
        lease
    };
    let read = || pool.read("a", |tx| Ok((query_only(tx), asked(tx))));
    assert_eq!(read().unwrap(), (true, 1234));
    let failed: Result<(), Error> = pool.read("a", |_| Err(rusqlite::Error::InvalidQuery));
    assert!(failed.is_err());
    // The agent itself wants it so.
    check(false)
        .execute_batch("PRAGMA query_only = ON")
        .unwrap();
    assert_eq!(read().unwrap(), (true, 1234));
    check(true)
        .execute_batch("PRAGMA query_only = OFF")
        .unwrap();
    assert_eq!(read().unwrap(), (true, 1234));
    insert(&check(false));
    assert_eq!(pool.stats().opens, 1);
    // A panic is told, and nothing of it stays.
    let panicked: Result<(), Error> = pool.read("a", |tx| {
        drop(tx.prepare("SELECT 1")?);
        panic!("on purpose")
    });
    match panicked {
        Err(Error::Panicked { message, .. }) => assert_eq!(message, "on purpose"),
        other => panic!("{other:?}"),
    }
    let lease = pool.lease("a").unwrap();
    assert!(lease.is_autocommit() && !query_only(&lease));
    insert(&lease);
    drop(lease);
    // Within one, the pool cannot be closed.
    let closed = pool.agent("a").read_and_then(|_| pool.close());
    assert!(matches!(closed, Err(Error::Reentrant { .. })), "{closed:?}");
    assert_whole(&pool);
}

fn an_awaited_read_runs_on_another_thread(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    let me = thread::current().id();
    let there = smol::block_on(pool.read_async("a", |tx| Ok((count(tx), thread::current().id()))));
    let (rows, there) = there.unwrap();
    assert!(rows == 0 && there != me);
    let failed: Result<(), Error> =
        smol::block_on(pool.read_async("a", |tx| tx.execute_batch("DELETE FROM t")));
    assert_eq!(code(&failed.unwrap_err()), Some(ErrorCode::ReadOnly));
    let panicked: Result<(), Error> =
        smol::block_on(pool.read_async("a", |_| panic!("on purpose")));
    assert!(matches!(panicked, Err(Error::Panicked { .. })));
    // Dropped while it is at work, and before it has begun.
    let (tell, began) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let mut working = Box::pin(pool.read_async("a", move |_| {
        tell.send(()).unwrap();
        let _ = wait.recv();
        Ok(())
    }));
    smol::block_on(async {
        let poll_until_begun = async {
            while began.try_recv().is_err() {
                assert!(smol::future::poll_once(&mut working).await.is_none());
            }
        };
        poll_until_begun.await;
    });
    drop(working);
    assert_eq!(pool.stats().lent, 1);
    drop(go_on);
    eventually("it is back", || pool.stats().lent == 0);
    drop(pool.read_async("a", |_| -> rusqlite::Result<()> {
        panic!("it never begins")
    }));
    assert_whole(&pool);
}

/// Interrupts come again and again until the work has ended. None may hit what the pool does after it.
fn a_read_that_is_called_off_leaves_a_connection_that_writes(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    for attempt in 0..100 {
        let (tell, began) = mpsc::channel();
        let mut working = Box::pin(pool.read_async("a", move |tx| {
            tell.send(()).unwrap();
            let forever = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
            // Goes on for some interrupts.
            let ended = (0..attempt % 5).map(|_| tx.query_row(forever, [], |_| Ok(())));
            ended.filter_map(Result::err).count();
            tx.query_row(forever, [], |_| Ok(()))
        }));
        while began.try_recv().is_err() {
            assert!(smol::block_on(smol::future::poll_once(&mut working)).is_none());
        }
        drop(working);
        eventually("it is back", || pool.stats().lent == 0);
        let lease = pool.lease("a").unwrap();
        assert!(!query_only(&lease));
        lease.execute("INSERT INTO t VALUES (1)", []).unwrap();
    }
    assert_whole(&pool);
}

fn a_read_waits_for_a_foreign_lock_no_longer_than_it_may(_: Mode) {
    let fixture = Fixture::new();
    let pool = fixture.builder(2).busy_timeout(LONG).build().unwrap();
    drop(pool.lease("a").unwrap());
    let mut shell = Shell::on(&fixture.path);
    // In WAL mode, nothing but this keeps a reader out.
    pool.close().unwrap();
    shell.run("PRAGMA journal_mode = DELETE; BEGIN EXCLUSIVE");
    let pool = Pool::builder(Database::read_only(&fixture.path))
        .busy_timeout(Duration::from_millis(10))
        .build();
    let error = pool.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    shell.run("COMMIT");
    let pool = Pool::builder(Database::read_only(&fixture.path))
        .busy_timeout(LONG)
        .build()
        .unwrap();
    assert_eq!(pool.read("a", |tx| Ok(count(tx))).unwrap(), 0);
    shell.run("BEGIN EXCLUSIVE; INSERT INTO t VALUES (1)");
    let timeout = Duration::from_millis(200);
    let start = Instant::now();
    let error = pool
        .agent("a")
        .within(timeout)
        .read(|tx| Ok(count(tx)))
        .unwrap_err();
    assert!(start.elapsed() >= timeout && start.elapsed() < LONG / 2);
    assert_eq!(code(&error), Some(ErrorCode::DatabaseBusy));
    assert!(error.is_retryable());
    thread::scope(|scope| {
        let reading = scope.spawn(|| pool.read("a", |tx| Ok(count(tx))));
        eventually("it waits", || pool.stats().lent == 1);
        shell.run("COMMIT");
        assert_eq!(reading.join().unwrap().unwrap_or(-1), 1);
    });
    shell.end();
}

fn assert_only_reads(pool: &Pool, agent: &str) {
    let mut lease = pool.lease(agent).unwrap();
    for _ in 0..2 {
        assert!(query_only(&lease));
        let error = lease.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly));
        for sql in ["PRAGMA query_only = 0", "PRAGMA journal_mode = DELETE"] {
            let error = lease.execute_batch(sql).unwrap_err();
            let denied = Some(ErrorCode::AuthorizationForStatementDenied);
            assert_eq!(error.sqlite_error_code(), denied);
        }
        let transaction = lease.transaction().unwrap();
        assert!(count(&transaction) > 0);
    }
    let on_lease = Lease::write(&mut lease, |_| Ok(()));
    assert!(matches!(on_lease, Err(Error::ReadOnly)), "{on_lease:?}");
    drop(lease);
    let refused = [
        pool.write(agent, |_| Ok(())),
        smol::block_on(pool.write_async(agent, |_| Ok(()))),
        pool.agent(agent).vacuum(),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    }
    let rows = pool.read(agent, |tx| Ok(count(tx))).unwrap();
    assert!(rows > 0);
    pool.close_writes().unwrap();
}

fn a_pool_that_only_reads_writes_nothing(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture
        .builder(2)
        .setup(|conn| {
            conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)")
        })
        .on_open(|conn| {
            conn.execute_batch("CREATE TEMP TABLE ours (x); INSERT INTO ours VALUES (1)")
        })
        .reads_only(true)
        .build()
        .unwrap();
    for agent in ["a", "b", "c", "a"] {
        assert_only_reads(&pool, agent);
    }
    // Rid of the authorizer, but not of the commit hook; and the connection does not come back.
    let lease = pool.lease("a").unwrap();
    lease
        .authorizer(None::<fn(AuthContext<'_>) -> Authorization>)
        .unwrap();
    let sql = "PRAGMA query_only = OFF; INSERT INTO t VALUES (2)";
    assert!(lease.execute_batch(sql).is_err());
    drop(lease);
    assert_only_reads(&pool, "a");
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
    assert!(pool.agent("a").remove().is_err());
    assert_whole(&pool);
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

#[test]
fn a_file_that_another_process_writes() {
    for journal in ["WAL", "DELETE"] {
        let fixture = Fixture::new();
        let pool = || Pool::builder(Database::read_only(&fixture.path)).max_connections(2);
        // It is not created.
        match pool().build() {
            Err(Error::Open { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert!(!fixture.path.exists());
        let mut shell = Shell::on(&fixture.path);
        shell.run(&format!(
            "PRAGMA journal_mode = {journal}; CREATE TABLE t (x); INSERT INTO t VALUES (1)"
        ));
        let with_setup = pool().setup(|_| Ok::<_, rusqlite::Error>(())).build();
        assert!(matches!(
            with_setup,
            Err(Error::Config {
                option: "setup",
                ..
            })
        ));
        let pool = pool().build().unwrap();
        assert_only_reads(&pool, "a");
        let again = Pool::builder(Database::file(&fixture.path)).build();
        assert!(
            matches!(again, Err(Error::AlreadyPooled { .. })),
            "{again:?}"
        );
        for rows in 2..20 {
            shell.run("INSERT INTO t VALUES (2)");
            assert_eq!(count(&pool.lease(format!("{rows}")).unwrap()), rows);
        }
        let lease = pool.lease("a").unwrap();
        let mode: String = lease
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!(mode, journal.to_lowercase());
        // Rid of all that guards a connection, the file is still not written.
        lease
            .authorizer(None::<fn(AuthContext<'_>) -> Authorization>)
            .unwrap();
        lease.commit_hook(None::<fn() -> bool>).unwrap();
        lease.execute_batch("PRAGMA query_only = OFF").unwrap();
        let error = lease.execute("INSERT INTO t VALUES (9)", []).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::ReadOnly));
        drop(lease);
        assert_eq!(fixture.descriptors().deleted, 0);
        pool.close().unwrap();
        assert_eq!(fixture.descriptors().all(), 0);
        shell.run("INSERT INTO t VALUES (2)");
        shell.end();
    }
}

#[test]
fn a_file_that_only_reads_is_replaced() {
    let fixture = Fixture::new();
    let make = |path: &std::path::Path, rows: usize| {
        let mut shell = Shell::on(path);
        shell.run("CREATE TABLE t (x)");
        for _ in 0..rows {
            shell.run("INSERT INTO t VALUES (1)");
        }
        shell.end();
    };
    make(&fixture.path, 1);
    let pool = Pool::builder(Database::read_only(&fixture.path))
        .build()
        .unwrap();
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
    let other = fixture.in_folder("other.db");
    make(&other, 2);
    std::fs::rename(&other, &fixture.path).unwrap();
    let_a_change_show();
    assert_eq!(count(&pool.lease("a").unwrap()), 2);
    std::fs::remove_file(&fixture.path).unwrap();
    let_a_change_show();
    let error = pool.lease("a").unwrap_err();
    let deleted = FileState::Deleted;
    assert!(
        matches!(error, Error::FileReplaced { found, .. } if found == deleted),
        "{error:?}"
    );
    assert!(!fixture.path.exists());
    std::fs::write(&fixture.path, b"").unwrap();
    drop(pool);
    let empty = Pool::builder(Database::read_only(&fixture.path)).build();
    assert!(matches!(empty, Err(Error::Open { .. })), "{empty:?}");
}

#[test]
fn a_log_that_cannot_be_made_is_said() {
    let fixture = Fixture::new();
    let mut shell = Shell::on(&fixture.path);
    shell.run("PRAGMA journal_mode = WAL; CREATE TABLE t (x)");
    shell.end();
    // In the way of what SQLite would make, also for root.
    std::fs::create_dir(fixture.path.with_extension("db-wal")).unwrap();
    let error = Pool::builder(Database::read_only(&fixture.path))
        .build()
        .unwrap_err();
    let Error::Open { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(source.to_string().contains("-wal and -shm"), "{source}");
    assert!(!error.is_retryable());
}

#[test]
fn the_cap_holds_for_a_file_that_another_process_writes() {
    let name = "reads::the_cap_holds_for_a_file_that_another_process_writes";
    in_child(name, || {
        for journal in ["WAL", "DELETE"] {
            let fixture = Fixture::new();
            let mut shell = Shell::on(&fixture.path);
            shell.run(&format!(
                "PRAGMA journal_mode = {journal}; PRAGMA busy_timeout = 30000;
                 CREATE TABLE t (x); INSERT INTO t VALUES (1)"
            ));
            let pool = Pool::builder(Database::read_only(&fixture.path))
                .max_connections(8)
                .busy_timeout(LONG)
                .build()
                .unwrap();
            assert_eq!(fixture.descriptors().all(), 0);
            limit_descriptors(open_descriptors() + pool.fd_ceiling() + 4);
            let peak = Barrier::new(9);
            thread::scope(|scope| {
                for i in 0..8 {
                    let (pool, peak) = (&pool, &peak);
                    scope.spawn(move || {
                        let lease = pool.lease(format!("{i}")).unwrap();
                        assert!(count(&lease) > 0);
                        peak.wait();
                        peak.wait();
                        drop(lease);
                        for turn in 0..200 {
                            let agent = format!("{}", (turn * 7 + i) % 30);
                            let rows = pool.read(agent, |tx| Ok(count(tx)));
                            assert!(rows.unwrap() > 0);
                        }
                    });
                }
                peak.wait();
                let found = fixture.descriptors();
                assert!(
                    found.db <= 8 && found.all() <= pool.fd_ceiling(),
                    "{found:?}"
                );
                peak.wait();
                for _ in 0..50 {
                    shell.run("INSERT INTO t VALUES (2)");
                    let found = fixture.descriptors();
                    assert!(found.all() <= pool.fd_ceiling(), "{found:?}");
                }
            });
            shell.end();
            limit_descriptors(1024);
        }
    });
}
