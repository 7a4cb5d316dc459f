//! Work off the async threads: done by threads of the pool, called off, in time.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::{self, Connection, ErrorCode, TransactionBehavior};
use leasepool::{Error, Lease, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::Runtime;

use crate::awaiting::{assert_whole, until};
use crate::common::{Fixture, LONG, Mode, in_both_modes};

in_both_modes! {
    it_needs_no_runtime,
    as_many_run_at_the_same_time_as_there_are_connections,
    a_short_call_waits_for_no_long_one_while_a_connection_is_free,
    a_call_that_waits_for_a_thread_is_seen_and_gives_up_in_time,
    calls_that_are_dropped_in_the_queue_leave_it,
    calls_that_find_no_connection_wait_for_one,
    closing_refuses_what_waits_for_a_thread,
    what_panics_around_a_call_costs_no_thread_and_no_connection,
    blocking_threads_of_the_runtime_are_not_needed,
    one_agents_calls_wait_for_its_connection_and_no_others_do,
}

const FOREVER: &str =
    "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c";
/// Within this the connection must be back.
const SOON: Duration = Duration::from_millis(50);

/// Whether it takes no longer than that. Four threads wake each other for it (the caller's, the maintenance, the one that
/// works, the caller's again), and a machine that is busy lets each wait: so the time that this takes just then is
/// measured, too, and one of ten times is enough.
fn soon(mut took: impl FnMut() -> Duration) {
    let all: Vec<_> = (0..10)
        .map(|_| (took(), waking()))
        .take_while(|(took, waking)| *took >= SOON + *waking)
        .collect();
    assert!(all.len() < 10, "{all:?}");
}

/// How long it takes until threads have woken each other four times: some 0.1 ms where there is nothing else to do.
fn waking() -> Duration {
    let (call, called) = mpsc::channel::<()>();
    let (answer, answered) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || called.iter().try_for_each(|()| answer.send(())));
        // The thread is there, and waits.
        call.send(()).unwrap();
        answered.recv().unwrap();
        let begun = Instant::now();
        for _ in 0..2 {
            call.send(()).unwrap();
            answered.recv().unwrap();
        }
        let took = begun.elapsed();
        drop(call);
        took
    })
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap()
}

fn forever(conn: &mut Connection) -> rusqlite::Result<i64> {
    conn.query_row(FOREVER, [], |row| row.get(0))
}

/// Polls the future until the work in it has begun, as a message from the work says.
async fn begin<T>(
    mut future: std::pin::Pin<&mut impl Future<Output = T>>,
    begun: &mpsc::Receiver<()>,
) {
    while begun.try_recv().is_err() {
        let waited = tokio::time::timeout(Duration::from_millis(1), &mut future).await;
        assert!(waited.is_err(), "it ended by itself");
    }
}

#[test]
fn work_returns_what_it_returns() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    runtime().block_on(async {
        let inserted = pool
            .run("a", |conn| conn.execute("INSERT INTO t VALUES (?1)", [5]))
            .await
            .unwrap();
        assert_eq!(inserted, 1);
        let lease = pool.lease_async("a").await.unwrap();
        let (mut lease, found) = Lease::run(lease, |conn| {
            conn.query_row("SELECT x FROM t", [], |row| row.get::<_, i64>(0))
        })
        .await
        .unwrap();
        assert_eq!(found, Ok(5));
        lease.transaction().unwrap().commit().unwrap();
        drop(lease);
        let failed = pool.run("b", |conn| conn.execute("nonsense", ())).await;
        assert!(matches!(failed, Err(Error::Sqlite(_))), "{failed:?}");
        let sum = pool
            .agent("a")
            .within(LONG)
            .run(|_| Ok(1 + 1))
            .await
            .unwrap();
        assert_eq!(sum, 2);
    });
    assert_eq!(pool.stats().hits, 2);
    assert_whole(&pool);
}

#[test]
fn a_panic_is_an_error_and_the_connection_is_reset() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    runtime().block_on(async {
        let failed = pool
            .run("a", |conn| -> rusqlite::Result<()> {
                conn.execute_batch("CREATE TEMP TABLE mine (x); BEGIN; INSERT INTO t VALUES (1)")
                    .unwrap();
                panic!("on purpose");
            })
            .await;
        let Err(Error::Panicked { message, .. }) = failed else {
            panic!("{failed:?}");
        };
        assert_eq!(message, "on purpose");
        // Not even the same agent finds what was left.
        let lease = pool.lease_async("a").await.unwrap();
        assert!(lease.execute("INSERT INTO mine VALUES (1)", ()).is_err());
        let rows: i64 = lease
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 0);
    });
    assert_eq!(pool.stats().hits, 0);
    assert_whole(&pool);
}

/// Each kind of work that could hold on to a connection, called off by a dropped future.
fn called_off(work: impl Fn(&mut Connection) -> rusqlite::Result<i64> + Clone + Send + 'static) {
    soon(|| {
        let fixture = Fixture::new();
        let pool = fixture.pool(2);
        let work = work.clone();
        let took = runtime().block_on(async {
            let (tell, begun) = mpsc::channel();
            {
                let mut running = pin!(pool.run("a", move |conn| {
                    conn.execute_batch("CREATE TEMP TABLE mine (x); BEGIN; SELECT * FROM t")
                        .unwrap();
                    tell.send(()).unwrap();
                    work(conn)
                }));
                begin(running.as_mut(), &begun).await;
                assert_eq!(pool.stats().lent, 1);
            }
            let dropped = Instant::now();
            until("it is back", || pool.stats().lent == 0);
            dropped.elapsed()
        });
        // Rolled back, and otherwise as the agent left it.
        let lease = pool.lease("a").unwrap();
        assert!(lease.is_autocommit());
        lease.execute("INSERT INTO mine VALUES (1)", ()).unwrap();
        drop(lease);
        assert_eq!(pool.stats().hits, 1);
        assert_whole(&pool);
        took
    });
}

#[test]
fn a_long_statement_is_called_off() {
    called_off(forever);
}

#[test]
fn a_loop_of_short_statements_is_called_off() {
    called_off(|conn| {
        loop {
            conn.execute("INSERT INTO t VALUES (1)", ())?;
        }
    });
}

#[test]
fn a_wait_for_a_lock_is_called_off() {
    let fixture = Fixture::new();
    let pool = fixture.builder(2).busy_timeout(LONG).build().unwrap();
    soon(|| {
        let writer = pool.lease("writer").unwrap();
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        let took = runtime().block_on(async {
            let (tell, begun) = mpsc::channel();
            {
                let mut running = pin!(pool.run("a", move |conn| {
                    tell.send(()).unwrap();
                    conn.transaction_with_behavior(TransactionBehavior::Immediate)
                        .map(drop)
                }));
                begin(running.as_mut(), &begun).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(pool.stats().lent, 2, "it does not wait");
            }
            let dropped = Instant::now();
            until("it is back", || pool.stats().lent == 1);
            dropped.elapsed()
        });
        drop(writer);
        // The connection waits for locks as before.
        let lease = pool.lease("a").unwrap();
        let timeout: u128 = lease
            .query_row("PRAGMA busy_timeout", [], |row| row.get::<_, i64>(0))
            .map(|ms| ms as u128)
            .unwrap();
        assert_eq!(timeout, LONG.as_millis());
        drop(lease);
        took
    });
    assert_whole(&pool);
}

#[test]
fn a_lock_is_waited_for_as_long_as_busy_timeout_says() {
    let fixture = Fixture::new();
    let busy = Duration::from_millis(200);
    let pool = fixture.builder(2).busy_timeout(busy).build().unwrap();
    let writer = pool.lease("writer").unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begin = |conn: &mut Connection| conn.execute_batch("BEGIN IMMEDIATE");
    runtime().block_on(async {
        let start = Instant::now();
        let error = pool.run("a", begin).await.unwrap_err();
        let Error::Sqlite(error) = error else {
            panic!("{error}")
        };
        assert_eq!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
        assert!(start.elapsed() >= busy, "{:?}", start.elapsed());
        assert!(start.elapsed() < busy * 2, "{:?}", start.elapsed());
        let mut waiting = pin!(pool.run("a", begin));
        assert!(smol::future::poll_once(&mut waiting).await.is_none());
        drop(writer);
        waiting.await.unwrap();
    });
    assert_whole(&pool);
}

#[test]
fn the_deadline_covers_the_wait_and_the_work() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let short = Duration::from_millis(100);
    let in_time = pool.agent("a").within(short);
    soon(|| {
        runtime().block_on(async {
            let start = Instant::now();
            let late = in_time.run(forever).await;
            assert!(matches!(late, Err(Error::Interrupted { .. })), "{late:?}");
            assert!(start.elapsed() >= short, "{:?}", start.elapsed());
            until("it is back", || pool.stats().lent == 0);
            start.elapsed() - short
        })
    });
    runtime().block_on(async {
        let lease = pool.lease_async("holder").await.unwrap();
        let late = in_time.run(forever).await;
        assert!(matches!(late, Err(Error::Exhausted { .. })), "{late:?}");
        drop(lease);
    });
    assert_whole(&pool);
}

fn it_needs_no_runtime(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let me = thread::current().id();
    let there = smol::block_on(pool.run("a", |_| Ok(thread::current().id())));
    assert_ne!(there.unwrap(), me);
    let lease = pool.lease("a").unwrap();
    let (lease, five) = smol::block_on(Lease::run(lease, |_| 5)).unwrap();
    assert_eq!((Lease::agent(&lease), five), ("a", 5));
    drop(lease);
    assert_whole(&pool);
}

fn blocking_threads_of_the_runtime_are_not_needed(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let (release, wait) = mpsc::channel::<()>();
    runtime.spawn_blocking(move || wait.recv());
    runtime.block_on(async {
        pool.run("a", |_| Ok(())).await.unwrap();
        pool.read_async("a", |_| Ok(())).await.unwrap();
    });
    drop(release);
    assert_whole(&pool);
}

/// Polls calls until all of them are done.
fn all<T>(calls: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    smol::block_on(async {
        let mut calls: Vec<_> = calls
            .into_iter()
            .map(|call| (Box::pin(call), None))
            .collect();
        std::future::poll_fn(|cx| {
            for (call, done) in &mut calls {
                if done.is_none()
                    && let std::task::Poll::Ready(result) = call.as_mut().poll(cx)
                {
                    *done = Some(result);
                }
            }
            match calls.iter().all(|(_, done)| done.is_some()) {
                true => std::task::Poll::Ready(()),
                false => std::task::Poll::Pending,
            }
        })
        .await;
        calls.into_iter().filter_map(|(_, done)| done).collect()
    })
}

fn as_many_run_at_the_same_time_as_there_are_connections(mode: Mode) {
    let fixture = mode.fixture();
    for (connections, calls) in [(1, 3), (2, 2), (8, 8), (20, 50)] {
        let pool = fixture.pool(connections);
        let together = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
        let begun = Instant::now();
        let done = all((0..calls).map(|i| {
            let together = Arc::clone(&together);
            pool.run(mode.either(i % 7, i), move |_| {
                let now = together.0.fetch_add(1, SeqCst) + 1;
                together.1.fetch_max(now, SeqCst);
                // Until all threads that there may be are here.
                while together.1.load(SeqCst) < connections.min(calls) {
                    assert!(begun.elapsed() < LONG, "{together:?} of {connections}");
                    thread::yield_now();
                }
                together.0.fetch_sub(1, SeqCst);
                Ok(())
            })
        }));
        assert!(done.into_iter().all(|done| done.is_ok()));
        assert_eq!(together.1.load(SeqCst), connections.min(calls));
        assert_whole(&pool);
        pool.close().unwrap();
    }
}

fn a_short_call_waits_for_no_long_one_while_a_connection_is_free(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(8);
    let (tell, begun) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let long: Vec<_> = (0..7)
        .map(|i| {
            let (pool, tell, wait) = (pool.clone(), tell.clone(), Arc::clone(&wait));
            thread::spawn(move || {
                smol::block_on(pool.run(i, move |_| {
                    tell.send(()).unwrap();
                    let _ = wait.lock().unwrap().recv();
                    Ok(())
                }))
            })
        })
        .collect();
    (0..7).for_each(|_| begun.recv_timeout(LONG).unwrap());
    soon(|| {
        let asked = Instant::now();
        smol::block_on(pool.run("short", |_| Ok(()))).unwrap();
        asked.elapsed()
    });
    assert_eq!(pool.stats().lent, 7);
    drop(release);
    for call in long {
        call.join().unwrap().unwrap();
    }
    assert_whole(&pool);
}

/// Has the only connection of a pool at work, until the sender is dropped.
#[allow(clippy::type_complexity, reason = "it is taken apart at once")]
fn occupied(
    pool: &Pool,
) -> (
    Pin<Box<impl Future<Output = Result<(), Error>>>>,
    mpsc::Sender<()>,
) {
    let (tell, begun) = mpsc::channel();
    let (release, wait) = mpsc::channel::<()>();
    let mut long = Box::pin(pool.run("long", move |_| {
        tell.send(()).unwrap();
        let _ = wait.recv();
        Ok(())
    }));
    runtime().block_on(begin(long.as_mut(), &begun));
    (long, release)
}

fn a_call_that_waits_for_a_thread_is_seen_and_gives_up_in_time(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let (long, release) = occupied(&pool);
    let patience = Duration::from_millis(100);
    let waiter = pool.agent("waiter").within(patience);
    let asked = Instant::now();
    let mut waiting =
        Box::pin(waiter.run(|_| -> rusqlite::Result<()> { panic!("it never begins") }));
    assert!(smol::block_on(smol::future::poll_once(&mut waiting)).is_none());
    let seen = pool.waiting();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (&*seen[0].agent, seen[0].asked_at.file()),
        ("waiter", file!())
    );
    assert_eq!(pool.stats().waiting, 1);
    let error = smol::block_on(waiting).unwrap_err();
    let took = asked.elapsed();
    assert!(took >= patience && took < LONG, "{took:?}");
    let Error::Exhausted { holders, .. } = &error else {
        panic!("{error}");
    };
    assert_eq!(holders[0].agent, "long");
    assert!(pool.waiting().is_empty());
    assert_eq!(pool.slowest_waits()[0].agent, "waiter");
    assert_eq!(pool.stats().timeouts, 1);
    drop(release);
    smol::block_on(long).unwrap();
    assert_whole(&pool);
}

fn calls_that_are_dropped_in_the_queue_leave_it(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let (long, release) = occupied(&pool);
    let work = Arc::new(());
    for i in 0..10_000 {
        let work = Arc::clone(&work);
        let mut call = Box::pin(pool.run(i, move |_| {
            drop(work);
            Ok(())
        }));
        assert!(smol::block_on(smol::future::poll_once(&mut call)).is_none());
    }
    assert_eq!((pool.waiting().len(), Arc::strong_count(&work)), (0, 1));
    drop(release);
    smol::block_on(long).unwrap();
    assert_whole(&pool);
}

/// Leases that are held elsewhere: the calls wait in the same queue as all callers.
fn calls_that_find_no_connection_wait_for_one(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    let held: Vec<_> = (0..2).map(|i| pool.lease(i).unwrap()).collect();
    let mut calls: Vec<_> = (0..5)
        .map(|i| Box::pin(pool.run(i, move |_| Ok(i))))
        .collect();
    until("all are seen", || {
        for call in &mut calls {
            assert!(smol::block_on(smol::future::poll_once(call)).is_none());
        }
        pool.waiting().len() == 5
    });
    drop(held);
    let done = all(calls);
    let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
    assert_eq!(done, [0, 1, 2, 3, 4]);
    assert_whole(&pool);
}

/// With a file for each agent, an agent has one connection: only its own calls wait for it. Elsewhere no calls wait for it.
fn one_agents_calls_wait_for_its_connection_and_no_others_do(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(6);
    let held = pool.lease("busy").unwrap();
    let mut own: Vec<_> = (0..10)
        .map(|i| Box::pin(pool.run("busy", move |_| Ok(i))))
        .collect();
    let mut poll_all = || {
        let mut ready = 0;
        for call in &mut own {
            ready += usize::from(smol::block_on(smol::future::poll_once(call)).is_some());
        }
        ready
    };
    if mode == Mode::PerAgent {
        until("all wait for it", || {
            assert_eq!(poll_all(), 0);
            pool.waiting().len() == 10
        });
    }
    let others = all((0..20).map(|i| pool.run(format!("other-{}", i % 9), move |_| Ok(i))));
    let others: Vec<_> = others.into_iter().map(Result::unwrap).collect();
    assert_eq!(others, (0..20).collect::<Vec<_>>());
    drop(held);
    if mode == Mode::PerAgent {
        let own = all(own);
        let own: Vec<_> = own.into_iter().map(Result::unwrap).collect();
        assert_eq!(own, (0..10).collect::<Vec<_>>());
    }
    assert_whole(&pool);
}

fn closing_refuses_what_waits_for_a_thread(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    let (long, release) = occupied(&pool);
    let mut queued = Box::pin(pool.run("queued", |_| Ok(())));
    assert!(smol::block_on(smol::future::poll_once(&mut queued)).is_none());
    let mut closing = Box::pin(pool.close_async());
    assert!(smol::block_on(smol::future::poll_once(&mut closing)).is_none());
    until("it is closed", || {
        matches!(pool.try_lease("b"), Err(Error::Closed))
    });
    // While the long one goes on.
    assert!(matches!(smol::block_on(queued), Err(Error::Closed)));
    let late = smol::block_on(pool.run("late", |_| Ok(())));
    assert!(matches!(late, Err(Error::Closed)));
    drop(release);
    smol::block_on(long).unwrap();
    smol::block_on(closing).unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

/// A task's waker is foreign code, and so are the values that work returns and carries.
fn what_panics_around_a_call_costs_no_thread_and_no_connection(mode: Mode) {
    struct Panics;
    impl Drop for Panics {
        fn drop(&mut self) {
            if !thread::panicking() {
                panic!("as the test wants it");
            }
        }
    }
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            std::mem::forget(self);
            panic!("as the test wants it");
        }
    }
    let fixture = mode.fixture();
    let pool = fixture.pool(1);
    for _ in 0..20 {
        let (tell, begun) = mpsc::channel();
        let (release, wait) = mpsc::channel::<()>();
        let mut call = Box::pin(pool.run("a", move |_| {
            tell.send(()).unwrap();
            let _ = wait.recv();
            Ok(Panics)
        }));
        let waker = std::task::Waker::from(Arc::new(Panics));
        let mut cx = std::task::Context::from_waker(&waker);
        // The pool may be closing the connection of another agent, and the call then waits for it.
        until("it begins", || {
            assert!(call.as_mut().poll(&mut cx).is_pending());
            begun.try_recv().is_ok()
        });
        std::mem::forget(waker);
        let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(call)));
        drop(dropped);
        drop(release);
        let carried = smol::block_on(pool.run("b", |_| -> rusqlite::Result<()> {
            std::panic::panic_any(Panics)
        }));
        let Err(Error::Panicked { .. }) = carried else {
            panic!("{carried:?}");
        };
    }
    smol::block_on(pool.run("a", |_| Ok(()))).unwrap();
    assert_whole(&pool);
}

#[test]
fn a_runtime_that_ends_gives_the_lease_back() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    let runtime = runtime();
    let (tell, begun) = mpsc::channel();
    let task = {
        let pool = pool.clone();
        runtime.spawn(async move {
            let _ = pool
                .run("a", move |conn| {
                    tell.send(()).unwrap();
                    forever(conn)
                })
                .await;
        })
    };
    begun.recv_timeout(LONG).unwrap();
    // Waits for the blocking thread, which the dropped task must have interrupted.
    drop(runtime);
    drop(task);
    until("it is back", || pool.stats().lent == 0);
    assert_whole(&pool);
}

#[test]
fn close_waits_for_work_and_work_can_be_called_off_meanwhile() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    runtime().block_on(async {
        let (tell, begun) = mpsc::channel();
        let mut running = Box::pin(pool.run("a", move |conn| -> rusqlite::Result<()> {
            tell.send(()).unwrap();
            loop {
                conn.query_row("SELECT count(*) FROM t", [], |_| Ok(()))?;
            }
        }));
        begin(running.as_mut(), &begun).await;
        let closing = tokio::spawn({
            let pool = pool.clone();
            async move { pool.close_async().await }
        });
        until("it is closed", || {
            matches!(pool.try_lease("b"), Err(Error::Closed))
        });
        assert!(!closing.is_finished());
        drop(running);
        let closed = tokio::time::timeout(LONG, closing).await;
        closed.expect("it goes on").unwrap().unwrap();
    });
    assert_eq!(fixture.descriptors().all(), 0);
}

/// Calls of `run` dropped at random moments: before they have a connection, before the work begins,
/// while it reads, writes, and waits for the write lock, and after; until there were enough of either.
#[test]
fn ten_thousand_calls_dropped_at_random_leave_nothing_behind() {
    const CALLS: usize = 10_000;
    let fixture = Fixture::new();
    let builder = fixture.builder(4).synchronous(Synchronous::Off);
    let pool = builder.build().unwrap();
    // How many are dropped depends on how fast the machine is.
    let ends = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let enough = |ends: &(AtomicUsize, AtomicUsize)| {
        let (dropped, finished) = (ends.0.load(SeqCst), ends.1.load(SeqCst));
        dropped + finished >= CALLS && dropped >= CALLS / 10 && finished >= CALLS / 20
    };
    runtime().block_on(async {
        let tasks: Vec<_> = (0..16)
            .map(|seed| {
                let (pool, ends) = (pool.clone(), Arc::clone(&ends));
                tokio::spawn(async move {
                    let mut rng = SmallRng::seed_from_u64(seed);
                    while !enough(&ends) {
                        let end = match one_of_many(&pool, &mut rng).await {
                            None => &ends.0,
                            Some(result) => {
                                result.unwrap();
                                &ends.1
                            }
                        };
                        end.fetch_add(1, SeqCst);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    until("the last one is back", || pool.stats().lent == 0);
    assert_whole(&pool);
    let found = fixture.descriptors();
    assert!(
        found.wal <= 4 && found.db <= 4 && found.shm <= 1,
        "{found:?}"
    );
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

/// What a call with a random amount of work returned, or `None` if it was dropped.
async fn one_of_many(pool: &Pool, rng: &mut SmallRng) -> Option<Result<(), Error>> {
    let agent = format!("agent-{}", rng.random_range(0..20));
    let steps = rng.random_range(0..2_000);
    let work = move |conn: &mut Connection| -> rusqlite::Result<()> {
        let sql = format!(
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < {steps})
             SELECT count(*) FROM c"
        );
        conn.query_row(&sql, [], |_| Ok(()))?;
        let transaction = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute("INSERT INTO t VALUES (1)", ())?;
        transaction.commit()
    };
    let patience = Duration::from_micros(rng.random_range(0..20_000));
    let own = rng.random_bool(0.5);
    let call = async {
        match own {
            true => pool.run(&agent, work).await.map(drop),
            false => match pool.lease_async(&agent).await {
                Ok(lease) => Lease::run(lease, work).await.map(drop),
                Err(error) => Err(error),
            },
        }
    };
    let give_up = smol::Timer::after(patience);
    smol::future::or(async { Some(call.await) }, async {
        give_up.await;
        None
    })
    .await
}
