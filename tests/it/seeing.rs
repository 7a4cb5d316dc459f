//! What operators see of a pool: readiness, histograms, waits, events, metrics.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use leasepool::{Database, Error, Pool};

use crate::common::{Fixture, LONG, Mode, eventually, insert};

#[test]
fn ready_says_whether_a_lease_could_be_had_and_takes_none() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    pool.ready().unwrap();
    let first = pool.lease("a").unwrap();
    pool.ready().unwrap();
    let second = pool.lease("b").unwrap();
    let Err(Error::Exhausted { holders, .. }) = pool.ready() else {
        panic!("ready");
    };
    assert_eq!(holders.len(), 2);
    // Parked connections are there for any agent.
    drop((first, second));
    pool.ready().unwrap();
    let stats = pool.stats();
    assert_eq!((stats.leases, stats.timeouts, stats.parked), (2, 0, 2));
    std::fs::remove_file(&fixture.path).unwrap();
    assert!(matches!(pool.ready(), Err(Error::FileReplaced { .. })));
    pool.close().unwrap();
    assert!(matches!(pool.ready(), Err(Error::Closed)));
}

#[test]
fn pools_have_names() {
    let fixture = Fixture::new();
    assert_eq!(fixture.pool(1).name(), "agents.db");
    let memory = || Pool::builder(Database::memory());
    assert_eq!(memory().build().unwrap().name(), "memory");
    assert_eq!(memory().name("chat").build().unwrap().name(), "chat");
}

#[test]
fn descriptors_are_those_the_kernel_has() {
    let fixture = Fixture::new();
    let pool = fixture.pool(3);
    let leases = ["a", "b", "c"].map(|agent| pool.lease(agent).unwrap());
    for lease in &leases {
        lease.execute("INSERT INTO t VALUES (1)", ()).unwrap();
        assert_eq!(pool.descriptors(), Some(fixture.descriptors().all()));
    }
    assert_eq!(pool.descriptors(), Some(7));
    drop(leases);
    pool.close().unwrap();
    assert_eq!(pool.descriptors(), Some(0));
    assert_eq!(
        Pool::builder(Database::memory())
            .build()
            .unwrap()
            .descriptors(),
        Some(0)
    );
}

#[test]
fn the_log_is_as_long_as_its_file_whatever_the_length_of_pages() {
    for page_size in [512, 4096, 65536] {
        let fixture = Fixture::new();
        let sized =
            move |conn: &mut rusqlite::Connection| conn.pragma_update(None, "page_size", page_size);
        let pool = fixture.builder(1).on_connect(sized).build().unwrap();
        pool.execute("a", "INSERT INTO t VALUES (1)", ()).unwrap();
        let wal = std::fs::metadata(fixture.path.with_extension("db-wal")).unwrap();
        let stats = pool.stats();
        assert!(stats.wal_pages > 0);
        assert_eq!(stats.wal_bytes, wal.len(), "{page_size}");
        assert_eq!(stats.open_time.count(), stats.opens);
    }
}

#[test]
fn waits_and_holds_are_measured() {
    let pool = Pool::builder(Database::memory())
        .max_connections(1)
        .lease_timeout(Duration::from_millis(40))
        .build()
        .unwrap();
    for _ in 0..98 {
        drop(pool.lease("quick").unwrap());
    }
    let held = pool.lease("slow").unwrap();
    assert!(pool.lease("gives up").is_err());
    assert!(pool.try_lease("does not wait").is_err());
    thread::scope(|scope| {
        let waiter = scope.spawn(|| pool.agent("waits").within(LONG).lease().map(drop));
        while pool.stats().waiting == 0 {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(60));
        drop(held);
        waiter.join().unwrap().unwrap();
    });
    let stats = pool.stats();
    // All leases, and the one call that waited in vain.
    assert_eq!((stats.leases, stats.wait.count()), (100, 101));
    assert!(stats.wait.quantile(0.97) < Duration::from_micros(1));
    assert!(stats.wait.quantile(0.985) >= Duration::from_millis(40));
    assert!(stats.wait.max() >= Duration::from_millis(60));
    assert_eq!(stats.hold.count(), 100);
    assert!(
        stats.hold.max() >= Duration::from_millis(100),
        "{:?}",
        stats.hold
    );
    assert!(
        stats.hold.quantile(0.9) < Duration::from_millis(20),
        "{:?}",
        stats.hold
    );

    let slowest = pool.slowest_waits();
    let told: Vec<_> = slowest
        .iter()
        .map(|wait| (wait.agent.as_str(), wait.served))
        .collect();
    assert_eq!(told, [("waits", true), ("gives up", false)]);
    assert!(slowest[0].waited >= slowest[1].waited);
    assert!(slowest[0].asked_at.file().ends_with("seeing.rs"));
}

/// The number of leases that did not wait is derived from two others. It fell some hundred times a second.
#[test]
fn counts_of_waits_never_fall_while_callers_wait() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let leases = || {
        for i in 0..20_000 {
            drop(pool.lease(i % 5).unwrap());
        }
    };
    std::thread::scope(|scope| {
        let working: Vec<_> = (0..6).map(|_| scope.spawn(leases)).collect();
        let (mut zeros, mut all) = (0, 0);
        while working.iter().any(|thread| !thread.is_finished()) {
            let wait = pool.stats().wait;
            let first = wait.buckets().next();
            // No wait is so short.
            let now = first.filter(|(end, _)| end.as_nanos() < 64);
            let now = now.map_or(0, |(_, n)| n);
            assert!(now >= zeros, "{now} after {zeros}");
            assert!(wait.count() >= all, "{} after {all}", wait.count());
            (zeros, all) = (now, wait.count());
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.leases, stats.wait.count()), (120_000, 120_000));
    assert!(stats.wait.max() > Duration::ZERO, "nobody waited");
}

#[test]
fn only_the_ten_slowest_waits_are_remembered() {
    let pool = Pool::builder(Database::memory())
        .max_connections(1)
        .build()
        .unwrap();
    let held = pool.lease("holder").unwrap();
    for i in 0..15_u64 {
        let wait = Duration::from_millis((i * 7) % 15 * 4);
        assert!(pool.agent(format!("{i}")).within(wait).lease().is_err());
    }
    drop(held);
    let slowest = pool.slowest_waits();
    assert_eq!(slowest.len(), 10);
    assert!(slowest.is_sorted_by(|a, b| a.waited >= b.waited));
    assert!(slowest[9].waited >= Duration::from_millis(20));
}

/// The length of the `-wal` file in pages, each with the header of its frame.
fn wal_on_disk(fixture: &Fixture) -> usize {
    let length = std::fs::metadata(fixture.in_folder("agents.db-wal"))
        .unwrap()
        .len();
    ((length - 32) / (4096 + 24)) as usize
}

/// Writes 20 pages.
fn write_much(pool: &Pool) {
    pool.write("writer", |tx| {
        tx.execute("INSERT INTO t VALUES (randomblob(20 * 4096))", [])?;
        Ok(())
    })
    .unwrap();
}

/// A pool that runs a checkpoint from 16 pages on.
fn pool_with_short_log(fixture: &Fixture) -> Pool {
    let builder = fixture.builder(4).name("chat").wal_size(64 << 10);
    builder.build().unwrap()
}

/// A write that goes on until something is sent, and three that then share its transaction: `see` is called
/// while they wait.
fn four_in_one_group(pool: &Pool, see: impl FnOnce()) {
    thread::scope(|scope| {
        // Here, so that `see` may panic: the write then ends, too.
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        // One that blocks would do its own write by itself.
        let first = pool.write_async("first", move |tx| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            insert(tx);
            Ok(())
        });
        scope.spawn(|| smol::block_on(first).unwrap());
        has_begun.recv().unwrap();
        for _ in 0..3 {
            scope.spawn(|| {
                pool.write("next", |tx| {
                    insert(tx);
                    Ok(())
                })
                .unwrap();
            });
        }
        eventually("three wait", || pool.stats().writes_waiting == 3);
        see();
        go_on.send(()).unwrap();
    });
}

/// A write that fails, in a transaction that has nobody else's.
fn one_that_fails(pool: &Pool) {
    let refused = pool.write("fails", |tx| {
        let _ = tx.execute_batch("COMMIT");
        Ok(())
    });
    assert!(
        matches!(refused, Err(Error::NotInWrite { .. })),
        "{refused:?}"
    );
}

#[test]
fn writes_are_counted_and_measured() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(2)
        .lease_timeout(LONG)
        .write_group(256, LONG)
        .build()
        .unwrap();
    let slow = Duration::from_millis(60);
    pool.write("slow", move |tx| {
        thread::sleep(slow);
        insert(tx);
        Ok(())
    })
    .unwrap();
    let stats = pool.stats();
    assert_eq!((stats.writes, stats.write_groups), (1, 1));
    assert!(stats.write.quantile(0.5) >= slow, "{:?}", stats.write);
    assert_eq!(stats.wal_pages, wal_on_disk(&fixture));
    four_in_one_group(&pool, || ());
    one_that_fails(&pool);
    let stats = pool.stats();
    assert_eq!((stats.writes, stats.write_failures), (5, 1));
    assert_eq!((stats.write_groups, stats.writes_waiting), (3, 0));
    assert_eq!(stats.write.count(), 6);
    assert_eq!(stats.wal_pages, wal_on_disk(&fixture));
    assert!(stats.wal_pages > 0);
    assert_eq!((stats.checkpoints, stats.checkpoints_pinned), (0, 0));
}

#[test]
fn what_was_never_lent_is_no_lease() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    for mode in [Mode::Shared, Mode::PerAgent] {
        let fixture = mode.fixture();
        let fails = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&fails);
        let pool = fixture
            .builder(2)
            .on_open(move |_| match now.load(SeqCst) {
                true => Err(leasepool::rusqlite::Error::InvalidQuery),
                false => Ok(()),
            })
            .build()
            .unwrap();
        fails.store(true, SeqCst);
        for _ in 0..3 {
            assert!(matches!(pool.lease("a"), Err(Error::Open { .. })));
        }
        let stats = pool.stats();
        let counted = (stats.leases, stats.hold.count(), stats.wait.count());
        assert_eq!((counted, stats.open_failures), ((0, 0, 0), 3), "{stats:?}");
        fails.store(false, SeqCst);
        drop(pool.lease("a").unwrap());
        drop(pool.lease("a").unwrap());
        let stats = pool.stats();
        let counted = (stats.leases, stats.hold.count(), stats.wait.count());
        assert_eq!(counted, (2, 2, 2), "{stats:?}");
        assert_eq!((stats.hits, stats.misses), (1, 1), "{stats:?}");
    }
}

/// A call that waits for its agent's lock and then for a connection has waited once.
#[test]
fn a_call_waits_once() {
    let fixture = Mode::PerAgent.fixture();
    let pool = fixture.pool(1);
    let lease = pool.lease("a").unwrap();
    thread::scope(|scope| {
        scope.spawn(|| drop(pool.lease("a").unwrap()));
        eventually("a waits", || pool.stats().waiting == 1);
        scope.spawn(|| drop(pool.lease("b").unwrap()));
        eventually("b waits", || pool.stats().waiting == 2);
        drop(lease);
    });
    assert_eq!(pool.stats().leases, 3);
    assert_eq!(pool.stats().wait.count(), 3);
    assert_eq!(pool.slowest_waits().len(), 2);
}

/// A13: a thread commits on one pool, and then uses another.
#[test]
fn the_log_of_one_pool_is_not_counted_for_another() {
    let fixtures = [Fixture::new(), Fixture::new()];
    let [first, second] = [fixtures[0].pool(2), fixtures[1].pool(2)];
    for pool in [&first, &second] {
        insert(&pool.lease("a").unwrap());
    }
    let before = second.stats().wal_pages;
    let lease = first.lease("a").unwrap();
    for _ in 0..50 {
        insert(&lease);
    }
    // While the lease is held, and after it has ended.
    drop(second.lease("a").unwrap());
    assert_eq!(second.stats().wal_pages, before);
    drop(lease);
    drop(second.lease("b").unwrap());
    assert_eq!(second.stats().wal_pages, before);
    assert_eq!(first.stats().wal_pages, wal_on_disk(&fixtures[0]));
    insert(&second.lease("a").unwrap());
    assert_eq!(second.stats().wal_pages, wal_on_disk(&fixtures[1]));
}

#[test]
fn checkpoints_are_counted_and_so_is_a_log_that_is_held() {
    let fixture = Fixture::new();
    let pool = pool_with_short_log(&fixture);
    eventually("two checkpoints", || {
        write_much(&pool);
        pool.stats().checkpoints >= 2
    });
    assert_eq!(pool.stats().checkpoints_pinned, 0);
    let reader = pool.lease("reader").unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM t")
        .unwrap();
    eventually("the log is held", || {
        write_much(&pool);
        pool.stats().checkpoints_pinned > 0
    });
    let before = pool.stats();
    eventually("a checkpoint is tried again", || {
        pool.stats().checkpoints > before.checkpoints
    });
    assert_eq!(pool.stats().checkpoints_pinned, 1);
    assert!(before.wal_pages >= 20, "{before:?}");
    drop(reader);
}

#[cfg(feature = "tracing")]
mod events {
    use std::fmt::Debug;
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use tracing::field::{Field, Visit};
    use tracing::span;
    use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

    use super::*;
    use crate::common::in_child;

    /// Writes down events and spans, each as one line.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    struct Line(String);

    impl Visit for Line {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            self.0.push_str(&format!(" {}={value:?}", field.name()));
        }
    }

    impl<S: tracing::Subscriber> Layer<S> for Log {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let mut line = Line(event.metadata().level().to_string());
            event.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }

        fn on_new_span(&self, attributes: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
            // Every lease has one: see `calls_and_leases_are_spans_of_their_callers`.
            if attributes.metadata().name() == "lease hold" {
                return;
            }
            let mut line = Line(format!("SPAN {}", attributes.metadata().name()));
            attributes.record(&mut line);
            self.0.lock().unwrap().push(line.0);
        }
    }

    impl Log {
        fn install() -> Log {
            let log = Log::default();
            let subscriber = tracing_subscriber::registry().with(log.clone());
            tracing::subscriber::set_global_default(subscriber).unwrap();
            log
        }

        fn take(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap())
        }

        fn until(&self, wanted: &str) {
            let start = Instant::now();
            while !self
                .0
                .lock()
                .unwrap()
                .iter()
                .any(|line| line.contains(wanted))
            {
                assert!(start.elapsed() < LONG, "no {wanted}: {:?}", self.take());
                thread::yield_now();
            }
        }
    }

    #[test]
    fn what_happens_to_connections_is_told() {
        in_child(
            "seeing::events::what_happens_to_connections_is_told",
            || {
                let log = Log::install();
                let fixture = Fixture::new();
                let builder = || fixture.builder(1).name("chat");
                let pool = builder().overdue_after(None).build().unwrap();
                log.take();
                drop(pool.lease("a").unwrap());
                drop(pool.lease("a").unwrap());
                assert_eq!(log.take(), Vec::<String>::new(), "a warm lease is silent");
                drop(pool.lease("b").unwrap());
                let told = log.take();
                assert_eq!(told.len(), 1, "{told:?}");
                assert!(
                    told[0].contains("connection reclaimed") && told[0].contains("agent=\"a\"")
                );
                assert!(told[0].contains("pool=\"chat\""));
                pool.close().unwrap();
                let soon = Duration::from_millis(30);
                let pool = builder().overdue_after(soon).build().unwrap();
                log.take();
                let lease = pool.lease("b").unwrap();
                lease.execute_batch("CREATE TEMP TABLE x (x)").unwrap();
                log.until("lease overdue");
                drop(lease);
                log.until("overdue lease returned");
                drop(pool.lease("c").unwrap());
                log.until("connection discarded");
                pool.evict("c");
                log.until("agent=\"c\" cause=Called");
                pool.close().unwrap();
                log.until("pool closing");
                log.until("pool closed");
            },
        );
    }

    #[test]
    fn a_wait_is_a_span_and_no_wait_is_none() {
        in_child(
            "seeing::events::a_wait_is_a_span_and_no_wait_is_none",
            || {
                let log = Log::install();
                let pool = Pool::builder(Database::memory())
                    .max_connections(1)
                    .lease_timeout(Duration::from_millis(10))
                    .build()
                    .unwrap();
                let lease = smol::block_on(pool.lease_async("holder")).unwrap();
                assert!(pool.try_lease("impatient").is_err());
                assert!(log.take().iter().all(|line| !line.starts_with("SPAN")));
                assert!(pool.lease("patient").is_err());
                assert!(smol::block_on(pool.lease_async("async")).is_err());
                let spans: Vec<_> = log.take();
                assert_eq!(spans.len(), 2, "{spans:?}");
                assert!(spans[0].starts_with("SPAN lease wait") && spans[0].contains("patient"));
                assert!(spans[1].starts_with("SPAN lease wait") && spans[1].contains("async"));
                drop(lease);
            },
        );
    }

    /// Spans that were opened, each with its parent, and those that were closed; events with the spans around them.
    #[derive(Clone, Default)]
    struct Tree(Arc<Mutex<(Vec<String>, usize)>>);

    impl<S> Layer<S> for Tree
    where
        S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        fn on_new_span(
            &self,
            attributes: &span::Attributes<'_>,
            id: &span::Id,
            of: Context<'_, S>,
        ) {
            let scope: Vec<_> = of.span_scope(id).unwrap().map(|span| span.name()).collect();
            let mut line = Line(scope.join(" < "));
            attributes.record(&mut line);
            self.0.lock().unwrap().0.push(line.0);
        }

        fn on_event(&self, event: &tracing::Event<'_>, of: Context<'_, S>) {
            if event.metadata().target().starts_with("leasepool") {
                return;
            }
            let mut line = Line("EVENT".to_owned());
            event.record(&mut line);
            for span in of.event_scope(event).into_iter().flatten() {
                line.0.push_str(&format!(" < {}", span.name()));
            }
            self.0.lock().unwrap().0.push(line.0);
        }

        fn on_close(&self, _: span::Id, _: Context<'_, S>) {
            self.0.lock().unwrap().1 += 1;
        }
    }

    #[test]
    fn calls_and_leases_are_spans_of_their_callers() {
        in_child(
            "seeing::events::calls_and_leases_are_spans_of_their_callers",
            || {
                let tree = Tree::default();
                let subscriber = tracing_subscriber::registry().with(tree.clone());
                tracing::subscriber::set_global_default(subscriber).unwrap();
                let fixture = Fixture::new();
                let pool = fixture.builder(2).name("chat").build().unwrap();
                let told = |what: &'static str| {
                    tracing::info!("{what}");
                    Ok(())
                };
                tracing::info_span!("request").in_scope(|| {
                    drop(pool.lease("a").unwrap());
                    pool.write("a", move |_| told("in write")).unwrap();
                    smol::block_on(async {
                        drop(pool.lease_async("a").await.unwrap());
                        let write = pool.write_async("a", move |_| told("in write_async"));
                        write.await.unwrap();
                        pool.run("a", move |_| told("in run")).await.unwrap();
                        let read = pool.read_async("a", move |_| told("in read"));
                        read.await.unwrap();
                        let lease = pool.lease_async("a").await.unwrap();
                        let ran = leasepool::Lease::run(lease, |_| tracing::info!("in Lease::run"));
                        drop(ran.await.unwrap());
                    });
                    let mut lease = pool.lease("a").unwrap();
                    leasepool::Lease::write(&mut lease, move |_| told("in Lease::write")).unwrap();
                });
                pool.close().unwrap();
                let (seen, closed) = tree.0.lock().unwrap().clone();
                let fields = " pool=\"chat\" agent=\"a\"";
                let called = format!("{fields} called_at={}:", file!());
                let is = |line: &str, wanted: &str| match line.strip_prefix(wanted) {
                    Some(rest) => rest.is_empty() || rest == fields || rest.starts_with(&called),
                    None => false,
                };
                let wanted = [
                    "request",
                    "lease hold < request",
                    "write < request",
                    "EVENT message=in write < write < request",
                    "lease hold < request",
                    "write < request",
                    "EVENT message=in write_async < write < request",
                    "run < request",
                    "lease hold < run < request",
                    "EVENT message=in run < run < request",
                    "read < request",
                    "lease hold < read < request",
                    "EVENT message=in read < read < request",
                    "lease hold < request",
                    "run < request",
                    "EVENT message=in Lease::run < run < request",
                    "lease hold < request",
                    "write < request",
                    "EVENT message=in Lease::write < write < request",
                ];
                assert_eq!(seen.len(), wanted.len(), "{seen:#?}");
                for (line, wanted) in seen.iter().zip(wanted) {
                    assert!(is(line, wanted), "{line}: not {wanted}\n{seen:#?}");
                }
                let spans = wanted.iter().filter(|line| !line.starts_with("EVENT"));
                assert_eq!(closed, spans.count());
            },
        );
    }

    /// Whatever a subscriber does with a span: the pool loses nothing, and its callers have their answers.
    #[test]
    fn a_subscriber_that_panics_in_spans_costs_nothing() {
        in_child(
            "seeing::events::a_subscriber_that_panics_in_spans_costs_nothing",
            || {
                struct Panics;
                impl<S> Layer<S> for Panics
                where
                    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
                {
                    fn on_new_span(
                        &self,
                        attributes: &span::Attributes<'_>,
                        _: &span::Id,
                        _: Context<'_, S>,
                    ) {
                        assert!(attributes.metadata().name() != "run", "new");
                    }
                    fn on_enter(&self, id: &span::Id, of: Context<'_, S>) {
                        assert!(of.span(id).unwrap().name() != "read", "enter");
                    }
                    fn on_exit(&self, id: &span::Id, of: Context<'_, S>) {
                        assert!(of.span(id).unwrap().name() != "write", "exit");
                    }
                    fn on_close(&self, id: span::Id, of: Context<'_, S>) {
                        assert!(of.span(&id).unwrap().name() != "lease hold", "close");
                    }
                }
                std::panic::set_hook(Box::new(|_| {}));
                let subscriber = tracing_subscriber::registry().with(Panics);
                tracing::subscriber::set_global_default(subscriber).unwrap();
                let fixture = Fixture::new();
                let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
                for i in 0..10 {
                    drop(pool.lease(i).unwrap());
                    pool.write(i, |_| Ok(())).unwrap();
                    smol::block_on(async {
                        pool.write_async(i, |_| Ok(())).await.unwrap();
                        assert_eq!(pool.run(i, |_| Ok(1)).await.unwrap(), 1);
                        assert_eq!(pool.read_async(i, |_| Ok(2)).await.unwrap(), 2);
                    });
                }
                assert_eq!(pool.stats().lent, 0);
                let _ = std::panic::take_hook();
                pool.close().unwrap();
            },
        );
    }

    #[test]
    fn who_holds_the_log_is_told() {
        in_child("seeing::events::who_holds_the_log_is_told", || {
            let log = Log::install();
            let fixture = Fixture::new();
            let pool = pool_with_short_log(&fixture);
            let reader = pool.lease("reader").unwrap();
            let place = format!("seeing.rs:{}:", line!() - 1);
            reader
                .execute_batch("BEGIN; SELECT count(*) FROM t")
                .unwrap();
            let later = pool.lease("later").unwrap();
            eventually("the log is held", || {
                write_much(&pool);
                pool.stats().checkpoints_pinned > 0
            });
            log.until("the write-ahead log cannot shrink: a lease reads from it");
            let told = log.take();
            let of_log = |line: &&String| line.contains("cannot shrink");
            let lines: Vec<_> = told.iter().filter(of_log).collect();
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(lines[0].starts_with("WARN") && lines[0].contains("pool=\"chat\""));
            assert!(lines[0].contains("agent=\"reader\""), "{lines:?}");
            assert!(lines[0].contains(&place), "{lines:?}");
            drop((reader, later));
        });
    }

    #[test]
    fn what_is_wrong_with_checkpoints_is_told() {
        in_child(
            "seeing::events::what_is_wrong_with_checkpoints_is_told",
            || {
                let log = Log::install();
                for mode in [Mode::Shared, Mode::PerAgent] {
                    let fixture = mode.fixture();
                    let pool = fixture
                        .builder(2)
                        .on_open(|_| Ok::<_, rusqlite::Error>(()))
                        .build()
                        .unwrap();
                    drop(pool.lease("a").unwrap());
                    drop(pool.lease("b").unwrap());
                    drop(pool);
                    let told = log.take();
                    assert!(!told.iter().any(|line| line.contains("hook")), "{told:?}");

                    let fixture = mode.fixture();
                    let on_open = |conn: &mut leasepool::rusqlite::Connection| {
                        conn.wal_hook(Some(|_, _| Ok(())));
                        Ok::<_, Error>(())
                    };
                    let pool = fixture.builder(2).on_open(on_open).build().unwrap();
                    for agent in ["a", "b", "c"] {
                        drop(pool.lease(agent).unwrap());
                    }
                    let told = log.take();
                    let hooks = told.iter().filter(|line| line.contains("WAL hook"));
                    assert_eq!(hooks.count(), 1, "{told:?}");
                    drop(pool);

                    let fixture = mode.fixture();
                    let pool = fixture
                        .builder(2)
                        .name("chat")
                        .busy_timeout(Duration::from_millis(1))
                        .external_checkpoints(Some(64 << 10))
                        .build()
                        .unwrap();
                    let told = log.take();
                    assert!(
                        told.iter().any(|line| line.starts_with("WARN")
                            && line.contains("busy_timeout is short")
                            && line.contains("busy_timeout=1ms")),
                        "{told:?}"
                    );
                    eventually("an emergency", || {
                        write_much(&pool);
                        pool.stats().emergency_checkpoints > 0
                    });
                    log.until("emergency checkpoint");
                    let told = log.take();
                    let line = told.iter().find(|line| line.contains("emergency"));
                    let line = line.unwrap();
                    assert!(line.starts_with("WARN") && line.contains("pool=\"chat\""));
                }
            },
        );
    }

    /// Two threads, each with a lease, wait for another one: told once, with all of them.
    #[test]
    fn a_deadlock_is_told_with_all_who_are_in_it() {
        in_child(
            "seeing::events::a_deadlock_is_told_with_all_who_are_in_it",
            || {
                let log = Log::install();
                let pool = Pool::builder(Database::memory())
                    .name("chat")
                    .max_connections(2)
                    .build()
                    .unwrap();
                let both = std::sync::Barrier::new(2);
                thread::scope(|scope| {
                    for agent in ["alice", "bob"] {
                        let (pool, both) = (&pool, &both);
                        scope.spawn(move || {
                            let first = pool.lease(agent).unwrap();
                            both.wait();
                            let second =
                                pool.agent("second").within(Duration::from_secs(3)).lease();
                            drop(first);
                            drop(second);
                        });
                    }
                    log.until("all holders are waiting");
                });
                let told = log.take();
                let lines: Vec<_> = told.iter().filter(|l| l.contains("all holders")).collect();
                assert_eq!(lines.len(), 1, "{told:?}");
                let line = lines[0];
                assert!(
                    line.starts_with("WARN") && line.contains("pool=\"chat\""),
                    "{line}"
                );
                for agent in ["alice", "bob"] {
                    assert!(line.contains(agent), "{line}");
                }
                assert_eq!(line.matches("seeing.rs").count(), 4, "{line}");
            },
        );
    }

    /// A subscriber that uses the pool while it is told of an eviction must not deadlock.
    #[test]
    fn a_listener_may_use_the_pool() {
        in_child("seeing::events::a_listener_may_use_the_pool", || {
            struct Meddler(Mutex<Option<Pool>>);
            impl<S: tracing::Subscriber> Layer<S> for Meddler {
                fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
                    let pool = self.0.try_lock().ok().and_then(|pool| pool.clone());
                    if let Some(pool) = pool {
                        pool.stats();
                        pool.evict("b");
                        drop(pool.try_lease("meddler"));
                    }
                }
            }
            let pool = Pool::builder(Database::memory())
                .max_connections(2)
                .cached_agents(1)
                .build()
                .unwrap();
            let meddler = Meddler(Mutex::new(Some(pool.clone())));
            let subscriber = tracing_subscriber::registry().with(meddler);
            tracing::subscriber::set_global_default(subscriber).unwrap();
            for i in 0..200 {
                drop(pool.lease(["a", "b", "c"][i % 3]).unwrap());
            }
            assert!(pool.stats().evictions() > 0);
            pool.close().unwrap();
        });
    }
}

#[cfg(feature = "metrics")]
mod metrics {
    use std::collections::HashMap;
    use std::time::Instant;

    use super::*;
    use crate::common::in_child;
    use crate::recorder::Recorder;

    /// The latest value of each series, and all that was recorded in histograms.
    struct Seen {
        recorder: Recorder,
        values: HashMap<String, f64>,
        recorded: HashMap<String, Vec<f64>>,
    }

    impl Seen {
        fn install() -> Seen {
            let recorder = Recorder::default();
            ::metrics::set_global_recorder(recorder.clone()).unwrap();
            Seen {
                recorder,
                values: HashMap::new(),
                recorded: HashMap::new(),
            }
        }

        fn look(&mut self) {
            (self.values, self.recorded) = self.recorder.seen();
        }

        fn until(&mut self, series: &str, wanted: f64) {
            let start = Instant::now();
            while self.values.get(series) != Some(&wanted) {
                assert!(start.elapsed() < LONG, "{series}: {:#?}", self.values);
                thread::sleep(Duration::from_millis(20));
                self.look();
            }
        }
    }

    #[test]
    fn the_facade_is_told_of_writes() {
        in_child("seeing::metrics::the_facade_is_told_of_writes", || {
            let mut seen = Seen::install();
            let fixture = Fixture::new();
            let builder = fixture.builder(2).name("chat").lease_timeout(LONG);
            let pool = builder.write_group(256, LONG).build().unwrap();
            four_in_one_group(&pool, || {
                seen.until("leasepool_writes_waiting pool=chat", 3.0);
            });
            one_that_fails(&pool);
            seen.until("leasepool_writes_total outcome=committed pool=chat", 4.0);
            seen.until("leasepool_writes_total outcome=failed pool=chat", 1.0);
            seen.until("leasepool_write_groups_total pool=chat", 2.0);
            let wal = wal_on_disk(&fixture) as f64;
            assert!(wal > 0.0);
            seen.until("leasepool_wal_pages pool=chat", wal);
            pool.close().unwrap();
            seen.look();
            let took = &seen.recorded["leasepool_write_seconds pool=chat"];
            assert_eq!(took.len(), 5, "{took:?}");
            // Four of them lasted until the gauge was seen.
            let long = took.iter().filter(|seconds| **seconds > 0.01).count();
            assert!(long >= 4, "{took:?}");
        });
    }

    #[test]
    fn a_recorder_that_comes_late_is_told_all() {
        in_child(
            "seeing::metrics::a_recorder_that_comes_late_is_told_all",
            || {
                let fixture = Fixture::new();
                let pool = fixture.builder(2).name("chat").build().unwrap();
                for i in 0..5 {
                    drop(pool.lease(i).unwrap());
                }
                // The pool tells the facade each second.
                thread::sleep(Duration::from_millis(2_500));
                let mut seen = Seen::install();
                seen.until("leasepool_max_connections pool=chat", 2.0);
                drop(pool.lease("later").unwrap());
                pool.close().unwrap();
                seen.look();
                assert_eq!(seen.recorded["leasepool_hold_seconds pool=chat"].len(), 6);
                for name in seen.values.keys().chain(seen.recorded.keys()) {
                    let name = name.split(' ').next().unwrap();
                    assert!(seen.recorder.is_described(name), "{name}");
                }
            },
        );
    }

    #[test]
    fn a_recorder_may_close_the_pool() {
        in_child("seeing::metrics::a_recorder_may_close_the_pool", || {
            let mut seen = Seen::install();
            let fixture = Fixture::new();
            let pool = fixture.builder(2).name("chat").build().unwrap();
            drop(pool.lease("a").unwrap());
            let (tell, told) = std::sync::mpsc::channel();
            let closing = pool.clone();
            seen.recorder.call_once(move || {
                tell.send(closing.close()).unwrap();
                panic!("on purpose");
            });
            told.recv_timeout(LONG).unwrap().unwrap();
            // All that was passed on when it panicked is passed on again.
            seen.until("leasepool_connections pool=chat state=parked", 0.0);
            seen.until("leasepool_leases_total outcome=miss pool=chat", 1.0);
            assert_eq!(fixture.descriptors().all(), 0);
        });
    }

    #[test]
    fn the_facade_is_told_of_checkpoints() {
        in_child("seeing::metrics::the_facade_is_told_of_checkpoints", || {
            let mut seen = Seen::install();
            let fixture = Fixture::new();
            let pool = pool_with_short_log(&fixture);
            eventually("two checkpoints", || {
                write_much(&pool);
                pool.stats().checkpoints >= 2
            });
            let reader = pool.lease("reader").unwrap();
            reader
                .execute_batch("BEGIN; SELECT count(*) FROM t")
                .unwrap();
            eventually("the log is held", || {
                write_much(&pool);
                pool.stats().checkpoints_pinned > 0
            });
            seen.until("leasepool_checkpoints_pinned_total pool=chat", 1.0);
            drop(reader);
            pool.close().unwrap();
            let told = pool.stats().checkpoints;
            assert!(told >= 3);
            seen.until("leasepool_checkpoints_total pool=chat", told as f64);
        });
    }

    #[test]
    fn the_facade_is_told_what_stats_say() {
        in_child("seeing::metrics::the_facade_is_told_what_stats_say", || {
            let mut seen = Seen::install();
            let fixture = Fixture::new();
            let pool = fixture.builder(2).name("chat").build().unwrap();
            for _ in 0..5 {
                drop(pool.lease("a").unwrap());
            }
            let held = pool.lease("b").unwrap();
            held.execute("INSERT INTO t VALUES (1)", ()).unwrap();
            seen.until("leasepool_leases_total outcome=hit pool=chat", 4.0);
            seen.until("leasepool_leases_total outcome=miss pool=chat", 2.0);
            seen.until("leasepool_connections pool=chat state=lent", 1.0);
            seen.until("leasepool_connections pool=chat state=parked", 1.0);
            seen.until("leasepool_descriptor_ceiling pool=chat", 9.0);
            seen.until(
                "leasepool_descriptors pool=chat",
                fixture.descriptors().all() as f64,
            );
            drop(held);
            drop(pool.lease("c").unwrap());
            pool.evict("c");
            seen.until("leasepool_evictions_total cause=call pool=chat", 1.0);
            seen.until("leasepool_evictions_total cause=reclaim pool=chat", 1.0);
            pool.close().unwrap();
            seen.until("leasepool_connections pool=chat state=parked", 0.0);
            seen.until("leasepool_descriptors pool=chat", 0.0);
            let held = &seen.recorded["leasepool_hold_seconds pool=chat"];
            assert_eq!(held.len(), 7, "{held:?}");
            assert!(held.iter().all(|seconds| *seconds > 0.0 && *seconds < 30.0));
            let waited = &seen.recorded["leasepool_wait_seconds pool=chat"];
            assert_eq!(waited.len(), 7, "{waited:?}");
        });
    }
}
