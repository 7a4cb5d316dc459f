//! Which database: its path, its identity, and whether it is still the file it was.
//! It never opens the file: closing any descriptor to it would drop the locks that SQLite holds.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::agents::Place;
use super::budget::Sharing;
use super::connection::Synchronous;
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

/// How old the last look at the file may be when a connection is lent. A look costs a microsecond,
/// several times what a lease does.
pub(super) const LOOK_EVERY: Duration = Duration::from_micros(100);

/// A database has at least one page, and no page is shorter.
pub(super) const SHORTEST: u64 = 512;

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

/// Which file it is, whatever it is called. It cannot be given to another file while a connection to
/// this one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// When it was made, in nanoseconds, where the file system tells: numbers are given again.
    born: u64,
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

impl Identity {
    /// The file at `path`, and its length.
    #[cfg(unix)]
    pub(super) fn at(path: &Path) -> io::Result<(Identity, u64)> {
        use std::os::unix::fs::MetadataExt;
        let metadata = std::fs::metadata(path)?;
        let identity = Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
            born: born(&metadata),
        };
        Ok((identity, metadata.len()))
    }

    /// Elsewhere an open database cannot be replaced, and hard links are not told apart.
    #[cfg(not(unix))]
    pub(super) fn at(path: &Path) -> io::Result<(Identity, u64)> {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let length = std::fs::metadata(path)?.len();
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(path);
        Ok((
            Identity {
                device: u64::MAX,
                inode: hash,
                born: 0,
            },
            length,
        ))
    }
}

#[cfg(unix)]
fn born(metadata: &std::fs::Metadata) -> u64 {
    let since = metadata.created().ok().and_then(|made| {
        made.duration_since(std::time::UNIX_EPOCH)
            .ok()
            .map(|since| since.as_nanos())
    });
    since.map_or(0, |nanos| u64::try_from(nanos).unwrap_or(0))
}

/// An absolute path without links, also of a file that does not exist yet.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        resolved => return resolved,
    }
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ));
    };
    // A link to a file that does not exist yet: what it points to is what SQLite would create.
    if let Ok(link) = path.read_link() {
        let folder = path.parent().unwrap_or(Path::new(""));
        return resolve_in_folder(&folder.join(link), name);
    }
    resolve_in_folder(path, name)
}

fn resolve_in_folder(path: &Path, name: &std::ffi::OsStr) -> io::Result<PathBuf> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let folder = folder.canonicalize().map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("folder {}: {error}", folder.display()),
        )
    })?;
    if !folder.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!("{} is not a folder", folder.display()),
        ));
    }
    Ok(folder.join(path.file_name().unwrap_or(name)))
}

/// What pools of this process have claimed: each file by its path, since it may not exist yet or
/// come back, and by its identity, since it may have other names.
static CLAIMED: LazyLock<Mutex<HashSet<Key>>> = LazyLock::new(Mutex::default);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Path(PathBuf),
    Identity(Identity),
}

/// A pool's claim on a file. Dropping it gives the file up.
#[derive(Default)]
pub(super) struct Claim {
    keys: Vec<Key>,
}

impl Claim {
    pub(super) fn new(path: &Path) -> Result<Claim, Error> {
        let mut claim = Claim::default();
        claim.add(path, Key::Path(path.to_path_buf()))?;
        if let Ok((identity, _)) = Identity::at(path) {
            claim.add(path, Key::Identity(identity))?;
        }
        Ok(claim)
    }

    /// Claims the identity of the file that is at the path now, instead of the one claimed before.
    fn extend(&mut self, path: &Path, identity: Identity) -> Result<(), Error> {
        let new = Key::Identity(identity);
        if self.keys.contains(&new) {
            return Ok(());
        }
        self.forget_identity();
        self.add(path, new)
    }

    fn forget_identity(&mut self) {
        let mut claimed = CLAIMED.lock();
        self.keys.retain(|key| {
            let keep = matches!(key, Key::Path(_));
            if !keep {
                claimed.remove(key);
            }
            keep
        });
    }

    fn add(&mut self, path: &Path, key: Key) -> Result<(), Error> {
        if !CLAIMED.lock().insert(key.clone()) {
            return Err(Error::AlreadyPooled {
                path: path.to_path_buf(),
            });
        }
        self.keys.push(key);
        Ok(())
    }

    pub(super) fn give_up(&mut self) {
        let mut claimed = CLAIMED.lock();
        for key in self.keys.drain(..) {
            claimed.remove(&key);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_up();
    }
}
