//! Settling: the agents whose leases worker threads are ending, because that takes a server's answer.
//! It ends none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use event_listener::Event;
use parking_lot::Mutex;

/// The leases that are being ended: at most as many as there are connections.
#[derive(Default)]
pub(super) struct Settling {
    ends: Mutex<Vec<End>>,
    next: AtomicU64,
    /// Notified each time a lease has ended.
    ended: Event,
}

/// The end of a lease.
struct End {
    id: u64,
    agent: Arc<str>,
    since: Instant,
}

impl Settling {
    /// Notes that a lease is being ended, until [`end`](Settling::end).
    pub(super) fn begin(&self, agent: Arc<str>) -> u64 {
        let id = self.next.fetch_add(1, Relaxed);
        self.ends.lock().push(End {
            id,
            agent,
            since: Instant::now(),
        });
        id
    }

    pub(super) fn end(&self, id: u64) {
        self.ends.lock().retain(|end| end.id != id);
        self.ended.notify(usize::MAX);
    }

    /// Since when the agent's latest lease is being ended, if one is.
    pub(super) fn of(&self, agent: &str) -> Option<Instant> {
        let ends = self.ends.lock();
        let own = ends.iter().filter(|end| *end.agent == *agent);
        own.map(|end| end.since).max()
    }

    /// Waits until one lease of the agent has ended, if any is being ended.
    pub(super) async fn one_ended(&self, agent: &str) {
        let before = self.count(agent);
        loop {
            let ended = self.ended.listen();
            let now = self.count(agent);
            if now == 0 || now < before {
                return;
            }
            ended.await;
        }
    }

    fn count(&self, agent: &str) -> usize {
        let ends = self.ends.lock();
        ends.iter().filter(|end| *end.agent == *agent).count()
    }
}
