//! Models of the semaphore: one permit, which must never be two, and never be lost.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use loom::cell::UnsafeCell;
use loom::future::block_on;

use crate::sync::semaphore::{Acquire, Closed, Refusal, Semaphore};
use crate::{Overtaking, explore, join, part, together};

/// What the permit protects.
struct Room {
    permits: Semaphore<&'static str>,
    now: Instant,
    occupied: loom::sync::atomic::AtomicBool,
    /// loom complains when one does not see what the one before did.
    inside: UnsafeCell<()>,
    closed: AtomicBool,
}

type Place<'a> = Acquire<'a, &'static str>;

impl Room {
    fn new(overtaking: Overtaking) -> Arc<Self> {
        Arc::new(Room {
            now: overtaking.now(),
            permits: Semaphore::new(1, overtaking.limit()),
            occupied: loom::sync::atomic::AtomicBool::new(false),
            inside: UnsafeCell::new(()),
            closed: AtomicBool::new(false),
        })
    }

    /// A room whose permit the caller has.
    fn taken(overtaking: Overtaking) -> Arc<Self> {
        let room = Room::new(overtaking);
        assert_eq!(room.permits.try_acquire(room.now), Ok(()));
        room
    }

    /// A permit holder comes in, goes, and returns the permit.
    fn visit(&self) {
        assert!(!self.occupied.swap(true, Relaxed), "two are in");
        self.inside.with_mut(|_| ());
        self.occupied.store(false, Relaxed);
        self.permits.release(self.now);
    }

    /// Waits for the permit, however long.
    fn wait_and_visit(&self) {
        self.visit_unless_closed(block_on(self.permits.acquire("waits")));
    }

    fn visit_unless_closed(&self, answer: Result<(), Closed>) {
        match answer {
            Ok(()) => self.visit(),
            Err(Closed) => assert!(self.closed.load(Relaxed), "it is open"),
        }
    }

    /// Takes the permit if it can be had.
    fn try_and_visit(&self) -> bool {
        let answer = self.permits.try_acquire(self.now);
        if answer.is_ok() {
            self.visit();
        }
        answer.is_ok()
    }

    fn close(&self) {
        self.closed.store(true, Relaxed);
        assert!(self.permits.close());
    }

    fn assert_empty(&self) {
        assert_eq!(self.permits.free(), 1, "the permit is lost");
        assert_eq!(self.permits.waiting(), 0);
        let expected = match self.closed.load(Relaxed) {
            true => Err(Refusal::Closed),
            false => Ok(()),
        };
        assert_eq!(self.permits.try_acquire(self.now), expected);
        self.inside.with_mut(|_| ());
    }
}

/// Looks once, and is never told.
fn poll_once(place: &mut Place<'_>) -> Poll<Result<(), Closed>> {
    Pin::new(place).poll(&mut Context::from_waker(Waker::noop()))
}

/// `N` threads wait for the permit: each gets it, alone.
pub fn all_wait<const N: usize>(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::new(overtaking);
        together([(); N].map(|()| {
            let room = Arc::clone(&room);
            part(move || room.wait_and_visit())
        }));
        room.assert_empty();
    });
}

/// One releases, one queues and leaves the queue at once, one waits: the permit is not lost with the second.
pub fn one_gives_up(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::taken(overtaking);
        let [gives_up, waits, holds] = [(); 3].map(|()| Arc::clone(&room));
        together([
            part(move || {
                let mut place = gives_up.permits.acquire("gives up");
                if poll_once(&mut place).is_ready() {
                    gives_up.visit();
                }
            }),
            part(move || waits.wait_and_visit()),
            part(move || holds.visit()),
        ]);
        room.assert_empty();
    });
}

/// The same, but who gives up is in the queue before the others run.
pub fn the_first_gives_up(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::taken(overtaking);
        let [waits, holds] = [(); 2].map(|()| Arc::clone(&room));
        let mut place = room.permits.acquire("gives up");
        assert!(poll_once(&mut place).is_pending());
        let others = [
            loom::thread::spawn(move || waits.wait_and_visit()),
            loom::thread::spawn(move || holds.visit()),
        ];
        drop(place);
        join(others);
        room.assert_empty();
    });
}

/// What becomes of the place in the queue that is there before the semaphore is closed.
#[derive(Debug, Clone, Copy)]
pub enum Then {
    /// It waits on.
    Waits,
    /// Its future is dropped.
    Dropped,
}

/// The semaphore is closed while one has queued, one comes, and the permit is released: each is answered, and the
/// permit comes back.
pub fn closed_meanwhile(overtaking: Overtaking, then: Then, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::taken(overtaking);
        let [comes, holds, closes] = [(); 3].map(|()| Arc::clone(&room));
        let mut place = room.permits.acquire("queued");
        assert!(poll_once(&mut place).is_pending());
        let others = [
            loom::thread::spawn(move || comes.wait_and_visit()),
            loom::thread::spawn(move || holds.visit()),
            loom::thread::spawn(move || closes.close()),
        ];
        match then {
            Then::Waits => room.visit_unless_closed(block_on(place)),
            Then::Dropped => drop(place),
        }
        join(others);
        room.assert_empty();
    });
}

/// The semaphore is closed while one was told of a permit, or granted it, and has not taken it.
pub fn closed_after_the_grant(overtaking: Overtaking, then: Then, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::taken(overtaking);
        let [comes, closes] = [(); 2].map(|()| Arc::clone(&room));
        let mut place = room.permits.acquire("granted");
        assert!(poll_once(&mut place).is_pending());
        room.visit();
        let others = [
            loom::thread::spawn(move || comes.wait_and_visit()),
            loom::thread::spawn(move || closes.close()),
        ];
        match then {
            Then::Waits => room.visit_unless_closed(block_on(place)),
            Then::Dropped => drop(place),
        }
        join(others);
        room.assert_empty();
    });
}

/// A newcomer tries while one waits and the permit is released. Nobody hangs; and if the order is strict, who waited
/// was first.
pub fn newcomer(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::taken(overtaking);
        let served = Arc::new(AtomicBool::new(false));
        let [tries, holds] = [(); 2].map(|()| Arc::clone(&room));
        let seen = Arc::clone(&served);
        let mut place = room.permits.acquire("waits");
        assert!(poll_once(&mut place).is_pending());
        let others = [
            loom::thread::spawn(move || {
                let answer = tries.permits.try_acquire(tries.now);
                if answer.is_ok() {
                    let is_in_order = overtaking != Overtaking::Never || seen.load(Relaxed);
                    assert!(is_in_order, "a newcomer has overtaken");
                    tries.visit();
                }
            }),
            loom::thread::spawn(move || holds.visit()),
        ];
        assert_eq!(block_on(place), Ok(()));
        served.store(true, Relaxed);
        room.visit();
        join(others);
        room.assert_empty();
    });
}

/// The same, with one that comes to wait just then, and a newcomer that takes only what nobody waits for.
pub fn newcomers(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let room = Room::taken(overtaking);
        let [tries, spares, waits, holds] = [(); 4].map(|()| Arc::clone(&room));
        together([
            part(move || {
                tries.try_and_visit();
            }),
            part(move || {
                if spares.permits.try_acquire_spare(0) {
                    spares.visit();
                }
            }),
            part(move || waits.wait_and_visit()),
            part(move || holds.visit()),
        ]);
        room.assert_empty();
    });
}

/// Three permits come back while two wait, and who gets one keeps it: each gets one, and one is left that nobody waits
/// for.
pub fn several_permits(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let now = overtaking.now();
        let permits = Arc::new(Semaphore::new(3, overtaking.limit()));
        for _ in 0..3 {
            assert_eq!(permits.try_acquire(now), Ok(()));
        }
        let [first, second, holds] = [(); 3].map(|()| Arc::clone(&permits));
        together([
            part(move || assert_eq!(block_on(first.acquire("first")), Ok(()))),
            part(move || assert_eq!(block_on(second.acquire("second")), Ok(()))),
            part(move || {
                for _ in 0..3 {
                    holds.release(now);
                }
            }),
        ]);
        assert_eq!((permits.free(), permits.waiting()), (1, 0));
        assert!(permits.try_acquire_spare(0));
    });
}

/// Two permits come back while two wait, and the first does not run: the second gets one all the same.
pub fn the_first_sleeps(overtaking: Overtaking, preemptions: Option<usize>) {
    explore(preemptions, move || {
        let now = overtaking.now();
        let permits = Arc::new(Semaphore::new(2, overtaking.limit()));
        for _ in 0..2 {
            assert_eq!(permits.try_acquire(now), Ok(()));
        }
        let mut first = permits.acquire("first");
        assert!(poll_once(&mut first).is_pending());
        let [second, holds, other] = [(); 3].map(|()| Arc::clone(&permits));
        together([
            part(move || assert_eq!(block_on(second.acquire("second")), Ok(()))),
            part(move || holds.release(now)),
            part(move || other.release(now)),
        ]);
        assert_eq!(poll_once(&mut first), Poll::Ready(Ok(())));
        assert_eq!((permits.free(), permits.waiting()), (0, 0));
    });
}
