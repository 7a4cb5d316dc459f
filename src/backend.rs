//! What the core needs of a kind of connection: open, reset, close, and what it costs.
//! It knows nothing of pools.

use std::borrow::Cow;
use std::ops::DerefMut;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::stats::Stats;

/// A kind of connection that leases can lend. [`Sqlite`](crate::Sqlite) is the default.
///
/// The pool calls every method without holding any of its locks, and never calls two methods on one
/// connection at once. No method may panic.
pub trait Backend: Send + Sync + 'static {
    /// What a slot holds. A [`Lease`](crate::Lease) dereferences to its target.
    type Connection: DerefMut<Target: Sized> + Send + 'static;

    /// Opens a connection that can serve `agent`.
    ///
    /// # Errors
    /// What the caller of `lease` is to see. Nothing may stay open behind an error.
    fn open(&self, agent: &str) -> Result<Self::Connection, Error>;

    /// Looks again at what connections depend on (for a file: whether it is still the same), if the
    /// last look is too old. Called before every lease, so it must cost next to nothing as a rule.
    fn refresh(&self, now: Instant);

    /// Counts the changes that [`refresh`](Backend::refresh) saw: while it stays the same, so does
    /// what [`fits`](Backend::fits) says.
    fn generation(&self) -> u64;

    /// Whether the connection can still serve `agent` (`None`: anybody), by what [`refresh`](Backend::refresh) saw
    /// last. It does no I/O.
    fn fits(&self, connection: &Self::Connection, agent: Option<&str>) -> bool;

    /// Whether each agent has connections of its own, and one at a time.
    fn is_exclusive(&self) -> bool {
        false
    }

    /// Where agents have connections of their own: a name for what the agent's connections are to. Agents of
    /// which it is the same wait for each other.
    ///
    /// # Errors
    /// What [`open`](Backend::open) would return for an agent that can have none.
    fn belongings<'a>(&self, agent: &'a str) -> Result<Cow<'a, str>, Error> {
        Ok(Cow::Borrowed(agent))
    }

    /// Whether the connection was opened for what `agent` has, where agents have connections of their own.
    /// One that was not is closed to make room, and is no worse for it.
    fn belongs(&self, _connection: &Self::Connection, _agent: &str) -> bool {
        true
    }

    /// Whether nothing is open any more of what `agent` has, where agents have connections of their own; waiting for
    /// that for a while.
    fn is_free(&self, _agent: &str, _patience: Duration) -> bool {
        true
    }

    /// Looks again at what this one connection depends on, if the last look is too old. Called before each
    /// lease, so it must cost next to nothing as a rule.
    fn revisit(&self, _connection: &mut Self::Connection, _now: Instant) {}

    /// Ends a lease: rolls back what was left open. The same agent may get the connection next.
    fn settle(&self, connection: &mut Self::Connection) -> Fate;

    /// Removes every trace of the last agent, or says that it cannot.
    fn reset(&self, connection: &mut Self::Connection) -> Fate;

    /// Closes the connection.
    ///
    /// # Errors
    /// With the connection inside if it is still open, without it if it closed badly.
    fn close(
        &self,
        connection: Self::Connection,
        ending: Ending,
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

    /// The pool is closed, and so is its last connection.
    fn closed(&self) {}
}

/// What becomes of a connection after [`settle`](Backend::settle) or [`reset`](Backend::reset).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It can serve again.
    Reuse,
    /// It must be closed.
    Discard,
}

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its time has come: age, or the pool closes.
    Retired,
    /// Its agent was evicted, or another needs its place. The agent may come back.
    Evicted,
    /// It is not to be trusted: it must write nothing more, not even a last checkpoint.
    Faulty,
}

/// A connection that did not close as it should.
#[derive(Debug)]
pub struct NotClosed<C> {
    /// The connection, if it is still open.
    pub connection: Option<C>,
    /// Why.
    pub error: Error,
}
