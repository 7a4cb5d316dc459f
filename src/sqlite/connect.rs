//! Connect: the only way in which the backend opens a connection, for any purpose; and how a callback runs on one.
//! It reads nothing from the file, and runs no pragma before `on_connect`. A manager's `with_init` runs before that.

use rusqlite::config::DbConfig;

use super::connection::limit_attach;
use super::open::discard;
use super::opener::Opener;
use super::{Callback, Fault, Settings, pragmas};
use crate::error::{Error, caught};

/// Opens a connection: for leases, `setup`, a backup, or to keep a database in memory. ATTACH is limited
/// first, then `on_connect` runs, and then the builder's pragmas for a key.
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
        // Once a connection has read the file, closing it may run a checkpoint.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    }
    limit_attach(connection, settings)?;
    call("on_connect", &settings.on_connect, connection, settings)?;
    pragmas::unlock(connection, settings)
}

/// Runs a callback of the builder, if there is one. A panic becomes an error. A transaction that the callback
/// leaves open is committed, and ATTACH is limited again.
pub(super) fn call(
    name: &'static str,
    callback: &Option<Callback>,
    connection: &mut rusqlite::Connection,
    settings: &Settings,
) -> Result<(), Fault> {
    let Some(callback) = callback else {
        return Ok(());
    };
    // If the callback does not return, the connection is closed, so nothing sees its broken state.
    caught(name, || callback(connection))??;
    if !connection.is_autocommit() {
        connection.execute_batch("COMMIT")?;
    }
    limit_attach(connection, settings)
}
