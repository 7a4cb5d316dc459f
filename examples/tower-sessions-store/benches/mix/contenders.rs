//! The contenders: one store, written over four ways to reach SQLite, and the published store for tokio-rusqlite.
//! It measures nothing. All run the same SQL on the same table, with the same pragmas.

use std::fmt::Debug;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use async_trait::async_trait;
use deadpool_sqlite::{Config, Hook, HookError, Runtime};
use leasepool::rusqlite::{Connection, OptionalExtension, Result};
use leasepool::{Agent, Database, Pool, Synchronous};
use leasepool_tower_sessions_store::LeasepoolStore;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::{self, Error, SessionStore};
use tower_sessions_rusqlite_store::RusqliteStore;

/// Of the contenders that have a pool.
pub(crate) const CONNECTIONS: usize = 8;

const UPSERT: &str = "INSERT INTO tower_sessions (id, data, expiry_date) VALUES (?1, ?2, ?3)
    ON CONFLICT (id) DO UPDATE SET data = excluded.data, expiry_date = excluded.expiry_date";
const SELECT: &str = "SELECT data FROM tower_sessions WHERE id = ?1";
const DELETE: &str = "DELETE FROM tower_sessions WHERE id = ?1";

/// Makes a file with these sessions.
pub(crate) fn create(path: &Path, sessions: &[Vec<Record>]) {
    let mut conn = Connection::open(path).unwrap();
    set_up(&conn).unwrap();
    let table = "CREATE TABLE tower_sessions (
        id TEXT PRIMARY KEY NOT NULL, data BLOB NOT NULL, expiry_date INTEGER NOT NULL)";
    conn.execute_batch(table).unwrap();
    let tx = conn.transaction().unwrap();
    for record in sessions.iter().flatten() {
        upsert(&tx, row(record)).unwrap();
    }
    tx.commit().unwrap();
}

/// What a leasepool sets by itself.
fn set_up(conn: &Connection) -> Result<()> {
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON;",
    )
}

type Row = (String, Vec<u8>, i64);

fn row(record: &Record) -> Row {
    let data = rmp_serde::to_vec(record).unwrap();
    let expiry_date = record.expiry_date.unix_timestamp();
    (record.id.to_string(), data, expiry_date)
}

fn upsert(conn: &Connection, row: Row) -> Result<()> {
    conn.prepare_cached(UPSERT)?.execute(row)?;
    Ok(())
}

fn select(conn: &Connection, id: String) -> Result<Option<Vec<u8>>> {
    let mut statement = conn.prepare_cached(SELECT)?;
    statement.query_row((id,), |row| row.get(0)).optional()
}

fn delete(conn: &Connection, id: String) -> Result<()> {
    conn.prepare_cached(DELETE)?.execute((id,))?;
    Ok(())
}

fn decode(data: Option<Vec<u8>>) -> session_store::Result<Option<Record>> {
    let decode = |data: Vec<u8>| rmp_serde::from_slice(&data);
    data.map(decode)
        .transpose()
        .map_err(|error| Error::Decode(error.to_string()))
}

fn backend(error: impl std::fmt::Display) -> Error {
    Error::Backend(error.to_string())
}

/// The store of this crate.
pub(crate) fn leasepool(path: &Path) -> LeasepoolStore {
    LeasepoolStore::new(&pool(path))
}

fn pool(path: &Path) -> Pool {
    Pool::builder(Database::file(path))
        .max_connections(CONNECTIONS)
        .synchronous(Synchronous::Normal)
        .build()
        .unwrap()
}

/// The store of this crate, but for its loads: they run on a thread of the pool.
#[derive(Debug)]
pub(crate) struct ReadAsync(LeasepoolStore, Agent);

impl ReadAsync {
    pub(crate) fn open(path: &Path) -> Self {
        let pool = pool(path);
        ReadAsync(LeasepoolStore::new(&pool), pool.anonymous())
    }
}

#[async_trait]
impl SessionStore for ReadAsync {
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.0.save(record).await
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let id = id.to_string();
        let read = self.1.read_async(move |tx| select(tx, id));
        decode(read.await.map_err(backend)?)
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.0.delete(id).await
    }
}

/// A way to run work on a connection: all in which the contenders that are a `Store` differ.
/// Its future is not boxed, for an allocation would be measured with it.
pub(crate) trait Call: Debug + Send + Sync + 'static {
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> impl Future<Output = session_store::Result<T>> + Send;
}

/// The store as a library of connections would have it: each operation is one call.
#[derive(Debug)]
pub(crate) struct Store<C>(C);

#[async_trait]
impl<C: Call> SessionStore for Store<C> {
    async fn save(&self, record: &Record) -> session_store::Result<()> {
        let row = row(record);
        self.0.call(move |conn| upsert(conn, row)).await
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let id = id.to_string();
        decode(self.0.call(move |conn| select(conn, id)).await?)
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        let id = id.to_string();
        self.0.call(move |conn| delete(conn, id)).await
    }
}

/// The port that changes least: each `conn.call(..)` of tokio-rusqlite became `run(..)`, saves included.
#[derive(Debug)]
pub(crate) struct Run(Agent);

impl Run {
    pub(crate) fn open(path: &Path) -> Store<Self> {
        Store(Run(pool(path).anonymous()))
    }
}

impl Call for Run {
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> session_store::Result<T> {
        self.0.run(work).await.map_err(backend)
    }
}

/// tokio-rusqlite: a connection is a thread of its own. Several take turns.
#[derive(Debug)]
pub(crate) struct TokioRusqlite {
    connections: Vec<tokio_rusqlite::Connection>,
    turn: AtomicUsize,
}

impl TokioRusqlite {
    pub(crate) async fn open(path: &Path, connections: usize) -> Store<Self> {
        let mut opened = Vec::new();
        for _ in 0..connections {
            opened.push(open(path).await);
        }
        Store(TokioRusqlite {
            connections: opened,
            turn: AtomicUsize::new(0),
        })
    }
}

impl Call for TokioRusqlite {
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> session_store::Result<T> {
        let turn = self.turn.fetch_add(1, Relaxed) % self.connections.len();
        self.connections[turn].call(work).await.map_err(backend)
    }
}

async fn open(path: &Path) -> tokio_rusqlite::Connection {
    let conn = tokio_rusqlite::Connection::open(path).await.unwrap();
    conn.call(|conn| set_up(conn)).await.unwrap();
    conn
}

/// The published store, which prepares its statements anew for each call.
pub(crate) async fn published(path: &Path) -> RusqliteStore {
    RusqliteStore::new(open(path).await)
}

/// deadpool-sqlite: a connection is lent, and each use of it goes to a blocking thread.
pub(crate) struct Deadpool(deadpool_sqlite::Pool);

impl Deadpool {
    pub(crate) fn open(path: &Path) -> Store<Self> {
        let builder = Config::new(path).builder(Runtime::Tokio1).unwrap();
        let pool = builder
            .max_size(CONNECTIONS)
            .post_create(Hook::async_fn(|connection, _| {
                Box::pin(async move {
                    let done = connection.interact(|conn| set_up(conn)).await;
                    done.map_err(|error| HookError::message(error.to_string()))?
                        .map_err(HookError::Backend)
                })
            }))
            .build();
        Store(Deadpool(pool.unwrap()))
    }
}

impl Debug for Deadpool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deadpool")
    }
}

impl Call for Deadpool {
    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
    ) -> session_store::Result<T> {
        let connection = self.0.get().await.map_err(backend)?;
        let done = connection.interact(work).await;
        done.map_err(backend)?.map_err(backend)
    }
}
