//! `max_hold`: statements of a lease that is held for too long are interrupted, and nothing else is.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Error, Lease};
use rusqlite::Connection;

use crate::common::{LONG, Mode, eventually, in_both_modes};

const LIMIT: Duration = Duration::from_millis(40);

in_both_modes!(
    statements_of_every_kind_of_borrower_are_interrupted,
    the_next_borrower_is_not,
    what_the_pool_does_itself_is_not,
    the_last_checkpoint_is_not,
);

/// It would run for a minute or longer.
fn endless(conn: &Connection) -> rusqlite::Result<i64> {
    const COUNT: &str =
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000)
                         SELECT count(*) FROM n";
    conn.query_row(COUNT, [], |row| row.get(0))
}

fn is_interrupt(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(rusqlite::ErrorCode::OperationInterrupted)
}

#[track_caller]
fn assert_interrupted(begun: Instant, result: rusqlite::Result<i64>) {
    let error = result.unwrap_err();
    assert!(is_interrupt(&error), "{error}");
    assert!(begun.elapsed() >= LIMIT, "{:?}", begun.elapsed());
    assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
}

fn of_pool(result: Result<i64, Error>) -> rusqlite::Result<i64> {
    match result {
        Err(Error::Sqlite(error)) => Err(error),
        other => panic!("{other:?}"),
    }
}

fn statements_of_every_kind_of_borrower_are_interrupted(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(2).max_hold(LIMIT).build().unwrap();
    let begun = Instant::now;
    let mut kinds = 0;
    let mut check = |since: Instant, result| {
        assert_interrupted(since, result);
        kinds += 1;
        // One for each lease, however often it is interrupted.
        assert_eq!(pool.stats().interrupted, kinds);
        assert!(pool.holders().is_empty());
    };

    let since = begun();
    let lease = pool.lease("a").unwrap();
    assert_interrupted(since, endless(&lease));
    // As long as the lease is held.
    let result = endless(&lease);
    drop(lease);
    check(since, result);

    let since = begun();
    let lease = smol::block_on(pool.lease_async("a")).unwrap();
    let result = endless(&lease);
    drop(lease);
    check(since, result);

    let since = begun();
    let lease = pool.lease("a").unwrap();
    let (lease, result) = smol::block_on(Lease::run(lease, |conn| endless(conn))).unwrap();
    drop(lease);
    check(since, result);

    let since = begun();
    check(since, of_pool(pool.read("a", |tx| endless(tx))));
    let since = begun();
    let read = smol::block_on(pool.read_async("a", |tx| endless(tx)));
    check(since, of_pool(read));
    let since = begun();
    check(
        since,
        of_pool(smol::block_on(pool.run("a", |conn| endless(conn)))),
    );
    if mode == Mode::Shared {
        let since = begun();
        let lease = pool.get().unwrap();
        let result = endless(&lease);
        drop(lease);
        check(since, result);
    }

    // A write that is interrupted is rolled back.
    let mut lease = pool.lease("a").unwrap();
    let transaction = lease.transaction().unwrap();
    // On a busy machine, this may be late already.
    let inserted = transaction.execute("INSERT INTO t VALUES (1)", ());
    assert!(inserted.as_ref().is_ok_and(|n| *n == 1) || is_interrupt(&inserted.unwrap_err()));
    let filled = transaction.execute(
        "INSERT INTO t WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000000) SELECT i FROM n",
        (),
    );
    assert!(is_interrupt(&filled.unwrap_err()));
    assert!(transaction.is_autocommit());
    drop(transaction);
    drop(lease);
    assert_eq!(fixture.count_all(&pool), 0);
}

/// The interrupt of a lease that has ended would hit the next borrower of its connection.
fn the_next_borrower_is_not(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).max_hold(LIMIT).build().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Holds it until it is interrupted, and then a little longer or not.
        scope.spawn(|| {
            for i in 0..20 {
                let lease = pool.lease("late").unwrap();
                assert!(is_interrupt(&endless(&lease).unwrap_err()));
                thread::sleep(Duration::from_millis(i % 12));
                drop(lease);
            }
            over.store(true, Relaxed);
        });
        scope.spawn(|| {
            while !over.load(Relaxed) {
                // It does not wait, so the lease is no older than this.
                let begun = Instant::now();
                let Ok(lease) = pool.try_lease("late") else {
                    thread::yield_now();
                    continue;
                };
                let sum =
                    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000)
                           SELECT count(*) FROM n";
                let found = lease.query_row(sum, [], |row| row.get::<_, i64>(0));
                // A machine that is busy with other things may make it late.
                if begun.elapsed() < LIMIT {
                    assert_eq!(found, Ok(20_000), "after {:?}", begun.elapsed());
                }
            }
        });
    });
    assert!(pool.stats().interrupted >= 20);
}

/// An interrupt that finds no statement stays with the connection, and would end the checkpoint of its close.
fn the_last_checkpoint_is_not(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).max_hold(LIMIT).build().unwrap();
    let lease = pool.lease("a").unwrap();
    lease.execute("INSERT INTO t VALUES (1)", ()).unwrap();
    eventually("it is interrupted", || pool.stats().interrupted == 1);
    drop(lease);
    pool.close().unwrap();
    let log = fixture.file("a").with_extension("db-wal");
    assert!(
        !log.exists(),
        "{} bytes",
        std::fs::metadata(log).unwrap().len()
    );
}

fn what_the_pool_does_itself_is_not(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).max_hold(LIMIT).build().unwrap();
    // The same connection served a borrower before.
    drop(pool.lease("a").unwrap());
    let late = |tx: &Connection| {
        thread::sleep(LIMIT * 4);
        tx.execute_batch(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000000)
             SELECT count(*) FROM n",
        )?;
        tx.execute("INSERT INTO t VALUES (1)", ())
    };
    let before = pool.stats().interrupted;
    pool.write("a", move |tx| late(tx)).unwrap();
    smol::block_on(pool.write_async("a", move |tx| late(tx))).unwrap();
    assert_eq!(pool.stats().interrupted, before);
    assert_eq!(fixture.count_all(&pool), 2);
    let before = pool.stats().interrupted;
    // A lease that runs nothing is told of, and keeps its connection.
    let idle = pool.lease("a").unwrap();
    eventually("it is told of", || pool.stats().interrupted == before + 1);
    assert_eq!(pool.holders()[0].agent, "a");
    drop(idle);
}
