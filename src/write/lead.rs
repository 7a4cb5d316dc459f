//! Leading a lane: connection, pen, transaction, members, commit, answers; one group after the other.
//! It knows neither who calls nor how they wait.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::nesting::Within;
use crate::error::{Error, Wanted};
use crate::lease::Lease;
use crate::lend::lend;
use crate::permits::{Claim, Refusal};
use crate::queue::{Job, Lane};
use crate::shared::Shared;
use crate::sqlite::{Group, Member, Sqlite, WriteLane, same, until};
use crate::stats::{add, count};

/// A lane of a pool's, with the agent whose connection its leader uses.
#[derive(Clone)]
pub(super) struct Post {
    pub(super) shared: Arc<Shared<Sqlite>>,
    pub(super) lane: WriteLane,
    pub(super) agent: Arc<str>,
}

impl Post {
    /// Where `agent` writes.
    pub(super) fn of(shared: &Arc<Shared<Sqlite>>, agent: &str) -> Result<Self, Error> {
        let (lane, agent) = shared.backend.lane(agent)?;
        Ok(Post {
            shared: Arc::clone(shared),
            lane,
            agent,
        })
    }

    /// One for each lane in use.
    pub(super) fn all(shared: &Arc<Shared<Sqlite>>) -> Vec<Self> {
        let lanes = shared.backend.writes.lanes().into_iter();
        let post = |lane: WriteLane| Post {
            shared: Arc::clone(shared),
            agent: Arc::clone(lane.key()),
            lane,
        };
        lanes.map(post).collect()
    }

    /// Leads until nobody waits, on a thread of the pool's.
    pub(super) fn lead(self, mut first: Option<Arc<dyn Job>>) {
        loop {
            self.lead_once(first.take(), Company::Welcome);
            if self.lane.step_down() {
                return;
            }
        }
    }

    /// Lets a thread of the pool's lead from now on.
    pub(super) fn hand_over(self, first: Option<Arc<dyn Job>>) {
        let hands = Arc::clone(&self.shared.backend.writes.hands);
        hands.take(Box::new(move || self.lead(first)));
    }

    /// Leads one group, which begins with `first` or with the first of the queue.
    pub(super) fn lead_once(&self, first: Option<Arc<dyn Job>>, company: Company) {
        // Nothing is known to panic within. If it does, that must not end the lane, and members that have no
        // answer yet get one as the group is dropped.
        let led = catch_unwind(AssertUnwindSafe(|| self.group(first, company)));
        drop(led);
    }

    fn group(&self, first: Option<Arc<dyn Job>>, company: Company) {
        let Some(first) = first.or_else(|| self.lane.next()) else {
            return;
        };
        let mut members = Members::default();
        if first.is_called_off() {
            return;
        }
        if let Some(wal) = self.shared.backend.wal() {
            wal.hold_back(first.deadline());
        }
        let mut lease = match self.connection(&first) {
            Ok(lease) => lease,
            Err(error) => return conclude(&first, Err(error)),
        };
        let pen = match self.pen(first.claim(), first.deadline()) {
            Ok(pen) => pen,
            Err(error) => return conclude(&first, Err(error)),
        };
        let outcome = match self.begin(&mut lease, &first) {
            Ok(group) => self.fill(group, first, company, &mut members),
            Err(error) => return conclude(&first, Err(error.into())),
        };
        let clean = lease.connection_mut().is_clean();
        drop(pen);
        match clean {
            true => drop(lease),
            false => Lease::discard(lease),
        }
        let counters = &self.shared.counters;
        count(&counters.write_groups);
        if outcome.is_ok() {
            add(&counters.writes, members.jobs.len() as u64);
        }
        members.outcome = outcome;
    }

    fn begin<'a>(&self, lease: &'a mut Lease, first: &Arc<dyn Job>) -> rusqlite::Result<Group<'a>> {
        let begun = Group::begin(lease.connection_mut(), || {
            self.lane.set_locked_out(true);
            let now = Instant::now();
            self.expire(now);
            now < first.deadline() && !first.is_called_off()
        });
        if begun.is_ok() {
            self.lane.set_locked_out(false);
        }
        begun
    }

    /// Lets members work until the group is full or nobody waits, and commits.
    fn fill(
        &self,
        mut group: Group<'_>,
        first: Arc<dyn Job>,
        company: Company,
        members: &mut Members,
    ) -> Result<(), Lost> {
        let limits = &self.shared.backend.writes;
        let most = match company {
            Company::Welcome => limits.group_members,
            Company::None => 1,
        };
        let started = Instant::now();
        let deadline = first.deadline();
        let within = Within::pool(&self.shared);
        let mut next = Some(first);
        while let Some(job) = next {
            match group.member(|savepoint| job.work(savepoint)) {
                Member::Done => members.jobs.push(job),
                Member::Refused(error) => members.refused.push((job, error)),
                Member::Lost => {
                    members.jobs.push(job);
                    return Err(Lost::RolledBack);
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

    /// The next whose time has not passed.
    fn next(&self, now: Instant) -> Option<Arc<dyn Job>> {
        loop {
            let job = self.lane.next()?;
            if job.is_called_off() {
                continue;
            }
            if job.deadline() > now {
                return Some(job);
            }
            conclude(&job, Err(self.too_late(job.claim())));
        }
    }

    fn connection(&self, first: &Arc<dyn Job>) -> Result<Lease, Error> {
        let now = Instant::now();
        if first.deadline() <= now {
            return Err(self.too_late(first.claim()));
        }
        let wait = first.deadline().saturating_duration_since(now);
        lend(&self.shared, &self.agent, Some(wait), first.claim().place)
    }

    /// The right to begin a transaction that writes.
    pub(super) fn pen(&self, claim: &Claim, deadline: Instant) -> Result<Pen<'_>, Error> {
        let permits = &self.lane.pen;
        let refusal = match permits.acquire_free() {
            true => return Ok(Pen(&self.lane)),
            false => permits.acquire(claim.clone(), deadline),
        };
        match refusal {
            Ok(()) => Ok(Pen(&self.lane)),
            Err(Refusal::Closed) => Err(Error::Closed),
            Err(Refusal::TimedOut { .. }) => Err(self.too_late(claim)),
        }
    }

    /// Answers those in the queue whose time has passed.
    pub(super) fn expire(&self, now: Instant) {
        for job in self.lane.take_out(|job| job.deadline() <= now) {
            conclude(&job, Err(self.too_late(job.claim())));
        }
    }

    /// Why a write that waited too long was not done.
    pub(super) fn too_late(&self, claim: &Claim) -> Error {
        if self.lane.is_locked_out() {
            return locked_out().into();
        }
        self.exhausted(claim, self.lane.waiting())
    }

    pub(super) fn exhausted(&self, claim: &Claim, waiting: usize) -> Error {
        self.shared
            .exhausted(Wanted::TurnToWrite, claim.asked_at, waiting)
    }
}

/// Whether others may join a group.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    Welcome,
    None,
}

/// What SQLite says to those who are locked out.
fn locked_out() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
        Some("somebody outside of the pool's queue holds the lock to write".to_owned()),
    )
}

/// Why nothing of a group is kept.
enum Lost {
    /// SQLite rolled it back within a member's work.
    RolledBack,
    Commit(rusqlite::Error),
}

impl Lost {
    fn error(&self) -> Error {
        match self {
            Lost::RolledBack => Error::RolledBack,
            Lost::Commit(error) => same(error).into(),
        }
    }
}

/// Those who have worked. They are told the outcome when this is dropped, in the order in which they came.
struct Members {
    jobs: Vec<Arc<dyn Job>>,
    /// Those whose work was rolled back for what it tried.
    refused: Vec<(Arc<dyn Job>, Error)>,
    outcome: Result<(), Lost>,
}

impl Default for Members {
    fn default() -> Self {
        Members {
            jobs: Vec::new(),
            refused: Vec::new(),
            // Until there is a commit.
            outcome: Err(Lost::RolledBack),
        }
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for (job, error) in self.refused.drain(..) {
            conclude(&job, Err(error));
        }
        for job in self.jobs.drain(..) {
            let outcome = match &self.outcome {
                Ok(()) => Ok(()),
                Err(lost) => Err(lost.error()),
            };
            conclude(&job, outcome);
        }
    }
}

/// Answers one caller. What that runs of the user's (a waker, the drop of what nobody waits for) may panic;
/// that is no reason not to answer the next.
pub(super) fn conclude(job: &Arc<dyn Job>, outcome: Result<(), Error>) {
    let concluded = catch_unwind(AssertUnwindSafe(|| job.conclude(outcome)));
    drop(concluded);
}

/// The right to begin a transaction that writes, which goes to the next when it is dropped.
pub(super) struct Pen<'a>(&'a Lane<Arc<dyn Job>>);

impl Drop for Pen<'_> {
    fn drop(&mut self) {
        self.0.pen.release();
    }
}
