//! SQL functions, collations and modules: whether a borrower registered any.
//! It removes none: SQLite can list them, but not say what they replaced.

use rusqlite::{Connection, StatementStatus};

use super::absent;
use crate::core::backend::Fate;

/// What was registered on a connection when it was opened.
pub(super) struct Registered {
    functions: Listed,
    collations: Listed,
    modules: Listed,
    /// How often SQLite had to prepare `SENTINEL` again.
    prepared_again: i32,
}

/// The number of rows of a list, and a sum of hashes of their values.
type Listed = (u64, u64);

/// SQLite invalidates every prepared statement when a function or collation replaces another. This statement
/// is prepared again for no other reason.
const SENTINEL: &str = "SELECT 'leasepool'";

impl Registered {
    pub(super) fn on(connection: &Connection) -> rusqlite::Result<Registered> {
        let prepared_again = match can_register(connection) {
            true => sentinel(connection)?.1,
            false => 0,
        };
        Ok(Registered {
            functions: list_if(has_functions(connection), connection, "function_list")?,
            collations: list_if(has_collations(connection), connection, "collation_list")?,
            modules: list_if(HAS_MODULES, connection, "module_list")?,
            prepared_again,
        })
    }

    /// Expects that SQLite invalidates prepared statements because of the pool's own action.
    pub(super) fn expect_invalidation(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if can_register(connection) {
            (_, self.prepared_again) = sentinel(connection)?;
        }
        Ok(())
    }

    /// `Fate::Discard` if something was registered since, or if that cannot be known.
    pub(super) fn check(&mut self, connection: &Connection) -> rusqlite::Result<Fate> {
        if !can_register(connection) {
            return Ok(Fate::Reuse);
        }
        let (functions, collations) = (has_functions(connection), has_collations(connection));
        let (run_before, prepared_again) = sentinel(connection)?;
        let same = run_before
            && prepared_again == self.prepared_again
            && self.functions == list_if(functions, connection, "function_list")?
            && self.collations == list_if(collations, connection, "collation_list")?
            && self.modules == list_if(HAS_MODULES, connection, "module_list")?;
        Ok(if same { Fate::Reuse } else { Fate::Discard })
    }
}

/// Runs the sentinel. Returns whether it is the statement that ran before, and how often it was prepared
/// again. (It leaves rusqlite's cache when an agent uses more statements than fit there.)
fn sentinel(connection: &Connection) -> rusqlite::Result<(bool, i32)> {
    let mut statement = connection.prepare_cached(SENTINEL)?;
    let run_before = statement.get_status(StatementStatus::Run) > 0;
    statement.query_row([], |_| Ok(()))?;
    Ok((run_before, statement.get_status(StatementStatus::RePrepare)))
}

fn list_if(wanted: bool, connection: &Connection, pragma: &str) -> rusqlite::Result<Listed> {
    use std::hash::{BuildHasher, Hash, Hasher};

    let mut listed = (0, 0_u64);
    if !wanted {
        return Ok(listed);
    }
    let hashes = foldhash::quality::FixedState::default();
    let mut statement = connection.prepare(&format!("PRAGMA {pragma}"))?;
    let columns = statement.column_count();
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let mut hasher = hashes.build_hasher();
        for column in 0..columns {
            match row.get_ref(column)? {
                rusqlite::types::ValueRef::Integer(i) => i.hash(&mut hasher),
                other => other.as_bytes_or_null()?.hash(&mut hasher),
            }
        }
        listed.0 += 1;
        // A sum, since SQLite returns the rows in no particular order.
        listed.1 = listed.1.wrapping_add(hasher.finish());
    }
    Ok(listed)
}

const HAS_MODULES: bool = cfg!(feature = "vtab");

/// Whether safe code of this program can register anything.
fn can_register(connection: &Connection) -> bool {
    HAS_MODULES || has_functions(connection) || has_collations(connection)
}

fn has_functions(connection: &Connection) -> bool {
    #[allow(unused_imports, reason = "unused where rusqlite has the method")]
    use super::absent::Functions;
    !absent::is(|| connection.remove_function("", 0))
}

fn has_collations(connection: &Connection) -> bool {
    #[allow(unused_imports, reason = "unused where rusqlite has the method")]
    use super::absent::Collations;
    !absent::is(|| connection.remove_collation(""))
}
