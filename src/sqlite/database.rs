//! Which database: its path, its identity, and whether it is still the file it was.
//! It never opens the file: closing any descriptor to it would drop the locks that SQLite holds.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

use super::budget::Sharing;
use super::identity::{Claim, Identity, LOOK_EVERY, SHORTEST, resolve};
use super::wal::Wal;
use crate::error::{Error, FileState};

/// What a pool lends connections to.
#[derive(Debug, Clone)]
pub struct Database(pub(crate) Kind);

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// One file for all agents.
    File(PathBuf),
    /// A file for each agent.
    Agents(Place),
    /// One database in memory for all agents.
    Memory,
}

/// Which file is an agent's.
#[derive(Clone)]
pub(crate) enum Place {
    /// In this folder, under a name made of the agent's id.
    Folder(PathBuf),
    /// Where the function says.
    Function(Arc<dyn Fn(&str) -> PathBuf + Send + Sync>),
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Folder(folder) => f.debug_tuple("Folder").field(folder).finish(),
            Place::Function(_) => f.write_str("Function"),
        }
    }
}

/// When SQLite waits for the disk: `PRAGMA synchronous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Synchronous {
    /// Never. A crash of the machine can corrupt the database.
    Off,
    /// At checkpoints. In WAL mode the database survives a crash of the machine, but the last commits
    /// may be lost in it. A crash of the process loses nothing.
    Normal,
    /// At every commit. What is committed stays committed.
    #[default]
    Full,
    /// As `Full`, and in rollback-journal mode the folder as well.
    Extra,
}

impl Database {
    /// One file that all agents share, in WAL mode. It is created if it does not exist; its folder is
    /// not.
    ///
    /// One process may have one pool on a file at a time, whatever the file is called: symbolic and
    /// hard links and relative paths all count as the same. A second `build` fails with
    /// [`Error::AlreadyPooled`]; clone the first pool instead.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Database(Kind::File(path.as_ref().to_path_buf()))
    }

    /// A file for each agent, in `folder`: any number of agents, and never more than `max_connections` files
    /// open. A file is created when its agent is first lent a connection (readable by nobody but the user),
    /// and so is the folder when the pool is built.
    ///
    /// The file of agent `session-1` is `session-1.db`. Small letters, digits, `-` and `_` of an id stand
    /// for themselves; every other byte of it in UTF-8, capitals among them, is written as `%` and two small
    /// hexadecimal digits. So no id leads out of the folder, no two ids have one file, also on file systems
    /// that do not tell capitals, and each id can be read back. Ids whose name would be longer than 255
    /// bytes with what SQLite adds to it, and the names of devices (`con`, `nul`, ...), are refused
    /// with [`Error::InvalidAgent`].
    ///
    /// A connection serves its agent only, and an agent has one at a time: a second borrower of the same agent
    /// waits until the first returns it, and takes no other agent's place meanwhile.
    ///
    /// One process may have one pool on a folder at a time.
    pub fn per_agent(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref().to_path_buf();
        Database(Kind::Agents(Place::Folder(folder)))
    }

    /// Like [`Database::per_agent`], with files where `place` says. It is called with the agent's id, on
    /// the borrower's thread, whenever a file may have to be opened; it must always say the same for the same
    /// id, and be quick. Folders are not created. Agents with the same path share one file, and wait for each
    /// other. An id may contain anything: do not make a path of it without looking.
    pub fn per_agent_with<F>(place: F) -> Self
    where
        F: Fn(&str) -> PathBuf + Send + Sync + 'static,
    {
        Database(Kind::Agents(Place::Function(Arc::new(place))))
    }

    /// A database in memory that all agents of this pool share, and that ends with the pool. It costs
    /// no descriptors. It has no WAL: a writer waits for readers, and readers for a writer, for at
    /// most `busy_timeout`.
    pub fn memory() -> Self {
        Database(Kind::Memory)
    }
}

impl Kind {
    /// What connections to it share.
    pub(crate) fn sharing(&self, synchronous: Synchronous) -> Sharing {
        match (self, synchronous) {
            (Kind::File(_), _) => Sharing::OneFile,
            (Kind::Memory, _) => Sharing::NoFile,
            (Kind::Agents(_), Synchronous::Off | Synchronous::Normal) => Sharing::FileEach,
            (Kind::Agents(_), Synchronous::Full | Synchronous::Extra) => Sharing::SyncedFileEach,
        }
    }

    /// A short name for it.
    pub(crate) fn name(&self) -> String {
        match self {
            Kind::File(path) | Kind::Agents(Place::Folder(path)) => match path.file_name() {
                Some(name) => name.to_string_lossy().into_owned(),
                None => "file".to_owned(),
            },
            Kind::Agents(Place::Function(_)) => "agents".to_owned(),
            Kind::Memory => "memory".to_owned(),
        }
    }
}

/// What a database in memory is called in messages.
pub(super) const IN_MEMORY: &str = "a database in memory";

/// A name that no other database in memory of this process has. The memdb VFS shares a database
/// among the connections that open the same name, if it starts with a slash.
pub(crate) fn memory_name() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    format!("file:/leasepool-{}?vfs=memdb", MADE.fetch_add(1, Relaxed))
}

/// The database file of a pool, claimed for it within this process.
pub(crate) struct File {
    /// Absolute, without symbolic links.
    pub(crate) path: PathBuf,
    /// The generation that has been set up. Locked while a file is being set up: nobody may open a
    /// connection before that is done.
    pub(crate) set_up: Mutex<u64>,
    pub(super) wal: Wal,
    claim: Mutex<Claim>,
    born: Instant,
    /// When the file was last looked at, in nanoseconds since `born`.
    looked_at: AtomicU64,
    seen: Mutex<Seen>,
    /// Copy of `seen.generation.number`, to be read without the lock.
    number: AtomicU64,
}

/// What the last look at the path saw.
struct Seen {
    identity: Option<Identity>,
    generation: Generation,
}

/// Counts the files that were seen at the path, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    /// There is no database at the path now.
    pub(crate) lost: Option<FileState>,
}

impl File {
    /// Claims the file at `path`, which need not exist.
    pub(crate) fn claim(path: &Path, wal: Wal) -> Result<File, Error> {
        let path = resolve(path).map_err(|source| Error::Open {
            target: path.display().to_string(),
            source: Box::new(source),
        })?;
        let claim = Claim::new(&path)?;
        Ok(File {
            set_up: Mutex::new(0),
            wal,
            claim: Mutex::new(claim),
            born: Instant::now(),
            looked_at: AtomicU64::new(0),
            seen: Mutex::new(Seen {
                identity: None,
                generation: Generation {
                    number: 0,
                    lost: None,
                },
            }),
            number: AtomicU64::new(0),
            path,
        })
    }

    /// Whether SQLite can find a file at the path, or make one: with the operating system's own
    /// words, where SQLite has one code for everything.
    pub(crate) fn check_path(&self) -> Result<(), Error> {
        let fault = match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => io::Error::new(
                io::ErrorKind::IsADirectory,
                "the path is a folder, not a file",
            ),
            Ok(metadata) if !metadata.is_file() => {
                io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => error,
            _ => return Ok(()),
        };
        Err(Error::Open {
            target: self.target(),
            source: Box::new(fault),
        })
    }

    pub(crate) fn target(&self) -> String {
        self.path.display().to_string()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.number.load(Relaxed)
    }

    pub(crate) fn mark_set_up(&self, generation: u64) {
        *self.set_up.lock() = generation;
    }

    /// Looks at the file if the last look is too old.
    pub(crate) fn refresh(&self, now: Instant) {
        let now = now.saturating_duration_since(self.born);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = self.looked_at.load(Relaxed);
        if now.saturating_sub(before) < LOOK_EVERY.as_nanos() as u64 {
            return;
        }
        // One caller is enough; the others rely on a look that is about to be made.
        if self
            .looked_at
            .compare_exchange(before, now, Relaxed, Relaxed)
            .is_ok()
        {
            self.look();
        }
    }

    /// Looks at the file now.
    pub(crate) fn look(&self) -> Generation {
        let mut seen = self.seen.lock();
        let set_up_yet = seen.generation.number > 0;
        let (identity, lost) = match Identity::at(&self.path) {
            // An empty file that this pool has just created is not a truncated one.
            Ok((_, length)) if length < SHORTEST && set_up_yet => {
                (seen.identity, Some(FileState::Truncated))
            }
            Ok((identity, _)) => (Some(identity), None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                (seen.identity, Some(FileState::Deleted))
            }
            // A fault of the path (permissions, an I/O error) does not make it another file.
            Err(_) => (seen.identity, seen.generation.lost),
        };
        let lost = lost.filter(|_| set_up_yet);
        if identity != seen.identity || lost != seen.generation.lost || !set_up_yet {
            seen.identity = identity;
            seen.generation = Generation {
                number: seen.generation.number + 1,
                lost,
            };
            self.number.store(seen.generation.number, Relaxed);
            if lost == Some(FileState::Deleted) {
                // The file system may give the number to another file, as soon as nobody has this
                // one open; then it is no business of ours.
                self.claim.lock().forget_identity();
            }
        }
        seen.generation
    }

    /// Claims the file that is at the path now, under all its names.
    pub(crate) fn claim_identity(&self) -> Result<(), Error> {
        match Identity::at(&self.path) {
            Ok((identity, _)) => self.claim.lock().extend(&self.path, identity),
            Err(_) => Ok(()),
        }
    }

    pub(crate) fn give_up_claim(&self) {
        self.claim.lock().give_up();
    }
}
