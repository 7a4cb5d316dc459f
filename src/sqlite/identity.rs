//! Identity: which file it is, whatever it is called; and what pools of this process have claimed.
//! It never opens a file: closing any descriptor to a database would drop the locks that SQLite holds.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::Error;

/// How old the last look at the file may be when a connection is lent. A look costs a microsecond,
/// several times what a lease does.
pub(super) const LOOK_EVERY: Duration = Duration::from_micros(100);

/// A database has at least one page, and no page is shorter.
pub(super) const SHORTEST: u64 = 512;

/// Which file it is, whatever it is called. It cannot be given to another file while a connection to
/// this one is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
    /// When it was made, in nanoseconds, where the file system tells: numbers are given again.
    born: u64,
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
    pub(super) fn extend(&mut self, path: &Path, identity: Identity) -> Result<(), Error> {
        let new = Key::Identity(identity);
        if self.keys.contains(&new) {
            return Ok(());
        }
        self.forget_identity();
        self.add(path, new)
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
