//! What the core needs from a kind of connection: open, reset, close, and its cost.
//! It knows nothing of pools.

use std::borrow::Cow;
use std::ops::DerefMut;
use std::time::{Duration, Instant};

use super::max_hold::Interrupter;
use crate::error::Error;
use crate::observe::stats::Stats;

/// A kind of connection that can be lent.
///
/// The pool never calls two methods on one connection at once. No method may panic.
pub trait Backend: Send + Sync + 'static {
    /// The connection in a slot. A lease dereferences to this type's target.
    type Connection: DerefMut<Target: Sized> + Send + 'static;

    /// Opens a connection that can serve `agent`. Where each agent has its own database, it first waits until
    /// no other connection to that database is open, and until there is room, as `patience` says.
    ///
    /// # Errors
    /// The error that the caller of `lease` sees. After an error, nothing stays open.
    fn open(&self, agent: &str, patience: &Patience<'_>) -> Result<Self::Connection, Error>;

    /// Whether a call waits for room. Closing another connection makes room.
    fn wants_room(&self) -> bool {
        false
    }

    /// Whether more than its own descriptors are open because this connection is. Called under the lot's lock.
    fn keeps_others_open(&self, _connection: &Self::Connection) -> bool {
        false
    }

    /// Checks again what connections depend on (for a file: whether it is still the same), if the last check
    /// is too old. Called before every lease, also in a poll, so it must normally cost almost nothing: a `stat` is the most
    /// that it may do.
    fn refresh(&self, now: Instant);

    /// Counts the changes that [`refresh`](Backend::refresh) saw. While this number stays the same, so does
    /// every answer of [`is_current`](Backend::is_current).
    fn generation(&self) -> u64;

    /// Whether the connection is to the current database, by what [`refresh`](Backend::refresh) last saw. It
    /// does no I/O, and is called under the lot's lock.
    fn is_current(&self, connection: &Self::Connection) -> bool;

    /// Whether each agent has its own database, with one connection at a time.
    fn is_per_agent(&self) -> bool {
        false
    }

    /// Where each agent has its own database: the key of the database that `agent` uses. Agents with equal
    /// keys share a lock.
    ///
    /// # Errors
    /// The error that [`open`](Backend::open) would return, for an agent that can have no database.
    ///
    /// # Blocking
    /// For as long as the user's function runs, where [`asks_user`](Backend::asks_user).
    fn lock_key<'a>(&self, agent: &'a str) -> Result<Cow<'a, str>, Error> {
        Ok(Cow::Borrowed(agent))
    }

    /// Where each agent has its own database: whether this process serves `agent`. Called outside locks other than
    /// the agent's, on any thread, and before anything is opened for the agent.
    ///
    /// # Errors
    /// The error that the caller of `lease` sees.
    fn admit(&self, _agent: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Whether [`lock_key`](Backend::lock_key) runs a function of the user's and looks at the file system.
    fn asks_user(&self) -> bool {
        false
    }

    /// Whether the connection is to the database with this key. Called under the lot's lock.
    fn serves(&self, _connection: &Self::Connection, _key: &str) -> bool {
        true
    }

    /// Whether a connection to the database with this key is open, or is being closed.
    fn is_open(&self, _key: &str) -> bool {
        false
    }

    /// Waits until no connection to the database with this key is open, but no longer than until `deadline`.
    /// Returns whether that is so.
    fn wait_until_closed(&self, _key: &str, _deadline: Instant) -> bool {
        true
    }

    /// Checks again what this one connection depends on, if the last check is too old. Called before each
    /// lease, so it must normally cost almost nothing.
    fn revisit(&self, _connection: &mut Self::Connection, _now: Instant) {}

    /// Ends a lease: rolls back an open transaction. The same agent may get the connection next.
    fn settle(&self, connection: &mut Self::Connection) -> Fate;

    /// Removes every trace of the last agent, or reports that it cannot. It does no I/O.
    fn reset(&self, connection: &mut Self::Connection) -> Fate;

    /// Whether settling, probing, resetting and closing may wait for a server. Then only the core's worker threads do
    /// it, also at the end of a lease.
    const IS_REMOTE: bool = false;

    /// Of a remote backend: whether the borrower has left anything to [`settle`](Backend::settle). It does not touch the
    /// connection.
    fn is_to_settle(&self, _connection: &mut Self::Connection) -> bool {
        true
    }

    /// Of a remote backend: what a connection needs before it is lent, as far as that is known without waiting for the
    /// server.
    fn needs(&self, _connection: &mut Self::Connection, _now: Instant) -> CheckNeeded {
        CheckNeeded::None
    }

    /// Of a remote backend: asks the server whether the connection is sound. May wait for it.
    fn probe(&self, _connection: &mut Self::Connection) -> Fate {
        Fate::Reuse
    }

    /// Of a remote backend: whether [`reset`](Backend::reset) has anything to do.
    fn is_to_reset(&self, _connection: &Self::Connection) -> bool {
        true
    }

    /// For how long a caller waits until the server has answered a probe or a reset. `None`: until its own deadline.
    fn probe_timeout(&self) -> Option<Duration> {
        None
    }

    /// Called when a probe, a reset or a settling took longer than that.
    fn probe_timed_out(&self) {}

    /// For how long a caller waits from when it needs a new connection, attempts that failed included. `None`: until its
    /// own deadline.
    fn open_timeout(&self) -> Option<Duration> {
        None
    }

    /// The error of a caller for which a connection did not open in that time.
    fn open_timed_out(&self) -> Error {
        Error::Closed
    }

    /// After openings have failed: until when no other may begin, and the error of the last.
    fn back_off(&self, _now: Instant) -> Option<(Instant, Error)> {
        None
    }

    /// Whether the last opening failed.
    fn is_failing(&self) -> bool {
        false
    }

    /// Whether the connection could be reset for another agent.
    fn can_reset(&self, _connection: &Self::Connection) -> bool {
        true
    }

    /// How old a connection counts that is just being opened, so that connections that were opened together do not all
    /// end at the same time.
    fn age_when_opened(&self, _max_lifetime: Duration) -> Duration {
        Duration::ZERO
    }

    /// What interrupts the statement that runs on the connection. `None` if no statement can be interrupted.
    fn interrupter(&self, _connection: &Self::Connection) -> Option<Interrupter> {
        None
    }

    /// Whether the connection is closed in this mode within microseconds. A caller's own thread closes no other.
    fn closes_briefly(&self, _connection: &Self::Connection, _mode: CloseMode) -> bool {
        false
    }

    /// Closes the connection.
    ///
    /// # Errors
    /// Returns the connection inside the error if it is still open, and none if it was closed with an error.
    fn close(
        &self,
        connection: Self::Connection,
        mode: CloseMode,
    ) -> Result<(), NotClosed<Self::Connection>>;

    /// The largest number of descriptors that `max_connections` connections can ever hold at once. It must
    /// not fall when `max_connections` grows.
    fn fd_ceiling(&self, max_connections: usize) -> usize;

    /// How many descriptors connections hold now, according to the operating system; `None` where it does not
    /// say.
    fn descriptors(&self) -> Option<usize> {
        None
    }

    /// The same by the backend's own books, without a look at the operating system; `None` if it keeps none.
    fn counted_descriptors(&self) -> Option<usize> {
        None
    }

    /// Whether connections to files that were replaced keep nearly all descriptors.
    fn is_short_of_descriptors(&self) -> bool {
        false
    }

    /// Adds to a snapshot the numbers that only the backend knows.
    fn observe(&self, _stats: &mut Stats) {}

    /// Whether a connection could be opened now, as far as the backend can tell without opening one.
    ///
    /// # Errors
    /// What [`open`](Backend::open) would return.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Called when the pool is closed to new leases, before its connections are closed.
    fn closing(&self) {}

    /// Called on a thread that may block, before the connections of a closed pool are closed, possibly more than once:
    /// closes what the backend has open besides them.
    fn winding_up(&self) {}

    /// Whether nothing is open besides the pool's connections. What a thread of the pool's still has in hand, it closes;
    /// then it winds the pool up.
    fn is_wound_up(&self) -> bool {
        true
    }

    /// Called when the pool and its last connection are closed, possibly more than once.
    fn closed(&self) {}
}

/// How long to wait for room, and how to make some first.
pub struct Patience<'a> {
    pub(crate) deadline: Instant,
    pub(crate) make_room: &'a (dyn MakeRoom + Sync),
}

impl Patience<'_> {
    /// For a caller that waits for no room, and makes none.
    pub(crate) fn none() -> Self {
        Patience {
            deadline: Instant::now(),
            make_room: &(),
        }
    }
}

pub(crate) trait MakeRoom {
    /// Starts to close what can be closed, without waiting until it is closed.
    fn make_room(&self);
}

/// For callers that cannot close anything.
impl MakeRoom for () {
    fn make_room(&self) {}
}

/// What a connection needs before it is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckNeeded {
    None,
    /// To be asked whether it is sound.
    Probe,
    /// To be closed.
    Close,
}

/// What happens to a connection after [`settle`](Backend::settle) or [`reset`](Backend::reset).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It can serve again.
    Reuse,
    /// It has no fault, but it is to be closed where blocking is allowed, instead of being parked.
    Close,
    /// It must be closed.
    Discard,
}

/// How a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseMode {
    /// It reached its maximum age, or the pool closes.
    Retire,
    /// Its agent was evicted, or another agent needs its slot. The agent may come back.
    Evict,
    /// It may be faulty: it must write nothing more, not even a last checkpoint.
    Abandon,
}

/// A connection that did not close, or closed with an error.
#[derive(Debug)]
pub struct NotClosed<C> {
    /// The connection, if it is still open.
    pub(crate) connection: Option<C>,
    /// The error.
    pub(crate) error: Error,
}
