//! Lease: a lent connection. Dropping it is the only way to end it.
//! It decides nothing about where the connection goes: the pool does.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::Shared;
use super::pooled::{Backend, Lent, Target};
use crate::observe::spans::Span;
use crate::sqlite::Sqlite;

/// A lent connection. It dereferences to [`rusqlite::Connection`], and ends when it is dropped.
///
/// While it lives, nothing can take the connection away or close it: not the eviction of its agent, not
/// [`Pool::close`](crate::Pool::close), not the end of the pool. A lease has no `close` and always has a
/// connection.
///
/// When the lease ends, the pool rolls back an open transaction and parks the connection for its agent. The
/// next lease of the same agent finds its temporary tables, pragmas and prepared statements as they were.
/// Before another agent gets the connection, the pool removes all of that.
///
/// All functions are associated functions, so that none hides a method of the connection.
///
/// ```
/// use leasepool::{Database, Pool};
///
/// # fn main() -> Result<(), leasepool::Error> {
/// let pool = Pool::builder(Database::memory()).build()?;
/// let mut lease = pool.lease("alice")?;
/// let transaction = lease.transaction()?;
/// transaction.execute_batch("CREATE TABLE t (x)")?;
/// transaction.commit()?;
/// # Ok(())
/// # }
/// ```
///
/// A lent connection cannot be closed, or returned twice:
///
/// ```compile_fail,E0507
/// # let pool = leasepool::Pool::builder(leasepool::Database::memory()).build().unwrap();
/// let lease = pool.lease("alice").unwrap();
/// lease.close(); // rusqlite's `close` takes the connection itself, which is not ours to give
/// ```
///
/// ```compile_fail,E0382
/// # let pool = leasepool::Pool::builder(leasepool::Database::memory()).build().unwrap();
/// let lease = pool.lease("alice").unwrap();
/// drop(lease);
/// drop(lease);
/// ```
///
/// # Caveats
/// A lease given to [`std::mem::forget`] keeps its connection as long as the pool lives, and shows in
/// [`Pool::holders`](crate::Pool::holders). Never swap the connection for another with `std::mem::swap`: the
/// pool cannot count the connection that you keep.
#[must_use = "a lease that is dropped at once lends nothing"]
pub struct Lease<B: Backend = Sqlite> {
    /// `None` only at the end.
    checkout: Option<Lent<B>>,
    interrupt: OnceLock<InterruptHandle>,
    /// Dropped when all else has ended.
    _span: Span,
}

impl<B: Backend> Lease<B> {
    #[inline]
    pub(super) fn new(checkout: Lent<B>) -> Self {
        let span = Span::hold(&checkout.handle().core.options.name, checkout.agent());
        Lease {
            checkout: Some(checkout),
            interrupt: OnceLock::new(),
            _span: span,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<B>> {
        self.checkout().handle()
    }

    pub(crate) fn checkout(&self) -> &Lent<B> {
        match &self.checkout {
            Some(checkout) => checkout,
            None => unreachable!("only the end of a lease takes its checkout"),
        }
    }

    pub(crate) fn checkout_mut(&mut self) -> &mut Lent<B> {
        match &mut self.checkout {
            Some(checkout) => checkout,
            None => unreachable!("only the end of a lease takes its checkout"),
        }
    }

    /// The agent that borrowed the connection.
    pub fn agent(lease: &Self) -> &str {
        lease.checkout().agent()
    }

    /// Ends the lease and closes its connection, which is never lent again. Use it after an error that puts
    /// the connection in doubt (an I/O error, corruption): rusqlite offers no safe way to ask a connection
    /// for its last error, so the pool cannot see the errors of your statements. Closing writes nothing, not
    /// even a last checkpoint.
    ///
    /// # Blocking
    /// For as long as SQLite takes to close a connection. A connection to a server is closed on a thread of the pool.
    pub fn discard(mut lease: Self) {
        lease.revoke_interrupt();
        if let Some(checkout) = lease.checkout.take() {
            checkout.discard();
        }
    }

    fn revoke_interrupt(&self) {
        if let Some(handle) = self.interrupt.get() {
            handle.revoke();
        }
    }
}

impl Lease {
    /// A handle by which another thread can interrupt a statement on this lease. It does nothing once the
    /// lease has ended. The handle of [`rusqlite::Connection::get_interrupt_handle`] would then interrupt the
    /// connection's next borrower.
    pub fn interrupt_handle(lease: &Self) -> InterruptHandle {
        lease
            .interrupt
            .get_or_init(|| {
                let handle = lease.get_interrupt_handle();
                InterruptHandle(Arc::new(Mutex::new(Some(Box::new(move || {
                    handle.interrupt();
                })))))
            })
            .clone()
    }
}

impl<B: Backend> Drop for Lease<B> {
    fn drop(&mut self) {
        self.revoke_interrupt();
        if let Some(checkout) = self.checkout.take() {
            B::end(checkout);
        }
    }
}

impl<B: Backend> Deref for Lease<B> {
    type Target = Target<B>;

    #[inline]
    fn deref(&self) -> &Target<B> {
        B::used(self.checkout());
        self.checkout().connection()
    }
}

impl<B: Backend> DerefMut for Lease<B> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Target<B> {
        B::used(self.checkout());
        self.checkout_mut().connection_mut()
    }
}

impl<B: Backend> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("agent", &self.checkout().agent())
            .finish_non_exhaustive()
    }
}

/// Interrupts the statement running on a lease: [`Lease::interrupt_handle`].
#[derive(Clone)]
pub struct InterruptHandle(Arc<Mutex<Option<Interrupt>>>);

type Interrupt = Box<dyn Fn() + Send>;

impl InterruptHandle {
    /// Makes the statement that is running on the lease return an error. It does nothing if no statement
    /// runs, or if the lease has ended.
    ///
    /// # Blocking
    /// For at most as long as another call of this function takes.
    pub fn interrupt(&self) {
        if let Some(interrupt) = &*self.0.lock() {
            interrupt();
        }
    }

    fn revoke(&self) {
        *self.0.lock() = None;
    }
}

impl fmt::Debug for InterruptHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptHandle").finish_non_exhaustive()
    }
}
