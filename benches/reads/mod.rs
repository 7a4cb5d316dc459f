//! What the benches of reads share: the database, the work, and the table at the end.

use std::path::Path;

use leasepool::rusqlite::{self, Connection};

pub(crate) const AGENTS: usize = 2_000;
const MESSAGES: usize = 50;
pub(crate) const CONNECTIONS: usize = 8;
pub(crate) const WORKERS: usize = 2;

const LAST: &str = "SELECT id, body FROM message WHERE agent = ?1 ORDER BY id DESC LIMIT ?2";

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
    let mut select = connection.prepare_cached(LAST)?;
    let mut messages = Vec::with_capacity(limit);
    let mut rows = select.query((agent, limit as i64))?;
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
}

impl Round {
    pub(crate) fn new(mut latencies: Vec<u64>, took: std::time::Duration) -> Self {
        latencies.sort_unstable();
        Round {
            rate: latencies.len() as f64 / took.as_secs_f64(),
            latencies,
        }
    }

    #[allow(dead_code, reason = "not every bench asks")]
    pub(crate) fn count(&self) -> usize {
        self.latencies.len()
    }

    fn micros(&self, quantile: f64) -> f64 {
        let rank = (self.latencies.len() as f64 * quantile).ceil() as usize;
        self.latencies[rank.clamp(1, self.latencies.len()) - 1] as f64 / 1e3
    }
}

/// The medians of all rounds; ratios against the first contender.
pub(crate) fn table(what: &str, contenders: &[(&str, Vec<Round>)]) {
    println!(
        "{:<30} {what:>12} {:>12} {:>10} {:>10} {:>10}",
        "", "x leasepool", "p50 µs", "p99 µs", "max µs"
    );
    let median = |rounds: &[Round], value: &dyn Fn(&Round) -> f64| {
        let mut values: Vec<f64> = rounds.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let mut base = None;
    for (contender, rounds) in contenders {
        let rate = median(rounds, &|round| round.rate);
        println!(
            "{contender:<30} {rate:>12.0} {:>12.2} {:>10.0} {:>10.0} {:>10.0}",
            rate / *base.get_or_insert(rate),
            median(rounds, &|round| round.micros(0.5)),
            median(rounds, &|round| round.micros(0.99)),
            median(rounds, &|round| round.micros(1.0)),
        );
    }
}
