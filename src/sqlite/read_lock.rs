//! ReadLock: a connection that is never lent and keeps a read transaction open while others read, so that they need no
//! system call for their own.
//! It runs no thread, and waits for no other connection.
//!
//! SQLite counts, for each lock on the log, how many connections of the process share it, under one mutex for the file.
//! The first to take a lock and the last to give it back make a system call under that mutex. While this connection has
//! the lock, no other is the first or the last.
//!
//! A reader is in the way of checkpoints: they cannot copy what was committed after its transaction began, and the log
//! cannot begin anew while it reads there. So this transaction ends at each tick, and the next one begins only if nothing
//! has been committed since the last tick. The pool's own checkpoints end it at once. Those that SQLite runs by itself
//! after a commit only try: where others commit with pauses, none of these may reach the log's end, and the log grows until
//! the pool finds it [far too long](Sqlite::is_log_far_too_long).

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::connection::Connection;
use super::file::File;
use super::opener::Opener;
use super::{Source, Sqlite};
use crate::core::backend::{Backend, CloseMode, NotClosed, Patience};
use crate::error::Error;
use crate::observe::events;

#[derive(Default)]
pub(super) struct ReadLock(Mutex<State>);

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// It did not close, and is not used any more.
    is_stuck: bool,
    /// `PRAGMA data_version` at the last tick.
    version: Option<i64>,
    /// When the lock was last wanted.
    wanted_at: Option<Instant>,
    /// How many checkpoints run.
    paused: usize,
    /// How many threads open or close a connection.
    in_hand: usize,
    closed: bool,
}

/// For how long the connection stays open after the lock was last wanted.
const LINGER: Duration = Duration::from_secs(1);

/// While this exists, the lock is not held.
pub(crate) struct Paused<'a>(&'a ReadLock);

/// While this exists, the thread has a connection in hand.
struct InHand<'a>(&'a ReadLock);

impl Sqlite {
    /// Called regularly, on a thread that may block. `wanted`: whether so many leases are taken that the lock saves time.
    ///
    /// # Errors
    /// Why the connection could not be opened.
    pub(crate) fn tick_read_lock(&self, wanted: bool) -> Result<(), Error> {
        let Source::File {
            file,
            opener,
            read_lock: Some(lock),
        } = &self.source
        else {
            return Ok(());
        };
        let wanted = wanted && !self.own_checkpoints.load(Relaxed);
        let now = Instant::now();
        let mut state = lock.0.lock();
        if wanted {
            state.wanted_at = Some(now);
        }
        // A connection that was opened while others wait for room would take theirs.
        let may_be_open = state.is_wanted(now) && !state.is_stuck && !file.open.is_short();
        let is_current = |open: &Connection| self.is_current(open);
        let stays = may_be_open && state.connection.as_ref().is_some_and(is_current);
        let is_usable = state.renew(wanted && stays);
        let goes_on = state.is_stuck || stays && is_usable;
        if !goes_on && state.connection.is_some() {
            self.close_taken(lock, state);
            return Ok(());
        }
        if !(wanted && may_be_open) || state.closed || state.connection.is_some() {
            return Ok(());
        }
        let in_hand = lock.take_in_hand(&mut state);
        drop(state);
        let connection = self.open_for_lock(file, opener)?;
        let mut state = lock.0.lock();
        state.connection = Some(connection);
        if state.closed {
            self.close_taken(lock, state);
        } else {
            drop(state);
        }
        drop(in_hand);
        Ok(())
    }

    fn open_for_lock(&self, file: &File, opener: &Opener) -> Result<Connection, Error> {
        let connection = self.open_file(file, opener, &Patience::none())?;
        // No borrower waits for this connection, so it need not wait for a lock: the next tick tries again.
        let _ = connection.busy_timeout(Duration::ZERO);
        Ok(connection)
    }

    /// Closes the connection, without the lock on the state.
    fn close_taken(&self, lock: &ReadLock, mut state: MutexGuard<'_, State>) {
        let Some(connection) = state.connection.take() else {
            return;
        };
        let in_hand = lock.take_in_hand(&mut state);
        drop(state);
        let mode = match self.is_current(&connection) {
            true => CloseMode::Retire,
            false => CloseMode::Abandon,
        };
        if let Err(NotClosed { error, connection }) = self.close(connection, mode) {
            events::close_failed(&error, connection.is_some());
            let mut state = lock.0.lock();
            state.is_stuck = connection.is_some();
            state.connection = connection;
        }
        drop(in_hand);
    }

    /// Gives the lock back until the answer is dropped: a checkpoint is about to run.
    pub(crate) fn pause_read_lock(&self) -> Option<Paused<'_>> {
        let lock = self.read_lock()?;
        let mut state = lock.0.lock();
        state.paused += 1;
        let paused = Paused(lock);
        if !state.end() {
            self.close_taken(lock, state);
        }
        Some(paused)
    }

    /// Closes the connection for good. A tick that is opening one closes it afterwards.
    pub(super) fn close_read_lock(&self) {
        if let Some(lock) = self.read_lock() {
            let mut state = lock.0.lock();
            state.closed = true;
            self.close_taken(lock, state);
        }
    }

    /// Whether no connection is open for the lock, but for one that does not close.
    pub(super) fn is_read_lock_closed(&self) -> bool {
        self.read_lock().is_none_or(|lock| {
            let state = lock.0.lock();
            state.in_hand == 0 && (state.connection.is_none() || state.is_stuck)
        })
    }

    fn read_lock(&self) -> Option<&ReadLock> {
        match &self.source {
            Source::File { read_lock, .. } => read_lock.as_deref(),
            Source::Agents(_) | Source::Memory { .. } => None,
        }
    }
}

impl ReadLock {
    fn take_in_hand(&self, state: &mut State) -> InHand<'_> {
        state.in_hand += 1;
        InHand(self)
    }
}

impl State {
    fn is_wanted(&self, now: Instant) -> bool {
        let since = self.wanted_at.map(|at| now.saturating_duration_since(at));
        since.is_some_and(|since| since <= LINGER)
    }

    fn is_held(&self) -> bool {
        let held = |open: &Connection| !open.is_autocommit();
        self.connection.as_ref().is_some_and(held)
    }

    /// Ends the transaction, and begins another one if it is wanted and nothing was committed meanwhile. Returns whether
    /// the connection can be used.
    fn renew(&mut self, wanted: bool) -> bool {
        if !self.end() {
            return false;
        }
        let may_hold = wanted && self.paused == 0;
        let Some(connection) = self.connection.as_ref().filter(|_| may_hold) else {
            self.version = None;
            return true;
        };
        let version = begin(connection).ok();
        let is_quiet = version.is_some() && version == self.version;
        self.version = version;
        is_quiet || self.end()
    }

    /// Returns whether the transaction has ended. A function that `on_open` registered may prevent that.
    fn end(&self) -> bool {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.is_held()) {
            let _ = connection.execute_batch("COMMIT");
        }
        !self.is_held()
    }
}

/// Begins a transaction and takes the lock. Returns a number that changes when another connection commits.
fn begin(connection: &Connection) -> rusqlite::Result<i64> {
    connection.execute_batch("BEGIN")?;
    let mut version = connection.prepare_cached("PRAGMA data_version")?;
    version.query_row([], |row| row.get(0))
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.0.0.lock().paused -= 1;
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.0.lock().in_hand -= 1;
    }
}
