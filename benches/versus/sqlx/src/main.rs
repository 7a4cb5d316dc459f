//! The bench `versus` with sqlx: `cargo run --release`, or `benches/versus/run` for all.

use std::path::PathBuf;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Connection, Executor, Row, SqliteConnection};
use versus_workload::{
    Act, CONNECTIONS, Contender, FETCHED, INSERT_AGENT, INSERT_MESSAGE, MESSAGES, PATIENCE, READ,
    SCHEMA, Stage, Sync, WRITE_AGENT, WRITE_MESSAGE, body, run,
};

async fn create(stage: &Stage, contender: &str) -> PathBuf {
    let path = stage.path(contender);
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true);
    let options = options.journal_mode(SqliteJournalMode::Wal);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    connection.execute(SCHEMA).await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    for agent in 0..stage.agents {
        sqlx::query(INSERT_AGENT)
            .bind(agent)
            .execute(&mut *transaction)
            .await
            .unwrap();
        for message in 0..MESSAGES {
            let insert = sqlx::query(INSERT_MESSAGE)
                .bind(agent)
                .bind(message)
                .bind(body(agent, message));
            insert.execute(&mut *transaction).await.unwrap();
        }
    }
    transaction.commit().await.unwrap();
    path
}

async fn read(connection: &mut SqliteConnection, agent: i64) -> sqlx::Result<()> {
    let rows = sqlx::query(READ).bind(agent).fetch_all(connection).await?;
    let messages: Vec<(i64, String)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(messages.len(), FETCHED);
    Ok(())
}

async fn write(connection: &mut SqliteConnection, agent: i64, message: i64) -> sqlx::Result<()> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let update = sqlx::query(WRITE_MESSAGE)
        .bind(agent)
        .bind(message)
        .bind(body(agent, message));
    update.execute(&mut *transaction).await?;
    sqlx::query(WRITE_AGENT)
        .bind(agent)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await
}

async fn act(pool: &SqlitePool, what: Act) -> sqlx::Result<()> {
    let mut connection = pool.acquire().await?;
    match what {
        Act::Checkout => Ok(()),
        Act::Read { agent } => read(&mut connection, agent).await,
        Act::Write { agent, message } => write(&mut connection, agent, message).await,
        Act::Turn { agent, message } => {
            write(&mut connection, agent, message).await?;
            read(&mut connection, agent).await
        }
    }
}

fn contender(stage: &Stage) -> Contender {
    let name = "sqlx";
    let pool = stage.runtime.block_on(async {
        let path = create(stage, name).await;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal);
        let options = options
            .busy_timeout(PATIENCE)
            .synchronous(match stage.sync {
                Sync::Normal => SqliteSynchronous::Normal,
                Sync::Full => SqliteSynchronous::Full,
            });
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS as u32)
            .acquire_timeout(PATIENCE);
        pool.connect_with(options).await.unwrap()
    });
    Contender::tasks(name, move |what| {
        let pool = pool.clone();
        async move { act(&pool, what).await.unwrap() }
    })
}

fn main() {
    run(|stage| vec![contender(stage)]);
}
