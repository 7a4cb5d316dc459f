//! Items that rusqlite has only with a feature, which any crate of the program may enable.
//! It calls nothing.
//!
//! Rust prefers rusqlite's own item to a trait's item of the same name. If rusqlite lacks it, the trait's
//! item is used, and its type shows that.
#![allow(
    dead_code,
    reason = "which of them are used depends on rusqlite's features"
)]

use std::any::{Any, TypeId};

use rusqlite::Connection;
use rusqlite::config::DbConfig;

#[derive(Debug)]
pub(super) struct Absent;

/// Its `Debug` text.
pub(super) const ABSENT: &str = "Absent";

/// Whether the closure would return `Absent`, or an option of it.
pub(super) fn is<T: 'static>(_: impl FnOnce() -> T) -> bool {
    [TypeId::of::<Absent>(), TypeId::of::<Option<Absent>>()].contains(&TypeId::of::<T>())
}

/// The switch, if rusqlite has a name for it.
pub(super) fn found(switch: impl Any) -> Option<DbConfig> {
    (&switch as &dyn Any).downcast_ref().copied()
}

pub(super) trait Functions {
    fn remove_function(&self, _name: &str, _arguments: i32) -> Absent {
        Absent
    }
}

impl Functions for Connection {}

pub(super) trait Collations {
    fn remove_collation(&self, _name: &str) -> Absent {
        Absent
    }
}

impl Collations for Connection {}

pub(super) trait Extensions {
    fn load_extension_disable(&self) -> rusqlite::Result<()> {
        Ok(())
    }
}

impl Extensions for Connection {}

pub(super) trait States {
    fn transaction_state(&self, _database: Option<&str>) -> rusqlite::Result<Absent> {
        Ok(Absent)
    }
}

impl States for Connection {}

impl Absent {
    fn len(&self) -> Absent {
        Absent
    }
}

trait Blobs {
    fn blob_open(&self, _: &str, _: &str, _: &str, _: i64, _: bool) -> rusqlite::Result<Absent> {
        Ok(Absent)
    }
}

impl Blobs for Connection {}

/// Whether rusqlite has blob handles.
pub(super) fn has_blobs(connection: &Connection) -> bool {
    !is(|| {
        let blob = connection.blob_open("", "", "", 0, true).ok()?;
        Some(blob.len())
    })
}

pub(super) trait Switches {
    const SQLITE_DBCONFIG_STMT_SCANSTATUS: Absent = Absent;
    const SQLITE_DBCONFIG_REVERSE_SCANORDER: Absent = Absent;
    const SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE: Absent = Absent;
    const SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE: Absent = Absent;
    const SQLITE_DBCONFIG_ENABLE_COMMENTS: Absent = Absent;
}

impl Switches for DbConfig {}
