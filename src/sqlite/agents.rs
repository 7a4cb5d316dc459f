//! Agents' own files: where each is, which are open, and what must be checked before one is opened.
//! It never opens a file: its callers do, through SQLite.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use parking_lot::Mutex;

use super::budget::{Sharing, for_files, per_connection};
use super::database::Place;
use super::hosting::Hosting;
use super::id;
use super::identity::{BesidePaths, Claim, Identity, LOOK_EVERY, SHORTEST, beside, resolve};
use super::open_files::{NoRoom, OpenFiles};
use super::set_up_files::{SetUpFile, SetUpFiles};
use crate::core::backend::Patience;
use crate::error::{Error, FileState, caught};

pub(crate) struct Agents {
    place: Place,
    pub(super) hosting: Hosting,
    known: SetUpFiles,
    /// The open files, each with the pool's claim on it.
    pub(super) open: OpenFiles<PathBuf, Claim>,
    /// The pool's claim on the folder.
    claim: Mutex<Claim>,
}

/// The file of one connection: its identity when it was opened, and when the pool last looked at it.
pub(super) struct AgentFile {
    pub(super) path: PathBuf,
    /// The key of the database, as the core knows it.
    pub(super) key: Box<str>,
    identity: Identity,
    /// Its log, which stays where it is while the connection is open.
    log: Option<Identity>,
    beside: BesidePaths,
    looked_at: Instant,
    /// The result of the last look.
    lost: bool,
    lost_log: bool,
}

/// What to do to open a file.
pub(super) struct OpenPlan {
    pub(super) identity: Identity,
    /// It must be set up, as far as this process knows.
    pub(super) set_up: bool,
    /// This call has just made it.
    pub(super) made: bool,
    /// It is empty: no process has written to it.
    pub(super) is_empty: bool,
    /// Another process has written to it since.
    pub(super) others: Cell<bool>,
}

impl Agents {
    /// Creates the folder if it does not exist, readable by the user only, and claims it for a pool of
    /// `max_connections` connections.
    pub(super) fn new(
        place: Place,
        hosting: Hosting,
        sharing: Sharing,
        max_connections: usize,
    ) -> Result<Self, Error> {
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
            hosting,
            known: SetUpFiles::new(),
            open: OpenFiles::new(per_connection(sharing), for_files(sharing, max_connections)),
            claim: Mutex::new(claim),
        })
    }

    pub(super) fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Function(_) => None,
        }
    }

    /// The agent's file: an absolute path, and without links if it comes from a function.
    pub(super) fn path(&self, agent: &str) -> Result<PathBuf, Error> {
        match &self.place {
            Place::Folder(folder) => Ok(folder.join(id::encode(agent)?)),
            Place::Function(place) => {
                let path = caught("the function given to per_agent_with", || place(agent))?;
                if path.to_str().is_none() || path.as_os_str().as_encoded_bytes().contains(&0) {
                    return Err(Error::InvalidAgent {
                        reason: "its path is not UTF-8, or contains NUL",
                    });
                }
                resolve(&path).map_err(|source| open_fault(&path, source))
            }
        }
    }

    /// What to do to open the file at `path`. If the file never existed, it is made if `make` says so;
    /// otherwise this is `None`.
    pub(super) fn plan(&self, path: &Path, make: bool) -> Result<Option<OpenPlan>, Error> {
        let known = self.known.at(path);
        let mut made = false;
        let (identity, length) = loop {
            match Identity::at(path) {
                Ok(found) => break found,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(open_fault(path, source)),
            }
            if known.is_some() {
                return Err(lost(path, FileState::Deleted));
            }
            if !make {
                return Ok(None);
            }
            match make_private_file(path) {
                Ok(()) => made = true,
                // Another process made it first.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(open_fault(path, source)),
            }
        };
        match known {
            Some(known) if known.file == identity && length < SHORTEST => {
                return Err(lost(path, FileState::Truncated));
            }
            // SQLite would replay this log into the file that replaced its own.
            Some(known)
                if known.file != identity
                    && known.log.is_some()
                    && BesidePaths::of(path).log_now() == known.log =>
            {
                return Err(lost(path, FileState::LogLeft));
            }
            _ => {}
        }
        Ok(Some(OpenPlan {
            identity,
            set_up: known.is_none_or(|known| known.file != identity || known.lost_log),
            made,
            is_empty: length == 0,
            others: Cell::new(false),
        }))
    }

    /// Claims the file of the plan, under all its names.
    pub(super) fn claim_identity(&self, path: &Path, plan: &OpenPlan) -> Result<(), Error> {
        match self.open.lock().get_mut(path) {
            Some(claim) => claim.extend(path, plan.identity),
            None => Ok(()),
        }
    }

    /// Whether the file at the path is still the one of the plan.
    pub(super) fn is_still(&self, path: &Path, plan: &OpenPlan) -> bool {
        Identity::at(path).is_ok_and(|(identity, _)| identity == plan.identity)
    }

    /// Notes that the file is open and set up.
    pub(super) fn remember(&self, path: &Path, known: SetUpFile) {
        self.known.remember(path, known);
    }

    pub(super) fn is_set_up(&self, path: &Path) -> bool {
        self.known.at(path).is_some()
    }

    pub(super) fn forget(&self, path: &Path) {
        self.known.forget(path);
    }

    /// Notes that a connection to the file is about to be opened, in this pool and no other. Waits for room
    /// as `patience` says.
    pub(super) fn opening(&self, path: &Path, patience: &Patience<'_>) -> Result<(), Error> {
        let claim = || Ok(Claim::new(path)?);
        let opening = self.open.opening(path.to_path_buf(), patience, claim);
        opening.map_err(|refused| match refused {
            Refused::NoRoom => no_descriptors(path),
            Refused::Claimed(error) => error,
        })
    }

    /// The same for a connection that is closed before the guard is dropped.
    pub(super) fn opened<'a>(
        &'a self,
        path: &'a Path,
        patience: &Patience<'_>,
    ) -> Result<Opened<'a>, Error> {
        self.opening(path, patience)?;
        Ok(Opened(self, path))
    }

    /// Whether a connection to the file with this key is open, or is being closed.
    pub(super) fn is_open(&self, key: &str) -> bool {
        self.path_of(key)
            .is_some_and(|path| self.open.is_open(&path))
    }

    fn path_of(&self, key: &str) -> Option<PathBuf> {
        match &self.place {
            Place::Folder(folder) => Some(folder.join(id::encode(key).ok()?)),
            Place::Function(_) => Some(PathBuf::from(key)),
        }
    }

    /// Waits until no connection to the file with this key is open, but no longer than until `deadline`.
    /// Returns whether that is so.
    pub(super) fn wait_until_key_closed(&self, key: &str, deadline: Instant) -> bool {
        self.path_of(key)
            .is_none_or(|path| self.open.wait_until_closed(&path, deadline))
    }

    /// Whether the folder exists.
    pub(super) fn check(&self) -> Result<(), Error> {
        match &self.place {
            Place::Folder(folder) => match std::fs::metadata(folder) {
                Ok(_) => Ok(()),
                Err(source) => Err(open_fault(folder, source)),
            },
            Place::Function(_) => Ok(()),
        }
    }

    /// The pool is closed to new leases.
    pub(super) fn leave_claim(&self) {
        self.claim.lock().leave();
    }

    pub(super) fn give_up_claim(&self) {
        self.claim.lock().give_up();
    }
}

/// Counts a connection that serves no agent, until it is dropped.
pub(super) struct Opened<'a>(&'a Agents, &'a Path);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.open.closed(self.1);
    }
}

/// Why a file cannot be opened now.
enum Refused {
    NoRoom,
    Claimed(Error),
}

impl From<NoRoom> for Refused {
    fn from(_: NoRoom) -> Self {
        Refused::NoRoom
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Refused::Claimed(error)
    }
}

pub(super) fn no_descriptors(path: &Path) -> Error {
    Error::NoDescriptors {
        target: path.display().to_string(),
    }
}

impl AgentFile {
    /// For a connection that is open.
    pub(super) fn new(path: PathBuf, key: Box<str>, identity: Identity, now: Instant) -> Self {
        let beside = BesidePaths::of(&path);
        AgentFile {
            log: beside.log_now(),
            beside,
            path,
            key,
            identity,
            looked_at: now,
            lost: false,
            lost_log: false,
        }
    }

    /// What to remember of it.
    pub(super) fn known(&self) -> SetUpFile {
        SetUpFile {
            file: self.identity,
            log: self.log,
            lost_log: self.lost_log,
        }
    }

    /// Checks that the file and its log are still the same, if the last look is too old.
    pub(super) fn look(&mut self, now: Instant) {
        if !self.lost && now.saturating_duration_since(self.looked_at) >= LOOK_EVERY {
            self.looked_at = now;
            self.lost = match Identity::at(&self.path) {
                Ok((identity, length)) => {
                    let is_it = identity == self.identity && length >= SHORTEST;
                    self.lost_log = is_it && self.beside.log_now() != self.log;
                    !is_it || self.lost_log
                }
                Err(error) => error.kind() == io::ErrorKind::NotFound,
            };
        }
    }

    /// What to remember of it, if that has changed since it was opened.
    pub(super) fn news(&self) -> Option<SetUpFile> {
        self.lost_log.then(|| self.known())
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }
}

/// The length of the log of the file at `path`.
pub(super) fn wal_length(path: &Path) -> u64 {
    std::fs::metadata(beside(path, "-wal")).map_or(0, |file| file.len())
}

/// Removes a database and the files beside it. The files that would change it go first: a crash in between
/// leaves an older database, and not a log that SQLite would replay into another one.
pub(super) fn remove_files(path: &Path) -> io::Result<()> {
    remove_logs(path)?;
    remove_file(path)
}

/// Removes the files that SQLite keeps beside a database.
pub(super) fn remove_logs(path: &Path) -> io::Result<()> {
    for suffix in ["-wal", "-journal", "-shm"] {
        remove_file(&beside(path, suffix))?;
    }
    Ok(())
}

/// Waits until a file that no connection has open is on the disk. (Closing a descriptor drops all of SQLite's locks on a
/// file.)
pub(super) fn sync_closed(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}

/// Renames a file within its folder, and waits until that is on the disk.
pub(super) fn rename_synced(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    #[cfg(unix)]
    if let Some(folder) = to.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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

/// Makes an empty file that only the user may read. `mknod` makes it without opening it: so there is no
/// descriptor whose closing would drop a lock of SQLite. SQLite gives `-wal` and `-shm` the same mode.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) fn make_private_file(path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(mknodat(CWD, path, FileType::RegularFile, mode, 0)?)
}

/// On other systems a file cannot be made without opening it; but a new file has no locks to drop.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) fn make_private_file(path: &Path) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map(drop)
}
