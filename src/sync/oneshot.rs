//! Oneshot: carries one answer to a caller that waits for it, blocking or awaiting.
//! It gives the answer once, whatever its type. No foreign code runs under its lock.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::unwind::wake;

pub(crate) struct Oneshot<R>(Mutex<State<R>>);

enum State<R> {
    /// The caller has not polled yet.
    Blank,
    Waiting(Waker),
    Answered(R),
    /// The answer was taken, or the caller no longer wants it.
    Over,
}

impl<R> Oneshot<R> {
    pub(crate) fn new() -> Self {
        Oneshot(Mutex::new(State::Blank))
    }

    /// Gives the answer. Only the first answer counts.
    pub(crate) fn answer(&self, answer: R) {
        let mut state = self.0.lock();
        if let State::Answered(_) | State::Over = &*state {
            drop(state);
            // Dropped without the lock: it may be the user's value.
            drop(answer);
            return;
        }
        let before = std::mem::replace(&mut *state, State::Answered(answer));
        drop(state);
        if let State::Waiting(waker) = before {
            wake(waker);
        }
    }

    /// The caller no longer wants the answer.
    pub(crate) fn cancel(&self) {
        let before = std::mem::replace(&mut *self.0.lock(), State::Over);
        // Dropped without the lock: it may be the user's value, and its drop may do anything.
        drop(before);
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<R> {
        let mut waiting = State::Waiting(cx.waker().clone());
        let mut state = self.0.lock();
        match &*state {
            State::Blank | State::Waiting(_) => {
                std::mem::swap(&mut *state, &mut waiting);
                drop(state);
                // The waker of an earlier poll. It is dropped without the lock.
                drop(waiting);
                Poll::Pending
            }
            State::Over => Poll::Pending,
            State::Answered(_) => match std::mem::replace(&mut *state, State::Over) {
                State::Answered(answer) => Poll::Ready(answer),
                _ => Poll::Pending,
            },
        }
    }

    /// Waits for the answer. Dropping the future cancels.
    pub(crate) fn received(self: Arc<Self>) -> impl Future<Output = R> + Send + use<R>
    where
        R: Send,
    {
        struct Cancel<R>(Arc<Oneshot<R>>);
        impl<R> Drop for Cancel<R> {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        async move {
            let oneshot = Cancel(self);
            poll_fn(|cx| oneshot.0.poll(cx)).await
        }
    }
}
