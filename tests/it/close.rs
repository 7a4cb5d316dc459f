//! P11: close means closed.

use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Error, Pool};

use crate::common::*;

in_both_modes! {
    it_ends_with_no_descriptor_and_a_checkpoint,
    dropping_the_last_handle_closes,
    it_waits_for_what_is_lent,
    it_waits_no_longer_than_it_may,
    it_wakes_those_who_wait_for_one_agent,
    it_wakes_those_who_wait,
    writes_alone_can_be_closed,
    closing_the_writes_waits_no_longer_than_it_may,
    closing_the_writes_waits_for_those_of_leases,
    under_load
}

fn wal_exists(fixture: &Fixture) -> bool {
    let databases = fixture.mode.either(fixture.folder.path(), &fixture.path);
    let files = std::fs::read_dir(databases).unwrap();
    files
        .map(|file| file.unwrap().path())
        .any(|file| file.to_str().unwrap().ends_with(".db-wal"))
}

fn it_ends_with_no_descriptor_and_a_checkpoint(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(3);
    let leases: Vec<_> = (0..3)
        .map(|i| pool.lease(format!("{i}")).unwrap())
        .collect();
    leases.iter().for_each(|lease| insert(lease));
    drop(leases);
    assert!(wal_exists(&fixture));
    for _ in 0..3 {
        pool.close().unwrap();
        assert_eq!(fixture.descriptors().all(), 0);
        assert!(!wal_exists(&fixture));
    }
    let stats = pool.stats();
    assert_eq!((stats.open, stats.parked, stats.lent), (0, 0, 0));
    assert!(matches!(pool.lease("a"), Err(Error::Closed)));
    assert!(matches!(pool.try_lease("a"), Err(Error::Closed)));
    assert_eq!(fixture.count_all(&fixture.pool(1)), 3);
}

fn dropping_the_last_handle_closes(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(3);
    let other = pool.clone();
    insert(&pool.lease("a").unwrap());
    drop(pool);
    assert_eq!(fixture.descriptors().wal, 1);
    insert(&other.lease("a").unwrap());
    drop(other);
    assert_eq!(fixture.descriptors().all(), 0);
    assert!(!wal_exists(&fixture));
}

fn it_waits_for_what_is_lent(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(2).lease_timeout(LONG).build().unwrap();
    let lease = pool.lease("a").unwrap();
    thread::scope(|scope| {
        let closers: Vec<_> = (0..4).map(|_| scope.spawn(|| pool.close())).collect();
        eventually("it is closing", || {
            matches!(pool.try_lease("b"), Err(Error::Closed))
        });
        insert(&lease);
        assert!(closers.iter().all(|closer| !closer.is_finished()));
        drop(lease);
        for closer in closers {
            closer.join().unwrap().unwrap();
        }
    });
    assert_eq!(fixture.descriptors().all(), 0);
}

fn it_waits_no_longer_than_it_may(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(2);
    let lease = pool.lease("late").unwrap();
    let start = Instant::now();
    let error = pool.close_within(Duration::from_millis(100)).unwrap_err();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(100) && took < Duration::from_millis(400),
        "{took:?}"
    );
    let Error::Exhausted { holders, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(holders[0].agent, "late");
    insert(&lease);
    drop(lease);
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
}

fn it_wakes_those_who_wait(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(1).lease_timeout(LONG).build().unwrap();
    wakes(&pool, |i| format!("{i}"));
}

fn it_wakes_those_who_wait_for_one_agent(mode: Mode) {
    let fixture = mode.fixture();
    let builder = fixture.builder(mode.either(1, 4));
    let pool = builder.lease_timeout(LONG).build().unwrap();
    wakes(&pool, |_| "holder".to_owned());
}

fn wakes(pool: &Pool, agent: impl Fn(usize) -> String) {
    let lease = pool.lease("holder").unwrap();
    thread::scope(|scope| {
        let waiters: Vec<_> = (0..8)
            .map(|i| {
                let agent = agent(i);
                scope.spawn(move || pool.lease(agent).map(drop))
            })
            .collect();
        eventually("all wait", || pool.stats().waiting == 8);
        assert!(pool.close_within(Duration::ZERO).is_err());
        for waiter in waiters {
            assert!(matches!(waiter.join().unwrap(), Err(Error::Closed)));
        }
    });
    drop(lease);
    pool.close().unwrap();
}

/// Leases come and go from many threads while others close: at the end all is closed, every time.
fn under_load(mode: Mode) {
    for _ in 0..20 {
        let fixture = mode.fixture();
        let pool = fixture
            .builder(4)
            .lease_timeout(LONG)
            .synchronous(leasepool::Synchronous::Off)
            .build()
            .unwrap();
        thread::scope(|scope| {
            for t in 0..6 {
                let pool = pool.clone();
                scope.spawn(move || {
                    for i in 0.. {
                        match pool.lease(format!("{}", (t + i) % 9)) {
                            Ok(lease) => assert!(count(&lease) >= 0),
                            Err(Error::Closed) => return,
                            Err(other) => panic!("{other}"),
                        }
                    }
                });
            }
            for _ in 0..2 {
                let pool = pool.clone();
                scope.spawn(move || {
                    eventually("they are at work", || pool.stats().leases > 100);
                    pool.close().unwrap();
                    assert_eq!(pool.stats().open, 0);
                });
            }
        });
        assert_eq!(fixture.descriptors().all(), 0);
        assert_eq!(pool.stats().lent, 0);
        drop(pool);
        drop(fixture.pool(1));
    }
}

#[test]
fn a_pool_in_memory_closes_too() {
    let pool = Pool::builder(leasepool::Database::memory())
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    pool.close().unwrap();
    pool.close().unwrap();
}

fn writes_alone_can_be_closed(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(4).lease_timeout(LONG).build().unwrap();
    let add = |agent: &str| pool.write(agent, |tx| tx.execute("INSERT INTO t VALUES (1)", []));
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (tell, began) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            pool.write("a", move |tx| {
                tell.send(()).unwrap();
                let _ = wait.recv();
                tx.execute("INSERT INTO t VALUES (1)", [])
            })
        });
        began.recv().unwrap();
        let queued = scope.spawn(|| add("a"));
        eventually("it is queued", || pool.stats().writes_waiting == 1);
        // In the shared file it waits for the same turn.
        let mut of_lease = pool.lease("b").unwrap();
        let (asked, asks) = std::sync::mpsc::channel();
        let on_lease = scope.spawn(move || {
            let result = leasepool::Lease::write(&mut of_lease, |tx| {
                asked.send(()).unwrap();
                tx.execute("INSERT INTO t VALUES (1)", [])
            });
            (result, of_lease)
        });
        if mode == Mode::PerAgent {
            asks.recv().unwrap();
        }
        let closers: Vec<_> = (0..3)
            .map(|i| match i {
                0 => scope.spawn(|| smol::block_on(pool.close_writes_async())),
                _ => scope.spawn(|| pool.close_writes()),
            })
            .collect();
        eventually("they are refused", || {
            matches!(
                pool.agent("c").within(Duration::ZERO).write(|_| Ok(())),
                Err(Error::WritesClosed)
            )
        });
        assert!(closers.iter().all(|closer| !closer.is_finished()));
        let reader = pool.lease(mode.reader_of("d")).unwrap();
        assert_eq!(count(&reader), 0);
        drop(reader);
        go_on.send(()).unwrap();
        working.join().unwrap().unwrap();
        queued.join().unwrap().unwrap();
        for closer in closers {
            closer.join().unwrap().unwrap();
        }
        let (result, mut lease) = on_lease.join().unwrap();
        // It may have come after.
        let on_lease = match result {
            Ok(added) => added,
            Err(Error::WritesClosed) if mode == Mode::Shared => 0,
            Err(error) => panic!("{error}"),
        };
        let late = leasepool::Lease::write(&mut lease, |_| Ok(()));
        assert!(matches!(late, Err(Error::WritesClosed)), "{late:?}");
        drop(lease);
        assert_eq!(fixture.count_all(&pool), 2 + on_lease as i64);
    });
    let refused = smol::block_on(pool.write_async("new", |_| Ok(())));
    assert!(matches!(refused, Err(Error::WritesClosed)), "{refused:?}");
    pool.close_writes().unwrap();
    assert_whole(&pool);
    pool.close().unwrap();
    assert!(matches!(add("a"), Err(Error::Closed)));
    assert_eq!(fixture.descriptors().all(), 0);
}

fn closing_the_writes_waits_no_longer_than_it_may(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(2).lease_timeout(LONG).build().unwrap();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (tell, began) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let inner = pool.clone();
        let working = scope.spawn(|| {
            pool.write("a", move |tx| {
                // It would wait for itself.
                let nested = inner.close_writes();
                assert!(matches!(nested, Err(Error::Reentrant { .. })), "{nested:?}");
                tell.send(()).unwrap();
                let _ = wait.recv();
                tx.execute("INSERT INTO t VALUES (1)", [])
            })
        });
        began.recv().unwrap();
        let queued = scope.spawn(|| pool.write("a", |_| Ok(())));
        eventually("it is queued", || pool.stats().writes_waiting == 1);
        let timeout = Duration::from_millis(100);
        let start = Instant::now();
        let error = pool.close_writes_within(timeout).unwrap_err();
        assert!(start.elapsed() >= timeout);
        let wanted = match &error {
            Error::Exhausted { wanted, .. } => *wanted,
            other => panic!("{other}"),
        };
        assert_eq!(wanted, leasepool::Wanted::CloseWrites);
        let told = queued.join().unwrap();
        assert!(matches!(told, Err(Error::WritesClosed)), "{told:?}");
        go_on.send(()).unwrap();
        working.join().unwrap().unwrap();
    });
    pool.close_writes().unwrap();
    assert_eq!(fixture.count_all(&pool), 1);
}

fn closing_the_writes_waits_for_those_of_leases(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.builder(2).lease_timeout(LONG).build().unwrap();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (tell, began) = std::sync::mpsc::channel();
    let mut lease = pool.lease("a").unwrap();
    thread::scope(|scope| {
        let working = scope.spawn(move || {
            leasepool::Lease::write(&mut lease, |tx| {
                tell.send(()).unwrap();
                let _ = wait.recv();
                tx.execute("INSERT INTO t VALUES (1)", [])
            })
        });
        began.recv().unwrap();
        let told = pool.close_writes_within(Duration::from_millis(50));
        let closing = scope.spawn(|| pool.close_writes());
        go_on.send(()).unwrap();
        working.join().unwrap().unwrap();
        closing.join().unwrap().unwrap();
        assert!(told.unwrap_err().is_exhausted());
    });
    assert_eq!(fixture.count_all(&pool), 1);
}
