//! The thread that keeps a read lock while many leases are taken: see [`Builder::keep_read_lock`](crate::Builder::keep_read_lock).
//! It decides when the lock is wanted; the backend has the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::core::Core;
use crate::core::reentrancy::{self, Within};
use crate::error::Error;
use crate::observe::events;
use crate::sqlite::Sqlite;
use crate::sync::ticker::Ticker;

/// How often the lock is given back and taken again while it is wanted. Another process's checkpoint waits this long.
const TICK: Duration = Duration::from_millis(10);
/// How often to look whether it is wanted again.
const REST: Duration = Duration::from_millis(100);
/// How many leases in each tick make it worth while: a lock that one reader takes alone costs a microsecond or two, and
/// a tick some twenty.
const WORTH: u64 = 16;
/// After an opening has failed.
const BACK_OFF: Duration = Duration::from_secs(1);

/// Starts the thread. It ends with the pool, or when the answer is dropped.
pub(super) fn start(core: &Arc<Core<Sqlite>>) -> Result<Ticker, Error> {
    let ticker = Ticker::default();
    let core = Arc::downgrade(core);
    let (before, pause) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = move || {
        let core = core.upgrade().filter(|core| !core.is_closed())?;
        let leases = core.counters.leases();
        let taken = leases.wrapping_sub(before.swap(leases, Relaxed));
        let ticks = pause.load(Relaxed).max(1);
        let wanted = taken >= WORTH.saturating_mul(ticks);
        let _within = Within::enter(core.address(), reentrancy::OPENING);
        let next = match core.backend.tick_read_lock(wanted) {
            Ok(()) if wanted => TICK,
            Ok(()) => REST,
            Err(error) => {
                events::no_read_lock(&core.options.name, &error);
                BACK_OFF
            }
        };
        pause.store((next.as_millis() / TICK.as_millis()) as u64, Relaxed);
        Some(next)
    };
    ticker
        .start("leasepool-read-lock", REST, work)
        .map_err(Error::no_thread)?;
    Ok(ticker)
}
