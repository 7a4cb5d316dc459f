//! What the benches of reads share: the database and the work.

use std::path::Path;

use leasepool::rusqlite::{self, Connection};

pub(crate) const AGENTS: usize = 2_000;
const MESSAGES: usize = 50;
pub(crate) const CONNECTIONS: usize = 8;
#[allow(dead_code, reason = "not every bench has async workers")]
pub(crate) const WORKERS: usize = 2;

#[allow(dead_code, reason = "not every bench reads messages")]
pub(crate) type Messages = Vec<(i64, String)>;

pub(crate) fn name(agent: usize) -> String {
    format!("agent-{agent}")
}

/// The work, the same for every contender: an agent's last messages.
#[allow(dead_code, reason = "not every bench reads messages")]
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

/// An agent's messages lie together, as a program that reads them together stores them.
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

#[allow(dead_code, reason = "not every bench compares with it")]
pub(crate) fn deadpool(path: &Path) -> deadpool_sqlite::Pool {
    let config = deadpool_sqlite::Config::new(path);
    let builder = config.builder(deadpool_sqlite::Runtime::Tokio1).unwrap();
    builder.max_size(CONNECTIONS).build().unwrap()
}
