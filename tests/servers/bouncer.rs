//! pgbouncer between a pool and its server. In session mode a lease is what it always is. In transaction mode it is not: a
//! connection to pgbouncer is no session of the server, so that nothing which resets or ends one can hold.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use leasepool::{Error, Pool};
use leasepool_postgres_server::{Bouncer, bouncer_installed};
use postgres::{Client, NoTls};

use crate::common::{LONG, RESET, blocking, eventually, manager};
use crate::leaks::{self, assert_no_leak};
use crate::leases::assert_all_served;
use crate::server::{Server, installed};

/// A server; `None` where it or pgbouncer is not installed.
fn a_server() -> Option<Server> {
    (installed() && bouncer_installed()).then(|| Server::start(""))
}

#[test]
fn in_session_mode_a_thousand_agents_are_served() {
    let Some(server) = a_server() else {
        return;
    };
    let bouncer = Bouncer::before(&server, "pool_mode=session");
    let pool = blocking(&bouncer.url(), 8).build().unwrap();
    assert_all_served(&server, &pool);
}

#[test]
fn in_session_mode_nothing_leaks() {
    let Some(server) = a_server() else {
        return;
    };
    let bouncer = Bouncer::before(&server, "pool_mode=session");
    for leak in leaks::ALL {
        assert_no_leak(&bouncer.url(), *leak);
    }
}

/// A pgbouncer with one connection to its server, so that which one a transaction gets is no accident.
fn in_transaction_mode(server: &Server) -> Bouncer {
    Bouncer::before(server, "pool_mode=transaction\ndefault_pool_size=1")
}

/// What an agent leaves is seen by another, on another connection of the pool, while its own lease lasts: no reset has
/// its turn between the two.
#[test]
fn in_transaction_mode_agents_see_each_other() {
    let Some(server) = a_server() else {
        return;
    };
    let bouncer = in_transaction_mode(&server);
    for (leave, seen) in [
        (
            "CREATE TEMP TABLE secret (x int)",
            "SELECT to_regclass('pg_temp.secret') IS NOT NULL",
        ),
        (
            "PREPARE secret AS SELECT 1",
            "SELECT EXISTS (SELECT 1 FROM pg_prepared_statements WHERE name = 'secret')",
        ),
        (
            "SET work_mem = '7MB'",
            "SELECT current_setting('work_mem') = '7MB'",
        ),
        (
            "SELECT pg_advisory_lock(7)",
            "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())",
        ),
    ] {
        let pool = blocking(&bouncer.url(), 2).build().unwrap();
        let (mut a, mut b) = (pool.lease("a").unwrap(), pool.lease("b").unwrap());
        a.batch_execute(leave).unwrap();
        assert!(sees(&mut b, seen), "{seen}");
    }
}

fn sees(client: &mut Client, what: &str) -> bool {
    // As one message, and nothing prepared: in this mode a prepared statement may be another connection's.
    let rows = client.simple_query(what).unwrap();
    rows.iter()
        .any(|row| matches!(row, postgres::SimpleQueryMessage::Row(row) if row.get(0) == Some("t")))
}

/// They outlive the connection of their agent, too: where it was closed, nothing was closed on the server.
#[test]
fn in_transaction_mode_what_an_agent_leaves_outlives_its_connection() {
    let Some(server) = a_server() else {
        return;
    };
    let bouncer = in_transaction_mode(&server);
    let pool = blocking(&bouncer.url(), 1).build().unwrap();
    let mut lease = pool.lease("a").unwrap();
    for leave in [
        "CREATE TEMP TABLE secret (x int)",
        "PREPARE secret AS SELECT 1",
        "SELECT pg_advisory_lock(7)",
    ] {
        lease.batch_execute(leave).unwrap();
    }
    leasepool::Lease::discard(lease);
    pool.close().unwrap();
    let mut other = Client::connect(&bouncer.url(), NoTls).unwrap();
    for seen in [
        "SELECT to_regclass('pg_temp.secret') IS NOT NULL",
        "SELECT EXISTS (SELECT 1 FROM pg_prepared_statements WHERE name = 'secret')",
    ] {
        assert!(sees(&mut other, seen), "{seen}");
    }
    // No client holds this lock any more, and none gets it.
    let locks = "SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory')";
    assert!(sees(&mut server.client(), locks));
    let free = "SELECT pg_try_advisory_lock(7)";
    assert!(!sees(&mut server.client(), free));
}

/// The typed error of the recipe below.
#[derive(Debug)]
struct NoSession;

impl std::fmt::Display for NoSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("connections share the server's sessions: set pool_mode=session in pgbouncer")
    }
}

impl std::error::Error for NoSession {}

/// A recipe for `on_open`: refuses a pooler that does not give each connection a session of its own.
///
/// One connection cannot tell: as long as it is alone, it gets the same session each time. So, for the first connection
/// of the pool, a second one is opened for a moment, and the two ask in turn who serves them. With sessions, each has
/// one answer, and they differ. It costs two round trips a round, once; pgbouncer needs room for one connection more.
fn sessions_only(
    url: &str,
) -> impl Fn(&mut Client) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + use<> {
    const ROUNDS: usize = 8;
    let (url, known) = (url.to_owned(), AtomicBool::new(false));
    move |client| {
        if known.load(SeqCst) {
            return Ok(());
        }
        let mut other = Client::connect(&url, NoTls)?;
        let (mut first, mut second) = (server_process(client)?, server_process(&mut other)?);
        for _ in 0..ROUNDS {
            let found = (server_process(client)?, server_process(&mut other)?);
            if found.0 == found.1 || found != (first, second) {
                return Err(Box::new(NoSession));
            }
            (first, second) = found;
        }
        known.store(true, SeqCst);
        Ok(())
    }
}

fn server_process(client: &mut Client) -> Result<Option<u32>, postgres::Error> {
    let rows = client.simple_query("SELECT pg_backend_pid()")?;
    Ok(rows.iter().find_map(|row| match row {
        postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
        _ => None,
    }))
}

#[test]
fn on_open_refuses_transaction_mode() {
    let Some(server) = a_server() else {
        return;
    };
    let pool = |url: &str, wait: Duration| {
        Pool::managed(manager(url))
            .name("postgres")
            .max_connections(8)
            .fds_per_connection(5)
            .lease_timeout(wait)
            .on_open(sessions_only(url))
            .settle(|client| client.batch_execute("ROLLBACK"))
            .reset(|client| client.batch_execute(RESET))
            .build()
            .unwrap()
    };
    for settings in [
        "pool_mode=transaction\ndefault_pool_size=1",
        "pool_mode=transaction\ndefault_pool_size=20",
        "pool_mode=transaction\ndefault_pool_size=20\nserver_round_robin=1",
        "pool_mode=statement\ndefault_pool_size=20",
    ] {
        let bouncer = Bouncer::before(&server, settings);
        // One connection that is alone is served by the same process each time: it cannot tell.
        let mut alone = Client::connect(&bouncer.url(), NoTls).unwrap();
        let pids = [(); 2].map(|()| server_process(&mut alone).unwrap());
        assert_eq!(pids[0], pids[1], "{settings}");
        let pool = pool(&bouncer.url(), Duration::from_millis(500));
        let refused = pool.lease("a").unwrap_err();
        assert!(matches!(refused, Error::Open { .. }), "{refused:?}");
        assert!(is_no_session(&refused), "{settings}: {refused:?}");
        // The caller does not wait for an attempt that has begun.
        eventually("none is open", || pool.stats().open == 0);
    }
    let bouncer = Bouncer::before(&server, "pool_mode=session");
    for url in [bouncer.url(), server.url()] {
        let pool = pool(&url, LONG);
        let leases: Vec<_> = (0..8).map(|agent| pool.lease(agent).unwrap()).collect();
        drop(leases);
        pool.close().unwrap();
    }
    // The second connection is gone.
    drop(bouncer);
    let mut watcher = server.client();
    eventually("no backend is left", || Server::backends(&mut watcher) == 0);
}

fn is_no_session(error: &Error) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if error.is::<NoSession>() {
            return true;
        }
        source = error.source();
    }
    false
}
