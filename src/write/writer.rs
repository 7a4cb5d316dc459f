//! Writer: the queues of writes, one for all agents or one for each agent's file, and the threads that serve them.
//! Nothing is written here.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::time::{Duration, Instant};

use super::checkpoint;
use super::group_commit::QueueHandle;
use super::queue::WriteQueue;
use crate::core::Core;
use crate::core::backend::Backend;
use crate::error::Error;
use crate::observe::stats::Stats;
use crate::sqlite::{Noted, Sqlite};
use crate::sync::keyed_map::{KeyedEntry, KeyedMap};
use crate::sync::workers::WorkerPool;

/// The queue of those who write to one database.
pub(super) type Queue = Arc<KeyedEntry<WriteQueue>>;

/// Limits of queues and groups.
pub(crate) struct Limits {
    /// How many may wait in a queue, at most.
    pub(crate) queue: usize,
    /// How many a group may have, and after which time it is committed.
    pub(crate) group_members: usize,
    pub(crate) group_time: Duration,
}

pub(crate) struct Writer {
    pub(super) core: Arc<Core<Sqlite>>,
    pub(super) limits: Limits,
    pub(super) workers: Arc<WorkerPool>,
    /// The queues in use.
    queues: KeyedMap<WriteQueue>,
    /// Where all agents share one database: its queue, and as which agent the pool borrows the connection.
    shared: Option<(Queue, Arc<str>)>,
    closed: AtomicBool,
}

const WRITER: &str = "leasepool: writer";

impl Writer {
    pub(crate) fn new(core: Arc<Core<Sqlite>>, limits: Limits, threads: usize) -> Arc<Self> {
        let queues = KeyedMap::new();
        let overtaking = core.options.overtaking;
        let shared = (!core.backend.is_per_agent()).then(|| {
            let queue = queues.get(WRITER, || WriteQueue::new(overtaking));
            (queue, WRITER.into())
        });
        Arc::new(Writer {
            limits,
            workers: WorkerPool::new("leasepool-writer", threads),
            queues,
            shared,
            closed: AtomicBool::new(false),
            core,
        })
    }

    /// Where `agent` writes, and the agent whose connection the leader uses.
    pub(super) fn queue(&self, agent: &str) -> Result<(Queue, Arc<str>), Error> {
        if let Some((queue, writer)) = &self.shared {
            return Ok((Arc::clone(queue), Arc::clone(writer)));
        }
        Ok(self.queue_of(&self.core.lock_key(agent)?, agent))
    }

    /// The same for a caller that awaits.
    pub(super) async fn queue_async(&self, agent: &str) -> Result<(Queue, Arc<str>), Error> {
        match &self.shared {
            Some(_) => self.queue(agent),
            None => Ok(self.queue_of(&self.core.lock_key_async(agent).await?, agent)),
        }
    }

    fn queue_of(&self, key: &str, agent: &str) -> (Queue, Arc<str>) {
        let overtaking = self.core.options.overtaking;
        let queue = self.queues.get(key, || WriteQueue::new(overtaking));
        (queue, agent.into())
    }

    /// What must happen in time even if nobody calls.
    pub(crate) fn maintain(self: &Arc<Self>) {
        let now = Instant::now();
        for handle in QueueHandle::all(self) {
            handle.expire(now);
        }
        checkpoint::retry(self);
    }

    /// What commits have noted of the log.
    pub(crate) fn noted(self: &Arc<Self>, noted: Noted) {
        checkpoint::noted(self, noted);
    }

    /// The log that all agents share has become too long, though commits have noted nothing.
    pub(crate) fn overlong(self: &Arc<Self>) {
        checkpoint::overlong(self);
    }

    pub(super) fn all_queues(&self) -> Vec<Queue> {
        self.queues.all()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// Refuses new writes, and waits until those that are queued are done.
    pub(crate) async fn drain(&self) {
        self.closed.store(true, Release);
        for queue in self.queues.all() {
            queue.close();
            queue.idle().await;
        }
    }

    /// Refuses new writes, and those that are queued.
    pub(crate) fn refuse(&self) {
        self.closed.store(true, Release);
        for queue in self.queues.all() {
            queue.close();
            for job in queue.take_out(|_| true) {
                job.reply(Err(Error::Closed));
            }
        }
    }

    pub(crate) fn observe(&self, stats: &mut Stats) {
        let queues = self.queues.all();
        stats.writes_waiting = queues.iter().map(|queue| queue.waiting()).sum();
    }
}
