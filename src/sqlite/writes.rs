//! How writes are queued and grouped, and the queues: one for all, or one for each agent's file.
//! Nothing is written here.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::time::Duration;

use crate::hands::Hands;
use crate::queue::{Job, Lane};
use crate::registry::{Kept, Registry};

pub(crate) type WriteLane = Arc<Kept<Lane<Arc<dyn Job>>>>;

pub(crate) struct Writes {
    /// How many may wait in a lane, at most.
    pub(crate) queue: usize,
    /// How many a group may have, and after which time it is committed.
    pub(crate) group_members: usize,
    pub(crate) group_time: Duration,
    pub(crate) hands: Arc<Hands>,
    /// The lanes in use.
    lanes: Registry<Lane<Arc<dyn Job>>>,
    /// Where all agents share one database: its lane, and as which agent the pool borrows the connection.
    shared: Option<(WriteLane, Arc<str>)>,
    closed: AtomicBool,
}

const WRITER: &str = "leasepool: writer";

impl Writes {
    pub(crate) fn new(
        queue: usize,
        group_members: usize,
        group_time: Duration,
        threads: usize,
        shared: bool,
    ) -> Self {
        let lanes = Registry::new();
        let shared = shared.then(|| (lanes.get(WRITER, Lane::new), WRITER.into()));
        Writes {
            queue,
            group_members,
            group_time,
            hands: Hands::new("leasepool-writer", threads),
            lanes,
            shared,
            closed: AtomicBool::new(false),
        }
    }

    /// The lane of those who write to the database of `name` (see
    /// [`Backend::belongings`](crate::Backend::belongings)), and the agent whose connection does it.
    pub(crate) fn lane(&self, agent: &str, name: &str) -> (WriteLane, Arc<str>) {
        match &self.shared {
            Some((lane, writer)) => (Arc::clone(lane), Arc::clone(writer)),
            None => (self.lanes.get(name, Lane::new), agent.into()),
        }
    }

    pub(crate) fn lanes(&self) -> Vec<WriteLane> {
        self.lanes.all()
    }

    /// No lane takes any more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Release);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }
}
