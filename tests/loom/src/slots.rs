//! Models of permits and lot together: a permit holder always finds a slot, and no slot is lost.
//! What threads do here follows `checkout.rs`, `checkin.rs`, `maintenance.rs` and `close.rs`, step by step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use loom::cell::UnsafeCell;
use loom::future::block_on;

use crate::core::lot::{Entry, FreeList, Levels, Loan, Lot, Taken, Token};
use crate::observe::call_site::CallSite;
use crate::sync::prim::Mutex;
use crate::sync::semaphore::{Closed, Refusal, Semaphore};
use crate::{Overtaking, explore, part, together};

struct Slot(usize);

impl Token for Slot {
    fn index(&self) -> usize {
        self.0
    }
}

struct FreeSlots(Mutex<Vec<Slot>>);

impl FreeList<Slot> for FreeSlots {
    fn pop(&self) -> Option<Slot> {
        self.0.lock().pop()
    }

    fn push(&self, slot: Slot) {
        self.0.lock().push(slot);
    }
}

struct Pool {
    permits: Semaphore<&'static str>,
    lot: Lot<Slot, FreeSlots, ()>,
    now: Instant,
    /// By slot. loom complains when two have one, or when one does not see what the one before did.
    connections: Vec<UnsafeCell<()>>,
    /// Slots of a closed pool.
    retired: Mutex<Vec<Slot>>,
    closed: AtomicBool,
}

impl Pool {
    fn new(slots: usize, overtaking: Overtaking) -> Arc<Self> {
        let free = FreeSlots(Mutex::new((0..slots).map(Slot).collect()));
        Arc::new(Pool {
            now: overtaking.now(),
            permits: Semaphore::new(slots, overtaking.limit()),
            lot: Lot::new(slots, free),
            connections: (0..slots).map(|_| UnsafeCell::new(())).collect(),
            retired: Mutex::new(Vec::new()),
            closed: AtomicBool::new(false),
        })
    }

    /// A pool with a slot parked for each agent.
    fn parked(agents: &[&'static str], overtaking: Overtaking) -> Arc<Self> {
        let pool = Pool::new(agents.len(), overtaking);
        let take = |agent: &&'static str| {
            assert_eq!(pool.permits.try_acquire(pool.now), Ok(()));
            pool.take(agent)
        };
        let slots: Vec<_> = agents.iter().map(take).collect();
        for slot in slots {
            pool.give_back(slot, true);
        }
        assert_eq!(pool.lot.levels().parked, agents.len());
        pool
    }

    /// A lease, from the request to the end. The connection is fit to be parked, or is not.
    fn lease(&self, agent: &'static str, fit: bool) {
        match self.permits.try_acquire(self.now) {
            Ok(()) => {}
            Err(Refusal::Closed) => return assert!(self.closed.load(Relaxed)),
            Err(Refusal::Busy) => match block_on(self.permits.acquire(agent)) {
                Ok(()) => {}
                Err(Closed) => return assert!(self.closed.load(Relaxed)),
            },
        }
        let taken = self.take(agent);
        self.give_back(taken, fit);
    }

    /// For a permit holder.
    fn take(&self, agent: &'static str) -> (Slot, Arc<Entry<()>>) {
        let loan = Loan::new(self.now, CallSite::here());
        let (slot, entry) = self.lot.take_hinted(agent, loan).unwrap_or_else(|| {
            let known = self.lot.find(agent);
            let entry = known.unwrap_or_else(|| Entry::new(Arc::from(agent), None));
            let taken = self.lot.take(
                entry,
                loan,
                self.permits.free() + 1 < self.connections.len(),
            );
            let Taken { slot, entry, .. } = taken.expect("a permit holder found no slot");
            (slot, entry)
        });
        self.touch(&slot);
        (slot, entry)
    }

    /// Slot, permit, everything else.
    fn give_back(&self, (slot, entry): (Slot, Arc<Entry<()>>), fit: bool) {
        self.lot.give_back(slot, entry, fit, self.now, |_| false);
        self.return_permit();
    }

    fn return_permit(&self) {
        self.permits.release(self.now);
        if self.permits.is_closed() {
            self.wind_up();
        }
    }

    /// The borrower of a slot uses what is in it.
    fn touch(&self, slot: &Slot) {
        self.connections[slot.0].with_mut(|_| ());
    }

    /// Closes a connection that nobody has, in place.
    fn tidy(&self, spare: usize) {
        if !self.permits.is_closed() && self.permits.try_acquire_spare(spare) {
            let found = self.lot.take_matching(|_, is_parked| is_parked);
            if let Some(slot) = found {
                self.touch(&slot);
                self.lot.put_back(slot);
            }
            self.return_permit();
        }
    }

    /// The agents for which slots are parked.
    fn idle(&self) -> Vec<Arc<Entry<()>>> {
        self.lot.idle_since(self.now + Duration::from_secs(1)).1
    }

    fn evict_idle(&self) {
        for entry in self.idle() {
            self.lot.evict(&entry);
        }
    }

    fn close(&self) {
        self.closed.store(true, Relaxed);
        self.permits.close();
        self.wind_up();
    }

    fn wind_up(&self) {
        while self.permits.try_acquire_spare(0) {
            let slot = self.lot.take_any();
            let slot = slot.expect("a permit holder found no slot");
            self.touch(&slot);
            self.retired.lock().push(slot);
        }
    }

    /// Nothing is lent or in hand: all permits are free, and all slots are in the lot, or retired if it is closed.
    fn assert_whole(&self) {
        let n = self.connections.len();
        assert_eq!(self.permits.waiting(), 0);
        if !self.closed.load(Relaxed) {
            for entry in self.idle() {
                let known = self.lot.find(&entry.agent);
                let is_known = known.is_some_and(|known| Arc::ptr_eq(&known, &entry));
                assert!(is_known, "parked for an agent that was evicted");
            }
            assert_eq!(self.permits.free(), n, "a permit is lost");
            self.wind_up();
        }
        assert_eq!(self.permits.free(), 0);
        let mut found: Vec<usize> = self.retired.lock().iter().map(Token::index).collect();
        found.sort_unstable();
        assert_eq!(found, Vec::from_iter(0..n), "a slot is lost");
        assert!(self.lot.take_any().is_none(), "a slot too many");
        let Levels { lent, parked, .. } = self.lot.levels();
        assert_eq!((lent, parked), (0, 0));
    }
}

/// A thread for a lease of each agent, on so many slots, all of them free at first.
pub fn leases<const N: usize>(
    slots: usize,
    agents: [&'static str; N],
    overtaking: Overtaking,
    preemptions: Option<usize>,
) {
    explore(preemptions, move || {
        let pool = Pool::new(slots, overtaking);
        together(agents.map(|agent| {
            let pool = Arc::clone(&pool);
            part(move || pool.lease(agent, true))
        }));
        pool.assert_whole();
    });
}

/// What happens during two leases.
#[derive(Debug, Clone, Copy)]
pub enum Meanwhile {
    /// Agent `a` is evicted.
    Evict,
    /// All agents are idle.
    EvictIdle,
    /// A parked connection is closed.
    Tidy,
    /// All are closed.
    Close,
}

/// The slots are parked for `parked`; the agents of `leased` lease; and something else happens.
pub fn meanwhile(
    parked: &'static [&'static str],
    leased: [&'static str; 2],
    meanwhile: Meanwhile,
    overtaking: Overtaking,
    preemptions: Option<usize>,
) {
    explore(preemptions, move || {
        let pool = Pool::parked(parked, overtaking);
        let [first, second, other] = [(); 3].map(|()| Arc::clone(&pool));
        let [a, b] = leased;
        together([
            part(move || first.lease(a, true)),
            part(move || second.lease(b, false)),
            part(move || match meanwhile {
                Meanwhile::Evict => drop(other.lot.evict_agent("a")),
                Meanwhile::EvictIdle => other.evict_idle(),
                Meanwhile::Tidy => other.tidy(0),
                Meanwhile::Close => other.close(),
            }),
        ]);
        pool.assert_whole();
    });
}

/// The slots are parked for `parked`. Agent `a` leases and is evicted, and the pool is closed.
pub fn evicted_while_closing(
    parked: &'static [&'static str],
    overtaking: Overtaking,
    preemptions: Option<usize>,
) {
    explore(preemptions, move || {
        let pool = Pool::parked(parked, overtaking);
        let [lease, evict, close] = [(); 3].map(|()| Arc::clone(&pool));
        together([
            part(move || lease.lease("a", true)),
            part(move || drop(evict.lot.evict_agent("a"))),
            part(move || close.close()),
        ]);
        pool.assert_whole();
    });
}

/// One slot comes back and another is taken, both for their own agents, while a permit holder searches: it may find each
/// empty when it looks there, and must find one all the same.
pub fn search_beside_hits(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let pool = Pool::parked(&["a", "b"], overtaking);
        let [search, back, hit] = [(); 3].map(|()| Arc::clone(&pool));
        assert_eq!(pool.permits.try_acquire(pool.now), Ok(()));
        let lent = pool.take("a");
        together([
            part(move || search.lease("c", true)),
            part(move || back.give_back(lent, true)),
            part(move || hit.lease("b", true)),
        ]);
        pool.assert_whole();
    });
}
