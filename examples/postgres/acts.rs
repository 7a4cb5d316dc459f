//! The four acts: four ways to give an agent a connection for its turn.
//! What agents do with it, they do in all acts.

use std::num::NonZeroUsize;
use std::ops::DerefMut;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bb8_postgres::PostgresConnectionManager as AsyncManager;
use leasepool::{Lease, Pool};
use lru::LruCache;
use postgres::{Client, NoTls};
use r2d2_postgres::PostgresConnectionManager;

use crate::args::Args;
use crate::report::Report;
use crate::stage::{Fault, Stage, lock};

type Act = fn(Arc<Stage>, &Args) -> Result<Report, Fault>;

pub(crate) const ALL: [(&str, Act); 4] = [
    ("owned", owned),
    ("pinned", pinned),
    ("leased", leased),
    ("awaited", awaited),
];

/// How many sessions a server of the first two acts remembers.
const SESSIONS: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// How long the act `pinned` waits for a connection: long enough to see that none will come.
const PINNED_WAIT: Duration = Duration::from_secs(1);
/// How long a reset may take, and the question whether a connection still serves. The default is 500 ms, which a machine
/// that does much else beside may exceed; then a connection is replaced.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a connection must be rid of before another agent gets it. See the guide on servers.
const RESET: &str = "ROLLBACK; CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *; \
     SELECT pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP; DISCARD SEQUENCES";

// One turn. The setting is what policies of row-level security read: no other agent may find it.
const FOUND: &str = "SELECT coalesce(current_setting('app.agent', true), '')";
const SET: &str = "SELECT set_config('app.agent', $1, false)";
const SAY: &str = "INSERT INTO message (agent, body) VALUES ($1, 'hello')";
const HISTORY: &str = "SELECT id, body FROM message WHERE agent = $1 ORDER BY id DESC LIMIT 20";

/// Returns the agent whose setting it found, or nothing.
fn turn(client: &mut Client, agent: &str) -> Result<String, postgres::Error> {
    let found = client.query_one(FOUND, &[])?.get(0);
    client.execute(SET, &[&agent])?;
    client.execute(SAY, &[&agent])?;
    client.query(HISTORY, &[&agent])?;
    Ok(found)
}

async fn async_turn(
    client: &tokio_postgres::Client,
    agent: &str,
) -> Result<String, tokio_postgres::Error> {
    let found = client.query_one(FOUND, &[]).await?.get(0);
    client.execute(SET, &[&agent]).await?;
    client.execute(SAY, &[&agent]).await?;
    client.query(HISTORY, &[&agent]).await?;
    Ok(found)
}

/// Every session keeps a connection of its own.
fn owned(stage: Arc<Stage>, _: &Args) -> Result<Report, Fault> {
    let url = stage.url().to_owned();
    sessions(&stage, || Ok(Box::new(Client::connect(&url, NoTls)?)))
}

/// Every session keeps a guard of a pool.
fn pinned(stage: Arc<Stage>, args: &Args) -> Result<Report, Fault> {
    let pool = r2d2::Pool::builder()
        .max_size(args.connections as u32)
        .connection_timeout(PINNED_WAIT)
        .build(PostgresConnectionManager::new(stage.url().parse()?, NoTls))?;
    sessions(&stage, || Ok(pool.get()?))
}

/// Serves agents that keep what they are given for as long as the server remembers their sessions.
fn sessions<C, F>(stage: &Arc<Stage>, give: F) -> Result<Report, Fault>
where
    C: DerefMut<Target = Client> + Send,
    F: Fn() -> Result<C, Fault> + Sync,
{
    let sessions = Mutex::new(LruCache::new(SESSIONS));
    let report = stage.threads(|agent| {
        let session = {
            let mut sessions = lock(&sessions);
            let session = sessions.get_or_insert(agent.to_owned(), || Arc::new(Mutex::new(None)));
            Arc::clone(session)
        };
        let mut connection = lock(&session);
        let connection = match &mut *connection {
            Some(connection) => connection,
            none => none.insert(give()?),
        };
        Ok(turn(connection, agent)?)
    })?;
    let connected = |session: &Arc<Mutex<Option<C>>>| lock(session).is_some();
    let sessions = lock(&sessions);
    let held = sessions.iter().filter(|(_, session)| connected(session));
    Ok(report.with_sessions(held.count()))
}

/// Every turn leases a connection: `Pool::managed`.
fn leased(stage: Arc<Stage>, args: &Args) -> Result<Report, Fault> {
    let manager = PostgresConnectionManager::new(stage.url().parse()?, NoTls);
    let pool = Pool::managed(manager)
        .max_connections(args.connections)
        .fds_per_connection(5)
        .probe_timeout(PATIENCE)
        .settle(|client| client.batch_execute("ROLLBACK"))
        .reset(|client| client.batch_execute(RESET))
        .lease_timeout(Duration::from_secs(60))
        .build()?;
    let report = stage.threads(|agent| {
        let mut lease = pool.lease(agent)?;
        let found = turn(&mut lease, agent);
        Ok(found.inspect_err(|error| Lease::report(&lease, error))?)
    })?;
    let stats = pool.stats();
    pool.close()?;
    Ok(report.with_pool(&stats))
}

/// The same for tasks: `Pool::awaited`.
fn awaited(stage: Arc<Stage>, args: &Args) -> Result<Report, Fault> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let manager = AsyncManager::new_from_stringlike(stage.url(), NoTls)?;
    let pool = Pool::awaited(manager, runtime.handle().clone())
        .max_connections(args.connections)
        .fds_per_connection(1)
        .probe_timeout(PATIENCE)
        .settle(|client| Box::pin(client.batch_execute("ROLLBACK")))
        .reset(|client| Box::pin(client.batch_execute(RESET)))
        .lease_timeout(Duration::from_secs(60))
        .build()?;
    let report = stage.watched(|| {
        let tasks: Vec<_> = (0..args.threads)
            .map(|number| {
                let (stage, pool) = (Arc::clone(&stage), pool.clone());
                runtime.spawn(async move {
                    let mut draws = stage.draws(number);
                    while let Some(agent) = stage.next(&mut draws) {
                        let taken = async {
                            let lease = pool.lease_async(&agent).await?;
                            let found = async_turn(&lease, &agent).await;
                            Ok(found.inspect_err(|error| Lease::report(&lease, error))?)
                        };
                        stage.took(&agent, taken.await);
                    }
                })
            })
            .collect();
        for task in tasks {
            runtime.block_on(task)?;
        }
        Ok(())
    })?;
    let stats = pool.stats();
    pool.close()?;
    Ok(report.with_pool(&stats))
}
