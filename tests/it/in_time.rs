//! P17 and P20: what one does slowly keeps nobody else beyond its time, and no poll of a future waits for it.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Backup, Database, Error, Pool, Synchronous};

use crate::common::*;

in_both_modes! {
    where_no_thread_can_be_started_errors_say_so_and_pass,
}

/// How much later than its deadline a call may come back.
const GRACE: Duration = Duration::from_millis(50);

/// The longest time that a poll took, until the future is ready or `polls` were made.
fn longest_poll<T>(future: impl Future<Output = T>, polls: usize) -> Duration {
    let mut future = std::pin::pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    let mut longest = Duration::ZERO;
    for _ in 0..polls {
        let begun = Stopwatch::start();
        let polled = future.as_mut().poll(&mut cx);
        longest = longest.max(begun.elapsed());
        if polled.is_ready() {
            break;
        }
        thread::sleep(Duration::from_millis(1));
    }
    longest
}

/// A pool of files with one connection, in which an agent has left a log of `megabytes`.
fn with_a_long_log(fixture: &Fixture, megabytes: usize) -> Pool {
    let pool = Pool::builder(Database::per_agent(fixture.path.with_extension("agents")))
        .max_connections(1)
        .synchronous(Synchronous::Normal)
        .pragma("wal_autocheckpoint", 0)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    let lease = pool.lease("writer").unwrap();
    let mut insert = lease
        .prepare("INSERT INTO t VALUES (zeroblob(1048576))")
        .unwrap();
    for _ in 0..megabytes {
        insert.execute([]).unwrap();
    }
    drop(insert);
    pool
}

#[test]
fn no_poll_waits_while_a_file_with_a_long_log_is_closed() {
    in_one_of_three(|| {
        let fixture = Fixture::new();
        let pool = with_a_long_log(&fixture, 100);
        // To be served, it has the writer's connection closed.
        let longest = longest_poll(pool.lease_async("other"), 200);
        for wait in [0, 1, 10] {
            let wait = Duration::from_millis(wait);
            let refused = within(wait + GRACE, || {
                pool.agent("third").within(wait).lease().err()
            })?;
            if let Some(error) = refused {
                assert!(matches!(error, Error::Exhausted { .. }), "{error}");
            }
        }
        drop(pool.lease("other").unwrap());
        pool.close().unwrap();
        if longest < Duration::from_millis(1) {
            Ok(())
        } else {
            Err(format!("a poll of {longest:?}"))
        }
    });
}

#[test]
fn a_slow_callback_of_ones_own_keeps_nobody_beyond_their_time() {
    let fixture = Fixture::new();
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = Arc::clone(&slow);
    let pool = fixture
        .builder(2)
        .on_open(move |_| {
            while is_slow.load(SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    slow.store(true, SeqCst);
    for wait in [0, 1, 100] {
        let wait = Duration::from_millis(wait);
        let lease = || pool.agent("a").within(wait).lease().unwrap_err();
        let error = in_one_of_three(|| within(wait + GRACE, lease));
        let text = error.to_string();
        assert!(
            text.contains("to be opened") || text.contains("for a connection"),
            "{text}"
        );
    }
    slow.store(false, SeqCst);
    // What was opened meanwhile is not lost.
    eventually("both are there", || pool.stats().lent == 0);
    assert_whole(&pool);
}

#[test]
fn an_opening_takes_what_it_takes_if_nobody_else_is_waited_for() {
    // A disk that is busy may take longer than the grace that there is: one of ten is enough.
    let opened = (0..10).any(|_| {
        let fixture = Fixture::new();
        let pool = fixture.pool(1);
        pool.agent("a").within(Duration::ZERO).lease().is_ok()
    });
    assert!(opened);
}

#[test]
fn dropping_a_lease_closes_nothing_on_its_thread() {
    in_one_of_three(|| {
        let fixture = Fixture::new();
        let pool = with_a_long_log(&fixture, 60);
        let lease = pool.lease("writer").unwrap();
        drop(pool);
        within(Duration::from_millis(20), || drop(lease))
    });
}

#[test]
fn closing_from_within_is_told_at_once() {
    let fixture = Fixture::new();
    let (tell, told) = mpsc::channel::<Pool>();
    let told = std::sync::Mutex::new(told);
    let seen = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&seen);
    let pool = fixture
        .builder(2)
        .on_open(move |_| {
            if let Ok(pool) = told.lock().unwrap().try_recv() {
                let error = pool.close().unwrap_err();
                noted.store(matches!(error, Error::Reentrant { .. }), SeqCst);
            }
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    let begun = Instant::now();
    let within = pool.clone();
    let closed = pool.write("a", move |_| Ok(within.close())).unwrap();
    assert!(
        matches!(
            closed,
            Err(Error::Reentrant {
                within: "a write",
                ..
            })
        ),
        "{closed:?}"
    );
    tell.send(pool.clone()).unwrap();
    let both = [pool.lease("a").unwrap(), pool.lease("b").unwrap()];
    assert!(seen.load(SeqCst));
    assert!(begun.elapsed() < Duration::from_secs(2));
    drop(both);
    assert_whole(&pool);
    pool.close().unwrap();
}

/// So is closing in whatever else the pool calls and waits for.
#[test]
fn closing_in_a_callback_is_told_at_once() {
    #[track_caller]
    fn is_told(closed: Result<(), Error>, expected: &str) {
        let told = matches!(closed, Err(Error::Reentrant { within, .. }) if within == expected);
        assert!(told, "{closed:?}, not: within {expected}");
    }
    for mode in [Mode::Shared, Mode::PerAgent] {
        let fixture = mode.fixture();
        let pool = fixture.pool(2);
        let begun = Instant::now();
        let within = pool.clone();
        let closed = smol::block_on(pool.run("a", move |_| Ok(within.close())));
        is_told(closed.unwrap(), "a call of `run`");
        let within = pool.clone();
        let closed = pool.read("a", move |_| Ok(within.close()));
        is_told(closed.unwrap(), "a read");
        let mut closed = None;
        let copy = fixture.path.with_extension("copy");
        let tells = |_| {
            closed.get_or_insert_with(|| pool.close());
            ControlFlow::Continue(())
        };
        pool.agent("a")
            .backup_with(copy, Backup::new().progress(tells))
            .unwrap();
        is_told(closed.unwrap(), "a backup");
        // Closing the writes waits for no lease.
        let within = pool.clone();
        let closed = smol::block_on(pool.run("a", move |_| Ok(within.close_writes())));
        closed.unwrap().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert_whole(&pool);
    }
}

/// A8: each took one place, and waited for another.
#[test]
fn backups_at_once_do_not_wait_for_each_other() {
    let fixture = Fixture::new();
    let pool = Pool::builder(Database::per_agent(fixture.path.with_extension("agents")))
        .max_connections(8)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    let agents: Vec<String> = (0..16).map(|i| format!("a{i}")).collect();
    for agent in &agents {
        pool.write(agent, |tx| {
            tx.execute("INSERT INTO t VALUES (1)", [])?;
            Ok(())
        })
        .unwrap();
    }
    thread::scope(|scope| {
        for agent in &agents {
            let to = fixture.path.with_extension(format!("{agent}.copy"));
            let pool = &pool;
            scope.spawn(move || pool.agent(agent).backup(to).unwrap());
        }
    });
    assert_whole(&pool);
}

/// A9: writes that wait for their agent's connection hold no thread.
#[test]
fn writes_that_wait_for_their_agent_keep_no_other_waiting() {
    let fixture = Fixture::new();
    let pool = Pool::builder(Database::per_agent(fixture.path.with_extension("agents")))
        .max_connections(40)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    let agents: Vec<String> = (0..20).map(|i| format!("a{i}")).collect();
    let leases: Vec<_> = agents
        .iter()
        .map(|agent| pool.lease(agent).unwrap())
        .collect();
    let insert = |tx: &mut leasepool::rusqlite::Savepoint<'_>| {
        tx.execute("INSERT INTO t VALUES (1)", [])?;
        Ok(())
    };
    let mut waiting: Vec<_> = agents
        .iter()
        .map(|agent| Box::pin(pool.write_async(agent, insert)))
        .collect();
    for write in &mut waiting {
        assert!(smol::block_on(smol::future::poll_once(write)).is_none());
    }
    let begun = Instant::now();
    smol::block_on(pool.write_async("another", insert)).unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    drop(leases);
    for write in waiting {
        smol::block_on(write).unwrap();
    }
    pool.close().unwrap();
}

/// A7: a place function that panics on a thread of the pool's.
#[test]
fn a_place_function_that_panics_is_answered() {
    let fixture = Fixture::new();
    let folder = fixture.path.parent().unwrap().to_path_buf();
    let panics = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&panics);
    let place = move |agent: &str| {
        assert!(!now.load(SeqCst), "on purpose");
        folder.join(agent).with_extension("db")
    };
    let pool = Pool::builder(Database::per_agent_with(place))
        .max_connections(2)
        .build()
        .unwrap();
    let work = |_: &mut leasepool::rusqlite::Savepoint<'_>| Ok(());
    pool.write("a", work).unwrap();
    panics.store(true, SeqCst);
    for result in [
        pool.write("b", work),
        smol::block_on(pool.write_async("c", work)),
        pool.lease("d").map(drop),
    ] {
        assert!(matches!(result, Err(Error::Panicked { .. })), "{result:?}");
    }
    panics.store(false, SeqCst);
    pool.write("b", work).unwrap();
    assert_whole(&pool);
}

/// A place function may ask a disk or a network.
#[test]
fn no_poll_waits_for_a_place_function() {
    let fixture = Fixture::new();
    let folder = fixture.path.parent().unwrap().to_path_buf();
    let slow = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&slow);
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let place = move |agent: &str| {
        ASKED.fetch_add(1, SeqCst);
        if now.load(SeqCst) {
            thread::sleep(Duration::from_millis(100));
        }
        folder.join(agent).with_extension("db")
    };
    let pool = Pool::builder(Database::per_agent_with(place))
        .max_connections(2)
        .build()
        .unwrap();
    slow.store(true, SeqCst);
    let work = |_: &mut leasepool::rusqlite::Savepoint<'_>| Ok(());
    let lease = (0..3).map(|i| longest_poll(pool.lease_async(format!("a{i}")), 300));
    assert!(lease.min() < Some(Duration::from_millis(1)));
    let write = (0..3).map(|i| longest_poll(pool.write_async(format!("b{i}"), work), 300));
    assert!(write.min() < Some(Duration::from_millis(1)));
    // Of an agent that is known, it is not asked again. A write is answered before its connection is returned.
    eventually("all are parked", || pool.stats().lent == 0);
    let asked = ASKED.load(SeqCst);
    pool.write("b2", work).unwrap();
    assert_eq!(ASKED.load(SeqCst), asked);
    assert_whole(&pool);
}

/// A14: the wait at an agent's lock is a wait, and not part of the hold.
#[test]
fn a_wait_at_an_agents_lock_is_counted() {
    let fixture = Fixture::new();
    let pool = Pool::builder(Database::per_agent(fixture.path.with_extension("agents")))
        .max_connections(4)
        .build()
        .unwrap();
    let first = pool.lease("a").unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| drop(pool.lease("a").unwrap()));
        eventually("it waits", || pool.stats().waiting == 1);
        thread::sleep(Duration::from_millis(200));
        drop(first);
        second.join().unwrap();
    });
    let stats = pool.stats();
    assert!(
        stats.wait.max() >= Duration::from_millis(200),
        "{:?}",
        stats.wait
    );
    assert!(pool.slowest_waits()[0].waited >= Duration::from_millis(200));
}

/// B7: what the pool itself is called is nobody's.
#[test]
fn the_pools_own_names_cannot_be_leased() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    for name in ["leasepool: writer", "leasepool: checkpoint", "leasepool: x"] {
        let error = pool.lease(name).unwrap_err();
        assert!(matches!(error, Error::InvalidAgent { .. }), "{error}");
        let error = pool.write(name, |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::InvalidAgent { .. }), "{error}");
    }
}

/// A11: what is idle is closed by a worker, and keeps no write from its answer.
#[test]
fn a_write_is_answered_in_time_while_a_file_is_closed() {
    in_one_of_three(|| {
        let fixture = Fixture::new();
        let pool = with_a_long_log(&fixture, 60);
        let wait = Duration::from_millis(5);
        let until = Instant::now() + Duration::from_millis(500);
        assert!(pool.evict("writer"));
        let mut answers = 0;
        while Instant::now() < until {
            let other = pool.agent("other").within(wait);
            let answer = within(wait + GRACE, || {
                smol::block_on(other.write_async(|_| Ok(())))
            })?;
            answers += 1;
            if answer.is_ok() {
                break;
            }
        }
        assert!(answers > 0);
        pool.close().unwrap();
        Ok(())
    });
}

/// Another connection has the write lock.
#[test]
fn a_locked_file_keeps_nobody_beyond_their_time() {
    for mode in [Mode::Shared, Mode::PerAgent] {
        in_one_of_three(|| {
            let fixture = mode.fixture();
            let pool = fixture.pool(3);
            let work = |tx: &mut leasepool::rusqlite::Savepoint<'_>| {
                insert(tx);
                Ok(())
            };
            pool.write("a", work).unwrap();
            let file = fixture.file("a");
            let other = leasepool::rusqlite::Connection::open(file).unwrap();
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            for wait in [0, 1, 100] {
                let wait = Duration::from_millis(wait);
                let agent = pool.agent("a").within(wait);
                within(wait + GRACE, || agent.write(work))?.unwrap_err();
                within(wait + GRACE, || smol::block_on(agent.write_async(work)))?.unwrap_err();
                // A lease does not need the lock, and its reads do not.
                let lease = pool.agent("a").within(wait + GRACE).lease().unwrap();
                assert_eq!(count(&lease), 1);
            }
            let wait = Duration::from_millis(100);
            within(wait + GRACE, || pool.close_within(wait))?.unwrap();
            drop(other);
            Ok(())
        });
    }
}

/// Whether all threads that pools have started wait for something.
fn pools_threads_sleep() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.flatten().all(|task| {
        // "123 (name) S ..."
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().unwrap_or_default();
        !stat.contains("(leasepool") && !stat.contains("(r2d2") || state.starts_with('S')
    }) && thread_count() > 1
}

fn thread_count() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

/// A15, and P10 without threads: a limit on memory lets no stack be made.
fn where_no_thread_can_be_started_errors_say_so_and_pass(mode: Mode) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    fn allow(more: Option<u64>) {
        let maximum = getrlimit(Resource::As).maximum;
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
        let size = size.unwrap().trim().trim_end_matches(" kB");
        let current = more.map(|more| size.parse::<u64>().unwrap() * 1024 + more);
        setrlimit(Resource::As, Rlimit { current, maximum }).unwrap();
    }
    let body = "where_no_thread_can_be_started_errors_say_so_and_pass";
    let name = mode.test("in_time", body);
    // Else it would keep the stacks of threads that have ended, and use them again.
    let uncached = "export GLIBC_TUNABLES=glibc.pthread.stack_cache_size=0";
    in_child_of_shell(uncached, &name, || {
        let fixture = mode.fixture();
        allow(Some(1 << 20));
        let first = fixture.builder(2).build();
        allow(None);
        assert!(matches!(first, Err(Error::NoThread { .. })), "{first:?}");
        let pool = fixture.pool(2);
        // A thread that is being started needs memory, too.
        eventually("the pool's threads sleep", pools_threads_sleep);
        allow(Some(1 << 20));
        let begun = Instant::now();
        let work = |tx: &mut leasepool::rusqlite::Savepoint<'_>| {
            insert(tx);
            Ok(())
        };
        let answers = [
            pool.lease("a").map(drop),
            smol::future::block_on(pool.lease_async("b")).map(drop),
            pool.write("c", work),
            smol::future::block_on(pool.write_async("d", work)),
        ];
        let took = begun.elapsed();
        allow(None);
        assert!(took < Duration::from_millis(500), "{took:?}: {answers:?}");
        assert!(
            matches!(answers.first(), Some(Err(Error::NoThread { .. }))),
            "{answers:?}"
        );
        for answer in answers {
            assert!(
                matches!(answer, Ok(()) | Err(Error::NoThread { .. })),
                "{answer:?}"
            );
        }
        assert_whole(&pool);
        pool.write("a", work).unwrap();
        pool.close().unwrap();
        assert_eq!(fixture.descriptors().all(), 0);
    });
}
