//! A job: the work of one call of `write`, from the call to the answer.
//! It does not know when its turn comes.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rusqlite::Savepoint;

use crate::error::{Error, caught};
use crate::observe::claim::Claim;
use crate::sync::oneshot::Oneshot;
use crate::sync::unwind::quietly;

/// A job, whatever its result type.
pub(super) trait Job: Send + Sync {
    fn claim(&self) -> &Claim;

    /// The latest time at which the work may begin.
    fn deadline(&self) -> Instant;

    /// Whether its caller no longer waits and the work has not begun.
    fn is_cancelled(&self) -> bool;

    /// Does the work, once. Returns whether to keep its changes.
    fn work(&self, savepoint: &mut Savepoint<'_>) -> bool;

    /// Answers the caller: with the result of the work if it was committed, and with the error otherwise.
    fn reply(&self, outcome: Result<(), Error>);
}

/// A job that has left the queue. Dropping it replies, so that every caller gets an answer in any case.
pub(super) struct PendingJob(Option<Arc<dyn Job>>);

impl PendingJob {
    pub(super) fn new(job: Arc<dyn Job>) -> Self {
        PendingJob(Some(job))
    }

    /// Answers the caller.
    pub(super) fn reply(mut self, outcome: Result<(), Error>) {
        self.reply_once(outcome);
    }

    /// Replying runs user code (a waker, the drop of a result), which may panic. The next job must still be
    /// answered.
    fn reply_once(&mut self, outcome: Result<(), Error>) {
        if let Some(job) = self.0.take() {
            _ = quietly(|| {
                job.reply(outcome);
                drop(job);
            });
        }
    }

    pub(super) fn job(&self) -> &Arc<dyn Job> {
        match &self.0 {
            Some(job) => job,
            None => unreachable!("only a reply takes the job"),
        }
    }
}

impl std::ops::Deref for PendingJob {
    type Target = dyn Job + 'static;

    fn deref(&self) -> &(dyn Job + 'static) {
        &**self.job()
    }
}

impl Drop for PendingJob {
    fn drop(&mut self) {
        self.reply_once(Err(Error::RolledBack { source: None }));
    }
}

/// What the caller gets. There are two errors, so that the user's `From` runs on the caller's thread.
pub(super) type Answer<T, E> = Result<Result<T, E>, Error>;

pub(super) struct Write<F, T, E> {
    claim: Claim,
    deadline: Instant,
    work: Mutex<Option<F>>,
    result: Mutex<Option<Answer<T, E>>>,
    pub(super) oneshot: Oneshot<Answer<T, E>>,
}

impl<F, T, E> Write<F, T, E> {
    pub(super) fn new(claim: Claim, deadline: Instant, work: F) -> Self {
        Write {
            claim,
            deadline,
            work: Mutex::new(Some(work)),
            result: Mutex::new(None),
            oneshot: Oneshot::new(),
        }
    }

    /// Takes back the work, if it has not begun. Returns whether it had not.
    pub(super) fn withdraw(&self) -> bool {
        let work = self.work.lock().take();
        // The work may be any user value, and is dropped without the lock.
        work.is_some()
    }

    /// The caller no longer waits: the work will not begin if it has not.
    pub(super) fn cancel(&self) {
        let work = self.work.lock().take();
        drop(work);
        self.oneshot.cancel();
    }
}

impl<F, T, E> Job for Write<F, T, E>
where
    F: FnOnce(&mut Savepoint<'_>) -> Result<T, E> + Send,
    T: Send,
    E: Send,
{
    fn claim(&self) -> &Claim {
        &self.claim
    }

    fn deadline(&self) -> Instant {
        self.deadline
    }

    fn is_cancelled(&self) -> bool {
        self.work.lock().is_none()
    }

    fn work(&self, savepoint: &mut Savepoint<'_>) -> bool {
        let Some(work) = self.work.lock().take() else {
            return false;
        };
        // A panic's half-done changes are rolled back, so no other code sees them.
        let result = caught("the work given to write", || work(savepoint));
        let keep = matches!(result, Ok(Ok(_)));
        *self.result.lock() = Some(result);
        keep
    }

    fn reply(&self, outcome: Result<(), Error>) {
        let result = self.result.lock().take();
        match (outcome, result) {
            (Ok(()), Some(result)) => self.oneshot.answer(result),
            // The refused statement matters more than the result that the work made of it.
            (Err(error @ Error::NotInWrite { .. }), _) => self.oneshot.answer(Err(error)),
            (Err(error), None | Some(Ok(Ok(_)))) => self.oneshot.answer(Err(error)),
            // Its own error wins over the group's.
            (Err(_), Some(failed)) => self.oneshot.answer(failed),
            // Cancelled before it began.
            (Ok(()), None) => {}
        }
    }
}
