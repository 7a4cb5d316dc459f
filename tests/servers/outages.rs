//! Servers that end, begin, are slow, or are replaced: each with its number.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Error, Lease};
use parking_lot::Mutex;

use crate::common::{
    BlockingPool, Done, LONG, a_server, a_server_awaited, assert_whole, awaited, blocking,
    eventually,
};
use crate::proxy::{Mode, Proxy};
use crate::server::{Server, installed};

const CONNECTIONS: usize = 8;

/// What agents see while `during` goes on.
#[derive(Default)]
struct Seen {
    served: AtomicUsize,
    failed: AtomicUsize,
    /// When a query last succeeded, and the longest time between two successes.
    last: Mutex<Option<Instant>>,
    gap: Mutex<Duration>,
}

impl Seen {
    fn success(&self) {
        self.served.fetch_add(1, SeqCst);
        let now = Instant::now();
        let mut last = self.last.lock();
        if let Some(last) = last.replace(now) {
            let mut gap = self.gap.lock();
            *gap = gap.max(now - last);
        }
    }

    fn gap(&self) -> Duration {
        *self.gap.lock()
    }
}

/// Lets 32 threads query for 1,000 agents while `during` goes on.
fn under_load(pool: &BlockingPool, during: impl FnOnce(&Seen)) -> Seen {
    let (seen, done) = (Seen::default(), AtomicBool::new(false));
    thread::scope(|scope| {
        for worker in 0..32_usize {
            let (seen, done) = (&seen, &done);
            scope.spawn(move || {
                let mut turn = worker;
                while !done.load(SeqCst) {
                    turn = (turn * 31 + 17) % 1_000;
                    let mut lease = match pool.lease(turn) {
                        Ok(lease) => lease,
                        Err(error) => {
                            assert!(
                                matches!(error, Error::Open { .. } | Error::Exhausted { .. }),
                                "{error:?}"
                            );
                            seen.failed.fetch_add(1, SeqCst);
                            continue;
                        }
                    };
                    match lease.batch_execute("SELECT 1") {
                        Ok(()) => seen.success(),
                        Err(error) => {
                            Lease::report(&lease, &error);
                            seen.failed.fetch_add(1, SeqCst);
                        }
                    }
                }
            });
        }
        let _done = Done(&done);
        eventually("all have been served", || seen.served.load(SeqCst) > 200);
        during(&seen);
    });
    seen
}

#[test]
fn ten_restarts_under_load() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), CONNECTIONS).build().unwrap();
    let mut slowest = Duration::ZERO;
    let seen = under_load(&pool, |seen| {
        for _ in 0..10 {
            server.restart();
            let up = Instant::now();
            let before = seen.served.load(SeqCst);
            eventually("it is served again", || seen.served.load(SeqCst) > before);
            slowest = slowest.max(up.elapsed());
            thread::sleep(Duration::from_millis(100));
        }
    });
    let (served, failed) = (seen.served.load(SeqCst), seen.failed.load(SeqCst));
    eprintln!(
        "ten restarts: {failed} of {served} failed, up to {slowest:?} after the server was up, gap {:?}",
        seen.gap()
    );
    assert!(failed <= 10 * CONNECTIONS, "{failed}");
    assert!(slowest <= Duration::from_secs(1), "{slowest:?}");
    assert_whole(&pool, CONNECTIONS);
}

#[test]
fn a_standby_is_promoted() {
    let Some(primary) = a_server() else {
        return;
    };
    let standby = primary.standby();
    let url = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=read-write",
        primary.port, standby.port
    );
    let pool = blocking(&url, CONNECTIONS).build().unwrap();
    let mut promotion = Duration::ZERO;
    let seen = under_load(&pool, |seen| {
        let begun = Instant::now();
        primary.stop();
        standby.promote();
        promotion = begun.elapsed();
        let before = seen.served.load(SeqCst);
        eventually("it is served again", || {
            seen.served.load(SeqCst) > before + 100
        });
    });
    eprintln!(
        "promotion took {promotion:?}, gap {:?}, {} failed",
        seen.gap(),
        seen.failed.load(SeqCst)
    );
    assert!(
        seen.gap() <= promotion + Duration::from_secs(1),
        "{:?}",
        seen.gap()
    );
    assert!(seen.failed.load(SeqCst) <= 2 * CONNECTIONS);
    assert_whole(&pool, CONNECTIONS);
}

/// A server that answers, but only reads: only `report` can tell.
#[test]
fn a_demoted_primary_still_answers() {
    if !installed() {
        return;
    }
    let (old, new) = (Server::start(""), Server::start(""));
    for server in [&old, &new] {
        server
            .client()
            .batch_execute("CREATE TABLE t (x int)")
            .unwrap();
    }
    let url = format!(
        "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=read-write",
        old.port, new.port
    );
    let pool = blocking(&url, 4)
        .broken(|error| error.code().is_some_and(|code| code.code() == "25006"))
        .build()
        .unwrap();
    let insert = |agent: usize| {
        let mut lease = pool.lease(agent).unwrap();
        let done = lease.batch_execute("INSERT INTO t VALUES (1)");
        if let Err(error) = &done {
            Lease::report(&lease, error);
        }
        // Of these, the pool should make nothing.
        if let Err(error) = lease.batch_execute("SELECT * FROM nowhere") {
            Lease::report(&lease, &error);
        }
        done.is_ok()
    };
    let fill = |agents: std::ops::Range<usize>| {
        thread::scope(|scope| {
            let all: Vec<_> = agents
                .map(|agent| scope.spawn(move || insert(agent)))
                .collect();
            all.into_iter()
                .map(|one| one.join().unwrap())
                .filter(|ok| !ok)
                .count()
        })
    };
    assert_eq!(fill(0..4), 0);
    let opens = pool.stats().opens;
    assert_eq!(fill(0..4), 0);
    assert_eq!(
        pool.stats().opens,
        opens,
        "an error of no importance closed a connection"
    );
    // What it does with open sessions when it is demoted.
    old.client()
        .batch_execute(
            "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()",
        )
        .or_else(|_| {
            let mut client = old.client();
            client.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on")?;
            client.batch_execute("SELECT pg_reload_conf()")
        })
        .unwrap();
    let mut watcher = old.client();
    eventually("it only reads", || {
        let row = watcher
            .query_one("SHOW default_transaction_read_only", &[])
            .unwrap();
        row.get::<_, String>(0) == "on"
    });
    let mut failed = 0;
    for turn in 0..12 {
        failed += usize::from(!insert(turn));
    }
    // Each of the four fails once, and its successor is a connection to the new primary.
    assert!(failed <= 4, "{failed}");
    assert!(insert(100));
}

/// A network that swallows everything costs a lease `probe_timeout` + `open_timeout` at most.
#[test]
fn a_black_hole() {
    let Some(server) = a_server() else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let (probe, open) = (Duration::from_millis(300), Duration::from_millis(700));
    let pool = blocking(&proxy.url(), CONNECTIONS)
        .probe_after(Duration::ZERO)
        .probe_timeout(probe)
        .open_timeout(open)
        .lease_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    for agent in 0..3 {
        let mut lease = pool.lease(agent).unwrap();
        lease.batch_execute("SELECT 1").unwrap();
    }
    proxy.set(Mode::BlackHole);
    for agent in 0..3 {
        let begun = Instant::now();
        let error = pool.lease(agent).unwrap_err();
        let took = begun.elapsed();
        assert!(matches!(error, Error::Open { .. }), "{error:?}");
        assert!(took <= probe + open + Duration::from_millis(50), "{took:?}");
    }
    let stats = pool.stats();
    assert!(stats.open <= CONNECTIONS, "{stats:?}");
}

/// The same for an async client. What hung has its place until its connection ends.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_for_tasks() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let (probe, open) = (Duration::from_millis(300), Duration::from_millis(700));
    let pool = awaited(&proxy.url(), 3)
        .probe_after(Duration::ZERO)
        .probe_timeout(probe)
        .open_timeout(open)
        .lease_timeout(Duration::from_secs(20))
        .build()
        .unwrap();
    drop(pool.lease_async("a").await.unwrap());
    proxy.set(Mode::BlackHole);
    for _ in 0..3 {
        let begun = Instant::now();
        let error = pool.lease_async("a").await.unwrap_err();
        let took = begun.elapsed();
        assert!(matches!(error, Error::Open { .. }), "{error:?}");
        assert!(
            took <= probe + open + Duration::from_millis(100),
            "{took:?}"
        );
    }
    proxy.set(Mode::Open);
    let lease = pool.lease_async("a").await.unwrap();
    lease.batch_execute("SELECT 1").await.unwrap();
    drop(lease);
    proxy.cut();
    tokio::task::spawn_blocking(move || {
        assert_whole(&pool, 3);
        drop((pool, server));
    })
    .await
    .unwrap();
}

/// The server stands still for 10 s: callers that wait longer are served when it goes on; the others get a typed error in
/// time.
#[test]
fn a_server_that_stands_still() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 4)
        .lease_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    thread::sleep(Duration::from_millis(1_100));
    server.signal("-STOP");
    let begun = Instant::now();
    let mut slowest = Duration::ZERO;
    while begun.elapsed() < Duration::from_secs(10) {
        let asked = Instant::now();
        let error = pool.lease("a").unwrap_err();
        assert!(
            matches!(error, Error::Open { .. } | Error::Exhausted { .. }),
            "{error:?}"
        );
        slowest = slowest.max(asked.elapsed());
    }
    server.signal("-CONT");
    assert!(slowest <= Duration::from_millis(600), "{slowest:?}");
    eventually("it serves again", || {
        pool.lease("a")
            .is_ok_and(|mut lease| lease.batch_execute("SELECT 1").is_ok())
    });
    assert_whole(&pool, 4);
}

/// The server is away, here for 5 s (`LEASEPOOL_DOWN=60` for longer).
#[test]
fn a_server_that_is_down() {
    if !installed() {
        return;
    }
    let seconds = std::env::var("LEASEPOOL_DOWN").map_or(5, |s| s.parse().unwrap());
    let server = Server::start("");
    let pool = blocking(&server.url(), 4)
        .lease_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    pool.lease("a").unwrap().batch_execute("SELECT 1").unwrap();
    server.stop();
    let begun = Instant::now();
    let failures_before = pool.stats().open_failures;
    let mut asked = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        let now = Instant::now();
        if let Err(error) = pool.lease("a") {
            assert!(matches!(error, Error::Open { .. }), "{error:?}");
            // The manager's own error is at the bottom.
            let mut source: &dyn std::error::Error = &error;
            while let Some(next) = source.source() {
                source = next;
            }
            assert!(source.to_string().contains("refused"), "{source}");
            assert!(
                now.elapsed() <= Duration::from_millis(350),
                "{:?}",
                now.elapsed()
            );
            asked += 1;
            assert!(pool.ready().is_err());
        }
    }
    assert!(asked >= 3);
    // It does not hammer the server.
    let failures = pool.stats().open_failures - failures_before;
    assert!(failures <= seconds * 8 + 20, "{failures}");
    // A program may start before its server.
    let early = blocking(&server.url(), 4).build().unwrap();
    server.begin();
    let up = Instant::now();
    drop(pool.lease("a").or_else(|_| pool.lease("a")).unwrap());
    drop(early.lease("b").unwrap());
    assert!(up.elapsed() <= Duration::from_secs(1), "{:?}", up.elapsed());
    assert_whole(&pool, 4);
}

/// The server has fewer connections than the pool wants.
#[test]
fn the_server_has_no_connection_left() {
    if !installed() {
        return;
    }
    let server = Server::start("max_connections=6\nsuperuser_reserved_connections=2\n");
    server
        .client()
        .batch_execute("CREATE ROLE worker LOGIN")
        .unwrap();
    let url = server
        .url()
        .replace("user=postgres", "user=worker dbname=postgres");
    let pool = blocking(&url, CONNECTIONS)
        .lease_timeout(Duration::from_millis(500))
        .build()
        .unwrap();
    let mut leases = Vec::new();
    let error = loop {
        match pool.lease(leases.len()) {
            Ok(lease) => leases.push(lease),
            Err(error) => break error,
        }
    };
    assert_eq!(leases.len(), 4, "{error:?}");
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut code = None;
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<postgres::Error>() {
            code = error.code().map(|code| code.code().to_owned());
        }
        source = error.source();
    }
    assert_eq!(code.as_deref(), Some("53300"));
    // Those that came back serve others, although the pool could open more.
    leases.pop();
    let begun = Instant::now();
    drop(pool.lease("other").unwrap());
    assert!(
        begun.elapsed() < Duration::from_millis(600),
        "{:?}",
        begun.elapsed()
    );
}

/// One backend is terminated: one caller at most learns of it.
#[test]
fn one_backend_is_terminated() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 4).build().unwrap();
    let pids: Vec<i32> = thread::scope(|scope| {
        let leases: Vec<_> = (0..4).map(|agent| pool.lease(agent).unwrap()).collect();
        let all: Vec<_> = leases
            .into_iter()
            .map(|mut lease| {
                scope.spawn(move || -> i32 {
                    lease
                        .query_one("SELECT pg_backend_pid()", &[])
                        .unwrap()
                        .get(0)
                })
            })
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    server
        .client()
        .execute("SELECT pg_terminate_backend($1)", &[&pids[2]])
        .unwrap();
    let mut failed = 0;
    for turn in 0..12 {
        let mut lease = pool.lease(turn % 4).unwrap();
        failed += usize::from(lease.batch_execute("SELECT 1").is_err());
    }
    assert!(failed <= 1, "{failed}");
    assert_whole(&pool, 4);
}

/// Restarts, for tasks: nobody blocks, and no permit is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_tasks() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), CONNECTIONS).build().unwrap();
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let (served, failed) = (
        std::sync::Arc::new(AtomicUsize::new(0)),
        std::sync::Arc::new(AtomicUsize::new(0)),
    );
    let tasks: Vec<_> = (0..32_usize)
        .map(|worker| {
            let (pool, done) = (pool.clone(), done.clone());
            let (served, failed) = (served.clone(), failed.clone());
            tokio::spawn(async move {
                let mut turn = worker;
                while !done.load(SeqCst) {
                    turn = (turn * 31 + 17) % 1_000;
                    let ok = match pool.lease_async(turn).await {
                        Ok(lease) => lease.batch_execute("SELECT 1").await.is_ok(),
                        Err(error) => {
                            assert!(matches!(error, Error::Open { .. }), "{error:?}");
                            false
                        }
                    };
                    match ok {
                        true => served.fetch_add(1, SeqCst),
                        false => failed.fetch_add(1, SeqCst),
                    };
                }
            })
        })
        .collect();
    let restarts = tokio::task::spawn_blocking(move || {
        for _ in 0..5 {
            let before = served.load(SeqCst);
            eventually("it is served", || served.load(SeqCst) > before + 50);
            server.restart();
        }
        let before = served.load(SeqCst);
        eventually("it is served again", || served.load(SeqCst) > before + 50);
        server
    });
    let server = tokio::time::timeout(LONG * 2, restarts)
        .await
        .unwrap()
        .unwrap();
    done.store(true, SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    let failed = failed.load(SeqCst);
    assert!(failed <= 5 * CONNECTIONS, "{failed}");
    tokio::task::spawn_blocking(move || {
        assert_whole(&pool, CONNECTIONS);
        drop((pool, server));
    })
    .await
    .unwrap();
}

/// One lease replaces what is suspect instead of asking every connection, each of which would hang.
#[test]
fn a_black_hole_for_all_connections() {
    let Some(server) = a_server() else {
        return;
    };
    let proxy = Proxy::before(server.port);
    let pool = blocking(&proxy.url(), CONNECTIONS)
        .probe_after(Duration::from_millis(200))
        .probe_timeout(Duration::from_millis(100))
        .open_timeout(Duration::from_millis(900))
        .build()
        .unwrap();
    drop(
        (0..CONNECTIONS)
            .map(|agent| pool.lease(agent).unwrap())
            .collect::<Vec<_>>(),
    );
    thread::sleep(Duration::from_millis(250));
    proxy.set(Mode::BlackHole);
    assert!(pool.lease("x").is_err());
    // One that was asked, and one that was being opened.
    let lent = pool.stats().lent;
    assert!(lent <= 2, "{lent}");
    proxy.set(Mode::Open);
    let mut lease = pool.lease("x").unwrap();
    lease.batch_execute("SELECT 1").unwrap();
    drop(lease);
    proxy.cut();
    assert_whole(&pool, CONNECTIONS);
}

/// What is closed is closed at once, with its transaction, although no place is free.
#[test]
fn a_connection_in_doubt_is_closed_at_once() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 2).build().unwrap();
    let _other = pool.lease("other").unwrap();
    let mut client = server.client();
    client.batch_execute("CREATE TABLE t (x int)").unwrap();
    for how in 0..3 {
        let mut lease = pool.lease("a").unwrap();
        lease.batch_execute("BEGIN; LOCK TABLE t").unwrap();
        match how {
            0 => Lease::discard(lease),
            1 => {
                let error = lease.batch_execute("SELECT * FROM nowhere").unwrap_err();
                Lease::report(&lease, &error);
                drop(lease);
            }
            _ => drop(lease),
        }
        client
            .batch_execute("SET lock_timeout = '10s'; LOCK TABLE t")
            .or_else(|_| client.batch_execute("BEGIN; LOCK TABLE t; COMMIT"))
            .unwrap();
    }
}

/// A query that nobody waits for any more runs on at the server, and so keeps its place in the pool.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queries_that_were_given_up() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), 3)
        .probe_timeout(Duration::from_millis(50))
        .lease_timeout(LONG)
        .build()
        .unwrap();
    let begun = Instant::now();
    let mut agent = 0;
    while begun.elapsed() < Duration::from_secs(2) {
        agent += 1;
        let agent = pool.agent(agent).within(Duration::from_millis(100));
        if let Ok(lease) = agent.lease_async().await {
            let sleep = lease.batch_execute("SELECT pg_sleep(3)");
            let _ = tokio::time::timeout(Duration::from_millis(10), sleep).await;
        }
    }
    tokio::task::spawn_blocking(move || {
        let mut client = server.client();
        let backends = Server::backends(&mut client);
        assert!(backends <= 3, "{backends}");
        assert_whole(&pool, 3);
        drop((pool, server));
    })
    .await
    .unwrap();
}
