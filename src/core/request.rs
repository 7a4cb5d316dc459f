//! Request: which agent asks for a connection, since when, until when, and what it waits for.
//! It takes nothing.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::agent_lock::AgentLock;
use super::lot::Loan;
use crate::error::{Error, Wanted};
use crate::observe::call_site::CallSite;
use crate::observe::claim::Claim;
use crate::sync::keyed_map::KeyedEntry;
use crate::sync::thread;

/// Which agent asks for a connection, since when, until when, and from which line.
pub(crate) struct Request<'a> {
    pub(super) agent: &'a str,
    pub(super) asked_at: Instant,
    /// `None`: it does not wait.
    pub(super) wait: Option<Duration>,
    place: CallSite,
    /// The thread that blocks while it waits.
    thread: Option<u64>,
    /// What it is waiting for, for the error if it times out.
    stage: AtomicU8,
    /// When its last wait for other borrowers ended, in nanoseconds since it asked; 0 if it has not waited.
    waited: AtomicU64,
    /// Where each agent has its own database: the lock at which it waits.
    lock: OnceLock<Arc<KeyedEntry<AgentLock>>>,
    /// Why a connection could not be opened for it, until the next attempt.
    failure: Mutex<Option<Box<Error>>>,
    /// Whether it has waited for the end of a lease of the same agent.
    has_waited_for_own: AtomicBool,
    /// It is about what is left here of an agent that another process serves.
    pub(super) of_stranger: bool,
    /// Its thread is one of the pool's, which may block for as long as an opening takes.
    pub(super) opens_here: bool,
    /// An async task asks, and has the connection where it runs.
    is_awaited: bool,
    /// `max_hold` applies to it.
    pub(super) is_limited: bool,
}

/// How long a caller at least waits for its own connection to be opened. A short timeout limits the wait for
/// other borrowers, not for the disk.
pub(crate) const OWN_OPENING: Duration = Duration::from_millis(40);

/// What a request can wait for.
const STAGES: [Wanted; 3] = [Wanted::Connection, Wanted::Agent, Wanted::Opening];

impl<'a> Request<'a> {
    /// For what the pool does itself. `wait`: how long to wait; `None`: not at all.
    pub(crate) fn new(agent: &'a str, wait: Option<Duration>, place: CallSite) -> Self {
        Request::made(agent, wait, place, false)
    }

    /// For a borrower's own SQL, which `max_hold` limits.
    #[inline]
    pub(crate) fn of_borrower(agent: &'a str, wait: Option<Duration>, place: CallSite) -> Self {
        Request::made(agent, wait, place, true)
    }

    fn made(agent: &'a str, wait: Option<Duration>, place: CallSite, is_limited: bool) -> Self {
        Request {
            agent,
            asked_at: Instant::now(),
            wait,
            place,
            thread: Some(thread::number()),
            stage: AtomicU8::new(0),
            waited: AtomicU64::new(0),
            lock: OnceLock::new(),
            failure: Mutex::new(None),
            has_waited_for_own: AtomicBool::new(false),
            of_stranger: false,
            opens_here: false,
            is_awaited: false,
            is_limited,
        }
    }

    /// For the caller that made this claim, on a connection of `agent`.
    pub(crate) fn on_behalf(claim: &Claim, agent: &'a str, wait: Duration) -> Self {
        Request {
            asked_at: claim.asked_at,
            thread: claim.thread,
            ..Request::new(agent, Some(wait), claim.place)
        }
    }

    /// For a caller that needs what is left here of an agent that another process serves.
    pub(crate) fn of_stranger(mut self) -> Self {
        self.of_stranger = true;
        self
    }

    /// For a caller that does not block a thread.
    pub(crate) fn awaiting(mut self) -> Self {
        self.thread = None;
        self.is_awaited = true;
        self
    }

    /// For a caller that does not block a thread, and hands the connection to one of the pool's threads.
    pub(crate) fn awaiting_for_a_thread(mut self) -> Self {
        self.thread = None;
        self
    }

    /// For a caller that asked earlier than now.
    pub(crate) fn since(mut self, asked_at: Instant) -> Self {
        self.asked_at = asked_at;
        self
    }

    /// For a caller whose work a thread of the pool does.
    pub(crate) fn handed_over(mut self) -> Self {
        self.opens_here = true;
        self
    }

    pub(crate) fn agent(&self) -> &'a str {
        self.agent
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.asked_at + self.wait.unwrap_or(Duration::ZERO)
    }

    /// Remembers why a connection could not be opened: if the request's time is over before the next attempt, that is
    /// its error.
    pub(super) fn fail_later(&self, failure: Error) {
        *self.failure.lock() = Some(Box::new(failure));
    }

    /// Whether it has waited for the end of a lease of the same agent. From now on it has.
    pub(super) fn waits_for_own(&self) -> bool {
        !self.has_waited_for_own.swap(true, Relaxed)
    }

    pub(super) fn take_failure(&self) -> Option<Error> {
        self.failure.lock().take().map(|failure| *failure)
    }

    /// What it is waiting for now.
    pub(super) fn stage(&self) -> Wanted {
        let stage = STAGES.get(usize::from(self.stage.load(Relaxed)));
        stage.copied().unwrap_or(Wanted::Connection)
    }

    pub(super) fn set_stage(&self, wanted: Wanted) {
        let stage = STAGES.iter().position(|stage| *stage == wanted);
        self.stage.store(stage.unwrap_or(0) as u8, Relaxed);
    }

    pub(super) fn set_lock(&self, lock: &Arc<KeyedEntry<AgentLock>>) {
        let _ = self.lock.set(Arc::clone(lock));
    }

    /// Notes that a wait for other borrowers has ended.
    pub(super) fn note_wait(&self) {
        let nanos = u64::try_from(self.asked_at.elapsed().as_nanos());
        self.waited.store(nanos.unwrap_or(u64::MAX).max(1), Relaxed);
    }

    /// How long it waited for other borrowers, if it did.
    pub(super) fn waited(&self) -> Option<Duration> {
        match self.waited.load(Relaxed) {
            0 => None,
            nanos => Some(Duration::from_nanos(nanos)),
        }
    }

    /// The agent's lock, if it has one and the call has looked it up.
    pub(super) fn lock(&self) -> Option<&Arc<KeyedEntry<AgentLock>>> {
        self.lock.get()
    }

    /// The thread that blocks while it waits.
    pub(super) fn thread(&self) -> Option<u64> {
        self.thread
    }

    pub(super) fn claim(&self, agent: Arc<str>) -> Claim {
        Claim {
            agent,
            asked_at: self.asked_at,
            place: self.place,
            thread: self.thread,
        }
    }

    pub(super) fn loan(&self, now: Instant) -> Loan {
        Loan {
            awaited: self.is_awaited,
            ..Loan::new(now, self.place)
        }
    }
}
