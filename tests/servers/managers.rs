//! Any manager: connections that are counted, and threads that are watched.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use leasepool::{Builder, Error, Managed, Pool};
use parking_lot::Mutex;

use crate::common::{assert_whole, eventually};

#[derive(Default)]
struct Log {
    open: AtomicUsize,
    /// How many the server gives; 0: any number.
    limit: AtomicUsize,
    most: AtomicUsize,
    threads: Mutex<HashSet<ThreadId>>,
    connect: Mutex<Duration>,
    is_valid: Mutex<Duration>,
    has_broken: Mutex<Duration>,
}

impl Log {
    fn here(&self) {
        self.threads.lock().insert(thread::current().id());
    }
}

struct Manager(Arc<Log>);

impl Drop for Manager {
    fn drop(&mut self) {
        self.0.here();
    }
}

struct Connection(Arc<Log>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.here();
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl leasepool::r2d2::ManageConnection for Manager {
    type Connection = Connection;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Connection> {
        self.0.here();
        let (open, limit) = (self.0.open.load(SeqCst), self.0.limit.load(SeqCst));
        if limit > 0 && open >= limit {
            return Err(io::Error::other("too many connections"));
        }
        let open = self.0.open.fetch_add(1, SeqCst) + 1;
        self.0.most.fetch_max(open, SeqCst);
        thread::sleep(*self.0.connect.lock());
        Ok(Connection(Arc::clone(&self.0)))
    }

    fn is_valid(&self, _: &mut Connection) -> io::Result<()> {
        self.0.here();
        thread::sleep(*self.0.is_valid.lock());
        Ok(())
    }

    fn has_broken(&self, _: &mut Connection) -> bool {
        self.0.here();
        thread::sleep(*self.0.has_broken.lock());
        false
    }
}

/// A pool of connections that are counted.
fn counted(log: &Arc<Log>, connections: usize) -> Builder<Managed<Manager>> {
    Pool::managed(Manager(Arc::clone(log)))
        .max_connections(connections)
        .fds_per_connection(0)
}

/// One whose agent "a" has had a lease. To end it hangs, until what is returned is dropped.
fn hanging(log: &Arc<Log>, connections: usize) -> (Pool<Managed<Manager>>, mpsc::Sender<()>) {
    let (hang, hangs) = mpsc::channel::<()>();
    let hangs = Mutex::new(Some(hangs));
    let pool = counted(log, connections)
        .settle(move |_| {
            if let Some(hangs) = hangs.lock().take() {
                let _ = hangs.recv();
            }
            Ok::<_, io::Error>(())
        })
        .build()
        .unwrap();
    use_once(&pool, "a");
    (pool, hang)
}

/// A lease whose borrower uses its connection.
fn use_once(pool: &Pool<Managed<Manager>>, agent: impl std::fmt::Display) {
    let mut lease = pool.lease(agent).unwrap();
    let _ = &mut *lease;
}

/// Leases for this many agents, at the same time.
fn lease_all(pool: &Pool<Managed<Manager>>, agents: usize) {
    let leases: Vec<_> = (0..agents)
        .map(|agent| pool.lease(agent).unwrap())
        .collect();
    drop(leases);
}

/// The manager and its connections are used and dropped on threads of the pool only, whatever async code does.
#[test]
fn nothing_is_touched_on_an_async_thread() {
    let log = Arc::new(Log::default());
    let main = thread::current().id();
    let theirs = Arc::clone(&log);
    thread::spawn(move || {
        let log = theirs;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let pool = counted(&log, 2)
                .settle(|connection: &mut Connection| {
                    connection.0.here();
                    Ok::<_, io::Error>(())
                })
                .reset(|connection: &mut Connection| {
                    connection.0.here();
                    Ok::<_, io::Error>(())
                })
                .build()
                .unwrap();
            for agent in ["a", "b", "c", "a", "a"] {
                let mut lease = pool.lease_async(agent).await.unwrap();
                // A use that touches nothing.
                let _ = &mut *lease;
            }
            leasepool::Lease::discard(pool.lease_async("a").await.unwrap());
            let lease = pool.lease_async("d").await.unwrap();
            drop(pool);
            drop(lease);
        });
        let used = log.threads.lock().clone();
        assert!(!used.contains(&thread::current().id()));
    })
    .join()
    .unwrap();
    eventually("all are closed", || log.open.load(SeqCst) == 0);
    eventually("the manager is dropped", || Arc::strong_count(&log) == 1);
    assert!(!log.threads.lock().contains(&main));
}

/// An opening that nobody waits for any more counts until it returns: the cap holds.
#[test]
fn openings_that_were_given_up_count() {
    let log = Arc::new(Log::default());
    *log.connect.lock() = Duration::from_millis(800);
    let pool = counted(&log, 3)
        .open_timeout(Duration::from_millis(50))
        .lease_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let begun = Instant::now();
    let mut late = 0;
    while begun.elapsed() < Duration::from_millis(400) {
        let asked = Instant::now();
        match pool.lease(late) {
            Ok(_) => panic!("it cannot be open yet"),
            Err(Error::Open { .. } | Error::Exhausted { .. }) => late += 1,
            Err(error) => panic!("{error:?}"),
        }
        assert!(
            asked.elapsed() <= Duration::from_millis(350),
            "{:?}",
            asked.elapsed()
        );
    }
    assert!(log.most.load(SeqCst) <= 3);
    // What was opened in the end is there.
    eventually("an opening is done", || pool.lease("x").is_ok());
    assert_eq!(log.most.load(SeqCst), 3.min(late));
    assert_whole(&pool, 3);
}

/// The server gives one connection, and its lease is still being ended when another agent asks: that agent is served as
/// soon as it has ended, though the pool cannot open another.
#[test]
fn a_connection_that_comes_back_serves_where_none_can_be_opened() {
    let log = Arc::new(Log::default());
    log.limit.store(1, SeqCst);
    let pool = counted(&log, 2)
        .lease_timeout(Duration::from_secs(5))
        .settle(|_: &mut Connection| {
            // A server that is slow.
            thread::sleep(Duration::from_millis(100));
            Ok::<_, io::Error>(())
        })
        .reset(|_: &mut Connection| Ok::<_, io::Error>(()))
        .build()
        .unwrap();
    use_once(&pool, "a");
    let begun = Instant::now();
    drop(pool.lease("b").unwrap());
    // What is left of the settling, and one pause between two attempts.
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(log.most.load(SeqCst), 1);
}

/// A probe that hangs costs its own connection, and its caller no more than `probe_timeout`.
#[test]
fn a_probe_that_hangs() {
    let log = Arc::new(Log::default());
    let pool = counted(&log, 2)
        .probe_after(Duration::ZERO)
        .probe_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    *log.is_valid.lock() = Duration::from_millis(600);
    let begun = Instant::now();
    drop(pool.lease("a").unwrap());
    assert!(
        begun.elapsed() < Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(log.open.load(SeqCst), 2);
    *log.is_valid.lock() = Duration::ZERO;
    assert_whole(&pool, 2);
    assert!(log.most.load(SeqCst) <= 2);
}

/// The same for `has_broken`, which asks the server in the manager of r2d2_mysql; with and without `settle`.
#[test]
fn a_has_broken_that_hangs() {
    for settles in [false, true] {
        let log = Arc::new(Log::default());
        let mut pool = counted(&log, 2)
            .probe_after(Duration::from_secs(3600))
            .probe_timeout(Duration::from_millis(50));
        if settles {
            pool = pool.settle(|_: &mut Connection| Ok::<_, io::Error>(()));
        }
        let pool = pool.build().unwrap();
        *log.has_broken.lock() = Duration::from_millis(600);
        use_once(&pool, "a");
        let begun = Instant::now();
        drop(pool.lease("a").unwrap());
        assert!(
            begun.elapsed() < Duration::from_millis(300),
            "{settles}: {:?}",
            begun.elapsed()
        );
        assert!(!log.threads.lock().contains(&thread::current().id()));
        *log.has_broken.lock() = Duration::ZERO;
        assert_whole(&pool, 2);
        assert!(log.most.load(SeqCst) <= 2);
    }
}

/// One that breaks makes all older ones be asked, and not those that are newer.
#[test]
fn a_broken_connection_makes_older_ones_suspect() {
    let log = Arc::new(Log::default());
    let pool = counted(&log, 4)
        .probe_after(Duration::from_secs(3600))
        .build()
        .unwrap();
    lease_all(&pool, 3);
    assert_eq!(pool.stats().probes, 0);
    let lease = pool.lease(0).unwrap();
    leasepool::Lease::report(&lease, &io::Error::other("on purpose"));
    drop(lease);
    eventually("it has ended", || pool.stats().lent == 0);
    drop(pool.lease(3).unwrap());
    drop(pool.lease(3).unwrap());
    assert_eq!(pool.stats().probes, 0, "newer than the incident");
    for _ in 0..2 {
        drop(pool.lease(1).unwrap());
        drop(pool.lease(2).unwrap());
    }
    assert_eq!(pool.stats().probes, 2);
}

#[test]
fn options_are_checked() {
    let build = || Pool::managed(Manager(Arc::default()));
    let option = |error: Error| match error {
        Error::Config { option, .. } => option,
        error => panic!("{error:?}"),
    };
    assert_eq!(option(build().build().unwrap_err()), "fds_per_connection");
    let built = build()
        .fds_per_connection(1)
        .probe_timeout(Duration::ZERO)
        .build();
    assert_eq!(option(built.unwrap_err()), "probe_timeout");
    let built = build()
        .fds_per_connection(1)
        .open_timeout(Duration::ZERO)
        .build();
    assert_eq!(option(built.unwrap_err()), "open_timeout");
    let built = build().fds_per_connection(1).max_connections(0).build();
    assert_eq!(option(built.unwrap_err()), "max_connections");
    let built = build()
        .fds_per_connection(5)
        .max_connections(8)
        .fd_budget(39)
        .build();
    assert!(matches!(built, Err(Error::Budget { .. })));
    let pool = build().fds_per_connection(5).fd_budget(39).build().unwrap();
    assert_eq!(pool.stats().max_connections, 7);
}

/// Connections that were opened together do not all reach their age together, and none is lent after it.
#[test]
fn lifetimes_differ() {
    let log = Arc::new(Log::default());
    let pool = counted(&log, 16)
        .max_lifetime(Duration::from_millis(1_000))
        .build()
        .unwrap();
    let opened = Instant::now();
    lease_all(&pool, 16);
    while opened.elapsed() < Duration::from_millis(950) {
        thread::sleep(Duration::from_millis(1));
    }
    let late = opened.elapsed() >= Duration::from_millis(1_000);
    lease_all(&pool, 16);
    let aged = pool.stats().discarded_by_age;
    assert!(late || (1..16).contains(&aged), "{aged}");
    while opened.elapsed() < Duration::from_millis(1_001) {
        thread::sleep(Duration::from_millis(1));
    }
    lease_all(&pool, 16);
    assert_eq!(pool.stats().discarded_by_age, 16);
}

/// A settling that hangs keeps its own connection, and neither its agent nor others.
#[test]
fn a_settling_that_hangs() {
    let log = Arc::new(Log::default());
    let (pool, hang) = hanging(&log, 3);
    for _ in 0..3 {
        let agent = pool.agent("a").within(Duration::from_millis(200));
        let begun = Instant::now();
        drop(agent.lease().unwrap());
        assert!(begun.elapsed() < Duration::from_millis(200));
    }
    drop(pool.try_lease("b").unwrap());
    let error = pool.close_within(Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error:?}");
    drop(hang);
    pool.close().unwrap();
    eventually("all are closed", || log.open.load(SeqCst) == 0);
}

/// A lease that a worker is ending has no borrower who could be waiting.
#[test]
fn an_ending_lease_is_no_deadlock() {
    let log = Arc::new(Log::default());
    let (pool, hang) = hanging(&log, 1);
    let error = pool.agent("b").within(Duration::from_millis(50)).lease();
    match error.unwrap_err() {
        Error::Exhausted {
            all_holders_wait, ..
        } => assert!(!all_holders_wait),
        error => panic!("{error:?}"),
    }
    drop(hang);
    assert_whole(&pool, 1);
}

/// What a panic carries may panic, too, when it is dropped.
#[test]
fn panics_that_panic() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("on purpose");
            }
        }
    }
    let log = Arc::new(Log::default());
    let times = AtomicUsize::new(0);
    let pool = counted(&log, 2)
        .settle(move |_| -> io::Result<()> {
            if times.fetch_add(1, SeqCst) < 6 {
                std::panic::panic_any(Bomb);
            }
            Ok(())
        })
        .build()
        .unwrap();
    for turn in 0..8 {
        use_once(&pool, turn % 3);
    }
    assert_whole(&pool, 2);
    pool.close().unwrap();
    assert_eq!(log.open.load(SeqCst), 0);
}

/// An incident is one, also if the connection does not live to see the end of the lease.
#[test]
fn reported_and_discarded() {
    let log = Arc::new(Log::default());
    let pool = counted(&log, 2)
        .probe_after(Duration::from_secs(3600))
        .build()
        .unwrap();
    lease_all(&pool, 2);
    let lease = pool.lease(0).unwrap();
    leasepool::Lease::report(&lease, &io::Error::other("on purpose"));
    leasepool::Lease::discard(lease);
    drop(pool.lease(1).unwrap());
    assert_eq!(pool.stats().probes, 1);
}

struct Panicking;

impl leasepool::bb8::ManageConnection for Panicking {
    type Connection = ();
    type Error = io::Error;

    async fn connect(&self) -> io::Result<()> {
        panic!("no connection today")
    }

    async fn is_valid(&self, (): &mut ()) -> io::Result<()> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connect_that_panics_says_so() {
    let pool = Pool::awaited(Panicking, tokio::runtime::Handle::current())
        .fds_per_connection(0)
        .open_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let error = pool.lease_async("a").await.unwrap_err();
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = next {
        text += &format!("{error}: ");
        next = error.source();
    }
    assert!(text.contains("no connection today"), "{text}");
}
