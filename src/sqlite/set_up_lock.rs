//! SetUpLock: of all processes, one at a time makes a database, turns WAL on, and sets it up.
//!
//! SQLite has no lock for that: what `setup` does may be several transactions, and becoming WAL is none. So the lock is a
//! database of its own, empty, beside the one that is set up, with a transaction open that excludes all others. It ends
//! with the process that has it. Whoever has it removes its file; those who waited for the removed one begin anew.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::Connection;

use super::agents::make_private_file;
use super::identity::{Identity, beside};
use super::open::{discard, open_error};
use super::opener::open_existing;
use super::retry::{until, while_busy};
use crate::error::Error;

/// What is added to the name of the database.
const SUFFIX: &str = "-setup";

pub(super) struct SetUpLock {
    path: PathBuf,
    connection: Option<Connection>,
}

impl SetUpLock {
    /// The lock of the database at this path. Waits until `deadline` at most. `None` where no file can be made: then
    /// nobody else can make one either, nor a database.
    pub(super) fn acquire(database: &Path, deadline: Instant) -> Result<Option<Self>, Error> {
        let path = beside(database, SUFFIX);
        let failed = |error| open_error(&path.display().to_string(), error);
        loop {
            match make_private_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(_) => return Ok(None),
                Ok(()) => {}
            }
            let identity = || Identity::at(&path).ok().map(|(identity, _)| identity);
            let before = identity();
            let connection = match open_existing(&path) {
                Ok(connection) => connection,
                // It may have been removed meanwhile, and made again by another process.
                Err(_)
                    if (before.is_none() || before != identity()) && Instant::now() < deadline =>
                {
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            let locked = lock(&connection, deadline);
            // One that was removed locks nobody out. While it is open, its number is given to no other file.
            let is_there = before.is_some() && before == identity();
            match locked {
                Ok(()) if is_there => {
                    let connection = Some(connection);
                    return Ok(Some(SetUpLock { path, connection }));
                }
                Ok(()) => discard(connection),
                Err(error) => {
                    discard(connection);
                    return Err(failed(error));
                }
            }
        }
    }
}

fn lock(connection: &Connection, deadline: Instant) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    while_busy(until(deadline), || {
        // Nothing is written, so there is nothing to be kept in a journal.
        connection.execute_batch("PRAGMA journal_mode=OFF; BEGIN EXCLUSIVE")
    })
}

impl Drop for SetUpLock {
    fn drop(&mut self) {
        // First, so that nobody locks what is about to go.
        let _ = std::fs::remove_file(&self.path);
        if let Some(connection) = self.connection.take() {
            discard(connection);
        }
    }
}
