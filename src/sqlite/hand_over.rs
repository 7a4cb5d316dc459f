//! Hand-over: an agent's database is taken from its path, whole and closed, until another node has a copy.
//! The caller has the agent's lock, and no connection of the pool to the database is open.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::config::DbConfig;

use super::agents::{open_fault, remove_file, remove_logs};
use super::hosting::{Owner, arrive, leaving};
use super::open::{discard, open_error};
use super::retry::{is_busy, pause};
use super::{Fault, Sqlite};
use crate::core::backend::Patience;
use crate::error::Error;

/// A database that lies beside its path, where no process opens it. Dropping this puts it back.
struct Leaving {
    path: PathBuf,
    file: PathBuf,
    is_gone: bool,
}

impl Leaving {
    /// Deletes it.
    fn gone(mut self) -> Result<(), Error> {
        // Whether or not it can be deleted, it is no database of this process any more.
        self.is_gone = true;
        remove_file(&self.file).map_err(|source| open_fault(&self.file, source))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if !self.is_gone {
            // If this fails, the agent's next lease tries again.
            let _ = arrive(&self.file, &self.path);
        }
    }
}

impl Sqlite {
    /// Lets `work` copy the agent's database, and deletes it if the agent is another node's afterwards. Otherwise
    /// it is back at its path.
    pub(crate) fn hand_over<T>(
        &self,
        agent: &str,
        patience: &Patience<'_>,
        work: impl FnOnce(&Path) -> Result<T, Fault>,
    ) -> Result<T, Error> {
        let agents = self.agents()?;
        let path = agents.path(agent)?;
        let deadline = patience.deadline;
        let _opened = agents.opened(&path, patience)?;
        // While it is held, no other process makes a file at the path, nor takes the one that lies beside it.
        let _lock = self.agents_set_up_lock(agents, &path, patience, deadline)?;
        let leaving = self.take_away(&path, deadline)?;
        let failed = |source| Error::HandOver {
            agent: agent.to_owned(),
            source,
        };
        let done = catch_unwind(AssertUnwindSafe(|| work(&leaving.file)));
        let value = match done {
            Ok(done) => done.map_err(failed)?,
            Err(panic) => {
                let panic = Error::panicked("the work given to hand_over", &*panic);
                return Err(failed(panic.into()));
            }
        };
        match agents.hosting.owner(agent)? {
            Owner::Elsewhere(_) => {
                agents.forget(&path);
                leaving.gone()?;
                Ok(value)
            }
            Owner::Here => Err(failed(
                "after the work, the function given to owner still says that the agent is here"
                    .into(),
            )),
        }
    }

    /// Copies the log into the database, closes it, and renames it. A crash at any point leaves a whole
    /// database at one of the two paths, with no log that belongs to another.
    fn take_away(&self, path: &Path, deadline: Instant) -> Result<Leaving, Error> {
        let target = path.display().to_string();
        let connection = match self.settings.is_external() {
            true => self.checkpointed(path, deadline)?,
            false => {
                let locked = self.lock_out(path, deadline)?;
                let connection = locked.map_err(|error| open_error(&target, error))?;
                // In exclusive locking mode, the lock on the file outlasts the transaction.
                let copied = connection
                    .execute_batch("COMMIT")
                    .and_then(|()| copy_log(&connection, "TRUNCATE"));
                match copied {
                    Ok(true) => connection,
                    Ok(false) => return Err(not_copied(connection, path)),
                    Err(error) => {
                        discard(connection);
                        return Err(open_error(&target, error));
                    }
                }
            }
        };
        let file = leaving(path);
        let moved = remove_logs(path).and_then(|()| std::fs::rename(path, &file));
        // From now on the connection must write nothing to the path.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        discard(connection);
        moved.map_err(|source| open_fault(path, source))?;
        Ok(Leaving {
            path: path.to_path_buf(),
            file,
            is_gone: false,
        })
    }

    /// The same where another process has the database open, to read its log: a connection that keeps the
    /// database from being written, while all of the log is in the database.
    fn checkpointed(&self, path: &Path, deadline: Instant) -> Result<rusqlite::Connection, Error> {
        let target = path.display().to_string();
        loop {
            let connection = self.lock_out(path, deadline)?;
            let connection = connection.map_err(|error| open_error(&target, error))?;
            let attempt = || {
                connection.execute_batch("ROLLBACK")?;
                let version = data_version(&connection)?;
                let copied = copy_log(&connection, "FULL")?;
                connection.execute_batch("BEGIN IMMEDIATE")?;
                Ok(copied && data_version(&connection)? == version)
            };
            match attempt() {
                Ok(true) => return Ok(connection),
                Err(error) if !is_busy(&error) => {
                    discard(connection);
                    return Err(open_error(&target, error));
                }
                _ if Instant::now() >= deadline => return Err(not_copied(connection, path)),
                // The other process has not read all of the log yet, or another connection has written.
                _ => discard(connection),
            }
            pause();
        }
    }
}

/// Copies the log into the database. Returns whether that was all of it.
fn copy_log(connection: &rusqlite::Connection, mode: &str) -> rusqlite::Result<bool> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let (busy, log, copied): (i64, i64, i64) =
        connection.query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(busy == 0 && log == copied)
}

/// It changes when another connection commits.
fn data_version(connection: &rusqlite::Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "data_version", |row| row.get(0))
}

fn not_copied(connection: rusqlite::Connection, path: &Path) -> Error {
    discard(connection);
    let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
    let what = "another process reads from the write-ahead log".to_owned();
    let busy = rusqlite::Error::SqliteFailure(busy, Some(what));
    open_error(&path.display().to_string(), busy)
}
