//! The life of an agent's file: which agents have one, and its removal.
//! The caller has made sure that no other thread uses the file, where that matters.

use std::fs::ReadDir;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;

use super::agents::{Agents, open_fault, remove_file, remove_files};
use super::connect::connect;
use super::hosting::{is_there, leaving};
use super::identity::SHORTEST;
use super::open::{discard, open_error};
use super::opener::Opener;
use super::retry::{is_busy, pause};
use super::{Source, Sqlite, id};
use crate::core::backend::{Backend, Patience};
use crate::error::Error;

/// The ids of agents that have a file, read from the folder one by one:
/// [`Pool::agents`](crate::Pool::agents).
#[derive(Debug)]
pub struct AgentIds {
    folder: std::path::PathBuf,
    entries: ReadDir,
}

impl Iterator for AgentIds {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.entries.next()? {
                Ok(entry) => {
                    if let Some(agent) = entry.file_name().to_str().and_then(id::decode) {
                        return Some(Ok(agent));
                    }
                }
                Err(source) => return Some(Err(open_fault(&self.folder, source))),
            }
        }
    }
}

impl Sqlite {
    pub(crate) fn agent_ids(&self) -> Result<AgentIds, Error> {
        let folder = self.agents()?.folder().ok_or_else(no_files_of_their_own)?;
        let entries = std::fs::read_dir(folder).map_err(|source| open_fault(folder, source))?;
        Ok(AgentIds {
            folder: folder.to_path_buf(),
            entries,
        })
    }

    pub(crate) fn has_file(&self, agent: &str) -> Result<bool, Error> {
        let path = self.agents()?.path(agent)?;
        Ok(is_there(&path)? || leaving(&path).exists())
    }

    /// Refuses an agent that this process does not serve, or that has no file.
    ///
    /// # Errors
    /// [`Error::NotHere`], [`Error::NoDatabase`].
    #[cfg(any(feature = "axum", feature = "actix"))]
    pub(crate) fn check_existing(&self, agent: &str) -> Result<(), Error> {
        let agents = self.agents()?;
        agents.hosting.admit(agent)?;
        match self.has_file(agent)? {
            true => Ok(()),
            false => Err(super::hosting::no_database(agent, &agents.path(agent)?)),
        }
    }

    /// Removes the agent's file. Returns whether there was one. If another process uses the file, this waits
    /// until the deadline of `patience`.
    pub(crate) fn remove_file(&self, agent: &str, patience: &Patience<'_>) -> Result<bool, Error> {
        let agents = self.agents()?;
        let path = agents.path(agent)?;
        let deadline = patience.deadline;
        let _opened = agents.opened(&path, patience)?;
        let _lock = self.agents_set_up_lock(agents, &path, patience, deadline)?;
        let left = leaving(&path);
        let was_left = left.exists();
        remove_file(&left).map_err(|source| open_fault(&left, source))?;
        let removed = self.remove_exclusively(&path, deadline)?;
        agents.forget(&path);
        Ok(removed || was_left)
    }

    /// Removes a database that no other process has open.
    pub(super) fn remove_exclusively(&self, path: &Path, deadline: Instant) -> Result<bool, Error> {
        let length = match std::fs::metadata(path) {
            Ok(file) => Some(file.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(open_fault(path, source)),
        };
        // A file too short for a database holds no data yet, so it need not be locked. A file that is no
        // database cannot be.
        let alone = match length.is_some_and(|length| length >= SHORTEST) {
            true => self.lock_out(path, deadline)?.ok(),
            false => None,
        };
        let removed = remove_files(path).map_err(|source| open_fault(path, source));
        if let Some(connection) = alone {
            // From now on the connection must write nothing to the path.
            let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
            discard(connection);
        }
        removed?;
        Ok(length.is_some())
    }

    /// A connection that has the database exclusively: no other process has it open. Where another process
    /// runs the checkpoints, that one may have it open; then the connection keeps it from being written. The
    /// inner error is SQLite's, if the file cannot be read as a database.
    pub(super) fn lock_out(
        &self,
        path: &Path,
        deadline: Instant,
    ) -> Result<rusqlite::Result<rusqlite::Connection>, Error> {
        let target = path.display().to_string();
        let sql = match self.settings.is_external() {
            true => "BEGIN IMMEDIATE",
            false => "PRAGMA locking_mode=EXCLUSIVE; BEGIN EXCLUSIVE",
        };
        loop {
            let connection = connect(&Opener::existing(path), &self.settings, &target)?;
            let locked = connection
                .busy_timeout(Duration::ZERO)
                .and_then(|()| connection.execute_batch(sql));
            match locked {
                Ok(()) => return Ok(Ok(connection)),
                Err(error) if is_busy(&error) => {
                    discard(connection);
                    if Instant::now() >= deadline {
                        return Err(open_error(&target, error));
                    }
                    pause();
                }
                Err(error) => {
                    discard(connection);
                    return Ok(Err(error));
                }
            }
        }
    }

    /// # Errors
    /// [`Error::Unsupported`] if each agent has its own file: `reason` says what to call instead.
    pub(crate) fn check_shared(
        &self,
        operation: &'static str,
        reason: &'static str,
    ) -> Result<(), Error> {
        match self.is_per_agent() {
            true => Err(Error::Unsupported { operation, reason }),
            false => Ok(()),
        }
    }

    /// # Errors
    /// [`Error::Unsupported`] if agents have no files of their own.
    pub(crate) fn check_per_agent(&self) -> Result<(), Error> {
        self.agents().map(|_| ())
    }

    pub(super) fn agents(&self) -> Result<&Agents, Error> {
        match &self.source {
            Source::Agents(agents) => Ok(agents),
            _ => Err(no_files_of_their_own()),
        }
    }
}

fn no_files_of_their_own() -> Error {
    Error::Unsupported {
        operation: "an operation on agents' files",
        reason: "agents have no files of their own; it needs Database::per_agent",
    }
}
