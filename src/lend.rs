//! Lend: the lease algorithm, one step after the other; blocking and awaited.
//! It moves no connection itself: `Shared` does.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::Error;
use crate::lease::Lease;
use crate::offload::off_thread;
use crate::permits::Claim;
use crate::shared::{Need, Permit, Shared, Stuck};

/// Longest id of an agent, in bytes.
const MAX_AGENT_LEN: usize = 1024;

/// For a caller that may block. `wait`: for how long to wait for its turn; `None`: not at all.
#[inline]
pub(crate) fn lend<B: Backend>(
    shared: &Arc<Shared<B>>,
    agent: &str,
    wait: Option<Duration>,
    place: &'static Location<'static>,
) -> Result<Lease<B>, Error> {
    check_agent(agent)?;
    let asked_at = Instant::now();
    let deadline = wait.map(|wait| asked_at + wait);
    loop {
        let (permit, now) = match shared.free_permit() {
            Some(permit) => (permit, asked_at),
            None => {
                let claim = Claim::new(agent, asked_at, place);
                (shared.permit(claim, deadline)?, Instant::now())
            }
        };
        let (lease, need) = begin(shared, permit, agent, now, place)?;
        if let Need::Nothing = need {
            return Ok(lease.ready());
        }
        match finish(lease, need, now)? {
            Some(lease) => return Ok(lease),
            None => continue,
        }
    }
}

/// The same for a caller that may not block: it awaits its turn, and what may do I/O (to open a
/// connection) is done on another thread.
pub(crate) async fn lend_async<B: Backend>(
    shared: &Arc<Shared<B>>,
    agent: &str,
    wait: Duration,
    place: &'static Location<'static>,
) -> Result<Lease<B>, Error> {
    check_agent(agent)?;
    let asked_at = Instant::now();
    let deadline = asked_at + wait;
    loop {
        let (permit, now) = match shared.free_permit() {
            Some(permit) => (permit, asked_at),
            None => {
                let claim = Claim::new(agent, asked_at, place);
                let permit = shared.permit_async(claim, deadline).await?;
                (permit, Instant::now())
            }
        };
        let (lease, need) = begin(shared, permit, agent, now, place)?;
        if let Need::Nothing = need {
            return Ok(lease.ready());
        }
        match off_thread(move || finish(lease, need, now)).await? {
            Some(lease) => return Ok(lease),
            None => continue,
        }
    }
}

/// Makes a lease of a permit, with the agent's own connection or any other, and says what is still
/// to be done to it. Never blocks.
#[inline]
fn begin<B: Backend>(
    shared: &Arc<Shared<B>>,
    permit: Permit<'_, B>,
    agent: &str,
    now: Instant,
    place: &'static Location<'static>,
) -> Result<(Lease<B>, Need), Error> {
    shared.refresh(now);
    let (entry, slot, hit) = match shared.cache.take(agent, now, place) {
        Some((entry, slot)) => (entry, slot, true),
        None => {
            let slot = shared.any_slot()?;
            (
                shared.cache.admit(agent, slot.index, now, place),
                slot,
                false,
            )
        }
    };
    permit.pass_on();
    let mut lease = Lease::unready(shared, entry, slot);
    let (agent, slot) = lease.parts();
    let need = shared.inspect(agent, slot, now, hit);
    Ok((lease, need))
}

/// Gives the lease what it needs. `None`: its old connection could not be closed, and is out of
/// circulation.
fn finish<B: Backend>(
    mut lease: Lease<B>,
    need: Need,
    now: Instant,
) -> Result<Option<Lease<B>>, Error> {
    if let Need::Connection(ending) = need {
        let shared = Arc::clone(lease.shared());
        let (agent, slot) = lease.parts();
        if let Err(Stuck) = shared.renew(agent, slot, now, ending)? {
            lease.strand();
            return Ok(None);
        }
    }
    Ok(Some(lease.ready()))
}

pub(crate) fn check_agent(agent: &str) -> Result<(), Error> {
    let reason = match agent.len() {
        0 => "it is empty",
        1..=MAX_AGENT_LEN => return Ok(()),
        _ => "it is longer than 1024 bytes",
    };
    Err(Error::InvalidAgent { reason })
}
