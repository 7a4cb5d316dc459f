//! Reads awaited: 32 tasks on 2 worker threads read an agent's last 20 messages, over 8 connections.
//!
//! `cargo bench --bench async_read` prints one table, of contenders that take turns within one run. All
//! use the same rusqlite, and so the same SQLite; the table says how that is compiled. With rusqlite's
//! default flags:
//!
//! ```sh
//! LIBSQLITE3_FLAGS= cargo bench --bench async_read --target-dir target/default-flags
//! ```

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use leasepool::rusqlite::{self, Connection};
use leasepool::{Database, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const AGENTS: usize = 2_000;
const MESSAGES: usize = 50;
const CONNECTIONS: usize = 8;
const TASKS: usize = 32;
const WORKERS: usize = 2;
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_secs(2);

const LAST: &str = "SELECT id, body FROM message WHERE agent = ?1 ORDER BY id DESC LIMIT 20";

type Messages = Vec<(i64, String)>;

/// The work, the same for everybody.
fn last_messages(connection: &Connection, agent: &str) -> rusqlite::Result<Messages> {
    let mut select = connection.prepare_cached(LAST)?;
    let mut messages = Vec::with_capacity(20);
    let mut rows = select.query([agent])?;
    while let Some(row) = rows.next()? {
        messages.push((row.get(0)?, row.get(1)?));
    }
    Ok(messages)
}

/// An agent's messages lie together, as those who read them so would have it.
fn create(path: &Path) -> rusqlite::Result<()> {
    let mut connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE message (
             agent TEXT NOT NULL,
             id INTEGER NOT NULL,
             body TEXT NOT NULL,
             PRIMARY KEY (agent, id)
         ) WITHOUT ROWID",
    )?;
    let transaction = connection.transaction()?;
    {
        let mut insert =
            transaction.prepare("INSERT INTO message (agent, id, body) VALUES (?1, ?2, ?3)")?;
        for i in 0..MESSAGES {
            for agent in 0..AGENTS {
                let body = format!("message {i} of agent {agent}, which says what people say");
                insert.execute((name(agent), i as i64, body))?;
            }
        }
    }
    transaction.commit()
}

fn name(agent: usize) -> String {
    format!("agent-{agent}")
}

fn leasepool(path: &Path, mmap_size: u64) -> Pool {
    Pool::builder(Database::file(path))
        .max_connections(CONNECTIONS)
        .synchronous(Synchronous::Normal)
        .mmap_size(mmap_size)
        .build()
        .unwrap()
}

fn deadpool(path: &Path) -> deadpool_sqlite::Pool {
    let config = deadpool_sqlite::Config::new(path);
    config
        .builder(deadpool_sqlite::Runtime::Tokio1)
        .unwrap()
        .max_size(CONNECTIONS)
        .build()
        .unwrap()
}

/// How one contender did in one round.
struct Round {
    reads: f64,
    /// In nanoseconds, sorted.
    latencies: Vec<u64>,
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
    let mut round = Round {
        reads: latencies.len() as f64 / start.elapsed().as_secs_f64(),
        latencies,
    };
    round.latencies.sort_unstable();
    round
}

type Contender = (&'static str, Box<dyn Fn(Duration) -> Round>);

fn contenders(folder: &Path, runtime: &Arc<tokio::runtime::Runtime>) -> Vec<Contender> {
    let file = |name: &str| {
        let path = folder.join(name);
        create(&path).unwrap();
        path
    };
    let mut contenders: Vec<Contender> = Vec::new();
    for (name, database, mmap_size) in [
        ("leasepool", "leasepool.db", 0),
        ("leasepool, mmap_size 256 MiB", "mmap.db", 256 << 20),
    ] {
        let pool = leasepool(&file(database), mmap_size);
        let runtime = Arc::clone(runtime);
        contenders.push((
            name,
            Box::new(move |length| {
                let pool = pool.clone();
                round(&runtime, length, move |agent| {
                    let pool = pool.clone();
                    async move {
                        let lease = pool.lease_async(&agent).await.unwrap();
                        last_messages(&lease, &agent).unwrap()
                    }
                })
            }),
        ));
    }
    #[cfg(feature = "tokio")]
    {
        let pool = leasepool(&file("run.db"), 0);
        let runtime = Arc::clone(runtime);
        contenders.push((
            "leasepool, Pool::run",
            Box::new(move |length| {
                let pool = pool.clone();
                round(&runtime, length, move |agent| {
                    let pool = pool.clone();
                    async move {
                        let theirs = agent.clone();
                        let work = move |conn: &mut Connection| last_messages(conn, &theirs);
                        pool.run(&agent, work).await.unwrap().unwrap()
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
                        let work = move |conn: &mut Connection| last_messages(conn, &agent);
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
                            .call(move |conn| last_messages(conn, &agent))
                            .await
                            .unwrap()
                    }
                })
            }),
        ));
    }
    contenders
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quantile(sorted: &[u64], q: f64) -> f64 {
    let rank = (sorted.len() as f64 * q).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1] as f64 / 1e3
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
    let mut rounds: Vec<Vec<Round>> = contenders.iter().map(|_| Vec::new()).collect();
    for i in 0..=ROUNDS {
        for ((_, contender), rounds) in contenders.iter().zip(&mut rounds) {
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
    println!(
        "{:<30} {:>10} {:>12} {:>10} {:>10} {:>10}",
        "", "reads/s", "x leasepool", "p50 µs", "p99 µs", "max µs"
    );
    let mut base = None;
    for ((name, _), rounds) in contenders.iter().zip(&rounds) {
        let of = |value: &dyn Fn(&Round) -> f64| median(rounds.iter().map(value).collect());
        let reads = of(&|round| round.reads);
        let base = *base.get_or_insert(reads);
        println!(
            "{name:<30} {reads:>10.0} {:>12.2} {:>10.0} {:>10.0} {:>10.0}",
            reads / base,
            of(&|round| quantile(&round.latencies, 0.5)),
            of(&|round| quantile(&round.latencies, 0.99)),
            of(&|round| quantile(&round.latencies, 1.0)),
        );
    }
}
