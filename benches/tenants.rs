//! A database for each of 10,000 tenants, few of them open at a time: one turn (a row is written, the last 20
//! are read) for a tenant drawn at random, by 32 threads; beside opening a connection for each turn, and beside
//! an r2d2 pool of one connection for each tenant, in an LRU map.
//!
//! ```sh
//! cargo bench -p leasepool-benches --bench tenants
//! cargo bench -p leasepool-benches --bench tenants -- --caps 64 --draw zipf
//! cargo bench -p leasepool-benches --bench tenants -- --parts               # what a turn on a closed file is made of
//! cargo bench -p leasepool-benches --bench tenants -- --hits 100000         # how many find their file open, and could
//! cargo bench -p leasepool-benches --bench tenants -- --touch 100000        # each of so many new tenants once
//! ```

mod contest;
mod hits;
mod process;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use contest::{Round, table};
use leasepool::rusqlite::config::DbConfig;
use leasepool::rusqlite::{self, Connection, TransactionBehavior};
use leasepool::{Database, Pool, Synchronous};
use process::{memory, processor_time};
use r2d2_sqlite::SqliteConnectionManager;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Zipf};

const THREADS: usize = 32;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 10_000)]
    tenants: usize,
    /// Connections open at once
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 256])]
    caps: Vec<usize>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Draw::Zipf, Draw::Uniform])]
    draw: Vec<Draw>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only contenders whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Instead: touch so many new tenants once, and say what that costs in memory and time
    #[arg(long)]
    touch: Option<usize>,
    /// Instead: what a turn on a file that is not open is made of, on one thread
    #[arg(long)]
    parts: bool,
    /// Instead: how many of so many draws find their tenant's file open
    #[arg(long)]
    hits: Option<usize>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Draw {
    Zipf,
    Uniform,
}

fn name(tenant: usize) -> String {
    format!("tenant-{tenant}")
}

const SCHEMA: &str =
    "CREATE TABLE IF NOT EXISTS message (id INTEGER PRIMARY KEY, body TEXT NOT NULL)";

fn configure(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.execute_batch("PRAGMA synchronous = NORMAL")
}

fn turn(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction
        .prepare_cached("INSERT INTO message (body) VALUES (?1)")?
        .execute(["what a tenant says in one turn of a conversation"])?;
    transaction.commit()?;
    let mut select =
        connection.prepare_cached("SELECT body FROM message ORDER BY id DESC LIMIT 20")?;
    let rows = select.query_map([], |row| row.get::<_, String>(0))?;
    assert!(rows.filter_map(Result::ok).count() > 0);
    Ok(())
}

fn create(folder: &Path, tenants: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let template = folder.join("template");
    Connection::open(&template)
        .and_then(|conn| conn.execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}")))
        .unwrap();
    for tenant in 0..tenants {
        std::fs::copy(&template, folder.join(name(tenant)).with_extension("db")).unwrap();
    }
    std::fs::remove_file(template).unwrap();
}

fn leasepool(folder: &Path, cap: usize, exclusive: bool) -> Pool {
    Pool::builder(Database::per_agent(folder))
        .max_connections(cap)
        .exclusive_locking(exclusive)
        .synchronous(Synchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .lease_timeout(BUSY_TIMEOUT)
        .setup(|conn| conn.execute_batch(SCHEMA))
        .build()
        .unwrap()
}

type Act = Box<dyn Fn(usize) + Send + Sync>;

/// The contenders, each on files of its own.
fn contenders(folder: &Path, args: &Args, cap: usize) -> Vec<(&'static str, Act)> {
    let folder_of = |name: &str| {
        let folder = folder.join(name.replace([' ', ','], "_"));
        create(&folder, args.tenants);
        folder
    };
    let mut contenders: Vec<(&'static str, Act)> = Vec::new();
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only));
    for (leased, exclusive) in [("leasepool", false), ("leasepool, exclusive_locking", true)] {
        if wanted(leased) {
            let pool = leasepool(&folder_of(leased), cap, exclusive);
            let act = move |tenant| turn(&mut pool.lease(name(tenant)).unwrap()).unwrap();
            contenders.push((leased, Box::new(act)));
        }
    }
    let opened = "open for each turn";
    if wanted(opened) {
        let folder = folder_of(opened);
        let act = move |tenant| {
            let path = folder.join(name(tenant)).with_extension("db");
            let mut connection = Connection::open(path).unwrap();
            configure(&mut connection).unwrap();
            turn(&mut connection).unwrap();
        };
        contenders.push((opened, Box::new(act)));
    }
    let mapped = "LRU map of r2d2 pools of 1";
    if wanted(mapped) {
        let folder = folder_of(mapped);
        // One for all: by itself, each pool would start three.
        let threads = Arc::new(scheduled_thread_pool::ScheduledThreadPool::new(3));
        let pools: moka::sync::Cache<usize, r2d2::Pool<SqliteConnectionManager>> =
            moka::sync::Cache::builder()
                .max_capacity(cap as u64)
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .build();
        let act = move |tenant| {
            let pool = pools.get_with(tenant, || {
                let path: PathBuf = folder.join(name(tenant)).with_extension("db");
                let manager = SqliteConnectionManager::file(path).with_init(configure);
                r2d2::Pool::builder()
                    .max_size(1)
                    .thread_pool(Arc::clone(&threads))
                    .build(manager)
                    .unwrap()
            });
            turn(&mut pool.get().unwrap()).unwrap();
        };
        contenders.push((mapped, Box::new(act)));
    }
    contenders
}

fn round(act: &Act, args: &Args, draw: Draw, length: Duration, seed: u64) -> Round {
    let done = AtomicBool::new(false);
    let (start, before) = (Instant::now(), processor_time());
    let latencies = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS as u64)
            .map(|thread| {
                let done = &done;
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed << 8 | thread);
                    let zipf = Zipf::new(args.tenants as f64, 1.0).unwrap();
                    let mut latencies = Vec::with_capacity(1 << 16);
                    while !done.load(Relaxed) {
                        let tenant = match draw {
                            Draw::Zipf => zipf.sample(&mut rng) as usize - 1,
                            Draw::Uniform => rng.random_range(0..args.tenants),
                        };
                        let asked = Instant::now();
                        act(tenant);
                        latencies.push(asked.elapsed().as_nanos() as u64);
                    }
                    latencies
                })
            })
            .collect();
        thread::sleep(length);
        done.store(true, Relaxed);
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let cpu = processor_time() - before;
    Round::new(latencies, start.elapsed(), Some(cpu))
}

/// Time, and processor time of all threads, in microseconds.
type Took = (f64, f64);

/// What SQLite alone takes for each part of a turn on a file that is not open, what the promises of a pool add, and what
/// leasepool takes for the whole. One thread takes one tenant after the other.
fn parts(folder: &Path, args: &Args) {
    const PARTS: [&str; 7] = [
        "open",
        "first statement (makes the -shm)",
        "a write and a read",
        "close, without a checkpoint",
        "+ what build sets: 5 pragmas",
        "+ 4 looks at the file",
        "+ to a thread and back, twice",
    ];
    /// Those before are SQLite's.
    const ADDED: usize = 4;
    let cap = args.caps.first().copied().unwrap_or(64);
    let (ask, asked) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel();
    thread::spawn(move || asked.iter().try_for_each(|()| answer.send(())));
    for exclusive in [false, true] {
        let folder = folder.join(exclusive.to_string());
        let (bare, ours) = (folder.join("bare"), folder.join("leasepool"));
        create(&bare, args.tenants);
        create(&ours, args.tenants);
        let mut rounds: Vec<[Took; PARTS.len() + 1]> = Vec::new();
        let pool = leasepool(&ours, cap, exclusive);
        // In the first round, all files are new to the pool.
        for round in 0..=args.rounds {
            let mut took = [(Duration::ZERO, Duration::ZERO); PARTS.len() + 1];
            for tenant in 0..args.tenants {
                let path = bare.join(name(tenant)).with_extension("db");
                let mut at = (Instant::now(), processor_time());
                let mut lap = |part: usize| {
                    let now = (Instant::now(), processor_time());
                    let before = std::mem::replace(&mut at, now);
                    took[part].0 += now.0 - before.0;
                    took[part].1 += now.1 - before.1;
                };
                let mut connection = Connection::open(&path).unwrap();
                connection.busy_timeout(BUSY_TIMEOUT).unwrap();
                lap(0);
                if exclusive {
                    let mode = "PRAGMA locking_mode = EXCLUSIVE";
                    connection.query_row(mode, [], |_| Ok(())).unwrap();
                }
                connection
                    .execute_batch("PRAGMA synchronous = NORMAL; SELECT 1 FROM sqlite_schema")
                    .unwrap();
                lap(1);
                connection
                    .execute_batch(
                        "PRAGMA temp_store = MEMORY; PRAGMA journal_mode; PRAGMA journal_size_limit = 4194304;
                         PRAGMA mmap_size = 0; PRAGMA wal_autocheckpoint = 0",
                    )
                    .unwrap();
                lap(4);
                turn(&mut connection).unwrap();
                lap(2);
                let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
                connection.set_db_config(no_checkpoint, true).unwrap();
                connection.close().unwrap();
                lap(3);
                for _ in 0..4 {
                    black_box(std::fs::metadata(&path).unwrap());
                }
                lap(5);
                for _ in 0..2 {
                    ask.send(()).unwrap();
                    answered.recv().unwrap();
                }
                lap(6);
                turn(&mut pool.lease(name(tenant)).unwrap()).unwrap();
                lap(PARTS.len());
            }
            if round > 0 {
                let each = |took: Duration| took.as_secs_f64() * 1e6 / args.tenants as f64;
                rounds.push(took.map(|(time, cpu)| (each(time), each(cpu))));
            }
        }
        let median = |part: usize| {
            let of = |value: &dyn Fn(&Took) -> f64| {
                let mut values: Vec<f64> = rounds.iter().map(|round| value(&round[part])).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            (of(&|took| took.0), of(&|took| took.1))
        };
        let mode = if exclusive { ", exclusive locking" } else { "" };
        println!(
            "\n{} tenants in turn, cap {cap}, one thread{mode}; medians of {} rounds\n{:<36} {:>8} {:>8}",
            args.tenants, args.rounds, "", "µs", "CPU µs"
        );
        let mut sum = (0.0, 0.0);
        let mut sums = Vec::new();
        for (part, what) in PARTS.iter().enumerate() {
            if part == ADDED {
                sums.push(sum);
                println!("{:<36} {:>8.1} {:>8.1}", "SQLite's parts", sum.0, sum.1);
            }
            let (time, cpu) = median(part);
            sum = (sum.0 + time, sum.1 + cpu);
            println!("{what:<36} {time:>8.1} {cpu:>8.1}");
        }
        sums.push(sum);
        println!("{:<36} {:>8.1} {:>8.1}", "all parts", sum.0, sum.1);
        let whole = median(PARTS.len());
        println!(
            "{:<36} {:>8.1} {:>8.1}",
            "leasepool, a turn that misses", whole.0, whole.1
        );
        for (of, sum) in ["SQLite's parts", "all parts"].iter().zip(sums) {
            let times = (whole.0 / sum.0, whole.1 / sum.1);
            println!(
                "{:<36} {:>8.2} {:>8.2}",
                format!("= times {of}"),
                times.0,
                times.1
            );
        }
        pool.close().unwrap();
    }
}

/// How many draws of one thread find their tenant's file open, beside rules of textbooks on the same draws.
fn hits(folder: &Path, args: &Args, draws: usize) {
    create(folder, args.tenants);
    let mut rng = SmallRng::seed_from_u64(1);
    let zipf = Zipf::new(args.tenants as f64, 1.0).unwrap();
    let drawn: Vec<_> = (0..draws)
        .map(|_| zipf.sample(&mut rng) as usize - 1)
        .collect();
    println!(
        "\n{draws} draws of {} tenants, Zipf, one thread: percent of hits",
        args.tenants
    );
    for &cap in &args.caps {
        let pool = leasepool(folder, cap, false);
        let served = drawn.iter().map(|tenant| {
            let before = pool.stats().hits;
            turn(&mut pool.lease(name(*tenant)).unwrap()).unwrap();
            pool.stats().hits > before
        });
        let rows = [
            ("leasepool", hits::share(served, draws)),
            ("least recently used goes", hits::least_recent(&drawn, cap)),
            ("the law of the draw is known", hits::law(&drawn, cap)),
            ("the future is known (Belady)", hits::future(&drawn, cap)),
        ];
        println!("{cap} connections");
        for (what, share) in rows {
            println!("{what:<36} {:>6.1}", share * 100.0);
        }
        pool.close().unwrap();
    }
}

fn touch(folder: &Path, args: &Args, tenants: usize) {
    let pool = leasepool(folder, args.caps.first().copied().unwrap_or(64), false);
    let (next, tenths) = (AtomicUsize::new(0), 10);
    println!("\n{tenants} new tenants, each touched once, by {THREADS} threads");
    println!(
        "{:<12} {:>16} {:>12} {:>8}",
        "tenants", "µs for a turn", "memory kB", "files"
    );
    for tenth in 1..=tenths {
        let end = tenants * tenth / tenths;
        let start = Instant::now();
        let before = next.load(Relaxed);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    loop {
                        let tenant = next.fetch_add(1, Relaxed);
                        if tenant >= end {
                            break;
                        }
                        turn(&mut pool.lease(name(tenant)).unwrap()).unwrap();
                    }
                });
            }
        });
        next.store(end, Relaxed);
        let each = start.elapsed().as_secs_f64() * 1e6 / (end - before) as f64;
        println!(
            "{end:<12} {each:>16.0} {:>12} {:>8}",
            memory() / 1024,
            pool.stats().files
        );
    }
    pool.close().unwrap();
}

fn main() {
    let args = Args::parse();
    let folder = tempfile::tempdir().unwrap();
    if let Some(tenants) = args.touch {
        return touch(&folder.path().join("touched"), &args, tenants);
    }
    if let Some(draws) = args.hits {
        return hits(&folder.path().join("hits"), &args, draws);
    }
    if args.parts {
        return parts(folder.path(), &args);
    }
    println!(
        "\n{} tenants, {THREADS} threads; medians of {} rounds of {} s, in turn",
        args.tenants, args.rounds, args.seconds
    );
    for &cap in &args.caps {
        for &draw in &args.draw {
            let folder = folder.path().join(format!("{cap}-{draw:?}"));
            let contenders = contenders(&folder, &args, cap);
            let mut rounds: Vec<_> = contenders
                .iter()
                .map(|(name, _)| (*name, Vec::new()))
                .collect();
            // Each has met each tenant before: a server runs for long.
            for (_, act) in &contenders {
                (0..args.tenants).for_each(act);
            }
            for i in 0..args.rounds {
                for ((_, act), (_, rounds)) in contenders.iter().zip(&mut rounds) {
                    let length = Duration::from_secs_f64(args.seconds);
                    rounds.push(round(act, &args, draw, length, i as u64));
                }
            }
            println!("\n{cap} connections, {draw:?}");
            table("turns/s", &rounds);
            drop(contenders);
            let _ = std::fs::remove_dir_all(&folder);
        }
    }
}
