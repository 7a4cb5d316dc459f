//! The temporary schema, and the rows of `on_open`'s temporary tables: whether they are unchanged.
//! It reads them, because SQLite's authorizer does not see what the backup API and blob handles write. Where
//! neither can have written anything, it does not.

use std::hash::{BuildHasher, Hash, Hasher};

use foldhash::quality::FixedState;
use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::absent;
use crate::core::backend::Fate;

/// A connection's temporary schema and tables.
pub(super) struct Temporary {
    /// A digest of the schema.
    schema: u64,
    /// The tables that `on_open` made: SQL that reads each, and a digest of its rows.
    tables: Vec<(String, u64)>,
    /// Whether there is anything that a blob handle could be opened on.
    is_empty: bool,
}

const SCHEMA: &str = "SELECT type, name, rootpage, sql FROM sqlite_temp_master";

impl Temporary {
    /// The present state.
    pub(super) fn on(connection: &Connection) -> rusqlite::Result<Self> {
        if !is_there(connection) {
            return Ok(Temporary {
                schema: FixedState::default().build_hasher().finish(),
                tables: Vec::new(),
                is_empty: true,
            });
        }
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
            is_empty: !connection.prepare(SCHEMA)?.exists([])?,
        })
    }

    /// Expects a table that the pool itself has made.
    pub(super) fn expect_change(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.schema = digest(connection, SCHEMA)?;
        self.is_empty = false;
        Ok(())
    }

    /// `Fate::Discard` if something has changed. The backup API writes only to a connection that its caller
    /// has `&mut` access to.
    pub(super) fn check(
        &self,
        connection: &Connection,
        borrowed_mutably: bool,
    ) -> rusqlite::Result<Fate> {
        let blobs = !self.is_empty && absent::has_blobs(connection);
        if (!borrowed_mutably && !blobs) || (self.is_empty && !is_there(connection)) {
            return Ok(Fate::Reuse);
        }
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

/// Whether the connection has a temporary database. SQLite makes one when something reads or writes it first.
fn is_there(connection: &Connection) -> bool {
    connection.is_readonly("temp").is_ok()
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
