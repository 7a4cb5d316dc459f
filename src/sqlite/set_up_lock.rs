//! SetUpLock: lets one process at a time make a database, turn WAL on, and set it up.
//! It writes nothing: the lock is an open transaction on an empty database of its own.
//!
//! SQLite has no lock for a set-up: `setup` may run several transactions, and turning WAL on is none. So this lock is a
//! separate, empty database beside the one that is set up, with an exclusive transaction open. The lock ends with its
//! process. Its holder removes the file at the end; processes that waited for the removed file begin anew.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::Connection;

use super::agents::make_private_file;
use super::identity::{Identity, beside};
use super::open::{discard, open_error};
use super::opener::open_existing;
use super::retry::{pause, while_busy};
use crate::error::Error;

/// The suffix that is added to the name of the database.
const SUFFIX: &str = "-setup";

/// Two to this power is how many pauses, of a millisecond each, lie between two tries in the end.
const LONGEST: u32 = 4;

pub(super) struct SetUpLock {
    path: PathBuf,
    connection: Option<Connection>,
}

impl SetUpLock {
    /// Locks the set-up of the database at this path. Waits until `deadline` at most. `None` where no file
    /// can be made: then no other process can make one either, nor a database.
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
                // Another process may have removed the file meanwhile, and made it again.
                Err(_)
                    if (before.is_none() || before != identity()) && Instant::now() < deadline =>
                {
                    continue;
                }
                Err(error) => return Err(failed(error)),
            };
            let locked = lock(&connection, deadline);
            // A removed file locks out no other process. While this one is open, no other file gets its
            // number.
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
    let mut tries = 0;
    let patience = || {
        // A process that waits leaves the processor to the one that works: it tries ever more seldom.
        tries += 1;
        (0..1 << tries.min(LONGEST)).for_each(|_| pause());
        Instant::now() < deadline
    };
    while_busy(patience, || {
        // Nothing is written, so no journal is needed. The reserved lock is enough, and is had or not had at once: for an
        // exclusive one, each contender would wait until none of the others tries.
        connection.execute_batch("PRAGMA journal_mode=OFF; BEGIN IMMEDIATE")
    })
}

impl Drop for SetUpLock {
    fn drop(&mut self) {
        // Removed first, so that no other process locks a file that is about to go.
        let _ = std::fs::remove_file(&self.path);
        if let Some(connection) = self.connection.take() {
            discard(connection);
        }
    }
}
