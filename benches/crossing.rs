//! When to read in place on an async thread, and when to `run`: reads of more and more rows, both ways, and what each does to
//! a task that only wants its turn.
//!
//! ```sh
//! cargo bench -p leasepool-benches --bench crossing
//! ```

mod reads;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use leasepool::rusqlite::{self, Connection};
use leasepool::{Database, Pool};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use reads::{AGENTS, CONNECTIONS, WORKERS, create, name};

/// How many rows a read looks at.
const ROWS: [usize; 6] = [1, 20, 100, 500, 2_000, 10_000];
const TASKS: usize = 32;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, PartialEq)]
enum How {
    InPlace,
    Run,
}

/// How many reads there were in a second, and how long the bystander waited for its turn in 99 of 100 times.
type Measured = (f64, Duration);

/// Not `LIMIT ?2`: see `reads`.
fn statement(rows: usize) -> String {
    format!(
        "SELECT sum(length(body)) FROM (SELECT body FROM message WHERE agent >= ?1 LIMIT {rows})"
    )
}

fn read(connection: &Connection, sql: &str, agent: &str) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached(sql)?;
    select.query_row([agent], |row| row.get(0))
}

/// An agent after which there are enough rows.
fn agent(rng: &mut SmallRng) -> String {
    name(rng.random_range(0..AGENTS / 2))
}

fn round(runtime: &tokio::runtime::Runtime, pool: &Pool, how: How, rows: usize) -> Measured {
    let done = Arc::new(AtomicBool::new(false));
    let sql: Arc<str> = statement(rows).into();
    runtime.block_on(async {
        let readers: Vec<_> = (0..TASKS as u64)
            .map(|seed| {
                let (pool, done, sql) = (pool.clone(), Arc::clone(&done), Arc::clone(&sql));
                tokio::spawn(async move {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    let mut count = 0;
                    while !done.load(Relaxed) {
                        let agent = agent(&mut rng);
                        if how == How::InPlace {
                            let lease = pool.lease_async(&agent).await.unwrap();
                            read(&lease, &sql, &agent).unwrap();
                            drop(lease);
                        } else {
                            let (id, sql) = (agent.clone(), Arc::clone(&sql));
                            let work =
                                move |connection: &mut Connection| read(connection, &sql, &agent);
                            pool.run(id, work).await.unwrap();
                        }
                        count += 1;
                        tokio::task::yield_now().await;
                    }
                    count
                })
            })
            .collect();
        let bystander = {
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let mut waits = Vec::with_capacity(1 << 16);
                while !done.load(Relaxed) {
                    let asked = Instant::now();
                    tokio::task::yield_now().await;
                    waits.push(asked.elapsed());
                    // It does little, as a health check does.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                waits
            })
        };
        let begun = Instant::now();
        tokio::time::sleep(ROUND).await;
        done.store(true, Relaxed);
        let mut count = 0;
        for reader in readers {
            count += reader.await.unwrap();
        }
        let took = begun.elapsed();
        let mut waits = bystander.await.unwrap();
        waits.sort_unstable();
        let wait = waits
            .get(waits.len() * 99 / 100)
            .copied()
            .unwrap_or_default();
        (count as f64 / took.as_secs_f64(), wait)
    })
}

fn median(mut values: Vec<Measured>) -> Measured {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    let rate = values[values.len() / 2].0;
    values.sort_by_key(|value| value.1);
    (rate, values[values.len() / 2].1)
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("crossing.db");
    create(&path).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .unwrap();
    let builder = Pool::builder(Database::file(&path)).max_connections(CONNECTIONS);
    let pool = builder.slow_hold(None).build().unwrap();
    println!(
        "\n{TASKS} tasks on {WORKERS} threads, {CONNECTIONS} connections; medians of {ROUNDS} rounds, in turn\n\
         {:>8} {:>10} {:>12} {:>12} {:>8} {:>16} {:>12}",
        "rows", "alone µs", "in place/s", "run/s", "ratio", "bystander p99 µs", "with run"
    );
    for rows in ROWS {
        let (mut rng, sql) = (SmallRng::seed_from_u64(7), statement(rows));
        let lease = pool.lease("alone").unwrap();
        let (begun, mut count) = (Instant::now(), 0);
        while begun.elapsed() < ROUND / 4 {
            read(&lease, &sql, &agent(&mut rng)).unwrap();
            count += 1;
        }
        let alone = begun.elapsed().as_secs_f64() * 1e6 / f64::from(count);
        drop(lease);
        let (mut in_place, mut run) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            in_place.push(round(&runtime, &pool, How::InPlace, rows));
            run.push(round(&runtime, &pool, How::Run, rows));
        }
        let (in_place, run) = (median(in_place), median(run));
        println!(
            "{rows:>8} {alone:>10.1} {:>12.0} {:>12.0} {:>8.2} {:>16.0} {:>12.0}",
            in_place.0,
            run.0,
            run.0 / in_place.0,
            in_place.1.as_secs_f64() * 1e6,
            run.1.as_secs_f64() * 1e6,
        );
    }
}
