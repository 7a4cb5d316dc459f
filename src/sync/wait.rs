//! Waiting for a future: blocking or awaited, with or without a deadline.
//! The same future serves both, so no algorithm is written twice.

use std::cell::LazyCell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use super::alarm::Alarm;

/// Blocks until the future is ready.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    with_thread_waker(|cx| {
        loop {
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => return output,
                Poll::Pending => thread::park(),
            }
        }
    })
}

/// Blocks until the future is ready, or `deadline` has passed. The future is polled once more after the
/// deadline, so that an answer at the last moment is taken.
pub(crate) fn block_until<F: Future>(
    deadline: Instant,
    mut future: Pin<&mut F>,
) -> Option<F::Output> {
    with_thread_waker(|cx| {
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Some(output);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return match future.as_mut().poll(cx) {
                    Poll::Ready(output) => Some(output),
                    Poll::Pending => None,
                };
            }
            thread::park_timeout(left);
        }
    })
}

/// The same, awaited, on any executor.
pub(crate) async fn await_until<F: Future>(
    deadline: Instant,
    mut future: Pin<&mut F>,
) -> Option<F::Output> {
    let mut alarm: Option<Alarm> = None;
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return match future.as_mut().poll(cx) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    Poll::Pending => Poll::Ready(None),
                };
            }
            let alarm = alarm.get_or_insert_with(|| Alarm::at(deadline));
            match alarm.poll(cx) {
                Poll::Pending => return Poll::Pending,
                // The timer may fire a little early.
                Poll::Ready(()) => *alarm = Alarm::at(deadline),
            }
        }
    })
    .await
}

fn with_thread_waker<R>(work: impl FnOnce(&mut Context<'_>) -> R) -> R {
    thread_local! {
        static WAKER: LazyCell<Waker> =
            LazyCell::new(|| Waker::from(Arc::new(Unpark(thread::current()))));
    }
    let fresh = || Waker::from(Arc::new(Unpark(thread::current())));
    // While the thread ends, its locals may be gone.
    let waker = WAKER
        .try_with(|waker| Waker::clone(waker))
        .unwrap_or_else(|_| fresh());
    work(&mut Context::from_waker(&waker))
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::time::Duration;

    use super::*;

    #[test]
    fn both_ways_give_up_in_time() {
        let soon = || Instant::now() + Duration::from_millis(5);
        let begun = Instant::now();
        assert_eq!(block_until(soon(), pin!(pending::<()>())), None);
        assert_eq!(
            smol::block_on(await_until(soon(), pin!(pending::<()>()))),
            None
        );
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(10), "{took:?}");
        assert_eq!(block_until(begun, pin!(async { 7 })), Some(7));
        assert_eq!(block_on(async { 8 }), 8);
    }
}
