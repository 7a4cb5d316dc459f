//! A session store for tower-sessions on leasepool: every write goes through the pool's queue, every load reads in place.
//! It opens no connection and begins no transaction itself.
//!
//! ```no_run
//! use leasepool::{Database, Pool, Synchronous};
//! use leasepool_tower_sessions_store::LeasepoolStore;
//!
//! # async fn start() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::builder(Database::file("sessions.db"))
//!     .synchronous(Synchronous::Normal)
//!     .build()?;
//! let store = LeasepoolStore::new(&pool);
//! store.migrate().await?;
//! // let app = app.layer(SessionManagerLayer::new(store));
//! # Ok(())
//! # }
//! ```

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod table;

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use leasepool::rusqlite::Connection;
use leasepool::{Agent, Pool};
use time::OffsetDateTime;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{self, ExpiredDeletion, SessionStore};

pub use table::InvalidTableName;
use table::{EXPIRED_AT_ONCE, Table};

/// Sessions in one table of a leasepool.
///
/// It uses a database that all agents share, [`Database::file`](leasepool::Database::file) or
/// [`Database::memory`](leasepool::Database::memory). Everything else in that database may use the same pool.
///
/// A clone is another handle to the same table, and costs a few reference counts.
///
/// The table is the one of `tower-sessions-rusqlite-store`: a file that was written by that crate can be used as it is.
#[derive(Clone, Debug)]
pub struct LeasepoolStore {
    app: Agent,
    table: Arc<Table>,
}

impl LeasepoolStore {
    /// A store in the table `tower_sessions`. Call [`migrate`](LeasepoolStore::migrate) before you use it.
    #[track_caller]
    pub fn new(pool: &Pool) -> Self {
        LeasepoolStore {
            app: pool.anonymous(),
            table: Arc::new(Table::default()),
        }
    }

    /// The same store in another table.
    ///
    /// # Errors
    /// [`InvalidTableName`] if the name is empty, begins with `sqlite_`, or contains anything else than ASCII letters, digits,
    /// hyphens and underscores.
    pub fn with_table_name(self, name: &str) -> Result<Self, InvalidTableName> {
        Ok(LeasepoolStore {
            table: Arc::new(Table::new(name)?),
            ..self
        })
    }

    /// Creates the table, unless it exists.
    ///
    /// # Errors
    /// Those of [`Agent::write_async`].
    pub async fn migrate(&self) -> Result<(), leasepool::Error> {
        let table = Arc::clone(&self.table);
        let create = self
            .app
            .write_async(move |tx| tx.execute_batch(&table.create));
        create.await
    }

    /// Runs `sql` with the columns of `record`, and returns whether it changed a row.
    async fn put(&self, sql: &str, record: &Record) -> session_store::Result<bool> {
        let data = rmp_serde::to_vec(record)
            .map_err(|error| session_store::Error::Encode(error.to_string()))?;
        let expiry_date = record.expiry_date.unix_timestamp();
        let row = (record.id.to_string(), data, expiry_date);
        let changed = self.app.execute_async(sql, row).await.map_err(backend)?;
        Ok(changed > 0)
    }

    /// The next expired rows after row `last`. It scans the table, so it runs on a thread of the pool.
    async fn expired(&self, last: i64, now: i64) -> Result<Vec<i64>, leasepool::Error> {
        let table = Arc::clone(&self.table);
        let find = self.app.read_async(move |tx| {
            let mut select = tx.prepare_cached(&table.select_expired)?;
            select.query_map((last, now), |row| row.get(0))?.collect()
        });
        find.await
    }

    async fn delete_rows(&self, rows: Vec<i64>, now: i64) -> Result<(), leasepool::Error> {
        let table = Arc::clone(&self.table);
        let delete = self.app.write_async(move |tx| {
            let mut delete = tx.prepare_cached(&table.delete_expired)?;
            for row in rows {
                delete.execute((row, now))?;
            }
            Ok(())
        });
        delete.await
    }
}

#[async_trait]
impl SessionStore for LeasepoolStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        // One statement looks and inserts, so that no other session can come between.
        while !self.put(&self.table.insert, record).await? {
            record.id = Id::default();
        }
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.put(&self.table.upsert, record).await?;
        Ok(())
    }

    async fn load(&self, session_id: &Id) -> session_store::Result<Option<Record>> {
        let conn = self.app.lease_async().await.map_err(backend)?;
        // One row by its key takes microseconds: less than the way to another thread.
        let record = load(&conn, &self.table.select, session_id)?;
        // The column has whole seconds; the record knows better.
        Ok(record.filter(|record| record.expiry_date > OffsetDateTime::now_utc()))
    }

    async fn delete(&self, session_id: &Id) -> session_store::Result<()> {
        let id = (session_id.to_string(),);
        let delete = self.app.execute_async(&self.table.delete, id);
        delete.await.map_err(backend)?;
        Ok(())
    }
}

#[async_trait]
impl ExpiredDeletion for LeasepoolStore {
    async fn delete_expired(&self) -> session_store::Result<()> {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let mut last = i64::MIN;
        loop {
            let found = self.expired(last, now).await.map_err(backend)?;
            let Some(&end) = found.last() else {
                return Ok(());
            };
            last = end;
            let is_all = found.len() < EXPIRED_AT_ONCE;
            // Each batch takes its turn in the queue: the saves of visitors get theirs between two batches.
            self.delete_rows(found, now).await.map_err(backend)?;
            if is_all {
                return Ok(());
            }
        }
    }
}

fn load(conn: &Connection, sql: &str, id: &Id) -> session_store::Result<Option<Record>> {
    let mut statement = conn.prepare_cached(sql).map_err(backend)?;
    let mut rows = statement.query((id.to_string(),)).map_err(backend)?;
    let Some(row) = rows.next().map_err(backend)? else {
        return Ok(None);
    };
    // Decoded where SQLite has it, which saves a copy.
    let data = row.get_ref(0).and_then(|data| Ok(data.as_blob()?));
    let record = rmp_serde::from_slice(data.map_err(backend)?);
    record.map_err(|error| session_store::Error::Decode(error.to_string()))
}

/// The error with its causes: the trait's errors carry a text alone.
fn backend(error: impl Into<leasepool::Error>) -> session_store::Error {
    let error = error.into();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    session_store::Error::Backend(text)
}
