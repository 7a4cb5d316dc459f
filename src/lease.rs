//! Lease: a lent connection. Dropping it is the only way to end it.
//! It decides nothing about where the connection goes: the pool does.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::backend::{Backend, Fate};
use crate::gate::Pass;
use crate::ledger::Entry;
use crate::shared::Shared;
use crate::slot::{Occupant, TakenSlot};
#[cfg(feature = "tokio")]
use crate::sqlite::Cancel;
use crate::sqlite::Sqlite;

/// A lent connection. It dereferences to [`rusqlite::Connection`], and ends when it is dropped.
///
/// While it lives, nothing can take the connection away or close it: not the eviction of its agent,
/// not [`Pool::close`](crate::Pool::close), not the pool's end. There is no `close` on a lease, and
/// it is never without a connection.
///
/// At its end, what is still open in a transaction is rolled back, and the connection stays parked
/// for its agent: the next lease of the same agent finds its temporary tables, pragmas and prepared
/// statements as they were. Before another agent gets it, all of that is gone.
///
/// All functions are associated ones, so that none hides a method of the connection.
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
/// There is no way to close a lent connection, or to give it back twice:
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
/// A lease given to [`std::mem::forget`] keeps its connection for as long as the pool lives; it shows
/// in [`Pool::holders`](crate::Pool::holders). Never `std::mem::swap` the connection for another: the
/// pool can no longer count what you keep.
#[must_use = "a lease that is dropped at once lends nothing"]
pub struct Lease<B: Backend = Sqlite> {
    shared: Arc<Shared<B>>,
    entry: Arc<Entry<B>>,
    /// `None` only within `drop`.
    slot: Option<TakenSlot<B>>,
    /// What the lease itself says of its connection: `Discard` until the connection has been made
    /// ready, and again once somebody called `discard`.
    fate: Fate,
    interrupt: OnceLock<InterruptHandle>,
    /// Where agents have connections of their own. Goes back after the slot and the permit.
    pass: Option<Pass>,
}

impl<B: Backend> Lease<B> {
    /// Takes over the caller's permit, too.
    pub(crate) fn unready(
        shared: &Arc<Shared<B>>,
        entry: Arc<Entry<B>>,
        slot: TakenSlot<B>,
        pass: Option<Pass>,
    ) -> Self {
        Lease {
            shared: Arc::clone(shared),
            entry,
            slot: Some(slot),
            fate: Fate::Discard,
            interrupt: OnceLock::new(),
            pass,
        }
    }

    pub(crate) fn ready(mut self) -> Self {
        self.fate = Fate::Reuse;
        self
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<B>> {
        &self.shared
    }

    /// The agent, and the slot to be made ready for it.
    pub(crate) fn parts(&mut self) -> (&str, &mut TakenSlot<B>) {
        match &mut self.slot {
            Some(slot) => (&self.entry.agent, slot),
            None => unreachable!("only the end of a lease takes its slot"),
        }
    }

    /// Ends the lease of a connection that cannot be closed. The pass goes on.
    pub(crate) fn strand(mut self) -> Option<Pass> {
        if let Some(slot) = self.slot.take() {
            self.shared.strand(&self.entry, slot);
        }
        self.pass.take()
    }

    /// Who borrowed the connection.
    pub fn agent(lease: &Self) -> &str {
        &lease.entry.agent
    }

    /// Ends the lease and closes its connection, which will serve nobody any more. Use it after an
    /// error that puts the connection in doubt (an I/O error, corruption): rusqlite gives no safe
    /// way to ask a connection for the last error, so the pool cannot see those that your statements
    /// return. Nothing is written at this close, not even a last checkpoint.
    ///
    /// # Blocking
    /// For as long as SQLite takes to close a connection.
    pub fn discard(mut lease: Self) {
        lease.fate = Fate::Discard;
    }

    fn occupant(&self) -> Option<&Occupant<B>> {
        if let Some(pass) = &self.pass {
            pass.note_thread();
        }
        self.slot.as_ref()?.occupant.as_deref()
    }
}

impl Lease<Sqlite> {
    /// The connection, with what the backend remembers of it.
    pub(crate) fn connection_mut(&mut self) -> &mut crate::sqlite::Connection {
        match self.slot.as_mut().and_then(|slot| slot.occupant.as_mut()) {
            Some(occupant) => &mut occupant.connection,
            None => unreachable!("a lease always has a connection"),
        }
    }

    /// A handle by which another thread can interrupt what runs on this lease. It does nothing once
    /// the lease has ended, unlike the one of [`rusqlite::Connection::get_interrupt_handle`], which
    /// would interrupt the connection's next borrower.
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

#[cfg(feature = "tokio")]
impl Lease<Sqlite> {
    /// Runs `work` on the connection, so that `cancel` ends its waits for locks.
    pub(crate) fn cancellable<R>(
        &mut self,
        cancel: &Cancel,
        work: impl FnOnce(&mut rusqlite::Connection) -> R,
    ) -> R {
        let shared = Arc::clone(&self.shared);
        let result = shared.backend.cancellable(self, cancel, work);
        // The lease may end on another thread.
        (shared.hooks.returned)(&shared);
        result
    }

    /// At the end of the lease, the connection goes through a reset before anybody gets it.
    pub(crate) fn retire(&self) {
        self.shared.cache.retire(&self.entry);
    }

    /// Interrupts what runs on the lease, again and again until the lease ends.
    pub(crate) fn presser(&self) -> Box<dyn FnOnce() + Send> {
        let (handle, shared) = (Lease::interrupt_handle(self), Arc::downgrade(&self.shared));
        Box::new(move || {
            if handle.press()
                && let Some(shared) = shared.upgrade()
            {
                shared.press(Box::new(move || handle.press()));
            }
        })
    }
}

impl<B: Backend> Drop for Lease<B> {
    fn drop(&mut self) {
        if let Some(handle) = self.interrupt.get() {
            handle.revoke();
        }
        if let Some(slot) = self.slot.take() {
            self.shared.end_lease(&self.entry, slot, self.fate);
            (self.shared.hooks.returned)(&self.shared);
        }
    }
}

impl<B: Backend> Deref for Lease<B> {
    type Target = <B::Connection as Deref>::Target;

    fn deref(&self) -> &Self::Target {
        match self.occupant() {
            Some(occupant) => &occupant.connection,
            // A lease is handed out with its slot occupied, and only its drop takes the slot out.
            None => unreachable!("a lease always has a connection"),
        }
    }
}

impl<B: Backend> DerefMut for Lease<B> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self.slot.as_mut().and_then(|slot| slot.occupant.as_mut()) {
            Some(occupant) => &mut occupant.connection,
            None => unreachable!("a lease always has a connection"),
        }
    }
}

impl<B: Backend> fmt::Debug for Lease<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("agent", &self.entry.agent)
            .finish_non_exhaustive()
    }
}

/// Interrupts the statement running on a lease: [`Lease::interrupt_handle`].
#[derive(Clone)]
pub struct InterruptHandle(Arc<Mutex<Option<Interrupt>>>);

type Interrupt = Box<dyn Fn() + Send>;

impl InterruptHandle {
    /// Makes the statement that is running on the lease return an error. It does nothing if none
    /// runs, or if the lease has ended.
    ///
    /// # Blocking
    /// Never for longer than another call of this function takes.
    pub fn interrupt(&self) {
        self.press();
    }

    /// Whether the lease still lives.
    fn press(&self) -> bool {
        match &*self.0.lock() {
            Some(interrupt) => {
                interrupt();
                true
            }
            None => false,
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
