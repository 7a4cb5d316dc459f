//! The verdict about a pool, and what it is made of. CASES D3.

use std::time::{Duration, Instant};

use leasepool::{Error, Health, Pool, rusqlite};

use crate::common::*;

fn codes(pool: &Pool) -> Vec<&'static str> {
    let health = pool.health();
    health.reasons().iter().map(|reason| reason.code).collect()
}

fn until_code(pool: &Pool, code: &str, most: Duration) {
    let start = Instant::now();
    while !codes(pool).contains(&code) {
        assert!(start.elapsed() < most, "no {code}: {:?}", pool.health());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn write(pool: &Pool) -> Result<usize, Error> {
    pool.write("a", |tx| -> rusqlite::Result<usize> {
        tx.execute("INSERT INTO t VALUES (1)", [])
    })
}

/// What the verdict must say within five seconds of the first write, here in a pool whose writes wait for `timeout`.
fn a_foreign_write_lock_is_told(timeout: Duration, leased: bool) {
    let fixture = Fixture::new();
    let pool = fixture.builder(4).lease_timeout(timeout).build().unwrap();
    write(&pool).unwrap();
    assert_eq!(pool.health(), Health::Healthy);
    let other = rusqlite::Connection::open(&fixture.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let begun = Instant::now();
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let outcome = match leased {
                    true => pool.lease("b").and_then(|mut lease| {
                        leasepool::Lease::write(&mut lease, |tx| -> rusqlite::Result<usize> {
                            tx.execute("INSERT INTO t VALUES (1)", [])
                        })
                    }),
                    false => write(&pool),
                };
                assert!(outcome.is_err_and(|error| error.is_retryable()));
            }
        });
        let within = Duration::from_secs(5);
        until_code(&pool, "writes-locked-out", within);
        println!("told after {:?}", begun.elapsed());
        let health = pool.health();
        assert_eq!(health.name(), "degraded");
        let reason = &health.reasons()[0];
        assert!(reason.text.starts_with("another process"), "{reason:?}");
        assert!(reason.link.ends_with("#writes-wait"), "{reason:?}");
        let refused = pool.ready().unwrap_err();
        assert_eq!(refused.http_status(), 503, "{refused:?}");
        // Readers go on.
        assert_eq!(count(&pool.lease("reader").unwrap()), 1);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    other.execute_batch("COMMIT").unwrap();
    write(&pool).unwrap();
    pool.ready().unwrap();
    assert!(!codes(&pool).contains(&"writes-locked-out"));
}

#[test]
fn a_foreign_write_lock_is_told_while_writes_wait() {
    a_foreign_write_lock_is_told(Duration::from_secs(7), false);
}

#[test]
fn a_foreign_write_lock_is_told_while_writes_fail() {
    a_foreign_write_lock_is_told(Duration::from_millis(50), false);
}

#[test]
fn a_foreign_write_lock_is_told_of_leases_that_write() {
    a_foreign_write_lock_is_told(Duration::from_millis(50), true);
}

#[test]
fn a_file_that_is_gone_and_a_pool_that_is_closed_are_down() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let away = fixture.path.with_extension("away");
    std::fs::rename(&fixture.path, &away).unwrap();
    let_a_change_show();
    assert!(pool.health().is_down());
    assert_eq!(codes(&pool), ["no-database"]);
    let health = pool.health();
    let text = &health.reasons()[0].text;
    assert!(text.starts_with("the database file was deleted"), "{text}");
    std::fs::rename(&away, &fixture.path).unwrap();
    let_a_change_show();
    assert!(!pool.health().is_down());
    pool.close().unwrap();
    assert_eq!(codes(&pool), ["closed"]);
    assert!(pool.health().is_down());
}

#[test]
fn calls_that_wait_or_give_up_are_told_and_so_is_an_overdue_lease() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .lease_timeout(Duration::from_millis(200))
        .overdue_after(Some(Duration::from_millis(100)))
        .build()
        .unwrap();
    let held = pool.lease("holder").unwrap();
    std::thread::scope(|scope| {
        let late = scope.spawn(|| pool.agent("late").within(LONG).lease().map(drop));
        // It still waits.
        until_code(&pool, "waits", LONG);
        until_code(&pool, "overdue", LONG);
        assert!(pool.lease("impatient").is_err());
        until_code(&pool, "timeouts", LONG);
        drop(held);
        late.join().unwrap().unwrap();
    });
    assert!(!codes(&pool).contains(&"overdue"));
}

/// The ten seconds of the fault pass.
#[test]
fn a_fault_that_is_over_is_forgotten() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(1)
        .lease_timeout(Duration::from_millis(10))
        .build()
        .unwrap();
    // Opening takes what the machine gives it.
    let held = pool.agent("holder").within(LONG).lease().unwrap();
    assert!(pool.lease("late").is_err());
    drop(held);
    until_code(&pool, "timeouts", LONG);
    let start = Instant::now();
    eventually("it is healthy again", || pool.health() == Health::Healthy);
    assert!(start.elapsed() < Duration::from_secs(15), "{start:?}");
}

#[test]
fn an_open_read_transaction_that_keeps_the_log_is_told() {
    let fixture = Fixture::new();
    let pool = fixture.builder(3).wal_size(1 << 16).build().unwrap();
    let reader = pool.lease("reader").unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM t")
        .unwrap();
    let start = Instant::now();
    while !codes(&pool).contains(&"log-pinned") {
        assert!(
            start.elapsed() < LONG,
            "{:?} {:?}",
            pool.health(),
            pool.stats()
        );
        pool.write("a", |tx| -> rusqlite::Result<usize> {
            tx.execute("INSERT INTO t VALUES (zeroblob(20000))", [])
        })
        .unwrap();
    }
    drop(reader);
    eventually("the log is free", || {
        write(&pool).unwrap();
        !codes(&pool).contains(&"log-pinned")
    });
}

#[test]
fn windows_tell_what_was_done_lately() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    for _ in 0..100 {
        drop(pool.lease("a").unwrap());
    }
    for _ in 0..5 {
        write(&pool).unwrap();
    }
    eventually("a snapshot is taken", || {
        pool.windows().ten_seconds.writes == 5
    });
    let windows = pool.windows();
    for window in [&windows.ten_seconds, &windows.minute, &windows.five_minutes] {
        // The leases of the writer are counted, too.
        assert!(window.leases >= 100, "{window:?}");
        assert_eq!(window.write_groups, 5);
        assert_eq!(window.group_size(), Some(1.0));
        assert!(window.hit_rate().unwrap() > 0.5);
        assert_eq!(window.write.count, 5);
        assert!(window.write.p50 <= window.write.p99 && window.write.p99 <= window.write.max);
        assert!(window.rate(window.leases) > 0.0);
    }
}
