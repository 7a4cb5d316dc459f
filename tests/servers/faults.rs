//! What goes wrong in the program itself: panics, cancelled futures, a runtime that ends, threads that must not be used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use leasepool::{Error, Pool};

use crate::common::{
    RESET, a_server, a_server_awaited, assert_whole, awaited, blocking, eventually, manager,
};
use crate::server::{Server, installed};

/// The blocking client panics where it is used or dropped on an async thread: the pool does neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_on_async_threads() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = blocking(&server.url(), 2).build().unwrap();
    for agent in ["a", "b", "c", "a"] {
        let lease = pool.lease_async(agent).await.unwrap();
        let lease = tokio::task::spawn_blocking(move || {
            let mut lease = lease;
            lease.batch_execute("BEGIN; SELECT 1").unwrap();
            lease
        });
        // The lease ends here, its transaction open.
        drop(lease.await.unwrap());
    }
    leasepool::Lease::discard(pool.lease_async("a").await.unwrap());
    let theirs = pool.clone();
    let whole = tokio::task::spawn_blocking(move || assert_whole(&theirs, 2));
    whole.await.unwrap();
    // So does the pool.
    drop(pool);
    tokio::task::spawn_blocking(move || {
        let mut client = server.client();
        eventually("no backend is left", || Server::backends(&mut client) == 0);
    })
    .await
    .unwrap();
}

#[test]
fn a_lease_ends_while_unwinding() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 1).build().unwrap();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let mut lease = pool.lease("a").unwrap();
        lease
            .batch_execute("BEGIN; CREATE TEMP TABLE half (x int)")
            .unwrap();
        lease.batch_execute("SET work_mem = '7MB'").unwrap();
        panic!("on purpose");
    }));
    assert!(panic.is_err());
    // Also the same agent gets a clean connection.
    let mut lease = pool.lease("a").unwrap();
    let row = lease
        .query_one("SELECT current_setting('work_mem')", &[])
        .unwrap();
    assert_ne!(row.get::<_, String>(0), "7MB");
    drop(lease);
    assert_whole(&pool, 1);
}

#[test]
fn callbacks_that_panic_cost_nothing() {
    let Some(server) = a_server() else {
        return;
    };
    let panics = Arc::new(AtomicUsize::new(0));
    let now_and_then = |panics: &Arc<AtomicUsize>| {
        let panics = Arc::clone(panics);
        move || assert!(panics.fetch_add(1, SeqCst) % 3 != 1, "on purpose")
    };
    let (opening, settling, resetting) = (
        now_and_then(&panics),
        now_and_then(&panics),
        now_and_then(&panics),
    );
    let pool = Pool::managed(manager(&server.url()))
        .max_connections(4)
        .fds_per_connection(5)
        .on_open(move |_| {
            opening();
            Ok::<_, postgres::Error>(())
        })
        .settle(move |client| {
            settling();
            client.batch_execute("ROLLBACK")
        })
        .reset(move |client| {
            resetting();
            client.batch_execute(RESET)
        })
        .broken(|_| panic!("on purpose"))
        .build()
        .unwrap();
    thread::scope(|scope| {
        for worker in 0..8_usize {
            let pool = &pool;
            scope.spawn(move || {
                for turn in 0..50 {
                    let mut lease = pool.lease((worker * 7 + turn) % 20).unwrap();
                    lease.batch_execute("SELECT 1").unwrap();
                    if turn % 10 == 0
                        && let Err(error) = lease.batch_execute("SELECT * FROM nowhere")
                    {
                        leasepool::Lease::report(&lease, &error);
                    }
                }
            });
        }
    });
    assert!(panics.load(SeqCst) > 20);
    assert_whole(&pool, 4);
    let mut client = server.client();
    pool.close().unwrap();
    eventually("no backend is left", || Server::backends(&mut client) == 0);
}

/// A future that is dropped at any of its awaits leaves nothing behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_at_each_await() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), 2)
        .probe_after(Duration::ZERO)
        .build()
        .unwrap();
    for polls in 0..60 {
        let agent = polls % 5;
        let work = async {
            let lease = pool.lease_async(agent).await?;
            let _ = lease
                .batch_execute("BEGIN; CREATE TABLE IF NOT EXISTS t (x int)")
                .await;
            let _ = lease.query("SELECT 1", &[]).await;
            drop(lease);
            let again = pool.lease_async(agent + 1).await?;
            let _ = again.query("SELECT 2", &[]).await;
            Ok::<_, Error>(())
        };
        let mut work = Box::pin(work);
        let mut left = polls;
        std::future::poll_fn(|cx| {
            if left == 0 {
                return std::task::Poll::Ready(());
            }
            left -= 1;
            match work.as_mut().poll(cx) {
                std::task::Poll::Ready(_) => std::task::Poll::Ready(()),
                std::task::Poll::Pending => std::task::Poll::Pending,
            }
        })
        .await;
        drop(work);
    }
    let theirs = pool.clone();
    tokio::task::spawn_blocking(move || assert_whole(&theirs, 2))
        .await
        .unwrap();
    let lease = pool.lease_async("x").await.unwrap();
    let row = lease
        .query_one("SELECT to_regclass('t') IS NULL", &[])
        .await
        .unwrap();
    assert!(
        row.get::<_, bool>(0),
        "a transaction that was never committed"
    );
    drop((lease, pool));
    tokio::task::spawn_blocking(move || drop(server))
        .await
        .unwrap();
}

/// The runtime ends before the pool and its leases do.
#[test]
fn leases_outlive_the_runtime() {
    let Some(server) = a_server() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = runtime.block_on(async { awaited(&server.url(), 2).build().unwrap() });
    let lease = runtime.block_on(pool.lease_async("a")).unwrap();
    runtime.block_on(lease.batch_execute("BEGIN")).unwrap();
    runtime.shutdown_timeout(Duration::from_secs(5));
    drop(lease);
    eventually("the lease has ended", || pool.stats().lent == 0);
    let error = pool.agent("b").within(Duration::from_millis(200)).lease();
    assert!(matches!(error, Err(Error::Open { .. })), "{error:?}");
    pool.close().unwrap();
    let mut client = server.client();
    eventually("no backend is left", || Server::backends(&mut client) == 0);
}

/// The descriptors of this process on its server never exceed the ceiling.
#[test]
fn descriptors_stay_below_the_ceiling() {
    if !installed() {
        return;
    }
    // In a process of its own: other tests have servers, too.
    const CHILD: &str = "LEASEPOOL_COUNTS_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let done = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "faults::descriptors_stay_below_the_ceiling",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .status();
        assert!(done.unwrap().success());
        return;
    }
    let server = Server::start("");
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The first client of a process makes a pair of descriptors that stays, for signals.
    drop(server.client());
    let before = open();
    let pool = blocking(&server.url(), 4).build().unwrap();
    assert_eq!(pool.fd_ceiling(), 20);
    let (done, most) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                most.fetch_max(open(), SeqCst);
            }
        });
        let workers: Vec<_> = (0..16_usize)
            .map(|worker| {
                let pool = &pool;
                scope.spawn(move || {
                    for turn in 0..60 {
                        let mut lease = pool.lease((worker * 13 + turn) % 50).unwrap();
                        let _ = lease.batch_execute("SELECT 1");
                        if turn % 7 == 0 {
                            leasepool::Lease::discard(lease);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, SeqCst);
    });
    let most = most.into_inner() - before;
    // One for the folder that is being read.
    assert!(most <= pool.fd_ceiling() + 1, "{most}");
    assert!(most >= 4, "{most}");
}
