//! The temporary schema, and the rows in temporary tables of `on_open`'s: whether they are as they were.
//! SQLite's authorizer does not see what its backup API and its blob handles write, so here it is read.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::core::backend::Fate;

/// What is in a connection's temporary schema.
pub(super) struct Temporary {
    /// A digest of it.
    schema: u64,
    /// Tables that `on_open` has made, as SQL that reads them, and a digest of their rows.
    tables: Vec<(String, u64)>,
}

const SCHEMA: &str = "SELECT type, name, rootpage, sql FROM sqlite_temp_master";

impl Temporary {
    /// As it is now.
    pub(super) fn on(connection: &Connection) -> rusqlite::Result<Self> {
        let named = "SELECT name FROM sqlite_temp_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'";
        let mut named = connection.prepare(named)?;
        let names = named.query_map([], |row| row.get::<_, String>(0))?;
        let mut tables = Vec::new();
        for name in names {
            let sql = format!("SELECT * FROM temp.\"{}\"", name?.replace('"', "\"\""));
            let rows = digest(connection, &sql)?;
            tables.push((sql, rows));
        }
        Ok(Temporary {
            schema: digest(connection, SCHEMA)?,
            tables,
        })
    }

    /// Takes note of a table that the pool itself has made.
    pub(super) fn expect_change(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.schema = digest(connection, SCHEMA)?;
        Ok(())
    }

    /// `Fate::Discard` if something has changed.
    pub(super) fn check(&self, connection: &Connection) -> rusqlite::Result<Fate> {
        if digest(connection, SCHEMA)? != self.schema {
            return Ok(Fate::Discard);
        }
        for (sql, rows) in &self.tables {
            if digest(connection, sql)? != *rows {
                return Ok(Fate::Discard);
            }
        }
        Ok(Fate::Reuse)
    }
}

/// A digest of all that a statement returns.
fn digest(connection: &Connection, sql: &str) -> rusqlite::Result<u64> {
    let mut statement = connection.prepare_cached(sql)?;
    let columns = statement.column_count();
    let mut hasher = FixedState::default().build_hasher();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        for column in 0..columns {
            match row.get_ref(column)? {
                ValueRef::Null => 0_u8.hash(&mut hasher),
                ValueRef::Integer(value) => value.hash(&mut hasher),
                ValueRef::Real(value) => value.to_bits().hash(&mut hasher),
                ValueRef::Text(value) => (1_u8, value).hash(&mut hasher),
                ValueRef::Blob(value) => (2_u8, value).hash(&mut hasher),
            }
        }
    }
    Ok(hasher.finish())
}
