//! Pool: the handle that users hold, and what it hands out.
//! It only translates: leases are made in `core`, writes in `write`.

mod beside;
pub(crate) mod builder;
pub(crate) mod lease;
pub(crate) mod pooled;
mod shared;
mod work;

// What every builder has.
mod common;

// After `builder`, so that rustdoc lists `build` after the options.
mod build;
mod read_lock;

// What a pool and an agent can do. rustdoc lists it in the order of these lines, which is that of use; the empty lines
// keep rustfmt from sorting them.

pub(crate) mod agent;

mod leasing;

mod reads;

mod writes;

mod run;

mod existing;

mod files;

pub(crate) mod seeing;

mod closing;

#[cfg(any(feature = "managed", feature = "bb8"))]
pub(crate) mod managed;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use pooled::{Backend, Pooled};
pub(crate) use shared::Shared;

use crate::sqlite::Sqlite;

/// The longest wait that a caller may ask for. Longer ones are cut to it.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A pool of connections that agents borrow.
///
/// Build one with [`Pool::builder`]. Then:
///
/// | to | call |
/// |---|---|
/// | use a connection that belongs to no agent | [`get`](Pool::get), [`get_async`](Pool::get_async) |
/// | use the agent's connection | [`lease`](Pool::lease), [`lease_async`](Pool::lease_async) |
/// | read one snapshot | [`read`](Pool::read), [`read_async`](Pool::read_async) |
/// | write | [`write`](Pool::write), [`write_async`](Pool::write_async), [`execute`](Pool::execute) |
/// | run long SQL outside async threads | `run` |
/// | set a deadline, or do more with one agent | [`agent`](Pool::agent) |
///
/// ```
/// use leasepool::{Database, Pool};
///
/// # fn main() -> Result<(), leasepool::Error> {
/// let pool = Pool::builder(Database::memory())
///     .max_connections(4)
///     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
///     .build()?;
/// pool.execute("alice", "INSERT INTO note VALUES (?1, ?2)", ("alice", "hello"))?;
/// let lease = pool.lease("alice")?;
/// let notes: i64 = lease.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
/// # assert_eq!(notes, 1);
/// # Ok(())
/// # }
/// ```
///
/// # Agent ids
/// An agent's id is anything that displays: text, an integer, a UUID. Two ids that display the same text are the same
/// agent. An id has 1 to 1,024 bytes and does not begin with `leasepool: `. Ids of up to 63 bytes need no allocation.
///
/// # Threads and tasks
/// A `Pool` is `Send` and `Sync`. A clone is another handle to the same pool and costs two reference counts.
///
/// All futures are `Send` and borrow the pool: to spawn one, move a clone of the pool into the task. Each may be
/// dropped at any moment without leaking a connection, a permit or a place in a queue; the method says what happens
/// to work that has begun. They need no particular runtime.
///
/// # Fork
/// A pool does not survive a fork: in the child, every call fails with [`Error::Forked`](crate::Error::Forked), and
/// dropping the pool and its leases leaves everything to the parent. Do not use a lease there. Build a new pool in the
/// child, for other files or after the parent has ended.
///
/// # Drop
/// Dropping the last handle closes the pool as [`Pool::close`] does, but does not wait for leases: a connection that is
/// still lent closes when its lease ends. Those that are not lent are closed on the thread that drops the handle, so that
/// nothing is open afterwards: in async code, await [`Pool::close_async`] before.
pub struct Pool<B: Backend = Sqlite> {
    shared: Arc<Shared<B>>,
    /// Closes the pool when the last handle goes; leases keep `Shared` alive, but not the pool.
    handle: Arc<Handle<B>>,
}

struct Handle<B: Pooled>(Arc<Shared<B>>);

impl<B: Backend> Pool<B> {
    pub(crate) fn new(shared: Arc<Shared<B>>) -> Self {
        Pool {
            handle: Arc::new(Handle(Arc::clone(&shared))),
            shared,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<B>> {
        &self.shared
    }

    /// How long a call waits if it sets no deadline of its own.
    fn lease_timeout(&self) -> Duration {
        self.shared.core.options.lease_timeout
    }
}

impl<B: Backend> Clone for Pool<B> {
    fn clone(&self) -> Self {
        Pool {
            shared: Arc::clone(&self.shared),
            handle: Arc::clone(&self.handle),
        }
    }
}

impl<B: Pooled> Drop for Handle<B> {
    fn drop(&mut self) {
        if self.0.core.is_forked() {
            // To close a connection here would remove the log under the process that uses it.
            std::mem::forget(Arc::clone(&self.0));
            return;
        }
        self.0.close_now();
    }
}

impl<B: Backend> fmt::Debug for Pool<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// The longest wait that is allowed, or this one.
pub(crate) fn at_most(timeout: Duration) -> Duration {
    timeout.min(MAX_WAIT)
}
