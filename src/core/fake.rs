//! A backend that opens nothing and counts, and a pool of it for tests of the core.
//! Each switch makes it fail in a way that a real backend can fail.

mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::thread;
use std::time::{Duration, Instant};

use super::backend::{Backend, CloseMode, Fate, NotClosed, Patience};
use super::guard::Checkout;
use super::request::Request;
use super::{Core, Options};
use crate::error::Error;
use crate::observe::call_site::CallSite;
use crate::observe::stats::Stats;
use crate::sync::ticker::Ticker;
use crate::sync::wait::block_on;

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

    fn open(&self, agent: &str, _: &Patience<'_>) -> Result<Box<Connection>, Error> {
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

    fn is_current(&self, connection: &Box<Connection>) -> bool {
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

    fn closes_briefly(&self, _: &Box<Connection>, _: CloseMode) -> bool {
        !self.0.slow_close.load(Relaxed)
    }

    fn close(
        &self,
        connection: Box<Connection>,
        mode: CloseMode,
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
        if mode == CloseMode::Abandon {
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

/// The core with a thread that maintains it, and the calls of a pool.
struct Pool {
    core: Arc<Core<Fake>>,
    _ticker: Ticker,
}

impl Pool {
    #[track_caller]
    fn request(
        &self,
        agent: impl AsRef<str>,
        wait: Option<Duration>,
    ) -> Result<Checkout<Fake>, Error> {
        let place = CallSite::here();
        self.core
            .checkout(&self.core, &Request::new(agent.as_ref(), wait, place))
    }

    #[track_caller]
    fn lease(&self, agent: impl AsRef<str>) -> Result<Checkout<Fake>, Error> {
        self.request(agent, Some(LONG))
    }

    #[track_caller]
    fn try_lease(&self, agent: impl AsRef<str>) -> Result<Checkout<Fake>, Error> {
        self.request(agent, None)
    }

    fn release(&self, agent: &str) -> bool {
        self.core.evict(agent)
    }

    fn stats(&self) -> Stats {
        self.core.stats()
    }

    fn close(&self, timeout: Duration) -> Result<(), Error> {
        let now = Instant::now();
        block_on(self.core.close(now, now + timeout))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.core.refuse();
        self.core.wind_up();
    }
}

const LONG: Duration = Duration::from_secs(20);

fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < LONG, "still not so: {what}");
        thread::yield_now();
    }
}

fn pool(max_connections: usize) -> (Pool, Arc<Switches>) {
    let switches = Arc::new(Switches::default());
    let options = Options {
        name: "fake".into(),
        max_connections,
        cached_agents: 100,
        idle_timeout: None,
        lease_timeout: LONG,
        overtaking: Duration::from_micros(500),
        max_lifetime: None,
        max_hold: None,
        #[cfg(feature = "metrics")]
        opentelemetry: false,
        leases_per_agent: None,
        slow_hold: None,
        overdue_after: Some(Duration::from_secs(1)),
    };
    let core = Core::new(Fake(Arc::clone(&switches)), options).unwrap();
    let ticker = Ticker::default();
    let weak = Arc::downgrade(&core);
    let pause = Duration::from_millis(5);
    ticker
        .start("fake", pause, move || {
            weak.upgrade().map(|core| {
                core.maintain();
                pause
            })
        })
        .unwrap();
    let pool = Pool {
        core,
        _ticker: ticker,
    };
    (pool, switches)
}

fn assert_whole(pool: &Pool, switches: &Switches) {
    let stats = pool.stats();
    let leases: Vec<_> = (0..stats.max_connections - stats.stuck)
        .map(|i| pool.try_lease(format!("whole-{i}")).unwrap())
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    assert_eq!(pool.stats().lent, 0);
    // A worker may still be closing a connection that `settle` gave up.
    eventually("the count is the backend's", || {
        pool.stats().open == switches.open.load(SeqCst)
    });
}
