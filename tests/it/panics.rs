//! User code that panics, wherever the pool calls it: it costs no connection and no permit.

use std::sync::Arc;
use std::task::{Context, Poll, Wake};

use crate::common::*;

/// What the panic carries panics, too, when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("on purpose, too");
    }
}

fn explode() -> ! {
    std::panic::panic_any(Bomb)
}

/// A waker is the executor's.
#[test]
fn a_waker_that_panics_keeps_nothing() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            explode();
        }
    }
    for mode in [Mode::Shared, Mode::PerAgent] {
        let fixture = mode.fixture();
        let pool = fixture.pool(1);
        let lease = pool.lease("a").unwrap();
        let waker = Arc::new(Panics).into();
        let mut futures = Vec::new();
        for agent in ["a", "b", "a"] {
            let mut waiting = Box::pin(pool.lease_async(agent));
            let mut cx = Context::from_waker(&waker);
            assert!(waiting.as_mut().poll(&mut cx).is_pending());
            futures.push(waiting);
        }
        drop(lease);
        assert_eq!(pool.stats().lent, 0);
        drop(futures);
        assert_whole(&pool);
    }
    // Nor does one that is woken since its time has passed take the alarms of others with it.
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    let short = std::time::Duration::from_millis(20);
    let woken = Arc::new(Panics).into();
    let late = pool.agent("b").within(short);
    let mut waiting = Box::pin(late.lease_async());
    let mut cx = Context::from_waker(&woken);
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    let refused = smol::block_on(pool.agent("c").within(short * 2).lease_async());
    assert!(refused.is_err());
    let refused = smol::block_on(pool.agent("c").within(short).lease_async());
    assert!(refused.is_err());
    drop((waiting, lease));
    // Those that end give back what they were granted.
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    let waker = Arc::new(Panics).into();
    let mut cx = Context::from_waker(&waker);
    let mut first = Box::pin(pool.lease_async("b"));
    let mut second = Box::pin(pool.lease_async("c"));
    assert!(first.as_mut().poll(&mut cx).is_pending());
    assert!(second.as_mut().poll(&mut cx).is_pending());
    drop(lease);
    drop(first);
    let Poll::Ready(second) = second.as_mut().poll(&mut cx) else {
        panic!("the second is first now, and a connection is free");
    };
    drop(second.unwrap());
    assert_whole(&pool);
}

#[cfg(feature = "tracing")]
mod subscriber {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
    use std::thread;
    use std::time::Duration;

    use leasepool::Error;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;

    static PANICS: AtomicBool = AtomicBool::new(false);
    static EVENTS: AtomicUsize = AtomicUsize::new(0);

    struct Panics;

    impl<S: tracing::Subscriber> Layer<S> for Panics {
        fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
            if PANICS.load(SeqCst) {
                EVENTS.fetch_add(1, SeqCst);
                explode();
            }
        }

        fn on_new_span(
            &self,
            _: &tracing::span::Attributes<'_>,
            _: &tracing::span::Id,
            _: Context<'_, S>,
        ) {
            if PANICS.load(SeqCst) {
                EVENTS.fetch_add(1, SeqCst);
                explode();
            }
        }
    }

    /// A6: it panics in each event and each span: at ends of leases, reclaims, evictions, waits, on workers.
    #[test]
    fn a_subscriber_that_panics_costs_nothing() {
        in_child(
            "panics::subscriber::a_subscriber_that_panics_costs_nothing",
            || {
                let subscriber = tracing_subscriber::registry().with(Panics);
                tracing::subscriber::set_global_default(subscriber).unwrap();
                for mode in [Mode::Shared, Mode::PerAgent] {
                    let fixture = mode.fixture();
                    let pool = fixture
                        .builder(2)
                        .overdue_after(Some(Duration::from_millis(10)))
                        .idle_timeout(Some(Duration::from_millis(200)))
                        .build()
                        .unwrap();
                    PANICS.store(true, SeqCst);
                    for i in 0..12 {
                        // Reclaims, resets and evictions, with an overdue lease among them.
                        let agent = format!("a{i}");
                        let work = || {
                            let lease = pool.lease(&agent)?;
                            insert(&lease);
                            if i % 4 == 0 {
                                lease.execute_batch("CREATE TEMP TABLE soil (x)")?;
                                thread::sleep(Duration::from_millis(60));
                            }
                            if i % 5 == 0 {
                                leasepool::Lease::discard(lease);
                            }
                            pool.evict(&agent);
                            Ok::<_, Error>(())
                        };
                        drop(catch_unwind(AssertUnwindSafe(work)));
                        // Waits, with their spans, that end and that do not.
                        let held: Vec<_> = (0..2)
                            .filter_map(|n| pool.try_lease(format!("held {n}")).ok())
                            .collect();
                        let wait = Duration::from_millis(5);
                        let wait = || pool.agent("late").within(wait).lease();
                        drop(catch_unwind(AssertUnwindSafe(wait)));
                        drop(held);
                        let write = || {
                            pool.write(&agent, |tx| {
                                insert(tx);
                                Ok(())
                            })
                        };
                        drop(catch_unwind(AssertUnwindSafe(write)));
                    }
                    PANICS.store(false, SeqCst);
                    eventually("all are back", || pool.stats().lent == 0);
                    assert_whole(&pool);
                    pool.write("a", |tx| {
                        insert(tx);
                        Ok(())
                    })
                    .unwrap();
                    PANICS.store(true, SeqCst);
                    pool.close().unwrap();
                    PANICS.store(false, SeqCst);
                    assert_eq!(fixture.descriptors().all(), 0);
                }
                assert!(EVENTS.load(SeqCst) > 50, "{EVENTS:?}");
            },
        );
    }
}
