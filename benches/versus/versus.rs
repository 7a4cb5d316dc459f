//! leasepool beside the libraries that use the same rusqlite, and so the same SQLite: all of them in one run, in turn.
//!
//! ```sh
//! cargo bench -p leasepool-versus --bench versus                            # everything: about an hour
//! cargo bench -p leasepool-versus --bench versus -- --what read --clients 32 --agents 2000
//! benches/versus/run                                                         # with libraries that bring another SQLite
//! ```
//!
//! Each library is used as its documentation advises: WAL, a busy timeout, statements from a cache, BEGIN IMMEDIATE for
//! writes.

mod acts;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use acts::{act, configure, create, read, write};
use deadpool_sqlite::Config;
use leasepool::rusqlite::{self, Connection};
use leasepool::{Database, Pool, Synchronous};
use r2d2_sqlite::SqliteConnectionManager;
use versus_workload::{Act, CONNECTIONS, Contender, How, PATIENCE, Stage, Sync, What, run};

fn opened(path: &PathBuf, sync: Sync) -> Connection {
    let connection = Connection::open(path).unwrap();
    configure(&connection, sync).unwrap();
    connection
}

fn leasepool(stage: &Stage, contender: &str) -> Pool {
    pool(stage, contender, true)
}

fn pool(stage: &Stage, contender: &str, read_lock: bool) -> Pool {
    Pool::builder(Database::file(create(stage, contender)))
        .max_connections(CONNECTIONS)
        .busy_timeout(PATIENCE)
        .lease_timeout(PATIENCE)
        .synchronous(match stage.sync {
            Sync::Normal => Synchronous::Normal,
            Sync::Full => Synchronous::Full,
        })
        .keep_read_lock(read_lock)
        .build()
        .unwrap()
}

fn r2d2(stage: &Stage, contender: &str) -> r2d2::Pool<SqliteConnectionManager> {
    let sync = stage.sync;
    let manager = SqliteConnectionManager::file(create(stage, contender))
        .with_init(move |connection| configure(connection, sync));
    let builder = r2d2::Pool::builder().max_size(CONNECTIONS as u32);
    builder.connection_timeout(PATIENCE).build(manager).unwrap()
}

fn deadpool(stage: &Stage, contender: &str) -> deadpool_sqlite::Pool {
    let sync = stage.sync;
    let config = Config::new(create(stage, contender));
    let builder = config.builder(deadpool_sqlite::Runtime::Tokio1).unwrap();
    let pool = builder.max_size(CONNECTIONS).build().unwrap();
    stage.runtime.block_on(async {
        let mut all = Vec::new();
        for _ in 0..CONNECTIONS {
            let connection = pool.get().await.unwrap();
            let configured = connection.interact(move |connection| configure(connection, sync));
            configured.await.unwrap().unwrap();
            all.push(connection);
        }
    });
    pool
}

fn tokio_rusqlite(stage: &Stage, contender: &'static str, connections: usize) -> Contender {
    let (path, sync) = (create(stage, contender), stage.sync);
    let connections: Arc<Vec<_>> = Arc::new(stage.runtime.block_on(async {
        let mut opened = Vec::new();
        for _ in 0..connections {
            let connection = tokio_rusqlite::Connection::open(&path).await.unwrap();
            let configured = connection.call(move |connection| configure(connection, sync));
            configured.await.unwrap();
            opened.push(connection);
        }
        opened
    }));
    let turn = AtomicUsize::new(0);
    Contender::tasks(contender, move |what| {
        let next = turn.fetch_add(1, Relaxed) % connections.len();
        let connection = connections[next].clone();
        async move {
            let done = connection.call(move |connection| act(connection, what));
            done.await.unwrap();
        }
    })
    // It has nothing to be checked out.
    .cannot(&[What::Checkout])
}

fn contenders(stage: &Stage) -> Vec<Contender> {
    let mut contenders = Vec::new();
    {
        let name = "leasepool, threads";
        let pool = leasepool(stage, name);
        contenders.push(Contender::threads(name, move |what| match what {
            Act::Checkout => drop(pool.lease("agent").unwrap()),
            Act::Read { agent } => _ = read(&pool.lease(agent).unwrap(), agent).unwrap(),
            Act::Write { agent, message } => {
                let write = pool.write(agent, move |tx| write(tx, agent, message));
                write.unwrap();
            }
            Act::Turn { agent, message } => {
                let write = pool.write(agent, move |tx| write(tx, agent, message));
                write.unwrap();
                read(&pool.lease(agent).unwrap(), agent).unwrap();
            }
        }));
    }
    {
        let name = "leasepool, threads, no read lock";
        let pool = pool(stage, name, false);
        let reads = move |what| match what {
            Act::Read { agent } => _ = read(&pool.lease(agent).unwrap(), agent).unwrap(),
            other => unreachable!("{other:?}"),
        };
        contenders.push(Contender::threads(name, reads).cannot(&[
            What::Checkout,
            What::Write,
            What::Turn,
            What::Mix,
        ]));
    }
    {
        let name = "leasepool, threads, get";
        let pool = leasepool(stage, name);
        let all = pool.anonymous();
        contenders.push(Contender::threads(name, move |what| match what {
            Act::Checkout => drop(pool.get().unwrap()),
            Act::Read { agent } => _ = read(&pool.get().unwrap(), agent).unwrap(),
            Act::Write { agent, message } => {
                all.write(move |tx| write(tx, agent, message)).unwrap();
            }
            Act::Turn { agent, message } => {
                all.write(move |tx| write(tx, agent, message)).unwrap();
                read(&pool.get().unwrap(), agent).unwrap();
            }
        }));
    }
    {
        let name = "leasepool, tasks";
        let pool = leasepool(stage, name);
        contenders.push(Contender::tasks(name, move |what| {
            let pool = pool.clone();
            async move {
                let read = async |agent: i64| {
                    let lease = pool.lease_async(agent).await.unwrap();
                    read(&lease, agent).unwrap();
                };
                let write = async |agent: i64, message: i64| {
                    let done = pool.write_async(agent, move |tx| write(tx, agent, message));
                    done.await.unwrap();
                };
                match what {
                    Act::Checkout => drop(pool.lease_async("agent").await.unwrap()),
                    Act::Read { agent } => read(agent).await,
                    Act::Write { agent, message } => write(agent, message).await,
                    Act::Turn { agent, message } => {
                        write(agent, message).await;
                        read(agent).await;
                    }
                }
            }
        }));
    }
    {
        let name = "leasepool, tasks, run";
        let pool = leasepool(stage, name);
        contenders.push(Contender::tasks(name, move |what| {
            let pool = pool.clone();
            async move {
                let id = match what {
                    Act::Checkout => 0,
                    Act::Read { agent } | Act::Write { agent, .. } | Act::Turn { agent, .. } => {
                        agent
                    }
                };
                let done = pool.run(id, move |connection| act(connection, what));
                done.await.unwrap();
            }
        }));
    }
    {
        let name = "r2d2_sqlite, threads";
        let pool = r2d2(stage, name);
        contenders.push(Contender::threads(name, move |what| {
            act(&mut pool.get().unwrap(), what).unwrap();
        }));
    }
    {
        let name = "r2d2_sqlite, spawn_blocking";
        let pool = r2d2(stage, name);
        contenders.push(Contender::tasks(name, move |what| {
            let pool = pool.clone();
            async move {
                let done = tokio::task::spawn_blocking(move || act(&mut pool.get().unwrap(), what));
                done.await.unwrap().unwrap();
            }
        }));
    }
    {
        let name = "deadpool-sqlite";
        let pool = deadpool(stage, name);
        contenders.push(Contender::tasks(name, move |what| {
            let pool = pool.clone();
            async move {
                let connection = pool.get().await.unwrap();
                if what != Act::Checkout {
                    let done = connection.interact(move |connection| act(connection, what));
                    done.await.unwrap().unwrap();
                }
            }
        }));
    }
    contenders.push(tokio_rusqlite(stage, "tokio-rusqlite, 1", 1));
    contenders.push(tokio_rusqlite(
        stage,
        "tokio-rusqlite, 8 in turn",
        CONNECTIONS,
    ));
    {
        let name = "open for each request";
        let (path, sync) = (create(stage, name), stage.sync);
        contenders.push(Contender::threads(name, move |what| {
            act(&mut opened(&path, sync), what).unwrap();
        }));
    }
    {
        let name = "one connection, one thread";
        let mut connection = opened(&create(stage, name), stage.sync);
        contenders.push(Contender {
            name,
            how: How::Alone(Box::new(move |what| act(&mut connection, what).unwrap())),
            cannot: &[What::Checkout],
        });
    }
    contenders
}

fn main() {
    run(contenders);
}
