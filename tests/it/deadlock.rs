//! Callers that wait for each other: nobody guesses, and the error names who has what.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Error, Wanted};

use crate::common::*;

fn exhausted(error: Error) -> (Wanted, Vec<String>, bool) {
    match error {
        Error::Exhausted {
            wanted,
            holders,
            all_holders_wait,
            ..
        } => {
            let names = holders.into_iter().map(|holder| holder.agent);
            (wanted, names.collect(), all_holders_wait)
        }
        other => panic!("{other}"),
    }
}

#[test]
fn who_waits_for_each_other_is_named() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let both = Barrier::new(2);
    let error = thread::scope(|scope| {
        let (pool, both) = (&pool, &both);
        let patient = scope.spawn(move || {
            let _lease = pool.lease("patient").unwrap();
            both.wait();
            drop(pool.lease("second").unwrap());
        });
        let lease = pool.lease("impatient").unwrap();
        both.wait();
        eventually("the other waits", || pool.stats().waiting == 1);
        let wait = Duration::from_millis(50);
        let error = pool.agent("second").within(wait).lease().unwrap_err();
        drop(lease);
        patient.join().unwrap();
        error
    });
    let text = error.to_string();
    assert!(text.contains("is itself waiting"), "{text}");
    let (wanted, mut holders, all_holders_wait) = exhausted(error);
    holders.sort();
    assert_eq!(wanted, Wanted::Connection);
    assert_eq!(holders, ["impatient", "patient"]);
    assert!(all_holders_wait);
    assert_whole(&pool);
}

#[test]
fn a_holder_that_works_is_no_deadlock() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let own = pool.lease("a").unwrap();
    let other = thread::scope(|scope| scope.spawn(|| pool.lease("b").unwrap()).join().unwrap());
    let wait = Duration::from_millis(20);
    let error = pool.agent("second").within(wait).lease().unwrap_err();
    let text = error.to_string();
    assert!(!text.contains("is itself waiting"), "{text}");
    let (_, holders, all_holders_wait) = exhausted(error);
    assert_eq!(holders.len(), 2);
    assert!(!all_holders_wait);
    drop((own, other));
}

/// A10: the lease that this thread took is used on another one, so that this one may wait for it.
#[test]
fn a_lease_that_went_to_another_thread_may_be_waited_for() {
    let mode = Mode::PerAgent;
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    let mut lease = pool.lease("a").unwrap();
    let begun = Barrier::new(2);
    let (patient, impatient) = thread::scope(|scope| {
        let (pool, begun) = (&pool, &begun);
        scope.spawn(move || {
            let transaction = lease.transaction().unwrap();
            begun.wait();
            thread::sleep(Duration::from_millis(300));
            transaction.commit().unwrap();
            drop(lease);
        });
        begun.wait();
        let asked = Instant::now();
        let wait = Duration::from_millis(100);
        let impatient = pool.agent("a").within(wait).lease().unwrap_err();
        assert!(asked.elapsed() >= wait);
        (pool.lease("a"), impatient)
    });
    let (wanted, holders, _) = exhausted(impatient);
    assert_eq!((wanted, holders), (Wanted::Agent, vec!["a".to_owned()]));
    drop(patient.unwrap());
    assert_whole(&pool);
}
