//! Writes: 1 to 128 clients on 8 connections; beside r2d2_sqlite, deadpool-sqlite and tokio-rusqlite, all with
//! BEGIN IMMEDIATE and a busy timeout of 10 s, on the same rusqlite. A write is one insert and one update; a
//! turn is a write, a read of an agent's last 20 rows, and a write.
//!
//! ```sh
//! cargo bench -p leasepool-benches --bench write                   # all tables
//! cargo bench -p leasepool-benches --bench write -- --clients 32   # some of them
//! cargo bench -p leasepool-benches --bench write -- --synchronous full --json
//! ```
//!
//! Contenders take turns within one run; the tables show medians of rounds.

mod contest;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use contest::{Round, json, table};
use leasepool::rusqlite::{self, Connection, TransactionBehavior};
use leasepool::{Database, Pool};
use r2d2_sqlite::SqliteConnectionManager;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

const AGENTS: i64 = 2_000;
const CONNECTIONS: usize = 8;
const WORKERS: usize = 2;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Args {
    /// How many clients write at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    clients: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Sync::Normal, Sync::Full])]
    synchronous: Vec<Sync>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [What::Write, What::Turn])]
    what: Vec<What>,
    /// Rounds of each contender
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only contenders whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Print a JSON object for each table, too
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Sync {
    Normal,
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Write,
    Turn,
}

impl std::fmt::Display for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Sync::Normal => "normal",
            Sync::Full => "full",
        })
    }
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            What::Write => "write",
            What::Turn => "turn",
        })
    }
}

fn create(path: &Path) {
    let mut connection = Connection::open(path).unwrap();
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE agent (id INTEGER PRIMARY KEY, said INTEGER NOT NULL);
             CREATE TABLE message (agent INTEGER, body TEXT);
             CREATE INDEX message_agent ON message (agent)",
        )
        .unwrap();
    let transaction = connection.transaction().unwrap();
    for agent in 0..AGENTS {
        transaction
            .execute("INSERT INTO agent VALUES (?1, 0)", [agent])
            .unwrap();
    }
    transaction.commit().unwrap();
}

fn configure(connection: &mut Connection, sync: Sync) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", sync.to_string())
}

/// The work of a write, the same for every contender.
fn work(connection: &Connection, agent: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT INTO message VALUES (?1, ?2)")?
        .execute((agent, "what an agent says in one turn of a conversation"))?;
    connection
        .prepare_cached("UPDATE agent SET said = said + 1 WHERE id = ?1")?
        .execute([agent])?;
    Ok(())
}

fn read(connection: &Connection, agent: i64) -> rusqlite::Result<usize> {
    let mut select = connection
        .prepare_cached("SELECT body FROM message WHERE agent = ?1 ORDER BY rowid DESC LIMIT 20")?;
    let rows = select.query_map([agent], |row| row.get::<_, String>(0))?;
    Ok(rows.filter_map(Result::ok).count())
}

/// A write as peers do it.
fn immediate(connection: &mut Connection, agent: i64) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    work(&transaction, agent)?;
    transaction.commit()
}

fn act(connection: &mut Connection, agent: i64, what: What) -> rusqlite::Result<()> {
    immediate(connection, agent)?;
    if what == What::Turn {
        read(connection, agent)?;
        immediate(connection, agent)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
struct Shape {
    clients: usize,
    what: What,
    length: Duration,
}

/// Clients that block, each a thread.
fn threads(shape: Shape, act: impl Fn(i64) + Send + std::marker::Sync) -> Round {
    let done = AtomicBool::new(false);
    let start = Instant::now();
    let latencies = thread::scope(|scope| {
        let clients: Vec<_> = (0..shape.clients as u64)
            .map(|seed| {
                let (act, done) = (&act, &done);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    let mut latencies = Vec::with_capacity(1 << 16);
                    while !done.load(Relaxed) {
                        let agent = rng.random_range(0..AGENTS);
                        let asked = Instant::now();
                        act(agent);
                        latencies.push(asked.elapsed().as_nanos() as u64);
                    }
                    latencies
                })
            })
            .collect();
        thread::sleep(shape.length);
        done.store(true, Relaxed);
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    Round::new(latencies, start.elapsed(), None)
}

/// Clients that await, each a task.
fn tasks<F, R>(runtime: &Runtime, shape: Shape, act: F) -> Round
where
    F: Fn(i64) -> R + Send + std::marker::Sync + 'static,
    R: Future<Output = ()> + Send,
{
    let (act, done) = (Arc::new(act), Arc::new(AtomicBool::new(false)));
    let start = Instant::now();
    let latencies = runtime.block_on(async {
        let clients: Vec<_> = (0..shape.clients as u64)
            .map(|seed| {
                let (act, done) = (Arc::clone(&act), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    let mut latencies = Vec::with_capacity(1 << 16);
                    while !done.load(Relaxed) {
                        let agent = rng.random_range(0..AGENTS);
                        let asked = Instant::now();
                        act(agent).await;
                        latencies.push(asked.elapsed().as_nanos() as u64);
                    }
                    latencies
                })
            })
            .collect();
        tokio::time::sleep(shape.length).await;
        done.store(true, Relaxed);
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await.unwrap());
        }
        latencies
    });
    Round::new(latencies, start.elapsed(), None)
}

type Play = Box<dyn Fn(Shape) -> Round>;

struct Contender {
    name: &'static str,
    play: Play,
    /// Where it is no pool, and so only for one client.
    alone: bool,
}

struct Stage {
    folder: PathBuf,
    sync: Sync,
    runtime: Arc<Runtime>,
}

impl Stage {
    fn file(&self, name: &str) -> PathBuf {
        let path = self
            .folder
            .join(format!("{name}-{}.db", self.sync).replace([' ', ','], "_"));
        create(&path);
        path
    }

    fn leasepool(&self, name: &str) -> Pool {
        Pool::builder(Database::file(self.file(name)))
            .max_connections(CONNECTIONS)
            .busy_timeout(BUSY_TIMEOUT)
            .lease_timeout(BUSY_TIMEOUT)
            .synchronous(match self.sync {
                Sync::Normal => leasepool::Synchronous::Normal,
                Sync::Full => leasepool::Synchronous::Full,
            })
            .build()
            .unwrap()
    }

    fn r2d2(&self, name: &str) -> r2d2::Pool<SqliteConnectionManager> {
        let sync = self.sync;
        let manager = SqliteConnectionManager::file(self.file(name))
            .with_init(move |connection| configure(connection, sync));
        r2d2::Pool::builder()
            .max_size(CONNECTIONS as u32)
            .build(manager)
            .unwrap()
    }

    fn contenders(&self) -> Vec<Contender> {
        let mut contenders = Vec::new();
        let mut add = |name: &'static str, play: Play| {
            contenders.push(Contender {
                name,
                play,
                alone: name.starts_with("bare"),
            });
        };
        {
            let name = "leasepool, threads";
            let pool = self.leasepool(name);
            add(
                name,
                Box::new(move |shape| {
                    threads(shape, |agent| {
                        let write = || {
                            pool.write("agent", move |tx| work(tx, agent)).unwrap();
                        };
                        write();
                        if shape.what == What::Turn {
                            read(&pool.lease(name).unwrap(), agent).unwrap();
                            write();
                        }
                    })
                }),
            );
        }
        {
            let name = "leasepool, tasks";
            let pool = self.leasepool(name);
            let runtime = Arc::clone(&self.runtime);
            add(
                name,
                Box::new(move |shape| {
                    let pool = pool.clone();
                    tasks(&runtime, shape, move |agent| {
                        let pool = pool.clone();
                        async move {
                            let write = || pool.write_async("agent", move |tx| work(tx, agent));
                            write().await.unwrap();
                            if shape.what == What::Turn {
                                read(&pool.lease_async(name).await.unwrap(), agent).unwrap();
                                write().await.unwrap();
                            }
                        }
                    })
                }),
            );
        }
        {
            let name = "r2d2_sqlite, threads";
            let pool = self.r2d2(name);
            add(
                name,
                Box::new(move |shape| {
                    threads(shape, |agent| {
                        act(&mut pool.get().unwrap(), agent, shape.what).unwrap();
                    })
                }),
            );
        }
        {
            let name = "r2d2_sqlite, spawn_blocking";
            let pool = self.r2d2(name);
            let runtime = Arc::clone(&self.runtime);
            add(
                name,
                Box::new(move |shape| {
                    let pool = pool.clone();
                    tasks(&runtime, shape, move |agent| {
                        let pool = pool.clone();
                        async move {
                            tokio::task::spawn_blocking(move || {
                                act(&mut pool.get().unwrap(), agent, shape.what).unwrap();
                            })
                            .await
                            .unwrap();
                        }
                    })
                }),
            );
        }
        {
            let name = "deadpool-sqlite";
            let sync = self.sync;
            let config = deadpool_sqlite::Config::new(self.file(name));
            let builder = config.builder(deadpool_sqlite::Runtime::Tokio1).unwrap();
            let pool = builder
                .max_size(CONNECTIONS)
                .post_create(deadpool_sqlite::Hook::async_fn(move |conn, _| {
                    Box::pin(async move {
                        conn.interact(move |conn| configure(conn, sync))
                            .await
                            .unwrap()
                            .unwrap();
                        Ok(())
                    })
                }))
                .build()
                .unwrap();
            let runtime = Arc::clone(&self.runtime);
            add(
                name,
                Box::new(move |shape| {
                    let pool = pool.clone();
                    tasks(&runtime, shape, move |agent| {
                        let pool = pool.clone();
                        async move {
                            let connection = pool.get().await.unwrap();
                            connection
                                .interact(move |conn| act(conn, agent, shape.what).unwrap())
                                .await
                                .unwrap();
                        }
                    })
                }),
            );
        }
        for (name, n) in [
            ("tokio-rusqlite, 8 in turn", CONNECTIONS),
            ("tokio-rusqlite, 1", 1),
        ] {
            let (path, sync) = (self.file(name), self.sync);
            let connections: Arc<Vec<_>> = Arc::new(self.runtime.block_on(async {
                let mut connections = Vec::new();
                for _ in 0..n {
                    let connection = tokio_rusqlite::Connection::open(&path).await.unwrap();
                    connection
                        .call(move |conn| configure(conn, sync))
                        .await
                        .unwrap();
                    connections.push(connection);
                }
                connections
            }));
            let turn = Arc::new(AtomicUsize::new(0));
            let runtime = Arc::clone(&self.runtime);
            add(
                name,
                Box::new(move |shape| {
                    let (connections, turn) = (Arc::clone(&connections), Arc::clone(&turn));
                    tasks(&runtime, shape, move |agent| {
                        let next = turn.fetch_add(1, Relaxed) % connections.len();
                        let connection = connections[next].clone();
                        async move {
                            connection
                                .call(move |conn| act(conn, agent, shape.what))
                                .await
                                .unwrap();
                        }
                    })
                }),
            );
        }
        {
            let name = "bare rusqlite, one connection";
            let mut connection = Connection::open(self.file(name)).unwrap();
            configure(&mut connection, self.sync).unwrap();
            let connection = std::sync::Mutex::new(connection);
            add(
                name,
                Box::new(move |shape| {
                    threads(shape, |agent| {
                        act(&mut connection.lock().unwrap(), agent, shape.what).unwrap();
                    })
                }),
            );
        }
        {
            let name = "the limit: one thread, 256 in a group";
            let mut connection = Connection::open(self.file(name)).unwrap();
            configure(&mut connection, self.sync).unwrap();
            let connection = std::sync::Mutex::new(connection);
            add(
                name,
                Box::new(move |shape| grouped(&mut connection.lock().unwrap(), shape)),
            );
        }
        contenders
    }
}

/// What a queue that costs nothing would leave of one thread's time: transactions of 256 writes, each in a savepoint, as
/// a group of the pool's is. However many clients there are.
fn grouped(connection: &mut Connection, shape: Shape) -> Round {
    const MEMBERS: usize = 256;
    let mut rng = SmallRng::seed_from_u64(0);
    let mut latencies = Vec::with_capacity(1 << 20);
    let start = Instant::now();
    let turn_is = match shape.what {
        What::Write => 1,
        What::Turn => 2,
    };
    while start.elapsed() < shape.length {
        let begun = Instant::now();
        let mut transaction = connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .unwrap();
        let agents: Vec<_> = (0..MEMBERS).map(|_| rng.random_range(0..AGENTS)).collect();
        for agent in &agents {
            let savepoint = transaction.savepoint().unwrap();
            work(&savepoint, *agent).unwrap();
            savepoint.commit().unwrap();
        }
        transaction.commit().unwrap();
        let took = begun.elapsed().as_nanos() as u64;
        latencies.extend((0..MEMBERS / turn_is).map(|_| took));
        if shape.what == What::Turn {
            for agent in agents.iter().step_by(turn_is) {
                read(connection, *agent).unwrap();
            }
        }
    }
    Round::new(latencies, start.elapsed(), None)
}

fn main() {
    let args = Args::parse();
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let runtime = Arc::new(runtime.unwrap());
    // deadpool-sqlite closes its connections on the runtime it is dropped in.
    let _context = runtime.enter();
    println!(
        "\n{CONNECTIONS} connections, {WORKERS} threads for tasks; medians of {} rounds of {} s, in turn",
        args.rounds, args.seconds
    );
    for &sync in &args.synchronous {
        for &what in &args.what {
            for &clients in &args.clients {
                // Fresh files for each table: all begin with as little.
                let stage = Stage {
                    folder: folder.path().join(format!("{sync}-{what}-{clients}")),
                    sync,
                    runtime: Arc::clone(&runtime),
                };
                std::fs::create_dir(&stage.folder).unwrap();
                let mut contenders = stage.contenders();
                contenders.retain(|contender| {
                    let wanted = args
                        .only
                        .as_ref()
                        .is_none_or(|only| contender.name.contains(only));
                    wanted && (clients == 1 || !contender.alone)
                });
                let mut rounds: Vec<_> = contenders
                    .iter()
                    .map(|contender| (contender.name, Vec::new()))
                    .collect();
                for i in 0..=args.rounds {
                    for (contender, (_, rounds)) in contenders.iter().zip(&mut rounds) {
                        // The first round warms up.
                        let seconds = if i == 0 { 0.2 } else { args.seconds };
                        let round = (contender.play)(Shape {
                            clients,
                            what,
                            length: Duration::from_secs_f64(seconds),
                        });
                        if i > 0 {
                            rounds.push(round);
                        }
                    }
                }
                println!("\nsynchronous = {sync}, {clients} clients");
                table(&format!("{what}s/s"), &rounds);
                if args.json {
                    let table = serde_json::json!({
                        "synchronous": sync.to_string(),
                        "what": what.to_string(),
                        "clients": clients,
                        "contenders": json(&rounds),
                    });
                    println!("{table}");
                }
                drop(contenders);
                let _ = std::fs::remove_dir_all(&stage.folder);
            }
        }
    }
}
