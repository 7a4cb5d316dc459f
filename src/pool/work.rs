//! Work that a thread of the pool does for a caller that awaits it: from the call to the answer. The thread takes the
//! lease, so that no connection is lent while the work is queued.
//! It knows no SQL.

use std::any::Any;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lease::Lease;
use super::pooled::{Backend, Lent};
use super::{Pool, Shared};
use crate::core::reentrancy::{self, Within};
use crate::core::request::{OWN_OPENING, Request};
use crate::error::{Error, Wanted};
use crate::observe::call_site::CallSite;
use crate::observe::claim::Claim;
use crate::observe::spans::Span;
use crate::sync::alarm::Alarm;
use crate::sync::job_queue::Ticket;
use crate::sync::runners::Job;
use crate::sync::unwind::drop_quietly;

/// Work for an agent, and how long its caller waits.
#[derive(Clone)]
pub(super) struct Order {
    /// What was called, for the error if the work panics.
    pub(super) call: &'static str,
    pub(super) agent: Arc<str>,
    pub(super) place: CallSite,
    pub(super) asked_at: Instant,
    /// How long it waits for a connection and for a thread. `None`: for a thread, as long as that takes.
    pub(super) wait: Option<Duration>,
    /// How long it waits for the end of the work.
    pub(super) within: Option<Duration>,
    /// From the call to the answer, also on the thread that works.
    pub(super) span: Span,
}

impl Order {
    /// For a connection to do it on.
    fn request(&self) -> Request<'_> {
        Request::of_borrower(&self.agent, self.wait, self.place).since(self.asked_at)
    }
}

/// Work that has begun, as its closure sees it.
pub(super) struct Begun<'a, B: Backend> {
    /// Says whether the work is still wanted.
    pub(super) cancel: &'a B::Cancel,
    over: &'a dyn Fn(),
}

impl<B: Backend> Begun<'_, B> {
    /// From here on, nothing interrupts the connection.
    pub(super) fn is_over(&self) {
        (self.over)();
    }
}

/// The closure that does the work.
trait Task<B: Backend, R>: FnOnce(&mut Lent<B>, &Begun<'_, B>) -> R + Send + 'static {}

impl<B, R, F> Task<B, R> for F
where
    B: Backend,
    F: FnOnce(&mut Lent<B>, &Begun<'_, B>) -> R + Send + 'static,
{
}

/// What waits in the queue of the pool's runners.
pub(super) trait HandedOver: Job {
    /// Who waits for a connection. `None` for work that has one.
    fn claim(&self) -> Option<Claim>;

    /// Refuses work whose pool is closed, if it has not begun. Returns what wakes the caller.
    fn refuse(&self) -> Option<Waker>;
}

/// The thread and the caller share it.
struct Work<B: Backend, F, R> {
    shared: Arc<Shared<B>>,
    order: Order,
    /// The caller has a lease and gets it back.
    has_lease: bool,
    state: Mutex<State<B, F, R>>,
}

enum State<B: Backend, F, R> {
    Queued {
        work: F,
        lease: Option<Lease<B>>,
        waker: Option<Waker>,
    },
    /// A thread leases a connection, or works.
    Begun {
        /// It has a lease.
        works: bool,
        /// Interrupts the work, until the user's part of it is over.
        interrupt: Option<B::Interrupt>,
        waker: Option<Waker>,
    },
    Ended(Ended<B, F, R>),
    /// The caller has its answer, or wants none any more.
    Over {
        interrupt: Option<B::Interrupt>,
    },
}

enum Ended<B: Backend, F, R> {
    /// A connection cannot be had without waiting for another borrower.
    Busy(F),
    Failed(Error),
    /// A callback of the pool's options panicked.
    Panicked(Box<dyn Any + Send>),
    Worked(Option<Lease<B>>, thread::Result<R>),
}

/// How far work is.
#[derive(Clone, Copy)]
enum Phase {
    Queued,
    Leasing,
    Working,
}

impl<B: Backend> Pool<B> {
    /// Lets a thread lease a connection, do `work` on it, and end the lease. Over a server, the caller leases: that may
    /// take as long as the server does, and a thread would wait with it.
    pub(super) async fn hand_over<F, R>(&self, order: Order, work: F) -> Result<R, Error>
    where
        F: FnOnce(&mut Lent<B>, &Begun<'_, B>) -> R + Send + 'static,
        R: Send + 'static,
    {
        let span = order.span.clone();
        span.around(self.hand_over_in_span(order, work)).await
    }

    async fn hand_over_in_span<F, R>(&self, order: Order, work: F) -> Result<R, Error>
    where
        F: FnOnce(&mut Lent<B>, &Begun<'_, B>) -> R + Send + 'static,
        R: Send + 'static,
    {
        let shared = self.shared();
        shared.core.check_origin()?;
        let work = match B::IS_REMOTE {
            true => work,
            false => match done(shared, order.clone(), None, work).await? {
                Done::Worked(_, result) => return Ok(result),
                Done::Busy(work) => work,
            },
        };
        let request = order.request().awaiting_for_a_thread();
        let lease = shared.lease_async(request).await?;
        match done(shared, order, Some(lease), work).await? {
            Done::Worked(_, result) => Ok(result),
            Done::Busy(_) => Err(Error::Closed),
        }
    }
}

impl<B: Backend> Lease<B> {
    /// Lets a thread do `work` on this lease.
    pub(super) async fn hand_over<F, R>(
        self,
        call: &'static str,
        place: CallSite,
        work: F,
    ) -> Result<(Self, R), Error>
    where
        F: FnOnce(&mut Lent<B>, &Begun<'_, B>) -> R + Send + 'static,
        R: Send + 'static,
    {
        let shared = Arc::clone(self.shared());
        shared.core.check_origin()?;
        // No task has it where it runs any more.
        self.checkout().is_handed_over();
        let order = Order {
            call,
            agent: Lease::agent(&self).into(),
            place,
            asked_at: Instant::now(),
            wait: None,
            within: None,
            span: Span::run(&shared.core.options.name, Lease::agent(&self), place),
        };
        let span = order.span.clone();
        match span.around(done(&shared, order, Some(self), work)).await? {
            Done::Worked(Some(lease), result) => Ok((lease, result)),
            _ => Err(Error::Closed),
        }
    }
}

enum Done<B: Backend, F, R> {
    Busy(F),
    Worked(Option<Lease<B>>, R),
}

/// Queues work and waits for its end.
async fn done<B, F, R>(
    shared: &Arc<Shared<B>>,
    order: Order,
    lease: Option<Lease<B>>,
    work: F,
) -> Result<Done<B, F, R>, Error>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    let call = order.call;
    let work = Arc::new(Work {
        shared: Arc::clone(shared),
        has_lease: lease.is_some(),
        order,
        state: Mutex::new(State::Queued {
            work,
            lease,
            waker: None,
        }),
    });
    let queued: Arc<dyn HandedOver> = Arc::clone(&work) as _;
    let ticket = shared.runners.submit(queued).map_err(Error::no_thread)?;
    let caller = Caller { work, ticket };
    if shared.core.is_closed() {
        // The thread that closed the pool may have looked at the queue before.
        shared.refuse_queued();
    }
    match shared.in_time(caller.ended()).await? {
        Ended::Busy(work) => Ok(Done::Busy(work)),
        Ended::Failed(error) => Err(error),
        Ended::Panicked(panic) => resume_unwind(panic),
        Ended::Worked(lease, Ok(result)) => Ok(Done::Worked(lease, result)),
        Ended::Worked(_, Err(panic)) => Err(Error::panicked(call, panic)),
    }
}

/// The caller's half. Dropping it calls the work off: work that has not begun never does, and other work is interrupted
/// until it ends.
struct Caller<B, F, R>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    work: Arc<Work<B, F, R>>,
    ticket: Ticket,
}

impl<B, F, R> Caller<B, F, R>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    /// How the work has ended.
    ///
    /// # Errors
    /// If the caller's time has passed before.
    async fn ended(&self) -> Result<Ended<B, F, R>, Error> {
        let mut alarm: Option<(Instant, Alarm)> = None;
        poll_fn(|cx| {
            loop {
                let phase = match self.work.poll(cx) {
                    Poll::Ready(ended) => {
                        self.work.shared.runners.wake_others();
                        return Poll::Ready(Ok(ended));
                    }
                    Poll::Pending => self.work.phase(),
                };
                let Some(limit) = self.work.limit(phase) else {
                    alarm = None;
                    return Poll::Pending;
                };
                if Instant::now() >= limit {
                    return Poll::Ready(Err(self.work.too_late(phase)));
                }
                let (set_to, ring) = alarm.get_or_insert_with(|| (limit, Alarm::at(limit)));
                if *set_to != limit {
                    (*set_to, *ring) = (limit, Alarm::at(limit));
                }
                if ring.poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl<B, F, R> Drop for Caller<B, F, R>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    fn drop(&mut self) {
        let work = &self.work;
        if work.shared.core.is_forked() {
            return;
        }
        let (over, before) = {
            let mut state = work.state.lock();
            let (over, interrupt) = match &mut *state {
                State::Over { .. } => return,
                State::Begun { interrupt, .. } => (false, interrupt.take()),
                State::Queued { .. } | State::Ended(_) => (true, None),
            };
            let before = std::mem::replace(&mut *state, State::Over { interrupt });
            (over, before)
        };
        work.shared.runners.withdraw(self.ticket);
        // It may have been woken to do that.
        work.shared.runners.wake_others();
        // Without the lock: these are the user's values.
        drop(before);
        if !over && work.interrupt() {
            let work = Arc::clone(work);
            let again = Box::new(move || work.interrupt());
            self.work.shared.retry_interrupt(again);
        }
    }
}

impl<B, F, R> HandedOver for Work<B, F, R>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    fn claim(&self) -> Option<Claim> {
        let order = &self.order;
        (!self.has_lease).then(|| Claim::new(Arc::clone(&order.agent), order.asked_at, order.place))
    }

    fn refuse(&self) -> Option<Waker> {
        let mut state = self.state.lock();
        if self.has_lease || !matches!(&*state, State::Queued { .. }) {
            return None;
        }
        let ended = State::Ended(Ended::Failed(Error::Closed));
        let before = std::mem::replace(&mut *state, ended);
        drop(state);
        match before {
            State::Queued { work, waker, .. } => {
                drop_quietly(work);
                waker
            }
            _ => None,
        }
    }
}

impl<B, F, R> Job for Work<B, F, R>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    fn run(self: Arc<Self>) -> Option<Waker> {
        let (work, lease) = self.begin()?;
        let ended = self.order.span.in_scope(|| self.attempt(work, lease))?;
        self.end(ended)
    }

    /// A lease that goes on may have a transaction.
    fn is_first(&self) -> bool {
        self.has_lease
    }
}

impl<B, F, R> Work<B, F, R>
where
    B: Backend,
    F: Task<B, R>,
    R: Send + 'static,
{
    fn begin(&self) -> Option<(F, Option<Lease<B>>)> {
        let mut state = self.state.lock();
        let State::Queued { waker, .. } = &mut *state else {
            return None;
        };
        let waker = waker.take();
        let begun = State::Begun {
            works: self.has_lease,
            interrupt: None,
            waker,
        };
        match std::mem::replace(&mut *state, begun) {
            State::Queued { work, lease, .. } => Some((work, lease)),
            _ => None,
        }
    }

    /// `None`: it was called off.
    fn attempt(&self, work: F, lease: Option<Lease<B>>) -> Option<Ended<B, F, R>> {
        let leased = match lease {
            Some(lease) => Ok(Ok(Some(lease))),
            None => catch_unwind(AssertUnwindSafe(|| self.lease())),
        };
        let mut lease = match leased {
            Ok(Ok(Some(lease))) => lease,
            Ok(Ok(None)) => return Some(Ended::Busy(work)),
            Ok(Err(error)) => return Some(Ended::Failed(error)),
            Err(panic) => return Some(Ended::Panicked(panic)),
        };
        let cancel = B::Cancel::default();
        let begins = match &mut *self.state.lock() {
            State::Begun {
                works, interrupt, ..
            } => {
                *works = true;
                *interrupt = Some(B::interrupt_of(lease.checkout(), &cancel));
                true
            }
            _ => false,
        };
        if !begins {
            drop_quietly((lease, work));
            return None;
        }
        let over = || match &mut *self.state.lock() {
            State::Begun { interrupt, .. } | State::Over { interrupt } => *interrupt = None,
            _ => {}
        };
        let begun = Begun {
            cancel: &cancel,
            over: &over,
        };
        let lent = lease.checkout_mut();
        let result = {
            let _within = Within::enter(self.shared.core.address(), reentrancy::RUN);
            catch_unwind(AssertUnwindSafe(|| work(lent, &begun)))
        };
        // The connection's next borrower may be another one.
        begun.is_over();
        if result.is_err() {
            // No agent gets the connection without a reset.
            lease.checkout_mut().free_at_end();
        }
        let lease = (self.has_lease && result.is_ok()).then_some(lease);
        Some(Ended::Worked(lease, result))
    }

    /// `None`: it would have to wait for another borrower.
    fn lease(&self) -> Result<Option<Lease<B>>, Error> {
        self.shared
            .lease_unless_busy(&self.order.request().handed_over())
    }

    /// Leaves the answer to the caller. If there is none any more, the answer is dropped.
    fn end(&self, ended: Ended<B, F, R>) -> Option<Waker> {
        let mut state = self.state.lock();
        let State::Begun { waker, .. } = &mut *state else {
            drop(state);
            drop_quietly(ended);
            return None;
        };
        let waker = waker.take();
        *state = State::Ended(ended);
        waker
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Ended<B, F, R>> {
        let mine = cx.waker().clone();
        let mut state = self.state.lock();
        match &mut *state {
            State::Queued { waker, .. } | State::Begun { waker, .. } => {
                let before = waker.replace(mine);
                drop(state);
                // Foreign code, so without the lock.
                drop(before);
                Poll::Pending
            }
            State::Over { .. } => Poll::Pending,
            State::Ended(_) => {
                let over = State::Over { interrupt: None };
                match std::mem::replace(&mut *state, over) {
                    State::Ended(ended) => Poll::Ready(ended),
                    _ => Poll::Pending,
                }
            }
        }
    }

    fn phase(&self) -> Phase {
        match &*self.state.lock() {
            State::Queued { .. } => Phase::Queued,
            State::Begun { works: false, .. } => Phase::Leasing,
            _ => Phase::Working,
        }
    }

    /// Until when the caller waits.
    fn limit(&self, phase: Phase) -> Option<Instant> {
        let Order {
            asked_at,
            wait,
            within,
            ..
        } = self.order;
        let limit = match phase {
            Phase::Queued => wait,
            Phase::Leasing => wait.map(|wait| wait.max(OWN_OPENING)),
            Phase::Working => within,
        };
        limit.map(|limit| asked_at + limit)
    }

    fn too_late(&self, phase: Phase) -> Error {
        let wanted = match phase {
            Phase::Queued | Phase::Leasing if self.shared.core.is_closed() => return Error::Closed,
            Phase::Queued => Wanted::Connection,
            Phase::Leasing => Wanted::Opening,
            Phase::Working => {
                return Error::Interrupted {
                    after: self.order.asked_at.elapsed(),
                };
            }
        };
        let request = self.order.request().awaiting_for_a_thread();
        self.shared.core.given_up(&request, wanted)
    }

    /// Interrupts the work. Returns whether it goes on.
    fn interrupt(&self) -> bool {
        match &*self.state.lock() {
            State::Over {
                interrupt: Some(interrupt),
            } => {
                B::interrupt(interrupt);
                true
            }
            _ => false,
        }
    }
}
