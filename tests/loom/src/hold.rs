//! Models of `max_hold`: an interrupt reaches the lease that it is meant for, and nothing that comes after.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::core::max_hold::MaxHold;
use crate::explore;
use crate::sync::prim::AtomicBool;

/// A lease ends, and another one begins and ends; meanwhile, the maintenance thread interrupts the first.
pub fn interrupted_at_its_end(bound: Option<usize>) {
    let interrupted = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&interrupted);
    explore(bound, move || {
        let hold = Arc::new(MaxHold::new(Duration::ZERO, 1));
        let is_over = Arc::new(AtomicBool::new(false));
        let (known, seen) = (Arc::clone(&is_over), Arc::clone(&seen));
        let interrupter = move || {
            assert!(!known.load(Relaxed), "it has ended");
            seen.fetch_add(1, Relaxed);
            assert!(!known.load(Relaxed), "it ends while it is interrupted");
        };
        hold.set_connection(0, Some(Arc::new(interrupter)));
        hold.begin(0);
        let first = hold.lease(0).expect("it has begun");
        let theirs = Arc::clone(&hold);
        let maintenance = loom::thread::spawn(move || {
            theirs.interrupt(0, first, || ());
        });
        hold.end(0);
        is_over.store(true, Relaxed);
        hold.begin(0);
        hold.end(0);
        maintenance.join().unwrap();
        assert_eq!(hold.lease(0), None);
    });
    // In some schedules the lease is interrupted.
    assert!(interrupted.load(Relaxed) > 0);
}
