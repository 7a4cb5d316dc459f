//! tokio's paused clock: it does not jump while the pool is at work, and moves while tasks wait for each other.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Error, Pool};

use crate::common::*;

in_both_modes! {
    the_clock_stands_still_while_the_pool_works,
    the_clock_moves_while_a_task_holds_the_connection,
    a_write_that_waits_for_a_task_is_done_when_it_has_its_connection
}

/// Much longer than any timer of the tests, and much shorter than what they would wait for on a real clock.
const SLOW: Duration = Duration::from_millis(60);
const TIMER: Duration = Duration::from_millis(20);

/// Every opening and every write takes a while.
fn slow_pool(fixture: &Fixture, connections: usize) -> Pool {
    let slow = |_: &mut leasepool::rusqlite::Connection| {
        thread::sleep(SLOW);
        Ok::<_, Error>(())
    };
    fixture.builder(connections).on_open(slow).build().unwrap()
}

fn paused<F: Future>(work: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(work)
}

async fn in_time<F: Future>(work: F) -> F::Output {
    let done = tokio::time::timeout(TIMER, work).await;
    done.expect("the clock has jumped")
}

fn the_clock_stands_still_while_the_pool_works(mode: Mode) {
    let fixture = mode.fixture();
    let pool = slow_pool(&fixture, 4);
    let begun = Instant::now();
    paused(async {
        let first = in_time(pool.lease_async("a")).await.unwrap();
        let second = in_time(pool.lease_async("b")).await.unwrap();
        drop((first, second));
        let slowly = |_: &leasepool::rusqlite::Connection| {
            thread::sleep(SLOW);
            Ok(())
        };
        in_time(pool.write_async("c", move |tx| slowly(tx)))
            .await
            .unwrap();
        in_time(pool.read_async("a", move |tx| slowly(tx)))
            .await
            .unwrap();
        in_time(pool.run("b", move |conn| slowly(conn)))
            .await
            .unwrap();
        in_time(pool.close_async()).await.unwrap();
    });
    assert!(begun.elapsed() >= SLOW * 4, "nothing was slow");
}

fn the_clock_moves_while_a_task_holds_the_connection(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
    let begun = Instant::now();
    paused(async {
        let held = pool.lease_async("a").await.unwrap();
        let start = tokio::time::Instant::now();
        let holder = async {
            tokio::time::sleep(LONG * 10).await;
            drop(held);
        };
        let (_, lease) = smol::future::zip(holder, pool.lease_async("a")).await;
        drop(lease.unwrap());
        let passed = start.elapsed();
        assert!(passed >= LONG * 10 && passed < LONG * 11, "{passed:?}");
    });
    assert!(begun.elapsed() < LONG, "it has waited on the real clock");
}

fn a_write_that_waits_for_a_task_is_done_when_it_has_its_connection(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
    paused(async {
        let held = pool.lease_async("a").await.unwrap();
        let hold = Duration::from_secs(10);
        let holder = async {
            tokio::time::sleep(hold).await;
            drop(held);
        };
        let write = pool.write_async("a", |tx| {
            thread::sleep(SLOW);
            tx.execute("INSERT INTO t VALUES (1)", [])
        });
        let write = tokio::time::timeout(hold + TIMER, write);
        let (_, written) = smol::future::zip(holder, write).await;
        written.expect("the clock has jumped").unwrap();
    });
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
}

#[test]
fn the_clock_stands_still_while_a_thread_looks_for_a_file() {
    let fixture = Mode::PerAgent.fixture();
    std::fs::create_dir(&fixture.path).unwrap();
    let folder = fixture.path.clone();
    let database = leasepool::Database::per_agent_with(move |agent| {
        thread::sleep(SLOW);
        folder.join(format!("{agent}.db"))
    });
    let pool = Pool::builder(database).build().unwrap();
    let exists = || paused(async { in_time(pool.agent("a").exists_async()).await.unwrap() });
    assert!(!exists());
    drop(pool.lease("a").unwrap());
    // Parked, and by its file.
    assert!(exists());
    pool.evict("a");
    assert!(exists());
    pool.close().unwrap();
}
