//! The table: its name, which is checked, and the SQL made with it, once.
//! It runs nothing.

use std::error::Error;
use std::fmt;

/// How many expired sessions are deleted by one write: it takes a few milliseconds.
pub(crate) const EXPIRED_AT_ONCE: usize = 500;

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) create: String,
    pub(crate) insert: String,
    pub(crate) upsert: String,
    pub(crate) select: String,
    pub(crate) delete: String,
    pub(crate) select_expired: String,
    pub(crate) delete_expired: String,
}

impl Table {
    pub(crate) fn new(name: &str) -> Result<Self, InvalidTableName> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let reserved = name.to_ascii_lowercase().starts_with("sqlite_");
        if name.is_empty() || reserved || !name.chars().all(allowed) {
            return Err(InvalidTableName(name.to_owned()));
        }
        Ok(Table::of(name))
    }

    fn of(name: &str) -> Self {
        // Quoted: a name may have hyphens, begin with a digit or be one of SQL's words.
        Table {
            create: format!(
                r#"CREATE TABLE IF NOT EXISTS "{name}" (
                       id TEXT PRIMARY KEY NOT NULL,
                       data BLOB NOT NULL,
                       expiry_date INTEGER NOT NULL
                   )"#
            ),
            insert: format!(
                r#"INSERT INTO "{name}" (id, data, expiry_date) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO NOTHING"#
            ),
            upsert: format!(
                r#"INSERT INTO "{name}" (id, data, expiry_date) VALUES (?1, ?2, ?3)
                   ON CONFLICT (id) DO UPDATE SET data = excluded.data, expiry_date = excluded.expiry_date"#
            ),
            select: format!(r#"SELECT data FROM "{name}" WHERE id = ?1"#),
            delete: format!(r#"DELETE FROM "{name}" WHERE id = ?1"#),
            // No index on the date: each save would write to it, and the search for expired rows keeps no save waiting.
            select_expired: format!(
                r#"SELECT rowid FROM "{name}" WHERE rowid > ?1 AND expiry_date < ?2 ORDER BY rowid LIMIT {EXPIRED_AT_ONCE}"#
            ),
            // Meanwhile, the session may have been prolonged, or be another.
            delete_expired: format!(
                r#"DELETE FROM "{name}" WHERE rowid = ?1 AND expiry_date < ?2"#
            ),
        }
    }
}

impl Default for Table {
    fn default() -> Self {
        Table::of("tower_sessions")
    }
}

/// This name cannot be a table's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidTableName(String);

impl fmt::Display for InvalidTableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid table name {:?}: use ASCII letters, digits, hyphens and underscores, and do not begin with \"sqlite_\"",
            self.0
        )
    }
}

impl Error for InvalidTableName {}
