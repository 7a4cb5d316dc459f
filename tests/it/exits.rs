//! P2: every exit returns the connection. P3: a lent connection is never taken away or closed.
//! P7: a parked connection never starves another agent. P9: an idle process obeys `idle_timeout`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Lease, Pool};

use crate::common::*;

in_both_modes! {
    eviction_by_size_gives_the_connection_back,
    size_evicts_the_least_recently_used,
    a_pool_that_caches_nobody_works,
    an_idle_process_obeys_the_idle_timeout,
    an_agent_that_keeps_coming_is_not_idle,
    release_gives_the_connection_back,
    a_panic_in_user_code_gives_the_connection_back,
    a_panic_in_on_open_gives_the_slot_back,
    a_pool_dropped_while_a_lease_is_out_closes_when_it_comes_back,
    a_lent_connection_survives_every_eviction,
    an_agent_evicted_while_lent_goes_straight_to_r2d2,
    parked_connections_never_starve_another_agent,
    an_interrupt_handle_ends_with_its_lease,
    leases_move_between_threads,
}

fn eviction_by_size_gives_the_connection_back(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(4).cached_agents(1).build().unwrap();
    let a = pool.lease("a").unwrap();
    let b = pool.lease("b").unwrap();
    drop(a);
    drop(b);
    let stats = pool.stats();
    assert_eq!((stats.parked, stats.evicted_by_size), (1, 1), "{stats:?}");
    mode.assert_open(&pool, 1, 1);
    assert_whole(&pool);
}

fn size_evicts_the_least_recently_used(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(4).cached_agents(2).build().unwrap();
    for agent in ["a", "b", "a", "c"] {
        drop(pool.lease(agent).unwrap());
    }
    // b is the one that had not been used for longest.
    assert!(!pool.evict("b"));
    assert!(pool.evict("a"));
    assert!(pool.evict("c"));
}

fn a_pool_that_caches_nobody_works(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(2).cached_agents(0).build().unwrap();
    for _ in 0..10 {
        insert(&pool.lease("a").unwrap());
    }
    let stats = pool.stats();
    assert_eq!((stats.hits, stats.parked), (0, 0));
    // What is evicted waits for its agent until maintenance closes it, which may be at once.
    assert!(stats.opens == 1 || mode == Mode::PerAgent, "{stats:?}");
    assert_eq!(count(&pool.lease(mode.reader_of("a")).unwrap()), 10);
    assert_whole(&pool);
}

fn an_idle_process_obeys_the_idle_timeout(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture
        .builder(2)
        .idle_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    let parked = Instant::now();
    assert_eq!(pool.stats().parked, 1);
    // Nothing but looking at the stats, which evicts nothing.
    eventually("the connection is back in r2d2", || {
        pool.stats().parked == 0
    });
    let took = parked.elapsed();
    assert!(took >= Duration::from_millis(250), "{took:?}");
    assert!(took <= Duration::from_millis(1_300), "{took:?}");
    assert_eq!(pool.stats().evicted_by_idle, 1);
    mode.assert_open(&pool, 0, 1);
    assert_whole(&pool);
}

fn an_agent_that_keeps_coming_is_not_idle(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture
        .builder(2)
        .idle_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(800) {
        drop(pool.lease("a").unwrap());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(pool.stats().evicted_by_idle, 0);
    assert_eq!(pool.stats().misses, 1);
}

fn release_gives_the_connection_back(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    assert!(!pool.evict("a"));
    drop(pool.lease("a").unwrap());
    assert!(pool.evict("a"));
    assert!(!pool.evict("a"));
    let stats = pool.stats();
    assert_eq!((stats.parked, stats.evicted_by_call), (0, 1));
    mode.assert_open(&pool, 0, 1);
    assert_whole(&pool);
}

/// Not of agents' own connections: an agent has one at a time.
#[test]
fn an_agent_may_have_several_connections_parked() {
    let fixture = Fixture::new();
    let pool = fixture.pool(3);
    let (first, second) = (pool.lease("a").unwrap(), pool.lease("a").unwrap());
    drop(first);
    drop(second);
    let stats = pool.stats();
    assert_eq!((stats.parked, stats.open), (2, 2));
    let (first, second) = (pool.lease("a").unwrap(), pool.lease("a").unwrap());
    drop((first, second));
    assert_eq!(pool.stats().hits, 2);
    assert!(pool.evict("a"));
    let stats = pool.stats();
    assert_eq!((stats.parked, stats.open, stats.evicted_by_call), (0, 2, 2));
    assert_whole(&pool);
}

fn a_panic_in_user_code_gives_the_connection_back(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lease = pool.lease("a").unwrap();
        lease
            .execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
            .unwrap();
        panic!("user code");
    }));
    assert!(panicked.is_err());
    for agent in ["b", "a"] {
        let lease = pool.try_lease(agent).unwrap();
        assert!(lease.is_autocommit());
        assert_eq!(count(&lease), 0);
    }
}

fn a_panic_in_on_open_gives_the_slot_back(mode: Mode) {
    let fixture = mode.fixture();
    let armed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let pool = {
        let armed = std::sync::Arc::clone(&armed);
        fixture
            .builder(2)
            .on_open(move |_| {
                assert!(
                    !armed.load(std::sync::atomic::Ordering::Relaxed),
                    "on_open broke"
                );
                Ok::<_, rusqlite::Error>(())
            })
            .build()
            .unwrap()
    };
    armed.store(true, std::sync::atomic::Ordering::Relaxed);
    for _ in 0..6 {
        let error = pool.try_lease("a").unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "on_open panicked: on_open broke");
    }
    armed.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_whole(&pool);
}

fn a_pool_dropped_while_a_lease_is_out_closes_when_it_comes_back(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(3);
    let lease = pool.lease("a").unwrap();
    drop(pool.lease("b").unwrap());
    drop(pool);
    // The parked one is closed at once, the lent one works on.
    insert(&lease);
    assert_eq!(fixture.descriptors().wal, 1);
    assert_eq!(count(&lease), 1);
    drop(lease);
    eventually("a thread of the pool's has closed it", || {
        fixture.descriptors().all() == 0
    });
    // Until it has given the file up, too, another pool may not have it.
    let mut again = None;
    eventually("the file is given up", || {
        again = fixture.builder(1).build().ok();
        again.is_some()
    });
    assert_eq!(fixture.count_all(&again.unwrap()), 1);
}

/// Everything that ends an agent's stay in the cache, done while the agent holds its connection.
fn a_lent_connection_survives_every_eviction(mode: Mode) {
    type Cause = fn(&Pool);
    let causes: [(&str, Cause); 5] = [
        ("release", |pool| {
            assert!(!pool.evict("writer"));
        }),
        ("size", |pool| {
            for i in 0..5 {
                drop(pool.lease(format!("other-{i}")).unwrap());
            }
        }),
        ("idle", |_| thread::sleep(Duration::from_millis(300))),
        ("reclaim", |pool| {
            let others: Vec<_> = (0..3)
                .map(|i| pool.lease(format!("needy-{i}")).unwrap())
                .collect();
            assert!(pool.try_lease("too many").is_err());
            drop(others);
        }),
        ("close", |pool| {
            assert!(pool.close_within(Duration::from_millis(20)).is_err());
        }),
    ];
    for (name, cause) in causes {
        let fixture = mode.fixture();
        let pool = fixture
            .builder(4)
            .cached_agents(2)
            .idle_timeout(Duration::from_millis(50))
            .synchronous(leasepool::Synchronous::Off)
            .build()
            .unwrap();
        // So that the writer's entry is in the cache while it is lent.
        drop(pool.lease("writer").unwrap());
        let (go, wait) = mpsc::channel::<()>();
        let mut lease = pool.lease("writer").unwrap();
        thread::scope(|scope| {
            let writer = scope.spawn(move || {
                let transaction = lease.transaction().unwrap();
                for i in 0..1_000 {
                    if i == 500 {
                        wait.recv().unwrap();
                    }
                    insert(&transaction);
                }
                transaction.commit().unwrap();
                lease
            });
            cause(&pool);
            assert!(pool.stats().lent >= 1, "{name}");
            go.send(()).unwrap();
            let lease = writer.join().unwrap();
            assert_eq!(count(&lease), 1_000, "{name}");
            let before = pool.stats();
            drop(lease);
            assert_eq!(pool.stats().lent, before.lent - 1, "{name}");
        });
        if name != "close" {
            assert_eq!(fixture.count_all(&pool), 1_000, "{name}");
            assert_whole(&pool);
        }
        drop(pool);
        // What was lent as the pool was closed, a thread of the pool's closes.
        eventually("all is closed", || fixture.descriptors().all() == 0);
    }
}

fn an_agent_evicted_while_lent_goes_straight_to_r2d2(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    drop(pool.lease("a").unwrap());
    let lease = pool.lease("a").unwrap();
    assert!(!pool.evict("a"));
    drop(lease);
    assert_eq!(pool.stats().parked, 0);
    mode.assert_open(&pool, 0, 1);
}

fn parked_connections_never_starve_another_agent(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(4);
    // To make a file takes as long as the disk does; to open it does not.
    drop(pool.lease("newcomer").unwrap());
    for i in 0..4 {
        drop(pool.lease(format!("parked-{i}")).unwrap());
    }
    // Every connection is open and free for the taking only by reclaim.
    let leases: Vec<_> = (0..4)
        .map(|i| pool.lease(format!("{i}")).unwrap())
        .collect();
    drop(leases);
    assert_eq!(pool.stats().parked, 4);
    let start = Instant::now();
    let lease = pool.lease("newcomer").unwrap();
    let mut took = start.elapsed();
    drop(lease);
    // One was reclaimed, and no more.
    let kept = (0..4).filter(|i| pool.evict(format!("{i}")));
    assert_eq!(kept.count(), 3);
    // The thread that opens a file may not get a processor: one of these leases is quick enough.
    let until = Instant::now() + LONG;
    for round in 0.. {
        if took < Duration::from_millis(5) || Instant::now() > until {
            break;
        }
        let parked = (0..4).map(|i| pool.lease(format!("{round}-{i}")).unwrap());
        drop(parked.collect::<Vec<_>>());
        let start = Instant::now();
        drop(pool.lease("newcomer").unwrap());
        took = took.min(start.elapsed());
    }
    assert!(took < Duration::from_millis(5), "{took:?}");
}

fn an_interrupt_handle_ends_with_its_lease(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    let handle = Lease::interrupt_handle(&lease);
    let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) \
                   SELECT count(*) FROM c";
    thread::scope(|scope| {
        let (stop, stopped) = mpsc::channel::<()>();
        scope.spawn(move || {
            while stopped.recv_timeout(Duration::from_millis(1)).is_err() {
                handle.interrupt();
            }
        });
        let interrupted = lease.query_row(endless, [], |row| row.get::<_, i64>(0));
        assert!(interrupted.is_err());
        // The other thread goes on interrupting: the next borrower of the connection feels nothing.
        drop(lease);
        let other = pool.lease(mode.either("b", "a")).unwrap();
        let finite = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 300000) \
                      SELECT count(*) FROM c";
        let counted: i64 = other.query_row(finite, [], |row| row.get(0)).unwrap();
        assert_eq!(counted, 300_000);
        stop.send(()).unwrap();
    });
}

fn leases_move_between_threads(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    thread::spawn(move || insert(&lease)).join().unwrap();
    assert_eq!(count(&pool.try_lease(mode.reader_of("a")).unwrap()), 1);
}
