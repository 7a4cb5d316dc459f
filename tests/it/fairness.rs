//! P8: first come, first served.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::*;

#[test]
fn waiters_get_the_connection_in_the_order_they_asked() {
    let fixture = Fixture::new();
    let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
    let served = Mutex::new(Vec::new());
    let held = pool.lease("holder").unwrap();
    thread::scope(|scope| {
        for i in 0..12 {
            let (pool, served) = (&pool, &served);
            scope.spawn(move || {
                let lease = pool.lease(format!("{i}")).unwrap();
                served.lock().unwrap().push(i);
                drop(lease);
            });
            eventually("it waits", || pool.stats().waiting == i + 1);
        }
        drop(held);
    });
    assert_eq!(*served.lock().unwrap(), (0..12).collect::<Vec<_>>());
}

#[test]
fn nobody_waits_much_longer_than_the_others() {
    const THREADS: usize = 32;
    let fixture = Fixture::new();
    let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
    let waits = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (pool, waits) = (&pool, &waits);
            scope.spawn(move || {
                let mut mine = Vec::new();
                for _ in 0..40 {
                    let start = Instant::now();
                    let lease = pool.lease(format!("{t}")).unwrap();
                    mine.push(start.elapsed());
                    assert_eq!(count(&lease), 0);
                }
                waits.lock().unwrap().push(mine);
            });
        }
    });
    // While all are at it: the first and the last rounds are not.
    let mut waits: Vec<Duration> = waits
        .into_inner()
        .unwrap()
        .into_iter()
        .flat_map(|mine| mine[5..35].to_vec())
        .collect();
    waits.sort();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    // An unfair pool lets some wait for hundreds of rounds. The slack is for a busy machine.
    assert!(
        longest < median * 20 + Duration::from_millis(50),
        "median {median:?}, longest {longest:?}"
    );
}
