//! P5 over PostgreSQL: nothing of one agent is seen by another, one test for each thing that an agent may leave.

use crate::common::{BlockingPool, a_server, awaited, blocking};
use crate::server::{Server, installed};

/// An agent does the first; another gets the same connection, and the second returns false there.
pub(crate) type Leak = (&'static str, &'static str);

pub(crate) fn assert_no_leak(url: &str, (leave, seen): Leak) {
    let pool = blocking(url, 1).build().unwrap();
    let pid = |pool: &BlockingPool, agent| -> i32 {
        let mut lease = pool.lease(agent).unwrap();
        lease
            .query_one("SELECT pg_backend_pid()", &[])
            .unwrap()
            .get(0)
    };
    let before = pid(&pool, "a");
    // Not as one message, so that it is no transaction.
    let mut lease = pool.lease("a").unwrap();
    for statement in leave.split(';') {
        // The last of some is meant to fail.
        let _ = lease.batch_execute(statement);
    }
    drop(lease);
    let mut lease = pool.lease("b").unwrap();
    let found: bool = lease.query_one(seen, &[]).unwrap().get(0);
    assert!(!found, "{seen}");
    drop(lease);
    // It was reset, not replaced.
    assert_eq!(pid(&pool, "b"), before);
    assert_eq!(pool.stats().opens, 1);
    pool.close().unwrap();
    // The same for an async client.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let pool = awaited(url, 1).build().unwrap();
        let lease = pool.lease_async("a").await.unwrap();
        for statement in leave.split(';') {
            let _ = lease.batch_execute(statement).await;
        }
        drop(lease);
        let lease = pool.lease_async("b").await.unwrap();
        let found: bool = lease.query_one(seen, &[]).await.unwrap().get(0);
        assert!(!found, "{seen}");
        drop(lease);
        assert_eq!(pool.stats().opens, 1);
    });
}

macro_rules! leaks {
    ($($name:ident: $leave:expr, $seen:expr;)*) => {
        $(#[test]
        fn $name() {
            if installed() {
                assert_no_leak(&Server::start("").url(), ($leave, $seen));
            }
        })*

        pub(crate) const ALL: &[Leak] = &[$(($leave, $seen),)*];
    };
}

leaks! {
    a_temporary_table: "CREATE TEMP TABLE secret (x int)", "SELECT to_regclass('pg_temp.secret') IS NOT NULL";
    a_setting: "SET work_mem = '7MB'", "SELECT current_setting('work_mem') = '7MB'";
    a_prepared_statement: "PREPARE secret AS SELECT 1",
        "SELECT EXISTS (SELECT 1 FROM pg_prepared_statements WHERE name = 'secret')";
    an_advisory_lock: "SELECT pg_advisory_lock(7)", "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory')";
    a_channel: "LISTEN secret", "SELECT EXISTS (SELECT 1 FROM pg_listening_channels())";
    a_cursor: "BEGIN; DECLARE secret CURSOR WITH HOLD FOR SELECT 1; COMMIT",
        "SELECT EXISTS (SELECT 1 FROM pg_cursors WHERE name = 'secret')";
    an_open_transaction: "BEGIN; CREATE TABLE secret (x int)", "SELECT to_regclass('secret') IS NOT NULL";
    an_aborted_transaction: "BEGIN; CREATE TABLE secret (x int); SELECT * FROM nowhere",
        "SELECT to_regclass('secret') IS NOT NULL";
    a_role: "CREATE ROLE other; GRANT other TO postgres; SET ROLE other", "SELECT current_user <> 'postgres'";
    a_session_authorization: "CREATE ROLE other; SET SESSION AUTHORIZATION other", "SELECT session_user <> 'postgres'";
}

#[test]
fn the_last_value_of_a_sequence() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 1).build().unwrap();
    let sequence = "CREATE SEQUENCE s; SELECT nextval('s')";
    pool.lease("a").unwrap().batch_execute(sequence).unwrap();
    assert!(
        pool.lease("a")
            .unwrap()
            .query("SELECT lastval()", &[])
            .is_ok()
    );
    assert!(
        pool.lease("b")
            .unwrap()
            .query("SELECT lastval()", &[])
            .is_err()
    );
    assert_eq!(pool.stats().opens, 1);
}

/// A transaction that an agent has left open is rolled back when its lease ends, not when another agent comes.
#[test]
fn a_parked_connection_holds_no_lock() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = blocking(&server.url(), 2).build().unwrap();
    let mut lease = pool.lease("a").unwrap();
    lease.batch_execute("CREATE TABLE t (x int)").unwrap();
    lease.batch_execute("BEGIN; LOCK TABLE t").unwrap();
    drop(lease);
    let mut client = server.client();
    client
        .batch_execute("SET lock_timeout = '10s'; DROP TABLE t")
        .unwrap();
}

/// Without `reset`, nobody can say what an agent has left: another agent gets a new connection.
#[test]
fn without_a_reset_another_agent_gets_a_new_connection() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = leasepool::Pool::managed(crate::common::manager(&server.url()))
        .max_connections(1)
        .fds_per_connection(5)
        .build()
        .unwrap();
    pool.lease("a")
        .unwrap()
        .batch_execute("SET work_mem = '7MB'")
        .unwrap();
    let mut lease = pool.lease("b").unwrap();
    let row = lease
        .query_one("SELECT current_setting('work_mem')", &[])
        .unwrap();
    assert_ne!(row.get::<_, String>(0), "7MB");
    drop(lease);
    assert_eq!(pool.stats().opens, 2);
    // An agent that did nothing with its connection has left nothing.
    drop(pool.lease("c").unwrap());
    let before = pool.stats().opens;
    drop(pool.lease("d").unwrap());
    assert_eq!(pool.stats().opens, before);
}
