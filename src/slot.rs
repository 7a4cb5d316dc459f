//! A slot: the right to have one connection open; and the r2d2 manager that makes them, vacant.
//! It opens and closes nothing.
//!
//! r2d2 pools slots, not connections, so that r2d2 never opens, checks or drops a connection: what
//! its background threads, back-off and counts do can then not matter (a slot is made at once and
//! never breaks), and a bad connection is closed in place by whoever holds its slot.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use scheduled_thread_pool::ScheduledThreadPool;

use crate::backend::Backend;
use crate::error::Error;

/// A slot taken from r2d2. Dropping it gives it back. Boxed, since it moves with every lease: into the
/// lease, and back to where it is parked.
pub(crate) type TakenSlot<B> = Box<r2d2::PooledConnection<Slots<B>>>;

pub(crate) struct Slot<B: Backend> {
    /// Which of the N slots this is; the ledger is ordered by it.
    pub(crate) index: usize,
    /// `None`: vacant. Boxed, since slots move in and out of r2d2.
    pub(crate) occupant: Option<Box<Occupant<B>>>,
}

/// The open connection in a slot.
pub(crate) struct Occupant<B: Backend> {
    pub(crate) connection: B::Connection,
    pub(crate) opened_at: Instant,
    /// Whether an agent has had it since it was opened or reset.
    pub(crate) used: bool,
}

/// Makes vacant slots for r2d2.
pub(crate) struct Slots<B> {
    made: AtomicUsize,
    backend: std::marker::PhantomData<fn() -> B>,
}

/// r2d2 wants threads to make slots on. One serves all pools: a slot is made in nanoseconds, and
/// only while a pool is built.
static SLOT_MAKER: LazyLock<Arc<ScheduledThreadPool>> = LazyLock::new(|| {
    Arc::new(
        ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("leasepool-slots")
            .build(),
    )
});

/// A pool of `n` vacant slots.
pub(crate) fn pool<B: Backend>(n: usize) -> Result<r2d2::Pool<Slots<B>>, Error> {
    let unbuilt = |found: &dyn std::fmt::Display| Error::Config {
        option: "max_connections",
        value: n.to_string(),
        expected: format!("a number of slots that can be made: {found}"),
    };
    let size = u32::try_from(n).map_err(|e| unbuilt(&e))?;
    let pool = r2d2::Pool::builder()
        .max_size(size)
        // With more, r2d2 counts idle slots up to that number under its lock, at every `try_get`.
        .min_idle(Some(0))
        .test_on_check_out(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connection_timeout(Duration::from_secs(30))
        .thread_pool(Arc::clone(&SLOT_MAKER))
        .build(Slots {
            made: AtomicUsize::new(0),
            backend: std::marker::PhantomData,
        })
        .map_err(|e| unbuilt(&e))?;
    // Makes them all. From now on, every slot is in r2d2 or taken, and none is ever made again.
    let slots: Result<Vec<_>, _> = (0..n).map(|_| pool.get()).collect();
    drop(slots.map_err(|e| unbuilt(&e))?);
    Ok(pool)
}

/// A slot that is in r2d2, if there is one.
pub(crate) fn take<B: Backend>(slots: &r2d2::Pool<Slots<B>>) -> Option<TakenSlot<B>> {
    slots.try_get().map(Box::new)
}

impl<B: Backend> r2d2::ManageConnection for Slots<B> {
    type Connection = Slot<B>;
    type Error = Infallible;

    fn connect(&self) -> Result<Slot<B>, Infallible> {
        Ok(Slot {
            index: self.made.fetch_add(1, Relaxed),
            occupant: None,
        })
    }

    fn is_valid(&self, _: &mut Slot<B>) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Slot<B>) -> bool {
        false
    }
}
