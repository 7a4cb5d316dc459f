//! Waiting for another connection's lock so that the wait can be cancelled. SQLite's own busy handler cannot be:
//! `sqlite3_interrupt` does not wake it.
//! It knows no leases.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

/// Says, from any thread, that the work on a connection is no longer wanted.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub(crate) fn cancel(&self) {
        self.0.store(true, Relaxed);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// How long to wait for a lock, and what may end the wait.
struct Patience {
    cancel: Cancel,
    timeout: Duration,
    since: Instant,
    has_waited: bool,
}

thread_local! {
    /// Belongs to the work on this thread. rusqlite's busy handler is a plain function, so it finds its work
    /// here; SQLite calls it on the thread that runs the statement.
    static PATIENCE: RefCell<Option<Patience>> = const { RefCell::new(None) };
}

/// In microseconds: a commit without a sync takes some fifty, so the first steps are shorter than those of SQLite's own
/// handler. A cancelled wait ends within the last of them.
const STEPS: [u64; 9] = [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 15_000];

/// Runs `work`. Locks are waited for until `timeout` has passed, or until `cancel`. Afterwards SQLite's own
/// handler waits for `timeout` on the connection, whatever `work` set. Returns, too, whether a lock was waited for.
pub(super) fn cancellable<R>(
    connection: &mut Connection,
    timeout: Duration,
    cancel: &Cancel,
    work: impl FnOnce(&mut Connection) -> R,
) -> (R, bool) {
    let before = PATIENCE.replace(Some(Patience {
        cancel: cancel.clone(),
        timeout,
        since: Instant::now(),
        has_waited: false,
    }));
    let _restored = Restored(before);
    // It fails only for a connection that is not owned.
    let _ = connection.busy_handler(Some(wait_a_little));
    let result = work(connection);
    let _ = connection.busy_timeout(timeout);
    let has_waited =
        PATIENCE.with_borrow(|patience| patience.as_ref().is_some_and(|p| p.has_waited));
    (result, has_waited)
}

struct Restored(Option<Patience>);

impl Drop for Restored {
    fn drop(&mut self) {
        PATIENCE.set(self.0.take());
    }
}

/// SQLite's busy handler: `count` is how often it has been called for this lock.
fn wait_a_little(count: i32) -> bool {
    PATIENCE.with_borrow_mut(|patience| {
        let Some(patience) = patience else {
            return false;
        };
        if count == 0 {
            patience.since = Instant::now();
        }
        let left = patience.timeout.saturating_sub(patience.since.elapsed());
        if left.is_zero() || patience.cancel.is_cancelled() {
            return false;
        }
        patience.has_waited = true;
        let step = usize::try_from(count).unwrap_or(0).min(STEPS.len() - 1);
        let step = Duration::from_micros(STEPS.get(step).copied().unwrap_or(1_000));
        thread::sleep(step.min(left));
        true
    })
}
