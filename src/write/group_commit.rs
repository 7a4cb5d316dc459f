//! Group commit: the leader of a queue takes a connection, the write lock and a transaction, runs the work of each member,
//! commits, and replies; one group after the other.
//! It knows neither the callers nor how they wait. It awaits the connection and the lock, so that the wait holds no thread.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use super::job::PendingJob;
use super::writer::{Queue, Writer};
use crate::core::guard::Checkout;
use crate::core::reentrancy::{self, Within};
use crate::core::request::Request;
use crate::error::{Error, Wanted};
use crate::observe::claim::Claim;
use crate::observe::stats::{add, count};
use crate::sqlite::{Commits, Group, Member, Sqlite, busy, same, until};
use crate::sync::semaphore::{Closed, Held};
use crate::sync::unwind::quietly;
use crate::sync::wait::{await_until, block_until};

/// A queue of a pool, with the agent whose connection its leader uses.
#[derive(Clone)]
pub(super) struct QueueHandle {
    pub(super) writer: Arc<Writer>,
    pub(super) queue: Queue,
    pub(super) agent: Arc<str>,
}

impl QueueHandle {
    /// The queue of `agent`'s writes.
    pub(super) fn of(writer: &Arc<Writer>, agent: &str) -> Result<Self, Error> {
        Ok(Self::new(writer, writer.queue(agent)?))
    }

    /// The same for a caller that awaits.
    pub(super) async fn of_async(writer: &Arc<Writer>, agent: &str) -> Result<Self, Error> {
        Ok(Self::new(writer, writer.queue_async(agent).await?))
    }

    fn new(writer: &Arc<Writer>, (queue, agent): (Queue, Arc<str>)) -> Self {
        QueueHandle {
            writer: Arc::clone(writer),
            queue,
            agent,
        }
    }

    /// A handle for each queue in use.
    pub(super) fn all(writer: &Arc<Writer>) -> Vec<Self> {
        let handle = |queue: Queue| QueueHandle {
            writer: Arc::clone(writer),
            agent: Arc::clone(queue.key()),
            queue,
        };
        writer.all_queues().into_iter().map(handle).collect()
    }

    /// Leads until no job waits.
    async fn lead(self, mut first: Option<PendingJob>) {
        loop {
            match self.lead_once(first.take(), Company::Welcome).await {
                Led::SteppedDown => return,
                Led::Next(next) => first = next,
            }
            if first.is_none() && self.queue.step_down() {
                return;
            }
        }
    }

    /// Lets the writer's threads lead from now on. A thread is occupied only while there is work to do.
    pub(super) fn hand_over(self, first: Option<PendingJob>) {
        let workers = Arc::clone(&self.writer.workers);
        workers.spawn(self.lead(first));
    }

    /// Leads one group, which begins with `first` or with the first job of the queue.
    pub(super) async fn lead_once(&self, first: Option<PendingJob>, company: Company) -> Led {
        let mut group = pin!(self.group(first, company));
        // No code within is known to panic. If some does, the queue must go on, and members without an answer
        // get one when the group is dropped.
        poll_fn(|cx| {
            let polled = quietly(|| group.as_mut().poll(cx));
            polled.unwrap_or(Poll::Ready(Led::Next(None)))
        })
        .await
    }

    async fn group(&self, first: Option<PendingJob>, company: Company) -> Led {
        let Some(first) = first.or_else(|| self.queue.next()) else {
            return Led::Next(None);
        };
        if first.is_cancelled() {
            return Led::Next(None);
        }
        let core = &self.writer.core;
        if let Some(wal) = core.backend.wal() {
            wal.hold_back(first.deadline());
        }
        let mut checkout = match self.connection(&first).await {
            Ok(checkout) => checkout,
            Err(error) => return self.answered(first, error),
        };
        let lock = match self.write_lock(first.claim(), first.deadline()).await {
            Ok(lock) => lock,
            Err(error) => {
                drop(checkout);
                return self.answered(first, error);
            }
        };
        // From here on, the leader awaits nothing. Members reply when this is dropped: after the lock and the
        // connection.
        let mut members = Members::default();
        let mut next = None;
        let begun = match self.begin(&mut checkout, &first) {
            Ok(group) => Ok(self.fill(group, first, company, &mut members, &mut next)),
            Err(error) => Err((first, error)),
        };
        let outcome = match begun {
            Ok(outcome) => outcome,
            Err((first, error)) => {
                drop(lock);
                drop(checkout);
                return self.answered(first, error.into());
            }
        };
        let noted = checkout.connection_mut().take_noted();
        let clean = checkout.connection().is_clean();
        drop(lock);
        if clean && next.is_none() {
            drop(checkout);
        } else {
            checkout.discard();
        }
        let counters = &core.counters;
        // The transaction may have ended before any member worked.
        if !(members.jobs.is_empty() && members.refused.is_empty()) {
            count(&counters.write_groups);
        }
        if outcome.is_ok() {
            add(&counters.writes, members.jobs.len() as u64);
        }
        members.outcome = outcome;
        // Before another leader may commit: lengths of the log must be noted in the order of the commits.
        if let Commits::Noted(noted) = noted {
            self.writer.noted(noted);
        }
        if members.jobs.len() + members.refused.len() > 1 {
            // Several callers that get answers now may write again. If this leader goes on, they form a
            // group; otherwise the first of them would lead a group of its own. That would cost a fifth of
            // the writes of 32 clients.
            drop(members);
            return Led::Next(next);
        }
        let led = self.after(next);
        drop(members);
        led
    }

    /// Ends the turn of a write that was alone, and the leader's time if no job waits. The caller gets its
    /// answer only after this: then it finds an idle writer, and need not wait for a leader that has nothing
    /// left to do.
    fn after(&self, next: Option<PendingJob>) -> Led {
        if next.is_none() && self.queue.step_down() {
            return Led::SteppedDown;
        }
        Led::Next(next)
    }

    fn answered(&self, job: PendingJob, error: Error) -> Led {
        let led = self.after(None);
        job.reply(Err(error));
        led
    }

    fn begin<'a>(
        &self,
        checkout: &'a mut Checkout<Sqlite>,
        first: &PendingJob,
    ) -> rusqlite::Result<Group<'a>> {
        let begun = Group::begin(checkout.connection_mut(), || {
            let now = Instant::now();
            self.queue.kept_out(now);
            self.expire(now);
            now < first.deadline() && !first.is_cancelled()
        });
        if begun.is_ok() {
            self.queue.let_in();
        }
        begun
    }

    /// Runs members' work until the group is full or no job waits, and commits. A job that cannot work on
    /// this connection, because of what another agent left on it, goes into `misfit`.
    fn fill(
        &self,
        mut group: Group<'_>,
        first: PendingJob,
        company: Company,
        members: &mut Members,
        misfit: &mut Option<PendingJob>,
    ) -> Result<(), Lost> {
        let limits = &self.writer.limits;
        let most = match company {
            Company::Welcome => limits.group_members,
            Company::None => 1,
        };
        let started = Instant::now();
        let deadline = first.deadline();
        let within = Within::enter(self.writer.core.address(), reentrancy::WRITE);
        let mut next = Some(first);
        while let Some(job) = next {
            if !group.welcomes(&job.claim().agent) {
                *misfit = Some(job);
                break;
            }
            match group.member(|savepoint| job.work(savepoint)) {
                Member::Done => members.jobs.push(job),
                Member::Refused(error) => members.refused.push((job, error)),
                Member::Lost(error) => {
                    members.jobs.push(job);
                    return Err(Lost::RolledBack(error));
                }
            }
            let now = Instant::now();
            if members.jobs.len() >= most
                || now.saturating_duration_since(started) >= limits.group_time
            {
                break;
            }
            next = self.next(now);
        }
        drop(within);
        group.commit(until(deadline)).map_err(Lost::Commit)
    }

    /// The next job whose deadline has not passed.
    fn next(&self, now: Instant) -> Option<PendingJob> {
        loop {
            let job = self.queue.next()?;
            if job.is_cancelled() {
                continue;
            }
            if job.deadline() > now {
                return Some(job);
            }
            let error = self.too_late(job.claim());
            job.reply(Err(error));
        }
    }

    async fn connection(&self, first: &PendingJob) -> Result<Checkout<Sqlite>, Error> {
        let claim = first.claim();
        let wait = first.deadline().saturating_duration_since(claim.asked_at);
        let request = Request::on_behalf(claim, &self.agent, wait);
        let core = &self.writer.core;
        core.checkout_async(core, request).await
    }

    /// The right to begin a transaction that writes.
    pub(super) async fn write_lock(
        &self,
        claim: &Claim,
        deadline: Instant,
    ) -> Result<Held<'_, Claim>, Error> {
        let lock = self.queue.write_lock.hold(|| claim.clone());
        self.locked(claim, await_until(deadline, pin!(lock)).await)
    }

    /// The same, blocking.
    pub(super) fn write_lock_blocking(
        &self,
        claim: &Claim,
        deadline: Instant,
    ) -> Result<Held<'_, Claim>, Error> {
        let lock = self.queue.write_lock.hold(|| claim.clone());
        self.locked(claim, block_until(deadline, pin!(lock)))
    }

    fn locked<'a>(
        &self,
        claim: &Claim,
        lock: Option<Result<Held<'a, Claim>, Closed>>,
    ) -> Result<Held<'a, Claim>, Error> {
        match lock {
            Some(lock) => lock.map_err(|Closed| Error::Closed),
            None => Err(self.too_late(claim)),
        }
    }

    /// Answers the queued jobs whose deadline has passed.
    pub(super) fn expire(&self, now: Instant) {
        for job in self.queue.take_out(|job| job.deadline() <= now) {
            let error = self.too_late(job.claim());
            job.reply(Err(error));
        }
    }

    /// The error of a write whose deadline passed before it began.
    pub(super) fn too_late(&self, claim: &Claim) -> Error {
        if self.queue.is_locked_out() {
            return locked_out().into();
        }
        self.exhausted(claim, self.queue.waiting())
    }

    pub(super) fn exhausted(&self, claim: &Claim, waiting: usize) -> Error {
        let core = &self.writer.core;
        let wanted = Wanted::TurnToWrite;
        core.exhausted_for(None, claim.thread, wanted, claim.asked_at, waiting)
    }
}

/// What a leader does after a group.
pub(super) enum Led {
    /// It stops leading: no job waited.
    SteppedDown,
    /// It goes on with this job, which could not work on the group's connection, or with the first of the
    /// queue.
    Next(Option<PendingJob>),
}

/// Whether more jobs may join a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    Welcome,
    None,
}

/// The error that SQLite returns to a connection that is locked out.
pub(super) fn locked_out() -> rusqlite::Error {
    busy(Some(
        "another process, or a connection outside of the pool's queue, holds the write lock",
    ))
}

/// Why no write of a group is kept.
enum Lost {
    /// SQLite rolled the transaction back during a member's work, or the work ended it.
    RolledBack(Option<rusqlite::Error>),
    Commit(rusqlite::Error),
}

impl Lost {
    fn error(&self) -> Error {
        match self {
            Lost::RolledBack(error) => Error::RolledBack {
                source: error.as_ref().map(same),
            },
            Lost::Commit(error) => same(error).into(),
        }
    }
}

/// The members whose work has run. Dropping this tells them the outcome, in the order in which they came.
struct Members {
    jobs: Vec<PendingJob>,
    /// Members whose work was rolled back because of a statement it tried.
    refused: Vec<(PendingJob, Error)>,
    outcome: Result<(), Lost>,
}

impl Default for Members {
    fn default() -> Self {
        Members {
            jobs: Vec::new(),
            refused: Vec::new(),
            // Until the commit.
            outcome: Err(Lost::RolledBack(None)),
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for (job, error) in self.refused.drain(..) {
            job.reply(Err(error));
        }
        for job in self.jobs.drain(..) {
            let outcome = match &self.outcome {
                Ok(()) => Ok(()),
                Err(lost) => Err(lost.error()),
            };
            job.reply(outcome);
        }
    }
}
