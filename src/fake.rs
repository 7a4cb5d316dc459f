//! A backend that opens nothing, and counts; and the tests of the core with it.
//! It does what it is told to, in every way that a real one can go wrong.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Ending, Fate, NotClosed};
use crate::error::Error;
use crate::lease::Lease;
use crate::pool::Pool;
use crate::shared::{Hooks, Options};

#[derive(Default)]
struct Switches {
    open_fails: AtomicBool,
    open_panics: AtomicBool,
    reset_discards: AtomicBool,
    settle_discards: AtomicBool,
    close_fails: AtomicBool,
    cannot_close: AtomicBool,
    slow_close: AtomicBool,
    generation: AtomicU64,
    open: AtomicUsize,
    most_open: AtomicUsize,
    resets: AtomicUsize,
    faulty: AtomicUsize,
    closed: AtomicUsize,
}

struct Fake(Arc<Switches>);

struct Connection {
    generation: u64,
    seen_by: HashSet<String>,
}

impl Backend for Fake {
    type Connection = Box<Connection>;

    fn open(&self, agent: &str) -> Result<Box<Connection>, Error> {
        assert!(!self.0.open_panics.load(Relaxed), "open panics");
        if self.0.open_fails.load(Relaxed) {
            return Err(Error::Open {
                target: agent.to_owned(),
                source: "no luck".into(),
            });
        }
        let open = self.0.open.fetch_add(1, SeqCst) + 1;
        self.0.most_open.fetch_max(open, SeqCst);
        Ok(Box::new(Connection {
            generation: self.0.generation.load(SeqCst),
            seen_by: HashSet::new(),
        }))
    }

    fn refresh(&self, _: Instant) {}

    fn generation(&self) -> u64 {
        self.0.generation.load(SeqCst)
    }

    fn fits(&self, connection: &Box<Connection>, _: Option<&str>) -> bool {
        connection.generation == self.generation()
    }

    fn settle(&self, _: &mut Box<Connection>) -> Fate {
        match self.0.settle_discards.load(Relaxed) {
            true => Fate::Discard,
            false => Fate::Reuse,
        }
    }

    fn reset(&self, connection: &mut Box<Connection>) -> Fate {
        self.0.resets.fetch_add(1, SeqCst);
        connection.seen_by.clear();
        match self.0.reset_discards.load(Relaxed) {
            true => Fate::Discard,
            false => Fate::Reuse,
        }
    }

    fn close(
        &self,
        connection: Box<Connection>,
        ending: Ending,
    ) -> Result<(), NotClosed<Box<Connection>>> {
        if self.0.slow_close.load(Relaxed) {
            thread::sleep(Duration::from_millis(200));
        }
        if self.0.cannot_close.load(Relaxed) {
            return Err(NotClosed {
                connection: Some(connection),
                error: Error::Closed,
            });
        }
        if ending == Ending::Faulty {
            self.0.faulty.fetch_add(1, SeqCst);
        }
        self.0.open.fetch_sub(1, SeqCst);
        match self.0.close_fails.load(Relaxed) {
            true => Err(NotClosed {
                connection: None,
                error: Error::Closed,
            }),
            false => Ok(()),
        }
    }

    fn fd_ceiling(&self, max_connections: usize) -> usize {
        max_connections
    }

    fn closed(&self) {
        assert_eq!(self.0.open.load(SeqCst), 0);
        self.0.closed.fetch_add(1, SeqCst);
    }
}

fn pool(max_connections: usize) -> (Pool<Fake>, Arc<Switches>) {
    let switches = Arc::new(Switches::default());
    let options = Options {
        name: "fake".into(),
        max_connections,
        cached_agents: max_connections,
        idle_timeout: None,
        lease_timeout: Duration::from_secs(20),
        max_lifetime: None,
        overdue_after: None,
    };
    let hooks = Hooks {
        missed: |_| {},
        returned: |_| {},
        keep: |_| {},
        drain: |_, _| {},
        refuse: |_| {},
    };
    let pool = Pool::new(Fake(Arc::clone(&switches)), options, hooks).unwrap();
    (pool, switches)
}

fn assert_whole(pool: &Pool<Fake>, switches: &Switches) {
    let stats = pool.stats();
    let leases: Vec<_> = (0..stats.max_connections - stats.stuck)
        .map(|i| pool.try_lease(format!("whole-{i}")).unwrap())
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    assert_eq!(pool.stats().lent, 0);
    assert_eq!(pool.stats().open, switches.open.load(SeqCst));
}

#[test]
fn a_hit_is_the_same_connection_and_is_not_reset() {
    let (pool, switches) = pool(2);
    let mut lease = pool.lease("a").unwrap();
    lease.seen_by.insert("a".to_owned());
    drop(lease);
    assert!(pool.lease("a").unwrap().seen_by.contains("a"));
    assert_eq!(switches.resets.load(SeqCst), 0);
    assert_eq!(pool.fd_ceiling(), 2);
}

#[test]
fn another_agent_gets_it_reset() {
    let (pool, switches) = pool(1);
    let mut lease = pool.lease("a").unwrap();
    lease.seen_by.insert("a".to_owned());
    drop(lease);
    assert!(pool.lease("b").unwrap().seen_by.is_empty());
    assert_eq!(switches.resets.load(SeqCst), 1);
    assert_eq!(switches.open.load(SeqCst), 1);
    // An opened connection that nobody has had is not reset.
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
    assert_eq!(switches.open.load(SeqCst), 0);
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
        Lease::discard(pool.lease("a").unwrap());
    }
    assert_eq!((pool.stats().close_failures, pool.stats().stuck), (6, 0));
    assert_whole(&pool, &switches);
}

#[test]
fn a_connection_that_cannot_be_closed_keeps_its_slot() {
    let (pool, switches) = pool(3);
    let (discarded, reset) = (pool.lease("a").unwrap(), pool.lease("b").unwrap());
    switches.cannot_close.store(true, Relaxed);
    Lease::discard(discarded);
    drop(reset);
    switches.reset_discards.store(true, Relaxed);
    let last = pool.lease("c").unwrap();
    // Reclaims what is parked for b, and cannot use it.
    assert!(pool.try_lease("d").is_err());
    assert_eq!(pool.stats().stuck, 2);
    drop(last);
    // It is closed after all, if that becomes possible before the pool ends.
    switches.cannot_close.store(false, Relaxed);
    switches.reset_discards.store(false, Relaxed);
    assert_whole(&pool, &switches);
    assert_eq!(switches.most_open.load(SeqCst), 3);
    pool.close().unwrap();
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
    assert!(pool.close_timeout(Duration::from_millis(20)).is_err());
    drop(lent);
    assert!(pool.close().is_err());
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
    assert_eq!(c.generation, 0);
    drop(c);
    assert_eq!(switches.open.load(SeqCst), 0);
    assert_eq!(pool.stats().discarded_by_file, 3);
    assert_eq!(pool.lease("b").unwrap().generation, 1);
    assert_whole(&pool, &switches);
}

#[test]
fn closing_a_connection_blocks_nobody_else() {
    let (pool, switches) = pool(3);
    let slow = pool.lease("slow").unwrap();
    drop(pool.lease("warm").unwrap());
    switches.slow_close.store(true, Relaxed);
    thread::scope(|scope| {
        let closing = scope.spawn(move || Lease::discard(slow));
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
    assert!(switches.closed.load(SeqCst) > 0);
}

/// Threads lease, return, discard and release at random: never are more than N open.
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
                        0 => Lease::discard(lease),
                        1 => _ = pool.release(&agent),
                        _ => drop(lease),
                    }
                }
            });
        }
    });
    assert!(switches.most_open.load(SeqCst) <= N);
    assert_whole(&pool, &switches);
    pool.close().unwrap();
    assert_eq!(switches.open.load(SeqCst), 0);
}
