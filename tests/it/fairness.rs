//! P8: first come, first served.

use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Pool, Synchronous};

use crate::common::*;

in_both_modes! {
    waiters_get_the_connection_in_the_order_they_asked_for_one_agent,
    nobody_waits_much_longer_than_the_others,
    waiters_get_the_connection_in_the_order_they_asked,
    nobody_waits_much_longer_than_the_others_for_one_agent
}

fn waiters_get_the_connection_in_the_order_they_asked(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
    in_the_order_they_asked(&pool, |i| format!("{i}"));
}

fn waiters_get_the_connection_in_the_order_they_asked_for_one_agent(mode: Mode) {
    let fixture = mode.fixture();
    let builder = fixture.builder(mode.either(1, 4));
    let pool = builder.lease_timeout(LONG).build().unwrap();
    in_the_order_they_asked(&pool, |_| "holder".to_owned());
}

fn in_the_order_they_asked(pool: &Pool, agent: impl Fn(usize) -> String) {
    let served = Mutex::new(Vec::new());
    let held = pool.lease("holder").unwrap();
    thread::scope(|scope| {
        for i in 0..12 {
            let (agent, served) = (agent(i), &served);
            scope.spawn(move || {
                let lease = pool.lease(agent).unwrap();
                served.lock().unwrap().push(i);
                drop(lease);
            });
            eventually("it waits", || pool.stats().waiting == i + 1);
        }
        drop(held);
    });
    assert_eq!(*served.lock().unwrap(), (0..12).collect::<Vec<_>>());
}

fn nobody_waits_much_longer_than_the_others(mode: Mode) {
    let fixture = mode.fixture();
    let builder = fixture.builder(1).lease_timeout(LONG);
    // Files are made: what takes long then is the disk.
    let pool = builder.synchronous(Synchronous::Off).build().unwrap();
    no_longer_than_the_others(&pool, |t| format!("{t}"));
}

fn nobody_waits_much_longer_than_the_others_for_one_agent(mode: Mode) {
    let fixture = mode.fixture();
    let builder = fixture.builder(mode.either(1, 4));
    let pool = builder.lease_timeout(LONG).build().unwrap();
    no_longer_than_the_others(&pool, |_| "one".to_owned());
}

fn no_longer_than_the_others(pool: &Pool, agent: impl Fn(usize) -> String) {
    const THREADS: usize = 32;
    let waits = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (agent, waits) = (agent(t), &waits);
            scope.spawn(move || {
                let mut mine = Vec::new();
                for _ in 0..40 {
                    let start = Instant::now();
                    let lease = pool.lease(&agent).unwrap();
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
