//! `keep_read_lock`: the lock is held while it helps, and keeps no checkpoint from its end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::Connection;
use leasepool::{Builder, Database, Error, Pool, Synchronous};

use crate::common::*;
use crate::replaced::renamed_over;

/// Longer than some ticks.
const QUIET: Duration = Duration::from_millis(50);

fn builder(fixture: &Fixture) -> Builder {
    fixture
        .builder(3)
        .synchronous(Synchronous::Normal)
        .keep_read_lock(true)
}

/// A connection to the file that belongs to no pool.
fn stranger(fixture: &Fixture) -> Connection {
    let connection = Connection::open(&fixture.path).unwrap();
    connection.busy_timeout(Duration::ZERO).unwrap();
    connection
}

/// Whether a checkpoint could not bring the log to its end.
fn is_busy(connection: &Connection, mode: &str) -> bool {
    let checkpoint = format!("PRAGMA wal_checkpoint({mode})");
    let busy: i64 = connection
        .query_row(&checkpoint, [], |row| row.get(0))
        .unwrap();
    busy != 0
}

/// Whether a connection has a read lock after nothing was committed for a while: the pool's own, since its borrowers read
/// nothing here.
fn is_held(connection: &Connection) -> bool {
    insert(connection);
    thread::sleep(QUIET);
    is_busy(connection, "RESTART")
}

/// Runs `test` while a thread takes leases and reads nothing.
fn with_leases<R>(pool: &Pool, test: impl FnOnce() -> R) -> R {
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    // To open and set up the connection takes the write lock, which the test wants for itself.
    drop(pool.lease("busy").unwrap());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let done = Done(&done);
        let over = done.0;
        scope.spawn(move || {
            // Enough of them, also where this thread sleeps for much longer.
            while !over.load(Relaxed) && (0..64).all(|_| pool.lease("busy").is_ok()) {
                thread::sleep(Duration::from_millis(2));
            }
        });
        test()
    })
}

#[test]
fn it_is_held_while_leases_are_taken_and_not_otherwise() {
    let fixture = Fixture::new();
    let pool = builder(&fixture).build().unwrap();
    let stranger = stranger(&fixture);
    assert!(!is_held(&stranger));
    with_leases(&pool, || {
        eventually("the lock is held", || is_held(&stranger));
    });
    eventually("it is given back", || !is_held(&stranger));
    for _ in 0..5 {
        assert!(!is_held(&stranger));
    }
    // And again.
    with_leases(&pool, || {
        eventually("the lock is held", || is_held(&stranger));
    });
}

#[test]
fn without_the_option_no_lock_is_held() {
    let fixture = Fixture::new();
    let pool = builder(&fixture).keep_read_lock(false).build().unwrap();
    let stranger = stranger(&fixture);
    with_leases(&pool, || {
        for _ in 0..10 {
            assert!(!is_held(&stranger));
        }
    });
}

#[test]
fn a_checkpoint_of_others_comes_to_its_end() {
    let fixture = Fixture::new();
    let pool = builder(&fixture).build().unwrap();
    let stranger = stranger(&fixture);
    with_leases(&pool, || {
        for _ in 0..5 {
            eventually("the lock is held", || is_held(&stranger));
            stranger.busy_timeout(Duration::from_secs(10)).unwrap();
            for mode in ["FULL", "RESTART", "TRUNCATE"] {
                insert(&stranger);
                thread::sleep(QUIET);
                let begun = Instant::now();
                assert!(!is_busy(&stranger, mode), "{mode}");
                assert!(begun.elapsed() < Duration::from_secs(5));
            }
            assert_eq!(fixture.wal_length("a"), 0);
            stranger.busy_timeout(Duration::ZERO).unwrap();
        }
    });
}

#[test]
fn the_log_begins_anew_under_writes_and_leases() {
    const WAL_SIZE: u32 = 256 << 10;
    let fixture = Fixture::new();
    let pool = builder(&fixture).wal_size(WAL_SIZE).build().unwrap();
    with_leases(&pool, || {
        for round in 0..20 {
            for _ in 0..100 {
                pool.write("w", |tx| {
                    tx.execute("INSERT INTO t VALUES (randomblob(20000))", [])
                })
                .unwrap();
            }
            eventually("the log begins anew", || {
                pool.write("w", |tx| tx.execute("INSERT INTO t VALUES (1)", []))
                    .unwrap();
                fixture.wal_length("a") < 12 * u64::from(WAL_SIZE)
            });
            if round % 5 == 0 {
                // Time for the lock to be held.
                thread::sleep(QUIET);
            }
        }
    });
    assert!(pool.stats().checkpoints > 0);
    assert_eq!(pool.stats().checkpoints_pinned, 0);
}

/// A stranger whose commits run SQLite's own checkpoints, once the log has so many pages.
fn checkpointing(fixture: &Fixture, pages: u32) -> Connection {
    let stranger = stranger(fixture);
    let pragmas = format!("PRAGMA wal_autocheckpoint = {pages}; PRAGMA synchronous = OFF");
    stranger.execute_batch(&pragmas).unwrap();
    stranger
}

/// Lets the stranger commit so many rows of 20,000 bytes, from when the lock is held, with a pause before each. Returns the
/// longest log.
fn longest_log(
    (fixture, pool, stranger): (&Fixture, &Pool, &Connection),
    commits: usize,
    pause: Duration,
) -> u64 {
    with_leases(pool, || {
        eventually("the lock is held", || is_held(stranger));
        let mut longest = 0;
        for _ in 0..commits {
            thread::sleep(pause);
            eventually("no checkpoint of the pool is in the way", || {
                let row = "INSERT INTO t VALUES (randomblob(20000))";
                stranger.execute(row, []).is_ok()
            });
            longest = longest.max(fixture.wal_length("a"));
        }
        longest
    })
}

/// SQLite's own checkpoints give up at once where a reader is in the way. Where the machine makes the stranger pause, the
/// lock is held meanwhile, so one turn without many pauses is what counts.
#[test]
fn while_others_commit_it_is_not_held() {
    eventually("the log stays short", || {
        let fixture = Fixture::new();
        let pool = builder(&fixture).build().unwrap();
        let stranger = checkpointing(&fixture, 100);
        // 40 million bytes in all.
        longest_log((&fixture, &pool, &stranger), 2_000, Duration::ZERO) < 16 << 20
    });
}

/// The same with pauses in which the lock is held: none of SQLite's own checkpoints comes to the end of the log then. The
/// pool's does.
#[test]
fn between_the_commits_of_others_the_log_is_copied() {
    const PAUSE: Duration = Duration::from_millis(25);
    let fixture = Fixture::new();
    let pool = builder(&fixture).wal_size(1 << 16).build().unwrap();
    let stranger = checkpointing(&fixture, 10);
    let longest = longest_log((&fixture, &pool, &stranger), 240, PAUSE);
    assert!(longest < 3 << 20, "{longest} of 5 million");
}

#[test]
fn its_connection_is_within_the_ceiling_and_closed_when_it_is_not_wanted() {
    let fixture = Fixture::new();
    let pool = builder(&fixture).build().unwrap();
    let plain = Fixture::new();
    assert_eq!(pool.fd_ceiling(), plain.pool(3).fd_ceiling() + 2);
    let held = [pool.lease("a").unwrap(), pool.lease("b").unwrap()];
    for lease in &held {
        insert(lease);
        count(lease);
    }
    with_leases(&pool, || {
        eventually("one connection more than the pool lends", || {
            fixture.descriptors().db == 4
        });
        let found = fixture.descriptors();
        assert!(found.all() <= pool.fd_ceiling(), "{found:?}");
        assert_eq!(pool.stats().open, 3);
    });
    drop(held);
    // SQLite closes the descriptor itself with the last connection to the file.
    eventually("it is closed", || fixture.descriptors().wal == 3);
}

#[test]
fn a_budget_is_for_it_as_well() {
    for budget in [9, 20, 50] {
        let size = |keep| {
            let fixture = Fixture::new();
            let builder = Pool::builder(Database::file(&fixture.path)).fd_budget(budget);
            let pool = builder.keep_read_lock(keep).build().unwrap();
            assert!(pool.fd_ceiling() <= budget);
            pool.stats().max_connections
        };
        assert_eq!(size(true) + 1, size(false), "{budget}");
    }
    let fixture = Fixture::new();
    let builder = Pool::builder(Database::file(&fixture.path)).fd_budget(7);
    let refused = builder.keep_read_lock(true).build();
    assert!(matches!(refused, Err(Error::Budget { .. })), "{refused:?}");
}

#[test]
fn closing_closes_it() {
    for _ in 0..20 {
        let fixture = Fixture::new();
        let pool = builder(&fixture).build().unwrap();
        with_leases(&pool, || {
            eventually("it is open", || fixture.descriptors().wal > 1);
            insert(&pool.lease("a").unwrap());
            pool.close().unwrap();
        });
        assert_eq!(fixture.descriptors().all(), 0);
        assert_eq!(fixture.wal_length("a"), 0);
        assert_eq!(count(&fixture.pool(1).lease("a").unwrap()), 1);
    }
}

#[test]
fn the_last_handle_closes_it() {
    let fixture = Fixture::new();
    let pool = builder(&fixture).build().unwrap();
    with_leases(&pool, || {
        eventually("it is open", || fixture.descriptors().wal > 1);
    });
    drop(pool);
    // Its thread may have it in hand.
    eventually("all is closed", || fixture.descriptors().all() == 0);
}

#[test]
fn it_follows_a_file_that_was_replaced() {
    let fixture = Fixture::new();
    let pool = builder(&fixture).build().unwrap();
    with_leases(&pool, || {
        eventually("the lock is held", || is_held(&stranger(&fixture)));
        renamed_over(&fixture, 0);
        insert(&pool.lease("a").unwrap());
        eventually("nothing of the old file is open", || {
            fixture.descriptors().deleted == 0
        });
        assert!(fixture.descriptors().all() <= pool.fd_ceiling());
        eventually("the new file's lock is held", || {
            is_held(&stranger(&fixture))
        });
    });
}

fn is_its_thread() -> bool {
    thread::current().name() == Some("leasepool-read-lock")
}

#[test]
fn a_callback_that_fails_there_costs_nothing_else() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    for panics in [false, true] {
        let fixture = Fixture::new();
        let before = CALLS.load(Relaxed);
        let pool = builder(&fixture)
            .on_open(move |_| {
                if !is_its_thread() {
                    return Ok(());
                }
                CALLS.fetch_add(1, Relaxed);
                assert!(!panics, "on purpose");
                Err(rusqlite::Error::InvalidQuery)
            })
            .build()
            .unwrap();
        with_leases(&pool, || {
            eventually("a further attempt", || CALLS.load(Relaxed) > before + 1);
            insert(&pool.lease("a").unwrap());
        });
        assert_eq!(pool.stats().open_failures, 0);
        pool.close().unwrap();
        assert_eq!(fixture.descriptors().all(), 0);
    }
}

/// `on_open` may have the last handle in its hand, or take long.
#[test]
fn closing_waits_for_no_callback_there() {
    for drops in [false, true] {
        let fixture = Fixture::new();
        let last: Arc<Mutex<Option<Pool>>> = Arc::default();
        let theirs = Arc::downgrade(&last);
        let (begun, goes_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let (there, then) = (Arc::clone(&begun), Arc::clone(&goes_on));
        let pool = builder(&fixture)
            .on_open(move |_| {
                if is_its_thread() {
                    there.wait();
                    then.wait();
                    if let Some(last) = theirs.upgrade() {
                        drop(last.lock().unwrap().take());
                    }
                }
                Ok::<_, rusqlite::Error>(())
            })
            .build()
            .unwrap();
        with_leases(&pool, || begun.wait());
        assert!(fixture.descriptors().wal > 0);
        if drops {
            *last.lock().unwrap() = Some(pool);
            goes_on.wait();
        } else {
            let asked = Instant::now();
            let closed = pool.close_within(Duration::from_millis(100));
            assert!(matches!(closed, Err(Error::Exhausted { .. })), "{closed:?}");
            assert!(asked.elapsed() < Duration::from_secs(2));
            // What was idle is closed.
            assert_eq!(pool.stats().open, 0);
            goes_on.wait();
            pool.close().unwrap();
            assert_eq!(fixture.descriptors().all(), 0);
        }
        eventually("all is closed", || fixture.descriptors().all() == 0);
        // Its file is given free.
        eventually("the next pool", || fixture.builder(1).build().is_ok());
    }
}

#[test]
fn a_callback_there_cannot_close_the_pool() {
    static POOL: OnceLock<Pool> = OnceLock::new();
    static REFUSED: AtomicBool = AtomicBool::new(false);
    let fixture = Fixture::new();
    let pool = builder(&fixture)
        .on_open(|_| {
            if let Some(pool) = POOL.get().filter(|_| is_its_thread()) {
                let refused = matches!(pool.close(), Err(Error::Reentrant { .. }));
                REFUSED.store(refused, Relaxed);
            }
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    let pool = POOL.get_or_init(|| pool);
    with_leases(pool, || {
        eventually("it was refused", || REFUSED.load(Relaxed));
    });
    pool.close().unwrap();
}

#[test]
fn where_it_would_be_of_no_use_it_is_refused() {
    let fixture = Fixture::new();
    let refused = |builder: Builder| {
        let built = builder.keep_read_lock(true).build();
        match built {
            Err(Error::Config { option, .. }) => option,
            other => panic!("{other:?}"),
        }
    };
    let memory = Pool::builder(Database::memory());
    assert_eq!(refused(memory), "keep_read_lock");
    let folder = fixture.in_folder("agents");
    let per_agent = Pool::builder(Database::per_agent(&folder));
    assert_eq!(refused(per_agent), "keep_read_lock");
    let automatic = fixture.builder(2).pragma("wal_autocheckpoint", 100);
    assert_eq!(refused(automatic), "keep_read_lock");
    let external = fixture.builder(2).external_checkpoints(None);
    assert_eq!(refused(external), "external_checkpoints");
}
