//! A job: the work of one call of `write`, from the call to the answer.
//! It does not know when its turn comes.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use parking_lot::Mutex;
use rusqlite::Savepoint;

use super::ticket::Ticket;
use crate::error::Error;
use crate::permits::Claim;

/// A job, whatever it returns.
pub(crate) trait Job: Send + Sync {
    fn claim(&self) -> &Claim;

    /// By when it must have begun.
    fn deadline(&self) -> Instant;

    /// Nobody waits for it any more, and it has not begun.
    fn is_called_off(&self) -> bool;

    /// Does the work, once. Returns whether to keep what it did.
    fn work(&self, savepoint: &mut Savepoint<'_>) -> bool;

    /// Answers the caller: what the work returned, now that it is committed, or why it is not.
    fn conclude(&self, outcome: Result<(), Error>);
}

/// What the caller is told. The errors are two, so that the user's `From` runs on the caller's thread.
pub(crate) type Answer<T, E> = Result<Result<T, E>, Error>;

pub(crate) struct Write<F, T, E> {
    claim: Claim,
    deadline: Instant,
    work: Mutex<Option<F>>,
    result: Mutex<Option<Answer<T, E>>>,
    pub(crate) ticket: Ticket<Answer<T, E>>,
}

impl<F, T, E> Write<F, T, E> {
    pub(crate) fn new(claim: Claim, deadline: Instant, work: F) -> Self {
        Write {
            claim,
            deadline,
            work: Mutex::new(Some(work)),
            result: Mutex::new(None),
            ticket: Ticket::new(),
        }
    }

    /// Nobody waits for it any more: it will not begin if it has not.
    pub(crate) fn call_off(&self) {
        let work = self.work.lock().take();
        drop(work);
        self.ticket.tear_up();
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

    fn is_called_off(&self) -> bool {
        self.work.lock().is_none()
    }

    fn work(&self, savepoint: &mut Savepoint<'_>) -> bool {
        let Some(work) = self.work.lock().take() else {
            return false;
        };
        // What the work broke is rolled back, and nobody sees it.
        let result = match catch_unwind(AssertUnwindSafe(|| work(savepoint))) {
            Ok(result) => Ok(result),
            Err(panic) => Err(Error::panicked("the work given to write", &*panic)),
        };
        let keep = matches!(result, Ok(Ok(_)));
        *self.result.lock() = Some(result);
        keep
    }

    fn conclude(&self, outcome: Result<(), Error>) {
        let result = self.result.lock().take();
        match (outcome, result) {
            (Ok(()), Some(result)) => self.ticket.answer(result),
            // What it tried matters more than what it made of the refusal.
            (Err(error @ Error::NotInWrite { .. }), _) => self.ticket.answer(Err(error)),
            (Err(error), None | Some(Ok(Ok(_)))) => self.ticket.answer(Err(error)),
            // It failed by itself, and so lost nothing by what befell its group.
            (Err(_), Some(failed)) => self.ticket.answer(failed),
            // Called off before it began.
            (Ok(()), None) => {}
        }
    }
}
