//! What a lease costs, beside what r2d2 and opening a connection cost, in one run.
//! Ends with a table of medians and ratios.
//!
//! `cargo bench -p leasepool-benches --bench lease`; with `-- warm`, one group. The group `misses`, threads that
//! contend for few connections on behalf of many agents, comes last.

#[path = "../contest/mod.rs"]
mod contest;
mod misses;
#[path = "../reads/mod.rs"]
mod reads;

use std::hint::black_box;
use std::path::Path;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use leasepool::{Database, Pool, Synchronous, rusqlite};
use r2d2_sqlite::SqliteConnectionManager;

/// Connections of every pool in the groups `warm`, `free` and `contended`.
const CONNECTIONS: usize = 8;
/// Connections in the group `reclaim`.
const RECLAIM_CONNECTIONS: [usize; 2] = [8, 256];
/// Threads, each with its own agent, in the group `contended`.
const THREADS: [usize; 3] = [2, 4, 8];

/// The contenders whose connections belong to no agent.
const R2D2: [(&str, bool); 2] = [("r2d2_default", true), ("r2d2_unchecked", false)];

fn leasepool(path: &Path, connections: usize) -> leasepool::Pool {
    builder(path, connections).build().unwrap()
}

fn builder(path: &Path, connections: usize) -> leasepool::Builder {
    Pool::builder(Database::file(path))
        .max_connections(connections)
        .synchronous(Synchronous::Normal)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
}

fn r2d2(path: &Path, checked: bool) -> r2d2::Pool<SqliteConnectionManager> {
    r2d2::Pool::builder()
        .max_size(CONNECTIONS as u32)
        .test_on_check_out(checked)
        .build(SqliteConnectionManager::file(path))
        .unwrap()
}

fn agents(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("agent-{i}")).collect()
}

/// An agent that comes back to its own parked connection.
fn warm(c: &mut Criterion, folder: &Path) {
    let mut group = c.benchmark_group("warm");
    {
        let pool = leasepool(&folder.join("warm.db"), CONNECTIONS);
        drop(pool.lease("agent").unwrap());
        group.bench_function("leasepool", |b| {
            b.iter(|| drop(black_box(pool.lease("agent").unwrap())));
        });
    }
    {
        let pool = Pool::builder(Database::per_agent(folder.join("agents")))
            .max_connections(CONNECTIONS)
            .synchronous(Synchronous::Normal)
            .build()
            .unwrap();
        drop(pool.lease("agent").unwrap());
        group.bench_function("leasepool_per_agent", |b| {
            b.iter(|| drop(black_box(pool.lease("agent").unwrap())));
        });
    }
    {
        let pool = leasepool(&folder.join("warm.db"), CONNECTIONS);
        drop(pool.get().unwrap());
        group.bench_function("leasepool_get", |b| {
            b.iter(|| drop(black_box(pool.get().unwrap())));
        });
        drop(pool.lease(1_234_567_u64).unwrap());
        group.bench_function("leasepool_integer", |b| {
            b.iter(|| drop(black_box(pool.lease(black_box(1_234_567_u64)).unwrap())));
        });
    }
    for (name, checked) in R2D2 {
        let pool = r2d2(&folder.join("warm.db"), checked);
        group.bench_function(name, |b| b.iter(|| drop(black_box(pool.get().unwrap()))));
    }
    let path = folder.join("warm.db");
    group.bench_function("open_per_request", |b| {
        b.iter(|| drop(black_box(rusqlite::Connection::open(&path).unwrap())));
    });
    group.finish();
}

/// A connection that is free, and must be cleaned of its last agent's traces.
fn free(c: &mut Criterion, folder: &Path) {
    let mut group = c.benchmark_group("free");
    let pool = builder(&folder.join("free.db"), CONNECTIONS)
        .cached_agents(0)
        .build()
        .unwrap();
    drop(pool.lease("agent").unwrap());
    group.bench_function("leasepool", |b| {
        b.iter(|| drop(black_box(pool.lease("agent").unwrap())));
    });
    group.finish();
}

/// Every connection is parked for another agent: each lease reclaims one and resets it. With `insert`,
/// each agent inserts a row (outside the measured time), so that there is a rowid to forget.
fn reclaim(c: &mut Criterion, folder: &Path) {
    let mut group = c.benchmark_group("reclaim");
    for connections in RECLAIM_CONNECTIONS {
        let pool = leasepool(
            &folder.join(format!("reclaim-{connections}.db")),
            connections,
        );
        let agents = agents(connections * 4);
        for agent in &agents {
            drop(pool.lease(agent).unwrap());
        }
        let mut turn = agents.iter().cycle();
        let mut next = || turn.next().unwrap().as_str();
        group.bench_function(BenchmarkId::new("untouched", connections), |b| {
            b.iter(|| drop(black_box(pool.lease(next()).unwrap())));
        });
        group.bench_function(BenchmarkId::new("after_insert", connections), |b| {
            b.iter_custom(|n| {
                let mut spent = Duration::ZERO;
                for _ in 0..n {
                    let start = Instant::now();
                    let lease = pool.lease(next()).unwrap();
                    let leased = start.elapsed();
                    lease
                        .prepare_cached("INSERT INTO t VALUES (1)")
                        .and_then(|mut insert| insert.execute([]))
                        .unwrap();
                    let start = Instant::now();
                    drop(lease);
                    spent += leased + start.elapsed();
                }
                spent
            });
        });
        assert_eq!(pool.stats().discarded_by_reset, 0);
    }
    group.finish();
}

/// Threads that lease and return as fast as they can, each for an agent of its own. Time per lease.
fn contended(c: &mut Criterion, folder: &Path) {
    let mut group = c.benchmark_group("contended");
    for threads in THREADS {
        let agents = agents(threads);
        {
            let pool = leasepool(&folder.join("contended.db"), CONNECTIONS);
            group.bench_function(BenchmarkId::new("leasepool", threads), |b| {
                b.iter_custom(|n| {
                    on_threads(threads, n, |i| {
                        drop(black_box(pool.lease(&agents[i]).unwrap()))
                    })
                });
            });
        }
        {
            let pool = leasepool(&folder.join("contended.db"), CONNECTIONS);
            group.bench_function(BenchmarkId::new("leasepool_get", threads), |b| {
                b.iter_custom(|n| on_threads(threads, n, |_| drop(black_box(pool.get().unwrap()))));
            });
        }
        for (name, checked) in R2D2 {
            let pool = r2d2(&folder.join("contended.db"), checked);
            group.bench_function(BenchmarkId::new(name, threads), |b| {
                b.iter_custom(|n| on_threads(threads, n, |_| drop(black_box(pool.get().unwrap()))));
            });
        }
    }
    group.finish();
}

/// Runs `work` `n` times in all, spread over threads that start together.
fn on_threads(threads: usize, n: u64, work: impl Fn(usize) + Sync) -> Duration {
    let start = Barrier::new(threads + 1);
    let each = n.div_ceil(threads as u64);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|i| {
                let (start, work) = (&start, &work);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..each {
                        work(i);
                    }
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        for worker in workers {
            worker.join().unwrap();
        }
        started.elapsed()
    })
}

/// The medians of this run, and how many times leasepool's each is.
fn summary(output: &Path, since: std::time::SystemTime) {
    let median = |group: &str, name: &str| -> Option<f64> {
        let file = output.join(group).join(name).join("new/estimates.json");
        if file.metadata().ok()?.modified().ok()? < since {
            return None;
        }
        let estimates: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        estimates["median"]["point_estimate"].as_f64()
    };
    println!(
        "\n{:<32} {:>12} {:>14}",
        "median of this run", "ns", "x leasepool"
    );
    let row = |group: &str, name: &str, base: Option<f64>| {
        if let Some(ns) = median(group, name) {
            let ratio = base.map_or(String::new(), |base| format!("{:.2}", ns / base));
            println!("{:<32} {ns:>12.1} {ratio:>14}", format!("{group}/{name}"));
        }
    };
    for name in ["leasepool_get", "leasepool_integer", "leasepool_per_agent"] {
        row("warm", name, median("warm", "leasepool"));
    }
    let names = [
        "leasepool",
        "r2d2_default",
        "r2d2_unchecked",
        "open_per_request",
    ];
    for name in names {
        row("warm", name, median("warm", "leasepool"));
    }
    row("free", "leasepool", None);
    for connections in RECLAIM_CONNECTIONS {
        row("reclaim", &format!("untouched/{connections}"), None);
        row("reclaim", &format!("after_insert/{connections}"), None);
    }
    for threads in THREADS {
        let base = median("contended", &format!("leasepool/{threads}"));
        row("contended", &format!("leasepool_get/{threads}"), base);
        for name in &names[..3] {
            row("contended", &format!("{name}/{threads}"), base);
        }
    }
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("criterion");
    let since = std::time::SystemTime::now();
    let mut criterion = Criterion::default()
        .output_directory(&output)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    warm(&mut criterion, folder.path());
    free(&mut criterion, folder.path());
    reclaim(&mut criterion, folder.path());
    contended(&mut criterion, folder.path());
    criterion.final_summary();
    summary(&output, since);
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    if filter.is_none_or(|filter| "misses".contains(&filter)) {
        misses::run(folder.path());
    }
}
