//! The failures this crate was written for: a server that kept raw SQLite handles in an LRU cache of
//! agents died of EMFILE after 73 messages, since a replaced or evicted agent's handle stayed open.

use std::time::Duration;

use leasepool::rusqlite;

use crate::common::*;

/// Guards: every request of a cached agent opened another handle.
#[test]
fn a_cached_agent_used_for_n_requests_keeps_a_constant_number_of_descriptors() {
    let fixture = Fixture::new();
    let pool = fixture.pool(4);
    insert(&pool.lease("agent").unwrap());
    let after_one = fixture.descriptors();
    for _ in 0..500 {
        insert(&pool.lease("agent").unwrap());
        assert_eq!(fixture.descriptors(), after_one);
    }
    assert_eq!(after_one.all(), 3);
    assert_eq!((pool.stats().opens, pool.stats().hits), (1, 500));
}

/// Guards: an evicted agent's handle was dropped from the cache, but never closed or reused.
#[test]
fn an_agent_evicted_from_the_cache_gives_its_connection_back() {
    let fixture = Fixture::new();
    let pool = fixture.builder(4).cached_agents(2).build().unwrap();
    for i in 0..300 {
        insert(&pool.lease(format!("agent-{i}")).unwrap());
        assert!(fixture.descriptors().wal <= 4);
    }
    let stats = pool.stats();
    assert_eq!(stats.evicted_by_size, 298, "{stats:?}");
    assert!(stats.opens <= 4, "{stats:?}");
    assert_whole(&pool);
}

/// Guards: the fix for the leak closed handles under agents that still wrote (600 lost rows). A lease
/// has no close, and can be returned only once: by value.
#[test]
fn returning_twice_is_impossible_or_harmless() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lease = pool.lease("agent").unwrap();
    let _: fn(leasepool::Lease) = leasepool::Lease::discard;
    drop(lease);
    // What can be said twice: that the agent is gone, and that the pool is.
    assert!(pool.evict("agent"));
    assert!(!pool.evict("agent"));
    let lease = pool.lease("agent").unwrap();
    assert!(!pool.evict("agent"));
    assert!(!pool.evict("agent"));
    insert(&lease);
    drop(lease);
    assert_eq!((pool.stats().open, pool.stats().lent), (1, 0));
    assert_whole(&pool);
    pool.close().unwrap();
    pool.close().unwrap();
}

/// Guards: a checkpoint that could not finish, or a handle that would not close, stopped the server.
#[test]
fn a_failing_checkpoint_or_close_does_not_stop_the_next_lease() {
    let fixture = Fixture::new();
    let pool = fixture
        .builder(3)
        .busy_timeout(Duration::from_millis(20))
        .build()
        .unwrap();
    let reader = pool.lease("reader").unwrap();
    insert(&reader);
    reader.execute_batch("BEGIN; SELECT * FROM t").unwrap();
    assert_eq!(count(&reader), 1);
    let writer = pool.lease("writer").unwrap();
    insert(&writer);
    let busy: i64 = writer
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
        .unwrap();
    assert_eq!(busy, 1, "the reader pins the WAL");
    drop(writer);
    // And a connection that will not close, since a statement on it is still running.
    let lease = pool.lease("careless").unwrap();
    let mut statement = lease.prepare("SELECT * FROM t").unwrap();
    let mut rows = statement.query([]).unwrap();
    assert!(rows.next().unwrap().is_some());
    std::mem::forget(rows);
    std::mem::forget(statement);
    leasepool::Lease::discard(lease);
    assert_eq!((pool.stats().stuck, pool.stats().close_failures), (1, 1));
    for i in 0..10 {
        let lease = pool.try_lease(format!("next-{i}")).unwrap();
        insert(&lease);
    }
    drop(reader);
    assert_eq!(count(&pool.try_lease("reader").unwrap()), 12);
    assert!(fixture.descriptors().all() <= pool.fd_ceiling());
}

/// Guards: the death itself. One handle for each message, as the server did it, dies under the limit
/// of 256; the same messages through a pool are all served.
#[test]
fn two_hundred_messages_under_a_limit_of_256_descriptors() {
    in_child(
        "regression::two_hundred_messages_under_a_limit_of_256_descriptors",
        || {
            const MESSAGES: usize = 200;
            limit_descriptors(256);
            let fixture = Fixture::new();
            let pool = fixture.pool(8);
            for i in 0..MESSAGES {
                let lease = pool.lease(format!("session-{}", i % 50)).unwrap();
                insert(&lease);
                assert!(fixture.descriptors().all() <= pool.fd_ceiling());
            }
            assert_eq!(count(&pool.lease("counter").unwrap()), MESSAGES as i64);
            pool.close().unwrap();
            assert_eq!(fixture.descriptors().all(), 0);

            // The way it was: the handle of the message before is replaced, but something (here a list)
            // still has it. SQLite needs two descriptors for each, and a few besides.
            let mut handles = Vec::new();
            let died = loop {
                let handle = rusqlite::Connection::open(&fixture.path)
                    .and_then(|conn| conn.execute("INSERT INTO t VALUES (1)", []).map(|_| conn));
                match handle {
                    Ok(handle) => handles.push(handle),
                    Err(error) => break error,
                }
            };
            assert_eq!(
                died.sqlite_error_code(),
                Some(rusqlite::ErrorCode::CannotOpen)
            );
            assert!(handles.len() < MESSAGES, "{}", handles.len());
        },
    );
}
