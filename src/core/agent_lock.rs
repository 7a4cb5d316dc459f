//! AgentLock: where agents have connections of their own, the right to use an agent's database. One borrower at
//! a time holds it; a borrower that waits for it holds no permit that others could use.
//! It knows no connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::observe::claim::Claim;
use crate::sync::keyed_map::KeyedEntry;
use crate::sync::semaphore::{Closed, Refusal, Semaphore};

pub(crate) struct AgentLock(Semaphore<Claim>);

/// The agent's database is the holder's alone. Dropping it lets the next one have it.
pub(crate) struct AgentLockGuard(Arc<KeyedEntry<AgentLock>>);

impl AgentLock {
    pub(crate) fn new(overtaking: Duration) -> Self {
        AgentLock(Semaphore::new(1, overtaking))
    }

    pub(crate) fn semaphore(&self) -> &Semaphore<Claim> {
        &self.0
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

    pub(crate) fn key(&self) -> &str {
        self.0.key()
    }
}

impl Drop for AgentLockGuard {
    fn drop(&mut self) {
        self.0.0.release(Instant::now());
    }
}
