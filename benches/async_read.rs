//! Reads awaited: 32 tasks on 2 worker threads read an agent's last 20 messages, over 8 connections.
//!
//! `cargo bench -p leasepool-benches --bench async_read` prints one table, of contenders that take turns within
//! one run. All use the same rusqlite, and so the same SQLite; the table says how that is compiled. With rusqlite's
//! default flags:
//!
//! ```sh
//! LIBSQLITE3_FLAGS= cargo bench -p leasepool-benches --bench async_read --target-dir target/default-flags
//! ```

mod contest;
mod reads;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use contest::{Round, table};
use leasepool::rusqlite::Connection;
use leasepool::{Database, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reads::{AGENTS, CONNECTIONS, Messages, WORKERS, create, deadpool, last_messages, name};

const TASKS: usize = 32;
/// Read at a time.
const MESSAGES: usize = 20;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);

/// How a pool of leasepool differs from the defaults.
#[derive(Clone, Copy, Default)]
struct Options {
    mmap_size: u64,
    keep_read_lock: bool,
}

fn leasepool(path: &Path, options: Options) -> Pool {
    Pool::builder(Database::file(path))
        .max_connections(CONNECTIONS)
        .synchronous(Synchronous::Normal)
        .mmap_size(options.mmap_size)
        .keep_read_lock(options.keep_read_lock)
        .build()
        .unwrap()
}

/// One connection on one thread: half of what two threads could read at most.
fn bare(connection: &Connection, length: Duration) -> Round {
    let start = Instant::now();
    let mut rng = SmallRng::seed_from_u64(0);
    let mut latencies = Vec::with_capacity(1 << 18);
    while start.elapsed() < length {
        let agent = name(rng.random_range(0..AGENTS));
        let asked = Instant::now();
        last_messages(connection, &agent, MESSAGES).unwrap();
        latencies.push(asked.elapsed().as_nanos() as u64);
    }
    Round::new(latencies, start.elapsed(), None)
}

/// Lets the tasks read for the time of a round.
fn round<F, R>(runtime: &tokio::runtime::Runtime, length: Duration, read: F) -> Round
where
    F: Fn(String) -> R + Send + Sync + 'static,
    R: Future<Output = Messages> + Send,
{
    let read = Arc::new(read);
    let done = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let latencies = runtime.block_on(async {
        let tasks: Vec<_> = (0..TASKS as u64)
            .map(|seed| {
                let (read, done) = (Arc::clone(&read), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    let mut latencies = Vec::with_capacity(1 << 16);
                    while !done.load(Relaxed) {
                        let agent = name(rng.random_range(0..AGENTS));
                        let asked = Instant::now();
                        let messages = read(agent).await;
                        latencies.push(asked.elapsed().as_nanos() as u64);
                        assert_eq!(messages.len(), 20);
                        // A task that never waits must let the others have their turn.
                        tokio::task::yield_now().await;
                    }
                    latencies
                })
            })
            .collect();
        tokio::time::sleep(length).await;
        done.store(true, Relaxed);
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await.unwrap());
        }
        latencies
    });
    Round::new(latencies, start.elapsed(), None)
}

type Contender = (&'static str, Box<dyn Fn(Duration) -> Round>);

fn contenders(folder: &Path, runtime: &Arc<tokio::runtime::Runtime>) -> Vec<Contender> {
    let file = |name: &str| {
        let path = folder.join(name);
        create(&path).unwrap();
        path
    };
    let mut contenders: Vec<Contender> = Vec::new();
    let defaults = Options::default();
    let mapped = Options {
        mmap_size: 256 << 20,
        ..defaults
    };
    let kept = Options {
        keep_read_lock: true,
        ..defaults
    };
    for (name, database, options) in [
        ("leasepool", "leasepool.db", defaults),
        ("leasepool, mmap_size 256 MiB", "mmap.db", mapped),
        ("leasepool, keep_read_lock", "kept.db", kept),
    ] {
        let pool = leasepool(&file(database), options);
        let runtime = Arc::clone(runtime);
        contenders.push((
            name,
            Box::new(move |length| {
                let pool = pool.clone();
                round(&runtime, length, move |agent| {
                    let pool = pool.clone();
                    async move {
                        let lease = pool.lease_async(&agent).await.unwrap();
                        last_messages(&lease, &agent, MESSAGES).unwrap()
                    }
                })
            }),
        ));
    }
    for (name, database, options) in [
        ("leasepool, Pool::run", "run.db", defaults),
        ("the same, keep_read_lock", "run-kept.db", kept),
    ] {
        let pool = leasepool(&file(database), options);
        let runtime = Arc::clone(runtime);
        contenders.push((
            name,
            Box::new(move |length| {
                let pool = pool.clone();
                round(&runtime, length, move |agent| {
                    let pool = pool.clone();
                    async move {
                        let theirs = agent.clone();
                        let work =
                            move |conn: &mut Connection| last_messages(conn, &theirs, MESSAGES);
                        pool.run(&agent, work).await.unwrap()
                    }
                })
            }),
        ));
    }
    {
        let pool = deadpool(&file("deadpool.db"));
        let runtime = Arc::clone(runtime);
        contenders.push((
            "deadpool-sqlite",
            Box::new(move |length| {
                let pool = pool.clone();
                round(&runtime, length, move |agent| {
                    let pool = pool.clone();
                    async move {
                        let connection = pool.get().await.unwrap();
                        let work =
                            move |conn: &mut Connection| last_messages(conn, &agent, MESSAGES);
                        connection.interact(work).await.unwrap().unwrap()
                    }
                })
            }),
        ));
    }
    {
        let path = file("tokio-rusqlite.db");
        let connections: Arc<Vec<_>> = Arc::new(runtime.block_on(async {
            let mut connections = Vec::new();
            for _ in 0..CONNECTIONS {
                connections.push(tokio_rusqlite::Connection::open(&path).await.unwrap());
            }
            connections
        }));
        let turn = Arc::new(AtomicUsize::new(0));
        let runtime = Arc::clone(runtime);
        contenders.push((
            "tokio-rusqlite, 8 in turn",
            Box::new(move |length| {
                let (connections, turn) = (Arc::clone(&connections), Arc::clone(&turn));
                round(&runtime, length, move |agent| {
                    let next = turn.fetch_add(1, Relaxed) % CONNECTIONS;
                    let connection = connections[next].clone();
                    async move {
                        connection
                            .call(move |conn| last_messages(conn, &agent, MESSAGES))
                            .await
                            .unwrap()
                    }
                })
            }),
        ));
    }
    {
        let connection = Connection::open(file("bare.db")).unwrap();
        contenders.push((
            "bare connection, 1 thread",
            Box::new(move |length| bare(&connection, length)),
        ));
    }
    contenders
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let runtime = Arc::new(runtime.unwrap());
    // deadpool-sqlite closes its connections on the runtime it is dropped in.
    let _context = runtime.enter();
    let mut contenders = contenders(folder.path(), &runtime);
    // `-- NAME` runs one alone, for a profiler.
    if let Some(name) = std::env::args().nth(1).filter(|arg| !arg.starts_with('-')) {
        contenders.retain(|(contender, _)| *contender == name);
    }
    let mut rounds: Vec<_> = contenders
        .iter()
        .map(|(name, _)| (*name, Vec::new()))
        .collect();
    for i in 0..=ROUNDS {
        for ((_, contender), (_, rounds)) in contenders.iter().zip(&mut rounds) {
            // The first round warms up.
            let length = if i == 0 { ROUND / 4 } else { ROUND };
            let round = contender(length);
            if i > 0 {
                rounds.push(round);
            }
        }
    }
    let memory_management = Connection::open_in_memory()
        .and_then(|connection| {
            connection.query_row(
                "SELECT count(*) FROM pragma_compile_options WHERE compile_options = 'ENABLE_MEMORY_MANAGEMENT'",
                [],
                |row| row.get::<_, bool>(0),
            )
        })
        .unwrap();
    println!(
        "\n{TASKS} tasks on {WORKERS} threads, {CONNECTIONS} connections, {AGENTS} agents; SQLite {} \
         SQLITE_ENABLE_MEMORY_MANAGEMENT{}; medians of {ROUNDS} rounds, in turn",
        if memory_management { "with" } else { "without" },
        if memory_management {
            ", as rusqlite compiles it"
        } else {
            ""
        },
    );
    table("reads/s", &rounds);
}
