//! AgentLock: the right to use an agent's database, where each agent has its own, which one borrower at a time holds; or
//! else, the agent's quota of leases.
//! It knows no connections. A borrower that waits for it holds no permit that others could use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Core;
use super::backend::Backend;
use crate::error::Error;
use crate::observe::claim::Claim;
use crate::sync::keyed_map::{KeyedEntry, KeyedMap};
use crate::sync::semaphore::{Closed, Refusal, Semaphore};

pub(crate) struct AgentLock(Semaphore<Claim>);

/// Its holder alone uses the agent's database, or has one lease of the quota. Dropping it lets the next borrower in.
pub(crate) struct AgentLockGuard(Arc<KeyedEntry<AgentLock>>);

/// The locks in use, each for so many borrowers at a time.
pub(crate) struct AgentLocks {
    by_key: KeyedMap<AgentLock>,
    borrowers: usize,
    overtaking: Duration,
}

impl AgentLocks {
    pub(crate) fn new(borrowers: usize, overtaking: Duration) -> Self {
        AgentLocks {
            by_key: KeyedMap::new(),
            borrowers,
            overtaking,
        }
    }

    pub(crate) fn get(&self, key: &str) -> Arc<KeyedEntry<AgentLock>> {
        let new = || AgentLock(Semaphore::new(self.borrowers, self.overtaking));
        self.by_key.get(key, new)
    }

    pub(crate) fn all(&self) -> Vec<Arc<KeyedEntry<AgentLock>>> {
        self.by_key.all()
    }
}

impl AgentLock {
    pub(crate) fn semaphore(&self) -> &Semaphore<Claim> {
        &self.0
    }
}

impl<B: Backend> Core<B> {
    /// Where each agent has its own database: the key of the one that the lock is for.
    #[inline]
    pub(super) fn database_of<'a>(&self, lock: Option<&'a AgentLockGuard>) -> Option<&'a str> {
        lock.filter(|_| self.backend.is_per_agent())
            .map(AgentLockGuard::key)
    }

    /// The key of the agent's database. The agent's entry remembers it, if the agent is known.
    pub(crate) fn lock_key(&self, agent: &str) -> Result<Arc<str>, Error> {
        let entry = self.parking.lot.find(agent);
        match entry.as_ref().and_then(|entry| entry.lock.as_ref()) {
            Some(lock) => Ok(Arc::clone(lock.key())),
            None => Ok(Arc::from(self.backend.lock_key(agent)?)),
        }
    }

    /// The same for a caller that awaits: the user's function runs on a worker.
    pub(crate) async fn lock_key_async(&self, agent: &str) -> Result<Arc<str>, Error> {
        let core = self.this.upgrade().filter(|_| self.backend.asks_user());
        let Some(core) = core.filter(|_| self.parking.lot.find(agent).is_none()) else {
            return self.lock_key(agent);
        };
        let agent = agent.to_owned();
        let asked = self.workers.hand_over(move || core.lock_key(&agent));
        asked.map_err(Error::no_thread)?.await
    }
}

impl AgentLockGuard {
    pub(crate) fn try_lock(
        lock: &Arc<KeyedEntry<AgentLock>>,
        now: Instant,
    ) -> Result<Self, Refusal> {
        lock.0.try_acquire(now)?;
        Ok(AgentLockGuard(Arc::clone(lock)))
    }

    pub(crate) async fn lock(
        lock: &Arc<KeyedEntry<AgentLock>>,
        claim: Claim,
    ) -> Result<Self, Closed> {
        lock.0.acquire(claim).await?;
        Ok(AgentLockGuard(Arc::clone(lock)))
    }

    /// The key of the agent, or of its database where each agent has its own.
    pub(super) fn key(&self) -> &str {
        self.0.key()
    }
}

impl Drop for AgentLockGuard {
    fn drop(&mut self) {
        self.0.0.release(Instant::now());
    }
}
