//! Closed means closed, for async clients, too: a connection counts until its socket is gone.
//!
//! The client of tokio-postgres is a handle. A task that its manager has spawned owns the socket, and goes on until the server
//! has answered what was asked last. So the manager that comes with bb8 leaves sockets behind, and the one here does not.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::time::Duration;

use leasepool::{Awaited, Builder, Lease, Pool};
use tokio_postgres::{Client, Config, Error, NoTls};

use crate::common::{RESET, a_server_awaited, assert_whole, awaited};
use crate::server::Server;

/// A manager whose connections are closed when their drop returns.
struct Closing {
    config: Config,
    sockets: Arc<Sockets>,
}

/// How many sockets there are, and were at most.
#[derive(Default)]
struct Sockets {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// One socket counts.
struct Counted(Arc<Sockets>);

impl Counted {
    fn new(sockets: &Arc<Sockets>) -> Self {
        let now = sockets.now.fetch_add(1, SeqCst) + 1;
        sockets.most.fetch_max(now, SeqCst);
        Counted(Arc::clone(sockets))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

struct Connection {
    client: Client,
    task: tokio::task::AbortHandle,
    /// Disconnected when the task is gone.
    gone: mpsc::Receiver<()>,
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The pool drops connections on threads of its own, where this may wait.
impl Drop for Connection {
    fn drop(&mut self) {
        assert!(
            tokio::task::try_id().is_none(),
            "dropped in a task, which must not wait"
        );
        self.task.abort();
        let _ = self.gone.recv();
    }
}

impl leasepool::bb8::ManageConnection for Closing {
    type Connection = Connection;
    type Error = Error;

    async fn connect(&self) -> Result<Connection, Error> {
        let counted = Counted::new(&self.sockets);
        let (client, connection) = self.config.connect(NoTls).await?;
        let (sender, gone) = mpsc::channel();
        // They are dropped in this order, also if the task never runs.
        let owned = (connection, (counted, sender));
        let task = tokio::spawn(async move {
            let (connection, _last) = owned;
            let _ = connection.await;
        });
        Ok(Connection {
            client,
            task: task.abort_handle(),
            gone,
        })
    }

    async fn is_valid(&self, connection: &mut Connection) -> Result<(), Error> {
        connection.simple_query("").await.map(drop)
    }

    fn has_broken(&self, connection: &mut Connection) -> bool {
        connection.is_closed()
    }
}

fn closing(url: &str, connections: usize) -> (Builder<Awaited<Closing>>, Arc<Sockets>) {
    let sockets = Arc::new(Sockets::default());
    let manager = Closing {
        config: url.parse().unwrap(),
        sockets: Arc::clone(&sockets),
    };
    let pool = Pool::awaited(manager, tokio::runtime::Handle::current())
        .max_connections(connections)
        .fds_per_connection(1)
        .settle(|client| Box::pin(client.batch_execute("ROLLBACK")))
        .reset(|client| Box::pin(client.batch_execute(RESET)));
    (pool, sockets)
}

const OPEN_TIMEOUT: Duration = Duration::from_millis(200);
/// Much longer than that.
const SLOW: &str = "SELECT pg_sleep(30)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_opening_is_given_up_is_gone() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let (pool, sockets) = closing(&server.url(), 1);
    let pool = pool
        .on_open(|client| Box::pin(client.batch_execute(SLOW)))
        .open_timeout(OPEN_TIMEOUT)
        .build()
        .unwrap();
    for _ in 0..5 {
        assert!(pool.lease_async("a").await.is_err());
    }
    assert_eq!(sockets.most.load(SeqCst), 1);
    tokio::task::spawn_blocking(|| drop((pool, server)))
        .await
        .unwrap();
}

/// Why the manager above exists: with bb8's own, each of these leaves a socket behind. No pool can see that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bb8_postgres_leaves_sockets_behind() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let pool = awaited(&server.url(), 1)
        .on_open(|client| Box::pin(client.batch_execute(SLOW)))
        .open_timeout(OPEN_TIMEOUT)
        .build()
        .unwrap();
    for _ in 0..5 {
        assert!(pool.lease_async("a").await.is_err());
    }
    let backends = tokio::task::spawn_blocking(move || {
        let backends = Server::backends(&mut server.client());
        drop((pool, server));
        backends
    });
    assert!(backends.await.unwrap() > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_replaced_count_until_they_are_gone() {
    let Some(server) = a_server_awaited().await else {
        return;
    };
    let (pool, sockets) = closing(&server.url(), 2);
    let pool = pool
        // Now and then it fails, or panics, with a connection in hand.
        .on_open({
            let opened = AtomicUsize::new(0);
            move |client: &mut Connection| {
                let turn = opened.fetch_add(1, SeqCst);
                Box::pin(async move {
                    client.simple_query("").await?;
                    assert!(turn % 7 != 3, "on purpose");
                    match turn % 7 {
                        5 => client.batch_execute("SELECT * FROM nowhere").await,
                        _ => Ok(()),
                    }
                })
            }
        })
        .build()
        .unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|worker| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for turn in 0..25 {
                    let lease = pool.lease_async(worker * 3 + turn % 5).await.unwrap();
                    lease.simple_query("SELECT 1").await.unwrap();
                    Lease::discard(lease);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(pool.stats().opens > 50, "{:?}", pool.stats());
    assert_eq!(sockets.most.load(SeqCst), 2);
    tokio::task::spawn_blocking(move || {
        assert_whole(&pool, 2);
        pool.close().unwrap();
        assert_eq!(sockets.now.load(SeqCst), 0);
        drop(server);
    })
    .await
    .unwrap();
}
