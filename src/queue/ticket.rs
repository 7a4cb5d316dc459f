//! A ticket: the place where somebody waits for an answer, blocking or awaiting, and finds it.
//! It carries any answer, and gives it once.

use std::cell::LazyCell;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use parking_lot::Mutex;

pub(crate) struct Ticket<R>(Mutex<State<R>>);

enum State<R> {
    /// Nobody waits yet.
    Blank,
    Waiting(Waker),
    Answered(R),
    /// The answer was taken, or nobody wants it any more.
    Over,
}

impl<R> Ticket<R> {
    pub(crate) fn new() -> Self {
        Ticket(Mutex::new(State::Blank))
    }

    /// Gives the answer. Only the first counts.
    pub(crate) fn answer(&self, answer: R) {
        let waiting = {
            let mut state = self.0.lock();
            match &*state {
                State::Answered(_) | State::Over => return,
                State::Blank | State::Waiting(_) => {
                    std::mem::replace(&mut *state, State::Answered(answer))
                }
            }
        };
        if let State::Waiting(waker) = waiting {
            waker.wake();
        }
    }

    /// Nobody wants the answer any more.
    pub(crate) fn tear_up(&self) {
        let torn = std::mem::replace(&mut *self.0.lock(), State::Over);
        // What is in it may be the user's, and its drop anything.
        drop(torn);
    }

    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<R> {
        let mut state = self.0.lock();
        match &mut *state {
            State::Waiting(waker) => {
                waker.clone_from(cx.waker());
                Poll::Pending
            }
            State::Blank => {
                *state = State::Waiting(cx.waker().clone());
                Poll::Pending
            }
            State::Over => Poll::Pending,
            State::Answered(_) => match std::mem::replace(&mut *state, State::Over) {
                State::Answered(answer) => Poll::Ready(answer),
                _ => Poll::Pending,
            },
        }
    }

    /// Blocks until there is an answer, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Option<R> {
        THREAD.with(|waker| {
            let mut cx = Context::from_waker(waker);
            loop {
                if let Poll::Ready(answer) = self.poll(&mut cx) {
                    return Some(answer);
                }
                match deadline {
                    None => thread::park(),
                    Some(deadline) => {
                        let left = deadline.saturating_duration_since(Instant::now());
                        if left.is_zero() {
                            return None;
                        }
                        thread::park_timeout(left);
                    }
                }
            }
        })
    }
}

thread_local! {
    static THREAD: LazyCell<Waker> =
        LazyCell::new(|| Waker::from(Arc::new(Unpark(thread::current()))));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}
