//! The write-ahead log of one file: how long it is, when it wants a checkpoint, and how one is run.
//! It leases nothing: whoever runs a checkpoint brings a connection.
//!
//! SQLite by itself runs a checkpoint within the commit that made the log too long, and that commit pays
//! for it. Here commits only note how long the log has become. A lease that writes by itself, without the
//! pool's queue, could go on for ever without leaving a gap in which the log can begin anew; so its commits
//! do as SQLite's, once the log is half as long again as it should be.

use std::cell::Cell;
use std::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use rusqlite::Connection;
use rusqlite::hooks::Wal as WalHook;

thread_local! {
    /// How many pages the log had after the last commit on this thread. rusqlite's hook is a plain
    /// function, and SQLite calls it on the thread that commits.
    static NOTED: Cell<u32> = const { Cell::new(0) };
}

/// A WAL hook of rusqlite's: a plain function, which SQLite calls after each commit.
pub(super) type Hook = fn(&WalHook, i32) -> rusqlite::Result<()>;

/// The WAL hook of a connection within a group of writes.
pub(super) fn note(_: &WalHook, pages: i32) -> rusqlite::Result<()> {
    NOTED.set(u32::try_from(pages).unwrap_or(0));
    Ok(())
}

/// The WAL hook of a lease's connection.
fn note_or_checkpoint<const PAGES: i32>(wal: &WalHook, pages: i32) -> rusqlite::Result<()> {
    note(wal, pages)?;
    if pages >= PAGES {
        // A checkpoint that fails now will be tried again after the next commit.
        let _ = wal.checkpoint();
    }
    Ok(())
}

/// The WAL hook of leases' connections, where the log wants a checkpoint from so many bytes on. As a hook is
/// told nothing but the length, there is one for each of some lengths.
pub(super) fn hook(bytes: u32) -> Hook {
    const HOOKS: [(u32, Hook); 8] = [
        (24, note_or_checkpoint::<24>),
        (96, note_or_checkpoint::<96>),
        (384, note_or_checkpoint::<384>),
        (1_536, note_or_checkpoint::<1_536>),
        (6_144, note_or_checkpoint::<6_144>),
        (24_576, note_or_checkpoint::<24_576>),
        (98_304, note_or_checkpoint::<98_304>),
        (393_216, note_or_checkpoint::<393_216>),
    ];
    let wanted = pages(bytes) + pages(bytes) / 2;
    let found = HOOKS.into_iter().find(|(length, _)| *length >= wanted);
    found.map_or(note_or_checkpoint::<393_216>, |(_, hook)| hook)
}

/// So many bytes in pages of the length that SQLite gives them by itself.
fn pages(bytes: u32) -> u32 {
    const PAGE: u32 = 4096;
    (bytes / PAGE).max(1)
}

/// What the last commit on this thread noted, once.
pub(crate) fn take_noted() -> Option<u32> {
    match NOTED.take() {
        0 => None,
        pages => Some(pages),
    }
}

/// So many times as long as it should be is far too long.
const FAR: u32 = 3;

/// When the log of a file wants a checkpoint.
pub(crate) struct Wal {
    /// Pages from which on it wants one.
    limit: u32,
    /// Pages from which on it wants the next one: `limit`, or more after one that changed nothing.
    due_at: AtomicU32,
    /// Pages after the last commit that was told.
    pages: AtomicU32,
    running: Mutex<bool>,
    /// Told when a checkpoint has ended.
    ended: Condvar,
    /// The last checkpoint left frames behind that somebody still reads.
    pinned: AtomicBool,
}

/// How a checkpoint ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Checkpointed {
    /// Somebody else was running one, or was waited for in vain.
    pub(crate) busy: bool,
    /// Pages in the log.
    pub(crate) log: u32,
}

/// A checkpoint is being run; there is one at a time.
pub(crate) struct Running<'a>(&'a Wal);

impl Wal {
    /// For a log that wants a checkpoint when it has so many bytes of pages, as far as pages are as long as
    /// SQLite makes them by itself.
    pub(super) fn new(bytes: u32) -> Self {
        let limit = pages(bytes);
        Wal {
            limit,
            due_at: AtomicU32::new(limit),
            pages: AtomicU32::new(0),
            running: Mutex::new(false),
            ended: Condvar::new(),
            pinned: AtomicBool::new(false),
        }
    }

    /// Tells how long the log is now. Returns whether it wants a checkpoint.
    pub(crate) fn grew_to(&self, pages: u32) -> bool {
        if pages < self.pages.swap(pages, Relaxed) {
            // It begins anew.
            self.due_at.store(self.limit, Relaxed);
        }
        pages >= self.due_at.load(Relaxed)
    }

    /// Whether a checkpoint that could not finish should be tried again.
    pub(crate) fn wants_another_try(&self) -> bool {
        self.pinned.load(Acquire)
    }

    /// Whether writers had better wait than let it grow on.
    pub(crate) fn is_far_too_long(&self, pages: u32) -> bool {
        pages >= self.limit.saturating_mul(FAR)
    }

    /// How many pages it had after the last commit that was told.
    pub(crate) fn pages(&self) -> u32 {
        self.pages.load(Relaxed)
    }

    /// A checkpoint is to be run, unless one is: returns whether the caller is to [`run`](Wal::run) it.
    pub(crate) fn begin(&self) -> bool {
        !std::mem::replace(&mut *self.running.lock(), true)
    }

    /// The checkpoint that was begun runs until this is dropped.
    pub(crate) fn run(&self) -> Running<'_> {
        Running(self)
    }

    /// Lets whoever wants to write wait for the checkpoint that is running, if the log is far too long: the
    /// disk is slower than they are. Nobody can help it if somebody reads from the log.
    pub(crate) fn hold_back(&self, deadline: Instant) {
        if !self.is_far_too_long(self.pages()) || self.wants_another_try() {
            return;
        }
        let mut running = self.running.lock();
        while *running && !self.ended.wait_until(&mut running, deadline).timed_out() {}
    }
}

impl Running<'_> {
    /// Notes how it ended. Returns whether the log is pinned, and was not before.
    pub(crate) fn ended(&self, result: Checkpointed) -> bool {
        let wal = self.0;
        // Whether or not it could finish: the same again would do no more. Once the log begins anew, which
        // the next commit does if nobody reads from it, this is back to the limit.
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

/// In how many steps the pool copies the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passes {
    /// Most of it while others commit, and then the rest.
    Several,
    /// All of it at once, while no write of the pool's can begin. Before 3.51.3, SQLite can corrupt a database when a
    /// second checkpoint follows a complete one while another connection commits
    /// (<https://sqlite.org/wal.html#walresetbug>).
    One,
}

impl Passes {
    /// For the SQLite of this version, as `sqlite3_libversion_number` says it.
    pub(crate) fn of(version: i32) -> Self {
        /// The first without that fault.
        const MENDED: i32 = 3_051_003;
        match version < MENDED {
            true => Passes::One,
            false => Passes::Several,
        }
    }
}

/// How much a checkpoint is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It copies into the database what nobody reads from the log any more, waits for nobody, and nobody
    /// waits for it.
    Passive,
    /// It copies all, and sees to it that nobody reads from the log: the next write begins it anew. It waits
    /// for writers and readers as long as the connection's `busy_timeout`.
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
