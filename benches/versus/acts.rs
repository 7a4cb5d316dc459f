//! The acts of the bench on a connection of rusqlite, for every library that has one: whatever its version, the crate
//! root names it `rusqlite`.

use std::path::PathBuf;

use versus_workload::{
    Act, FETCHED, INSERT_AGENT, INSERT_MESSAGE, MESSAGES, PATIENCE, READ, SCHEMA, Stage, Sync,
    WRITE_AGENT, WRITE_MESSAGE, body,
};

use crate::rusqlite::{self, Connection, TransactionBehavior};

pub(crate) fn create(stage: &Stage, contender: &str) -> PathBuf {
    let path = stage.path(contender);
    let mut connection = Connection::open(&path).unwrap();
    connection
        .execute_batch(&format!("PRAGMA journal_mode = WAL; {SCHEMA}"))
        .unwrap();
    let transaction = connection.transaction().unwrap();
    for agent in 0..stage.agents {
        transaction.execute(INSERT_AGENT, [agent]).unwrap();
        let mut insert = transaction.prepare_cached(INSERT_MESSAGE).unwrap();
        for message in 0..MESSAGES {
            let body = body(agent, message);
            insert.execute((agent, message, body)).unwrap();
        }
    }
    transaction.commit().unwrap();
    path
}

pub(crate) fn read(connection: &Connection, agent: i64) -> rusqlite::Result<usize> {
    let mut select = connection.prepare_cached(READ)?;
    let mut messages: Vec<(i64, String)> = Vec::with_capacity(FETCHED);
    let mut rows = select.query([agent])?;
    while let Some(row) = rows.next()? {
        messages.push((row.get(0)?, row.get(1)?));
    }
    assert_eq!(messages.len(), FETCHED);
    Ok(messages.len())
}

pub(crate) fn write(connection: &Connection, agent: i64, message: i64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(WRITE_MESSAGE)?
        .execute((agent, message, body(agent, message)))?;
    connection.prepare_cached(WRITE_AGENT)?.execute([agent])?;
    Ok(())
}

/// An act on a connection, as a program does it that has no group commit.
pub(crate) fn act(connection: &mut Connection, act: Act) -> rusqlite::Result<()> {
    match act {
        Act::Checkout => {}
        Act::Read { agent } => _ = read(connection, agent)?,
        Act::Write { agent, message } | Act::Turn { agent, message } => {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            write(&transaction, agent, message)?;
            transaction.commit()?;
        }
    }
    if let Act::Turn { agent, .. } = act {
        read(connection, agent)?;
    }
    Ok(())
}

pub(crate) fn configure(connection: &Connection, sync: Sync) -> rusqlite::Result<()> {
    connection.busy_timeout(PATIENCE)?;
    connection.pragma_update(None, "synchronous", sync.name())
}
