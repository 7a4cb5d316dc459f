//! One call of `write`: it joins the lane, leads it or waits, and is answered.
//! It begins no transaction but that of a lease: `lead` does.

use std::future::poll_fn;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{DropBehavior, Savepoint, Transaction};

use super::lead::{Company, Post};
use super::nesting::{self, Within};
use crate::error::Error;
use crate::lease::Lease;
use crate::lend::check_agent;
use crate::permits::Claim;
use crate::queue::{Answer, Job, Joined, Refused, Write};
use crate::shared::Shared;
use crate::sqlite::{Sqlite, begin_immediate, until};
use crate::stats::count;

pub(super) fn write_leased<T, E, F>(
    lease: &mut Lease,
    asked_at: Instant,
    place: &'static Location<'static>,
    work: F,
) -> Answer<T, E>
where
    F: FnOnce(&mut Transaction<'_>) -> Result<T, E>,
{
    let shared = Arc::clone(lease.shared());
    nesting::check(&shared)?;
    let deadline = asked_at + shared.options.lease_timeout;
    let post = Post::of(&shared, Lease::agent(lease))?;
    let claim = Claim::new(Lease::agent(lease), asked_at, place);
    let _pen = post.pen(&claim, deadline)?;
    let _within = Within::pool(&shared);
    let mut transaction = begin(lease, deadline)?;
    let result = work(&mut transaction);
    if result.is_ok() {
        transaction.commit()?;
        count(&shared.counters.write_groups);
        count(&shared.counters.writes);
    } else {
        // SQLite may have rolled it back already; what the work returned says more than that.
        transaction.set_drop_behavior(DropBehavior::Rollback);
        transaction.finish()?;
    }
    Ok(result)
}

/// `BEGIN IMMEDIATE`, which waits for locks from outside of the queue as a group does.
fn begin(lease: &mut Lease, deadline: Instant) -> rusqlite::Result<Transaction<'_>> {
    let busy_timeout = lease.shared().backend.busy_timeout();
    lease.busy_timeout(Duration::ZERO)?;
    let begun = begin_immediate(lease, until(deadline));
    lease.busy_timeout(busy_timeout)?;
    begun
}

pub(super) fn write<T, E, F>(
    shared: &Arc<Shared<Sqlite>>,
    agent: &str,
    wait: Duration,
    place: &'static Location<'static>,
    work: F,
) -> Result<T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    let asked_at = Instant::now();
    let answer = Call::new(shared, agent, asked_at, wait, place, work).and_then(Call::wait);
    told(shared, asked_at, answer)
}

pub(crate) async fn write_async<T, E, F>(
    shared: &Arc<Shared<Sqlite>>,
    agent: &str,
    wait: Duration,
    place: &'static Location<'static>,
    work: F,
) -> Result<T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    let asked_at = Instant::now();
    let answer = match Call::new(shared, agent, asked_at, wait, place, work) {
        Ok(call) => call.answer().await,
        Err(error) => Err(error),
    };
    told(shared, asked_at, answer)
}

/// What the caller gets, counted.
pub(super) fn told<T, E: From<Error>>(
    shared: &Shared<Sqlite>,
    asked_at: Instant,
    answer: Answer<T, E>,
) -> Result<T, E> {
    let took = asked_at.elapsed();
    // Callers that write at the same time have asked at different times.
    shared
        .counters
        .write
        .record(took.subsec_nanos() as usize, took);
    if answer.is_err() {
        count(&shared.counters.write_failures);
    }
    answer?
}

/// One call of `write`. Dropping it calls off what has not begun.
struct Call<F, T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    post: Post,
    job: Arc<Write<F, T, E>>,
    answered: bool,
}

impl<F, T, E> Call<F, T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn new(
        shared: &Arc<Shared<Sqlite>>,
        agent: &str,
        asked_at: Instant,
        wait: Duration,
        place: &'static Location<'static>,
        work: F,
    ) -> Result<Self, Error> {
        check_agent(agent)?;
        nesting::check(shared)?;
        if shared.backend.writes.is_closed() {
            return Err(Error::Closed);
        }
        let claim = Claim::new(agent, asked_at, place);
        Ok(Call {
            post: Post::of(shared, agent)?,
            job: Arc::new(Write::new(claim, asked_at + wait, work)),
            answered: false,
        })
    }

    /// Blocks until there is an answer.
    fn wait(mut self) -> Answer<T, E> {
        let deadline = match self.join()? {
            Some(first) => {
                self.post.lead_once(Some(first), Company::None);
                if !self.post.lane.step_down() {
                    self.post.clone().hand_over(None);
                }
                None
            }
            None => Some(self.job.deadline()),
        };
        let answer = match self.job.ticket.wait(deadline) {
            Some(answer) => Some(answer),
            None if self.leave() => return Err(self.post.too_late(self.job.claim())),
            // It has begun, or is about to.
            None => self.job.ticket.wait(None),
        };
        self.answered = true;
        // Every job is answered.
        answer.unwrap_or(Err(Error::RolledBack))
    }

    /// Awaits the answer.
    async fn answer(mut self) -> Answer<T, E> {
        if let Some(first) = self.join()? {
            self.post.clone().hand_over(Some(first));
        }
        let answer = poll_fn(|cx| self.job.ticket.poll(cx)).await;
        self.answered = true;
        answer
    }

    /// Joins the lane. Returns the job if nobody leads: then whoever called is to see to that.
    fn join(&self) -> Result<Option<Arc<dyn Job>>, Error> {
        let job = Arc::clone(&self.job);
        let limit = self.post.shared.backend.writes.queue;
        match self.post.lane.join(job, limit) {
            Ok(Joined::Leads(job)) => Ok(Some(job)),
            Ok(Joined::Queued) => Ok(None),
            Err(Refused::Closed) => Err(Error::Closed),
            Err(Refused::Full(waiting)) => Err(self.post.exhausted(self.job.claim(), waiting)),
        }
    }

    /// Leaves the queue. Returns whether it was still in it.
    fn leave(&self) -> bool {
        let mine = Arc::as_ptr(&self.job).cast::<()>();
        let left = self
            .post
            .lane
            .take_out(|job| std::ptr::eq(Arc::as_ptr(job).cast::<()>(), mine));
        !left.is_empty()
    }
}

impl<F, T, E> Drop for Call<F, T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn drop(&mut self) {
        if !self.answered {
            self.leave();
            self.job.call_off();
        }
    }
}
