//! Lend: the lease algorithm, one step after the other; blocking and awaited.
//! It moves no connection itself: `Shared` does.

use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::Backend;
use crate::error::Error;
use crate::gate::Pass;
use crate::lease::Lease;
use crate::offload::off_thread;
use crate::permits::Claim;
use crate::shared::{Need, Passed, Permit, Shared, Stuck};

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
    let mut passed = shared.pass(agent, asked_at, deadline, place)?;
    if let Some(pass) = &passed.pass {
        pass.note_thread();
    }
    // Who may not wait takes what there is.
    let _door = deadline.and_then(|_| shared.door(&passed, agent, asked_at, place));
    loop {
        let (permit, now) = match shared.free_permit() {
            Some(permit) => (permit, asked_at),
            None => {
                let claim = Claim::new(agent, asked_at, place);
                (shared.permit(claim, deadline)?, Instant::now())
            }
        };
        let (lease, need) = begin(shared, permit, &mut passed, agent, now, place)?;
        if let Need::Nothing = need {
            return Ok(lease.ready());
        }
        match finish(lease, need, now)? {
            Ok(lease) => return Ok(lease),
            Err(again) => passed.pass = again,
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
    let mut passed = shared.pass_async(agent, asked_at, deadline, place).await?;
    let _door = shared.door_async(&passed, agent, asked_at, place).await;
    loop {
        let (permit, now) = match shared.free_permit() {
            Some(permit) => (permit, asked_at),
            None => {
                let claim = Claim::new(agent, asked_at, place);
                let permit = shared.permit_async(claim, deadline).await?;
                (permit, Instant::now())
            }
        };
        let (lease, need) = begin(shared, permit, &mut passed, agent, now, place)?;
        if let Need::Nothing = need {
            return Ok(lease.ready());
        }
        match off_thread(move || finish(lease, need, now)).await? {
            Ok(lease) => return Ok(lease),
            Err(again) => passed.pass = again,
        }
    }
}

/// Makes a lease of a permit, with the agent's own connection or any other, and says what is still
/// to be done to it. Never blocks.
#[inline]
fn begin<B: Backend>(
    shared: &Arc<Shared<B>>,
    permit: Permit<'_, B>,
    passed: &mut Passed<B>,
    agent: &str,
    now: Instant,
    place: &'static Location<'static>,
) -> Result<(Lease<B>, Need), Error> {
    shared.refresh(now);
    let found = passed.entry.take().and_then(|entry| {
        let slot = shared.cache.take_from(&entry, now, place)?;
        Some((entry, slot))
    });
    let (entry, slot, hit) = match found.or_else(|| shared.cache.take(agent, now, place)) {
        Some((entry, slot)) => (entry, slot, true),
        None => {
            let gate = passed.pass.as_ref().map(Pass::gate);
            if let Some(gate) = gate {
                shared.let_go_of_others(gate, agent);
                (shared.hooks.missed)(shared);
            }
            let slot = shared.any_slot()?;
            let entry = shared.cache.admit(agent, gate, slot.index, now, place);
            (entry, slot, false)
        }
    };
    permit.pass_on();
    let mut lease = Lease::unready(shared, entry, slot, passed.pass.take());
    let (agent, slot) = lease.parts();
    let need = shared.inspect(agent, slot, now, hit);
    Ok((lease, need))
}

/// Gives the lease what it needs. `Err` within: its old connection could not be closed, and is out of
/// circulation; the pass is there to begin again with.
fn finish<B: Backend>(
    mut lease: Lease<B>,
    need: Need,
    now: Instant,
) -> Result<Result<Lease<B>, Option<Pass>>, Error> {
    if let Need::Connection(ending) = need {
        let shared = Arc::clone(lease.shared());
        let (agent, slot) = lease.parts();
        if let Err(Stuck) = shared.renew(agent, slot, now, ending)? {
            return Ok(Err(lease.strand()));
        }
    }
    Ok(Ok(lease.ready()))
}

pub(crate) fn check_agent(agent: &str) -> Result<(), Error> {
    let reason = match agent.len() {
        0 => "it is empty",
        1..=MAX_AGENT_LEN => return Ok(()),
        _ => "it is longer than 1024 bytes",
    };
    Err(Error::InvalidAgent { reason })
}
