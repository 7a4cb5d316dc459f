//! Agents' own files: where each is, which are open, and what must be so before one is opened.
//! It never opens a file: SQLite does, through whoever asks here.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::database::Place;
use super::id;
use super::identity::{Claim, Identity, LOOK_EVERY, SHORTEST, resolve};
use super::known::SetUpFiles;
use crate::error::{Error, FileState};

pub(crate) struct Agents {
    place: Place,
    known: SetUpFiles,
    open: Mutex<HashMap<PathBuf, Opened>>,
    /// Told when a file has been closed.
    released: Condvar,
    /// The folder, for as long as the pool has it.
    claim: Mutex<Claim>,
}

/// A file that the pool has open.
struct Opened {
    connections: usize,
    _claim: Claim,
}

/// The file of one connection: what it was when it was opened, and when that was looked at last.
pub(super) struct AgentFile {
    pub(super) path: PathBuf,
    /// The key of the database, as the core knows it.
    pub(super) key: Box<str>,
    identity: Identity,
    looked_at: Instant,
    /// What the last look saw.
    lost: bool,
}

/// What is to be done to open a file.
pub(super) struct OpenPlan {
    pub(super) identity: Identity,
    /// Nobody has set it up, as far as is known.
    pub(super) set_up: bool,
    /// It was made just now, and is empty.
    pub(super) made: bool,
}

impl Agents {
    /// Creates the folder if there is none, for nobody but the user, and claims it.
    pub(super) fn new(place: Place) -> Result<Self, Error> {
        let (place, claim) = match place {
            Place::Folder(folder) => {
                let fault = |source| open_fault(&folder, source);
                create_private_folder(&folder).map_err(fault)?;
                let folder = folder.canonicalize().map_err(fault)?;
                if !folder.is_dir() {
                    return Err(fault(io::Error::from(io::ErrorKind::NotADirectory)));
                }
                let claim = Claim::new(&folder)?;
                (Place::Folder(folder), claim)
            }
            function => (function, Claim::default()),
        };
        Ok(Agents {
            place,
            known: SetUpFiles::new(),
            open: Mutex::default(),
            released: Condvar::new(),
            claim: Mutex::new(claim),
        })
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Function(_) => None,
        }
    }

    /// Absolute, and for a function's without links.
    pub(super) fn path(&self, agent: &str) -> Result<PathBuf, Error> {
        match &self.place {
            Place::Folder(folder) => Ok(folder.join(id::encode(agent)?)),
            Place::Function(place) => {
                let placed = catch_unwind(AssertUnwindSafe(|| place(agent)));
                let path = placed.map_err(|panic| {
                    Error::panicked("the function given to per_agent_with", &*panic)
                })?;
                if path.to_str().is_none() || path.as_os_str().as_encoded_bytes().contains(&0) {
                    return Err(Error::InvalidAgent {
                        reason: "its path is not UTF-8, or contains NUL",
                    });
                }
                resolve(&path).map_err(|source| open_fault(&path, source))
            }
        }
    }

    /// What is to be done to open the file at `path`, which is created if it never existed.
    pub(super) fn plan(&self, path: &Path) -> Result<OpenPlan, Error> {
        let known = self.known.at(path);
        let (identity, length) = match Identity::at(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if known.is_some() {
                    return Err(lost(path, FileState::Deleted));
                }
                make_private_file(path).map_err(|source| open_fault(path, source))?;
                let (identity, _) =
                    Identity::at(path).map_err(|source| open_fault(path, source))?;
                return Ok(OpenPlan {
                    identity,
                    set_up: true,
                    made: true,
                });
            }
            Err(source) => return Err(open_fault(path, source)),
        };
        if known == Some(identity) && length < SHORTEST {
            return Err(lost(path, FileState::Truncated));
        }
        Ok(OpenPlan {
            identity,
            set_up: known != Some(identity),
            made: false,
        })
    }

    pub(super) fn remember(&self, path: &Path, identity: Identity) {
        self.known.remember(path, identity);
    }

    pub(super) fn forget(&self, path: &Path) {
        self.known.forget(path);
    }

    /// Notes that a connection to the file is about to be opened, in this pool and no other.
    pub(super) fn opening(&self, path: &Path) -> Result<(), Error> {
        let mut open = self.open.lock();
        if let Some(opened) = open.get_mut(path) {
            opened.connections += 1;
            return Ok(());
        }
        let claim = Claim::new(path)?;
        open.insert(
            path.to_path_buf(),
            Opened {
                connections: 1,
                _claim: claim,
            },
        );
        Ok(())
    }

    /// A connection to the file was closed.
    pub(super) fn closed(&self, path: &Path) {
        let mut open = self.open.lock();
        if let Some(opened) = open.get_mut(path) {
            opened.connections -= 1;
            if opened.connections == 0 {
                open.remove(path);
                self.released.notify_all();
            }
        }
    }

    /// Whether a connection to the file of this key is open, or being closed.
    pub(super) fn is_open(&self, key: &str) -> bool {
        self.path_of(key)
            .is_some_and(|path| self.open.lock().contains_key(&path))
    }

    fn path_of(&self, key: &str) -> Option<PathBuf> {
        match &self.place {
            Place::Folder(folder) => Some(folder.join(id::encode(key).ok()?)),
            Place::Function(_) => Some(PathBuf::from(key)),
        }
    }

    /// Waits until no connection to the file of this key is open, until `deadline` at most. Returns whether none is.
    pub(super) fn wait_until_key_closed(&self, key: &str, deadline: Instant) -> bool {
        self.path_of(key)
            .is_none_or(|path| self.wait_until_closed(&path, deadline))
    }

    /// The same for the file at `path`. With two connections, SQLite would keep the descriptor of the one that is
    /// closed first until the other is closed, too.
    pub(super) fn wait_until_closed(&self, path: &Path, deadline: Instant) -> bool {
        let mut open = self.open.lock();
        while open.contains_key(path) && !self.released.wait_until(&mut open, deadline).timed_out()
        {
        }
        !open.contains_key(path)
    }

    /// Whether the folder is there.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &self.place {
            Place::Folder(folder) => match std::fs::metadata(folder) {
                Ok(_) => Ok(()),
                Err(source) => Err(open_fault(folder, source)),
            },
            Place::Function(_) => Ok(()),
        }
    }

    pub(super) fn give_up_claim(&self) {
        self.claim.lock().give_up();
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.open.lock().len()
    }

    pub(super) fn open_paths(&self) -> Vec<PathBuf> {
        self.open.lock().keys().cloned().collect()
    }
}

impl AgentFile {
    pub(super) fn new(path: PathBuf, key: Box<str>, identity: Identity, now: Instant) -> Self {
        AgentFile {
            path,
            key,
            identity,
            looked_at: now,
            lost: false,
        }
    }

    /// Looks whether the file is still the one that it was, if the last look is too old.
    pub(super) fn look(&mut self, now: Instant) {
        if !self.lost && now.saturating_duration_since(self.looked_at) >= LOOK_EVERY {
            self.looked_at = now;
            self.lost = match Identity::at(&self.path) {
                Ok((identity, length)) => identity != self.identity || length < SHORTEST,
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }
}

/// How long the log of the file at `path` is.
pub(super) fn wal_length(path: &Path) -> u64 {
    std::fs::metadata(beside(path, "-wal")).map_or(0, |file| file.len())
}

/// Removes a database, and what SQLite keeps beside it: first what would change it, so that a crash in between
/// leaves an older database, and not another one's log.
pub(super) fn remove_files(path: &Path) -> io::Result<()> {
    for suffix in ["-wal", "-journal", "-shm", ""] {
        match std::fs::remove_file(beside(path, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

pub(super) fn open_fault(path: &Path, source: io::Error) -> Error {
    Error::Open {
        target: path.display().to_string(),
        source: Box::new(source),
    }
}

fn lost(path: &Path, found: FileState) -> Error {
    Error::FileReplaced {
        path: path.to_path_buf(),
        found,
    }
}

#[cfg(unix)]
fn create_private_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
}

#[cfg(not(unix))]
fn create_private_folder(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)
}

/// Makes an empty file that nobody but the user may read. `mknod` does so without opening it: no descriptor,
/// and so no lock of SQLite's that closing one would drop. SQLite gives `-wal` and `-shm` the same mode.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn make_private_file(path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(mknodat(CWD, path, FileType::RegularFile, mode, 0)?)
}

/// Elsewhere a file cannot be made without opening it; but one that did not exist has no locks to drop.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn make_private_file(path: &Path) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
