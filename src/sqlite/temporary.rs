//! The temporary schema, and the rows of `on_open`'s temporary tables: whether they are unchanged.
//! It reads them, because SQLite's authorizer does not see what the backup API and blob handles write.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use crate::core::backend::Fate;

/// A connection's temporary schema and tables.
pub(super) struct Temporary {
    /// A digest of the schema.
    schema: u64,
    /// The tables that `on_open` made: SQL that reads each, and a digest of its rows.
    tables: Vec<(String, u64)>,
}

const SCHEMA: &str = "SELECT type, name, rootpage, sql FROM sqlite_temp_master";

impl Temporary {
    /// The present state.
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

    /// Expects a table that the pool itself has made.
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

/// A digest of all rows that a statement returns.
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
