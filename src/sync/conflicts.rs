//! Conflicts: whether jobs have to wait for each other so often that they are done faster one after the other.
//! It knows no threads, and reads no clock but that of its caller.

use std::time::{Duration, Instant};

/// If more than one job in so many had to wait for another,
const CONFLICTING: u64 = 32;
/// of so many jobs that had to,
const CONFLICTS: u64 = 4;
/// then for so long one job is done after the other.
const ALONE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(super) struct Conflicts {
    /// How many jobs had to wait, since this many jobs were taken.
    count: u64,
    since: u64,
    /// Until when one job is done after the other.
    alone_until: Option<Instant>,
}

impl Conflicts {
    /// A job had to wait for another one. `taken`: how many jobs were taken so far.
    pub(super) fn note(&mut self, taken: u64, now: Instant) {
        self.count += 1;
        if self.count >= CONFLICTS {
            if taken - self.since < self.count * CONFLICTING {
                self.alone_until = Some(now + ALONE);
            }
            self.count = 0;
            self.since = taken;
        }
    }

    /// Whether one job is to be done after the other now. The clock is read only if that depends on it.
    pub(super) fn are_many(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let alone = self.alone_until.is_some_and(|until| now() < until);
        if !alone {
            self.alone_until = None;
        }
        alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Some conflicts among many jobs are no reason to do one after the other.
    #[test]
    fn jobs_that_wait_for_each_other_are_done_one_after_the_other() {
        let (mut conflicts, mut taken) = (Conflicts::default(), 0);
        let now = Instant::now();
        for (jobs, alone) in [(CONFLICTING, false), (CONFLICTING / 2, true)] {
            for _ in 0..CONFLICTS {
                assert!(!conflicts.are_many(|| now));
                taken += jobs;
                conflicts.note(taken, now);
            }
            assert_eq!(conflicts.are_many(|| now), alone);
        }
        // Not for ever.
        assert!(!conflicts.are_many(|| now + ALONE));
        assert!(!conflicts.are_many(|| now));
    }
}
