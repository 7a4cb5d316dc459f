//! Leases over PostgreSQL: many agents, few connections.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::common::{
    BlockingPool, Done, a_server, a_server_awaited, assert_whole, awaited, blocking,
};
use crate::server::Server;

const AGENTS: usize = 1_000;
const CONNECTIONS: usize = 8;

/// Watches the number of backends while `work` runs. Returns the largest.
fn watched(server: &Server, work: impl FnOnce()) -> i64 {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let (mut client, mut most) = (server.client(), 0);
            while !done.load(SeqCst) {
                most = most.max(Server::backends(&mut client));
            }
            most
        });
        let done = Done(&done);
        work();
        drop(done);
        watcher.join().unwrap()
    })
}

#[test]
fn a_thousand_agents_on_eight_connections_of_32_threads() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), CONNECTIONS).build().unwrap();
    assert_all_served(&server, &pool);
    pool.close().unwrap();
    let mut client = server.client();
    crate::common::eventually("no backend is left", || Server::backends(&mut client) == 0);
}

/// Lets 32 threads serve 1,000 agents, while the server counts its backends.
pub(crate) fn assert_all_served(server: &Server, pool: &BlockingPool) {
    let served = AtomicUsize::new(0);
    let most = watched(server, || {
        thread::scope(|scope| {
            for seed in 0..32 {
                let served = &served;
                scope.spawn(move || {
                    let mut rng = StdRng::seed_from_u64(seed);
                    for _ in 0..100 {
                        let agent = format!("agent-{}", rng.random_range(0..AGENTS));
                        let mut lease = pool.lease(&agent).unwrap();
                        let row = lease
                            .query_one(
                                "SELECT $1::text, current_setting('application_name')",
                                &[&agent],
                            )
                            .unwrap();
                        assert_eq!(row.get::<_, String>(0), agent);
                        // What another agent had set is not there.
                        let found: String = row.get(1);
                        assert!(found.is_empty() || found == agent, "{found}");
                        lease
                            .batch_execute(&format!("SET application_name = '{agent}'"))
                            .unwrap();
                        served.fetch_add(1, SeqCst);
                    }
                });
            }
        });
    });
    assert_eq!(served.into_inner(), 3_200);
    assert!((1..=CONNECTIONS as i64).contains(&most), "{most}");
    assert_whole(pool, CONNECTIONS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_agents_on_eight_connections_of_32_tasks() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), CONNECTIONS).build().unwrap();
    let tasks: Vec<_> = (0..32)
        .map(|seed| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let mut rng = StdRng::seed_from_u64(seed);
                for _ in 0..100 {
                    let agent = format!("agent-{}", rng.random_range(0..AGENTS));
                    let lease = pool.lease_async(&agent).await.unwrap();
                    let row = lease
                        .query_one(
                            "SELECT $1::text, current_setting('application_name')",
                            &[&agent],
                        )
                        .await
                        .unwrap();
                    assert_eq!(row.get::<_, String>(0), agent);
                    let found: String = row.get(1);
                    assert!(found.is_empty() || found == agent, "{found}");
                    let set = format!("SET application_name = '{agent}'");
                    lease.batch_execute(&set).await.unwrap();
                }
            })
        })
        .collect();
    let most = tokio::task::spawn_blocking(move || {
        let most = watched(&server, || {
            let runtime = tokio::runtime::Handle::current();
            for task in tasks {
                runtime.block_on(task).unwrap();
            }
        });
        (most, server)
    });
    let (most, server) = most.await.unwrap();
    assert!((1..=CONNECTIONS as i64).contains(&most), "{most}");
    let pool = tokio::task::spawn_blocking(move || {
        assert_whole(&pool, CONNECTIONS);
        pool
    });
    pool.await.unwrap().close_async().await.unwrap();
    drop(server);
}

/// An agent finds its own connection again, as long as no other needs it.
#[test]
fn an_agent_finds_its_connection_as_it_left_it() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 2).build().unwrap();
    let pid = |pool: &crate::common::BlockingPool, agent: &str| -> i32 {
        let mut lease = pool.lease(agent).unwrap();
        lease
            .query_one("SELECT pg_backend_pid()", &[])
            .unwrap()
            .get(0)
    };
    let first = pid(&pool, "a");
    pool.lease("a")
        .unwrap()
        .batch_execute("CREATE TEMP TABLE kept (x int)")
        .unwrap();
    assert_eq!(pid(&pool, "a"), first);
    pool.lease("a")
        .unwrap()
        .query("SELECT * FROM kept", &[])
        .unwrap();
    crate::common::eventually("no lease is left", || pool.holders().is_empty());
    let lease = pool.lease("a").unwrap();
    assert_eq!(pool.holders()[0].agent, "a");
    drop(lease);
    assert!(pool.evict("a"));
    let stats = pool.stats();
    assert!(stats.hits >= 3 && stats.opens == 1, "{stats:?}");
}

/// `run` puts the blocking client where it may block.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_uses_a_blocking_client_from_async_code() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = blocking(&server.url(), 2).build().unwrap();
    let one: i32 = pool
        .run(
            "a",
            |client| -> Result<i32, Box<dyn std::error::Error + Send + Sync>> {
                Ok(client.query_one("SELECT 1", &[])?.get(0))
            },
        )
        .await
        .unwrap();
    assert_eq!(one, 1);
    let failed = pool
        .agent("a")
        .within(Duration::from_secs(5))
        .run(
            |client| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                client.batch_execute("SELECT * FROM nowhere")?;
                Ok(())
            },
        )
        .await;
    assert!(failed.is_err());
    // A lease that is dropped on an async thread touches nothing there.
    drop(pool.lease_async("b").await.unwrap());
    drop(pool.lease_async("a").await.unwrap());
    drop(pool);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn run_awaits_an_async_client() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), 2).build().unwrap();
    type Fault = Box<dyn std::error::Error + Send + Sync>;
    let one: i32 = pool
        .run("a", async |client| {
            let row = client.query_one("SELECT 1", &[]).await?;
            Ok::<_, Fault>(row.get(0))
        })
        .await
        .unwrap();
    assert_eq!(one, 1);
    let theirs = pool.clone();
    let spawned = tokio::spawn(async move {
        let lease = theirs.lease_async("b").await?;
        let row = lease.query_one("SELECT 2", &[]).await?;
        Ok::<i32, Fault>(row.get(0))
    });
    assert_eq!(spawned.await.unwrap().unwrap(), 2);
    // The end of a lease is not waited for: the transaction is rolled back all the same.
    let lease = pool.lease_async("c").await.unwrap();
    lease
        .batch_execute("BEGIN; CREATE TABLE gone (x int)")
        .await
        .unwrap();
    drop(lease);
    let lease = pool.lease_async("c").await.unwrap();
    let row = lease
        .query_one("SELECT to_regclass('gone') IS NULL", &[])
        .await
        .unwrap();
    assert!(row.get::<_, bool>(0));
}

/// Warm leases cost no more than r2d2's without its check, and far less than with it.
#[test]
fn a_warm_lease_asks_the_server_nothing() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 2).build().unwrap();
    drop(pool.lease("a").unwrap());
    let begun = Instant::now();
    let mut leases = 0;
    while begun.elapsed() < Duration::from_millis(300) {
        drop(pool.lease("a").unwrap());
        leases += 1;
    }
    let stats = pool.stats();
    assert_eq!(
        (stats.probes, stats.opens, stats.resets),
        (0, 1, 0),
        "{leases}: {stats:?}"
    );
}
