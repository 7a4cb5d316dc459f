//! What a node answers: agents' messages, and what an operator tells it.
//! It finds the agent in the directory before it asks the pool.

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post, put};
use leasepool::{Error, Pool};
use serde::Deserialize;

use crate::client;
use crate::directory::{Directory, blocking};

#[derive(Clone)]
struct Node {
    pool: Pool,
    directory: Arc<Directory>,
    copies: Arc<FilePath>,
    backups: Arc<FilePath>,
}

pub(crate) fn router(
    pool: Pool,
    directory: Arc<Directory>,
    copies: PathBuf,
    backups: PathBuf,
) -> Router {
    let node = Node {
        pool,
        directory,
        copies: copies.into(),
        backups: backups.into(),
    };
    // An operator reaches these; the proxies pass on nothing but `/agents/`.
    let admin = Router::new()
        .route("/agents/{agent}/hand-over", post(hand_over))
        .route(
            "/agents/{agent}/copies/{copy}",
            put(take_copy).layer(DefaultBodyLimit::disable()),
        )
        .route("/nodes/{node}/dead", post(bury))
        .route("/directory", get(list))
        .route("/backup", post(backup));
    Router::new()
        .route("/agents/{agent}/messages", get(read).post(write))
        .route("/health", get(|| async { "well" }))
        .nest("/admin", admin)
        .with_state(node)
}

async fn write(
    State(node): State<Node>,
    Path(agent): Path<String>,
    body: String,
) -> Result<StatusCode, Error> {
    node.directory.find(&node.pool, &agent).await?;
    let sql = "INSERT INTO message VALUES (?1)";
    let handle = node.pool.agent(&agent);
    handle.execute_async(sql, [body]).await?;
    node.remove_copy_of(&agent);
    // Committed.
    Ok(StatusCode::CREATED)
}

async fn read(State(node): State<Node>, Path(agent): Path<String>) -> Result<String, Error> {
    node.directory.find(&node.pool, &agent).await?;
    let handle = node.pool.agent(&agent);
    let messages = handle.read_async(|tx| {
        let mut select = tx.prepare_cached("SELECT body FROM message ORDER BY rowid")?;
        let bodies = select.query_map([], |row| row.get(0))?;
        bodies.collect::<leasepool::rusqlite::Result<Vec<String>>>()
    });
    let messages = messages.await?;
    node.remove_copy_of(&agent);
    Ok(messages.join("\n"))
}

impl Node {
    fn keep_copy(&self, copy: &str, body: &[u8]) -> std::io::Result<()> {
        let path = self.copies.join(file_name(copy));
        std::fs::write(&path, body)?;
        std::fs::File::open(&path)?.sync_all()?;
        std::fs::File::open(&self.copies)?.sync_all()
    }

    /// The agent's database has been used, so the copy that it arrived as is not needed.
    fn remove_copy_of(&self, agent: &str) {
        if let Some(copy) = self.directory.take_copy_of(agent) {
            let copy = self.copies.join(copy);
            tokio::task::spawn_blocking(move || std::fs::remove_file(copy));
        }
    }
}

#[derive(Deserialize)]
struct Target {
    /// The node that the agent is to go to.
    to: String,
}

async fn hand_over(
    State(node): State<Node>,
    Path(agent): Path<String>,
    Query(Target { to }): Query<Target>,
) -> Result<&'static str, Error> {
    node.directory.find(&node.pool, &agent).await?;
    // It blocks until the copy is there.
    let handed = blocking(move || {
        node.pool.agent(&agent).hand_over(|file| {
            let copy = name_of_copy(node.directory.name());
            let path = format!("/admin/agents/{}/copies/{copy}", client::encoded(&agent));
            client::put(&to, &path, &std::fs::read(file)?)?;
            node.directory.record(&agent, &to, &copy)?;
            Ok::<_, crate::Fault>(())
        })
    });
    handed.await?;
    Ok("handed over")
}

/// A name that no other copy has: a copy of a hand-over that failed is never taken for another.
fn name_of_copy(node: &str) -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_nanos();
    let number = MADE.fetch_add(1, Relaxed);
    let node = node.replace(['.', ':'], "-");
    format!("{node}-{now}-{number}")
}

/// A name for a file: letters, digits and `-` stand for themselves.
pub(crate) fn file_name(agent: &str) -> String {
    let mut name = String::new();
    for byte in agent.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            other => name += &format!("_{other:02x}"),
        }
    }
    name
}

/// A copy that another node sends. It is safe on the disk when that node gets its answer, and nothing older is left of the
/// agent. It is the agent's database once the directory says so.
async fn take_copy(
    State(node): State<Node>,
    Path((agent, copy)): Path<(String, String)>,
    body: Bytes,
) -> Result<StatusCode, Error> {
    let taken = blocking(move || {
        node.pool.agent(agent).remove_leftovers()?;
        Ok(node.keep_copy(&copy, &body))
    });
    match taken.await? {
        Ok(()) => Ok(StatusCode::CREATED),
        Err(_) => Ok(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

async fn bury(State(node): State<Node>, Path(dead): Path<String>) -> Result<&'static str, Error> {
    node.directory.bury(dead).await?;
    Ok("declared dead")
}

async fn list(State(node): State<Node>) -> Result<String, Error> {
    node.directory.list().await
}

/// Copies all of this node's agents to where other nodes find them if this one is lost. Litestream does that all the
/// time, and needs no call.
async fn backup(State(node): State<Node>) -> Result<String, Error> {
    let done = blocking(move || {
        let mut copied = 0;
        for agent in node.pool.agents()? {
            let agent = node.pool.agent(agent?);
            match agent.backup(node.backups.join(file_name(agent.id()?))) {
                Ok(()) => copied += 1,
                Err(Error::NotHere { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(copied.to_string())
    });
    done.await
}
