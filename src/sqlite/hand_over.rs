//! Hand-over: an agent's database is taken from its path, whole and closed, until another node has a copy.
//! The caller has the agent's lock, and no connection of the pool to the database is open.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rusqlite::config::DbConfig;

use super::agents::{
    make_private_file, no_descriptors, open_fault, remove_files, remove_logs, sync_closed,
};
use super::backup::Backup;
use super::budget::{SPARE, Sharing};
use super::connection::data_version;
use super::hosting::{Owner, RESTORE, arrive, leaving};
use super::identity::{Claim, beside};
use super::open::discard;
use super::open_files::{NoRoom, Reserved};
use super::retry::{busy, is_busy, pause};
use super::{Fault, Sqlite};
use crate::core::backend::Patience;
use crate::error::{Error, caught};

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
        remove_files(&self.file).map_err(|source| open_fault(&self.file, source))
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
        let leaving = self.take_away(&path, patience)?;
        let failed = |source| Error::HandOver {
            agent: agent.to_owned(),
            source,
        };
        let done = caught("the work given to hand_over", || work(&leaving.file));
        let value = done
            .map_err(|panic| failed(panic.into()))?
            .map_err(failed)?;
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

    /// Takes the database, whole and in one file, from its path. A crash at any point leaves a whole database
    /// at one of the two paths, with no log that belongs to another.
    fn take_away(&self, path: &Path, patience: &Patience<'_>) -> Result<Leaving, Error> {
        let failed = |source| Error::Open {
            target: path.display().to_string(),
            source,
        };
        let locked = self.lock_out(path, patience.deadline)?;
        let connection = locked.map_err(|error| failed(error.into()))?;
        let file = leaving(path);
        let moved = self
            .gather(&connection, path, patience)
            .and_then(|()| Ok(remove_logs(path)?))
            .and_then(|()| Ok(std::fs::rename(path, &file)?));
        // From now on the connection must write nothing to the path.
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
        discard(connection);
        moved.map_err(failed)?;
        Ok(Leaving {
            path: path.to_path_buf(),
            file,
            is_gone: false,
        })
    }

    /// Sees to it that all of the database is in the file at its path, and nothing in the log. The connection
    /// locks out other writers.
    fn gather(
        &self,
        connection: &rusqlite::Connection,
        path: &Path,
        patience: &Patience<'_>,
    ) -> Result<(), Fault> {
        if !self.settings.is_external() {
            // In exclusive locking mode, the lock on the file outlasts the transaction.
            connection.execute_batch("COMMIT")?;
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let busy: bool = connection.query_row(sql, [], |row| row.get(0))?;
            return match busy {
                true => Err(busy_log()),
                false => Ok(()),
            };
        }
        // The process that runs the checkpoints holds on to the log, as Litestream does all the time, so the log
        // cannot be copied into this file. A copy of the database takes the file's place; it has all that the
        // log says, so the log changes nothing if the process dies here.
        let whole = beside(path, RESTORE);
        let _room = self.room_for_copy(path, patience)?;
        loop {
            let copied = self
                .copy_unless_written(connection, &whole)
                .and_then(|whole_yet| match whole_yet {
                    true => Ok(std::fs::rename(&whole, path)?),
                    false => Err(busy_log()),
                });
            match copied {
                Err(error)
                    if error.downcast_ref().is_some_and(is_busy)
                        && Instant::now() < patience.deadline =>
                {
                    pause();
                }
                Err(error) => {
                    let _ = remove_files(&whole);
                    return Err(error);
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Copies the database to `to`, and locks out other writers. SQLite copies none that it has locked: so this
    /// returns whether no other connection has written meanwhile.
    fn copy_unless_written(
        &self,
        connection: &rusqlite::Connection,
        to: &Path,
    ) -> Result<bool, Fault> {
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK")?;
        }
        let version = data_version(connection)?;
        remove_files(to)?;
        make_private_file(to)?;
        self.copied(connection, to, &mut Backup::new())?;
        sync_closed(to)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        Ok(data_version(connection)? == version)
    }

    /// Waits for room for the descriptor of the copy. A connection that syncs may open the folder for an instant;
    /// this one only reads meanwhile, so that descriptor is the copy's.
    fn room_for_copy(
        &self,
        path: &Path,
        patience: &Patience<'_>,
    ) -> Result<Option<Reserved<'_, PathBuf, Claim>>, Error> {
        if self.sharing == Sharing::FileEach {
            return Ok(None);
        }
        let room = self.agents()?.open.reserve(SPARE, patience);
        room.map(Some).map_err(|NoRoom| no_descriptors(path))
    }
}

fn busy_log() -> Fault {
    busy(Some("another process uses the database")).into()
}
