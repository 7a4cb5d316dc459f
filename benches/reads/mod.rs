//! What the benches of reads share: the database, the work, and the table at the end.

use std::path::Path;
use std::time::Duration;

use leasepool::rusqlite::{self, Connection};

pub(crate) const AGENTS: usize = 2_000;
const MESSAGES: usize = 50;
pub(crate) const CONNECTIONS: usize = 8;
pub(crate) const WORKERS: usize = 2;

pub(crate) type Messages = Vec<(i64, String)>;

pub(crate) fn name(agent: usize) -> String {
    format!("agent-{agent}")
}

/// The work, the same for everybody: an agent's last messages.
pub(crate) fn last_messages(
    connection: &Connection,
    agent: &str,
    limit: usize,
) -> rusqlite::Result<Messages> {
    // Not `LIMIT ?2`: SQLite's planner looks at that parameter's value, and so prepares the statement
    // again each time that one is bound, which takes as long as the rest.
    let last =
        format!("SELECT id, body FROM message WHERE agent = ?1 ORDER BY id DESC LIMIT {limit}");
    let mut select = connection.prepare_cached(&last)?;
    let mut messages = Vec::with_capacity(limit);
    let mut rows = select.query([agent])?;
    while let Some(row) = rows.next()? {
        messages.push((row.get(0)?, row.get(1)?));
    }
    Ok(messages)
}

/// An agent's messages lie together, as those who read them so would have it.
pub(crate) fn create(path: &Path) -> rusqlite::Result<()> {
    let mut connection = Connection::open(path)?;
    connection.execute_batch(
        "PRAGMA journal_mode = WAL;
         CREATE TABLE message (
             agent TEXT NOT NULL, id INTEGER NOT NULL, body TEXT NOT NULL,
             PRIMARY KEY (agent, id)
         ) WITHOUT ROWID",
    )?;
    let transaction = connection.transaction()?;
    for agent in 0..AGENTS {
        let mut insert = transaction.prepare_cached("INSERT INTO message VALUES (?1, ?2, ?3)")?;
        for i in 0..MESSAGES {
            let body = format!("message {i} of agent {agent}, which says what people say");
            insert.execute((name(agent), i as i64, body))?;
        }
    }
    transaction.commit()
}

pub(crate) fn deadpool(path: &Path) -> deadpool_sqlite::Pool {
    let config = deadpool_sqlite::Config::new(path);
    let builder = config.builder(deadpool_sqlite::Runtime::Tokio1).unwrap();
    builder.max_size(CONNECTIONS).build().unwrap()
}

/// How one contender did in one round.
pub(crate) struct Round {
    rate: f64,
    /// In nanoseconds, sorted.
    latencies: Vec<u64>,
    /// Processor time of the server for each request, in microseconds, where that was looked at.
    cpu: Option<f64>,
}

impl Round {
    pub(crate) fn new(mut latencies: Vec<u64>, took: Duration, cpu: Option<Duration>) -> Self {
        latencies.sort_unstable();
        let count = latencies.len() as f64;
        Round {
            rate: count / took.as_secs_f64(),
            latencies,
            cpu: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / count),
        }
    }

    fn micros(&self, quantile: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * quantile).ceil() as usize;
        self.latencies[rank.clamp(1, self.latencies.len()) - 1] as f64 / 1e3
    }
}

type Column = (&'static str, fn(&Round) -> f64);

/// The medians of all rounds; ratios against the first contender.
pub(crate) fn table(what: &str, contenders: &[(&str, Vec<Round>)]) {
    let mut columns: Vec<Column> = vec![
        ("p50 µs", |round| round.micros(0.5)),
        ("p99 µs", |round| round.micros(0.99)),
        ("max µs", |round| round.micros(1.0)),
    ];
    let mut all = contenders.iter().flat_map(|(_, rounds)| rounds);
    if all.all(|round| round.cpu.is_some()) {
        columns.push(("server µs", |round| round.cpu.unwrap_or(f64::NAN)));
    }
    print!("{:<30} {what:>12} {:>12}", "", "x leasepool");
    columns.iter().for_each(|(title, _)| print!(" {title:>10}"));
    println!();
    let median = |rounds: &[Round], value: fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut base = None;
    for (contender, rounds) in contenders {
        let rate = median(rounds, |round| round.rate);
        let ratio = rate / *base.get_or_insert(rate);
        print!("{contender:<30} {rate:>12.0} {ratio:>12.2}");
        for (_, value) in &columns {
            print!(" {:>10.0}", median(rounds, *value));
        }
        println!();
    }
}
