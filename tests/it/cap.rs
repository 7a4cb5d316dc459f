//! P1: connections never exceed `max_connections`, descriptors never exceed `fd_ceiling()`. P18: the
//! stats say what the kernel says.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use leasepool::Error;

use crate::common::*;

in_both_modes! {
    ten_thousand_turns_of_a_thousand_agents_under_an_exact_limit,
    sixty_four_threads_share_eight_connections,
    stats_say_what_the_kernel_says
}

fn sixty_four_threads_share_eight_connections(mode: Mode) {
    const THREADS: usize = 64;
    let fixture = mode.fixture();
    let pool = fixture
        .builder(8)
        // Long enough for eight files to be made, on any disk: who has not got one by then breaks the barrier.
        .lease_timeout(Duration::from_secs(3))
        .build()
        .unwrap();
    let (start, peak, done) = (Barrier::new(THREADS), Barrier::new(9), Barrier::new(9));
    let results: Vec<bool> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|i| {
                let (pool, start, peak, done) = (&pool, &start, &peak, &done);
                scope.spawn(move || {
                    start.wait();
                    match pool.lease(format!("agent-{i}")) {
                        Ok(lease) => {
                            insert(&lease);
                            peak.wait();
                            done.wait();
                            true
                        }
                        Err(Error::Exhausted { holders, .. }) => {
                            assert!(!holders.is_empty());
                            false
                        }
                        Err(other) => panic!("{other}"),
                    }
                })
            })
            .collect();
        // Eight hold a lease that has read and written; nobody else can have one.
        peak.wait();
        let found = fixture.descriptors();
        assert!(
            found.db <= 8 && found.wal == 8 && found.shm == mode.files(8),
            "{found:?}"
        );
        assert!(found.all() <= pool.fd_ceiling());
        assert_eq!(pool.stats().lent, 8);
        eventually("all others gave up", || pool.stats().timeouts == 56);
        done.wait();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(results.iter().filter(|served| **served).count(), 8);
    assert_whole(&pool);
}

fn ten_thousand_turns_of_a_thousand_agents_under_an_exact_limit(mode: Mode) {
    in_child(
        &mode.test(
            "cap",
            "ten_thousand_turns_of_a_thousand_agents_under_an_exact_limit",
        ),
        || {
            let fixture = mode.fixture();
            let pool = fixture
                .builder(8)
                .synchronous(leasepool::Synchronous::Off)
                .build()
                .unwrap();
            // The pool has no connection open now: what it will need is the ceiling.
            assert_eq!(fixture.descriptors().all(), 0);
            limit_descriptors(open_descriptors() + pool.fd_ceiling() + 4);
            thread::scope(|scope| {
                for t in 0..8 {
                    let pool = &pool;
                    let unrelated = fixture.in_folder(&format!("unrelated-{t}"));
                    scope.spawn(move || {
                        for turn in 0..1_250 {
                            let agent = format!("agent-{}", (turn * 7 + t * 131) % 1_000);
                            let lease = pool.lease(agent).unwrap();
                            insert(&lease);
                            if turn % 125 == 0 && t == 0 {
                                drop(std::fs::File::create(&unrelated).unwrap());
                            }
                        }
                    });
                }
            });
            assert!(fixture.descriptors().all() <= pool.fd_ceiling());
            assert_eq!(fixture.count_all(&pool), 10_000);
        },
    );
}

fn stats_say_what_the_kernel_says(mode: Mode) {
    let fixture = mode.fixture();
    let pool = fixture.pool(4);
    let check = |open: usize, lent: usize, parked: usize| {
        let stats = pool.stats();
        assert_eq!(
            (stats.open, stats.lent, stats.parked),
            (open, lent, parked),
            "{stats:?}"
        );
        assert_eq!(fixture.descriptors().wal, open);
    };
    check(0, 0, 0);
    let read = |agent: &str| {
        let lease = pool.lease(agent).unwrap();
        count(&lease);
        lease
    };
    let a = read("a");
    check(1, 1, 0);
    let b = read("b");
    check(2, 2, 0);
    drop(a);
    check(2, 1, 1);
    assert!(pool.evict("a"));
    mode.assert_open(&pool, 1, 1);
    check(mode.either(2, 1), 1, 0);
    let c = read("c");
    check(2, 2, 0);
    leasepool::Lease::discard(c);
    check(1, 1, 0);
    drop(b);
    check(1, 0, 1);
    pool.close().unwrap();
    check(0, 0, 0);
    let stats = pool.stats();
    let opened = mode.either(2, 3);
    assert_eq!((stats.opens, stats.closes), (opened, opened), "{stats:?}");
    assert_eq!((stats.leases, stats.hits, stats.misses), (3, 0, 3));
}

#[test]
fn a_pool_in_memory_costs_no_descriptor() {
    let before = open_descriptors_named("leasepool-");
    let pool = leasepool::Pool::builder(leasepool::Database::memory())
        .max_connections(4)
        .setup(|conn| conn.execute_batch("CREATE TABLE t (x)"))
        .build()
        .unwrap();
    assert_eq!(pool.fd_ceiling(), 0);
    let leases: Vec<_> = (0..4)
        .map(|i| pool.lease(format!("{i}")).unwrap())
        .collect();
    insert(&leases[0]);
    assert!(leases.iter().all(|lease| count(lease) == 1));
    assert_eq!(open_descriptors_named("leasepool-"), before);
}

fn open_descriptors_named(part: &str) -> usize {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.path().read_link().ok())
        .filter(|target| target.to_string_lossy().contains(part))
        .count()
}

/// C6: a file that is replaced again and again, with a lease held in each of its generations. SQLite keeps the
/// descriptors of closed connections to a file until the last to it is closed.
#[test]
fn nine_generations_of_a_file() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(8)
        .lease_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let mut held = Vec::new();
    let mut refused = 0;
    for generation in 0..9 {
        // As many as there are to be had, of which one is kept.
        let mut leases = Vec::new();
        for i in 0..8 {
            match pool.lease(format!("{generation}-{i}")) {
                Ok(lease) => {
                    insert(&lease);
                    leases.push(lease);
                }
                Err(Error::NoDescriptors { .. } | Error::Exhausted { .. }) => refused += 1,
                Err(other) => panic!("{other:?}"),
            }
            let found = fixture.descriptors().all();
            assert!(
                found <= pool.fd_ceiling(),
                "{generation}: {found} {:?}",
                fixture.descriptors()
            );
        }
        held.extend(leases.pop());
        drop(leases);
        let other = fixture.in_folder("other.db");
        let made = leasepool::rusqlite::Connection::open(&other).unwrap();
        made.execute_batch("CREATE TABLE t (x)").unwrap();
        drop(made);
        for sidecar in ["db-wal", "db-shm"] {
            let _ = std::fs::remove_file(fixture.path.with_extension(sidecar));
        }
        std::fs::rename(&other, &fixture.path).unwrap();
        let_a_change_show();
    }
    assert!(refused > 0 && held.len() > 2, "{refused} {}", held.len());
    // Each of them works on what it had.
    held.iter().for_each(|lease| assert!(count(lease) > 0));
    drop(held);
    eventually("a lease is to be had", || pool.lease("a").is_ok());
    eventually("all old ones are closed", || {
        fixture.descriptors().deleted == 0
    });
    assert_whole(&pool);
}

/// C6, the other way round: who waits for descriptors gets them when a lease on an old file ends.
#[test]
fn descriptors_are_waited_for() {
    let fixture = Fixture::new();
    let pool = fixture.builder(2).lease_timeout(LONG).build().unwrap();
    let old: Vec<_> = (0..2)
        .map(|i| pool.lease(format!("old-{i}")).unwrap())
        .collect();
    old.iter().for_each(|lease| insert(lease));
    let other = fixture.in_folder("other.db");
    let made = leasepool::rusqlite::Connection::open(&other).unwrap();
    made.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(made);
    for sidecar in ["db-wal", "db-shm"] {
        std::fs::remove_file(fixture.path.with_extension(sidecar)).unwrap();
    }
    std::fs::rename(&other, &fixture.path).unwrap();
    let_a_change_show();
    let mut old = old.into_iter();
    drop(old.next());
    thread::scope(|scope| {
        // Four are open to the old file: two on the database, a log, an index. A new one needs three more, and there are two.
        let waiting = scope.spawn(|| count(&pool.lease("new").unwrap()));
        drop(old);
        assert_eq!(waiting.join().unwrap(), 0);
    });
    assert!(pool.try_lease("new").is_ok());
    assert_whole(&pool);
}

/// C8: what `setup` attaches is limited as what leases attach is.
#[test]
fn attach_in_setup() {
    for limit in [0, 1] {
        let fixture = Mode::PerAgent.fixture();
        let attached = fixture.in_folder("attached.db");
        leasepool::rusqlite::Connection::open(&attached)
            .unwrap()
            .execute_batch("CREATE TABLE u (x)")
            .unwrap();
        let pool = fixture
            .builder(4)
            .attach_limit(limit)
            .setup(move |conn| {
                conn.execute("ATTACH ?1 AS other", [attached.to_str()])?;
                conn.execute_batch("SELECT * FROM other.u; CREATE TABLE IF NOT EXISTS t (x)")
            })
            .build()
            .unwrap();
        let leases: Vec<_> = (0..4).map(|i| pool.lease(format!("a{i}"))).collect();
        match limit {
            0 => assert!(
                leases
                    .iter()
                    .all(|lease| matches!(lease, Err(Error::Setup { .. })))
            ),
            _ => assert!(leases.iter().all(Result::is_ok)),
        }
        assert!(fixture.descriptors().all() <= pool.fd_ceiling());
    }
}

/// An agent can make no temporary files, nor have folders synced where nothing is to be.
#[test]
fn pragmas_that_would_open_files() {
    for (mode, synchronous, refused) in [
        (Mode::Shared, leasepool::Synchronous::Off, false),
        (Mode::PerAgent, leasepool::Synchronous::Full, false),
        (Mode::PerAgent, leasepool::Synchronous::Off, true),
    ] {
        let pool = mode.fixture();
        let pool = pool.builder(1).synchronous(synchronous).build().unwrap();
        let lease = pool.lease("a").unwrap();
        assert!(lease.execute_batch("PRAGMA temp_store = FILE").is_err());
        assert_eq!(
            lease.execute_batch("PRAGMA synchronous = FULL").is_err(),
            refused
        );
        let kept: i64 = lease
            .pragma_query_value(None, "temp_store", |row| row.get(0))
            .unwrap();
        assert_eq!(kept, 2);
    }
}
