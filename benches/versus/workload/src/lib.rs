//! The work of the bench `versus`: what clients do, how rounds are run and measured. It knows no SQLite, so that each
//! library does the same work with its own.
//!
//! A database has a table of agents, each with a counter, and 50 messages for each agent. A *read* fetches an agent's last
//! 20 messages. A *write* changes one message and counts, in a transaction of its own; so the database never grows, and
//! late rounds meet the same database as early ones. A *turn* is a write and then a read. A *mix* is a write in one of ten
//! times, and otherwise a read. A *checkout* borrows a connection and gives it back.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

/// Messages of each agent, and how many of them a read fetches.
pub const MESSAGES: i64 = 50;
pub const FETCHED: usize = 20;
/// Connections of each pool.
pub const CONNECTIONS: usize = 8;
/// How long a library may wait for a lock or a connection.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Threads of the runtime that tasks run on.
const WORKERS: usize = 2;

/// Not WITHOUT ROWID, which would read faster: turso cannot update such tables.
pub const SCHEMA: &str = "
    CREATE TABLE agent (id INTEGER PRIMARY KEY, said INTEGER NOT NULL);
    CREATE TABLE message (agent INTEGER NOT NULL, id INTEGER NOT NULL, body TEXT NOT NULL);
    CREATE UNIQUE INDEX message_of_agent ON message (agent, id)";
pub const INSERT_AGENT: &str = "INSERT INTO agent VALUES (?1, 0)";
pub const INSERT_MESSAGE: &str = "INSERT INTO message VALUES (?1, ?2, ?3)";
pub const READ: &str = "SELECT id, body FROM message WHERE agent = ?1 ORDER BY id DESC LIMIT 20";
pub const WRITE_MESSAGE: &str = "UPDATE message SET body = ?3 WHERE agent = ?1 AND id = ?2";
pub const WRITE_AGENT: &str = "UPDATE agent SET said = said + 1 WHERE id = ?1";

pub fn body(agent: i64, message: i64) -> String {
    format!("message {message} of agent {agent}, which says what people say")
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Checkout,
    Read,
    Write,
    Turn,
    Mix,
}

#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Sync {
    Normal,
    Full,
}

impl Sync {
    /// As `PRAGMA synchronous` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Sync::Normal => "NORMAL",
            Sync::Full => "FULL",
        }
    }
}

/// One thing that a client does. Mixes and turns are made of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Checkout,
    Read { agent: i64 },
    Write { agent: i64, message: i64 },
    Turn { agent: i64, message: i64 },
}

type Done = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a library does an act.
pub enum How {
    /// On the client's thread.
    Threads(Box<dyn Fn(Act) + Send + std::marker::Sync>),
    /// In the client's task.
    Tasks(Arc<dyn Fn(Act) -> Done + Send + std::marker::Sync>),
    /// On one thread alone: no pool, but the limit of one connection.
    Alone(Box<dyn FnMut(Act) + Send>),
}

pub struct Contender {
    pub name: &'static str,
    pub how: How,
    /// What it cannot do, if anything.
    pub cannot: &'static [What],
}

impl Contender {
    pub fn threads(
        name: &'static str,
        act: impl Fn(Act) + Send + std::marker::Sync + 'static,
    ) -> Self {
        let how = How::Threads(Box::new(act));
        Contender {
            name,
            how,
            cannot: &[],
        }
    }

    pub fn tasks<F>(
        name: &'static str,
        act: impl Fn(Act) -> F + Send + std::marker::Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let how = How::Tasks(Arc::new(move |what| Box::pin(act(what)) as Done));
        Contender {
            name,
            how,
            cannot: &[],
        }
    }

    pub fn cannot(mut self, what: &'static [What]) -> Self {
        self.cannot = what;
        self
    }
}

/// Where contenders put their databases, and what tasks run on.
pub struct Stage {
    folder: PathBuf,
    pub sync: Sync,
    pub agents: i64,
    pub runtime: Arc<Runtime>,
}

impl Stage {
    pub fn path(&self, contender: &str) -> PathBuf {
        let name = contender.replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        self.folder.join(name).with_extension("db")
    }
}

/// One round of one contender, as a line of JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Round {
    pub contender: String,
    pub what: What,
    pub sync: Sync,
    pub clients: usize,
    pub agents: i64,
    pub per_second: f64,
    /// In microseconds.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// Processor time of the process for each act, in microseconds.
    pub cpu: f64,
    /// Descriptors that the process had open on databases at the end.
    pub descriptors: usize,
}

#[derive(Parser)]
struct Args {
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [What::Checkout, What::Read, What::Write, What::Turn, What::Mix])]
    what: Vec<What>,
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Sync::Normal, Sync::Full])]
    sync: Vec<Sync>,
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128])]
    clients: Vec<usize>,
    #[arg(long, value_delimiter = ',', default_values_t = [8, 2_000])]
    agents: Vec<i64>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only contenders whose name contains one of these
    #[arg(long, value_delimiter = ';')]
    only: Vec<String>,
    /// Print a line of JSON for each round, and no table
    #[arg(long)]
    json: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Runs the bench: `contenders` makes each library's databases and pools.
pub fn run(contenders: impl Fn(&Stage) -> Vec<Contender>) {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .unwrap();
    let runtime = Arc::new(runtime);
    // Some libraries ask for the runtime when they are made and dropped.
    let _context = runtime.enter();
    let mut rounds = Vec::new();
    for &sync in &args.sync {
        for &agents in &args.agents {
            let folder = tempfile::tempdir().unwrap();
            let stage = Stage {
                folder: folder.path().to_path_buf(),
                sync,
                agents,
                runtime: Arc::clone(&runtime),
            };
            let mut contenders = contenders(&stage);
            contenders
                .retain(|c| args.only.is_empty() || args.only.iter().any(|o| c.name.contains(o)));
            for &what in &args.what {
                // Nothing is written: the second setting would only repeat the first.
                let again = !matches!(what, What::Write | What::Turn | What::Mix);
                if again && sync != args.sync[0] {
                    continue;
                }
                for &clients in &args.clients {
                    for round in 0..=args.rounds {
                        for contender in &mut contenders {
                            if contender.cannot.contains(&what)
                                || (matches!(contender.how, How::Alone(_))
                                    && clients != args.clients[0])
                            {
                                continue;
                            }
                            // The first round warms up.
                            let share = if round == 0 { 0.25 } else { 1.0 };
                            let case = Case {
                                what,
                                clients,
                                length: Duration::from_secs_f64(args.seconds * share),
                                seed: round as u64,
                            };
                            let measured = case.play(&stage, contender);
                            if round > 0 {
                                if args.json {
                                    println!("{}", serde_json::to_string(&measured).unwrap());
                                }
                                rounds.push(measured);
                            }
                        }
                    }
                }
            }
            drop(contenders);
        }
    }
    if !args.json {
        print!("{}", table(&medians(&rounds)));
    }
}

struct Case {
    what: What,
    clients: usize,
    length: Duration,
    seed: u64,
}

/// Draws what a client does next. Few agents do most of it, as in most programs.
struct Draw {
    rng: SmallRng,
    what: What,
    agents: i64,
}

impl Draw {
    fn next(&mut self) -> Act {
        let agent = (self.agents as f64).powf(self.rng.random::<f64>()) as i64 - 1;
        let message = self.rng.random_range(0..MESSAGES);
        match self.what {
            What::Checkout => Act::Checkout,
            What::Read => Act::Read { agent },
            What::Write => Act::Write { agent, message },
            What::Turn => Act::Turn { agent, message },
            What::Mix if self.rng.random_bool(0.1) => Act::Write { agent, message },
            What::Mix => Act::Read { agent },
        }
    }
}

impl Case {
    fn draw(&self, stage: &Stage, client: usize) -> Draw {
        Draw {
            rng: SmallRng::seed_from_u64(self.seed << 16 | client as u64),
            what: self.what,
            agents: stage.agents,
        }
    }

    fn play(&self, stage: &Stage, contender: &mut Contender) -> Round {
        let done = Arc::new(AtomicBool::new(false));
        let (begun, cpu) = (Instant::now(), processor_time());
        let (latencies, clients) = match &mut contender.how {
            How::Alone(act) => {
                let mut draw = self.draw(stage, 0);
                let mut latencies = Vec::new();
                while begun.elapsed() < self.length {
                    let next = draw.next();
                    let asked = Instant::now();
                    act(next);
                    latencies.push(asked.elapsed().as_nanos() as u64);
                }
                (latencies, 1)
            }
            How::Threads(act) => {
                let (act, done) = (&*act, &*done);
                let latencies = thread::scope(|scope| {
                    let clients: Vec<_> = (0..self.clients)
                        .map(|client| {
                            let mut draw = self.draw(stage, client);
                            scope.spawn(move || {
                                let mut latencies = Vec::with_capacity(1 << 16);
                                while !done.load(Relaxed) {
                                    let next = draw.next();
                                    let asked = Instant::now();
                                    act(next);
                                    latencies.push(asked.elapsed().as_nanos() as u64);
                                }
                                latencies
                            })
                        })
                        .collect();
                    thread::sleep(self.length);
                    done.store(true, Relaxed);
                    clients
                        .into_iter()
                        .flat_map(|client| client.join().unwrap())
                        .collect()
                });
                (latencies, self.clients)
            }
            How::Tasks(act) => {
                let latencies = stage.runtime.block_on(async {
                    let clients: Vec<_> = (0..self.clients)
                        .map(|client| {
                            let mut draw = self.draw(stage, client);
                            let (act, done) = (Arc::clone(act), Arc::clone(&done));
                            tokio::spawn(async move {
                                let mut latencies = Vec::with_capacity(1 << 16);
                                while !done.load(Relaxed) {
                                    let next = draw.next();
                                    let asked = Instant::now();
                                    act(next).await;
                                    latencies.push(asked.elapsed().as_nanos() as u64);
                                    // A task that never waits must let the others have their turn.
                                    tokio::task::yield_now().await;
                                }
                                latencies
                            })
                        })
                        .collect();
                    tokio::time::sleep(self.length).await;
                    done.store(true, Relaxed);
                    let mut latencies = Vec::new();
                    for client in clients {
                        latencies.extend(client.await.unwrap());
                    }
                    latencies
                });
                (latencies, self.clients)
            }
        };
        let (took, cpu) = (begun.elapsed(), processor_time() - cpu);
        let mut latencies: Vec<u64> = latencies;
        latencies.sort_unstable();
        let quantile = |q: f64| {
            let rank = (latencies.len() as f64 * q).ceil() as usize;
            let found = latencies.get(rank.clamp(1, latencies.len().max(1)) - 1);
            found.map_or(f64::NAN, |nanos| *nanos as f64 / 1e3)
        };
        Round {
            contender: contender.name.to_owned(),
            what: self.what,
            sync: stage.sync,
            clients,
            agents: stage.agents,
            per_second: latencies.len() as f64 / took.as_secs_f64(),
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
            cpu: cpu.as_secs_f64() * 1e6 / latencies.len() as f64,
            descriptors: descriptors(&stage.path(contender.name)),
        }
    }
}

fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Descriptors of this process on a database and the files beside it, where the kernel tells.
fn descriptors(path: &Path) -> usize {
    let Ok(open) = std::fs::read_dir("/proc/self/fd") else {
        return 0;
    };
    let path = path.to_string_lossy();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with(&*path))
        .count()
}

/// The rounds of each contender in each case as one, of medians; in the order in which they came.
pub fn medians(rounds: &[Round]) -> Vec<Round> {
    let mut cases: Vec<(String, Vec<&Round>)> = Vec::new();
    for round in rounds {
        let Round {
            contender,
            what,
            sync,
            clients,
            agents,
            ..
        } = round;
        let key = format!("{what:?} {sync:?} {clients} {agents} {contender}");
        match cases.iter_mut().find(|(known, _)| *known == key) {
            Some((_, rounds)) => rounds.push(round),
            None => cases.push((key, vec![round])),
        }
    }
    let median = |rounds: &[&Round], value: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(|round| value(round)).collect();
        values.sort_by(f64::total_cmp);
        // Of an even number, the middle of the two in the middle.
        let middle = values.len() / 2;
        (values[(values.len() - 1) / 2] + values[middle]) / 2.0
    };
    cases
        .iter()
        .map(|(_, rounds)| Round {
            per_second: median(rounds, |round| round.per_second),
            p50: median(rounds, |round| round.p50),
            p99: median(rounds, |round| round.p99),
            p999: median(rounds, |round| round.p999),
            max: median(rounds, |round| round.max),
            cpu: median(rounds, |round| round.cpu),
            descriptors: rounds
                .iter()
                .map(|round| round.descriptors)
                .max()
                .unwrap_or(0),
            ..rounds[0].clone()
        })
        .collect()
}

/// A table for each case, as Markdown, the fastest first.
pub fn table(rounds: &[Round]) -> String {
    use std::fmt::Write;

    let mut cases: Vec<_> = rounds
        .iter()
        .map(|round| (round.what, round.sync, round.agents, round.clients))
        .collect();
    cases.sort_unstable();
    cases.dedup();
    let mut out = String::new();
    for (what, sync, agents, clients) in cases {
        let mut rows: Vec<_> = rounds
            .iter()
            .filter(|round| (round.what, round.sync, round.agents) == (what, sync, agents))
            .filter(|round| round.clients == clients)
            .collect();
        rows.sort_by(|a, b| b.per_second.total_cmp(&a.per_second));
        let sync = match what {
            What::Checkout | What::Read => "",
            _ => sync.name(),
        };
        let _ = writeln!(
            out,
            "\n**{what:?}** {sync}, {clients} clients, {agents} agents\n\n\
             | | per second | p50 µs | p99 µs | p99.9 µs | max µs | CPU µs | descriptors |\n|---|---|---|---|---|---|---|---|"
        );
        for row in rows {
            let _ = writeln!(
                out,
                "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.1} | {} |",
                row.contender,
                row.per_second,
                row.p50,
                row.p99,
                row.p999,
                row.max,
                row.cpu,
                row.descriptors
            );
        }
    }
    out
}
