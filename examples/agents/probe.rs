//! The descriptors that this process has on a database, or on a folder of them, as the kernel tells.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Descriptors {
    pub(crate) db: u64,
    pub(crate) wal: u64,
    pub(crate) shm: u64,
    /// On the rollback journal, on files already deleted, and on the folder of databases.
    pub(crate) other: u64,
}

impl Descriptors {
    /// `None` if there is no descriptor left to look with, or if they change too fast.
    pub(crate) fn on(path: &Path, per_agent: bool) -> Option<Descriptors> {
        let path = path.to_str()?;
        let mut found = Descriptors::default();
        for target in all()? {
            let Some(rest) = target.to_str().and_then(|target| target.strip_prefix(path)) else {
                continue;
            };
            let kind = match (per_agent, rest.rsplit_once(".db")) {
                (false, _) => rest,
                (true, Some((_, kind))) => kind,
                (true, None) => "not a database",
            };
            match kind {
                "" => found.db += 1,
                "-wal" => found.wal += 1,
                "-shm" => found.shm += 1,
                _ => found.other += 1,
            }
        }
        Some(found)
    }

    pub(crate) fn all(self) -> u64 {
        self.db + self.wal + self.shm + self.other
    }

    pub(crate) fn max(self, other: Self) -> Self {
        Descriptors {
            db: self.db.max(other.db),
            wal: self.wal.max(other.wal),
            shm: self.shm.max(other.shm),
            other: self.other.max(other.other),
        }
    }
}

/// What all descriptors of the process are on, at one moment. They are read one by one, and so what is closed and
/// opened meanwhile would count twice: a list counts if the next one is the same.
fn all() -> Option<Vec<PathBuf>> {
    const TRIES: usize = 8;
    let list = || -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir("/proc/self/fd").ok()?.flatten();
        let links = entries.filter_map(|entry| entry.path().read_link().ok());
        Some(links.collect())
    };
    let mut before = list()?;
    for _ in 0..TRIES {
        let now = list()?;
        if now == before {
            return Some(now);
        }
        before = now;
    }
    None
}

pub(crate) fn limit_descriptors(n: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: Some(n),
        maximum,
    };
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| format!("cannot set the descriptor limit to {n}: {error}"))
}
