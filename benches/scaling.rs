//! How the cost of a lease grows with agents, connections and threads, and what a connection and a known agent cost in
//! memory.
//!
//! ```sh
//! cargo bench -p leasepool-benches --bench scaling
//! cargo bench -p leasepool-benches --bench scaling -- --charts ../docs/benchmarks
//! ```

mod process;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use leasepool::{Database, Error, Pool};
use process::memory;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use versus_table::{Line, chart};

const AGENTS: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
const CONNECTIONS: [usize; 5] = [1, 8, 64, 256, 512];
const THREADS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(200);

#[derive(Parser)]
struct Args {
    /// Write charts into this folder
    #[arg(long)]
    charts: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn pool(folder: &Path, connections: usize) -> Result<Pool, Error> {
    Pool::builder(Database::file(folder.join("scaling.db")))
        .max_connections(connections)
        .cached_agents(4_000_000)
        .setup(|conn| {
            conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)")
        })
        .build()
}

/// Nanoseconds for each call: the median of some rounds.
fn nanos(mut call: impl FnMut()) -> f64 {
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let (begun, mut calls) = (Instant::now(), 0);
            while begun.elapsed() < ROUND {
                (0..100).for_each(|_| call());
                calls += 100;
            }
            begun.elapsed().as_nanos() as f64 / f64::from(calls)
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn agents(folder: &Path) -> Vec<Line<'static>> {
    println!(
        "\n{:>10} {:>10} {:>12} {:>18}",
        "agents", "hit ns", "any agent ns", "bytes for an agent"
    );
    let mut lines = ["a hit", "any of the agents"].map(Line::new);
    for agents in AGENTS {
        let pool = pool(folder, 8).unwrap();
        (0..8).for_each(|agent| drop(pool.lease(agent).unwrap()));
        let before = memory() as f64;
        (0..agents).for_each(|agent| drop(pool.lease(agent).unwrap()));
        let bytes = (memory() as f64 - before) / agents as f64;
        let mut rng = SmallRng::seed_from_u64(7);
        let any = nanos(|| drop(pool.lease(rng.random_range(0..agents)).unwrap()));
        let hit = nanos(|| drop(pool.lease(1).unwrap()));
        println!("{agents:>10} {hit:>10.0} {any:>12.0} {bytes:>18.0}");
        lines[0].points.push((agents as f64, hit));
        lines[1].points.push((agents as f64, any));
        pool.close().unwrap();
    }
    lines.into()
}

fn connections(folder: &Path) -> Vec<Line<'static>> {
    println!(
        "\n{:>12} {:>10} {:>10} {:>18}",
        "connections", "hit ns", "miss ns", "kB for a connection"
    );
    let mut lines = ["a hit", "a miss"].map(Line::new);
    for connections in CONNECTIONS {
        let before = memory() as f64;
        let pool = match pool(folder, connections) {
            Ok(pool) => pool,
            Err(error) => {
                println!("{connections:>12} {error}");
                continue;
            }
        };
        let all: Vec<_> = (0..connections)
            .map(|agent| {
                let lease = pool.lease(agent).unwrap();
                lease.query_row("SELECT x FROM t", [], |_| Ok(())).unwrap();
                lease
            })
            .collect();
        drop(all);
        let kb = (memory() as f64 - before) / 1024.0 / connections as f64;
        let mut rng = SmallRng::seed_from_u64(7);
        let hit = nanos(|| drop(pool.lease(rng.random_range(0..connections)).unwrap()));
        let mut next = 0;
        let miss = nanos(|| {
            next = (next + 1) % (connections * 4);
            drop(pool.lease(next).unwrap());
        });
        println!("{connections:>12} {hit:>10.0} {miss:>10.0} {kb:>18.0}");
        lines[0].points.push((connections as f64, hit));
        lines[1].points.push((connections as f64, miss));
        pool.close().unwrap();
    }
    lines.into()
}

/// All threads together, each with an agent of its own.
fn threads(folder: &Path) -> Vec<Line<'static>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    println!(
        "\n{:>8} {:>14} {:>14}   ({processors} processors)",
        "threads", "leases/s", "at most"
    );
    let mut lines = ["measured", "one thread's rate for each processor"].map(Line::new);
    let mut alone = 0.0;
    for threads in THREADS {
        let pool = pool(folder, 64).unwrap();
        let done = AtomicBool::new(false);
        let begun = Instant::now();
        let leases: usize = thread::scope(|scope| {
            let all: Vec<_> = (0..threads)
                .map(|agent| {
                    let (pool, done) = (&pool, &done);
                    scope.spawn(move || {
                        let mut leases = 0;
                        while !done.load(Relaxed) {
                            drop(pool.lease(agent).unwrap());
                            leases += 1;
                        }
                        leases
                    })
                })
                .collect();
            thread::sleep(ROUND * ROUNDS as u32);
            done.store(true, Relaxed);
            all.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let rate = leases as f64 / begun.elapsed().as_secs_f64();
        if threads == 1 {
            alone = rate;
        }
        let most = alone * threads.min(processors) as f64;
        println!("{threads:>8} {rate:>14.0} {most:>14.0}");
        lines[0].points.push((threads as f64, rate));
        lines[1].points.push((threads as f64, most));
        pool.close().unwrap();
    }
    lines.into()
}

fn main() {
    let args = Args::parse();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let all = [
        (
            "scaling-agents",
            ["A lease, by agents", "agents", "ns"],
            agents(folder),
        ),
        (
            "scaling-connections",
            ["A lease, by connections", "connections", "ns"],
            connections(folder),
        ),
        (
            "scaling-threads",
            ["Leases, by threads", "threads", "per second"],
            threads(folder),
        ),
    ];
    if let Some(folder) = args.charts {
        std::fs::create_dir_all(&folder).unwrap();
        for (name, titles, lines) in all {
            let path = folder.join(name).with_extension("svg");
            chart(&path, titles, &lines).unwrap();
        }
    }
}
