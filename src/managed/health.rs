//! Health: what is known of a server through its connections: how often one broke, and when to connect again.
//! It asks the server nothing.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Release},
};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Fault;
use crate::error::{Error, Unreachable};
use crate::sync::jitter::fraction;

/// The shortest and the longest pause after an opening that failed.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(400));

/// What is known of one server.
#[derive(Default)]
pub(super) struct Health {
    /// How often a connection broke that had been sound until then. It makes all connections suspect that are older.
    incidents: AtomicU64,
    failing: Mutex<Option<Failing>>,
    /// Whether `failing` holds anything. Written under its lock; read by every lease, which takes no lock.
    is_failing: AtomicBool,
}

/// Openings fail.
struct Failing {
    times: u32,
    /// Until when no other opening may begin.
    until: Instant,
    /// The error of the last.
    last: Arc<Fault>,
}

impl Health {
    pub(super) fn incidents(&self) -> u64 {
        self.incidents.load(Acquire)
    }

    pub(super) fn incident(&self) {
        self.incidents.fetch_add(1, AcqRel);
    }

    pub(super) fn opened(&self) {
        let mut failing = self.failing.lock();
        *failing = None;
        self.is_failing.store(false, Release);
    }

    /// An opening failed. Returns its error, for the caller.
    pub(super) fn failed(&self, target: &str, fault: Fault) -> Error {
        let last = Arc::new(fault);
        let now = Instant::now();
        let mut failing = self.failing.lock();
        // Those that began before the last one failed belong to it.
        let (times, until) = match &*failing {
            None => (0, now + pause(0)),
            Some(failing) if failing.until > now => (failing.times, failing.until),
            Some(failing) => (failing.times + 1, now + pause(failing.times + 1)),
        };
        *failing = Some(Failing {
            times,
            until,
            last: Arc::clone(&last),
        });
        self.is_failing.store(true, Release);
        cannot_open(target, last)
    }

    /// Whether the last opening failed.
    pub(super) fn is_failing(&self) -> bool {
        self.is_failing.load(Acquire)
    }

    /// The error of the last opening, if it failed.
    pub(super) fn last_failure(&self, target: &str) -> Option<Error> {
        let failing = self.failing.lock();
        let last = &failing.as_ref()?.last;
        Some(cannot_open(target, Arc::clone(last)))
    }

    /// Until when no opening may begin, and why.
    pub(super) fn back_off(&self, target: &str, now: Instant) -> Option<(Instant, Error)> {
        let failing = self.failing.lock();
        let failing = failing.as_ref().filter(|failing| failing.until > now)?;
        let error = cannot_open(target, Arc::clone(&failing.last));
        Some((failing.until, error))
    }
}

/// Twice as long each time, up to the longest; and each time another length, so that several processes do not come at
/// the same time.
fn pause(times: u32) -> Duration {
    let (shortest, longest) = PAUSES;
    let pause = shortest.saturating_mul(1 << times.min(8)).min(longest);
    pause.mul_f64(0.5 + fraction() / 2.0)
}

fn cannot_open(target: &str, fault: Arc<Fault>) -> Error {
    Error::Open {
        target: target.to_owned(),
        source: Box::new(Unreachable(fault)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest() {
        let (shortest, longest) = PAUSES;
        for times in 0..40 {
            let pause = pause(times);
            assert!(
                pause >= shortest / 2 && pause <= longest,
                "{times}: {pause:?}"
            );
        }
        assert!(pause(30) >= longest / 2);
    }

    #[test]
    fn a_failure_is_told_until_its_pause_is_over_or_an_opening_succeeds() {
        let health = Health::default();
        let now = Instant::now();
        assert!(health.back_off("db", now).is_none());
        let error = health.failed("db", "refused".into());
        assert_eq!(error.to_string(), "cannot open db");
        let (until, told) = health.back_off("db", now).unwrap();
        let source = std::error::Error::source(&told).unwrap();
        assert_eq!(source.to_string(), "refused");
        assert!(health.back_off("db", until).is_none());
        health.opened();
        assert!(health.back_off("db", now).is_none());
    }
}
