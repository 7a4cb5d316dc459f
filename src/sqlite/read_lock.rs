//! ReadLock: a connection that is never lent and keeps a read transaction open while others read, so that they need no
//! system call for their own.
//! It runs no thread.
//!
//! SQLite counts, for each lock on the log, how many connections of the process share it, under one mutex for the file.
//! The first to take a lock and the last to give it back make a system call under that mutex. While this connection has
//! the lock, no other is the first or the last.
//!
//! A reader delays checkpoints: they cannot copy what was committed after its transaction began, and the log cannot begin
//! anew while it reads there. So this transaction ends at each tick, and the next one begins only if nothing has been
//! committed since the last tick. Before the pool's own checkpoints, it ends at once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::connection::Connection;
use super::file::File;
use super::opener::Opener;
use super::{Source, Sqlite};
use crate::core::backend::{Backend, CloseMode, Patience};
use crate::error::Error;

#[derive(Default)]
pub(super) struct ReadLock {
    /// Held for all of a tick, so that the pool does not count as closed while a tick opens the connection.
    tick: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<Connection>,
    /// `PRAGMA data_version` at the last tick.
    version: Option<i64>,
    /// When the lock was last wanted.
    wanted_at: Option<Instant>,
    /// How many checkpoints run.
    paused: usize,
    closed: bool,
}

/// For how long the connection stays open after the lock was last wanted.
const LINGER: Duration = Duration::from_secs(1);

/// While this exists, the lock is not held.
pub(crate) struct Paused<'a>(&'a ReadLock);

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
        let _tick = lock.tick.lock();
        let now = Instant::now();
        let unused = {
            let mut state = lock.state.lock();
            if wanted {
                state.wanted_at = Some(now);
            }
            state.renew(wanted);
            let stays = |open: &Connection| self.is_current(open) && !file.open.is_short();
            match &state.connection {
                Some(open) if state.is_wanted(now) && stays(open) => None,
                _ => state.connection.take(),
            }
        };
        let was_open = unused.is_some();
        if let Some(connection) = unused {
            self.close_unlent(connection);
        }
        let state = lock.state.lock();
        if !wanted || was_open || state.closed || state.connection.is_some() {
            return Ok(());
        }
        drop(state);
        let connection = self.open_for_lock(file, opener)?;
        lock.state.lock().connection = Some(connection);
        Ok(())
    }

    fn close_unlent(&self, connection: Connection) {
        let mode = match self.is_current(&connection) {
            true => CloseMode::Retire,
            false => CloseMode::Abandon,
        };
        // One that does not close has been dropped, and SQLite closes it with its last statement.
        let _ = self.close(connection, mode);
    }

    fn open_for_lock(&self, file: &File, opener: &Opener) -> Result<Connection, Error> {
        let at_once = Patience {
            deadline: Instant::now(),
            make_room: &(),
        };
        let connection = self.open_file(file, opener, &at_once)?;
        // Nobody waits for this connection, and so it waits for nobody.
        let _ = connection.busy_timeout(Duration::ZERO);
        Ok(connection)
    }

    /// Gives the lock back until the answer is dropped: a checkpoint is about to run.
    pub(crate) fn pause_read_lock(&self) -> Option<Paused<'_>> {
        let lock = self.read_lock()?;
        let mut state = lock.state.lock();
        state.paused += 1;
        state.end();
        Some(Paused(lock))
    }

    /// Closes the connection for good. Waits until a tick has ended.
    pub(super) fn close_read_lock(&self) {
        let Some(lock) = self.read_lock() else {
            return;
        };
        lock.state.lock().closed = true;
        let _tick = lock.tick.lock();
        let connection = lock.state.lock().connection.take();
        if let Some(connection) = connection {
            self.close_unlent(connection);
        }
    }

    fn read_lock(&self) -> Option<&ReadLock> {
        match &self.source {
            Source::File { read_lock, .. } => read_lock.as_deref(),
            Source::Agents(_) | Source::Memory { .. } => None,
        }
    }
}

impl State {
    fn is_wanted(&self, now: Instant) -> bool {
        let since = self.wanted_at.map(|at| now.saturating_duration_since(at));
        since.is_some_and(|since| since <= LINGER)
    }

    /// Ends the transaction, and begins another one if it is wanted and nothing was committed meanwhile.
    fn renew(&mut self, wanted: bool) {
        self.end();
        let may_hold = wanted && self.paused == 0;
        let Some(connection) = self.connection.as_ref().filter(|_| may_hold) else {
            self.version = None;
            return;
        };
        let version = begin(connection).ok();
        if version.is_none() || version != self.version {
            self.end();
        }
        self.version = version;
    }

    fn end(&self) {
        if let Some(connection) = &self.connection
            && !connection.is_autocommit()
        {
            // A transaction that only reads can always end.
            let _ = connection.execute_batch("COMMIT");
        }
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
        self.0.state.lock().paused -= 1;
    }
}
