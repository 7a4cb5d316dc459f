//! What many agents over few connections mostly do: 32 threads, 8 connections, 2,000 agents drawn from a
//! heavy-headed law. Contenders take turns within one run; the table shows medians.

use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Database, Pool, Synchronous};
use r2d2_sqlite::SqliteConnectionManager;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::contest::{Round, table};
use crate::reads::{AGENTS, CONNECTIONS, create, last_messages, name};

const THREADS: usize = 32;
/// Read at a time.
const MESSAGES: usize = 20;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const WARM_UP: Duration = Duration::from_millis(300);

/// u uniform in 0..1, agent = 2000^u: the first is drawn for each tenth lease, half of all for each tenth, too.
fn draw(rng: &mut SmallRng) -> usize {
    let u: f64 = rng.random();
    ((AGENTS as f64).powf(u) as usize).min(AGENTS - 1)
}

/// Lets the threads work for the time of a round.
fn round(threads: usize, work: impl Fn(&str) + Sync) -> Round {
    let names: Vec<String> = (0..AGENTS).map(name).collect();
    let (start, done) = (Barrier::new(threads + 1), AtomicBool::new(false));
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads as u64)
            .map(|seed| {
                let (names, start, done, work) = (&names, &start, &done, &work);
                scope.spawn(move || {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    let mut latencies = Vec::with_capacity(1 << 16);
                    start.wait();
                    while !done.load(Relaxed) {
                        let agent = &names[draw(&mut rng)];
                        let asked = Instant::now();
                        work(agent);
                        latencies.push(asked.elapsed().as_nanos() as u64);
                    }
                    latencies
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        thread::sleep(ROUND);
        done.store(true, Relaxed);
        let latencies: Vec<u64> = workers
            .into_iter()
            .flat_map(|w| w.join().unwrap())
            .collect();
        Round::new(latencies, started.elapsed(), None)
    })
}

/// How a pool of leasepool differs from the defaults.
#[derive(Clone, Copy)]
struct Options {
    overtaking: Option<Duration>,
    keep_read_lock: bool,
}

fn leasepool(path: &Path, options: Options) -> Pool {
    let builder = Pool::builder(Database::file(path))
        .max_connections(CONNECTIONS)
        .synchronous(Synchronous::Normal)
        .keep_read_lock(options.keep_read_lock);
    let builder = match options.overtaking {
        Some(time) => builder.overtaking(time),
        None => builder,
    };
    builder.build().unwrap()
}

pub(crate) fn run(folder: &Path) {
    let path = folder.join("misses.db");
    create(&path).unwrap();
    let r2d2 = r2d2::Pool::builder()
        .max_size(CONNECTIONS as u32)
        .build(SqliteConnectionManager::file(&path))
        .unwrap();
    let of = |overtaking: Option<u64>, keep_read_lock| Options {
        overtaking: overtaking.map(Duration::from_micros),
        keep_read_lock,
    };
    let pools = [
        ("leasepool", of(None, false)),
        ("leasepool, strict order", of(Some(0), false)),
        ("leasepool, overtaking 0.2 ms", of(Some(200), false)),
        ("leasepool, overtaking 0.5 ms", of(Some(500), false)),
        ("leasepool, overtaking 2 ms", of(Some(2_000), false)),
        ("leasepool, overtaking 5 ms", of(Some(5_000), false)),
        ("leasepool, keep_read_lock", of(None, true)),
        ("the same, overtaking 5 ms", of(Some(5_000), true)),
    ];
    for (what, reads, threads) in [
        ("leases/s", false, THREADS),
        ("reads/s", true, THREADS),
        ("2 threads, reads/s", true, 2),
        // Nobody waits: what two threads could do at most.
        ("2 threads, /s", false, 2),
        ("1 thread, /s", false, 1),
    ] {
        let mut rounds: Vec<(&str, Vec<Round>)> =
            pools.iter().map(|(name, _)| (*name, Vec::new())).collect();
        rounds.push(("r2d2", Vec::new()));
        // Before the clock runs: a pool of leasepool keeps no read lock before it is busy.
        let warm_up = |work: &(dyn Fn(&str) + Sync)| {
            let until = Instant::now() + WARM_UP;
            while Instant::now() < until {
                (0..AGENTS).for_each(|agent| work(&name(agent)));
            }
        };
        for _ in 0..ROUNDS {
            for ((_, options), (_, rounds)) in pools.iter().zip(&mut rounds) {
                let pool = leasepool(&path, *options);
                let work = |agent: &str| {
                    let lease = pool.lease(agent).unwrap();
                    if reads {
                        assert_eq!(
                            last_messages(&lease, agent, MESSAGES).unwrap().len(),
                            MESSAGES
                        );
                    }
                };
                warm_up(&work);
                rounds.push(round(threads, work));
            }
            if let Some((_, rounds)) = rounds.last_mut() {
                let work = |agent: &str| {
                    let connection = r2d2.get().unwrap();
                    if reads {
                        assert_eq!(
                            last_messages(&connection, agent, MESSAGES).unwrap().len(),
                            MESSAGES
                        );
                    }
                };
                warm_up(&work);
                rounds.push(round(threads, work));
            }
        }
        println!();
        table(what, &rounds);
    }
}
