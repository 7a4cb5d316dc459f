//! File: the one database file of a pool, and whether the file and its log are still the same.
//! It never opens the file: closing any descriptor to it would drop the locks that SQLite holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;

use super::budget::{Sharing, for_files, per_connection};
use super::connection::Connection;
use super::identity::{Beside, BesidePaths, Claim, Identity, LOOK_EVERY, SHORTEST, resolve};
use super::open::discard;
use super::open_files::{NoRoom, OpenFiles};
use super::wal::Wal;
use crate::core::backend::Patience;
use crate::error::{Error, FileState};

/// The database file of a pool, claimed within this process.
pub(crate) struct File {
    /// Absolute, without symbolic links.
    pub(crate) path: PathBuf,
    /// The generation that has been set up. Locked while a file is being set up, since no other connection
    /// may be opened before that is done.
    pub(crate) set_up: Mutex<u64>,
    pub(super) wal: Wal,
    beside: BesidePaths,
    /// The generations that have open connections.
    pub(super) open: OpenFiles<u64, Connected>,
    claim: Mutex<Claim>,
    born: Instant,
    /// When the pool last looked at the file, in nanoseconds since `born`.
    looked_at: AtomicU64,
    seen: Mutex<Seen>,
    /// A copy of `seen.generation.number` that can be read without the lock.
    number: AtomicU64,
}

/// What the last look at the path saw.
struct Seen {
    identity: Option<Identity>,
    generation: Generation,
    /// The last file that had open connections, and the files beside it.
    last: Option<(Identity, Beside)>,
}

/// The connections of one generation.
pub(super) struct Connected {
    file: Option<Identity>,
    beside: Beside,
    /// Connections that are open and not being closed. While there are any, the log stays where it is.
    settled: usize,
    /// Another process took the log away from these connections.
    lost_log: bool,
}

/// Counts the files that the pool saw at the path, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    /// There is no database at the path now, or none that can be opened.
    pub(crate) lost: Option<FileState>,
}

impl File {
    /// Claims the file at `path`, which need not exist, for a pool of `max_connections` connections.
    pub(crate) fn claim(path: &Path, wal: Wal, max_connections: usize) -> Result<File, Error> {
        let path = resolve(path).map_err(|source| Error::Open {
            target: path.display().to_string(),
            source: Box::new(source),
        })?;
        let claim = Claim::new(&path)?;
        Ok(File {
            set_up: Mutex::new(0),
            wal,
            open: OpenFiles::new(
                per_connection(Sharing::OneFile),
                for_files(Sharing::OneFile, max_connections),
            ),
            claim: Mutex::new(claim),
            beside: BesidePaths::of(&path),
            born: Instant::now(),
            looked_at: AtomicU64::new(0),
            seen: Mutex::new(Seen {
                identity: None,
                generation: Generation {
                    number: 0,
                    lost: None,
                },
                last: None,
            }),
            number: AtomicU64::new(0),
            path,
        })
    }

    /// Whether SQLite can find or make a file at the path. The error is the operating system's, since SQLite
    /// has one code for all faults.
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

    /// Whether there is a database at the path, as far as the pool can tell without opening it.
    pub(super) fn check_readable(&self) -> Result<(), Error> {
        self.check_path()?;
        let fault = match std::fs::metadata(&self.path) {
            Ok(metadata) if metadata.len() < SHORTEST => io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is too short for a database",
            ),
            Ok(_) => return Ok(()),
            Err(error) => error,
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

    /// Looks at the file if the last look is too old.
    pub(crate) fn refresh(&self, now: Instant) {
        let now = now.saturating_duration_since(self.born);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let before = self.looked_at.load(Relaxed);
        if now.saturating_sub(before) < LOOK_EVERY.as_nanos() as u64 {
            return;
        }
        // One caller looks; the others rely on that look.
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
            Ok((identity, _)) => (Some(identity), self.strays(identity, seen.last)),
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
                // The file system may give the number to another file as soon as no process has this one
                // open. Then that file is not this pool's.
                self.claim.lock().forget_identity();
            }
        }
        seen.generation
    }

    /// Whether a log or index at the path belongs to a previous file, or the log of the present file is gone.
    ///
    /// SQLite finds these files by name. It would replay the log of a replaced file into the new file. And a
    /// connection whose log was removed goes on writing to a log that no other connection will read, while
    /// the next connection makes a new one.
    fn strays(&self, file: Identity, last: Option<(Identity, Beside)>) -> Option<FileState> {
        let mut open = self.open.lock();
        if open.keys().next().is_none() && last.is_none() {
            return None;
        }
        let log = self.beside.log_now();
        let is_left =
            |theirs: Option<Identity>, now: Option<Identity>| now.is_some() && theirs == now;
        let mut found = None;
        for value in open.values_mut() {
            if value.file != Some(file) {
                if is_left(value.beside.log, log)
                    || is_left(value.beside.index, self.beside.index_now())
                {
                    found = Some(FileState::LogLeft);
                }
                continue;
            }
            // If the pool only reads the file, the log may be missing: the writer decides.
            value.lost_log |=
                value.settled > 0 && value.beside.log.is_some() && value.beside.log != log;
            if value.lost_log {
                found = Some(FileState::LogRemoved);
            }
        }
        let of_last = last.is_some_and(|(owner, beside)| owner != file && is_left(beside.log, log));
        found.or(of_last.then_some(FileState::LogLeft))
    }

    /// Notes that a connection to this generation is about to be opened. Waits for room as `patience` says.
    pub(super) fn opening(&self, generation: u64, patience: &Patience<'_>) -> Result<(), Error> {
        let value = || {
            Ok(Connected {
                file: None,
                beside: Beside::default(),
                settled: 0,
                lost_log: false,
            })
        };
        let room: Result<(), NoRoom> = self.open.opening(generation, patience, value);
        room.map_err(|NoRoom| Error::NoDescriptors {
            target: self.target(),
        })
    }

    /// Notes that the connection is open, and that SQLite has made the files beside the database.
    pub(super) fn opened(&self, generation: u64) {
        let mut seen = self.seen.lock();
        let identity = seen.identity;
        if let Some(value) = self.open.lock().get_mut(&generation) {
            if value.settled == 0 {
                value.file = identity;
                value.beside = self.beside.now();
            }
            value.settled += 1;
            if let Some(file) = value.file {
                seen.last = Some((file, value.beside));
            }
        }
    }

    /// Notes that a connection is about to be closed. If it is the last, SQLite may remove the log.
    pub(super) fn closing(&self, generation: u64) {
        if let Some(value) = self.open.lock().get_mut(&generation) {
            value.settled -= 1;
        }
    }

    /// Notes that a borrower has changed the connection's journal mode or locked the file. The connection
    /// will be closed, and if the log is gone, no other process removed it.
    pub(super) fn shut_out(&self, generation: u64) {
        if let Some(value) = self.open.lock().get_mut(&generation) {
            value.settled -= 1;
            value.lost_log &= value.settled > 0;
        }
    }

    /// Notes that the connection could not be closed.
    pub(super) fn not_closed(&self, generation: u64) {
        if let Some(value) = self.open.lock().get_mut(&generation) {
            value.settled += 1;
        }
    }

    /// Closes a connection that was opened and never lent.
    pub(super) fn close_unlent(&self, connection: Connection) {
        let generation = connection.generation();
        self.closing(generation);
        discard(connection.into_inner());
        self.closed(generation);
    }

    /// Notes that the connection is closed, or was never opened.
    pub(super) fn closed(&self, generation: u64) {
        self.open.closed(&generation);
    }

    /// Claims the file that is at the path now, under all its names.
    pub(crate) fn claim_identity(&self) -> Result<(), Error> {
        match Identity::at(&self.path) {
            Ok((identity, _)) => self.claim.lock().extend(&self.path, identity),
            Err(_) => Ok(()),
        }
    }

    /// The pool is closed to new leases.
    pub(crate) fn leave_claim(&self) {
        self.claim.lock().leave();
    }

    pub(crate) fn give_up_claim(&self) {
        self.claim.lock().give_up();
    }
}
