//! Where sessions are: all in one file, or each in a file of its own. It says what is asked of which file,
//! and holds no SQL.

use std::time::{Duration, Instant};

use leasepool::rusqlite::Connection;
use leasepool::web::Agent;
use leasepool::{Error, Pool};

use crate::fault::Fault;
use crate::store::{self, Found, Message, Session};

/// A search may read the whole index; it is not given the time to. Nor is a list that opens many files.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy)]
pub(crate) enum Sessions {
    InOneFile,
    /// Each in a file of its own.
    PerAgent,
}

impl Sessions {
    pub(crate) async fn history(
        &self,
        agent: Agent,
        before: i64,
        limit: i64,
    ) -> Result<Vec<Message>, Fault> {
        let session = agent.id()?;
        if !self.may_have(agent.pool(), session)? {
            return Ok(Vec::new());
        }
        // A short read through an index: quicker than the way to another thread.
        let lease = agent.lease_async().await?;
        Ok(store::history(&lease, session, before, limit)?)
    }

    /// The latest first. With a file for each, that holds within the list only: which sessions are in it
    /// is up to the folder.
    pub(crate) async fn list(
        &self,
        pool: &Pool,
        offset: i64,
        limit: i64,
    ) -> Result<Vec<Session>, Fault> {
        match self {
            Sessions::InOneFile => {
                let lease = pool.get_async().await?;
                Ok(store::sessions(&lease, offset, limit)?)
            }
            Sessions::PerAgent => {
                let pool = pool.clone();
                off_the_async_threads(move || list_files(&pool, offset, limit)).await
            }
        }
    }

    pub(crate) async fn search(
        &self,
        pool: &Pool,
        session: Option<String>,
        words: String,
    ) -> Result<Vec<Found>, Fault> {
        let agent = match (self, session) {
            (Sessions::InOneFile, _) => "search".to_owned(),
            (Sessions::PerAgent, Some(session)) => session,
            (Sessions::PerAgent, None) => return Err(Fault::Bad("session: which one")),
        };
        if !self.may_have(pool, &agent)? {
            return Ok(Vec::new());
        }
        let search = move |conn: &mut Connection| store::search(conn, &words);
        Ok(pool.agent(agent).within(TIMEOUT).run(search).await?)
    }

    /// Whether there was such a session.
    pub(crate) async fn delete(&self, agent: Agent) -> Result<bool, Fault> {
        let session = agent.id()?.to_owned();
        match self {
            Sessions::InOneFile => {
                let deleted = agent
                    .write_async(move |tx| store::delete(tx, &session))
                    .await?;
                agent.evict();
                Ok(deleted)
            }
            Sessions::PerAgent => {
                let pool = agent.pool().clone();
                off_the_async_threads(move || Ok(pool.agent(session).remove()?)).await
            }
        }
    }

    /// Not if it has no file. A lease would make one, and a client that asks for sessions that do not exist
    /// must not fill the disk.
    fn may_have(&self, pool: &Pool, session: &str) -> Result<bool, Fault> {
        match self {
            Sessions::InOneFile => Ok(true),
            Sessions::PerAgent => Ok(pool.agent(session).exists()?),
        }
    }
}

/// Opens a file for each session that it lists.
fn list_files(pool: &Pool, offset: i64, limit: i64) -> Result<Vec<Session>, Fault> {
    let (offset, limit) = (offset.unsigned_abs(), limit.unsigned_abs());
    let deadline = Instant::now() + TIMEOUT;
    let mut sessions = Vec::new();
    // The folder is closed again before files are opened.
    let ids = pool.agents()?.skip(offset as usize).take(limit as usize);
    for id in ids.collect::<Result<Vec<_>, _>>()? {
        let left = deadline.saturating_duration_since(Instant::now());
        let lease = pool.agent(id).within(left).lease()?;
        // None, if the session was deleted while its reply was on the way: the file was made anew.
        sessions.extend(store::sessions(&lease, 0, 1)?);
    }
    sessions.sort_by_key(|session| std::cmp::Reverse(session.last_at));
    Ok(sessions)
}

async fn off_the_async_threads<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending.
            Err(_) => Err(Fault::Pool(Error::Closed)),
        },
    }
}
