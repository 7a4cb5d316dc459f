//! The stress test: many threads, random actions, while a sampler checks P1 and P18.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Error, Lease, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;

in_both_modes! {
    random_actions_from_many_threads,
}

/// A caller without patience: every connection is lent, or another opening has the descriptors that this one needs.
fn had_no_time(error: &Error) -> bool {
    matches!(error, Error::Exhausted { .. } | Error::NoDescriptors { .. })
}

fn random_actions_from_many_threads(mode: Mode) {
    const CONNECTIONS: usize = 5;
    let time = Duration::from_secs(asked("LEASEPOOL_STRESS", 3).into());
    let fixture = mode.fixture();
    let pool = fixture
        .builder(CONNECTIONS)
        .cached_agents(4)
        .idle_timeout(Duration::from_millis(20))
        .max_lifetime(Duration::from_millis(100))
        .lease_timeout(LONG)
        .busy_timeout(LONG)
        .synchronous(Synchronous::Off)
        .build()
        .unwrap();
    let (done, rows) = (AtomicBool::new(false), AtomicI64::new(0));
    let peak = thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut peak = Descriptors::default();
            while !done.load(Relaxed) {
                thread::sleep(Duration::from_micros(200));
                let stats = pool.stats();
                assert!(stats.open <= CONNECTIONS, "{stats:?}");
                assert!(stats.lent <= CONNECTIONS, "{stats:?}");
                let found = fixture.descriptors();
                // They are read one after the other: meanwhile a connection that was counted may have been
                // closed, and the next one of its slot counted, too.
                if pool.stats().closes != stats.closes {
                    continue;
                }
                let files = mode.files(CONNECTIONS);
                assert!(found.wal <= CONNECTIONS && found.shm <= files, "{found:?}");
                assert!(found.all() <= pool.fd_ceiling(), "{found:?}");
                peak = peak.max(found);
            }
            peak
        });
        let workers: Vec<_> = (0..12)
            .map(|seed| {
                let (pool, rows) = (&pool, &rows);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    let end = Instant::now() + time;
                    while Instant::now() < end {
                        let agent = format!("agent-{}", rng.random_range(0..20));
                        let lease = match rng.random_range(0..10) {
                            0 => match pool.try_lease(&agent) {
                                Ok(lease) => lease,
                                Err(error) if had_no_time(&error) => continue,
                                Err(other) => panic!("{other}"),
                            },
                            1 => match pool.agent(&agent).within(Duration::from_micros(50)).lease()
                            {
                                Ok(lease) => lease,
                                Err(error) if had_no_time(&error) => continue,
                                Err(other) => panic!("{other}"),
                            },
                            _ => pool.lease(&agent).unwrap(),
                        };
                        assert!(lease.is_autocommit());
                        match rng.random_range(0..12) {
                            0 => Lease::discard(lease),
                            1 => {
                                lease
                                    .execute_batch("CREATE TEMP TABLE IF NOT EXISTS s (x)")
                                    .unwrap();
                            }
                            2 => {
                                lease
                                    .execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (0)")
                                    .unwrap();
                            }
                            3 => {
                                pool.evict(&agent);
                            }
                            4 => thread::yield_now(),
                            5..8 => {
                                insert(&lease);
                                rows.fetch_add(1, Relaxed);
                            }
                            _ => assert!(count(&lease) >= 0),
                        }
                    }
                })
            })
            .collect();
        let workers: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        // Before a worker's panic ends the test, which waits for the sampler.
        done.store(true, Relaxed);
        workers.into_iter().for_each(|worked| worked.unwrap());
        sampler.join().unwrap()
    });
    assert!(peak.wal > 1, "the sampler saw nothing: {peak:?}");
    let stats = pool.stats();
    assert_eq!(stats.lent, 0);
    assert_eq!(stats.opens - stats.closes, stats.open as u64, "{stats:?}");
    assert_whole(&pool);
    assert_eq!(fixture.count_all(&pool), rows.load(Relaxed));
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}
