//! JobQueue: jobs in the order in which they are to be done.
//! It does none, and has no lock of its own: it belongs to what its owner's lock protects.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A job's place in the queue.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    /// Jobs that are done first have `false` here.
    waits: bool,
    number: u64,
}

/// Jobs that are done first, and others. Both are done in the order of their calls.
pub(super) struct JobQueue<J: ?Sized> {
    jobs: BTreeMap<Ticket, Arc<J>>,
    next_number: u64,
    /// Whether the last job that was taken was to be done first.
    took_first: bool,
    /// How many jobs were taken.
    taken: u64,
}

impl Ticket {
    pub(super) fn is_first(self) -> bool {
        !self.waits
    }

    /// Whether the job was queued before that.
    pub(super) fn is_before(self, number: u64) -> bool {
        self.number < number
    }
}

impl<J: ?Sized> Default for JobQueue<J> {
    fn default() -> Self {
        JobQueue {
            jobs: BTreeMap::new(),
            next_number: 0,
            took_first: false,
            taken: 0,
        }
    }
}

impl<J: ?Sized> JobQueue<J> {
    pub(super) fn push(&mut self, job: Arc<J>, is_first: bool) -> Ticket {
        let (waits, number) = (!is_first, self.next_number);
        let ticket = Ticket { waits, number };
        self.next_number += 1;
        self.jobs.insert(ticket, job);
        ticket
    }

    /// Takes the next job. Those that are done first and the others take turns, so that none waits for ever.
    pub(super) fn take_next(&mut self) -> Option<Arc<J>> {
        let other = std::mem::take(&mut self.took_first).then(|| self.next_other());
        let ticket = other.flatten().or_else(|| self.next())?;
        self.took_first = ticket.is_first();
        self.taken += 1;
        self.remove(ticket)
    }

    /// The job that was queued before all others that are not done first.
    fn next_other(&self) -> Option<Ticket> {
        let others = Ticket {
            waits: true,
            number: 0,
        };
        let (&ticket, _) = self.jobs.range(others..).next()?;
        Some(ticket)
    }

    /// Takes this job, if it is still queued.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Arc<J>> {
        self.jobs.remove(&ticket)
    }

    /// A job that is done first, or else the one that was queued before all others.
    pub(super) fn next(&self) -> Option<Ticket> {
        self.jobs.first_key_value().map(|(&ticket, _)| ticket)
    }

    /// Those that are done first, then the others.
    pub(super) fn jobs(&self) -> impl Iterator<Item = &Arc<J>> {
        self.jobs.values()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Jobs that are queued from now on have this number or a higher one.
    pub(super) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// How many jobs were taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }
}
