//! What a connection needs before it is lent: nothing, a reset, or to be closed and opened anew.
//! It moves no slot.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::AcqRel;
use std::time::{Duration, Instant};

use super::agent_lock::AgentLockGuard;
use super::backend::{Backend, CheckNeeded, CloseMode, Fate, Patience};
use super::guard::{Checkout, Handle};
use super::parking::Entry;
use super::reentrancy::{self, Within};
use super::request::{OWN_OPENING, Request};
use super::slot::{OpenConnection, TakenSlot};
use super::{Core, Stuck};
use crate::error::{Error, Wanted};
use crate::observe::stats::{Counters, count};
use crate::sync::wait::await_until;

/// The wait for room ends at most this much before the caller's deadline.
const SOONER: Duration = Duration::from_millis(10);

/// What a slot needs before it can serve.
pub(super) enum Preparation {
    Nothing,
    /// A new connection. If the slot holds an old one, it must be closed first, in this mode.
    Open(Option<CloseMode>),
    /// Of a remote backend: a question to its server, a reset, or both.
    Check(Check),
}

/// What a server is to be asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check {
    probe: bool,
    reset: bool,
    /// Whether the connection was parked for the agent.
    hit: bool,
}

impl Check {
    /// Whether the server is to be asked if the connection is sound.
    pub(super) fn probes(self) -> bool {
        self.probe
    }
}

/// What became of a checkout whose connection was checked.
pub(super) enum Checked<B: Backend, H: Handle<B>> {
    Sound(Checkout<B, H>),
    /// Its connection is to be closed, in this mode.
    Unsound(Checkout<B, H>, CloseMode),
}

pub(super) enum Renewed<B: Backend, H: Handle<B>> {
    Ready(Checkout<B, H>),
    /// Its old connection cannot be closed, and its slot is out of circulation. The caller begins again with
    /// this entry and lock.
    Stuck(Arc<Entry>, Option<AgentLockGuard>),
}

impl<B: Backend> Core<B> {
    /// What the slot needs before it can serve the agent. Where each agent has its own database, `key` is
    /// that database's. Resets the connection in the slot, if it needs no more than that.
    #[inline]
    pub(super) fn inspect(
        &self,
        slot: &mut TakenSlot<B>,
        now: Instant,
        hit: bool,
        key: Option<&str>,
    ) -> Preparation {
        let index = slot.index;
        let Some(open) = &mut slot.open else {
            return Preparation::Open(None);
        };
        if open.doomed.is_some() {
            return Preparation::Open(open.doomed);
        }
        if let Some(key) = key
            && !hit
            && !self.backend.serves(&open.connection, key)
        {
            return Preparation::Open(Some(CloseMode::Evict));
        }
        self.backend.revisit(&mut open.connection, now);
        if !self.backend.is_current(&open.connection) {
            let counter = &self.counters.discarded_by_file;
            return Preparation::Open(Some(self.discard(
                counter,
                "file replaced",
                CloseMode::Abandon,
            )));
        }
        // An old connection is better than none.
        let may_replace = !B::IS_REMOTE || !self.backend.is_failing();
        if may_replace
            && let Some(limit) = self.options.max_lifetime
            && now.saturating_duration_since(open.opened_at) >= limit
        {
            let counter = &self.counters.discarded_by_age;
            return Preparation::Open(Some(self.discard(
                counter,
                "max_lifetime",
                CloseMode::Retire,
            )));
        }
        if B::IS_REMOTE {
            let check = match self.backend.needs(&mut open.connection, now) {
                CheckNeeded::Close => {
                    let counter = &self.counters.discarded_by_probe;
                    return Preparation::Open(Some(self.discard(
                        counter,
                        "probe",
                        CloseMode::Abandon,
                    )));
                }
                needed => Check {
                    probe: needed == CheckNeeded::Probe,
                    reset: !hit && open.used && self.backend.is_to_reset(&open.connection),
                    hit,
                },
            };
            if check.probe || check.reset {
                return Preparation::Check(check);
            }
        } else if !hit && open.used {
            if self.backend.reset(&mut open.connection) == Fate::Discard {
                let counter = &self.counters.discarded_by_reset;
                return Preparation::Open(Some(self.discard(counter, "reset", CloseMode::Retire)));
            }
            self.counters.resets.count(index);
        }
        open.used = true;
        Preparation::Nothing
    }

    /// Lets a worker thread ask the server. `None`: it has not answered in time. The worker waits on, with the slot and
    /// its permit.
    pub(super) async fn checked<H: Handle<B>>(
        &self,
        checkout: Checkout<B, H>,
        check: Check,
    ) -> Result<Option<Checked<B, H>>, Error> {
        let work = move || look_at(checkout, check);
        let answer = self.workers.hand_over(work).map_err(Error::no_thread)?;
        Ok(self.answered(answer).await)
    }

    /// Waits for a server's answer, for as long as the backend says.
    pub(super) async fn answered<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let Some(timeout) = self.backend.probe_timeout() else {
            return Some(answer.await);
        };
        let answered = await_until(Instant::now() + timeout, pin!(answer)).await;
        if answered.is_none() {
            self.backend.probe_timed_out();
        }
        answered
    }

    /// Closes the connection in the slot, if there is one, and opens another: on worker threads; but a thread of the
    /// pool's does both itself, and a caller that waits for no other borrower waits for its own opening, however long
    /// that takes. Waits until the request's deadline at most for what other borrowers must do first.
    pub(super) async fn renewed<H: Handle<B>>(
        &self,
        mut checkout: Checkout<B, H>,
        mode: Option<CloseMode>,
        request: &Request<'_>,
    ) -> Result<Renewed<B, H>, Error> {
        let deadline = request.deadline();
        if B::IS_REMOTE || !(request.opens_here || request.wait.is_none()) {
            let renew = move |checkout| renew(checkout, mode, deadline);
            return self.on_worker(checkout, renew).await;
        }
        if request.opens_here || self.may_vacate_here(&mut checkout, mode) {
            return renew(checkout, mode, deadline);
        }
        // The log that another agent left may be long.
        let closing = self.on_worker(checkout, move |checkout| vacated(checkout, mode));
        match await_until(Instant::now() + OWN_OPENING, pin!(closing)).await {
            Some(closed) => match closed? {
                Renewed::Ready(vacant) => renew(vacant, None, deadline),
                stuck @ Renewed::Stuck(..) => Ok(stuck),
            },
            // The worker goes on, and then gives the slot back.
            None => Err(self.timed_out(request, Wanted::Opening)),
        }
    }

    fn may_vacate_here<H: Handle<B>>(
        &self,
        checkout: &mut Checkout<B, H>,
        mode: Option<CloseMode>,
    ) -> bool {
        let open = checkout.slot_mut().and_then(|slot| slot.open.as_deref());
        match (open, mode) {
            (Some(open), Some(mode)) => {
                let mode = open.doomed.unwrap_or(mode);
                self.backend.closes_briefly(&open.connection, mode)
            }
            _ => true,
        }
    }

    /// Meanwhile the slot is not in the hands of the borrower's thread, which may have given up.
    async fn on_worker<H: Handle<B>>(
        &self,
        checkout: Checkout<B, H>,
        work: impl FnOnce(Checkout<B, H>) -> Result<Renewed<B, H>, Error> + Send + 'static,
    ) -> Result<Renewed<B, H>, Error> {
        let lot = &self.parking.lot;
        let thread = lot.borrower_left(checkout.index());
        let answer = self.workers.hand_over(move || work(checkout));
        let renewed = answer.map_err(Error::no_thread)?.await?;
        if let Renewed::Ready(checkout) = &renewed {
            lot.borrower_returned(checkout.index(), thread);
        }
        Ok(renewed)
    }

    /// Opens a connection in a vacant slot.
    fn occupy(&self, agent: &str, slot: &mut TakenSlot<B>, deadline: Instant) -> Result<(), Error> {
        // Counted before it is opened, and no longer counted only after it is closed, so that the count is
        // never below the truth. The wait for room ends a little early, so that its caller gets that error,
        // and not just a timeout.
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = Patience {
            deadline: deadline - (left / 10).min(SOONER),
            make_room: self,
        };
        let opening = Opening::new(&self.counters);
        let _within = Within::enter(self.address(), reentrancy::OPENING);
        let connection = self.backend.open(agent, &patience)?;
        opening.succeeded();
        let now = Instant::now();
        let age = self
            .options
            .max_lifetime
            .map(|lifetime| self.backend.age_when_opened(lifetime));
        if let Some(max_hold) = &self.max_hold {
            max_hold.set_connection(slot.index, self.backend.interrupter(&connection));
        }
        slot.open = Some(Box::new(OpenConnection {
            connection,
            opened_at: age.and_then(|age| now.checked_sub(age)).unwrap_or(now),
            used: true,
            doomed: None,
        }));
        Ok(())
    }
}

/// Asks the server what is to be asked. Blocks as long as the server does.
fn look_at<B: Backend, H: Handle<B>>(mut checkout: Checkout<B, H>, check: Check) -> Checked<B, H> {
    let handle = checkout.handle().clone();
    let core = handle.core();
    let Some(open) = checkout
        .slot_mut()
        .and_then(|slot| slot.open.as_deref_mut())
    else {
        return Checked::Unsound(checkout, CloseMode::Abandon);
    };
    let _within = Within::enter(core.address(), reentrancy::OPENING);
    if check.probe && core.backend.probe(&mut open.connection) == Fate::Discard {
        let counter = &core.counters.discarded_by_probe;
        let mode = core.discard(counter, "probe", CloseMode::Abandon);
        return Checked::Unsound(checkout, mode);
    }
    if check.reset {
        if core.backend.reset(&mut open.connection) == Fate::Discard {
            let mode = core.discard(
                &core.counters.discarded_by_reset,
                "reset",
                CloseMode::Abandon,
            );
            return Checked::Unsound(checkout, mode);
        }
        core.counters.resets.count(checkout.index());
    }
    Checked::Sound(checkout.used(check.hit))
}

/// Closes the connection in the slot, if there is one, and opens another. Blocks as long as SQLite and
/// `on_open` do.
fn renew<B: Backend, H: Handle<B>>(
    checkout: Checkout<B, H>,
    mode: Option<CloseMode>,
    deadline: Instant,
) -> Result<Renewed<B, H>, Error> {
    let mut checkout = match vacated(checkout, mode)? {
        Renewed::Ready(vacant) => vacant,
        stuck @ Renewed::Stuck(..) => return Ok(stuck),
    };
    let handle = checkout.handle().clone();
    let core = handle.core();
    let agent = checkout.agent().to_owned();
    let Some(slot) = checkout.slot_mut() else {
        return Err(Error::Closed);
    };
    core.occupy(&agent, slot, deadline)?;
    let lot = &core.parking.lot;
    lot.begin_loan(checkout.index(), Instant::now());
    Ok(Renewed::Ready(checkout.ready(false)))
}

/// Closes the connection in the slot, if there is one. Blocks as long as SQLite does.
fn vacated<B: Backend, H: Handle<B>>(
    mut checkout: Checkout<B, H>,
    mode: Option<CloseMode>,
) -> Result<Renewed<B, H>, Error> {
    let handle = checkout.handle().clone();
    let Some(slot) = checkout.slot_mut() else {
        return Err(Error::Closed);
    };
    if let Some(mode) = mode
        && let Err(Stuck) = handle.core().vacate(slot, mode)
    {
        let (entry, lock) = checkout.retire_stuck();
        return Ok(Renewed::Stuck(entry, lock));
    }
    Ok(Renewed::Ready(checkout))
}

/// Counts a connection as open while it is being opened, and afterwards if that succeeded.
struct Opening<'a> {
    counters: &'a Counters,
    begun: Instant,
}

impl<'a> Opening<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.open.fetch_add(1, AcqRel);
        Opening {
            counters,
            begun: Instant::now(),
        }
    }

    fn succeeded(self) {
        self.counters.open_time.record(0, self.begun.elapsed());
        count(&self.counters.opens);
        std::mem::forget(self);
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        count(&self.counters.open_failures);
        self.counters.open.fetch_sub(1, AcqRel);
    }
}
