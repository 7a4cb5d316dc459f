//! Identity: which file a path leads to, whatever its name; and which files pools of this process have claimed.
//! It never opens a file: closing any descriptor to a database would drop the locks that SQLite holds.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::Error;

/// How old the last look at the file may be when a connection is lent. A look costs a microsecond, several
/// times as much as a lease.
pub(super) const LOOK_EVERY: Duration = Duration::from_micros(100);

/// A database has at least one page, and a page has at least this many bytes.
pub(super) const SHORTEST: u64 = 512;

/// Which file it is, whatever its name. No other file can get the same identity while a connection to this
/// one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// When the file was created, in nanoseconds, where the file system says so: inode numbers are reused.
    born: u64,
}

/// The files that SQLite keeps beside an open database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Beside {
    /// The write-ahead log.
    pub(super) log: Option<Identity>,
    /// The index of the log, which all connections to the file share.
    pub(super) index: Option<Identity>,
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

    /// On other systems an open database cannot be replaced, and hard links are not recognised.
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

/// The paths of the files beside a database. They are looked at often, so the names are made once.
pub(super) struct BesidePaths {
    log: PathBuf,
    index: PathBuf,
}

impl BesidePaths {
    pub(super) fn of(path: &Path) -> Self {
        BesidePaths {
            log: beside(path, "-wal"),
            index: beside(path, "-shm"),
        }
    }

    /// The files that are there now.
    pub(super) fn now(&self) -> Beside {
        Beside {
            log: self.log_now(),
            index: self.index_now(),
        }
    }

    /// The index that is there now.
    pub(super) fn index_now(&self) -> Option<Identity> {
        identity_of(&self.index)
    }

    /// The log that is there now.
    pub(super) fn log_now(&self) -> Option<Identity> {
        identity_of(&self.log)
    }
}

fn identity_of(path: &Path) -> Option<Identity> {
    Identity::at(path).ok().map(|(identity, _)| identity)
}

/// The path of the file that SQLite keeps beside a database under this suffix.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// An absolute path without links, also for a file that does not exist yet.
pub(super) fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..LINKS {
        match path.canonicalize() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            resolved => return resolved,
        }
        // A link to a file that does not exist yet: SQLite would create the file that the links finally lead
        // to.
        let Ok(link) = path.read_link() else {
            return resolve_in_folder(&path);
        };
        path = path.parent().unwrap_or(Path::new("")).join(link);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "the path leads from link to link",
    ))
}

/// This many links are followed, as on Linux.
const LINKS: usize = 40;

fn resolve_in_folder(path: &Path) -> io::Result<PathBuf> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path names no file",
        ));
    };
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
    Ok(folder.join(name))
}

/// The files that pools of this process have claimed: each by its path, since it may not exist yet or may
/// come back, and by its identity, since it may have other names. And whether its pool is closed.
static CLAIMED: LazyLock<Mutex<HashMap<Key, bool>>> = LazyLock::new(Mutex::default);
/// Notified when a claim is given up.
static GIVEN_UP: Condvar = Condvar::new();

/// How long a new pool waits for the end of one that is closed: its last connection may be closing still.
const FAREWELL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Path(PathBuf),
    Identity(Identity),
}

/// Whether a pool of this process has claimed the file or folder at this path, under whatever name.
pub(super) fn is_claimed(path: &Path) -> bool {
    let identity = Identity::at(path).map(|(identity, _)| Key::Identity(identity));
    let claimed = CLAIMED.lock();
    claimed.contains_key(&Key::Path(path.to_path_buf()))
        || identity.is_ok_and(|identity| claimed.contains_key(&identity))
}

/// A pool's claim on a file. Dropping it gives the file up.
#[derive(Default)]
pub(super) struct Claim {
    keys: Vec<Key>,
}

impl Claim {
    pub(super) fn new(path: &Path) -> Result<Claim, Error> {
        let mut claim = Claim::default();
        let deadline = Instant::now() + FAREWELL;
        claim.add(path, Key::Path(path.to_path_buf()), deadline)?;
        if let Ok((identity, _)) = Identity::at(path) {
            claim.add(path, Key::Identity(identity), deadline)?;
        }
        Ok(claim)
    }

    /// Claims the identity of the file that is at the path now, instead of the previous one.
    pub(super) fn extend(&mut self, path: &Path, identity: Identity) -> Result<(), Error> {
        let new = Key::Identity(identity);
        if self.keys.contains(&new) {
            return Ok(());
        }
        self.forget_identity();
        // Borrowers wait for this pool's claim: it waits for no other.
        self.add(path, new, Instant::now())
    }

    pub(super) fn forget_identity(&mut self) {
        let mut claimed = CLAIMED.lock();
        self.keys.retain(|key| {
            let keep = matches!(key, Key::Path(_));
            if !keep {
                claimed.remove(key);
            }
            keep
        });
    }

    /// Waits until `deadline` for a closed pool that has the key.
    fn add(&mut self, path: &Path, key: Key, deadline: Instant) -> Result<(), Error> {
        let mut claimed = CLAIMED.lock();
        while let Some(is_leaving) = claimed.get(&key) {
            if !is_leaving || GIVEN_UP.wait_until(&mut claimed, deadline).timed_out() {
                return Err(Error::AlreadyPooled {
                    path: path.to_path_buf(),
                });
            }
        }
        claimed.insert(key.clone(), false);
        self.keys.push(key);
        Ok(())
    }

    /// The pool is closed, and will give the claim up when its last connection is.
    pub(super) fn leave(&self) {
        let mut claimed = CLAIMED.lock();
        for key in &self.keys {
            if let Some(is_leaving) = claimed.get_mut(key) {
                *is_leaving = true;
            }
        }
    }

    pub(super) fn give_up(&mut self) {
        let mut claimed = CLAIMED.lock();
        for key in self.keys.drain(..) {
            claimed.remove(&key);
        }
        drop(claimed);
        GIVEN_UP.notify_all();
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.give_up();
    }
}
