//! Ticker: one thread that calls a function again and again, until its owner is gone.
//! It knows nothing of what it calls. A call that panics does not end the thread.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::unwind::quietly;

/// Ends the thread when it is dropped.
#[derive(Default)]
pub(crate) struct Ticker(Arc<Signal>);

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
    Now,
    End,
}

impl Ticker {
    /// Starts the thread. It first calls `work` after `pause`, and then each time after the duration that
    /// `work` returned. It ends when `work` returns `None`.
    ///
    /// # Errors
    /// If no thread can be started.
    pub(crate) fn start(
        &self,
        name: &str,
        pause: Duration,
        work: impl Fn() -> Option<Duration> + Send + 'static,
    ) -> io::Result<()> {
        let signal = Arc::clone(&self.0);
        let mut next = pause;
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while signal.wait(next) != Call::End {
                    match quietly(&work) {
                        Some(Some(again)) => next = again,
                        Some(None) => break,
                        None => next = pause,
                    }
                }
            })
            .map(drop)
    }

    /// Makes the thread call `work` now.
    pub(crate) fn call(&self) {
        self.0.say(Call::Now);
    }
}

impl Drop for Ticker {
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
