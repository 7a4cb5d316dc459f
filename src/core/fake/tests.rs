//! The core alone: what happens to connections, permits and slots, whatever the backend does.
//! It uses no SQLite.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use super::*;

#[test]
fn a_hit_is_the_same_connection_and_is_not_reset() {
    let (pool, switches) = pool(2);
    let mut lease = pool.lease("a").unwrap();
    lease.connection_mut().seen_by.insert("a".to_owned());
    drop(lease);
    assert!(pool.lease("a").unwrap().connection().seen_by.contains("a"));
    assert_eq!(switches.resets.load(SeqCst), 0);
    assert_eq!(pool.core.fd_ceiling(), 2);
}

#[test]
fn another_agent_gets_it_reset() {
    let (pool, switches) = pool(1);
    let mut lease = pool.lease("a").unwrap();
    lease.connection_mut().seen_by.insert("a".to_owned());
    drop(lease);
    assert!(pool.lease("b").unwrap().connection().seen_by.is_empty());
    assert_eq!(switches.resets.load(SeqCst), 1);
    assert_eq!(switches.open.load(SeqCst), 1);
    // A newly opened connection that no agent has used is not reset.
    pool.release("b");
    drop(pool.lease("c").unwrap());
    assert_eq!(pool.stats().resets, 2);
}

#[test]
fn a_reset_that_fails_opens_anew_in_the_same_slot() {
    let (pool, switches) = pool(1);
    drop(pool.lease("a").unwrap());
    switches.reset_discards.store(true, Relaxed);
    drop(pool.lease("b").unwrap());
    assert_eq!((pool.stats().opens, pool.stats().closes), (2, 1));
    assert_eq!(switches.most_open.load(SeqCst), 1);
    assert_whole(&pool, &switches);
}

#[test]
fn what_settle_gives_up_does_not_come_back() {
    let (pool, switches) = pool(2);
    switches.settle_discards.store(true, Relaxed);
    drop(pool.lease("a").unwrap());
    eventually("a worker has closed it", || switches.open.load(SeqCst) == 0);
    assert_eq!(switches.faulty.load(SeqCst), 1);
    assert_eq!(pool.stats().discarded_by_lease, 1);
    assert_whole(&pool, &switches);
}

#[test]
fn open_that_fails_or_panics_costs_nothing() {
    let (pool, switches) = pool(2);
    switches.open_fails.store(true, Relaxed);
    for _ in 0..6 {
        assert!(matches!(pool.lease("a"), Err(Error::Open { .. })));
    }
    switches.open_fails.store(false, Relaxed);
    switches.open_panics.store(true, Relaxed);
    for _ in 0..6 {
        assert!(catch_unwind(AssertUnwindSafe(|| pool.lease("a"))).is_err());
    }
    switches.open_panics.store(false, Relaxed);
    let stats = pool.stats();
    assert_eq!((stats.open, stats.lent, stats.open_failures), (0, 0, 12));
    assert_whole(&pool, &switches);
}

#[test]
fn a_close_that_reports_an_error_frees_the_slot() {
    let (pool, switches) = pool(2);
    switches.close_fails.store(true, Relaxed);
    for _ in 0..6 {
        pool.lease("a").unwrap().discard();
    }
    assert_eq!((pool.stats().close_failures, pool.stats().stuck), (6, 0));
    assert_whole(&pool, &switches);
}

#[test]
fn a_connection_that_cannot_be_closed_keeps_its_slot() {
    let (pool, switches) = pool(3);
    let (discarded, reset) = (pool.lease("a").unwrap(), pool.lease("b").unwrap());
    switches.cannot_close.store(true, Relaxed);
    discarded.discard();
    drop(reset);
    switches.reset_discards.store(true, Relaxed);
    let last = pool.lease("c").unwrap();
    // Reclaims the connection parked for b, and cannot use it.
    assert!(pool.try_lease("d").is_err());
    assert_eq!(pool.stats().stuck, 2);
    drop(last);
    // It is closed in the end, if that becomes possible before the pool ends.
    switches.cannot_close.store(false, Relaxed);
    switches.reset_discards.store(false, Relaxed);
    assert_whole(&pool, &switches);
    assert_eq!(switches.most_open.load(SeqCst), 3);
    pool.close(LONG).unwrap();
    assert_eq!(switches.open.load(SeqCst), 0);
    assert_eq!(pool.stats().stuck, 0);
    assert!(switches.closed.load(SeqCst) > 0);
}

#[test]
fn a_pool_whose_connections_cannot_be_closed_says_so() {
    let (pool, switches) = pool(2);
    let lent = pool.lease("a").unwrap();
    drop(pool.lease("b").unwrap());
    switches.cannot_close.store(true, Relaxed);
    assert!(pool.close(Duration::from_millis(20)).is_err());
    drop(lent);
    assert!(pool.close(LONG).is_err());
    assert_eq!((pool.stats().open, pool.stats().stuck), (2, 2));
    assert_eq!(switches.closed.load(SeqCst), 0);
}

#[test]
fn a_new_generation_closes_what_is_idle() {
    let (pool, switches) = pool(3);
    let leases = ["a", "b", "c"].map(|agent| pool.lease(agent).unwrap());
    let [a, b, c] = leases;
    drop((a, b));
    pool.release("a");
    switches.generation.store(1, SeqCst);
    let waited = Instant::now();
    while switches.open.load(SeqCst) != 1 {
        assert!(waited.elapsed() < Duration::from_secs(20));
        thread::yield_now();
    }
    assert_eq!(c.connection().generation, 0);
    drop(c);
    eventually("a worker has closed it", || switches.open.load(SeqCst) == 0);
    assert_eq!(pool.stats().discarded_by_file, 3);
    assert_eq!(pool.lease("b").unwrap().connection().generation, 1);
    assert_whole(&pool, &switches);
}

#[test]
fn closing_a_connection_blocks_nobody_else() {
    let (pool, switches) = pool(3);
    let slow = pool.lease("slow").unwrap();
    drop(pool.lease("warm").unwrap());
    switches.slow_close.store(true, Relaxed);
    thread::scope(|scope| {
        let closing = scope.spawn(move || slow.discard());
        let start = Instant::now();
        while !closing.is_finished() && start.elapsed() < Duration::from_millis(100) {
            drop(pool.lease("warm").unwrap());
            drop(pool.lease("other").unwrap());
            pool.stats();
        }
        assert!(!closing.is_finished(), "it was not slow");
        assert!(pool.stats().leases > 50);
    });
}

#[test]
fn the_backend_is_told_when_all_is_closed() {
    let (pool, switches) = pool(2);
    let lease = pool.lease("a").unwrap();
    drop(pool);
    assert_eq!(switches.closed.load(SeqCst), 0);
    drop(lease);
    eventually("a worker has closed it", || {
        switches.closed.load(SeqCst) == 1
    });
}

/// Threads lease, return, discard and release at random: never more than N connections are open.
#[test]
fn never_more_than_n() {
    const N: usize = 4;
    let (pool, switches) = pool(N);
    thread::scope(|scope| {
        for t in 0..8_usize {
            let pool = &pool;
            scope.spawn(move || {
                for i in 0..2_000 {
                    let agent = ((t * 7 + i * 13) % 11).to_string();
                    let lease = pool.lease(&agent).unwrap();
                    match (t + i) % 9 {
                        0 => lease.discard(),
                        1 => _ = pool.release(&agent),
                        _ => drop(lease),
                    }
                }
            });
        }
    });
    assert!(switches.most_open.load(SeqCst) <= N);
    assert_whole(&pool, &switches);
    pool.close(LONG).unwrap();
    assert_eq!(switches.open.load(SeqCst), 0);
}

fn poll_once<T>(future: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Option<T> {
    smol::block_on(smol::future::poll_once(future))
}

fn asking<'a>(
    pool: &'a Pool,
    agent: &'a str,
    wait: Duration,
) -> Pin<Box<dyn Future<Output = Result<Checkout<Fake>, Error>> + 'a>> {
    let place = CallSite::here();
    let request = Request::new(agent, Some(wait), place).awaiting();
    Box::pin(pool.core.checkout_async(&pool.core, request))
}

/// A1: a permit holder whose slot must be closed first returns in time, and no poll waits for the closing.
#[test]
fn a_slow_close_delays_nobody_beyond_their_time() {
    let (pool, switches) = pool(1);
    drop(pool.lease("a").unwrap());
    switches.reset_discards.store(true, Relaxed);
    switches.slow_close.store(true, Relaxed);
    let begun = Instant::now();
    let mut future = asking(&pool, "b", LONG);
    assert!(poll_once(&mut future).is_none());
    assert!(
        begun.elapsed() < Duration::from_millis(50),
        "{:?}",
        begun.elapsed()
    );
    drop(future);
    for wait in [0, 1, 10] {
        let begun = Instant::now();
        let refused = pool.request("c", Some(Duration::from_millis(wait)));
        assert!(matches!(
            refused,
            Err(Error::Exhausted {
                all_holders_wait: false,
                ..
            })
        ));
        let took = begun.elapsed();
        assert!(took < Duration::from_millis(wait + 50), "{took:?}");
    }
    // Nor does one that waits for nobody close it on its own thread, once the slot is back.
    eventually("the slot is back", || {
        let free = pool.stats().lent == 0;
        free && pool.core.permits.free() == 1
    });
    drop(pool.lease("d").unwrap());
    let begun = Instant::now();
    let refused = pool.try_lease("e");
    assert!(matches!(
        refused,
        Err(Error::Exhausted {
            all_holders_wait: false,
            ..
        })
    ));
    // To close it takes 200 ms.
    assert!(begun.elapsed() < Duration::from_millis(150));
    switches.slow_close.store(false, Relaxed);
    switches.reset_discards.store(false, Relaxed);
    drop(pool.lease("b").unwrap());
    assert_whole(&pool, &switches);
}

/// A2: evictions race with the closing.
#[test]
fn closing_misses_nothing_that_is_being_evicted() {
    for round in 0..300 {
        let (pool, switches) = pool(16);
        let agents: Vec<String> = (0..16).map(|i| i.to_string()).collect();
        let leases: Vec<_> = agents.iter().map(|a| pool.lease(a).unwrap()).collect();
        drop(leases);
        thread::scope(|scope| {
            scope.spawn(|| agents.iter().for_each(|agent| _ = pool.release(agent)));
            scope.spawn(|| {
                if round % 2 == 0 {
                    pool.core.maintain();
                }
            });
            pool.close(LONG).unwrap();
        });
        assert_eq!(switches.open.load(SeqCst), 0);
    }
}

/// A3: a future that is granted a permit, never polled again, and dropped while the pool closes.
#[test]
fn closing_is_told_of_a_future_that_is_granted_and_not_polled() {
    let (pool, switches) = pool(1);
    let lease = pool.lease("a").unwrap();
    let mut future = asking(&pool, "b", LONG);
    assert!(poll_once(&mut future).is_none());
    drop(lease);
    let begun = Instant::now();
    pool.close(LONG).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert_eq!(switches.open.load(SeqCst), 0);
    assert!(matches!(poll_once(&mut future), Some(Err(Error::Closed))));
}

/// A4: the loser of a `select!` that is kept alive holds a permit, and the error names it.
#[test]
fn exhausted_names_one_that_was_granted_and_has_not_taken() {
    let (pool, switches) = pool(1);
    let lease = pool.lease("a").unwrap();
    let mut loser = asking(&pool, "loser", LONG);
    assert!(poll_once(&mut loser).is_none());
    drop(lease);
    thread::sleep(Duration::from_millis(1));
    let refused = pool.request("b", Some(Duration::from_millis(20)));
    let Err(Error::Exhausted { holders, .. }) = refused else {
        panic!("not exhausted");
    };
    assert_eq!(holders.len(), 1);
    assert_eq!(holders[0].agent, "loser");
    assert_eq!(holders[0].borrowed_at.file(), file!());
    drop(loser);
    assert_whole(&pool, &switches);
}

/// An agent's second parked connection grows old while the agent uses only the first.
#[test]
fn an_agent_keeps_what_it_uses_and_gives_back_the_rest() {
    let (pool, switches) = pool(4);
    let both = [pool.lease("a").unwrap(), pool.lease("a").unwrap()];
    drop(both);
    let cutoff = Instant::now();
    drop(pool.lease("a").unwrap());
    assert_eq!(pool.core.parking.evict_idle(cutoff), 1);
    assert_eq!((pool.stats().parked, pool.stats().evicted_by_idle), (1, 1));
    assert_eq!(pool.core.parking.evict_idle(Instant::now()), 1);
    assert_eq!((pool.stats().parked, pool.stats().evicted_by_idle), (0, 2));
    assert_whole(&pool, &switches);
}
