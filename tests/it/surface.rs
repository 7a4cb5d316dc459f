//! The surface: connections without an agent, ids of any kind, handles with deadlines, and what a pool cannot do.

use std::time::{Duration, Instant};

use leasepool::{Agent, Database, Error, Lease, Pool, rusqlite};

use crate::common::{Mode, count, insert};

fn names(lease: &Lease) -> i64 {
    let sql = "SELECT count(*) FROM sqlite_temp_schema";
    lease.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[test]
fn borrowers_without_an_agent_are_not_reset() {
    let fixture = Mode::Shared.fixture();
    let pool = fixture.builder(1).build().unwrap();
    let lease = pool.get().unwrap();
    assert_eq!(Lease::agent(&lease), "leasepool: get");
    lease.execute_batch("CREATE TEMP TABLE mine (x)").unwrap();
    drop(lease);
    assert_eq!(names(&pool.get().unwrap()), 1);
    assert_eq!(names(&pool.anonymous().lease().unwrap()), 1);
    assert_eq!(names(&pool.try_get().unwrap()), 1);
    let stats = pool.stats();
    assert_eq!((stats.hits, stats.misses, stats.resets), (3, 1, 0));
}

#[test]
fn what_a_borrower_without_an_agent_left_open_is_rolled_back() {
    let fixture = Mode::Shared.fixture();
    let pool = fixture.builder(1).build().unwrap();
    let lease = pool.get().unwrap();
    lease.execute_batch("BEGIN IMMEDIATE").unwrap();
    insert(&lease);
    drop(lease);
    let lease = pool.get().unwrap();
    assert!(lease.is_autocommit());
    assert_eq!(count(&lease), 0);
}

#[test]
fn a_reset_stands_between_agents_and_borrowers_without_one() {
    let fixture = Mode::Shared.fixture();
    let pool = fixture.builder(1).build().unwrap();
    let soil = "PRAGMA cache_size = 7";
    let cache_size = |lease: &Lease| -> i64 {
        lease
            .pragma_query_value(None, "cache_size", |row| row.get(0))
            .unwrap()
    };
    let alice = pool.lease("alice").unwrap();
    let clean = cache_size(&alice);
    alice.execute_batch(soil).unwrap();
    drop(alice);
    let lease = pool.get().unwrap();
    assert_eq!(cache_size(&lease), clean);
    lease.execute_batch(soil).unwrap();
    drop(lease);
    assert_eq!(cache_size(&pool.lease("alice").unwrap()), clean);
    let stats = pool.stats();
    assert_eq!(stats.resets + stats.discarded_by_reset, 2, "{stats:?}");
}

/// Also where no agent is cached: these borrowers are no agent.
#[test]
fn the_connections_of_borrowers_without_an_agent_stay_warm() {
    let fixture = Mode::Shared.fixture();
    let pool = fixture.builder(4).cached_agents(0).build().unwrap();
    let leases: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    assert!(matches!(pool.try_get(), Err(Error::Exhausted { .. })));
    drop(leases);
    for _ in 0..10 {
        let _all: Vec<_> = (0..4).map(|_| pool.get().unwrap()).collect();
    }
    assert_eq!(pool.stats().hits, 40);
    assert_eq!(pool.stats().opens, 4);
}

/// The thread's own slot, one that was parked just now, and a search: all find what is parked.
#[test]
fn threads_without_an_agent_find_each_others_connections() {
    let fixture = Mode::Shared.fixture();
    let pool = fixture.builder(3).build().unwrap();
    // All are open, also where no three threads ever run at the same time.
    drop([(); 3].map(|()| pool.get().unwrap()));
    let rounds = 2_000;
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for i in 0..rounds {
                    let one = pool.get().unwrap();
                    let two = (i % 16 == 0).then(|| pool.try_get());
                    drop(one);
                    drop(two);
                }
            });
        }
    });
    let stats = pool.stats();
    assert!(stats.leases >= 8 * rounds);
    assert_eq!(stats.misses, 3, "one for each connection: {stats:?}");
    assert_eq!((stats.lent, stats.parked), (0, 3));
}

#[test]
fn handles_without_an_agent_do_all_that_others_do() {
    let fixture = Mode::Shared.fixture();
    let pool = fixture.builder(2).build().unwrap();
    let app = pool.anonymous();
    app.write(|tx| tx.execute("INSERT INTO t VALUES (1)", []))
        .unwrap();
    app.execute("INSERT INTO t VALUES (?1)", [2]).unwrap();
    let sum: i64 = app
        .read(|tx| tx.query_row("SELECT sum(x) FROM t", [], |row| row.get(0)))
        .unwrap();
    assert_eq!(sum, 3);
    assert_eq!(app.id().unwrap(), "leasepool: get");
    drop(app.lease().unwrap());
    assert!(app.evict());
    assert!(!app.evict());
}

#[test]
fn where_agents_have_files_no_connection_is_without_an_agent() {
    let fixture = Mode::PerAgent.fixture();
    let pool = fixture.builder(2).build().unwrap();
    let unsupported = |error: Error| match error {
        Error::Unsupported { .. } => error.to_string(),
        other => panic!("{other}"),
    };
    let errors = [
        pool.get().map(drop),
        pool.try_get().map(drop),
        pool.anonymous().lease().map(drop),
        pool.anonymous().write(|_| Ok(())),
        pool.anonymous().read(|_| Ok(())),
        pool.anonymous().remove().map(drop),
        pool.vacuum(),
        pool.backup(fixture.path.with_file_name("copy.db")),
    ];
    for error in errors {
        let text = unsupported(error.unwrap_err());
        assert!(text.contains("file"), "{text}");
    }
    assert_eq!(pool.stats().leases, 0);
    assert_eq!(pool.agents().unwrap().count(), 0);
}

#[test]
fn where_agents_share_a_file_there_are_no_files_of_agents() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    let alice = pool.agent("alice");
    let errors = [
        alice.exists().map(drop),
        alice.remove().map(drop),
        pool.agents().map(drop),
    ];
    for error in errors {
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("Database::per_agent"), "{error}");
        assert_eq!(error.http_status(), 500);
    }
}

#[test]
fn an_id_is_what_it_displays() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    drop(pool.lease(42_u64).unwrap());
    let same: [Lease; 4] = [
        pool.lease("42").unwrap(),
        pool.agent(42_i8).lease().unwrap(),
        pool.lease(String::from("42")).unwrap(),
        pool.lease(format_args!("{}{}", 4, 2)).unwrap(),
    ];
    for lease in &same {
        assert_eq!(Lease::agent(lease), "42");
    }
    assert_eq!(pool.stats().hits, 1);
    assert_eq!(pool.holders().len(), 4);
}

#[test]
fn an_invalid_id_shows_in_each_call() {
    let pool = Pool::builder(Database::memory()).build().unwrap();
    let long = "x".repeat(1025);
    for id in ["", "leasepool: get", "leasepool: writer", &long] {
        let agent = pool.agent(id);
        let errors = [
            agent.id().map(drop),
            agent.lease().map(drop),
            agent.try_lease().map(drop),
            agent.read(|_| Ok(())),
            agent.write(|_| Ok(())),
            agent.execute("DELETE FROM t", []).map(drop),
            agent.exists().map(drop),
            agent.backup("copy.db"),
            agent.vacuum(),
            pool.lease(id).map(drop),
            pool.write(id, |_| Ok(())),
            pool.read(id, |_| Ok(())),
        ];
        for error in errors {
            let error = error.unwrap_err();
            assert!(matches!(error, Error::InvalidAgent { .. }), "{error}");
            assert_eq!(error.http_status(), 400);
        }
        assert!(!agent.evict());
        assert!(!pool.evict(id));
    }
}

#[test]
fn a_handle_waits_as_long_as_it_says() {
    let pool = Pool::builder(Database::memory())
        .max_connections(1)
        .lease_timeout(Duration::from_secs(60))
        .build()
        .unwrap();
    let held = pool.lease("holder").unwrap();
    let patient = pool.agent("alice").within(Duration::from_millis(30));
    type Call = fn(&Agent) -> Result<(), Error>;
    let calls: [Call; 4] = [
        |agent| agent.lease().map(drop),
        |agent| agent.read(|_| Ok(())),
        |agent| agent.write(|_| Ok(())),
        |agent| agent.execute("DELETE FROM t", []).map(drop),
    ];
    for call in calls {
        let asked_at = Instant::now();
        let error = call(&patient).unwrap_err();
        assert!(error.is_exhausted(), "{error}");
        let waited = asked_at.elapsed();
        assert!(waited >= Duration::from_millis(30), "{waited:?}");
        assert!(waited < Duration::from_secs(5), "{waited:?}");
    }
    // The handle that it was made of is as it was.
    let other = pool.agent("alice");
    let _ = other.within(Duration::ZERO);
    drop(held);
    drop(other.lease().unwrap());
}

#[derive(Debug)]
enum AppError {
    NotEnough,
    Database,
}

impl From<Error> for AppError {
    fn from(_: Error) -> Self {
        AppError::Database
    }
}

impl From<rusqlite::Error> for AppError {
    fn from(_: rusqlite::Error) -> Self {
        AppError::Database
    }
}

#[test]
fn work_may_fail_in_ways_of_its_own_and_is_rolled_back() {
    for mode in [Mode::Shared, Mode::PerAgent] {
        let fixture = mode.fixture();
        let pool = fixture.builder(2).build().unwrap();
        let alice = pool.agent("alice");
        let result: Result<(), AppError> = alice.write_and_then(|tx| {
            tx.execute("INSERT INTO t VALUES (1)", [])?;
            Err(AppError::NotEnough)
        });
        assert!(matches!(result, Err(AppError::NotEnough)));
        let rows = alice.read_and_then(|tx| {
            let rows: i64 = tx.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
            if rows > 0 {
                Err(AppError::NotEnough)
            } else {
                Ok(rows)
            }
        });
        assert_eq!(rows.unwrap(), 0);
        let mut lease = alice.lease().unwrap();
        let result: Result<(), AppError> = Lease::write_and_then(&mut lease, |tx| {
            tx.execute("INSERT INTO t VALUES (1)", [])?;
            Err(AppError::NotEnough)
        });
        assert!(matches!(result, Err(AppError::NotEnough)));
        assert_eq!(count(&lease), 0);
        drop(lease);
        pool.close().unwrap();
        let closed: Result<(), AppError> = alice.write_and_then(|_| Ok(()));
        assert!(matches!(closed, Err(AppError::Database)));
    }
}

/// A callback may return any error, and the caller finds it as the source.
#[test]
fn callbacks_may_return_any_error() {
    let source = |error: Error| std::error::Error::source(&error).unwrap().to_string();
    let build = |builder: leasepool::Builder| source(builder.build().unwrap_err());
    let builder = || Pool::builder(Database::memory());
    assert_eq!(build(builder().setup(|_| Err("no schema"))), "no schema");
    assert_eq!(build(builder().on_connect(|_| Err("no key"))), "no key");
    let on_open = |_: &mut rusqlite::Connection| Err(std::io::Error::other("no function"));
    assert_eq!(build(builder().on_open(on_open)), "no function");
}

/// What is said of threads is checked by the compiler.
#[test]
fn handles_and_futures_may_move_to_other_threads() {
    fn both<T: Send + Sync>() {}
    fn may_move<T: Send>(value: T) -> T {
        value
    }
    both::<Pool>();
    both::<Agent>();
    both::<Error>();
    let pool = Pool::builder(Database::memory()).build().unwrap();
    let agent = pool.agent("alice");
    drop(may_move(pool.get_async()));
    drop(may_move(pool.lease_async("alice")));
    drop(may_move(pool.read_async("alice", |_| Ok(()))));
    drop(may_move(pool.write_async("alice", |_| Ok(()))));
    drop(may_move(pool.execute_async("alice", "DELETE FROM t", [])));
    drop(may_move(pool.close_async()));
    drop(may_move(pool.close_within_async(Duration::ZERO)));
    drop(may_move(agent.lease_async()));
    drop(may_move(agent.read_async(|_| Ok(()))));
    drop(may_move(agent.write_async(|_| Ok(()))));
    drop(may_move(agent.write_and_then_async(|_| Ok::<_, Error>(()))));
    drop(may_move(pool.run("alice", |_| Ok(()))));
    drop(may_move(pool.lease("alice").unwrap()));
}
