//! Leases awaited: on tokio, on smol, dropped at any moment.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Database, Error, Lease, Pool};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use smol::future::poll_once;

use crate::common::{Fixture, LONG, in_one_of_three, within};

fn assert_send<T: Send>(value: T) -> T {
    value
}

/// Every permit and connection is there, and nobody waits.
pub(crate) fn assert_whole(pool: &Pool) {
    let stats = pool.stats();
    assert_eq!((stats.lent, stats.waiting, stats.stuck), (0, 0, 0));
    let all: Vec<_> = (0..stats.max_connections)
        .map(|i| {
            pool.agent(format!("whole-{i}"))
                .within(LONG)
                .lease()
                .unwrap()
        })
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(all);
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "never: {what}");
        thread::yield_now();
    }
}

async fn count_rows(pool: Pool) -> i64 {
    let lease = pool.lease_async(String::from("a")).await.unwrap();
    lease.execute("INSERT INTO t VALUES (1)", ()).unwrap();
    drop(lease);
    let lease = pool.lease_async("a").await.unwrap();
    assert_eq!(Lease::agent(&lease), "a");
    lease
        .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
        .unwrap()
}

#[test]
fn on_any_executor() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    assert_eq!(smol::block_on(assert_send(count_rows(pool.clone()))), 1);
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap();
    let task = runtime.spawn(count_rows(pool.clone()));
    assert_eq!(runtime.block_on(task).unwrap(), 2);
    assert_eq!(pool.stats().hits, 3);
    smol::block_on(pool.close_async()).unwrap();
    smol::block_on(pool.close_async()).unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
    assert!(matches!(
        smol::block_on(pool.lease_async("a")),
        Err(Error::Closed)
    ));
    assert!(matches!(
        smol::block_on(pool.lease_async("")),
        Err(Error::InvalidAgent { .. })
    ));
}

#[test]
fn blocking_and_awaiting_callers_are_served_in_turn() {
    let pool = Pool::builder(Database::memory())
        .max_connections(1)
        .lease_timeout(LONG)
        .build()
        .unwrap();
    let lease = pool.lease("first").unwrap();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        for i in 0..12_usize {
            let (pool, tell) = (&pool, tell.clone());
            scope.spawn(move || {
                let lease = match i % 2 {
                    0 => pool.lease(format!("{i}")),
                    _ => smol::block_on(pool.lease_async(format!("{i}"))),
                };
                tell.send(i).unwrap();
                drop(lease.unwrap());
            });
            until("it waits", || pool.stats().waiting == i + 1);
        }
        let waiting: Vec<_> = pool.waiting().into_iter().map(|w| w.agent).collect();
        assert_eq!(waiting, (0..12).map(|i| i.to_string()).collect::<Vec<_>>());
        assert!(pool.waiting()[0].asked_at.file().ends_with("awaiting.rs"));
        drop(lease);
    });
    drop(tell);
    assert_eq!(told.iter().collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
}

#[test]
fn exhaustion_is_timed_and_explained() {
    let pool = Pool::builder(Database::memory())
        .max_connections(1)
        .lease_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let lease = pool.lease("holder").unwrap();
    let line = line!() - 1;
    for wait in [200, 100] {
        let start = Instant::now();
        let refused = match wait {
            200 => smol::block_on(pool.lease_async("other")),
            _ => smol::block_on(
                pool.agent("other")
                    .within(Duration::from_millis(wait))
                    .lease_async(),
            ),
        };
        let waited = start.elapsed().as_millis();
        let Err(Error::Exhausted { holders, .. }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(holders[0].agent, "holder");
        assert_eq!(holders[0].borrowed_at.line(), line);
        let wait = u128::from(wait);
        assert!(
            waited >= wait && waited <= wait + wait / 10 + 15,
            "{waited}"
        );
    }
    assert_eq!(pool.stats().timeouts, 2);
    // A future that is not polled waits for nothing; one that is shows where it was made.
    let mut asked = pin!(pool.lease_async("third"));
    let line = line!() - 1;
    assert_eq!(pool.stats().waiting, 0);
    assert!(smol::block_on(poll_once(&mut asked)).is_none());
    assert_eq!(pool.waiting()[0].asked_at.line(), line);
    drop(lease);
    assert_eq!(Lease::agent(&smol::block_on(asked).unwrap()), "third");
}

#[test]
fn close_refuses_those_who_await() {
    let pool = Pool::builder(Database::memory())
        .max_connections(1)
        .lease_timeout(LONG)
        .build()
        .unwrap();
    let lease = pool.lease("holder").unwrap();
    let mut asked = pin!(pool.lease_async("other"));
    assert!(smol::block_on(poll_once(&mut asked)).is_none());
    let mut closed = pin!(pool.close_async());
    assert!(smol::block_on(poll_once(&mut closed)).is_none());
    assert!(matches!(smol::block_on(asked), Err(Error::Closed)));
    drop(lease);
    smol::block_on(closed).unwrap();
    assert_eq!(pool.stats().open, 0);
}

/// One thread runs everything; a slow `on_open` must not hold it up.
#[test]
fn opening_does_not_block_the_executor() {
    let pool = in_one_of_three(|| {
        let pool = Pool::builder(Database::memory())
            .max_connections(2)
            .on_open(|_| {
                thread::sleep(Duration::from_millis(300));
                Ok::<_, rusqlite::Error>(())
            })
            .build()
            .unwrap();
        drop(pool.lease("warm").unwrap());
        let start = Instant::now();
        let mut slow = Box::pin(pool.lease_async("slow"));
        // Warm is parked, the second slot is vacant: only the second has to be opened.
        within(Duration::from_millis(100), || {
            smol::block_on(async {
                assert!(poll_once(&mut slow).await.is_none());
                drop(pool.lease_async("warm").await.unwrap());
            });
        })?;
        drop(smol::block_on(slow).unwrap());
        assert!(start.elapsed() >= Duration::from_millis(300));
        Ok(pool)
    });
    // Dropped while the connection is being opened: it arrives, and is there for the next.
    pool.evict("slow");
    pool.evict("warm");
    Lease::discard(pool.lease("x").unwrap());
    Lease::discard(pool.lease("y").unwrap());
    let opens = pool.stats().opens;
    assert!(smol::block_on(poll_once(pin!(pool.lease_async("dropped")))).is_none());
    until("it is opened", || pool.stats().lent == 0);
    assert_eq!(pool.stats().opens, opens + 1);
    assert_whole(&pool);
}

#[test]
fn a_failure_to_open_reaches_whoever_awaits() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("a").unwrap();
    std::fs::remove_file(&fixture.path).unwrap();
    drop(lease);
    until("it is noticed", || {
        let result = smol::block_on(pool.lease_async("b"));
        matches!(result, Err(Error::FileReplaced { .. }))
    });
    assert_eq!(pool.stats().lent, 0);
}

/// Threads await leases and drop the futures after a random time, while others are served, until
/// there were enough of either. In the end nothing is missing.
#[test]
fn ten_thousand_dropped_futures_leave_nothing_behind() {
    const FUTURES: usize = 10_000;
    let fixture = Fixture::new();
    let pool = fixture.pool(3);
    drop(pool.lease("warm").unwrap());
    let (dropped, served) = (AtomicUsize::new(0), AtomicUsize::new(0));
    // How many are dropped depends on how fast the machine serves.
    let enough = || {
        let (dropped, served) = (dropped.load(SeqCst), served.load(SeqCst));
        dropped + served >= FUTURES && dropped >= FUTURES / 10 && served >= FUTURES / 20
    };
    thread::scope(|scope| {
        for seed in 0..8 {
            let (pool, enough, dropped, served) = (&pool, &enough, &dropped, &served);
            scope.spawn(move || {
                let mut rng = SmallRng::seed_from_u64(seed);
                while !enough() {
                    let agent = format!("agent-{}", rng.random_range(0..12));
                    let hold = Duration::from_micros(rng.random_range(0..60));
                    // Some wait until they are served, whatever else the machine does.
                    let patience = match rng.random_range(0..8) {
                        0 => LONG,
                        _ => Duration::from_micros(rng.random_range(0..3_000)),
                    };
                    let turn = async {
                        let lease = pool.lease_async(&agent).await.unwrap();
                        lease.query_row("SELECT 1", [], |_| Ok(())).unwrap();
                        smol::Timer::after(hold).await;
                        if hold.as_micros().is_multiple_of(40) {
                            Lease::discard(lease);
                        }
                        served.fetch_add(1, SeqCst);
                    };
                    let give_up = async {
                        smol::Timer::after(patience).await;
                        dropped.fetch_add(1, SeqCst);
                    };
                    smol::block_on(smol::future::or(turn, give_up));
                }
            });
        }
    });
    until("the last one is opened", || pool.stats().lent == 0);
    assert_whole(&pool);
    let found = fixture.descriptors();
    assert!(
        found.wal <= 3 && found.db <= 3 && found.shm <= 1,
        "{found:?}"
    );
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

#[test]
fn a_lease_crosses_threads_with_its_task() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let pool = Arc::new(pool);
    let work = |pool: Arc<Pool>| async move {
        let lease = pool.lease_async("a").await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        lease.query_row("SELECT 7", [], |row| row.get::<_, i64>(0))
    };
    fn spawnable<F: Future + Send + 'static>(future: F) -> F {
        future
    }
    let task = runtime.spawn(spawnable(work(Arc::clone(&pool))));
    assert_eq!(runtime.block_on(task).unwrap().unwrap(), 7);
}
