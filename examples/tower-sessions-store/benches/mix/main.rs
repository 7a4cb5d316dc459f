//! The mix of a session store: 32 tasks on 2 threads save and load sessions, 40 saves to 60 loads.
//! It claims no speed by itself: contenders take turns within one run, so that what the machine does meets all of them.
//!
//! ```sh
//! cargo bench -p leasepool-tower-sessions-store --bench mix
//! ```
//!
//! With `-- NAME`, it runs those contenders alone whose names contain NAME.

mod contenders;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use contenders::{CONNECTIONS, Deadpool, ReadAsync, Run, TokioRusqlite};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::SessionStore;

const TASKS: usize = 32;
const THREADS: usize = 2;
const SESSIONS: usize = 10_000;
const SAVES_IN_100: u32 = 40;
const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_secs(2);

struct Contender {
    name: &'static str,
    store: Arc<dyn SessionStore>,
    /// Each task has sessions of its own, so that it knows what a load must find.
    sessions: Vec<Vec<Record>>,
    rounds: Vec<Round>,
}

/// How many operations a second, and how long each took, in nanoseconds.
struct Round {
    rate: f64,
    /// Processor time of each, in microseconds, that of this program included.
    cpu: f64,
    saves: Vec<u64>,
    loads: Vec<u64>,
}

type Column = (&'static str, fn(&Round) -> f64);

/// About 300 bytes, as a shop may keep them for a visitor.
fn session(visitor: usize) -> Record {
    let mut record = Record {
        id: Id::default(),
        data: Default::default(),
        expiry_date: in_two_weeks(),
    };
    record.data.insert("visitor".into(), json!(visitor));
    record.data.insert("seen".into(), json!(0));
    let token = Id::default().to_string();
    record.data.insert("csrf".into(), json!(token));
    let cart = json!([
        {"article": "a kettle", "count": 1, "cents": 3990},
        {"article": "a pot of tea", "count": 2, "cents": 1250},
    ]);
    record.data.insert("cart".into(), cart);
    record
}

fn in_two_weeks() -> OffsetDateTime {
    OffsetDateTime::now_utc() + time::Duration::weeks(2)
}

/// One task: saves and loads until the round is over.
async fn visit(
    store: Arc<dyn SessionStore>,
    mut sessions: Vec<Record>,
    over: Arc<AtomicBool>,
    seed: u64,
) -> (Vec<Record>, Vec<u64>, Vec<u64>) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let (mut saves, mut loads) = (Vec::new(), Vec::new());
    while !over.load(Relaxed) {
        let record = rng.random_range(0..sessions.len());
        let record = &mut sessions[record];
        if rng.random_ratio(SAVES_IN_100, 100) {
            record.data.insert("seen".into(), json!(saves.len()));
            // As the middleware does with each save.
            record.expiry_date = in_two_weeks();
            let asked = Instant::now();
            store.save(record).await.unwrap();
            saves.push(asked.elapsed().as_nanos() as u64);
        } else {
            let asked = Instant::now();
            let found = store.load(&record.id).await.unwrap();
            loads.push(asked.elapsed().as_nanos() as u64);
            // This task alone saves the session, so it knows what the load must find. All of it is compared in the tests.
            let seen = found.as_ref().and_then(|found| found.data.get("seen"));
            assert_eq!(seen, record.data.get("seen"));
        }
        // A task that never waits must let the others have their turn.
        tokio::task::yield_now().await;
    }
    (sessions, saves, loads)
}

impl Contender {
    fn round(&mut self, runtime: &Runtime, length: Duration) -> Round {
        let over = Arc::new(AtomicBool::new(false));
        let (start, cpu) = (Instant::now(), processor_time());
        let (mut saves, mut loads) = (Vec::new(), Vec::new());
        runtime.block_on(async {
            let sessions = std::mem::take(&mut self.sessions);
            let tasks: Vec<_> = (0..)
                .zip(sessions)
                .map(|(seed, sessions)| {
                    let (store, over) = (Arc::clone(&self.store), Arc::clone(&over));
                    tokio::spawn(visit(store, sessions, over, seed))
                })
                .collect();
            tokio::time::sleep(length).await;
            over.store(true, Relaxed);
            for task in tasks {
                let (sessions, saved, loaded) = task.await.unwrap();
                self.sessions.push(sessions);
                saves.extend(saved);
                loads.extend(loaded);
            }
        });
        let count = (saves.len() + loads.len()) as f64;
        let rate = count / start.elapsed().as_secs_f64();
        let cpu = (processor_time() - cpu).as_secs_f64() * 1e6 / count;
        saves.sort_unstable();
        loads.sort_unstable();
        Round {
            rate,
            cpu,
            saves,
            loads,
        }
    }

    fn median(&self, value: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(value))
    }

    /// How many times as fast as the other in the same round, when the machine did much the same.
    fn ratio(&self, other: &Contender) -> f64 {
        let rounds = self.rounds.iter().zip(&other.rounds);
        median(rounds.map(|(this, other)| this.rate / other.rate))
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn micros(sorted: &[u64], quantile: f64) -> f64 {
    let rank = (sorted.len() as f64 * quantile) as usize;
    sorted[rank.min(sorted.len() - 1)] as f64 / 1e3
}

fn contenders(folder: &Path, runtime: &Runtime) -> Vec<Contender> {
    let mut contenders = Vec::new();
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let mut add = |name: &'static str, open: &dyn Fn(&Path) -> Arc<dyn SessionStore>| {
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        let sessions: Vec<Vec<_>> = (0..TASKS)
            .map(|task| (task..SESSIONS).step_by(TASKS).map(session).collect())
            .collect();
        let path = folder.join(format!("{}.db", contenders.len()));
        contenders::create(&path, &sessions);
        contenders.push(Contender {
            name,
            store: open(&path),
            sessions,
            rounds: Vec::new(),
        });
    };
    add("leasepool", &|path| Arc::new(contenders::leasepool(path)));
    add("leasepool, loads by read_async", &|path| {
        Arc::new(ReadAsync::open(path))
    });
    add("leasepool, all by run", &|path| Arc::new(Run::open(path)));
    add("tokio-rusqlite", &|path| {
        Arc::new(runtime.block_on(TokioRusqlite::open(path, 1)))
    });
    add("tokio-rusqlite, 8 in turn", &|path| {
        Arc::new(runtime.block_on(TokioRusqlite::open(path, CONNECTIONS)))
    });
    add("tower-sessions-rusqlite-store", &|path| {
        Arc::new(runtime.block_on(contenders::published(path)))
    });
    add("deadpool-sqlite", &|path| Arc::new(Deadpool::open(path)));
    contenders
}

/// What this process has used so far, where the system tells it in ticks of 10 ms.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = text.rsplit(')').next().unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2);
    let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .unwrap();
    // deadpool-sqlite closes its connections on the runtime it is dropped in.
    let _context = runtime.enter();
    let mut contenders = contenders(folder.path(), &runtime);
    let before = load_average();
    for i in 0..=ROUNDS {
        for contender in &mut contenders {
            // The first round warms up.
            let length = if i == 0 { ROUND / 4 } else { ROUND };
            let round = contender.round(&runtime, length);
            if i > 0 {
                contender.rounds.push(round);
            }
        }
    }
    println!(
        "\n{TASKS} tasks on {THREADS} threads, {SAVES_IN_100} % saves, {SESSIONS} sessions, {CONNECTIONS} connections, WAL, \
         synchronous NORMAL;\nmedians of {ROUNDS} rounds of {ROUND:?}, in turn; load average {before} before, {} after",
        load_average(),
    );
    let columns: [Column; 5] = [
        ("cpu", |round| round.cpu),
        ("load p50", |round| micros(&round.loads, 0.5)),
        ("load p99", |round| micros(&round.loads, 0.99)),
        ("save p50", |round| micros(&round.saves, 0.5)),
        ("save p99", |round| micros(&round.saves, 0.99)),
    ];
    print!("{:<32} {:>9} {:>11}", "", "ops/s", "x leasepool");
    columns.iter().for_each(|(title, _)| print!(" {title:>9}"));
    println!();
    for contender in &contenders {
        let rate = contender.median(|round| round.rate);
        let ratio = contender.ratio(&contenders[0]);
        print!("{:<32} {rate:>9.0} {ratio:>11.2}", contender.name);
        for (_, value) in columns {
            print!(" {:>9.0}", contender.median(value));
        }
        println!();
    }
    println!("(cpu: processor time of one operation; it and the latencies in µs)");
}
