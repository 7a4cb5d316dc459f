//! Settling: the agents whose leases worker threads are ending, because that takes a server's answer.
//! It ends none.

use std::sync::Arc;

use event_listener::Event;
use parking_lot::Mutex;

/// The agents of leases that are being ended: at most as many as there are connections.
#[derive(Default)]
pub(super) struct Settling {
    agents: Mutex<Vec<Arc<str>>>,
    /// Notified each time a lease has ended.
    ended: Event,
}

impl Settling {
    pub(super) fn begin(&self, agent: Arc<str>) {
        self.agents.lock().push(agent);
    }

    pub(super) fn end(&self, agent: &str) {
        let mut agents = self.agents.lock();
        if let Some(place) = agents.iter().position(|other| **other == *agent) {
            agents.swap_remove(place);
        }
        drop(agents);
        self.ended.notify(usize::MAX);
    }

    pub(super) fn has(&self, agent: &str) -> bool {
        self.agents.lock().iter().any(|other| **other == *agent)
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
        let agents = self.agents.lock();
        agents.iter().filter(|other| ***other == *agent).count()
    }
}
