//! One call of `write`: it joins the queue, leads it or waits, and gets an answer.
//! It begins only the transaction of a lease: `group_commit` begins those of groups.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{DropBehavior, Savepoint, Transaction};

use super::group_commit::{Company, Led, QueueHandle};
use super::job::{Answer, Job, Write};
use super::queue::{Joined, Refused};
use super::writer::Writer;
use crate::core::guard::{Checkout, Handle};
use crate::core::reentrancy::{self, Within};
use crate::error::Error;
use crate::observe::call_site::CallSite;
use crate::observe::claim::Claim;
use crate::observe::spans::Span;
use crate::observe::stats::count;
use crate::sqlite::{Sqlite, begin_immediate, until, without_busy_timeout};
use crate::sync::wait::{await_until, block_on, block_until};

/// After its deadline, a caller waits this much longer for the leader of its group, who knows what the wait
/// was for. A leader that gets no thread to run on may never answer.
const LEADERS_ANSWER: Duration = Duration::from_millis(30);

impl Writer {
    /// Runs `work` in its own transaction, on a lent connection.
    pub(crate) fn write_on<T, E, F, H: Handle<Sqlite>>(
        self: &Arc<Self>,
        checkout: &mut Checkout<Sqlite, H>,
        place: CallSite,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Transaction<'_>) -> Result<T, E>,
        E: From<Error>,
    {
        let asked_at = Instant::now();
        let span = Span::write(&self.core.options.name, checkout.agent(), place);
        let answer = span.in_scope(|| self.write_leased(checkout, asked_at, place, work));
        self.counted(asked_at, answer)
    }

    fn write_leased<T, E, F, H: Handle<Sqlite>>(
        self: &Arc<Self>,
        checkout: &mut Checkout<Sqlite, H>,
        asked_at: Instant,
        place: CallSite,
        work: F,
    ) -> Answer<T, E>
    where
        F: FnOnce(&mut Transaction<'_>) -> Result<T, E>,
    {
        self.check_nesting()?;
        let _let_in = self.let_lease_write()?;
        let core = &self.core;
        let deadline = asked_at + core.options.lease_timeout;
        let handle = QueueHandle::of(self, checkout.agent())?;
        let claim = Claim::new(Arc::from(checkout.agent()), asked_at, place).blocking();
        let _lock = handle.write_lock_blocking(&claim, deadline)?;
        let _within = Within::enter(core.address(), reentrancy::WRITE);
        let connection = checkout.connection_mut();
        connection.prepare_guard()?;
        let busy_timeout = without_busy_timeout(connection)?;
        let mut patience = until(deadline);
        let begun = begin_immediate(connection, || {
            handle.queue.kept_out(Instant::now());
            patience()
        });
        connection.busy_timeout(busy_timeout)?;
        if begun.is_ok() {
            handle.queue.let_in();
        }
        let mut transaction = begun?;
        let guard = connection.guard();
        let result = work(&mut transaction);
        let is_whole = guard.end(&transaction);
        if result.is_ok() && is_whole {
            transaction.commit()?;
            count(&core.counters.write_groups);
            count(&core.counters.writes);
        } else {
            // SQLite may have rolled it back already; the error of the work says more than that.
            transaction.set_drop_behavior(DropBehavior::Rollback);
            transaction.finish()?;
            if result.is_ok() {
                return Err(Error::RolledBack { source: None });
            }
        }
        Ok(result)
    }

    pub(crate) fn write<T, E, F>(
        self: &Arc<Self>,
        agent: &str,
        wait: Duration,
        place: CallSite,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let asked_at = Instant::now();
        let claim = Claim::new(Arc::from(agent), asked_at, place).blocking();
        let span = Span::write(&self.core.options.name, agent, place);
        let work = within(span.clone(), work);
        let answer = span.in_scope(|| {
            self.check_open()?;
            let handle = QueueHandle::of(self, agent)?;
            Call::new(handle, claim, wait, work).wait()
        });
        self.counted(asked_at, answer)
    }

    pub(crate) async fn write_async<T, E, F>(
        self: &Arc<Self>,
        agent: &str,
        wait: Duration,
        place: CallSite,
        work: F,
    ) -> Result<T, E>
    where
        F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let asked_at = Instant::now();
        let claim = Claim::new(Arc::from(agent), asked_at, place);
        let span = Span::write(&self.core.options.name, agent, place);
        let work = within(span.clone(), work);
        let answer = async {
            self.check_open()?;
            let handle = QueueHandle::of_async(self, agent).await?;
            Call::new(handle, claim, wait, work).answer().await
        };
        let answer = span.around(answer).await;
        self.counted(asked_at, answer)
    }

    /// Records how long the call took, and returns the caller's result.
    fn counted<T, E: From<Error>>(&self, asked_at: Instant, answer: Answer<T, E>) -> Result<T, E> {
        let took = asked_at.elapsed();
        let counters = &self.core.counters;
        // Nanoseconds spread the callers over the recorder's shards: they asked at different times.
        counters.write.record(took.subsec_nanos() as usize, took);
        if answer.is_err() {
            count(&counters.write_failures);
        }
        answer?
    }

    fn check_open(&self) -> Result<(), Error> {
        self.check_nesting()?;
        self.check_takes_writes()
    }

    fn check_nesting(&self) -> Result<(), Error> {
        self.core.check_origin()?;
        if reentrancy::is_in_write(self.core.address()) {
            return Err(Error::NestedWrite);
        }
        Ok(())
    }
}

/// The work of a call, in the span of the call, on whichever thread leads its group.
fn within<T, E>(
    span: Span,
    work: impl FnOnce(&mut Savepoint<'_>) -> Result<T, E>,
) -> impl FnOnce(&mut Savepoint<'_>) -> Result<T, E> {
    move |savepoint| span.in_scope(|| work(savepoint))
}

/// One call of `write`. Dropping it cancels work that has not begun.
struct Call<F, T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    handle: QueueHandle,
    job: Arc<Write<F, T, E>>,
    answered: bool,
}

impl<F, T, E> Call<F, T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn new(handle: QueueHandle, claim: Claim, wait: Duration, work: F) -> Self {
        let deadline = claim.asked_at + wait;
        Call {
            handle,
            job: Arc::new(Write::new(claim, deadline, work)),
            answered: false,
        }
    }

    /// Blocks until the leader answers.
    fn wait(mut self) -> Answer<T, E> {
        let job = Arc::clone(&self.job);
        let mut answer = pin!(poll_fn(|cx| job.oneshot.poll(cx)));
        let mut answered = None;
        if let Some(first) = self.join()? {
            let led = block_on(self.handle.lead_once(Some(first), Company::None));
            if let Led::Next(next) = led
                && (next.is_some() || !self.handle.queue.step_down())
            {
                self.handle.clone().hand_over(next);
            }
        } else {
            let deadline = self.job.deadline();
            answered = block_until(deadline, answer.as_mut());
            if answered.is_none() && !self.leave() {
                answered = block_until(deadline + LEADERS_ANSWER, answer.as_mut());
            }
            if answered.is_none() && self.job.withdraw() {
                return Err(self.handle.too_late(self.job.claim()));
            }
        }
        // The call has led, or its work has begun or is about to. Every job gets an answer.
        let answer = answered.unwrap_or_else(|| block_on(answer));
        self.answered = true;
        answer
    }

    /// Waits asynchronously until the leader answers.
    async fn answer(mut self) -> Answer<T, E> {
        if let Some(first) = self.join()? {
            self.handle.clone().hand_over(Some(first));
        }
        let oneshot = &self.job.oneshot;
        let mut answer = pin!(poll_fn(|cx| oneshot.poll(cx)));
        let deadline = self.job.deadline();
        let mut answered = await_until(deadline, answer.as_mut()).await;
        if answered.is_none() && !self.leave() {
            answered = await_until(deadline + LEADERS_ANSWER, answer.as_mut()).await;
        }
        if answered.is_none() && self.job.withdraw() {
            return Err(self.handle.too_late(self.job.claim()));
        }
        let answer = match answered {
            Some(answer) => answer,
            // The work has begun. Every job gets an answer.
            None => answer.await,
        };
        self.answered = true;
        answer
    }

    /// Joins the queue. Returns the job if there is no leader: then the caller must lead, or hand over.
    fn join(&self) -> Result<Option<super::job::PendingJob>, Error> {
        let job = Arc::clone(&self.job);
        let writer = &self.handle.writer;
        let limit = writer.limits.queue;
        // A queue that is created after the pool closed all queues is open: check first.
        writer.check_takes_writes()?;
        match self.handle.queue.join(job, limit) {
            Ok(Joined::Leads(job)) => Ok(Some(job)),
            Ok(Joined::Queued) => Ok(None),
            Err(Refused::Closed) => Err(writer.refusal()),
            Err(Refused::Full(waiting)) => Err(self.handle.exhausted(self.job.claim(), waiting)),
        }
    }

    /// Leaves the queue. Returns whether it was still in it.
    fn leave(&self) -> bool {
        let mine = Arc::as_ptr(&self.job).cast::<()>();
        let left = self
            .handle
            .queue
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
            self.job.cancel();
        }
    }
}
