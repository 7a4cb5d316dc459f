//! P8: first come, first served.

use std::future::Future;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

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

/// For a connection, for the agent's file, and for the agent's quota: a caller that asks while the first in the queue has not
/// taken what came back gets it, if overtaking is allowed, and waits behind it in strict order.
#[test]
fn overtaking_is_as_the_builder_says() {
    let cases = [
        (Mode::Shared, 1, None),
        (Mode::PerAgent, 2, None),
        (Mode::Shared, 2, Some(1)),
    ];
    for (mode, connections, quota) in cases {
        for bound in [Duration::ZERO, LONG] {
            let fixture = mode.fixture();
            let mut builder = fixture.builder(connections).overtaking(bound);
            if let Some(leases) = quota {
                builder = builder.leases_per_agent(leases);
            }
            let pool = builder.build().unwrap();
            let held = pool.lease("a").unwrap();
            let mut first = Box::pin(pool.lease_async("a"));
            let mut cx = Context::from_waker(Waker::noop());
            assert!(first.as_mut().poll(&mut cx).is_pending());
            drop(held);
            let second = pool.try_lease("a");
            assert_eq!(
                second.is_ok(),
                bound == LONG,
                "{mode:?}, {bound:?}: {second:?}"
            );
            drop(second);
            drop(smol::block_on(first).unwrap());
            assert_whole(&pool);
        }
    }
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

/// Counted in leases that others got meanwhile, not in time: what else the machine does is no matter.
fn no_longer_than_the_others(pool: &Pool, agent: impl Fn(usize) -> String) {
    const THREADS: usize = 32;
    const ROUNDS: usize = 200;
    let (served, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (agent, served, most) = (agent(t), &served, &most);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let before = served.load(SeqCst);
                    let lease = pool.lease(&agent).unwrap();
                    let overtaken = served.fetch_add(1, SeqCst) - before;
                    most.fetch_max(overtaken, SeqCst);
                    assert_eq!(count(&lease), 0);
                }
            });
        }
    });
    // An unfair pool lets some wait until the others have done. Within the time that overtaking is allowed, a thread
    // that runs may take a few hundred.
    let most = most.into_inner();
    assert!(
        most < THREADS * ROUNDS / 4,
        "{most} others were served meanwhile"
    );
}
