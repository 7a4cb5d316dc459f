//! Callers that wait for each other: nobody guesses, and the error names who has what.

use std::future::Future;
use std::sync::Barrier;
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Database, Error, Pool, Wanted};

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

/// A future that was granted what it waits for, is kept, and is not polled again keeps others waiting: the error names
/// it, whether it has a connection, its agent's file, or its agent's quota.
#[test]
fn who_was_granted_and_takes_nothing_is_named() {
    let quota = |fixture: &Fixture| fixture.builder(2).leases_per_agent(1);
    let fixtures = [
        (Mode::Shared.fixture(), 1, "1 of 1 lent"),
        (Mode::PerAgent.fixture(), 2, "0 of 2 lent"),
        (Mode::Shared.fixture(), 2, "0 of 2 lent"),
    ];
    for (i, (fixture, connections, lent)) in fixtures.into_iter().enumerate() {
        let builder = match i {
            2 => quota(&fixture),
            _ => fixture.builder(connections),
        };
        let pool = builder.overtaking(Duration::ZERO).build().unwrap();
        let lease = pool.lease("a").unwrap();
        let mut kept = Box::pin(pool.lease_async("a"));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(kept.as_mut().poll(&mut cx).is_pending());
        drop(lease);
        let refused = pool.agent("a").within(Duration::from_millis(20)).lease();
        let error = refused.unwrap_err();
        assert!(error.to_string().contains(lent), "{error}");
        let Error::Exhausted { holders, .. } = &error else {
            panic!("{error}");
        };
        let named: Vec<_> = holders.iter().map(|h| (&*h.agent, h.borrowed_at)).collect();
        assert_eq!(named.len(), 1, "{error}");
        assert_eq!((named[0].0, named[0].1.file()), ("a", file!()));
        assert_eq!(pool.holders().len(), 1);
        drop(kept);
        assert_eq!(pool.holders().len(), 0);
        drop(pool.lease("a").unwrap());
        assert_whole(&pool);
    }
}

/// Agents that share one file wait for each other, and each knows only its own name.
#[test]
fn agents_of_one_file_that_wait_for_each_other_are_told() {
    let fixture = Mode::PerAgent.fixture();
    let file = fixture.path.with_extension("of-both");
    let pool = Pool::builder(Database::per_agent_with(move |_| file.clone()))
        .max_connections(2)
        .lease_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let _lease = pool.agent("a").within(LONG).lease().unwrap();
    let (wanted, holders, all_wait) = exhausted(pool.lease("b").unwrap_err());
    assert_eq!((wanted, all_wait), (Wanted::Agent, true));
    assert_eq!(holders, ["a"]);
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
