//! A slot: the right to have one connection open. r2d2 is the list of free slots.
//! It opens and closes nothing.
//!
//! r2d2 pools slots, not connections, so r2d2 never opens, checks or drops a connection. Its background
//! threads, back-off and counts therefore do not matter: a slot is made at once and never breaks. The permit
//! holder that has the slot closes a bad connection in place.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use scheduled_thread_pool::ScheduledThreadPool;

use super::backend::{Backend, CloseMode};
use super::lot::{FreeList, Token};
use crate::error::Error;

/// A slot that is not free. Dropping it makes it free, so only the lot drops it, under its lock. Boxed, since
/// it moves to and from its cell with every lease.
pub(crate) type TakenSlot<B> = Box<r2d2::PooledConnection<Slots<B>>>;

pub(crate) struct Slot<B: Backend> {
    /// Which of the N slots this is.
    pub(crate) index: usize,
    /// `None`: vacant. Boxed, since slots move.
    pub(crate) open: Option<Box<OpenConnection<B>>>,
}

/// The open connection in a slot.
pub(crate) struct OpenConnection<B: Backend> {
    pub(crate) connection: B::Connection,
    pub(crate) opened_at: Instant,
    /// Whether an agent has used it since it was opened or reset.
    pub(crate) used: bool,
    /// After a faulty lease the connection may not be lent again. The next permit holder that may block
    /// closes it, in this mode.
    pub(crate) doomed: Option<CloseMode>,
}

/// Makes vacant slots for r2d2.
pub(crate) struct Slots<B> {
    made: AtomicUsize,
    backend: PhantomData<fn() -> B>,
}

/// r2d2, as the lot's list of free slots.
pub(crate) struct FreeSlots<B: Backend>(r2d2::Pool<Slots<B>>);

/// r2d2 wants threads to make slots on. One thread serves all pools: a slot takes nanoseconds to make, and
/// slots are made only while a pool is built.
fn slot_maker() -> Result<Arc<ScheduledThreadPool>, Error> {
    static SLOT_MAKER: Mutex<Option<Arc<ScheduledThreadPool>>> = Mutex::new(None);
    let mut maker = SLOT_MAKER.lock();
    if let Some(made) = &*maker {
        return Ok(Arc::clone(made));
    }
    // The thread pool panics if it cannot start its thread, and prints to stderr: find out before.
    let probe = std::thread::Builder::new().spawn(|| ());
    probe
        .map_err(Error::no_thread)?
        .join()
        .map_err(|_| Error::no_thread(std::io::ErrorKind::Other.into()))?;
    let build = || {
        ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("leasepool-slots")
            .build()
    };
    let made = catch_unwind(AssertUnwindSafe(build))
        .map_err(|_| Error::no_thread(std::io::ErrorKind::WouldBlock.into()))?;
    Ok(Arc::clone(maker.insert(Arc::new(made))))
}

impl<B: Backend> FreeSlots<B> {
    /// `n` vacant slots.
    pub(crate) fn new(n: usize) -> Result<Self, Error> {
        let unbuilt = |found: &dyn std::fmt::Display| Error::Config {
            option: "max_connections",
            value: n.to_string(),
            expected: format!("a number of slots that can be made: {found}"),
        };
        let size = u32::try_from(n).map_err(|e| unbuilt(&e))?;
        let pool = r2d2::Pool::builder()
            .max_size(size)
            // With `min_idle` above zero, r2d2 counts idle slots up to that number under its lock, at every
            // `try_get`.
            .min_idle(Some(0))
            .test_on_check_out(false)
            .idle_timeout(None)
            .max_lifetime(None)
            .connection_timeout(Duration::from_secs(30))
            .thread_pool(slot_maker()?)
            .build(Slots {
                made: AtomicUsize::new(0),
                backend: PhantomData,
            })
            .map_err(|e| unbuilt(&e))?;
        // Makes all slots. From now on, every slot is in r2d2 or taken, and r2d2 makes no more.
        let slots: Result<Vec<_>, _> = (0..n).map(|_| pool.get()).collect();
        drop(slots.map_err(|e| unbuilt(&e))?);
        Ok(FreeSlots(pool))
    }
}

impl<B: Backend> FreeList<TakenSlot<B>> for FreeSlots<B> {
    fn pop(&self) -> Option<TakenSlot<B>> {
        self.0.try_get().map(Box::new)
    }

    fn push(&self, slot: TakenSlot<B>) {
        drop(slot);
    }
}

impl<B: Backend> Token for TakenSlot<B> {
    fn index(&self) -> usize {
        self.index
    }
}

impl<B: Backend> r2d2::ManageConnection for Slots<B> {
    type Connection = Slot<B>;
    type Error = Infallible;

    fn connect(&self) -> Result<Slot<B>, Infallible> {
        Ok(Slot {
            index: self.made.fetch_add(1, Relaxed),
            open: None,
        })
    }

    fn is_valid(&self, _: &mut Slot<B>) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, _: &mut Slot<B>) -> bool {
        false
    }
}
