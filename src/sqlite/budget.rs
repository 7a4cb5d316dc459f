//! Descriptor arithmetic: how many N connections can need, and how many the process has left.
//! It opens no database, and never changes the process's limit.

use std::path::{Path, PathBuf};

use crate::error::Error;

/// `/dev/urandom`, which SQLite opens for an instant, once in a process.
const RANDOM: usize = 1;
/// One descriptor for another purpose than serving an agent: the file of a backup in progress, or the lock of
/// a database that is being set up.
pub(super) const SPARE: usize = 1;
/// How many of these may be in use at one time while all connections are open, where each agent has its own
/// file.
const SPARES: usize = 4;
/// Folders that SQLite opens for an instant, to sync them after it made a log of the one file: at a commit,
/// and at a checkpoint.
const FOLDERS: usize = 2;
/// The descriptors of an attached database: its file, `-wal`, `-shm`.
const PER_ATTACHED: usize = 3;

/// What the connections of a pool share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// All connections are to one file.
    OneFile,
    /// As many files as connections. They are synced.
    FileEach,
    /// As many files as connections. They are never synced.
    UnsyncedFileEach,
    /// A database in memory.
    NoFile,
}

/// The most descriptors that `n` connections can hold. To one file: each has its own for the database and for
/// `-wal`, and all share one for `-shm`. To a file each: all three, and for an instant the folder, which
/// SQLite syncs when it first syncs a log. Databases in memory need none.
pub(crate) fn ceiling(sharing: Sharing, n: usize, attach_limit: usize) -> usize {
    let attached = n * attach_limit * PER_ATTACHED;
    match (sharing, attached) {
        (Sharing::OneFile, _) => for_files(sharing, n) + attached + FOLDERS + RANDOM,
        (Sharing::FileEach | Sharing::UnsyncedFileEach, _) => {
            for_files(sharing, n) + attached + RANDOM
        }
        (Sharing::NoFile, 0) => 0,
        (Sharing::NoFile, _) => attached + FOLDERS + RANDOM,
    }
}

/// How many of these the database's own files may use: see [`OpenFiles`](super::open_files::OpenFiles).
pub(super) fn for_files(sharing: Sharing, n: usize) -> usize {
    match sharing {
        Sharing::OneFile => 2 * n + 1 + SPARE,
        Sharing::FileEach | Sharing::UnsyncedFileEach => {
            (2 + per_connection(sharing)) * n + n.min(SPARES) * SPARE
        }
        Sharing::NoFile => 0,
    }
}

/// What a connection costs besides its descriptor of the database and the file's `-shm`: its `-wal`, and the
/// folder.
pub(super) fn per_connection(sharing: Sharing) -> usize {
    match sharing {
        Sharing::OneFile | Sharing::UnsyncedFileEach => 1,
        Sharing::FileEach => 2,
        Sharing::NoFile => 0,
    }
}

/// The largest number of connections whose ceiling is not above `descriptors`. `None` if there is none, or no
/// limit.
pub(crate) fn affordable(
    sharing: Sharing,
    descriptors: usize,
    attach_limit: usize,
) -> Option<usize> {
    const MOST: usize = 10_000;
    let cost = |n| ceiling(sharing, n, attach_limit);
    if cost(1) == 0 {
        return None;
    }
    (1..=MOST).take_while(|n| cost(*n) <= descriptors).last()
}

/// How many descriptors a pool may use.
pub(crate) struct Budget {
    pub(crate) available: usize,
    pub(crate) limited_by: &'static str,
}

impl Budget {
    /// What the process's limit leaves, where the operating system says.
    pub(crate) fn of_process() -> Option<Budget> {
        Some(Budget {
            available: soft_limit()?.saturating_sub(open_descriptors()?),
            limited_by: "RLIMIT_NOFILE less what the process has open",
        })
    }

    /// Checks that a pool of this size stays within the budget.
    pub(crate) fn check(&self, max_connections: usize, ceiling: usize) -> Result<(), Error> {
        if ceiling <= self.available {
            return Ok(());
        }
        Err(Error::Budget {
            max_connections,
            ceiling,
            available: self.available,
            limited_by: self.limited_by,
        })
    }
}

#[cfg(unix)]
fn soft_limit() -> Option<usize> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    usize::try_from(limit.current?).ok()
}

#[cfg(not(unix))]
fn soft_limit() -> Option<usize> {
    None
}

fn open_descriptors() -> Option<usize> {
    let entries = std::fs::read_dir("/proc/self/fd").or_else(|_| std::fs::read_dir("/dev/fd"));
    // One of them is the folder's own, which is open during the count.
    Some(entries.ok()?.count().saturating_sub(1))
}

/// How many descriptors this process has on database files that `is_ours` picks by path, and on the files
/// that belong to them, including deleted ones. `None` where there is no `/proc`.
pub(super) fn descriptors_on(is_ours: impl Fn(&Path) -> bool) -> Option<usize> {
    let of_database = |target: &Path| {
        let target = target.to_str()?;
        let target = target.strip_suffix(" (deleted)").unwrap_or(target);
        let database = ["-wal", "-shm", "-journal"]
            .iter()
            .find_map(|suffix| target.strip_suffix(suffix))
            .unwrap_or(target);
        is_ours(Path::new(database)).then_some(())
    };
    // The links are read one by one, so a descriptor that is closed and opened meanwhile counts twice. A list
    // is accepted if the next one is the same; otherwise the shortest is used.
    let list = || -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir("/proc/self/fd").ok()?;
        let links = entries.filter_map(|entry| entry.ok()?.path().read_link().ok());
        Some(
            links
                .filter(|target| of_database(target).is_some())
                .collect(),
        )
    };
    let mut before = list()?;
    let mut fewest = before.len();
    for _ in 0..LISTS {
        let now = list()?;
        fewest = fewest.min(now.len());
        if now == before {
            return Some(now.len());
        }
        before = now;
    }
    Some(fewest)
}

/// The most lists of descriptors that are made until two are the same.
const LISTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_file_costs_two_for_each_connection() {
        assert_eq!(ceiling(Sharing::OneFile, 1, 0), 3 + 4);
        assert_eq!(ceiling(Sharing::OneFile, 8, 0), 17 + 4);
        assert_eq!(ceiling(Sharing::OneFile, 8, 2), 17 + 48 + 4);
    }

    #[test]
    fn a_file_each_costs_three_for_each_and_its_folder() {
        assert_eq!(ceiling(Sharing::UnsyncedFileEach, 64, 0), 192 + 5);
        assert_eq!(ceiling(Sharing::FileEach, 64, 0), 256 + 5);
        assert_eq!(affordable(Sharing::FileEach, 261, 0), Some(64));
        assert_eq!(affordable(Sharing::NoFile, 194, 0), None);
    }

    #[test]
    fn memory_costs_nothing_but_what_it_attaches() {
        assert_eq!(ceiling(Sharing::NoFile, 8, 0), 0);
        assert_eq!(ceiling(Sharing::NoFile, 8, 1), 24 + 3);
    }

    #[test]
    fn affordable_is_the_largest_that_fits() {
        for attach in 0..3 {
            for budget in 0..200 {
                match affordable(Sharing::OneFile, budget, attach) {
                    Some(n) => {
                        assert!(ceiling(Sharing::OneFile, n, attach) <= budget);
                        assert!(ceiling(Sharing::OneFile, n + 1, attach) > budget);
                    }
                    None => assert!(ceiling(Sharing::OneFile, 1, attach) > budget),
                }
            }
        }
    }

    #[test]
    fn it_never_falls_as_the_pool_grows() {
        for attach in 0..3 {
            for n in 1..100 {
                assert!(
                    ceiling(Sharing::OneFile, n + 1, attach) > ceiling(Sharing::OneFile, n, attach)
                );
            }
        }
    }
}
