//! Quotas: one agent's flood leaves connections for the others.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Database, Error, Lease, Pool, Wanted};

use crate::common::{Fixture, LONG, eventually};

const QUOTA: usize = 2;

fn pool(fixture: &Fixture) -> Pool {
    let builder = fixture.builder(4).lease_timeout(LONG);
    builder.leases_per_agent(QUOTA).build().unwrap()
}

fn full(pool: &Pool, agent: &str) -> [Lease; QUOTA] {
    std::array::from_fn(|_| pool.lease(agent).unwrap())
}

/// An agent's error, and nobody else's.
fn assert_refused(refused: Result<Lease, Error>) {
    match refused {
        Err(Error::Exhausted {
            wanted: Wanted::Agent,
            holders,
            ..
        }) => {
            let agents: Vec<_> = holders.iter().map(|holder| &*holder.agent).collect();
            assert_eq!(agents, ["flood", "flood"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_further_lease_waits_and_keeps_nobody_waiting() {
    let fixture = Fixture::new();
    let pool = pool(&fixture);
    let held = full(&pool, "flood");
    assert_refused(pool.try_lease("flood"));
    let patience = Duration::from_millis(20);
    let start = Instant::now();
    assert_refused(pool.agent("flood").within(patience).lease());
    assert_refused(smol::block_on(async {
        pool.agent("flood").within(patience).lease_async().await
    }));
    assert!(start.elapsed() >= patience * 2);
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..16)
            .map(|i| {
                let pool = &pool;
                scope.spawn(move || match i % 2 {
                    0 => drop(pool.lease("flood").unwrap()),
                    _ => drop(smol::block_on(pool.lease_async("flood")).unwrap()),
                })
            })
            .collect();
        eventually("they wait", || pool.stats().waiting == 16);
        assert_eq!(pool.waiting().len(), 16);
        for i in 0..100 {
            let other = pool.try_lease(format!("other-{i}")).unwrap();
            drop((other, pool.try_lease("another").unwrap()));
        }
        let all: Vec<_> = (0..2).map(|_| pool.try_get().unwrap()).collect();
        drop(all);
        pool.write("flood", |tx| tx.execute("INSERT INTO t VALUES (1)", ()))
            .unwrap();
        drop(held);
        for waiting in waiting {
            waiting.join().unwrap();
        }
    });
    assert_eq!(pool.stats().waiting, 0);
    drop(full(&pool, "flood"));
    // Those that name no agent have none to be limited.
    drop((0..4).map(|_| pool.try_get().unwrap()).collect::<Vec<_>>());
    pool.close().unwrap();
}

#[test]
fn who_gives_up_leaves_nothing() {
    let fixture = Fixture::new();
    let pool = pool(&fixture);
    for _ in 0..100 {
        let held = full(&pool, "flood");
        let given_up = smol::block_on(async {
            let lease = pool.lease_async("flood");
            smol::future::or(async { Some(lease.await) }, async {
                smol::future::yield_now().await;
                None
            })
            .await
        });
        assert!(given_up.is_none());
        assert_eq!(pool.stats().waiting, 0);
        drop(held);
        // Granted, and dropped before it was taken.
        let held = full(&pool, "flood");
        smol::block_on(async {
            let mut lease = Box::pin(pool.lease_async("flood"));
            assert!(smol::future::poll_once(&mut lease).await.is_none());
            drop(held);
            drop(lease);
        });
        drop(full(&pool, "flood"));
    }
    assert_eq!(pool.stats().lent, 0);
    pool.close().unwrap();
}

#[test]
fn calls_on_the_pools_threads_have_the_same_quota() {
    let fixture = Fixture::new();
    let pool = pool(&fixture);
    let (release, gate) = mpsc::channel::<()>();
    let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
    thread::scope(|scope| {
        let flood: Vec<_> = (0..8)
            .map(|_| {
                let (pool, gate) = (&pool, std::sync::Arc::clone(&gate));
                scope.spawn(move || {
                    smol::block_on(pool.run("flood", move |_| {
                        let _ = gate.lock().unwrap().recv();
                        Ok(())
                    }))
                })
            })
            .collect();
        eventually("the quota is used", || pool.stats().lent == QUOTA);
        for i in 0..50 {
            let agent = format!("other-{i}");
            smol::block_on(pool.run(&agent, |conn| conn.query_row("SELECT 1", [], |_| Ok(()))))
                .unwrap();
            smol::block_on(pool.read_async(&agent, |tx| tx.query_row("SELECT 1", [], |_| Ok(()))))
                .unwrap();
            assert!(pool.stats().lent <= QUOTA);
        }
        drop(release);
        for call in flood {
            call.join().unwrap().unwrap();
        }
    });
    pool.close().unwrap();
}

#[test]
fn a_close_ends_the_wait() {
    let fixture = Fixture::new();
    let pool = pool(&fixture);
    let held = full(&pool, "flood");
    thread::scope(|scope| {
        let waits = scope.spawn(|| pool.lease("flood").map(drop));
        eventually("it waits", || pool.stats().waiting == 1);
        let closes = scope.spawn(|| pool.close());
        assert!(matches!(waits.join().unwrap(), Err(Error::Closed)));
        drop(held);
        closes.join().unwrap().unwrap();
    });
}

/// Random agents, some of them floods, from many threads: the quota holds at each instant, and nothing is lost.
#[test]
fn the_quota_holds_at_each_instant() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    let fixture = Fixture::new();
    let pool = pool(&fixture);
    let held: [AtomicUsize; 3] = Default::default();
    thread::scope(|scope| {
        for thread in 0..8 {
            let (pool, held) = (&pool, &held);
            scope.spawn(move || {
                for i in 0..300 {
                    let agent = (thread * 7 + i * i) % held.len();
                    let lease = match i % 3 {
                        0 => pool.lease(agent).unwrap(),
                        1 => smol::block_on(pool.lease_async(agent)).unwrap(),
                        _ => match pool.try_lease(agent) {
                            Ok(lease) => lease,
                            Err(_) => continue,
                        },
                    };
                    assert!(held[agent].fetch_add(1, SeqCst) < QUOTA);
                    if i % 5 == 0 {
                        pool.evict(agent);
                    }
                    thread::yield_now();
                    held[agent].fetch_sub(1, SeqCst);
                    drop(lease);
                }
            });
        }
    });
    assert_eq!((pool.stats().lent, pool.stats().waiting), (0, 0));
    for agent in 0..held.len() {
        drop(full(&pool, &agent.to_string()));
    }
    pool.close().unwrap();
}

#[test]
fn no_quota_of_none() {
    let refused = Pool::builder(Database::memory())
        .leases_per_agent(0)
        .build();
    assert!(matches!(
        refused,
        Err(Error::Config {
            option: "leases_per_agent",
            ..
        })
    ));
}

/// A lease whose first attempt to open a connection fails waits without its place in the quota, and takes it again.
#[cfg(feature = "managed")]
#[test]
fn a_quota_holds_where_an_opening_failed() {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    struct Server(AtomicBool);

    impl r2d2::ManageConnection for Server {
        type Connection = ();
        type Error = std::io::Error;

        fn connect(&self) -> std::io::Result<()> {
            match self.0.swap(true, SeqCst) {
                true => Ok(()),
                false => Err(std::io::ErrorKind::ConnectionRefused.into()),
            }
        }

        fn is_valid(&self, (): &mut ()) -> std::io::Result<()> {
            Ok(())
        }

        fn has_broken(&self, (): &mut ()) -> bool {
            false
        }
    }

    let pool = Pool::managed(Server(AtomicBool::new(false)))
        .max_connections(4)
        .fds_per_connection(1)
        .reset(|()| Ok::<_, Error>(()))
        .leases_per_agent(1)
        .lease_timeout(LONG)
        .build()
        .unwrap();
    let held = pool.lease("flood").unwrap();
    let second = pool.agent("flood").within(Duration::from_millis(20));
    let refused = second.lease().map(drop);
    assert!(
        matches!(
            refused,
            Err(Error::Exhausted {
                wanted: Wanted::Agent,
                ..
            })
        ),
        "{refused:?}"
    );
    drop(held);
    drop(pool.lease("flood").unwrap());
}
