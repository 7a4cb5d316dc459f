//! Closing: the ends of a pool, whole or for writes only.
//! They only translate: `shared` does the work.

use std::future::Future;
use std::time::Duration;

use super::pooled::Backend;
use super::{Pool, at_most};
use crate::error::Error;

impl Pool {
    /// Refuses writes from now on, those of [`Pool::write`] and of [`Lease::write`](crate::Lease::write), with
    /// [`Error::WritesClosed`]. Waits for at most `lease_timeout` until the writes that were called for before are done.
    /// Leases and reads go on until [`Pool::close`]: for programs that still read after the last write.
    ///
    /// The pool does not see, and does not refuse, what a borrower writes on a lease without `Lease::write`.
    ///
    /// May be called again, and from several threads; every call waits. There is no way back.
    ///
    /// ```
    /// use leasepool::{Database, Error, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// let pool = Pool::builder(Database::memory())
    ///     .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (agent, body)"))
    ///     .build()?;
    /// pool.close_writes()?;
    /// let refused = pool.execute("alice", "DELETE FROM note", []);
    /// assert!(matches!(refused, Err(Error::WritesClosed)));
    /// let lease = pool.lease("alice")?;
    /// let notes: i64 = lease.query_row("SELECT count(*) FROM note", [], |row| row.get(0))?;
    /// # drop(lease);
    /// pool.close()
    /// # }
    /// ```
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if a write was not done at the end of the wait. Writes that had not begun are refused; one
    ///   that had begun goes on.
    /// - [`Error::Reentrant`] within a write of the same pool, or within a callback of the builder.
    ///
    /// # Blocking
    /// For as long as writes take, at most `lease_timeout`.
    pub fn close_writes(&self) -> Result<(), Error> {
        self.close_writes_within(self.lease_timeout())
    }

    /// Like [`Pool::close_writes`], but waits for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`Pool::close_writes`].
    ///
    /// # Blocking
    /// Like [`Pool::close_writes`].
    pub fn close_writes_within(&self, timeout: Duration) -> Result<(), Error> {
        self.shared.close_writes(at_most(timeout))
    }

    /// Like [`Pool::close_writes`], for async code.
    ///
    /// # Cancel safety
    /// Writes are refused from the first poll on, also if the future is dropped.
    ///
    /// # Errors
    /// Those of [`Pool::close_writes`].
    pub fn close_writes_async(&self) -> impl Future<Output = Result<(), Error>> + Send {
        self.shared.close_writes_async(self.lease_timeout())
    }
}

impl<B: Backend> Pool<B> {
    /// Closes the pool: refuses new leases, wakes callers that wait with [`Error::Closed`], closes every idle connection,
    /// and waits for at most `lease_timeout` until the lent connections have come back. May be called again, and from
    /// several threads; every call waits.
    ///
    /// The last connection to a file runs a checkpoint and removes the `-wal` file as it closes, unless another process
    /// runs the checkpoints ([`Builder::external_checkpoints`](crate::Builder::external_checkpoints)).
    ///
    /// # Errors
    /// - [`Error::Exhausted`] if a connection was still lent at the end of the wait, or SQLite was still closing one; for
    ///   that the call waits 40 ms or longer. The pool is closed all the same: that connection closes when its lease
    ///   ends, or when SQLite is done.
    /// - [`Error::NotClosed`] if a connection cannot be closed.
    /// - [`Error::Reentrant`] within a write, a read, a `run`, a callback of the builder, or what is told the progress of a
    ///   backup, of the same pool.
    ///
    /// # Blocking
    /// For as long as leases take to come back, at most `lease_timeout`, and SQLite takes to close connections.
    pub fn close(&self) -> Result<(), Error> {
        self.close_within(self.lease_timeout())
    }

    /// Like [`Pool::close`], but waits for lent connections for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`Pool::close`].
    ///
    /// # Blocking
    /// Like [`Pool::close`].
    pub fn close_within(&self, timeout: Duration) -> Result<(), Error> {
        self.shared.close(at_most(timeout))
    }

    /// Like [`Pool::close`], for async code: another thread closes the connections.
    ///
    /// # Cancel safety
    /// The closing begins when the future is first polled, and goes on if the future is dropped.
    ///
    /// # Errors
    /// Those of [`Pool::close`].
    pub fn close_async(&self) -> impl Future<Output = Result<(), Error>> + Send {
        self.shared.close_async(self.lease_timeout())
    }

    /// Like [`Pool::close_async`], but waits for lent connections for at most `timeout`.
    ///
    /// # Errors
    /// Those of [`Pool::close`].
    pub fn close_within_async(
        &self,
        timeout: Duration,
    ) -> impl Future<Output = Result<(), Error>> + Send {
        self.shared.close_async(at_most(timeout))
    }
}
