//! Oneshot: the place where a caller waits for an answer, blocking or awaiting, and finds it.
//! It carries any answer, and gives it once. No foreign code runs under its lock.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

pub(crate) struct Oneshot<R>(Mutex<State<R>>);

enum State<R> {
    /// The caller does not wait yet.
    Blank,
    Waiting(Waker),
    Answered(R),
    /// The answer was taken, or is not wanted any more.
    Over,
}

impl<R> Oneshot<R> {
    pub(crate) fn new() -> Self {
        Oneshot(Mutex::new(State::Blank))
    }

    /// Gives the answer. Only the first counts.
    pub(crate) fn answer(&self, answer: R) {
        let mut state = self.0.lock();
        if let State::Answered(_) | State::Over = &*state {
            drop(state);
            // It may be the user's.
            drop(answer);
            return;
        }
        let before = std::mem::replace(&mut *state, State::Answered(answer));
        drop(state);
        if let State::Waiting(waker) = before {
            waker.wake();
        }
    }

    /// The answer is not wanted any more.
    pub(crate) fn cancel(&self) {
        let before = std::mem::replace(&mut *self.0.lock(), State::Over);
        // What is in it may be the user's, and its drop anything.
        drop(before);
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<R> {
        let mut waiting = State::Waiting(cx.waker().clone());
        let mut state = self.0.lock();
        match &*state {
            State::Blank | State::Waiting(_) => {
                std::mem::swap(&mut *state, &mut waiting);
                drop(state);
                // The waker of an earlier poll.
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

    /// The answer, once it is there. Dropping the future cancels.
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
