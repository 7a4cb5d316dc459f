//! Backup: a copy of a database as one commit left it, either whole at its path or absent.
//! The caller brings the connection that the copy is read from.

use std::ffi::OsString;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rusqlite::Connection;
use rusqlite::backup::StepResult;

use super::agents::{
    make_private_file, no_descriptors, open_fault, remove_files, rename_synced, sync_closed,
};
use super::connect::connect;
use super::identity::{Identity, beside, is_claimed, resolve};
use super::open::discard;
use super::open_files::NoRoom;
use super::opener::Opener;
use super::retry::busy;
use super::set_up_lock::SetUpLock;
use super::versions;
use super::{Fault, Source, Sqlite, attaching_one, budget, read};
use crate::core::backend::Patience;
use crate::error::Error;

/// How to make a backup: see [`Pool::backup_with`](crate::Pool::backup_with).
///
/// ```
/// use std::ops::ControlFlow;
/// use leasepool::Backup;
///
/// let how = Backup::new().compact(true).progress(|done| {
///     println!("{} of {} pages", done.copied, done.pages);
///     ControlFlow::Continue(())
/// });
/// ```
#[must_use = "nothing is copied until it is given to a pool"]
pub struct Backup<'a> {
    compact: bool,
    pages_per_step: u16,
    progress: Box<Report<'a>>,
}

type Report<'a> = dyn FnMut(BackupProgress) -> ControlFlow<()> + 'a;

/// How far a backup has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupProgress {
    /// Pages copied so far.
    pub copied: u32,
    /// Pages of the database.
    pub pages: u32,
}

impl Default for Backup<'_> {
    fn default() -> Self {
        Backup {
            compact: false,
            pages_per_step: 256,
            progress: Box::new(|_| ControlFlow::Continue(())),
        }
    }
}

impl<'a> Backup<'a> {
    /// Copies every page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether to write a new database without free pages, as `VACUUM INTO` does, instead of copying every
    /// page. This takes longer, and the copy is smaller. It is done in one step: `progress` is called before
    /// and after it.
    ///
    /// Defaults to `false`.
    pub fn compact(mut self, compact: bool) -> Self {
        self.compact = compact;
        self
    }

    /// How many pages to copy between two calls of `progress`; 0 counts as 1.
    ///
    /// Defaults to 256.
    pub fn pages_per_step(mut self, pages: u16) -> Self {
        self.pages_per_step = pages.max(1);
        self
    }

    /// Calls `progress` after each step, on the thread that makes the backup, with how far the backup has
    /// got. It may end the backup with [`ControlFlow::Break`]; then no file is left.
    ///
    /// Defaults to a function that goes on.
    pub fn progress(
        mut self,
        progress: impl FnMut(BackupProgress) -> ControlFlow<()> + 'a,
    ) -> Self {
        self.progress = Box::new(progress);
        self
    }
}

impl std::fmt::Debug for Backup<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backup")
            .field("compact", &self.compact)
            .field("pages_per_step", &self.pages_per_step)
            .finish_non_exhaustive()
    }
}

impl Sqlite {
    /// Copies the database that `source` is connected to. `patience` applies to the wait for room, not to the
    /// copying.
    pub(crate) fn backup(
        &self,
        source: &Connection,
        to: &Path,
        how: &mut Backup<'_>,
        patience: &Patience<'_>,
    ) -> Result<(), Error> {
        let target = Target::new(to)?;
        let _room = self.room_for_target(&target, patience)?;
        let failed = |error: Fault| target.error(error);
        make_private_file(&target.partial).map_err(|error| failed(error.into()))?;
        let copied = match how.compact {
            true => compacted(source, &target.partial, how),
            false => self.copied(source, &target.partial, how),
        };
        copied.map_err(failed)?;
        target.keep().map_err(failed)
    }

    /// Copies an agent's database, on connections that serve no agent.
    pub(crate) fn backup_agent(
        &self,
        agent: &str,
        to: &Path,
        how: &mut Backup<'_>,
        patience: &Patience<'_>,
    ) -> Result<(), Error> {
        let agents = self.agents()?;
        agents.hosting.admit(agent)?;
        let path = agents.path(agent)?;
        let no_file = || open_fault(&path, io::ErrorKind::NotFound.into());
        if !self.has_file(agent)? {
            return Err(no_file());
        }
        if !agents.is_set_up(&path) || !path.exists() {
            // A borrower, or another process, may be setting it up or handing it over now.
            drop(SetUpLock::acquire(&path, patience.deadline)?);
            agents.hosting.admit(agent)?;
            if !path.exists() {
                return Err(no_file());
            }
        }
        let _opened = agents.opened(&path, patience)?;
        let target = path.display().to_string();
        let source = connect(&Opener::existing(&path), &self.settings, &target)?;
        source.busy_timeout(self.settings.busy_timeout)?;
        let copied = self.backup(&source, to, how, patience);
        discard(source);
        copied
    }

    /// Waits for room for the descriptor of the copy.
    fn room_for_target(
        &self,
        target: &Target,
        patience: &Patience<'_>,
    ) -> Result<Box<dyn Send + '_>, Error> {
        let no_room = |NoRoom| no_descriptors(&target.path);
        Ok(match &self.source {
            Source::File { file, .. } => Box::new(
                file.open
                    .reserve(budget::SPARE, patience)
                    .map_err(no_room)?,
            ),
            Source::Agents(agents) => Box::new(
                agents
                    .open
                    .reserve(budget::SPARE, patience)
                    .map_err(no_room)?,
            ),
            Source::Memory { .. } => Box::new(()),
        })
    }

    pub(super) fn copied(
        &self,
        source: &Connection,
        to: &Path,
        how: &mut Backup<'_>,
    ) -> Result<(), Fault> {
        let mut target = connect(
            &Opener::existing(to),
            &self.settings,
            &to.display().to_string(),
        )?;
        // Without a journal: the copy is whole, or it is removed.
        target.pragma_update(None, "journal_mode", "OFF")?;
        target.pragma_update(None, "synchronous", "OFF")?;
        // In one transaction, the source does not change, so writers never make the backup begin again. In
        // WAL mode the transaction keeps no writer from writing.
        let snapshot = read::try_snapshot(source)?;
        let backup = rusqlite::backup::Backup::new(source, &mut target)?;
        loop {
            let step = backup.step(i32::from(how.pages_per_step))?;
            let progress = backup.progress();
            let pages = u32::try_from(progress.pagecount).unwrap_or(0);
            let left = u32::try_from(progress.remaining).unwrap_or(0);
            let copied = pages.saturating_sub(left);
            if (how.progress)(BackupProgress { copied, pages }).is_break() {
                return Err(stopped());
            }
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // No other connection locks either database, unless the source has no write-ahead log.
                _ => return Err(busy(None).into()),
            }
        }
        drop(backup);
        snapshot.finish()?;
        versions::close(target).map_err(|(_, error)| error.into())
    }
}

fn compacted(source: &Connection, to: &Path, how: &mut Backup<'_>) -> Result<(), Fault> {
    let Some(to) = to.to_str() else {
        return Err(Box::new(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path is not UTF-8",
        )));
    };
    let pages = source.pragma_query_value(None, "page_count", |row| row.get(0))?;
    if (how.progress)(BackupProgress { copied: 0, pages }).is_break() {
        return Err(stopped());
    }
    attaching_one(source, || source.execute("VACUUM INTO ?1", [to]))?;
    match (how.progress)(BackupProgress {
        copied: pages,
        pages,
    }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(stopped()),
    }
}

fn stopped() -> Fault {
    Box::new(io::Error::new(
        io::ErrorKind::Interrupted,
        "the progress function ended it",
    ))
}

/// The path of the copy, and the path where it is made.
struct Target {
    path: PathBuf,
    folder: PathBuf,
    /// Beside it, under a name that no other backup uses. It is removed when this is dropped.
    partial: PathBuf,
}

impl Target {
    fn new(to: &Path) -> Result<Self, Error> {
        let failed = |source: io::Error| backup_error(to, source.into());
        let path = resolve(to).map_err(failed)?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        };
        let target = Target {
            folder: folder.to_path_buf(),
            partial: folder.join(partial_name(name)),
            path: path.clone(),
        };
        target.check()?;
        Ok(target)
    }

    /// Checks that the copy would overwrite no open database, and that SQLite would not replay another log
    /// into it.
    fn check(&self) -> Result<(), Error> {
        match std::fs::metadata(&self.path) {
            Ok(found) if !found.is_file() => {
                let fault = io::Error::new(io::ErrorKind::AlreadyExists, "it is not a file");
                return Err(self.error(fault.into()));
            }
            _ => {}
        }
        if is_claimed(&self.path) || is_claimed(&self.folder) || is_open_here(&self.path) {
            return Err(Error::AlreadyPooled {
                path: self.path.clone(),
            });
        }
        for suffix in ["-wal", "-journal"] {
            let found = beside(&self.path, suffix);
            if found.exists() {
                let fault = io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!(
                        "{} is there: SQLite would replay it into the copy",
                        found.display()
                    ),
                );
                return Err(self.error(fault.into()));
            }
        }
        Ok(())
    }

    /// Puts the finished copy at its path.
    fn keep(&self) -> Result<(), Fault> {
        sync_closed(&self.partial)?;
        self.check()?;
        Ok(rename_synced(&self.partial, &self.path)?)
    }

    fn error(&self, source: Fault) -> Error {
        backup_error(&self.path, source)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = remove_files(&self.partial);
    }
}

fn backup_error(to: &Path, source: Fault) -> Error {
    match source.downcast::<Error>() {
        Ok(error) => *error,
        Err(source) => Error::Backup {
            to: to.to_path_buf(),
            source,
        },
    }
}

/// `NAME.PROCESS-NUMBER.partial`.
fn partial_name(name: &std::ffi::OsStr) -> OsString {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let mut partial = name.to_owned();
    let number = MADE.fetch_add(1, Relaxed);
    partial.push(format!(".{}-{number}.partial", std::process::id()));
    partial
}

/// Whether this process has the file open, as far as the operating system says.
fn is_open_here(path: &Path) -> bool {
    let (Ok((identity, _)), Ok(open)) = (Identity::at(path), std::fs::read_dir("/proc/self/fd"))
    else {
        return false;
    };
    open.flatten()
        .any(|entry| Identity::at(&entry.path()).is_ok_and(|(found, _)| found == identity))
}
