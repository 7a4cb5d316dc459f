//! The one maintenance thread of a pool: it calls the pool at the pace the pool asks for.
//! It knows nothing of the pool but a closure, which must not keep the pool alive.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::events;

/// The handle by which a pool calls its keeper, and ends it when it is dropped.
#[derive(Default)]
pub(crate) struct Keeper(Arc<Signal>);

#[derive(Default)]
struct Signal {
    call: Mutex<Call>,
    changed: Condvar,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Call {
    #[default]
    None,
    /// There is work now.
    #[cfg(feature = "tokio")]
    Work,
    /// The pool is gone.
    End,
}

impl Keeper {
    /// Starts the thread. It calls `work` after `pause`, then again after the time that `work`
    /// returned, until that is `None`. If no thread can be started, the pool works without: idle
    /// connections then stay parked until another agent needs them.
    pub(crate) fn start(
        &self,
        mut pause: Duration,
        work: impl Fn() -> Option<Duration> + Send + 'static,
    ) {
        let signal = Arc::clone(&self.0);
        let started = thread::Builder::new()
            .name("leasepool-keeper".to_owned())
            .spawn(move || {
                while signal.wait(pause) != Call::End {
                    match work() {
                        Some(next) => pause = next,
                        None => break,
                    }
                }
            });
        if let Err(error) = started {
            events::no_keeper(&error);
        }
    }

    /// Lets the thread work now.
    #[cfg(feature = "tokio")]
    pub(crate) fn call(&self) {
        self.0.say(Call::Work);
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.say(Call::End);
    }
}

impl Signal {
    fn say(&self, call: Call) {
        *self.call.lock() = call;
        self.changed.notify_all();
    }

    fn wait(&self, pause: Duration) -> Call {
        let mut call = self.call.lock();
        if *call == Call::None {
            self.changed.wait_for(&mut call, pause);
        }
        match *call {
            Call::End => Call::End,
            _ => std::mem::take(&mut *call),
        }
    }
}
