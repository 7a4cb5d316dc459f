//! Check-out: from the request to a connection that is ready, step by step.
//! Blocking, awaiting and non-waiting callers share every step; only the way to wait differs (`sync::wait`).
//!
//! 1. Where each agent has its own database, or a quota of leases: the agent's lock. A request that waits for it has no
//!    permit, so it keeps no other agent waiting.
//! 2. A permit.
//! 3. A slot, which a permit holder finds without waiting: the agent's own, or a free one, or another
//!    agent's.
//! 4. What the connection needs: nothing, a reset (microseconds, no I/O), or to be opened anew. A worker
//!    thread opens it, so that the caller returns in time, however slow the disk is. If the caller gives up,
//!    the worker finishes, and the connection is parked for the agent.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::agent_lock::{AgentLock, AgentLockGuard};
use super::backend::{Backend, CloseMode};
use super::guard::{Checkout, Handle, Terms};
use super::lot::{From, Loan, Taken};
use super::parking::Entry;
use super::prepare::{Check, Checked, Preparation, Renewed};
use super::request::{OWN_OPENING, Request};
use super::slot::TakenSlot;
use super::{Core, Permit};
use crate::error::{Error, Wanted};
use crate::observe::claim::Claim;
use crate::observe::events;
use crate::observe::reserved::is_reserved;
use crate::observe::spans::Span;
use crate::observe::stats::count;
use crate::sync::keyed_map::KeyedEntry;
use crate::sync::semaphore::{Closed, Held, Refusal};
use crate::sync::wait::{await_until, block_on, block_until};

/// How long a request waits at the limit around opening.
const OPENING_PATIENCE: Duration = Duration::from_millis(10);

/// How far a request got without waiting.
enum Step<B: Backend, H: Handle<B>> {
    Ready(Checkout<B, H>),
    /// A new connection must be opened. If the slot holds an old one, it is closed first, in this mode.
    Open(Checkout<B, H>, Option<CloseMode>),
    /// A server must be asked.
    Check(Checkout<B, H>, Check),
    /// A lease of the same agent is being ended: the request waits for its connection, until this instant at most.
    Settling(Instant),
}

impl<B: Backend, H: Handle<B>> Checkout<B, H> {
    #[inline]
    fn inspected(mut self, now: Instant, hit: bool) -> Step<B, H> {
        self.touch();
        match self.inspect(now, hit) {
            Preparation::Nothing => Step::Ready(self.ready(hit)),
            Preparation::Open(mode) => Step::Open(self, mode),
            Preparation::Check(check) => Step::Check(self, check),
        }
    }
}

/// The agent that needs a slot, with its lock where each agent has its own database.
type Target = (Arc<Entry>, Option<AgentLockGuard>);

impl<B: Backend> Core<B> {
    /// For a caller that may block.
    #[inline]
    pub(crate) fn checkout<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
    ) -> Result<Checkout<B, H>, Error> {
        match self.at_once(handle, request, request.asked_at)? {
            Some(Step::Ready(checkout)) => Ok(checkout),
            begun => self.checkout_slowly(handle, request, begun),
        }
    }

    fn checkout_slowly<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        begun: Option<Step<B, H>>,
    ) -> Result<Checkout<B, H>, Error> {
        // In a block: the request has left every queue when the error is made.
        let done = {
            let mut work = pin!(self.in_time(handle, request, begun, false));
            let mut done = match request.wait {
                // It waits for the disk alone, and ends by itself.
                None if !B::IS_REMOTE => Some(block_on(work.as_mut())),
                _ => block_until(request.deadline(), work.as_mut()),
            };
            if done.is_none() && request.stage() == Wanted::Opening {
                done = block_until(request.asked_at + OWN_OPENING, work.as_mut());
            }
            done
        };
        self.ended(request, done)
    }

    /// For a thread of the pool's, which may block, but waits for no other borrower's lease. `None`: it would have to.
    pub(crate) fn checkout_unless_busy<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
    ) -> Result<Option<Checkout<B, H>>, Error> {
        let now = Instant::now();
        let mut begun = self.at_once(handle, request, now)?;
        let mut _limit = None;
        if begun.is_none() && self.has_lock(request.agent) {
            // See `limit_opening`.
            if self.backend.is_per_agent() {
                match self.opening.try_hold(now) {
                    Ok(held) => _limit = Some(held),
                    Err(Refusal::Busy) => return Ok(None),
                    Err(Refusal::Closed) => return Err(Error::Closed),
                }
            }
            begun = self.unparked_at_once(handle, request, now)?;
        }
        let Some(step) = begun else {
            return Ok(None);
        };
        // It has waited for this thread.
        let waited = now.saturating_duration_since(request.asked_at);
        let claim = || request.claim(Arc::from(request.agent));
        self.slow_waits.record(waited, true, claim);
        match step {
            Step::Ready(checkout) => Ok(Some(checkout)),
            step => self.checkout_slowly(handle, request, Some(step)).map(Some),
        }
    }

    /// The error of a call that gives up while it waits for this.
    pub(crate) fn given_up(&self, request: &Request<'_>, wanted: Wanted) -> Error {
        request.set_stage(wanted);
        match self.ended::<()>(request, None) {
            Err(error) => error,
            Ok(()) => Error::Closed,
        }
    }

    /// Where each agent has its own database, and the agent's connection is not parked: what can be had without waiting
    /// for other borrowers.
    fn unparked_at_once<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<Option<Step<B, H>>, Error> {
        let found = block_on(self.entry_and_lock(request))?;
        let Some((entry, lock)) = found else {
            return Ok(None);
        };
        let guard = match AgentLockGuard::try_lock(&lock, now) {
            Ok(guard) => guard,
            Err(Refusal::Busy) => return Ok(None),
            Err(Refusal::Closed) => return Err(Error::Closed),
        };
        self.admit(request)?;
        // The agent may have become known meanwhile.
        let entry = self.parking.lot.find(request.agent).unwrap_or(entry);
        self.begin_at_once(handle, request, now, Some(entry), Some(guard))
    }

    /// Begins, if a permit is free.
    #[inline]
    fn begin_at_once<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        now: Instant,
        entry: Option<Arc<Entry>>,
        lock: Option<AgentLockGuard>,
    ) -> Result<Option<Step<B, H>>, Error> {
        match self.permits.try_acquire(now) {
            Ok(()) => {
                let permit = Permit(self);
                self.begin(handle, permit, request, now, entry, lock)
                    .map(Some)
            }
            Err(Refusal::Busy) => Ok(None),
            Err(Refusal::Closed) => Err(Error::Closed),
        }
    }

    /// For a caller that may not block.
    pub(crate) async fn checkout_async<H: Handle<B>>(
        &self,
        handle: &H,
        request: Request<'_>,
    ) -> Result<Checkout<B, H>, Error> {
        let request = &request;
        let begun = match self.at_once(handle, request, Instant::now())? {
            Some(Step::Ready(checkout)) => return Ok(checkout),
            begun => begun,
        };
        let done = {
            let mut work = pin!(self.in_time(handle, request, begun, false));
            let mut done = await_until(request.deadline(), work.as_mut()).await;
            if done.is_none() && request.stage() == Wanted::Opening {
                done = await_until(request.asked_at + OWN_OPENING, work.as_mut()).await;
            }
            done
        };
        self.ended(request, done)
    }

    /// Ends a request that may have waited. `None`: its deadline passed.
    fn ended<T>(&self, request: &Request<'_>, done: Option<Result<T, Error>>) -> Result<T, Error> {
        let done = done.unwrap_or_else(|| {
            if let Some(failure) = request.take_failure() {
                return Err(failure);
            }
            let wanted = request.stage();
            if wanted != Wanted::Opening {
                request.note_wait();
            }
            Err(self.timed_out(request, wanted))
        });
        if let Some(waited) = request.waited() {
            let claim = || request.claim(Arc::from(request.agent));
            self.slow_waits.record(waited, done.is_ok(), claim);
        }
        done
    }

    /// The error of a request that cannot wait any longer.
    pub(super) fn timed_out(&self, request: &Request<'_>, wanted: Wanted) -> Error {
        let lock = request.lock().filter(|_| wanted == Wanted::Agent);
        let waiting = match wanted {
            Wanted::Connection => self.permits.waiting(),
            Wanted::Agent => lock.map_or(0, |lock| lock.semaphore().waiting()),
            _ => 0,
        };
        // Made before the timeout is counted: the error names the present holders, and a thread that sees the
        // count may return its lease.
        let thread = request.thread();
        let error = self.exhausted_for(lock, thread, wanted, request.asked_at, waiting);
        count(&self.counters.timeouts);
        error
    }

    /// What can be had without waiting: a permit, and with it a slot. Where each agent has its own database,
    /// only if the agent's connection is parked. `None`: the caller must wait, or look further.
    #[inline]
    fn at_once<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        now: Instant,
    ) -> Result<Option<Step<B, H>>, Error> {
        self.check_origin()?;
        let (entry, lock) = if !self.has_lock(request.agent) {
            (None, None)
        } else {
            match self.lock_parked(request.agent, now) {
                Some((entry, lock)) => {
                    self.admit(request)?;
                    (Some(entry), Some(lock))
                }
                None => return Ok(None),
            }
        };
        self.begin_at_once(handle, request, now, entry, lock)
    }

    /// Takes the agent's lock, if it is free and the agent's connection is parked.
    fn lock_parked(&self, agent: &str, now: Instant) -> Option<(Arc<Entry>, AgentLockGuard)> {
        let entry = self.parking.lot.find(agent)?;
        let lock = entry.lock.as_ref().filter(|_| entry.has_slot())?;
        let guard = AgentLockGuard::try_lock(lock, now).ok()?;
        Some((entry, guard))
    }

    /// All remaining steps, however long they take. `may_open`: the time that the backend gives for opening has begun.
    async fn in_time<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        mut begun: Option<Step<B, H>>,
        may_open: bool,
    ) -> Result<Checkout<B, H>, Error> {
        let mut target = match begun {
            None => self.lock_target(request).await?,
            Some(_) => None,
        };
        let _limit = match &target {
            Some((entry, _)) => self.limit_opening(request, entry).await,
            None => None,
        };
        loop {
            let step = match begun.take() {
                Some(step) => step,
                None => {
                    let found = match target.take() {
                        // It is the second attempt, or there is no lock.
                        None => self.lock_target(request).await?,
                        found => found,
                    };
                    let (entry, lock) = found.unwrap_or_else(|| (self.entry(request.agent), None));
                    let (permit, now) = self.permit_for(request, &entry).await?;
                    // The agent may have become known while the request waited.
                    let entry = self.parking.lot.find(request.agent).unwrap_or(entry);
                    self.begin(handle, permit, request, now, Some(entry), lock)?
                }
            };
            let (checkout, mode) = match step {
                Step::Ready(checkout) => return Ok(checkout),
                Step::Settling(until) => {
                    request.set_stage(Wanted::Connection);
                    let ended = self.settling.one_ended(request.agent);
                    // If it takes longer, the request takes another slot.
                    let _ = await_until(until, pin!(ended)).await;
                    continue;
                }
                Step::Open(checkout, mode) => (checkout, mode),
                // One question is enough: what is suspect is replaced.
                Step::Check(checkout, check) if may_open && check.probes() => {
                    (checkout, Some(CloseMode::Abandon))
                }
                Step::Check(checkout, check) => {
                    request.set_stage(Wanted::Opening);
                    match self.checked(checkout, check).await? {
                        Some(Checked::Sound(checkout)) => return Ok(checkout),
                        Some(Checked::Unsound(checkout, mode)) => (checkout, Some(mode)),
                        // The worker waits on, with that slot.
                        None if may_open => continue,
                        None => return self.in_time_to_open(handle, request, None).await,
                    }
                }
            };
            if !may_open && self.backend.open_timeout().is_some() {
                let open = Some(Step::Open(checkout, mode));
                return self.in_time_to_open(handle, request, open).await;
            }
            if let Some((until, failure)) = self.backend.back_off(Instant::now()) {
                // It waits without a slot.
                drop(checkout);
                self.pause(request, until, failure).await?;
                continue;
            }
            request.set_stage(Wanted::Opening);
            match self.renewed(checkout, mode, request).await {
                Ok(Renewed::Ready(checkout)) => return Ok(checkout),
                Ok(Renewed::Stuck(entry, lock)) => target = Some((entry, lock)),
                Err(failure @ Error::Open { .. }) if B::IS_REMOTE => {
                    let now = Instant::now();
                    let until = self.backend.back_off(now).map_or(now, |(until, _)| until);
                    self.pause(request, until, failure).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// All remaining steps, in the time that the backend gives for opening a connection. Workers finish what they have
    /// begun, with the slots and their permits, so that what they open counts.
    async fn in_time_to_open<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        begun: Option<Step<B, H>>,
    ) -> Result<Checkout<B, H>, Error> {
        let work = Box::pin(self.in_time(handle, request, begun, true));
        let Some(timeout) = self.backend.open_timeout() else {
            return work.await;
        };
        match await_until(Instant::now() + timeout, pin!(work)).await {
            Some(done) => done,
            None => Err(match (request.take_failure(), request.stage()) {
                (Some(failure), _) => failure,
                (None, Wanted::Opening) => self.backend.open_timed_out(),
                (None, wanted) => {
                    request.note_wait();
                    self.timed_out(request, wanted)
                }
            }),
        }
    }

    /// Waits until a connection may be opened again, or one has come back.
    async fn pause(
        &self,
        request: &Request<'_>,
        until: Instant,
        failure: Error,
    ) -> Result<(), Error> {
        if request.wait.is_none() || self.permits.is_closed() {
            return Err(failure);
        }
        request.set_stage(Wanted::Connection);
        let came_back = self.came_back.listen();
        request.fail_later(failure);
        if !self.permits.is_closed() {
            await_until(until, pin!(came_back)).await;
        }
        Ok(())
    }

    /// Where each agent has its own database: the agent's entry, locked.
    async fn lock_target(&self, request: &Request<'_>) -> Result<Option<Target>, Error> {
        let Some((entry, lock)) = self.entry_and_lock(request).await? else {
            return Ok(None);
        };
        let guard = self.lock_agent(request, &entry, &lock).await?;
        // The agent may have become known, or been evicted, while this request waited.
        let entry = self.parking.lot.find(request.agent).unwrap_or(entry);
        Ok(Some((entry, Some(guard))))
    }

    /// The lock of an agent, where each agent has its own database.
    pub(super) async fn agent_lock(
        &self,
        request: &Request<'_>,
    ) -> Result<Option<AgentLockGuard>, Error> {
        Ok(self.lock_target(request).await?.and_then(|(_, lock)| lock))
    }

    /// Whether a lease of the agent needs a lock: where each agent has its own database, or a quota. The pool's own
    /// borrowers have none.
    #[inline]
    fn has_lock(&self, agent: &str) -> bool {
        self.locks.is_some() && (self.backend.is_per_agent() || !is_reserved(agent))
    }

    /// The agent's entry, which may not be known yet, and its lock, if it has one.
    #[allow(clippy::type_complexity, reason = "it is taken apart at once")]
    async fn entry_and_lock(
        &self,
        request: &Request<'_>,
    ) -> Result<Option<(Arc<Entry>, Arc<KeyedEntry<AgentLock>>)>, Error> {
        let Some(locks) = self.locks.as_ref().filter(|_| self.has_lock(request.agent)) else {
            return Ok(None);
        };
        if let Some(entry) = self.parking.lot.find(request.agent)
            && let Some(lock) = entry.lock.clone()
        {
            request.set_lock(&lock);
            return Ok(Some((entry, lock)));
        }
        let key = match request.thread() {
            Some(_) => self.lock_key(request.agent)?,
            None => self.lock_key_async(request.agent).await?,
        };
        let lock = locks.get(&key);
        if self.permits.is_closed() {
            return Err(Error::Closed);
        }
        request.set_lock(&lock);
        let entry = Entry::new(Arc::from(request.agent), Some(Arc::clone(&lock)));
        Ok(Some((entry, lock)))
    }

    /// Checks that this process serves the agent; or that it does not, for a request about what is left of it.
    fn admit(&self, request: &Request<'_>) -> Result<(), Error> {
        match (self.backend.admit(request.agent), request.of_stranger) {
            (Err(Error::NotHere { .. }), true) => Ok(()),
            (Ok(()), true) => Err(Error::Unsupported {
                operation: "Agent::remove_leftovers",
                reason: "the agent belongs to this process: use Agent::remove",
            }),
            (admitted, _) => admitted,
        }
    }

    async fn lock_agent(
        &self,
        request: &Request<'_>,
        entry: &Arc<Entry>,
        lock: &Arc<KeyedEntry<AgentLock>>,
    ) -> Result<AgentLockGuard, Error> {
        match AgentLockGuard::try_lock(lock, Instant::now()) {
            Ok(guard) => {
                self.admit(request)?;
                return Ok(guard);
            }
            Err(Refusal::Closed) => return Err(Error::Closed),
            Err(Refusal::Busy) => {}
        }
        // There may be nothing to wait for.
        self.admit(request)?;
        self.check_patience(request, Wanted::Agent)?;
        let claim = request.claim(Arc::clone(&entry.agent));
        let waiting = AgentLockGuard::lock(lock, claim.clone());
        let answer = Span::wait(&self.options.name, &claim.agent)
            .around(waiting)
            .await;
        request.note_wait();
        let guard = answer.map_err(|Closed| Error::Closed)?;
        // The previous holder may have handed the agent over.
        self.admit(request)?;
        Ok(guard)
    }

    /// The limit around opening, where each agent has its own database and this agent's connection is not
    /// parked. Only a few files are opened at a time. SQLite opens files one after the other, so more
    /// openings would only hold slots, in which other agents' connections could stay parked. `None` if the
    /// limit is not needed, or if waiting at it takes too long: slow callbacks of some agents must not stop
    /// others from opening.
    async fn limit_opening(
        &self,
        request: &Request<'_>,
        entry: &Arc<Entry>,
    ) -> Option<Held<'_, Claim>> {
        // A request that may not wait takes what is available now.
        let is_needed = self.backend.is_per_agent() && request.wait.is_some();
        if !is_needed || entry.has_slot() || self.permits.free() == 0 {
            return None;
        }
        let patience = Instant::now() + OPENING_PATIENCE;
        let claim = || request.claim(Arc::clone(&entry.agent));
        await_until(patience, pin!(self.opening.hold(claim)))
            .await?
            .ok()
    }

    /// Notes what the request is about to wait for, or refuses a request that may not wait.
    fn check_patience(&self, request: &Request<'_>, wanted: Wanted) -> Result<(), Error> {
        if request.wait.is_none() {
            return Err(self.timed_out(request, wanted));
        }
        request.set_stage(wanted);
        Ok(())
    }

    /// A permit, and when it was taken.
    async fn permit_for(
        &self,
        request: &Request<'_>,
        entry: &Arc<Entry>,
    ) -> Result<(Permit<'_, B>, Instant), Error> {
        // The request may have waited long for the agent's lock.
        let now = Instant::now();
        match self.permits.try_acquire(now) {
            Ok(()) => Ok((Permit(self), now)),
            Err(Refusal::Closed) => Err(Error::Closed),
            Err(Refusal::Busy) => {
                self.check_patience(request, Wanted::Connection)?;
                request.take_failure();
                let claim = request.claim(Arc::clone(&entry.agent));
                let permit = self.permit(claim).await;
                request.note_wait();
                Ok((permit?, Instant::now()))
            }
        }
    }

    /// Waits for a permit.
    pub(super) async fn permit(&self, claim: Claim) -> Result<Permit<'_, B>, Error> {
        let acquire = async {
            let acquired = self.permits.acquire(claim.clone()).await;
            acquired.map(|()| Permit(self))
        };
        let answer = Span::wait(&self.options.name, &claim.agent)
            .around(acquire)
            .await;
        answer.map_err(|Closed| Error::Closed)
    }

    /// Turns a permit into a checkout, with the agent's own connection or any other, and says what the
    /// connection still needs. Never blocks.
    #[inline]
    fn begin<H: Handle<B>>(
        &self,
        handle: &H,
        permit: Permit<'_, B>,
        request: &Request<'_>,
        now: Instant,
        entry: Option<Arc<Entry>>,
        lock: Option<AgentLockGuard>,
    ) -> Result<Step<B, H>, Error> {
        self.backend.refresh(now);
        let loan = request.loan(now);
        let terms = Terms {
            is_limited: request.is_limited,
            has_waited: request.opens_here || request.waited().is_some(),
        };
        if entry.is_none()
            && let Some((slot, entry)) = self.parking.lot.take_hinted(request.agent, loan)
        {
            permit.pass_on();
            let checkout = Checkout::new(handle, entry, slot, lock, terms);
            return Ok(checkout.inspected(now, true));
        }
        // Before the search: what ends meanwhile is found.
        let settling = match B::IS_REMOTE && request.wait.is_some() {
            true => self.settling.of(request.agent),
            false => None,
        };
        let entry = match entry {
            Some(entry) if settling.is_none() => entry,
            _ => self.entry(request.agent),
        };
        // Before what follows: `take` alone would prefer it only to a free slot.
        let own = match settling.is_some() || self.backend.is_failing() {
            true => self.parking.lot.take_own(&entry, loan),
            false => None,
        };
        if let Some(since) = settling
            && own.is_none()
            && !entry.is_anonymous()
            && request.waits_for_own()
        {
            let patience = self.backend.probe_timeout().unwrap_or_default();
            let half = request.wait.unwrap_or_default() / 2;
            return Ok(Step::Settling(
                (since + patience).min(request.asked_at + half),
            ));
        }
        let taken = own.or_else(|| self.take(entry, lock.as_ref(), loan));
        // The rule guarantees a slot to a permit holder.
        let Some(Taken { slot, entry, from }) = taken else {
            return Err(Error::Closed);
        };
        permit.pass_on();
        let hit = matches!(from, From::Agent);
        let checkout = Checkout::new(handle, entry, slot, lock, terms);
        if let From::Other(loser) = &from {
            events::reclaimed(&self.options.name, &loser.agent);
        }
        if !hit && self.runs_out_of_room() {
            self.tidy_soon();
        }
        Ok(checkout.inspected(now, hit))
    }

    /// The agent's entry, or a new one that is not known yet.
    fn entry(&self, agent: &str) -> Arc<Entry> {
        let known = self.parking.lot.find(agent);
        known.unwrap_or_else(|| Entry::new(Arc::from(agent), None))
    }

    /// The agent's slot, or any other. Where each agent has its own database: the slot with a connection to
    /// it, wherever that slot is.
    fn take(
        &self,
        entry: Arc<Entry>,
        lock: Option<&AgentLockGuard>,
        loan: Loan,
    ) -> Option<Taken<TakenSlot<B>, Arc<KeyedEntry<AgentLock>>>> {
        let lot = &self.parking.lot;
        // Parked for another agent with the same database, or free because the agent was evicted.
        if let Some(key) = self.database_of(lock)
            && !entry.has_slot()
            && self.backend.is_open(key)
            && let Some(taken) =
                lot.take_matching_for(&entry, loan, |slot, _| self.is_open_to(slot, key))
        {
            return Some(taken);
        }
        // Where no connection can be opened, one that is open serves, if another agent can do without it.
        if B::IS_REMOTE
            && self.backend.is_failing()
            && let Some(taken) = lot.take_matching_for(&entry, loan, |slot, _| {
                slot.open.as_ref().is_some_and(|open| {
                    open.doomed.is_none() && self.backend.can_reset(&open.connection)
                })
            })
        {
            return Some(taken);
        }
        // This request's own permit is not free either.
        let alone = self.permits.free() + 1 >= self.options.max_connections;
        lot.take(entry, loan, !alone)
    }

    /// Whether the slot holds a connection to the database with this key. Called under the lot's lock.
    pub(super) fn is_open_to(&self, slot: &TakenSlot<B>, key: &str) -> bool {
        let open = slot.open.as_ref();
        open.is_some_and(|open| self.backend.serves(&open.connection, key))
    }
}
