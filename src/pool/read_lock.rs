//! The thread that keeps a read lock while many leases are taken: see [`Builder::keep_read_lock`](crate::Builder::keep_read_lock).
//! It decides when the lock is wanted; the backend has the connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

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
/// How many leases in each tick make it worth while to begin: a lock that one reader takes alone costs a microsecond or
/// two, and a tick some twenty.
const WORTH: u64 = 16;
/// And to go on.
const STILL_WORTH: u64 = WORTH / 2;
/// After an opening has failed.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The last look.
struct Looked {
    leases: u64,
    at: Instant,
    wanted: bool,
}

/// Starts the thread. It ends with the pool, or when the answer is dropped.
pub(super) fn start(core: &Arc<Core<Sqlite>>) -> Result<Ticker, Error> {
    let ticker = Ticker::default();
    let core = Arc::downgrade(core);
    let last = Mutex::new(Looked {
        leases: 0,
        at: Instant::now(),
        wanted: false,
    });
    let work = move || {
        let core = core.upgrade().filter(|core| !core.is_closed())?;
        let wanted = last.lock().look(&core);
        let next = {
            // What opening calls must not close the pool and wait for that.
            let _within = Within::enter(core.address(), reentrancy::OPENING);
            match core.backend.tick_read_lock(wanted) {
                Ok(()) if wanted => TICK,
                Ok(()) => REST,
                Err(error) => {
                    events::no_read_lock(&core.options.name, &error);
                    BACK_OFF
                }
            }
        };
        if core.is_closed() {
            // It was closed meanwhile, and did not wait.
            core.wind_up();
            return None;
        }
        Some(next)
    };
    ticker
        .start("leasepool-read-lock", REST, work)
        .map_err(Error::no_thread)?;
    Ok(ticker)
}

impl Looked {
    /// Whether the lock is wanted now.
    fn look(&mut self, core: &Core<Sqlite>) -> bool {
        let (leases, now) = (core.counters.leases(), Instant::now());
        let taken = leases.wrapping_sub(self.leases);
        let ticks = now.saturating_duration_since(self.at).as_millis() / TICK.as_millis();
        let worth = if self.wanted { STILL_WORTH } else { WORTH };
        let wanted = u128::from(taken) >= u128::from(worth) * ticks.max(1);
        *self = Looked {
            leases,
            at: now,
            wanted,
        };
        wanted
    }
}
