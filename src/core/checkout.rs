//! Check-out: from the request to a connection that is ready, one step after the other.
//! Blocking callers and callers that await share every step; only the way to wait for it differs (`sync::wait`).
//!
//! 1. Where agents have connections of their own: the agent's lock.
//! 2. A permit.
//! 3. A slot, which a permit holder finds at once: the agent's own, or a free one, or another agent's.
//! 4. What the connection needs: nothing, a reset (microseconds, no I/O), or to be opened anew. The last is done
//!    on a worker thread, so that the caller comes back in time, whatever the disk does. If the caller gives
//!    up, the worker finishes, and the connection is parked for the agent.

use std::future::Future;
use std::panic::{Location, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::AcqRel, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::agent_lock::{AgentLock, AgentLockGuard};
use super::backend::{Backend, CloseMode, Fate};
use super::guard::{Checkout, Handle};
use super::lot::{From, Loan, Taken};
use super::parking::Entry;
use super::reentrancy::{self, Within};
use super::slot::{OpenConnection, TakenSlot};
use super::{Core, Permit, Room, Stuck};
use crate::error::{Error, Wanted};
use crate::observe::claim::Claim;
use crate::observe::events;
use crate::observe::stats::{Counters, count};
use crate::sync::keyed_map::{KeyedEntry, KeyedMap};
use crate::sync::semaphore::{Closed, Refusal};
use crate::sync::thread;
use crate::sync::wait::{await_until, block_until};

/// Longest id of an agent, in bytes.
const MAX_AGENT_LEN: usize = 1024;
/// How agents are called that the pool itself borrows for.
pub(crate) const RESERVED: &str = "leasepool: ";
/// How long a caller waits for the opening of its own connection, at least: who has no patience for others may
/// have it for a disk.
const OWN_OPENING: Duration = Duration::from_millis(40);
/// How long to wait at the limit around opening.
const OPENING_PATIENCE: Duration = Duration::from_millis(10);

/// Who asks for a connection, since when, until when, and from where.
pub(crate) struct Request<'a> {
    agent: &'a str,
    asked_at: Instant,
    /// `None`: not at all.
    wait: Option<Duration>,
    place: &'static Location<'static>,
    /// The thread that blocks while it waits.
    thread: Option<u64>,
    /// It was made just now: `asked_at` is the time.
    is_fresh: bool,
    /// What it is waiting for, in case its time passes.
    stage: AtomicU8,
}

const AGENT: u8 = 0;
const CONNECTION: u8 = 1;
const OPENING: u8 = 2;

/// How far a request got without waiting.
enum Step<B: Backend, H: Handle<B>> {
    Ready(Checkout<B, H>),
    /// Its connection must be closed, if there is one and how, and another opened.
    Open(Checkout<B, H>, Option<CloseMode>),
}

impl<'a> Request<'a> {
    /// `wait`: for how long to wait; `None`: not at all.
    pub(crate) fn new(
        agent: &'a str,
        wait: Option<Duration>,
        place: &'static Location<'static>,
    ) -> Self {
        Request {
            agent,
            asked_at: Instant::now(),
            wait,
            place,
            thread: Some(thread::number()),
            is_fresh: true,
            stage: AtomicU8::new(CONNECTION),
        }
    }

    /// For the caller that has made this claim, on a connection of `agent`'s.
    pub(crate) fn on_behalf(claim: &Claim, agent: &'a str, wait: Duration) -> Self {
        Request {
            agent,
            asked_at: claim.asked_at,
            wait: Some(wait),
            place: claim.place,
            thread: claim.thread,
            is_fresh: false,
            stage: AtomicU8::new(CONNECTION),
        }
    }

    /// For a caller that does not block a thread.
    pub(crate) fn awaiting(mut self) -> Self {
        self.thread = None;
        self
    }

    pub(crate) fn asked_at(&self) -> Instant {
        self.asked_at
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.asked_at + self.wait.unwrap_or(Duration::ZERO)
    }

    fn claim(&self, agent: Arc<str>) -> Claim {
        Claim {
            agent,
            asked_at: self.asked_at,
            place: self.place,
            thread: self.thread,
        }
    }

    fn loan(&self, now: Instant) -> Loan {
        Loan::new(now, self.place)
    }
}

pub(crate) fn check_agent(agent: &str) -> Result<(), Error> {
    let reason = match agent.len() {
        0 => "it is empty",
        1..=MAX_AGENT_LEN if agent.starts_with(RESERVED) => {
            "ids that begin with \"leasepool: \" are reserved"
        }
        1..=MAX_AGENT_LEN => return Ok(()),
        _ => "it is longer than 1024 bytes",
    };
    Err(Error::InvalidAgent { reason })
}

impl<B: Backend> Core<B> {
    /// For a caller that may block.
    #[inline]
    pub(crate) fn checkout<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
    ) -> Result<Checkout<B, H>, Error> {
        match self.at_once(handle, request)? {
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
        if request.wait.is_none() {
            return self.checkout_without_waiting(handle, request, begun);
        }
        // In a block: it has left every queue when the error is made.
        let done = {
            let mut work = pin!(self.in_time(handle, request, begun));
            let mut done = block_until(request.deadline(), work.as_mut());
            if done.is_none() && request.stage.load(Relaxed) == OPENING {
                done = block_until(request.asked_at + OWN_OPENING, work.as_mut());
            }
            done
        };
        self.finished(request, done)
    }

    /// For a caller that may not block.
    pub(crate) async fn checkout_async<H: Handle<B>>(
        &self,
        handle: &H,
        request: Request<'_>,
    ) -> Result<Checkout<B, H>, Error> {
        let request = &request;
        let begun = if request.is_fresh {
            match self.at_once(handle, request)? {
                Some(Step::Ready(checkout)) => return Ok(checkout),
                begun => begun,
            }
        } else {
            None
        };
        let done = {
            let mut work = pin!(self.in_time(handle, request, begun));
            let mut done = await_until(request.deadline(), work.as_mut()).await;
            if done.is_none() && request.stage.load(Relaxed) == OPENING {
                done = await_until(request.asked_at + OWN_OPENING, work.as_mut()).await;
            }
            done
        };
        self.finished(request, done)
    }

    fn finished<H: Handle<B>>(
        &self,
        request: &Request<'_>,
        done: Option<Result<Checkout<B, H>, Error>>,
    ) -> Result<Checkout<B, H>, Error> {
        if let Some(done) = done {
            return done;
        }
        let stage = request.stage.load(Relaxed);
        // First: it names those who hold now, and who sees the count may return.
        let error = self.too_late(request, stage);
        count(&self.counters.timeouts);
        if stage != OPENING {
            let claim = request.claim(Arc::from(request.agent));
            self.slow_waits.record(claim, false);
        }
        Err(error)
    }

    fn too_late(&self, request: &Request<'_>, stage: u8) -> Error {
        let (wanted, waiting) = match stage {
            AGENT => {
                let key = self.backend.lock_key(request.agent);
                let locks = self.locks.iter().flat_map(KeyedMap::all);
                let waiting = locks
                    .filter(|lock| key.as_ref().is_ok_and(|key| **lock.key() == **key))
                    .map(|lock| lock.semaphore().waiting())
                    .sum();
                (Wanted::Agent, waiting)
            }
            CONNECTION => (Wanted::Connection, self.permits.waiting()),
            _ => (Wanted::Opening, 0),
        };
        let agent = (wanted == Wanted::Agent).then_some(request.agent);
        self.exhausted_for(agent, request.thread, wanted, request.asked_at, waiting)
    }

    /// What can be had at this moment: a permit, and with it a slot. `None`: there is no permit, or the agent must
    /// be looked for.
    #[inline]
    fn at_once<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
    ) -> Result<Option<Step<B, H>>, Error> {
        if self.locks.is_some() {
            return self.own_at_once(handle, request);
        }
        match self.permits.try_acquire(request.asked_at) {
            Ok(()) => {
                let permit = Permit(self);
                self.begin(handle, permit, request, request.asked_at, None, None)
                    .map(Some)
            }
            Err(Refusal::Busy) => Ok(None),
            Err(Refusal::Closed) => Err(Error::Closed),
        }
    }

    /// The same where agents have connections of their own, if this one's is parked.
    fn own_at_once<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
    ) -> Result<Option<Step<B, H>>, Error> {
        let now = request.asked_at;
        let Some(entry) = self.parking.lot.find(request.agent) else {
            return Ok(None);
        };
        let guard = match &entry.lock {
            Some(lock) if entry.is_parked() => AgentLockGuard::try_lock(lock, now),
            _ => return Ok(None),
        };
        // Who is refused here asks again, and waits.
        let Ok(guard) = guard else {
            return Ok(None);
        };
        if self.permits.try_acquire(now).is_err() {
            return Ok(None);
        }
        self.begin(handle, Permit(self), request, now, Some(entry), Some(guard))
            .map(Some)
    }

    /// The same for a caller that will not wait, but may block for a disk.
    fn checkout_without_waiting<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        begun: Option<Step<B, H>>,
    ) -> Result<Checkout<B, H>, Error> {
        match begun {
            None => {}
            Some(Step::Ready(checkout)) => return Ok(checkout),
            Some(Step::Open(checkout, mode)) => {
                if let Renewed::Ready(checkout) = renew(checkout, mode)? {
                    return Ok(checkout);
                }
            }
        }
        let refused = |stage| {
            let error = self.too_late(request, stage);
            count(&self.counters.timeouts);
            Err(error)
        };
        let mut held = match self.entry_and_lock(request)? {
            None => None,
            Some((entry, lock)) => match AgentLockGuard::try_lock(&lock, request.asked_at) {
                Ok(guard) => Some((entry, guard)),
                Err(Refusal::Closed) => return Err(Error::Closed),
                Err(Refusal::Busy) => return refused(AGENT),
            },
        };
        loop {
            let permit = match self.permits.try_acquire(request.asked_at) {
                Ok(()) => Permit(self),
                Err(Refusal::Closed) => return Err(Error::Closed),
                Err(Refusal::Busy) => return refused(CONNECTION),
            };
            let (entry, guard) = held.take().unzip();
            let again = entry.clone();
            match self.begin(handle, permit, request, request.asked_at, entry, guard)? {
                Step::Ready(checkout) => return Ok(checkout),
                Step::Open(checkout, mode) => match renew(checkout, mode)? {
                    Renewed::Ready(checkout) => return Ok(checkout),
                    Renewed::Stuck(guard) => held = again.zip(guard),
                },
            }
        }
    }

    /// All steps, however long they take.
    async fn in_time<H: Handle<B>>(
        &self,
        handle: &H,
        request: &Request<'_>,
        begun: Option<Step<B, H>>,
    ) -> Result<Checkout<B, H>, Error> {
        match begun {
            None => {}
            Some(Step::Ready(checkout)) => return Ok(checkout),
            Some(Step::Open(checkout, mode)) => {
                request.stage.store(OPENING, Relaxed);
                if let Renewed::Ready(checkout) = self.renewed(checkout, mode).await? {
                    return Ok(checkout);
                }
            }
        }
        let mut held = match self.entry_and_lock(request)? {
            None => None,
            Some((entry, lock)) => {
                let guard = self.lock_agent(request, &entry, &lock).await?;
                // It may have become known, or been evicted, meanwhile.
                let entry = self.parking.lot.find(request.agent).unwrap_or(entry);
                Some((entry, guard))
            }
        };
        let _limit = match &held {
            Some((entry, _)) => self.limit_opening(request, entry).await,
            None => None,
        };
        loop {
            request.stage.store(CONNECTION, Relaxed);
            let mut known = None;
            // It may have waited long for the agent's lock.
            let now = Instant::now();
            let (permit, now) = match self.permits.try_acquire(now) {
                Ok(()) => (Permit(self), now),
                Err(Refusal::Closed) => return Err(Error::Closed),
                Err(Refusal::Busy) => {
                    let agent = match &held {
                        Some((entry, _)) => Arc::clone(&entry.agent),
                        None => {
                            let entry = self.entry(request.agent);
                            let agent = Arc::clone(&entry.agent);
                            known = Some(entry);
                            agent
                        }
                    };
                    (self.permit(request.claim(agent)).await?, Instant::now())
                }
            };
            let (entry, guard) = held.take().unzip();
            let again = entry.clone();
            match self.begin(handle, permit, request, now, entry.or(known), guard)? {
                Step::Ready(checkout) => return Ok(checkout),
                Step::Open(checkout, mode) => {
                    request.stage.store(OPENING, Relaxed);
                    match self.renewed(checkout, mode).await? {
                        Renewed::Ready(checkout) => return Ok(checkout),
                        Renewed::Stuck(guard) => held = again.zip(guard),
                    }
                }
            }
        }
    }

    /// Where agents have connections of their own: the agent's entry, which may not be known yet, and its lock.
    #[allow(clippy::type_complexity, reason = "it is taken apart at once")]
    fn entry_and_lock(
        &self,
        request: &Request<'_>,
    ) -> Result<Option<(Arc<Entry>, Arc<KeyedEntry<AgentLock>>)>, Error> {
        let Some(locks) = &self.locks else {
            return Ok(None);
        };
        if let Some(entry) = self.parking.lot.find(request.agent)
            && let Some(lock) = entry.lock.clone()
        {
            return Ok(Some((entry, lock)));
        }
        let key = self.backend.lock_key(request.agent)?;
        let lock = locks.get(&key, || AgentLock::new(self.options.overtaking));
        if self.permits.is_closed() {
            return Err(Error::Closed);
        }
        let entry = Entry::new(Arc::from(request.agent), Some(Arc::clone(&lock)));
        Ok(Some((entry, lock)))
    }

    async fn lock_agent(
        &self,
        request: &Request<'_>,
        entry: &Arc<Entry>,
        lock: &Arc<KeyedEntry<AgentLock>>,
    ) -> Result<AgentLockGuard, Error> {
        match AgentLockGuard::try_lock(lock, request.asked_at) {
            Ok(guard) => return Ok(guard),
            Err(Refusal::Closed) => return Err(Error::Closed),
            Err(Refusal::Busy) => {}
        }
        request.stage.store(AGENT, Relaxed);
        let claim = request.claim(Arc::clone(&entry.agent));
        let waiting = AgentLockGuard::lock(lock, claim.clone());
        let answer = events::wait(&self.options.name, &claim.agent, waiting).await;
        self.waited(claim, answer)
    }

    /// The limit around opening, where agents have connections of their own and this one's is not parked. Files
    /// are opened a few at a time: SQLite opens them one by one, so more would only hold slots, in which
    /// connections of others could stay parked, while they wait for each other. `None` if there is no need, or
    /// if it takes too long: slow callbacks of some keep nobody from opening theirs.
    async fn limit_opening(
        &self,
        request: &Request<'_>,
        entry: &Arc<Entry>,
    ) -> Option<OpeningGuard<'_, B>> {
        if entry.is_parked() || self.permits.free() == 0 {
            return None;
        }
        if self.opening.try_acquire(request.asked_at).is_ok() {
            return Some(OpeningGuard(self));
        }
        let patience = Instant::now() + OPENING_PATIENCE;
        let acquire = async {
            let acquired = self
                .opening
                .acquire(request.claim(Arc::clone(&entry.agent)));
            acquired.await.map(|()| OpeningGuard(self))
        };
        await_until(patience, pin!(acquire)).await?.ok()
    }

    /// Waits for a permit.
    pub(super) async fn permit(&self, claim: Claim) -> Result<Permit<'_, B>, Error> {
        let acquire = async {
            let acquired = self.permits.acquire(claim.clone()).await;
            acquired.map(|()| Permit(self))
        };
        let answer = events::wait(&self.options.name, &claim.agent, acquire).await;
        self.waited(claim, answer)
    }

    fn waited<T>(&self, claim: Claim, answer: Result<T, Closed>) -> Result<T, Error> {
        self.slow_waits.record(claim, answer.is_ok());
        answer.map_err(|Closed| Error::Closed)
    }

    /// Makes a checkout of a permit, with the agent's own connection or any other, and says what is still to be
    /// done to it. Never blocks.
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
        let lot = &self.parking.lot;
        let taken = match entry {
            None => lot.take(self.entry(request.agent), loan),
            Some(entry) => self.take_own(entry, lock.as_ref(), loan),
        };
        // By the rule there is one: the permit says so.
        let Some(Taken { slot, entry, from }) = taken else {
            return Err(Error::Closed);
        };
        permit.pass_on();
        let hit = matches!(from, From::Agent);
        let mut checkout = Checkout::new(handle, entry, slot, lock);
        if let From::Other(loser) = &from {
            events::reclaimed(&self.options.name, &loser.agent);
        }
        if !hit && self.lacks_room() {
            self.tidy_soon();
        }
        checkout.touch();
        let Some(slot) = checkout.slot_mut() else {
            return Err(Error::Closed);
        };
        let need = self.inspect(slot, now, hit, request.agent);
        Ok(match need {
            Need::Nothing => Step::Ready(checkout.ready()),
            Need::Open(mode) => Step::Open(checkout, mode),
        })
    }

    /// The agent's entry, or a new one that is not known yet.
    fn entry(&self, agent: &str) -> Arc<Entry> {
        let known = self.parking.lot.find(agent);
        known.unwrap_or_else(|| Entry::new(Arc::from(agent), None))
    }

    /// The slot of an agent that has a connection of its own: wherever that is, or any.
    fn take_own(
        &self,
        entry: Arc<Entry>,
        lock: Option<&AgentLockGuard>,
        loan: Loan,
    ) -> Option<Taken<TakenSlot<B>, Arc<KeyedEntry<AgentLock>>>> {
        let lot = &self.parking.lot;
        // Parked for another agent with the same database, or free, since the agent was evicted.
        if let Some(lock) = lock
            && !entry.is_parked()
            && self.backend.is_open(lock.key())
        {
            let serves = |slot: &TakenSlot<B>, _| match &slot.open {
                Some(open) => self.backend.serves(&open.connection, lock.key()),
                None => false,
            };
            if let Some(taken) = lot.take_matching_for(&entry, loan, serves) {
                return Some(taken);
            }
        }
        lot.take(entry, loan)
    }

    /// What the slot needs before the agent can be served from it. Resets the connection in it, if that is all it
    /// needs.
    #[inline]
    fn inspect(&self, slot: &mut TakenSlot<B>, now: Instant, hit: bool, agent: &str) -> Need {
        let index = slot.index;
        let Some(open) = &mut slot.open else {
            return Need::Open(None);
        };
        if open.doomed.is_some() {
            return Need::Open(open.doomed);
        }
        if !hit && !self.serves(open, agent) {
            return Need::Open(Some(CloseMode::Evict));
        }
        self.backend.revisit(&mut open.connection, now);
        if !self.backend.is_current(&open.connection) {
            let counter = &self.counters.discarded_by_file;
            return Need::Open(Some(self.discard(
                counter,
                "file replaced",
                CloseMode::Abandon,
            )));
        }
        if let Some(limit) = self.options.max_lifetime
            && now.saturating_duration_since(open.opened_at) >= limit
        {
            let counter = &self.counters.discarded_by_age;
            return Need::Open(Some(self.discard(
                counter,
                "max_lifetime",
                CloseMode::Retire,
            )));
        }
        if !hit && open.used {
            if self.backend.reset(&mut open.connection) == Fate::Discard {
                let counter = &self.counters.discarded_by_reset;
                return Need::Open(Some(self.discard(counter, "reset", CloseMode::Retire)));
            }
            self.counters.resets.count(index);
        }
        open.used = true;
        Need::Nothing
    }

    fn serves(&self, open: &OpenConnection<B>, agent: &str) -> bool {
        if self.locks.is_none() {
            return true;
        }
        let key = self.backend.lock_key(agent);
        key.is_ok_and(|key| self.backend.serves(&open.connection, &key))
    }

    /// Opens a connection, on a worker thread.
    async fn renewed<H: Handle<B>>(
        &self,
        checkout: Checkout<B, H>,
        mode: Option<CloseMode>,
    ) -> Result<Renewed<B, H>, Error> {
        match self.workers.hand_over(move || renew(checkout, mode)) {
            Ok(answer) => match answer.await {
                Ok(renewed) => renewed,
                // It was the user's, and the user is told.
                Err(panic) => resume_unwind(panic),
            },
            Err(error) => Err(Error::no_thread(error)),
        }
    }

    /// Opens a connection in a vacant slot.
    fn occupy(&self, agent: &str, slot: &mut TakenSlot<B>) -> Result<(), Error> {
        // Counted before it is opened, and not counted any more only after it is closed, so that the
        // count is never below the truth.
        let opening = Opening::new(&self.counters);
        let _within = Within::enter(self.address(), reentrancy::OPENING);
        let connection = self.backend.open(agent)?;
        opening.succeeded();
        slot.open = Some(Box::new(OpenConnection {
            connection,
            opened_at: Instant::now(),
            used: true,
            doomed: None,
        }));
        Ok(())
    }

    /// Vacant slots, for what opens connections that are not lent; all of them or none. `agent`'s lock, if it has
    /// one, is the caller's.
    pub(crate) async fn rooms(
        &self,
        n: usize,
        request: &Request<'_>,
    ) -> Result<Vec<Room<'_, B>>, Error> {
        request.stage.store(CONNECTION, Relaxed);
        let claim = request.claim(Arc::from(request.agent));
        let several = self.several.acquire(claim.clone()).await;
        several.map_err(|Closed| Error::Closed)?;
        let _several = SeveralGuard(self);
        let mut rooms = Vec::with_capacity(n);
        while rooms.len() < n {
            let permit = match self.permits.try_acquire(Instant::now()) {
                Ok(()) => Permit(self),
                Err(Refusal::Closed) => return Err(Error::Closed),
                Err(Refusal::Busy) => self.permit(claim.clone()).await?,
            };
            let Some(slot) = self.parking.lot.take_any() else {
                return Err(Error::Closed);
            };
            rooms.push(Room {
                slot: Some(slot),
                permit,
            });
        }
        Ok(rooms)
    }

    /// The lock of an agent, where agents have connections of their own.
    pub(crate) async fn agent_lock(
        &self,
        request: &Request<'_>,
    ) -> Result<Option<AgentLockGuard>, Error> {
        match self.entry_and_lock(request)? {
            None => Ok(None),
            Some((entry, lock)) => self.lock_agent(request, &entry, &lock).await.map(Some),
        }
    }

    /// Blocks until `work`, which waits for what `request` says, is done, or the request's time has passed.
    pub(crate) fn block_for<T>(
        &self,
        request: &Request<'_>,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let done = {
            let work = pin!(work);
            block_until(request.deadline(), work)
        };
        match done {
            Some(done) => done,
            None => {
                let error = self.too_late(request, request.stage.load(Relaxed));
                count(&self.counters.timeouts);
                Err(error)
            }
        }
    }

    /// Vacates rooms. For a caller that may block.
    pub(crate) fn vacate_rooms(&self, rooms: &mut Vec<Room<'_, B>>) -> bool {
        let mut all = true;
        let mut kept = Vec::with_capacity(rooms.len());
        for mut room in rooms.drain(..) {
            let Some(mut slot) = room.slot.take() else {
                continue;
            };
            match self.vacate(&mut slot, CloseMode::Evict) {
                Ok(()) => {
                    room.slot = Some(slot);
                    kept.push(room);
                }
                Err(Stuck) => {
                    all = false;
                    self.retire_stuck(slot);
                    // Its permit goes with the slot.
                    std::mem::forget(room);
                }
            }
        }
        *rooms = kept;
        all
    }

    /// Closes what is open to the database of this key and lent to nobody, and waits until what is in another hand is
    /// closed, until the request's time has passed. The caller has the key's lock, and a room, whose slot it uses;
    /// and it may block.
    pub(crate) fn close_all_of(
        &self,
        room: &mut Room<'_, B>,
        key: &str,
        mode: CloseMode,
        request: &Request<'_>,
    ) -> Result<(), Error> {
        let serves = |slot: &TakenSlot<B>, _| match &slot.open {
            Some(open) => self.backend.serves(&open.connection, key),
            None => false,
        };
        while self.backend.is_open(key) {
            // The room's slot goes back first: a permit is for one.
            if let Some(slot) = room.slot.take() {
                self.parking.lot.give_back(slot, false, Instant::now());
            }
            room.slot = self.parking.lot.take_matching(serves);
            let Some(slot) = room.slot.as_mut() else {
                room.slot = self.parking.lot.take_any();
                if self.backend.wait_until_closed(key, request.deadline()) {
                    continue;
                }
                count(&self.counters.timeouts);
                return Err(self.too_late(request, AGENT));
            };
            if let Err(Stuck) = self.vacate(slot, mode) {
                return Err(self.too_late(request, AGENT));
            }
        }
        Ok(())
    }
}

/// What a slot needs before it can serve.
enum Need {
    Nothing,
    /// A new connection; the one that is there must be closed, and how.
    Open(Option<CloseMode>),
}

enum Renewed<B: Backend, H: Handle<B>> {
    Ready(Checkout<B, H>),
    /// Its old connection cannot be closed, and is out of circulation. The lock is there to begin again with.
    Stuck(Option<AgentLockGuard>),
}

/// Closes the connection in the slot, if there is one, and opens another. Blocks for as long as SQLite and `on_open`
/// do.
fn renew<B: Backend, H: Handle<B>>(
    mut checkout: Checkout<B, H>,
    mode: Option<CloseMode>,
) -> Result<Renewed<B, H>, Error> {
    let handle = checkout.handle().clone();
    let core = handle.core();
    let agent = Arc::clone(checkout.agent_arc());
    let Some(slot) = checkout.slot_mut() else {
        return Err(Error::Closed);
    };
    if let Some(mode) = mode
        && let Err(Stuck) = core.vacate(slot, mode)
    {
        return Ok(Renewed::Stuck(checkout.retire_stuck()));
    }
    core.occupy(&agent, slot)?;
    Ok(Renewed::Ready(checkout.ready()))
}

struct OpeningGuard<'a, B: Backend>(&'a Core<B>);

impl<B: Backend> Drop for OpeningGuard<'_, B> {
    fn drop(&mut self) {
        self.0.opening.release(Instant::now());
    }
}

struct SeveralGuard<'a, B: Backend>(&'a Core<B>);

impl<B: Backend> Drop for SeveralGuard<'_, B> {
    fn drop(&mut self) {
        self.0.several.release(Instant::now());
    }
}

/// Counts a connection as open while it is being opened, and afterwards if that succeeded.
struct Opening<'a>(&'a Counters);

impl<'a> Opening<'a> {
    fn new(counters: &'a Counters) -> Self {
        counters.open.fetch_add(1, AcqRel);
        Opening(counters)
    }

    fn succeeded(self) {
        count(&self.0.opens);
        std::mem::forget(self);
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        count(&self.0.open_failures);
        self.0.open.fetch_sub(1, AcqRel);
    }
}
