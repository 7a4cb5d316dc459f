//! Pooled: what a pool adds to the core for a kind of connection.
//! It hands out nothing: `leasing` and `lease` do.

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use crate::core::backend::Backend as CoreBackend;
use crate::core::guard::Checkout;
use crate::error::Error;
use crate::observe::health::Signs;
use crate::observe::stats::Stats;
#[cfg(any(feature = "tower", feature = "actix"))]
pub(crate) use crate::sqlite::Sqlite;
#[cfg(feature = "tokio")]
use crate::sync::virtual_time::Threads;

/// The kind of connections that a pool lends: [`Sqlite`](crate::Sqlite), or those of another pool's manager. It is
/// sealed: what users bring is a manager.
pub trait Backend: Pooled {}

impl<B: Pooled> Backend for B {}

/// The type that a lease dereferences to.
pub(crate) type Target<B> = <<B as CoreBackend>::Connection as std::ops::Deref>::Target;

/// A lent connection of a pool.
pub(crate) type Lent<B> = Checkout<B, Arc<Shared<B>>>;

/// What is beside the core, and what it does when a lease is used and ends.
pub trait Pooled: CoreBackend + Sized {
    /// What the pool has beside its core.
    type Beside: Send + Sync + 'static;
    /// The options of a builder that only this kind of connection has.
    type Options;

    /// The threads that complete what async callers wait for, apart from the core's and those of `run`.
    #[cfg(feature = "tokio")]
    fn threads(_: &Self::Beside) -> Vec<&dyn Threads> {
        Vec::new()
    }

    /// # Errors
    /// If there are no borrowers without an agent.
    fn check_anonymous(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Work that must happen in time even if no call is made.
    fn maintain(_: &Self::Beside) {}

    /// Adds to a snapshot.
    fn add_to(_: &Self::Beside, _: &mut Stats) {}

    /// Adds to what a verdict is made of.
    fn tell(_: &Self::Beside, _: &mut Signs) {}

    /// # Errors
    /// Why calls would fail now for a reason that is beside the core.
    fn check_ready(_: &Self::Beside) -> Result<(), Error> {
        Ok(())
    }

    /// Waits until what was called for is done, until `deadline` at most, and then refuses the rest.
    fn drain(_: &Self::Beside, _deadline: Instant) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Refuses whatever waits beside the core.
    fn refuse(_: &Self::Beside) {}

    /// Called when a borrower uses its connection.
    #[inline]
    fn used(_: &Lent<Self>) {}

    /// Says that work is no longer wanted.
    type Cancel: Clone + Default + Send + Sync + 'static;
    /// What interrupts work.
    type Interrupt: Send + 'static;

    fn interrupt_of(_: &Lent<Self>, _: &Self::Cancel) -> Self::Interrupt;

    /// Interrupts the statement that runs now, as far as that is possible.
    fn interrupt(_: &Self::Interrupt) {}

    /// Runs work on a connection, on a thread that may block.
    fn interruptible<R>(
        lent: &mut Lent<Self>,
        _cancel: &Self::Cancel,
        work: impl FnOnce(&mut Target<Self>) -> R,
    ) -> R {
        work(lent.connection_mut())
    }

    /// Ends a lease.
    #[inline]
    fn end(lent: Lent<Self>) {
        drop(lent);
    }
}
