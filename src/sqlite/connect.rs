//! Connect: the one way in which the backend opens a connection, whatever it is for; and how a callback is run on one.
//! It reads nothing from the file, and gives no pragma before `on_connect`; what a manager's `with_init` does comes before.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rusqlite::config::DbConfig;

use super::connection::limit_attach;
use super::open::discard;
use super::opener::Opener;
use super::{Callback, Fault, Settings, pragmas};
use crate::error::Error;

/// Opens a connection, for leases, `setup`, a backup, or to keep a database in memory. ATTACH is limited from the first
/// on, and `on_connect` has run; what the builder has for a key was given.
pub(super) fn connect(
    opener: &Opener,
    settings: &Settings,
    target: &str,
) -> Result<rusqlite::Connection, Error> {
    let failed = |source| Error::Open {
        target: target.to_owned(),
        source,
    };
    let mut connection = opener.open().map_err(failed)?;
    match begin(&mut connection, settings) {
        Ok(()) => Ok(connection),
        Err(source) => {
            discard(connection);
            Err(failed(source))
        }
    }
}

fn begin(connection: &mut rusqlite::Connection, settings: &Settings) -> Result<(), Fault> {
    if settings.is_external() {
        // Once it has read the file, a connection that is closed may run a checkpoint.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    limit_attach(connection, settings)?;
    call("on_connect", &settings.on_connect, connection, settings)?;
    pragmas::unlock(connection, settings)
}

/// Runs a callback of the builder's, if there is one; a panic in it becomes an error. A transaction that it leaves open
/// is committed, and the limit of ATTACH is the pool's again.
pub(super) fn call(
    name: &'static str,
    callback: &Option<Callback>,
    connection: &mut rusqlite::Connection,
    settings: &Settings,
) -> Result<(), Fault> {
    let Some(callback) = callback else {
        return Ok(());
    };
    // The connection is closed if the callback does not return, so nobody sees what it broke.
    match catch_unwind(AssertUnwindSafe(|| callback(connection))) {
        Ok(result) => result?,
        Err(panic) => return Err(Box::new(Error::panicked(name, &*panic))),
    }
    if !connection.is_autocommit() {
        connection.execute_batch("COMMIT")?;
    }
    limit_attach(connection, settings)
}
