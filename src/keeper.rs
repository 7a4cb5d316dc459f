//! The one maintenance thread of a pool: it calls the pool at a steady pace.
//! It knows nothing of the pool but a closure, which must not keep the pool alive.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::events;

/// The handle by which a pool stops its keeper.
#[derive(Default)]
pub(crate) struct Keeper(Arc<Signal>);

#[derive(Default)]
struct Signal {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Keeper {
    /// Starts the thread, which calls `work` until that returns `false`. If none can be started, the
    /// pool works without: idle connections then stay parked until another agent needs them.
    pub(crate) fn start(&self, period: Duration, work: impl Fn() -> bool + Send + 'static) {
        let signal = Arc::clone(&self.0);
        let started = thread::Builder::new()
            .name("leasepool-keeper".to_owned())
            .spawn(move || while !signal.stopped_within(period) && work() {});
        if let Err(error) = started {
            events::no_keeper(&error);
        }
    }

    pub(crate) fn stop(&self) {
        *self.0.stopped.lock() = true;
        self.0.changed.notify_all();
    }
}

impl Signal {
    fn stopped_within(&self, period: Duration) -> bool {
        let mut stopped = self.stopped.lock();
        if !*stopped {
            self.changed.wait_for(&mut stopped, period);
        }
        *stopped
    }
}
