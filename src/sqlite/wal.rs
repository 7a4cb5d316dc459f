//! The write-ahead log of one file: how long it is, when it needs a checkpoint, and how to run one.
//! It leases nothing: the caller that runs a checkpoint brings a connection.
//!
//! SQLite itself runs a checkpoint within the commit that made the log too long, and that commit pays for it.
//! Here commits only note how long the log has become. A lease that writes without the pool's queue could go
//! on for ever and leave no gap in which the log can begin anew. So its commits run a checkpoint as SQLite's
//! do, once the log is half as long again as it should be.
//!
//! A borrower may replace the hook by which commits note. So checkpoints do not depend on the hook alone: if
//! a connection has changed rows and noted nothing, the pool looks at the length of the file `-wal`.
//!
//! Where another process runs the checkpoints, such as Litestream, the pool runs none, except one that waits
//! for no other connection when the log has become far too long.

use std::cell::Cell;
use std::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;

use super::versions::WalRef;
use super::{Checkpoints, Settings};

thread_local! {
    /// What the last commit on this thread noted, and on which connection. The hook is a plain
    /// function, and SQLite calls it on the thread that commits.
    static NOTED: Cell<(u64, Noted)> = const { Cell::new((NOBODY, NOTHING)) };
    /// The connection that is committing on this thread, if it has the pool's commit hook.
    static COMMITTING: Cell<u64> = const { Cell::new(NOBODY) };
    /// The length of the log when this thread last tried an emergency checkpoint; reset when the log is
    /// short.
    static TRIED: Cell<i32> = const { Cell::new(0) };
}

/// No connection has this number.
const NOBODY: u64 = 0;
const NOTHING: Noted = Noted {
    pages: 0,
    emergencies: 0,
};

/// What the commits of one connection on one thread have noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Noted {
    /// How many pages the log had after the last commit.
    pub(crate) pages: u32,
    /// Emergency checkpoints that ran within these commits.
    pub(crate) emergencies: u32,
}

/// What a connection's commits did to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commits {
    /// It committed nothing.
    None,
    Noted(Noted),
    /// It has changed rows and noted nothing: a borrower replaced the hook, or rolled back.
    Unnoted,
}

/// A WAL hook, which SQLite calls after each commit: a plain function, since rusqlite 0.40 takes no other.
pub(super) type Hook = fn(WalRef<'_>, i32) -> rusqlite::Result<()>;

/// The connection with this number is about to commit on this thread.
pub(super) fn committing(connection: u64) {
    COMMITTING.set(connection);
}

/// The WAL hook of a connection within a group of writes.
pub(super) fn note(_: WalRef<'_>, pages: i32) -> rusqlite::Result<()> {
    add_note(pages, 0);
    Ok(())
}

fn add_note(pages: i32, emergencies: u32) {
    let by = COMMITTING.replace(NOBODY);
    let before = match NOTED.get() {
        (noted_by, noted) if noted_by == by => noted.emergencies,
        _ => 0,
    };
    let noted = Noted {
        pages: u32::try_from(pages).unwrap_or(0),
        emergencies: before.saturating_add(emergencies),
    };
    NOTED.set((by, noted));
}

/// The WAL hook of a lease's connection.
fn note_or_checkpoint<const PAGES: i32>(wal: WalRef<'_>, pages: i32) -> rusqlite::Result<()> {
    add_note(pages, 0);
    if pages >= PAGES {
        // A checkpoint that fails now will be tried again after the next commit.
        let _ = wal.checkpoint();
    }
    Ok(())
}

/// The WAL hook of a connection whose log another process checkpoints. If that process has not read all
/// frames, a checkpoint leaves the log as long as it was, and every commit would try again in vain. So it
/// tries again only when the log has grown.
fn note_or_relieve<const PAGES: i32>(wal: WalRef<'_>, pages: i32) -> rusqlite::Result<()> {
    let tried = TRIED.get();
    let again = pages < tried || pages >= tried.saturating_add(PAGES / 4);
    if pages < PAGES {
        TRIED.set(0);
    } else if tried == 0 || again {
        TRIED.set(pages);
        let _ = wal.checkpoint();
        add_note(pages, 1);
        return Ok(());
    }
    note(wal, pages)
}

/// The WAL hook of connections whose log another process checkpoints. The pool checkpoints it at some length
/// from `bytes` to twice that: each supported length has its own hook.
pub(super) fn emergency_hook(bytes: Option<u32>) -> Hook {
    const HOOKS: [(u32, Hook); 15] = [
        (16, note_or_relieve::<16>),
        (32, note_or_relieve::<32>),
        (64, note_or_relieve::<64>),
        (128, note_or_relieve::<128>),
        (256, note_or_relieve::<256>),
        (512, note_or_relieve::<512>),
        (1_024, note_or_relieve::<1_024>),
        (2_048, note_or_relieve::<2_048>),
        (4_096, note_or_relieve::<4_096>),
        (8_192, note_or_relieve::<8_192>),
        (16_384, note_or_relieve::<16_384>),
        (32_768, note_or_relieve::<32_768>),
        (65_536, note_or_relieve::<65_536>),
        (131_072, note_or_relieve::<131_072>),
        (262_144, note_or_relieve::<262_144>),
    ];
    let Some(bytes) = bytes else {
        return note;
    };
    let found = HOOKS
        .into_iter()
        .find(|(length, _)| *length >= pages(bytes));
    found.map_or(note_or_relieve::<262_144>, |(_, hook)| hook)
}

/// The WAL hook of leases' connections, for a log that needs a checkpoint from `bytes` on. SQLite tells a
/// hook only the length, so each supported length has its own hook.
pub(super) fn hook(bytes: u32) -> Hook {
    const HOOKS: [(u32, Hook); 15] = [
        (24, note_or_checkpoint::<24>),
        (48, note_or_checkpoint::<48>),
        (96, note_or_checkpoint::<96>),
        (192, note_or_checkpoint::<192>),
        (384, note_or_checkpoint::<384>),
        (768, note_or_checkpoint::<768>),
        (1_536, note_or_checkpoint::<1_536>),
        (3_072, note_or_checkpoint::<3_072>),
        (6_144, note_or_checkpoint::<6_144>),
        (12_288, note_or_checkpoint::<12_288>),
        (24_576, note_or_checkpoint::<24_576>),
        (49_152, note_or_checkpoint::<49_152>),
        (98_304, note_or_checkpoint::<98_304>),
        (196_608, note_or_checkpoint::<196_608>),
        (393_216, note_or_checkpoint::<393_216>),
    ];
    let wanted = pages(bytes) + pages(bytes) / 2;
    let found = HOOKS.into_iter().find(|(length, _)| *length >= wanted);
    found.map_or(note_or_checkpoint::<393_216>, |(_, hook)| hook)
}

/// SQLite's default length of a page.
const PAGE: u32 = 4096;

/// Converts bytes to pages of SQLite's default length.
fn pages(bytes: u32) -> u32 {
    (bytes / PAGE).max(1)
}

/// Whether the note of the last commit on this thread belongs to the connection with this number, as far as
/// is known.
pub(super) fn has_noted(connection: u64) -> bool {
    let (by, noted) = NOTED.get();
    noted != NOTHING && (by == connection || by == NOBODY)
}

/// Takes the note of the last commit on this thread, if it belongs to the connection with this number.
pub(super) fn take_noted(connection: u64) -> Option<Noted> {
    if !has_noted(connection) {
        return None;
    }
    let (_, noted) = NOTED.replace((NOBODY, NOTHING));
    Some(noted)
}

/// The file `-wal` is cut to this many times `wal_size`. That is longer than it is under load: cutting the
/// file and letting it grow again costs more than overwriting it.
pub(super) const FILE: u32 = 4;

/// The length of a file `-wal` whose commits note nothing. The file stays as long as the log has ever been
/// since the file was cut. So only growth shows that the log is long.
#[derive(Debug, Default)]
pub(super) struct FileLength {
    /// Its length at the last look.
    seen: u64,
    /// The length from which on the log needs the next checkpoint, if that is above the first.
    due_at: u64,
}

impl FileLength {
    /// Tells the present length. The log needs a checkpoint from `first` bytes on, and the file is cut to
    /// `longest`. Returns whether the log needs a checkpoint, once for each length.
    pub(super) fn is_overlong(&mut self, now: u64, first: u64, longest: u64) -> bool {
        if now < self.seen {
            self.due_at = 0;
        }
        self.seen = now;
        if now < self.due_at.max(first) {
            return false;
        }
        self.due_at = now.min(longest) + longest / 8;
        true
    }
}

/// The length from which on a file `-wal`, whose commits note nothing, needs a checkpoint, and the length it
/// is cut to.
pub(super) fn file_lengths(wal_size: u32) -> (u64, u64) {
    let bytes = u64::from(wal_size);
    (bytes + bytes / 2, bytes * u64::from(FILE))
}

/// A log of this many times its limit is far too long.
const FAR: u32 = 3;

/// When the log of a file needs a checkpoint.
pub(crate) struct Wal {
    /// It needs a checkpoint from this many pages on.
    limit: u32,
    /// Another process runs the checkpoints, and the pool only emergency ones.
    external: bool,
    file: Mutex<FileLength>,
    /// The pages from which on it needs the next checkpoint: `limit`, or more after one that changed nothing.
    due_at: AtomicU32,
    /// Pages after the last commit that was reported.
    pages: AtomicU32,
    /// The length of the database's pages, in bytes.
    page_size: AtomicU32,
    running: Mutex<bool>,
    /// Notified when a checkpoint has ended.
    ended: Condvar,
    /// The last checkpoint left frames behind that a connection still reads.
    pinned: AtomicBool,
}

/// How a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpointed {
    /// Another connection was running a checkpoint, or held a lock until the wait ended.
    pub(crate) busy: bool,
    /// Pages in the log.
    pub(crate) log: u32,
}

/// A running checkpoint. There is one at a time.
pub(crate) struct Running<'a>(&'a Wal);

impl Wal {
    /// For a log that needs a checkpoint at the length in the settings, if pages have SQLite's default
    /// length.
    pub(super) fn new(settings: &Settings) -> Self {
        let (limit, external) = match settings.checkpoints {
            Checkpoints::Pool => (pages(settings.wal_size), false),
            Checkpoints::External { emergency } => (emergency.map_or(u32::MAX, pages), true),
        };
        Wal {
            limit,
            external,
            file: Mutex::default(),
            due_at: AtomicU32::new(limit),
            pages: AtomicU32::new(0),
            page_size: AtomicU32::new(PAGE),
            running: Mutex::new(false),
            ended: Condvar::new(),
            pinned: AtomicBool::new(false),
        }
    }

    /// Reports the present length of the log. Returns whether it needs a checkpoint.
    pub(crate) fn grew_to(&self, pages: u32) -> bool {
        if pages < self.pages.swap(pages, Relaxed) {
            // The log has begun anew.
            self.due_at.store(self.limit, Relaxed);
        }
        pages >= self.due_at.load(Relaxed)
    }

    /// Whether another process runs the checkpoints.
    pub(crate) fn is_external(&self) -> bool {
        self.external
    }

    /// Reports the length of the file, for commits that may have noted nothing. Returns whether the log needs
    /// a checkpoint.
    pub(super) fn is_overlong(&self, length: u64, (first, longest): (u64, u64)) -> bool {
        self.file.lock().is_overlong(length, first, longest)
    }

    /// Whether a checkpoint that could not finish should be tried again.
    pub(crate) fn wants_another_try(&self) -> bool {
        self.pinned.load(Acquire)
    }

    /// Whether writers should wait instead of making the log longer.
    pub(crate) fn is_far_too_long(&self, pages: u32) -> bool {
        !self.external && pages >= self.limit.saturating_mul(FAR)
    }

    /// How many pages it had after the last commit that was reported.
    pub(crate) fn pages(&self) -> u32 {
        self.pages.load(Relaxed)
    }

    /// The database's pages have this length. `None`: it is not known, and taken for the usual one.
    pub(super) fn set_page_size(&self, bytes: Option<u32>) {
        self.page_size.store(bytes.unwrap_or(PAGE), Relaxed);
    }

    /// How long a log of so many pages is, in bytes: a header, and a frame with a header of its own for each page.
    pub(crate) fn bytes(&self, pages: u32) -> u64 {
        let frame = u64::from(self.page_size.load(Relaxed)) + 24;
        match pages {
            0 => 0,
            pages => 32 + u64::from(pages) * frame,
        }
    }

    /// The pages from which on it needs a checkpoint; `None` if the pool never runs one.
    pub(crate) fn limit(&self) -> Option<u32> {
        (self.limit < u32::MAX).then_some(self.limit)
    }

    /// Requests a checkpoint. Returns whether the caller must [`run`](Wal::run) it; it need not if one is
    /// running.
    pub(crate) fn begin(&self) -> bool {
        !std::mem::replace(&mut *self.running.lock(), true)
    }

    /// The checkpoint that was begun runs until this is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        Running(self)
    }

    /// Makes a writer wait for the running checkpoint, if the log is far too long: the disk is slower than
    /// the writers. It does not wait while a reader blocks checkpoints, since that would not help.
    pub(crate) fn hold_back(&self, deadline: Instant) {
        if !self.is_far_too_long(self.pages()) || self.wants_another_try() {
            return;
        }
        let mut running = self.running.lock();
        while *running && !self.ended.wait_until(&mut running, deadline).timed_out() {}
    }
}

impl Running<'_> {
    /// Notes how it ended. Returns whether the log is pinned and was not before.
    pub(crate) fn ended(&self, result: Checkpointed) -> bool {
        let wal = self.0;
        // Whether or not it could finish, the same checkpoint again would do no more. Once the log begins
        // anew, which the next commit causes if no connection reads from the log, this goes back to the
        // limit.
        let next = result.log.saturating_add(wal.limit / 4).max(wal.limit);
        wal.due_at.store(next, Relaxed);
        result.busy && !wal.pinned.swap(true, Release)
    }

    pub(crate) fn is_over(&self) {
        self.0.pinned.store(false, Release);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        *self.0.running.lock() = false;
        self.0.ended.notify_all();
    }
}

/// In how many passes the pool copies the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passes {
    /// Most of the log while others commit, and then the rest.
    Several,
    /// All of it at once, while no write of the pool can begin. Before 3.51.3, SQLite can corrupt a database
    /// when a second checkpoint follows a complete one while another connection commits
    /// (<https://sqlite.org/wal.html#walresetbug>).
    One,
}

impl Passes {
    /// For this version of SQLite, in the form of `sqlite3_libversion_number`.
    pub(crate) fn of(version: i32) -> Self {
        /// The first version without that fault.
        const MENDED: i32 = 3_051_003;
        match version < MENDED {
            true => Passes::One,
            false => Passes::Several,
        }
    }
}

/// How much a checkpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It copies into the database what no connection reads from the log any more. It waits for no other
    /// connection, and makes none wait.
    Passive,
    /// It copies all, and waits until no connection reads from the log: the next write begins it anew. It
    /// waits for writers and readers as long as the connection's `busy_timeout`.
    Restart,
}

pub(crate) fn checkpoint(connection: &Connection, mode: Mode) -> rusqlite::Result<Checkpointed> {
    let sql = match mode {
        Mode::Passive => "PRAGMA wal_checkpoint(PASSIVE)",
        Mode::Restart => "PRAGMA wal_checkpoint(RESTART)",
    };
    connection.query_row(sql, [], |row| {
        Ok(Checkpointed {
            busy: row.get(0)?,
            log: u32::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
        })
    })
}
