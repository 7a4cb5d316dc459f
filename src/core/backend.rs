//! What the core needs of a kind of connection: open, reset, close, and what it costs.
//! It knows nothing of pools.

use std::borrow::Cow;
use std::ops::DerefMut;
use std::time::Instant;

use crate::error::Error;
use crate::observe::stats::Stats;

/// A kind of connection that can be lent.
///
/// The pool never calls two methods on one connection at once. No method may panic.
pub(crate) trait Backend: Send + Sync + 'static {
    /// What a slot holds. A lease dereferences to its target.
    type Connection: DerefMut<Target: Sized> + Send + 'static;

    /// Opens a connection that can serve `agent`. Where agents have connections of their own, it first waits until
    /// none is open to what the agent's would be to; and for room, as `patience` says.
    ///
    /// # Errors
    /// What the caller of `lease` is to see. Nothing may stay open behind an error.
    fn open(&self, agent: &str, patience: &Patience<'_>) -> Result<Self::Connection, Error>;

    /// Whether somebody waits for room, which there is when another connection is closed.
    fn wants_room(&self) -> bool {
        false
    }

    /// Looks again at what connections depend on (for a file: whether it is still the same), if the
    /// last look is too old. Called before every lease, so it must cost next to nothing as a rule.
    fn refresh(&self, now: Instant);

    /// Counts the changes that [`refresh`](Backend::refresh) saw: while it stays the same, so does
    /// what [`is_current`](Backend::is_current) says.
    fn generation(&self) -> u64;

    /// Whether the connection is to what is there now, by what [`refresh`](Backend::refresh) saw last. It does no
    /// I/O, and is called under the lock of what is parked.
    fn is_current(&self, connection: &Self::Connection) -> bool;

    /// Whether each agent has a connection of its own, and one at a time.
    fn is_per_agent(&self) -> bool {
        false
    }

    /// Where agents have connections of their own: the key of the database `agent` uses. Agents with equal keys
    /// share a lock.
    ///
    /// # Errors
    /// What [`open`](Backend::open) would return for an agent that can have none.
    ///
    /// # Blocking
    /// For as long as the user's function takes, where [`asks_user`](Backend::asks_user).
    fn lock_key<'a>(&self, agent: &'a str) -> Result<Cow<'a, str>, Error> {
        Ok(Cow::Borrowed(agent))
    }

    /// Whether [`lock_key`](Backend::lock_key) runs a function of the user's, and looks at the file system.
    fn asks_user(&self) -> bool {
        false
    }

    /// Whether the connection is to the database of this key. Called under the lock of what is parked.
    fn serves(&self, _connection: &Self::Connection, _key: &str) -> bool {
        true
    }

    /// Whether a connection to the database of this key is open, or being closed.
    fn is_open(&self, _key: &str) -> bool {
        false
    }

    /// Waits until no connection to the database of this key is open, until `deadline` at most. Returns whether none is.
    fn wait_until_closed(&self, _key: &str, _deadline: Instant) -> bool {
        true
    }

    /// Looks again at what this one connection depends on, if the last look is too old. Called before each
    /// lease, so it must cost next to nothing as a rule.
    fn revisit(&self, _connection: &mut Self::Connection, _now: Instant) {}

    /// Ends a lease: rolls back what was left open. The same agent may get the connection next.
    fn settle(&self, connection: &mut Self::Connection) -> Fate;

    /// Removes every trace of the last agent, or says that it cannot. It does no I/O.
    fn reset(&self, connection: &mut Self::Connection) -> Fate;

    /// Closes the connection.
    ///
    /// # Errors
    /// With the connection inside if it is still open, without it if it closed badly.
    fn close(
        &self,
        connection: Self::Connection,
        mode: CloseMode,
    ) -> Result<(), NotClosed<Self::Connection>>;

    /// The largest number of descriptors that `max_connections` connections can ever hold at once.
    /// It must not fall when `max_connections` grows.
    fn fd_ceiling(&self, max_connections: usize) -> usize;

    /// How many descriptors connections hold now, as the operating system tells; `None` where it does
    /// not.
    fn descriptors(&self) -> Option<usize> {
        None
    }

    /// Adds to a snapshot what only the backend knows.
    fn observe(&self, _stats: &mut Stats) {}

    /// Whether a connection could be opened now, as far as that can be said without opening one.
    ///
    /// # Errors
    /// What [`open`](Backend::open) would return.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// The pool is closed, and so is its last connection. May be called more than once.
    fn closed(&self) {}
}

/// For how long to wait for room, and what to do first.
pub(crate) struct Patience<'a> {
    pub(crate) deadline: Instant,
    pub(crate) make_room: &'a (dyn MakeRoom + Sync),
}

pub(crate) trait MakeRoom {
    /// Sees to it that what can be closed is closed, without waiting for it.
    fn make_room(&self);
}

/// Where nothing can be closed.
impl MakeRoom for () {
    fn make_room(&self) {}
}

/// What becomes of a connection after [`settle`](Backend::settle) or [`reset`](Backend::reset).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It can serve again.
    Reuse,
    /// Nothing is wrong with it, but it is to be closed where it may take time, instead of being parked.
    Close,
    /// It must be closed.
    Discard,
}

/// How a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseMode {
    /// Its time has come: age, or the pool closes.
    Retire,
    /// Its agent was evicted, or another needs its place. The agent may come back.
    Evict,
    /// It is not to be trusted: it must write nothing more, not even a last checkpoint.
    Abandon,
}

/// A connection that did not close as it should.
#[derive(Debug)]
pub(crate) struct NotClosed<C> {
    /// The connection, if it is still open.
    pub(crate) connection: Option<C>,
    /// Why.
    pub(crate) error: Error,
}
