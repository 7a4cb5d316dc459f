//! Writer: the queues of writes, one for all agents or one for each agent's file, and the threads that serve them.
//! It writes nothing itself.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Release, SeqCst},
};
use std::time::{Duration, Instant};

use event_listener::Event;

use super::checkpoint;
use super::group_commit::{QueueHandle, locked_out};
use super::queue::WriteQueue;
use crate::core::Core;
use crate::core::backend::Backend;
use crate::error::{Error, Wanted};
use crate::observe::health::{LOCKED_OUT, WriteSigns};
use crate::observe::reserved::WRITER;
use crate::observe::stats::Stats;
use crate::sqlite::{Noted, Sqlite};
use crate::sync::keyed_map::{KeyedEntry, KeyedMap};
use crate::sync::wait::await_until;
use crate::sync::workers::WorkerPool;

/// The queue of writes to one database.
pub(super) type Queue = Arc<KeyedEntry<WriteQueue>>;

/// Limits of queues and groups.
pub(crate) struct Limits {
    /// How many writes may wait in a queue.
    pub(crate) queue: usize,
    /// How many members a group may have, and how long it may stay open before it is committed.
    pub(crate) group_members: usize,
    pub(crate) group_time: Duration,
}

pub(crate) struct Writer {
    pub(super) core: Arc<Core<Sqlite>>,
    pub(super) limits: Limits,
    pub(super) workers: Arc<WorkerPool>,
    /// The queues in use.
    queues: KeyedMap<WriteQueue>,
    /// Where all agents share one database: its queue, and the agent id under which the pool borrows the
    /// connection.
    shared: Option<(Queue, Arc<str>)>,
    closed: AtomicBool,
    /// The pool takes no more writes; it may still be open.
    closed_to_writes: AtomicBool,
    /// Writes of leases that were let in and have not ended.
    of_leases: AtomicUsize,
    /// Notified when the last of them ends, once the pool lets in no more.
    leases_done: Event,
}

/// A write of a lease, from the moment it is let in until it ends.
pub(super) struct OfLease<'a>(&'a Writer);

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
            closed_to_writes: AtomicBool::new(false),
            of_leases: AtomicUsize::new(0),
            leases_done: Event::new(),
            core,
        })
    }

    /// The queue of `agent`'s writes, and the agent whose connection the leader uses.
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

    /// Work that must happen in time even if no call is made.
    pub(crate) fn maintain(self: &Arc<Self>) {
        let now = Instant::now();
        for handle in QueueHandle::all(self) {
            handle.expire(now);
        }
        checkpoint::retry(self);
    }

    /// Handles what commits have noted about the log.
    pub(crate) fn noted(self: &Arc<Self>, noted: Noted) {
        checkpoint::noted(self, noted);
    }

    /// The log that all agents share has become too long, although commits have noted nothing.
    pub(crate) fn overlong(self: &Arc<Self>) {
        checkpoint::overlong(self);
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn workers(&self) -> &Arc<WorkerPool> {
        &self.workers
    }

    pub(super) fn all_queues(&self) -> Vec<Queue> {
        self.queues.all()
    }

    /// # Errors
    /// The reason, if the pool takes no writes.
    pub(super) fn check_takes_writes(&self) -> Result<(), Error> {
        if self.closed.load(Acquire) {
            return Err(Error::Closed);
        }
        self.core.backend.check_writable()?;
        self.check_closed_to_writes()
    }

    fn check_closed_to_writes(&self) -> Result<(), Error> {
        match self.closed_to_writes.load(SeqCst) {
            true => Err(Error::WritesClosed),
            false => Ok(()),
        }
    }

    /// Lets a lease write. A closing pool waits for its leases and lets them write.
    pub(super) fn let_lease_write(&self) -> Result<OfLease<'_>, Error> {
        self.core.backend.check_writable()?;
        // Counted before the flag is read: either the closing thread sees this write, or this thread sees the
        // flag.
        self.of_leases.fetch_add(1, SeqCst);
        let counted = OfLease(self);
        self.check_closed_to_writes()?;
        Ok(counted)
    }

    /// Why a closed queue takes no job.
    pub(super) fn refusal(&self) -> Error {
        self.check_takes_writes().err().unwrap_or(Error::Closed)
    }

    /// Refuses new writes, and waits until the queued ones are done.
    pub(crate) async fn drain(&self) {
        self.closed.store(true, Release);
        self.drain_queues().await;
    }

    /// Refuses new writes, including those of leases, and waits until all writes that were let in are done,
    /// but no longer than until `deadline`. Then it refuses those that have not begun.
    pub(crate) async fn close_to_writes(
        &self,
        asked_at: Instant,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.closed_to_writes.store(true, SeqCst);
        let drained = async {
            self.drain_queues().await;
            self.drain_leases().await;
        };
        if await_until(deadline, pin!(drained)).await.is_some() {
            return Ok(());
        }
        let waiting = self.refuse_queued(|| Error::WritesClosed);
        let core = &self.core;
        Err(core.exhausted_for(None, None, Wanted::CloseWrites, asked_at, waiting))
    }

    async fn drain_leases(&self) {
        loop {
            let done = self.leases_done.listen();
            if self.of_leases.load(SeqCst) == 0 {
                return;
            }
            done.await;
        }
    }

    async fn drain_queues(&self) {
        for queue in self.queues.all() {
            queue.close();
            queue.idle().await;
        }
    }

    /// Refuses new writes and the queued ones.
    pub(crate) fn refuse(&self) {
        self.closed.store(true, Release);
        self.refuse_queued(|| Error::Closed);
    }

    /// Refuses the queued writes. Returns how many.
    fn refuse_queued(&self, error: impl Fn() -> Error) -> usize {
        let mut refused = 0;
        for queue in self.queues.all() {
            queue.close();
            for job in queue.take_out(|_| true) {
                job.reply(Err(error()));
                refused += 1;
            }
        }
        refused
    }

    /// What a verdict needs to know of the writes.
    pub(crate) fn tell(&self, signs: &mut WriteSigns) {
        let queues = self.queues.all();
        signs.locked_out = longest_lock_out(&queues);
        signs.waiting = queues
            .iter()
            .map(|queue| queue.waiting())
            .max()
            .unwrap_or(0);
        signs.queue = self.limits.queue;
        if let Some(wal) = self.core.backend.wal() {
            signs.log = wal.pages() as usize;
            signs.log_limit = wal.limit().map(|pages| pages as usize);
            signs.log_limit_bytes = wal.limit().map(|pages| wal.bytes(pages));
            signs.pinned = wal.wants_another_try();
        }
    }

    /// # Errors
    /// `SQLITE_BUSY` if the writes of all agents have been kept out for some time. Where each agent has its own file, the
    /// others go on.
    pub(crate) fn check_ready(&self) -> Result<(), Error> {
        let Some((queue, _)) = &self.shared else {
            return Ok(());
        };
        match queue.locked_out_for(Instant::now()) {
            Some(time) if time >= LOCKED_OUT => Err(locked_out().into()),
            _ => Ok(()),
        }
    }

    /// How many tasks wait for a thread, if all threads are at work.
    pub(crate) fn backlog(&self) -> usize {
        self.workers.backlog()
    }

    pub(crate) fn observe(&self, stats: &mut Stats) {
        let queues = self.queues.all();
        stats.writes_waiting = queues.iter().map(|queue| queue.waiting()).sum();
    }
}

fn longest_lock_out(queues: &[Queue]) -> Option<Duration> {
    let now = Instant::now();
    let times = queues.iter().filter_map(|queue| queue.locked_out_for(now));
    times.max()
}

impl Drop for OfLease<'_> {
    fn drop(&mut self) {
        let writer = self.0;
        if writer.of_leases.fetch_sub(1, SeqCst) == 1 && writer.closed_to_writes.load(SeqCst) {
            writer.leases_done.notify(usize::MAX);
        }
    }
}
