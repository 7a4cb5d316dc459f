//! Seeing: what a pool tells of itself.
//! Nothing is changed here.

use super::Pool;
use super::pooled::Backend;
use crate::error::Error;
use crate::observe::health::Health;
use crate::observe::slow_waits::SlowWait;
use crate::observe::stats::{Holder, Stats, Waiting};
use crate::observe::windows::Windows;

impl<B: Backend> Pool<B> {
    /// What the pool is doing and has done.
    pub fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// The leases that are held now, the oldest first.
    pub fn holders(&self) -> Vec<Holder> {
        self.shared.core.holders()
    }

    /// The callers that wait for a connection now, in the order in which the pool will serve them. Those of `run` and
    /// `read_async` whose work no thread has taken yet come first.
    pub fn waiting(&self) -> Vec<Waiting> {
        self.shared.waiting()
    }

    /// The slowest waits that ended in the last ten minutes: at most ten, the slowest first.
    pub fn slowest_waits(&self) -> Vec<SlowWait> {
        self.shared.core.slowest_waits()
    }

    /// What the pool did in the last 10 seconds, the last minute and the last 5 minutes, beside what [`stats`](Pool::stats)
    /// counts since the pool was built. It is up to a second old.
    pub fn windows(&self) -> Windows {
        self.shared.windows()
    }

    /// One verdict: whether the pool is well, works badly, or not at all, with the reasons. It looks at the levels of this
    /// moment and at the last 10 seconds. It takes no connection, waits for none and runs no SQL, but looks at the file
    /// and at all leases that are held: call it from probes and pages, not in every request.
    ///
    /// A fault that is over is told for up to 10 seconds more. The
    /// [guide](crate::guide::operating#the-verdict) has each reason.
    ///
    /// ```
    /// use leasepool::{Database, Health, Pool};
    ///
    /// # fn main() -> Result<(), leasepool::Error> {
    /// let pool = Pool::builder(Database::memory()).build()?;
    /// assert_eq!(pool.health(), Health::Healthy);
    /// pool.close()?;
    /// let health = pool.health();
    /// assert!(health.is_down());
    /// assert_eq!(health.reasons()[0].code, "closed");
    /// # Ok(())
    /// # }
    /// ```
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// Answers a readiness probe: whether a caller would get a lease now without waiting, and could write. It takes no
    /// connection, waits for none and runs no SQL. It looks at the file, and so notices that the file was deleted, but not
    /// that the disk fails. [`health`](Pool::health) says more.
    ///
    /// # Errors
    /// - [`Error::Closed`] if the pool is closed.
    /// - [`Error::Exhausted`] if every connection is lent.
    /// - [`Error::FileReplaced`] if there is no database at the path any more.
    /// - [`Error::Sqlite`] (`SQLITE_BUSY`) if another process, or a transaction on a plain lease, has kept the pool's writes
    ///   out for a second or longer.
    pub fn ready(&self) -> Result<(), Error> {
        self.shared.ready()
    }

    /// The pool's name in the log and in metrics: [`Builder::name`](crate::Builder::name).
    pub fn name(&self) -> &str {
        &self.shared.core.options.name
    }

    /// How many descriptors this process has open on the pool's database now, as the kernel counts them; `None` on
    /// systems without `/proc`, and for connections to a server. It is never more than [`fd_ceiling`](Pool::fd_ceiling).
    ///
    /// Call it from a probe, not in every request: it reads one link for each descriptor of the process, twice or more,
    /// and meanwhile has one descriptor open itself.
    pub fn descriptors(&self) -> Option<usize> {
        self.shared.core.backend.descriptors()
    }

    /// The largest number of descriptors that this pool can ever have open. It is computed, not measured, and known
    /// before the first connection is opened.
    pub fn fd_ceiling(&self) -> usize {
        self.shared.core.fd_ceiling()
    }

    #[cfg(feature = "status")]
    pub(crate) fn signs(&self) -> crate::observe::health::Signs {
        self.shared.signs()
    }

    #[cfg(feature = "status")]
    pub(crate) fn options(&self) -> &crate::core::Options {
        &self.shared.core.options
    }

    /// By the pool's own books; `None` for connections to a server.
    #[cfg(feature = "status")]
    pub(crate) fn counted_descriptors(&self) -> Option<usize> {
        self.shared.core.backend.counted_descriptors()
    }

    #[cfg(feature = "status")]
    pub(crate) fn families(&self) -> Vec<crate::observe::families::Family> {
        self.shared.families()
    }
}
