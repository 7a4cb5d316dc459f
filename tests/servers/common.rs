//! What the tests of several topics need.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bb8_postgres::PostgresConnectionManager as AsyncManager;
use leasepool::{Awaited, Builder, Managed, Pool};
use leasepool_postgres_server::{Server, installed};
use postgres::NoTls;
use r2d2_postgres::PostgresConnectionManager;

pub(crate) type Manager = PostgresConnectionManager<NoTls>;
pub(crate) type BlockingPool = Pool<Managed<Manager>>;

/// Longer than anything may take; only a failing test waits for so long.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Removes every trace of an agent, in one message. See docs/servers.md.
pub(crate) const RESET: &str = "ROLLBACK; CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; \
     UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES";

pub(crate) fn manager(url: &str) -> Manager {
    PostgresConnectionManager::new(url.parse().unwrap(), NoTls)
}

pub(crate) fn blocking(url: &str, connections: usize) -> Builder<Managed<Manager>> {
    Pool::managed(manager(url))
        .name("blocking")
        .max_connections(connections)
        .fds_per_connection(5)
        .settle(|client| client.batch_execute("ROLLBACK"))
        .reset(|client| client.batch_execute(RESET))
}

pub(crate) fn awaited(url: &str, connections: usize) -> Builder<Awaited<AsyncManager<NoTls>>> {
    let manager = AsyncManager::new_from_stringlike(url, NoTls).unwrap();
    Pool::awaited(manager, tokio::runtime::Handle::current())
        .name("awaited")
        .max_connections(connections)
        .fds_per_connection(1)
        .settle(|client| Box::pin(client.batch_execute("ROLLBACK")))
        .reset(|client| Box::pin(client.batch_execute(RESET)))
}

/// Waits until it is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < LONG, "still not so: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the pool's leases can all be had at once, and no more.
pub(crate) fn assert_whole<B: leasepool::Backend>(pool: &Pool<B>, connections: usize) {
    eventually("all leases have ended", || pool.stats().lent == 0);
    let leases: Vec<_> = (0..connections)
        .map(|i| pool.lease(format!("whole-{i}")).unwrap())
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    eventually("all leases have ended", || pool.stats().lent == 0);
    let stats = pool.stats();
    assert!(stats.open <= connections && stats.stuck == 0, "{stats:?}");
}

/// A server of the test's own; `None` where PostgreSQL is not installed.
pub(crate) fn a_server() -> Option<Server> {
    installed().then(|| Server::start(""))
}

/// The same, for a test that is async.
pub(crate) async fn a_server_awaited() -> Option<Server> {
    tokio::task::spawn_blocking(a_server).await.unwrap()
}

/// Says that the work is done, also when it panics.
pub(crate) struct Done<'a>(pub(crate) &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
