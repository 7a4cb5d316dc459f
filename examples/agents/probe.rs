//! The descriptors that this process has on a database, as the kernel tells.

use std::path::Path;

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Descriptors {
    pub(crate) db: u64,
    pub(crate) wal: u64,
    pub(crate) shm: u64,
    /// On the rollback journal, and on files already deleted.
    pub(crate) other: u64,
}

impl Descriptors {
    /// `None` if there is no descriptor left to look with.
    pub(crate) fn on(path: &Path) -> Option<Descriptors> {
        let name = path.to_str()?;
        let mut found = Descriptors::default();
        for entry in std::fs::read_dir("/proc/self/fd").ok()?.flatten() {
            let Ok(target) = entry.path().read_link() else {
                continue;
            };
            match target.to_str().and_then(|target| target.strip_prefix(name)) {
                Some("") => found.db += 1,
                Some("-wal") => found.wal += 1,
                Some("-shm") => found.shm += 1,
                Some(_) => found.other += 1,
                None => {}
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
