//! Writes: what is acknowledged is committed, members of a group do not touch each other, first come, first
//! served, and nothing waits for ever.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use leasepool::rusqlite::{self, Connection, ErrorCode, Savepoint};
use leasepool::{Database, Error, Lease, Pool, Wanted};

use crate::common::*;

in_both_modes! { an_idle_writer_begins_at_once }

/// A write that adds one row.
fn add(x: i64) -> impl FnOnce(&mut Savepoint<'_>) -> rusqlite::Result<i64> + Send + 'static {
    move |tx| {
        tx.prepare_cached("INSERT INTO t VALUES (?1)")?
            .execute([x])?;
        Ok(x)
    }
}

fn rows(pool: &Pool) -> Vec<i64> {
    let lease = pool.lease("reader").unwrap();
    let mut select = lease.prepare("SELECT x FROM t ORDER BY rowid").unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

/// A write is at work until told to go on. What is called meanwhile will be one group.
struct Held<'scope> {
    go_on: Sender<()>,
    writer: ScopedJoinHandle<'scope, Result<(), Error>>,
}

fn hold<'scope>(scope: &'scope thread::Scope<'scope, '_>, pool: &'scope Pool) -> Held<'scope> {
    let (go_on, wait) = mpsc::channel();
    let (tell, began) = mpsc::channel();
    let writer = scope.spawn(move || {
        pool.write("holder", move |_| {
            tell.send(()).unwrap();
            let _ = wait.recv();
            Ok(())
        })
    });
    began.recv().unwrap();
    Held { go_on, writer }
}

impl Held<'_> {
    fn go_on(self) {
        self.go_on.send(()).unwrap();
        self.writer.join().unwrap().unwrap();
    }
}

fn wait_until_queued(pool: &Pool, n: usize) {
    eventually("they queue", || pool.stats().writes_waiting == n);
}

#[test]
fn what_is_returned_is_committed() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    assert_eq!(pool.write("a", add(7)).unwrap(), 7);
    assert_eq!(rows(&pool), [7]);
    let queued = smol::block_on(async { pool.write_async("a", add(8)).await });
    assert_eq!(queued.unwrap(), 8);
    assert_eq!(rows(&pool), [7, 8]);
    let stats = pool.stats();
    assert_eq!(
        (stats.writes, stats.write_groups, stats.write_failures),
        (2, 2, 0)
    );
    assert_eq!(stats.write.count(), 2);
    assert_whole(&pool);
}

#[test]
fn members_of_a_group_do_not_touch_each_other() {
    let fixture = Fixture::new();
    // To print the panic's backtrace takes longer than a group may by default.
    let pool = fixture.builder(2).write_group(256, LONG).build().unwrap();
    let refused = thread::scope(|scope| {
        let held = hold(scope, &pool);
        let good = |x| {
            let pool = &pool;
            move || pool.write("good", add(x)).unwrap()
        };
        let first = scope.spawn(good(1));
        wait_until_queued(&pool, 1);
        let failing = scope.spawn(|| {
            pool.write("failing", |tx| {
                tx.execute("INSERT INTO t VALUES (100)", [])?;
                let seen: i64 = tx.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
                assert_eq!(seen, 2, "those before it in its group, whole");
                tx.execute("INSERT INTO no_such_table VALUES (1)", [])?;
                Ok(())
            })
        });
        wait_until_queued(&pool, 2);
        let panicking = scope.spawn(|| {
            pool.write("panicking", |tx| {
                tx.execute("INSERT INTO t VALUES (101)", [])?;
                if tx.is_autocommit() {
                    return Ok(());
                }
                panic!("on purpose")
            })
        });
        wait_until_queued(&pool, 3);
        let last = scope.spawn(good(2));
        wait_until_queued(&pool, 4);
        held.go_on();
        assert_eq!((first.join().unwrap(), last.join().unwrap()), (1, 2));
        let panicked: Result<(), Error> = panicking.join().unwrap();
        match panicked {
            Err(Error::Panicked { message, .. }) => assert_eq!(message, "on purpose"),
            other => panic!("{other:?}"),
        }
        failing.join().unwrap()
    });
    assert!(matches!(refused, Err(Error::Sqlite(_))), "{refused:?}");
    assert_eq!(rows(&pool), [1, 2]);
    // One for the holder, one for the four who came meanwhile.
    assert_eq!(pool.stats().write_groups, 2);
    assert_whole(&pool);
}

#[test]
fn a_commit_that_fails_fails_all_of_its_group() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(2)
        .write_group(256, LONG)
        .setup(|conn| {
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS t (x);
                 CREATE TABLE IF NOT EXISTS parent (id INTEGER PRIMARY KEY);
                 CREATE TABLE IF NOT EXISTS child (
                     parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED
                 );",
            )
        })
        .build()
        .unwrap();
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        let good = scope.spawn(|| pool.write("good", add(1)));
        wait_until_queued(&pool, 1);
        let bad = scope.spawn(|| {
            pool.write("bad", |tx| {
                tx.execute("INSERT INTO child VALUES (77)", [])?;
                Ok(())
            })
        });
        wait_until_queued(&pool, 2);
        held.go_on();
        for error in [
            good.join().unwrap().unwrap_err(),
            bad.join().unwrap().unwrap_err(),
        ] {
            match error {
                Error::Sqlite(error) => assert_eq!(
                    error.sqlite_error_code(),
                    Some(ErrorCode::ConstraintViolation)
                ),
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(rows(&pool).is_empty());
    pool.write("good", add(1)).unwrap();
    assert_eq!(rows(&pool), [1]);
    assert_whole(&pool);
}

#[test]
fn a_rollback_by_sqlite_is_told_to_all() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(2)
        .write_group(256, LONG)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x UNIQUE)"))
        .build()
        .unwrap();
    pool.write("a", add(5)).unwrap();
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        let good = scope.spawn(|| pool.write("good", add(1)));
        wait_until_queued(&pool, 1);
        let ends = scope.spawn(|| {
            pool.write("ends", |tx| {
                // Whatever it makes of the error: its group is gone.
                let _ = tx.execute("INSERT OR ROLLBACK INTO t VALUES (5)", []);
                Ok(())
            })
        });
        wait_until_queued(&pool, 2);
        let later = scope.spawn(|| pool.write("later", add(2)));
        wait_until_queued(&pool, 3);
        held.go_on();
        assert!(matches!(
            good.join().unwrap(),
            Err(Error::RolledBack { .. })
        ));
        assert!(matches!(
            ends.join().unwrap(),
            Err(Error::RolledBack { .. })
        ));
        // It was in the next group.
        assert_eq!(later.join().unwrap().unwrap(), 2);
    });
    assert_eq!(rows(&pool), [5, 2]);
    assert_whole(&pool);
}

#[test]
fn what_would_reach_beyond_a_write_is_refused() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    // A statement that another agent prepared does not slip through.
    {
        let lease = pool.lease("other").unwrap();
        lease.execute_batch("BEGIN").unwrap();
        lease.prepare_cached("COMMIT").unwrap().execute([]).unwrap();
    }
    let refused = [
        ("BEGIN", "BEGIN"),
        ("COMMIT", "COMMIT"),
        ("END", "COMMIT"),
        ("ROLLBACK", "ROLLBACK"),
        ("RELEASE leasepool_member", "RELEASE leasepool_member"),
        ("SAVEPOINT leasepool_member", "BEGIN leasepool_member"),
        ("ATTACH ':memory:' AS other", "ATTACH"),
        ("DETACH main", "DETACH"),
        (
            "CREATE TEMP TABLE scratch (x)",
            "a change of a temporary table",
        ),
        ("PRAGMA foreign_keys = OFF", "PRAGMA foreign_keys"),
        ("PRAGMA synchronous = OFF", "PRAGMA synchronous"),
    ];
    for (i, (sql, what)) in (0..).zip(refused) {
        let pool = &pool;
        let (good, bad) = thread::scope(|scope| {
            let held = hold(scope, pool);
            let good = scope.spawn(move || pool.write("good", add(i)));
            wait_until_queued(pool, 1);
            let bad = scope.spawn(move || pool_write_and_swallow(pool, sql));
            wait_until_queued(pool, 2);
            held.go_on();
            (good.join().unwrap(), bad.join().unwrap())
        });
        assert_eq!(good.unwrap(), i);
        match bad {
            Err(Error::NotInWrite { action, .. }) => assert_eq!(action, what),
            other => panic!("{sql}: {other:?}"),
        }
    }
    let n = refused.len() as i64;
    assert_eq!(rows(&pool), (0..n).collect::<Vec<_>>());
    // None of it was a reason to close the connection.
    assert_eq!(pool.stats().discarded_by_lease, 0);
    assert_whole(&pool);
}

/// Does something else, too, and takes no notice of the error.
fn pool_write_and_swallow(pool: &Pool, sql: &'static str) -> Result<(), Error> {
    pool.write("bad", move |tx| {
        tx.execute("INSERT INTO t VALUES (-1)", [])?;
        let _ = tx
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute([]));
        Ok(())
    })
}

#[test]
fn what_stays_within_a_write_is_allowed() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let user_version = pool
        .write("a", |tx| {
            {
                let inner = tx.savepoint()?;
                inner.execute("INSERT INTO t VALUES (1)", [])?;
                inner.commit()?;
            }
            {
                let inner = tx.savepoint()?;
                inner.execute("INSERT INTO t VALUES (2)", [])?;
            }
            tx.execute_batch(
                "SAVEPOINT mine; INSERT INTO t VALUES (3); RELEASE mine;
                 CREATE TABLE u (a); INSERT INTO u VALUES (1); ALTER TABLE u RENAME TO v;
                 ALTER TABLE v RENAME COLUMN a TO b; PRAGMA user_version = 9",
            )?;
            tx.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        })
        .unwrap();
    assert_eq!(user_version, 9);
    assert_eq!(rows(&pool), [1, 3]);
    // Its own savepoint may be rolled back to, and then used again.
    pool.write("a", |tx| {
        tx.execute("INSERT INTO t VALUES (4)", [])?;
        tx.rollback()?;
        tx.execute("INSERT INTO t VALUES (5)", [])?;
        Ok(())
    })
    .unwrap();
    assert_eq!(rows(&pool), [1, 3, 5]);
    // And left open.
    pool.write("a", |tx| {
        tx.execute_batch("SAVEPOINT forgotten; INSERT INTO t VALUES (6)")?;
        tx.set_drop_behavior(rusqlite::DropBehavior::Panic);
        Ok(())
    })
    .unwrap();
    assert_eq!(rows(&pool), [1, 3, 5, 6]);
    assert_eq!(pool.stats().opens, 1);
}

#[test]
fn what_a_member_leaves_does_not_reach_its_neighbours() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let vetoes = Arc::new(AtomicUsize::new(0));
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        let theirs = Arc::clone(&vetoes);
        let hooking = scope.spawn(|| {
            pool.write("hooking", move |tx| {
                tx.commit_hook(Some(move || {
                    theirs.fetch_add(1, SeqCst);
                    true
                }))?;
                tx.busy_timeout(LONG)?;
                Ok(())
            })
        });
        wait_until_queued(&pool, 1);
        let good = scope.spawn(|| pool.write("good", add(1)));
        wait_until_queued(&pool, 2);
        held.go_on();
        hooking.join().unwrap().unwrap();
        good.join().unwrap().unwrap();
    });
    assert_eq!(vetoes.load(SeqCst), 0);
    assert_eq!(rows(&pool), [1]);
    // A statement that is never finished costs the connection, not the writes.
    pool.write("careless", |tx| {
        let mut statement = tx.prepare("SELECT * FROM t")?;
        let mut rows = statement.query([])?;
        rows.next()?;
        std::mem::forget(rows);
        std::mem::forget(statement);
        Ok(())
    })
    .unwrap();
    pool.write("good", add(2)).unwrap();
    assert_eq!(rows(&pool), [1, 2]);
}

#[test]
fn a_write_within_a_write_is_told_at_once() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let pool = fixture.pool(4);
    let other = other.pool(1);
    let start = Instant::now();
    let inner = pool.clone();
    let nested = pool.agent("outer").write_and_then(move |tx| {
        tx.execute("INSERT INTO t VALUES (1)", [])?;
        // Another pool's is none of this one's business.
        other.write("other", add(1))?;
        let nested = inner.write("inner", add(2));
        let awaited = smol::block_on(inner.write_async("inner", add(2)));
        let mut lease = inner.lease("inner")?;
        let leased = Lease::write(&mut lease, |_| Ok(()));
        Ok::<_, Error>([nested.err(), awaited.err(), leased.err()])
    });
    for error in nested.unwrap() {
        assert!(matches!(error, Some(Error::NestedWrite)), "{error:?}");
    }
    let mut lease = pool.lease("outer").unwrap();
    let nested = Lease::write_and_then(&mut lease, |_| pool.write("inner", add(2)));
    assert!(matches!(nested, Err(Error::NestedWrite)));
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(rows(&pool), [1]);
    pool.write("after", add(3)).unwrap();
}

#[test]
fn first_come_first_served() {
    const N: i64 = 24;
    let fixture = Fixture::new();
    // On a loaded machine 24 writes can take longer than a group may by default.
    let pool = fixture.builder(2).write_group(256, LONG).build().unwrap();
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        for i in 0..N {
            let pool = &pool;
            scope.spawn(move || match i % 2 {
                0 => pool.write("a", add(i)).unwrap(),
                _ => smol::block_on(pool.write_async("a", add(i))).unwrap(),
            });
            wait_until_queued(pool, i as usize + 1);
        }
        held.go_on();
    });
    assert_eq!(rows(&pool), (0..N).collect::<Vec<_>>());
    assert_eq!(pool.stats().write_groups, 2);
}

#[test]
fn groups_are_bounded() {
    let fixture = Fixture::new();
    let pool = fixture.builder(2).write_group(4, LONG).build().unwrap();
    let crowd = |pool: &Pool, n: usize| {
        thread::scope(|scope| {
            let held = hold(scope, pool);
            for i in 0..n {
                scope.spawn(move || pool.write("a", add(i as i64)).unwrap());
            }
            wait_until_queued(pool, n);
            held.go_on();
        });
    };
    crowd(&pool, 10);
    // One alone; then four, four, two.
    assert_eq!(pool.stats().write_groups, 4);
    pool.close().unwrap();
    let pool = fixture
        .builder(2)
        .write_group(100, Duration::ZERO)
        .build()
        .unwrap();
    crowd(&pool, 10);
    assert_eq!(pool.stats().write_groups, 11);
}

#[test]
fn a_full_queue_is_told_at_once() {
    let fixture = Fixture::new();
    let pool = fixture.builder(2).write_queue(3).build().unwrap();
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        for i in 0..3 {
            let pool = &pool;
            scope.spawn(move || pool.write("a", add(i)).unwrap());
        }
        wait_until_queued(&pool, 3);
        let start = Instant::now();
        match pool.write("one too many", add(9)) {
            Err(Error::Exhausted {
                wanted, waiting, ..
            }) => {
                assert_eq!((wanted, waiting), (Wanted::TurnToWrite, 3));
            }
            other => panic!("{other:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(1));
        held.go_on();
    });
    assert_eq!(rows(&pool).len(), 3);
    assert_whole(&pool);
}

fn timed(write: impl FnOnce() -> Result<i64, Error>) -> (Error, Duration) {
    let start = Instant::now();
    let error = write().unwrap_err();
    (error, start.elapsed())
}

#[test]
fn whoever_waits_too_long_is_told_in_time() {
    let fixture = Fixture::new();
    let timeout = Duration::from_millis(500);
    let pool = fixture.builder(2).lease_timeout(timeout).build().unwrap();
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        let awaiting = scope.spawn(|| timed(|| smol::block_on(pool.write_async("b", add(2)))));
        let (error, took) = timed(|| pool.write("a", add(1)));
        for (error, took) in [(error, took), awaiting.join().unwrap()] {
            assert!(took >= timeout && took < timeout * 13 / 10, "{took:?}");
            let text = error.to_string();
            match error {
                Error::Exhausted {
                    wanted, holders, ..
                } => {
                    assert_eq!(wanted, Wanted::TurnToWrite);
                    assert_eq!(holders.len(), 1, "who writes");
                    assert!(text.contains("waiting to write"), "{text}");
                    assert!(text.contains("write.rs"), "{text}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(pool.stats().writes_waiting, 0);
        held.go_on();
    });
    assert!(rows(&pool).is_empty());
    assert_whole(&pool);
}

#[test]
fn a_dropped_future_that_had_not_begun_never_does() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        let mut queued = Box::pin(pool.write_async("a", add(1)));
        assert!(smol::block_on(smol::future::poll_once(&mut queued)).is_none());
        let other = scope.spawn(|| pool.write("b", add(2)));
        wait_until_queued(&pool, 2);
        drop(queued);
        assert_eq!(pool.stats().writes_waiting, 1);
        held.go_on();
        other.join().unwrap().unwrap();
    });
    assert_eq!(rows(&pool), [2]);
}

/// Futures dropped at random moments: what was acknowledged is there, and nothing is left behind.
#[test]
fn futures_dropped_at_random() {
    const N: i64 = 2_000;
    let fixture = Fixture::new();
    let pool = fixture
        .builder(2)
        .synchronous(leasepool::Synchronous::Off)
        .build()
        .unwrap();
    let acknowledged = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for t in 0..4 {
            let (pool, acknowledged) = (&pool, &acknowledged);
            scope.spawn(move || {
                for i in 0..N / 4 {
                    let x = t * N + i;
                    let write = pool.write_async("a", add(x));
                    let patience = smol::Timer::after(Duration::from_micros((x as u64 * 37) % 200));
                    let or_not = async {
                        patience.await;
                        Err(Error::Closed)
                    };
                    if let Ok(x) = smol::block_on(smol::future::or(write, or_not)) {
                        acknowledged.lock().unwrap().push(x);
                    }
                }
            });
        }
    });
    // After whatever is still on its way.
    pool.write("last", |_| Ok(())).unwrap();
    let there = rows(&pool);
    let acknowledged = acknowledged.into_inner().unwrap();
    assert!(acknowledged.iter().all(|x| there.contains(x)));
    assert_eq!(pool.stats().writes_waiting, 0);
    assert_whole(&pool);
}

#[test]
fn a_lock_held_outside_delays_a_write_and_no_reader() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(2)
        .lease_timeout(Duration::from_millis(600))
        .build()
        .unwrap();
    let outside = Connection::open(&fixture.path).unwrap();
    outside
        .execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
        .unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        let writer = scope.spawn(|| pool.write("a", add(2)));
        let queued = scope.spawn(|| {
            eventually("the writer leads", || pool.stats().lent == 1);
            pool.write("b", add(3))
        });
        let mut reads = 0;
        while !writer.is_finished() {
            assert!(rows(&pool).is_empty());
            reads += 1;
        }
        assert!(reads > 10, "{reads}");
        for error in [writer.join().unwrap(), queued.join().unwrap()] {
            match error {
                Err(Error::Sqlite(error)) => {
                    assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
                }
                other => panic!("{other:?}"),
            }
        }
    });
    assert!(start.elapsed() >= Duration::from_millis(600));
    // And one that is released in time is only waited for, and not for long.
    let mut expected = vec![1];
    in_one_of_three(|| {
        if outside.is_autocommit() {
            outside.execute_batch("BEGIN IMMEDIATE").unwrap();
        }
        expected.push(2);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                pool.write("a", add(2)).unwrap();
                Instant::now()
            });
            eventually("it tries", || pool.stats().lent == 1);
            thread::sleep(Duration::from_millis(150));
            outside.execute_batch("COMMIT").unwrap();
            let released = Instant::now();
            let took = writer.join().unwrap().checked_duration_since(released);
            let took = took.expect("not before it is released");
            if took < Duration::from_millis(80) {
                Ok(())
            } else {
                Err(format!("{took:?}"))
            }
        })
    });
    assert_eq!(rows(&pool), expected);
    assert_whole(&pool);
}

/// The writer's connection is one of the N.
#[test]
fn the_writer_has_no_slot_of_its_own() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    pool.write("a", add(1)).unwrap();
    assert_eq!((pool.stats().parked, pool.stats().lent), (1, 0));
    // Reclaimed, and had again, by turns; all with one connection.
    for x in 2..20 {
        assert_eq!(count(&pool.lease("reader").unwrap()), x - 1);
        pool.write("a", add(x)).unwrap();
    }
    assert_eq!(pool.stats().opens, 1);
    assert_eq!(fixture.descriptors().wal, 1);
    // The write waits for the borrower of the only one, and its error names that borrower.
    let lease = pool.lease("reader").unwrap();
    match pool
        .agent("a")
        .within(Duration::from_millis(50))
        .write(add(0))
    {
        Err(Error::Exhausted { holders, .. }) => assert_eq!(holders[0].agent, "reader"),
        other => panic!("{other:?}"),
    }
    drop(lease);
    assert_whole(&pool);
}

#[test]
fn a_lease_writes_in_its_turn() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(4)
        .busy_timeout(Duration::ZERO)
        .build()
        .unwrap();
    let mut lease = pool.lease("a").unwrap();
    // It may borrow, and sees what is on its connection.
    lease
        .execute_batch("CREATE TEMP TABLE mine (x); INSERT INTO mine VALUES (5)")
        .unwrap();
    let local = String::from("INSERT INTO t SELECT x FROM mine");
    let n = Lease::write(&mut lease, |tx| tx.execute(&local, [])).unwrap();
    assert_eq!(n, 1);
    let failed: Result<(), Error> = Lease::write_and_then(&mut lease, |tx| {
        tx.execute("INSERT INTO t VALUES (6)", [])?;
        Err(Error::Closed)
    });
    assert!(failed.is_err());
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        Lease::write(&mut lease, |tx| {
            tx.execute("INSERT INTO t VALUES (7)", [])?;
            if tx.is_autocommit() {
                return Ok(());
            }
            panic!("on purpose")
        })
    }));
    assert!(panicked.is_err());
    drop(lease);
    assert_eq!(rows(&pool), [5]);
    // Nobody fights: with no patience at all for locks, nobody sees one.
    thread::scope(|scope| {
        for t in 0..3 {
            let pool = &pool;
            scope.spawn(move || {
                for _ in 0..50 {
                    let mut lease = pool.lease(format!("lease-{t}")).unwrap();
                    Lease::write(&mut lease, |tx| tx.execute("INSERT INTO t VALUES (1)", []))
                        .unwrap();
                }
            });
            scope.spawn(move || {
                for _ in 0..50 {
                    pool.write("a", add(1)).unwrap();
                }
            });
        }
    });
    assert_eq!(rows(&pool).len(), 301);
    assert_whole(&pool);
}

/// What the work returns reaches its caller also where SQLite has rolled back by itself.
#[test]
fn a_lease_whose_transaction_is_gone_is_told_why() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x UNIQUE)"))
        .build()
        .unwrap();
    let mut lease = pool.lease("a").unwrap();
    insert(&lease);
    let failed: Result<usize, Error> = Lease::write(&mut lease, |tx| {
        tx.set_drop_behavior(rusqlite::DropBehavior::Commit);
        tx.execute("INSERT OR ROLLBACK INTO t VALUES (1)", [])
    });
    match failed {
        Err(Error::Sqlite(error)) => assert_eq!(
            error.sqlite_error_code(),
            Some(ErrorCode::ConstraintViolation)
        ),
        other => panic!("{other:?}"),
    }
    let failed: Result<(), Error> = Lease::write_and_then(&mut lease, |tx| {
        tx.set_drop_behavior(rusqlite::DropBehavior::Commit);
        tx.execute("INSERT INTO t VALUES (2)", [])?;
        Err(Error::Closed)
    });
    assert!(matches!(failed, Err(Error::Closed)));
    assert_eq!(count(&lease), 1);
    // Neither was committed.
    assert_eq!((pool.stats().writes, pool.stats().write_groups), (0, 0));
}

/// A write waits for a connection while the borrower of one waits for its turn to write: not for each other.
#[test]
fn leases_that_write_do_not_wait_for_a_writer_that_waits_for_them() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let mut lease = pool.lease("holder").unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| pool.write("a", add(2)));
        eventually("it waits for a connection", || pool.stats().waiting == 1);
        Lease::write(&mut lease, |tx| tx.execute("INSERT INTO t VALUES (1)", [])).unwrap();
        drop(lease);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(rows(&pool), [1, 2]);
}

#[test]
fn close_commits_what_was_queued_or_says_so() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let done = thread::scope(|scope| {
        let held = hold(scope, &pool);
        let writers: Vec<_> = (0..20)
            .map(|i| {
                let pool = &pool;
                scope.spawn(move || match i % 2 {
                    0 => pool.write("a", add(i)),
                    _ => smol::block_on(pool.write_async("a", add(i))),
                })
            })
            .collect();
        wait_until_queued(&pool, 20);
        let closing = scope.spawn(|| pool.close());
        eventually("it closes", || {
            let late = pool
                .agent("late")
                .within(Duration::from_millis(1))
                .write(add(99));
            matches!(late, Err(Error::Closed))
        });
        held.go_on();
        closing.join().unwrap().unwrap();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    let committed: Vec<_> = done.into_iter().map(Result::unwrap).collect();
    assert_eq!(committed.len(), 20);
    assert_eq!(fixture.descriptors().all(), 0);
    let pool = fixture.pool(1);
    let mut there = rows(&pool);
    there.sort_unstable();
    assert_eq!(there, (0..20).collect::<Vec<_>>());
}

#[test]
fn close_that_cannot_wait_refuses_what_is_queued() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let refused = thread::scope(|scope| {
        let held = hold(scope, &pool);
        let queued = scope.spawn(|| pool.write("a", add(1)));
        wait_until_queued(&pool, 1);
        assert!(pool.close_within(Duration::from_millis(20)).is_err());
        let refused = queued.join().unwrap();
        // The one that had begun is not called back: a lent connection is never taken away.
        held.go_on();
        refused
    });
    assert!(matches!(refused, Err(Error::Closed)), "{refused:?}");
    pool.close().unwrap();
    assert!(rows(&fixture.pool(1)).is_empty());
}

#[test]
fn a_panicking_conversion_or_drop_does_not_stop_the_next() {
    struct Bomb(Arc<AtomicBool>);
    impl Drop for Bomb {
        fn drop(&mut self) {
            assert!(!self.0.load(SeqCst) || thread::panicking(), "dropped");
        }
    }
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let armed = Arc::new(AtomicBool::new(false));
    thread::scope(|scope| {
        let held = hold(scope, &pool);
        let bomb = Bomb(Arc::clone(&armed));
        let (tell, began) = mpsc::channel();
        let mut write = Box::pin(pool.write_async("a", move |_| {
            tell.send(()).unwrap();
            thread::sleep(Duration::from_millis(20));
            Ok(bomb)
        }));
        assert!(smol::block_on(smol::future::poll_once(&mut write)).is_none());
        let next = scope.spawn(|| pool.write("b", add(1)));
        wait_until_queued(&pool, 2);
        held.go_on();
        began.recv().unwrap();
        armed.store(true, SeqCst);
        // Nobody wants what it returns: that is dropped where the work was done. Its neighbour is told the
        // truth all the same.
        drop(write);
        next.join().unwrap().unwrap();
    });
    armed.store(false, SeqCst);
    pool.write("c", add(2)).unwrap();
    assert_eq!(rows(&pool), [1, 2]);
    assert_whole(&pool);
}

#[test]
fn in_memory_too() {
    let pool = Pool::builder(Database::memory())
        .max_connections(4)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    thread::scope(|scope| {
        for t in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                for i in 0..50 {
                    pool.write("a", add(t * 50 + i)).unwrap();
                    let lease = pool.lease(format!("reader-{t}")).unwrap();
                    assert!(count(&lease) > 0);
                }
            });
        }
    });
    assert_eq!(rows(&pool).len(), 200);
}

/// Under constant load of writers and readers, the log begins anew again and again.
#[test]
fn the_log_stays_short_under_load() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(4)
        .wal_size(1 << 20)
        .synchronous(leasepool::Synchronous::Normal)
        .build()
        .unwrap();
    let wal = fixture.path.with_extension("db-wal");
    let (longest, written) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for t in 0..4 {
            let (pool, done, written) = (&pool, &done, &written);
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    pool.write("a", |tx| {
                        tx.execute("INSERT INTO t VALUES (randomblob(4000))", [])?;
                        Ok(())
                    })
                    .unwrap();
                    written.fetch_add(4000, SeqCst);
                }
            });
            scope.spawn(move || {
                while !done.load(SeqCst) {
                    let lease = pool.lease(format!("reader-{t}")).unwrap();
                    lease
                        .query_row("SELECT max(rowid) FROM t", [], |row| {
                            row.get::<_, Option<i64>>(0)
                        })
                        .unwrap();
                }
            });
        }
        // Ten times as much as the log may become. A machine with much else to do needs long for it.
        let start = Instant::now();
        while written.load(SeqCst) < 40 << 20 && start.elapsed() < LONG * 4 {
            let length = std::fs::metadata(&wal).map_or(0, |file| file.len());
            longest.fetch_max(length as usize, SeqCst);
            thread::sleep(Duration::from_millis(1));
        }
        done.store(true, SeqCst);
    });
    let (longest, written) = (longest.into_inner(), written.into_inner());
    assert!(written >= 40 << 20, "{written}");
    let stats = pool.stats();
    // Three times `wal_size`, and the group that came last. A reader that gets no processor in the middle of its
    // statement blocks checkpoints: then the log may be longer until it has ended.
    let pinned = stats.checkpoints_pinned > 0;
    assert!(longest <= 4 << 20 || pinned, "{longest}: {stats:?}");
    eventually("the log is short again", || {
        pool.write("a", |tx| tx.execute("INSERT INTO t VALUES (1)", []))
            .unwrap();
        std::fs::metadata(&wal).unwrap().len() <= 4 << 20
    });
    assert!(stats.checkpoints >= 5, "{stats:?}");
}

#[test]
fn a_log_that_cannot_shrink_is_noticed_and_shrinks_when_it_can() {
    let fixture = Fixture::new();
    let pool = fixture.builder(4).wal_size(1 << 16).build().unwrap();
    pool.write("a", add(1)).unwrap();
    let reader = pool.lease("pins it").unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    assert_eq!(count(&reader), 1);
    let fill = || {
        pool.write("a", |tx| {
            tx.execute("INSERT INTO t VALUES (randomblob(100000))", [])?;
            Ok(())
        })
        .unwrap();
    };
    eventually("it is noticed", || {
        fill();
        pool.stats().checkpoints_pinned == 1
    });
    assert_eq!(count(&reader), 1);
    drop(reader);
    let before = pool.stats().wal_pages;
    eventually("it begins anew", || {
        fill();
        pool.stats().wal_pages < before
    });
}

fn an_idle_writer_begins_at_once(mode: Mode) {
    /// So long a call without patience waits for a thread that has its work in hand.
    const ANSWER: Duration = Duration::from_millis(30);
    let fixture = mode.fixture();
    let pool = fixture
        .builder(2)
        .lease_timeout(Duration::ZERO)
        .build()
        .unwrap();
    // What must be opened first takes what the disk does.
    let patient = pool.agent("a").within(LONG);
    drop(patient.lease().unwrap());
    patient.write(add(0)).unwrap();
    let one = |i: i64| match i % 5 {
        0 => pool.write("a", add(i)),
        1 => pool.agent("a").within(Duration::ZERO).write(add(i)),
        2 => smol::block_on(async { pool.write_async("a", add(i)).await }),
        3 => smol::block_on(async {
            pool.agent("a")
                .within(Duration::ZERO)
                .write_async(add(i))
                .await
        }),
        _ => Lease::write(&mut pool.lease("a").unwrap(), |tx| {
            tx.execute("INSERT INTO t VALUES (?1)", [i])?;
            Ok(i)
        }),
    };
    // Each as soon as the one before was answered: nobody else is at work then.
    for i in 0..200 {
        let told = loop {
            match one(i) {
                // The machine gave the writer's thread no time: every call comes back. That thread leads until it
                // has run.
                Err(Error::Exhausted { waited, .. }) if waited >= ANSWER => {
                    patient.write(|_| Ok(0)).unwrap();
                }
                told => break told,
            }
        };
        assert_eq!(told.unwrap(), i);
    }
    assert_eq!(fixture.count_all(&pool), 201);
    assert_whole(&pool);
}
