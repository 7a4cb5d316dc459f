//! The bench `versus` with turso: `cargo run --release`, or `benches/versus/run` for all.
//!
//! turso has no pool. Its documentation advises a connection for each task; here a task takes the next of as many
//! connections as the pools have.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::sync::Mutex;
use turso::transaction::TransactionBehavior;
use turso::{Builder, Connection, Database};
use versus_workload::{
    Act, CONNECTIONS, Contender, FETCHED, INSERT_AGENT, INSERT_MESSAGE, MESSAGES, PATIENCE, READ,
    SCHEMA, Stage, WRITE_AGENT, WRITE_MESSAGE, What, body, run,
};

async fn create(stage: &Stage, contender: &str) -> Database {
    let path = stage.path(contender);
    let builder = Builder::new_local(path.to_str().unwrap());
    let database = builder.build().await.unwrap();
    let mut connection = database.connect().unwrap();
    connection.execute_batch(SCHEMA).await.unwrap();
    let transaction = connection.transaction().await.unwrap();
    let mut agents = transaction.prepare(INSERT_AGENT).await.unwrap();
    let mut messages = transaction.prepare(INSERT_MESSAGE).await.unwrap();
    for agent in 0..stage.agents {
        agents.execute((agent,)).await.unwrap();
        for message in 0..MESSAGES {
            let row = (agent, message, body(agent, message));
            messages.execute(row).await.unwrap();
        }
    }
    drop((agents, messages));
    transaction.commit().await.unwrap();
    database
}

async fn read(connection: &Connection, agent: i64) -> turso::Result<()> {
    let mut select = connection.prepare_cached(READ).await?;
    let mut rows = select.query((agent,)).await?;
    let mut messages: Vec<(i64, String)> = Vec::with_capacity(FETCHED);
    while let Some(row) = rows.next().await? {
        messages.push((row.get(0)?, row.get(1)?));
    }
    assert_eq!(messages.len(), FETCHED);
    Ok(())
}

async fn write(connection: &mut Connection, agent: i64, message: i64) -> turso::Result<()> {
    let behavior = TransactionBehavior::Immediate;
    let transaction = connection.transaction_with_behavior(behavior).await?;
    let mut update = transaction.prepare_cached(WRITE_MESSAGE).await?;
    update
        .execute((agent, message, body(agent, message)))
        .await?;
    let mut count = transaction.prepare_cached(WRITE_AGENT).await?;
    count.execute((agent,)).await?;
    transaction.commit().await
}

async fn act(connection: &mut Connection, what: Act) -> turso::Result<()> {
    match what {
        Act::Checkout => Ok(()),
        Act::Read { agent } => read(connection, agent).await,
        Act::Write { agent, message } => write(connection, agent, message).await,
        Act::Turn { agent, message } => {
            write(connection, agent, message).await?;
            read(connection, agent).await
        }
    }
}

fn contender(stage: &Stage) -> Contender {
    let name = "turso";
    let connections = stage.runtime.block_on(async {
        let database = create(stage, name).await;
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = database.connect().unwrap();
            connection.busy_timeout(PATIENCE).unwrap();
            let synchronous = stage.sync.name();
            let set = connection.pragma_update("synchronous", synchronous);
            set.await.unwrap();
            connections.push(Mutex::new(connection));
        }
        Arc::new(connections)
    });
    let turn = AtomicUsize::new(0);
    Contender::tasks(name, move |what| {
        let next = turn.fetch_add(1, Relaxed) % CONNECTIONS;
        let connections = Arc::clone(&connections);
        async move {
            act(&mut *connections[next].lock().await, what)
                .await
                .unwrap()
        }
    })
    .cannot(&[What::Checkout])
}

fn main() {
    run(|stage| vec![contender(stage)]);
}
