//! A manager and callbacks that do everything that they may not: fail, hang, panic, lie. Whatever they do, no more
//! connections exist than the pool may have, no agent sees another's state, and every place comes back.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Backend, Builder, Error, Lease, Pool, Remote};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::common::{assert_whole, eventually};

const CONNECTIONS: usize = 4;
const AGENTS: usize = 12;

#[derive(Default)]
struct World {
    calm: AtomicBool,
    open: AtomicUsize,
    most: AtomicUsize,
    seed: AtomicUsize,
}

/// What a call does.
#[derive(Clone, Copy, PartialEq)]
enum Deed {
    Work,
    Fail,
    Panic,
    Dawdle,
    Hang,
}

impl World {
    fn deed(&self) -> Deed {
        if self.calm.load(SeqCst) {
            return Deed::Work;
        }
        let seed = self.seed.fetch_add(1, SeqCst) as u64;
        match StdRng::seed_from_u64(seed).random_range(0..40) {
            0..2 => Deed::Fail,
            2..4 => Deed::Panic,
            4..8 => Deed::Dawdle,
            8 => Deed::Hang,
            _ => Deed::Work,
        }
    }

    fn blocking(&self) -> io::Result<()> {
        match self.deed() {
            Deed::Work => Ok(()),
            Deed::Fail => Err(io::Error::other("on purpose")),
            Deed::Panic => panic!("on purpose"),
            Deed::Dawdle => {
                thread::sleep(Duration::from_millis(2));
                Ok(())
            }
            Deed::Hang => {
                thread::sleep(Duration::from_millis(60));
                Ok(())
            }
        }
    }

    async fn awaited(&self) -> io::Result<()> {
        match self.deed() {
            Deed::Work => Ok(()),
            Deed::Fail => Err(io::Error::other("on purpose")),
            Deed::Panic => panic!("on purpose"),
            Deed::Dawdle => {
                tokio::time::sleep(Duration::from_millis(2)).await;
                Ok(())
            }
            Deed::Hang => {
                tokio::time::sleep(Duration::from_millis(60)).await;
                Ok(())
            }
        }
    }
}

/// A session of a server that remembers who has used it.
struct Session {
    world: Arc<World>,
    agent: Option<String>,
}

impl Session {
    fn new(world: &Arc<World>) -> Session {
        let open = world.open.fetch_add(1, SeqCst) + 1;
        world.most.fetch_max(open, SeqCst);
        Session {
            world: Arc::clone(world),
            agent: None,
        }
    }

    /// An agent uses it.
    fn serve(&mut self, agent: &str) {
        if let Some(before) = self.agent.replace(agent.to_owned()) {
            assert_eq!(before, agent, "the state of another agent");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.world.open.fetch_sub(1, SeqCst);
        if self.world.deed() == Deed::Panic && !thread::panicking() {
            panic!("on purpose");
        }
    }
}

struct Manager(Arc<World>);

impl leasepool::r2d2::ManageConnection for Manager {
    type Connection = Session;
    type Error = io::Error;

    fn connect(&self) -> io::Result<Session> {
        let session = Session::new(&self.0);
        self.0.blocking().map(|()| session)
    }

    fn is_valid(&self, _: &mut Session) -> io::Result<()> {
        self.0.blocking()
    }

    fn has_broken(&self, _: &mut Session) -> bool {
        match self.0.deed() {
            Deed::Fail => true,
            Deed::Panic => panic!("on purpose"),
            _ => false,
        }
    }
}

impl leasepool::bb8::ManageConnection for Manager {
    type Connection = Session;
    type Error = io::Error;

    async fn connect(&self) -> io::Result<Session> {
        let session = Session::new(&self.0);
        self.0.awaited().await.map(|()| session)
    }

    async fn is_valid(&self, _: &mut Session) -> io::Result<()> {
        self.0.awaited().await
    }

    fn has_broken(&self, _: &mut Session) -> bool {
        match self.0.deed() {
            Deed::Fail => true,
            Deed::Panic => panic!("on purpose"),
            _ => false,
        }
    }
}

fn impatient<B: Remote>(builder: Builder<B>) -> Pool<B> {
    builder
        .max_connections(CONNECTIONS)
        .fds_per_connection(0)
        .cached_agents(6)
        .idle_timeout(Duration::from_millis(20))
        .max_lifetime(Duration::from_millis(100))
        .probe_after(Duration::from_millis(3))
        .probe_timeout(Duration::from_millis(20))
        .open_timeout(Duration::from_millis(30))
        .lease_timeout(Duration::from_millis(50))
        .build()
        .unwrap()
}

/// A turn of one agent.
fn turn<B>(pool: &Pool<B>, rng: &mut StdRng, served: &AtomicUsize)
where
    B: Backend + Remote<ManagerError = io::Error>,
    Lease<B>: std::ops::DerefMut<Target = Session>,
{
    let agent = format!("agent-{}", rng.random_range(0..AGENTS));
    let lease = match rng.random_range(0..4) {
        0 => pool.try_lease(&agent),
        1 => given_up_after(pool.lease_async(&agent), rng.random_range(1..6)),
        _ => pool.lease(&agent),
    };
    let mut lease = match lease {
        Ok(lease) => lease,
        // `Closed`: it was given up.
        Err(Error::Open { .. } | Error::Exhausted { .. } | Error::Closed) => return,
        Err(error) => panic!("{error:?}"),
    };
    served.fetch_add(1, SeqCst);
    if rng.random_bool(0.8) {
        lease.serve(&agent);
    }
    match rng.random_range(0..20) {
        0 => Lease::discard(lease),
        1 => Lease::report(&lease, &io::Error::other("on purpose")),
        2 => {
            let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let _lease = lease;
                panic!("on purpose");
            }));
            assert!(unwound.is_err());
        }
        3 => {
            drop(lease);
            pool.evict(&agent);
        }
        4 => thread::sleep(Duration::from_millis(1)),
        _ => {}
    }
}

/// Polls a future a few times, and gives it up if it is not ready by then.
fn given_up_after<T>(
    future: impl Future<Output = Result<T, Error>>,
    polls: usize,
) -> Result<T, Error> {
    let mut future = std::pin::pin!(future);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..polls {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut cx) {
            return done;
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err(Error::Closed)
}

fn hostile<B>(pool: Pool<B>, world: &Arc<World>)
where
    B: Backend + Remote<ManagerError = io::Error>,
    Lease<B>: std::ops::DerefMut<Target = Session>,
{
    let served = AtomicUsize::new(0);
    let end = Instant::now() + Duration::from_secs(5);
    thread::scope(|scope| {
        for seed in 0..8 {
            let (pool, served) = (&pool, &served);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                while Instant::now() < end {
                    turn(pool, &mut rng, served);
                }
            });
        }
    });
    assert!(
        world.most.load(SeqCst) <= CONNECTIONS,
        "{}",
        world.most.load(SeqCst)
    );
    assert!(served.load(SeqCst) > 500, "{}", served.load(SeqCst));
    world.calm.store(true, SeqCst);
    eventually("all leases have ended", || pool.stats().lent == 0);
    let patient = |agent: usize| {
        let mut lease = None;
        eventually("it is served", || {
            lease = pool.lease(format!("whole-{agent}")).ok();
            lease.is_some()
        });
        lease
    };
    let leases: Vec<_> = (0..CONNECTIONS).map(patient).collect();
    assert!(pool.try_lease("one too many").is_err());
    assert_eq!(world.open.load(SeqCst), CONNECTIONS);
    drop(leases);
    assert_whole(&pool, CONNECTIONS);
    pool.close().unwrap();
    eventually("all are closed", || world.open.load(SeqCst) == 0);
}

#[test]
fn a_hostile_manager() {
    let world = Arc::new(World::default());
    let (settling, resetting, opening) = (world.clone(), world.clone(), world.clone());
    let builder = Pool::managed(Manager(Arc::clone(&world)))
        .on_open(move |_| opening.blocking())
        .settle(move |_| settling.blocking())
        .reset(move |session| {
            resetting.blocking()?;
            session.agent = None;
            Ok::<_, io::Error>(())
        });
    hostile(impatient(builder), &world);
}

#[test]
fn a_hostile_async_manager() {
    let world = Arc::new(World::default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (settling, resetting, opening) = (world.clone(), world.clone(), world.clone());
    let builder = Pool::awaited(Manager(Arc::clone(&world)), runtime.handle().clone())
        .on_open(move |_| {
            let world = opening.clone();
            Box::pin(async move { world.awaited().await })
        })
        .settle(move |_| {
            let world = settling.clone();
            Box::pin(async move { world.awaited().await })
        })
        .reset(move |session| {
            let world = resetting.clone();
            Box::pin(async move {
                world.awaited().await?;
                session.agent = None;
                Ok::<_, io::Error>(())
            })
        });
    hostile(impatient(builder), &world);
}
