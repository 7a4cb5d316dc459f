//! Time in a model: it decides who may overtake, and is the same in every schedule.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// May a newcomer overtake the first in the queue, as far as the callers' clocks tell?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overtaking {
    /// Never: the order is strict.
    Never,
    /// Always: the first waits for much less than it takes.
    Always,
    /// The order is strict, but callers read the clock before the first came, so that they do not know.
    Stale,
}

impl Overtaking {
    pub(crate) fn limit(self) -> Duration {
        match self {
            Overtaking::Never | Overtaking::Stale => Duration::ZERO,
            Overtaking::Always => Duration::from_secs(1 << 30),
        }
    }

    /// What callers pass as "now": an hour after whatever a model reads from the clock, or before all of it.
    pub(crate) fn now(self) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        match self {
            Overtaking::Never | Overtaking::Always => *START + Duration::from_secs(3600),
            Overtaking::Stale => *START,
        }
    }
}
