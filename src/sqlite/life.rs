//! The life of an agent's file: which agents have one, a copy of it, and its end.
//! Whoever calls has seen to it that nobody else uses the file, where that matters.

use std::fs::ReadDir;
use std::io;
use std::path::Path;

use rusqlite::backup::{Backup, StepResult};

use super::agents::{Agents, make_private_file, open_fault, remove_files};
use super::connect::connect;
use super::open::{discard, open_error, opener};
use super::{Settings, Source, Sqlite, id};
use crate::error::Error;

/// The ids of agents that have a file, read from the folder one by one: [`Pool::agents`](crate::Pool::agents).
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
        let folder = self.agents()?.folder().ok_or_else(not_a_folder)?;
        let entries = std::fs::read_dir(folder).map_err(|source| open_fault(folder, source))?;
        Ok(AgentIds {
            folder: folder.to_path_buf(),
            entries,
        })
    }

    pub(crate) fn has_file(&self, agent: &str) -> Result<bool, Error> {
        Ok(self.agents()?.path(agent)?.exists())
    }

    /// Removes the agent's file. Returns whether there was one.
    pub(crate) fn remove_file(&self, agent: &str) -> Result<bool, Error> {
        let agents = self.agents()?;
        let path = agents.path(agent)?;
        let there = path.exists();
        remove_files(&path).map_err(|source| open_fault(&path, source))?;
        agents.forget(&path);
        Ok(there)
    }

    /// Copies the agent's database, as the last commit left it, to a file that is not there yet. Opens two
    /// connections.
    pub(crate) fn backup(&self, agent: &str, to: &Path) -> Result<(), Error> {
        let agents = self.agents()?;
        let path = agents.path(agent)?;
        if !path.exists() {
            let source = io::Error::from(io::ErrorKind::NotFound);
            return Err(open_fault(&path, source));
        }
        // SQLite takes a relative path for more than a path: a URI, or a database in memory.
        let to = &std::path::absolute(to).map_err(|source| open_fault(to, source))?;
        // Fails if there is a file, which may be anybody's.
        make_private_file(to).map_err(|source| open_fault(to, source))?;
        agents.opening(&path)?;
        let copied = copy(&path, to, &self.settings);
        agents.closed(&path);
        if copied.is_err() {
            let _ = remove_files(to);
        }
        copied
    }

    fn agents(&self) -> Result<&Agents, Error> {
        match &self.source {
            Source::Agents(agents) => Ok(agents),
            _ => Err(not_a_folder()),
        }
    }
}

fn not_a_folder() -> Error {
    Error::Config {
        option: "database",
        value: "one that has no folder of agents' files".to_owned(),
        expected: "Database::per_agent".to_owned(),
    }
}

fn copy(from: &Path, to: &Path, settings: &Settings) -> Result<(), Error> {
    let source = connect(&opener(from), settings, &from.display().to_string())?;
    let name = to.display().to_string();
    let mut target = match connect(&opener(to), settings, &name) {
        Ok(target) => target,
        Err(error) => {
            discard(source);
            return Err(error);
        }
    };
    let copied = (|| {
        source.busy_timeout(settings.busy_timeout)?;
        {
            // No journal: the copy is whole, or it is removed.
            target.pragma_update(None, "journal_mode", "OFF")?;
            let backup = Backup::new(&source, &mut target)?;
            // All at once: one read transaction, which a writer does not make begin again. In WAL mode it
            // keeps nobody from writing.
            match backup.step(-1)? {
                StepResult::Done => {}
                _ => {
                    return Err(rusqlite::Error::SqliteFailure(
                        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
                        None,
                    ));
                }
            }
        }
        target.close().map_err(|(_, error)| error)
    })();
    discard(source);
    copied.map_err(|error| open_error(&name, error))
}
