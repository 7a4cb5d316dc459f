//! Passing an agent's gate, where agents have connections of their own: before the permit, so that whoever
//! waits for one agent takes no other's place.
//! Elsewhere there are no gates, and all of this is nothing.

use std::num::NonZero;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use crate::backend::Backend;
use crate::error::{Error, Wanted};
use crate::events;
use crate::gate::{self, Gate, Pass, Shut};
use crate::ledger::Entry;
use crate::permits::{Claim, Permits, Refusal};
use crate::registry::{Kept, Registry};
use crate::stats::count;

/// The pass of a borrower, and what is, or was last, parked for its agent. Both are nothing where agents share
/// connections.
pub(crate) struct Passed<B: Backend> {
    pub(crate) pass: Option<Pass>,
    pub(crate) entry: Option<Arc<Entry<B>>>,
}

type Found<B> = (Option<Arc<Entry<B>>>, Arc<Kept<Gate>>);

impl<B: Backend> Passed<B> {
    fn nothing() -> Self {
        Passed {
            pass: None,
            entry: None,
        }
    }

    fn new(pass: Pass, entry: Option<Arc<Entry<B>>>) -> Self {
        Passed {
            pass: Some(pass),
            entry,
        }
    }

    fn needs_door(&self) -> bool {
        self.pass.is_some() && self.entry.is_none()
    }
}

/// The right to open a connection, until it is dropped.
pub(crate) struct Door<'a>(&'a Permits);

impl Drop for Door<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

/// How long to wait for a door.
const KNOCK: Duration = Duration::from_millis(10);

/// How many connections may be opened at a time.
pub(super) fn doors() -> usize {
    let cores = std::thread::available_parallelism().map_or(2, NonZero::get);
    2 * cores
}

impl<B: Backend> Shared<B> {
    /// Passes the agent's gate, waiting until `deadline` (`None`: not at all).
    #[inline]
    pub(crate) fn pass(
        &self,
        agent: &str,
        asked_at: Instant,
        deadline: Option<Instant>,
        place: &'static Location<'static>,
    ) -> Result<Passed<B>, Error> {
        let Some(gates) = &self.gates else {
            return Ok(Passed::nothing());
        };
        let (entry, gate) = self.gate(gates, agent)?;
        if let Some(pass) = gate::try_pass(&gate) {
            return Ok(Passed::new(pass, entry));
        }
        let claim = Claim::new(agent, asked_at, place);
        let answer = events::wait(&self.options.name, agent, || {
            gate::pass(&gate, &claim, deadline)
        });
        let pass = self.passed(answer, claim)?;
        Ok(Passed::new(pass, self.cache.ledger.find(agent)))
    }

    /// The same, awaited.
    pub(crate) async fn pass_async(
        &self,
        agent: &str,
        asked_at: Instant,
        deadline: Instant,
        place: &'static Location<'static>,
    ) -> Result<Passed<B>, Error> {
        let Some(gates) = &self.gates else {
            return Ok(Passed::nothing());
        };
        let (entry, gate) = self.gate(gates, agent)?;
        if let Some(pass) = gate::try_pass(&gate) {
            return Ok(Passed::new(pass, entry));
        }
        let claim = Claim::new(agent, asked_at, place);
        let waiting = gate::pass_async(&gate, &claim, deadline);
        let answer = events::wait_async(&self.options.name, agent, waiting).await;
        let pass = self.passed(answer.map_err(Shut::Refused), claim)?;
        Ok(Passed::new(pass, self.cache.ledger.find(agent)))
    }

    fn gate(&self, gates: &Registry<Gate>, agent: &str) -> Result<Found<B>, Error> {
        // Whoever has a connection parked has its gate in use.
        if let Some(entry) = self.cache.ledger.find(agent)
            && let Some(gate) = entry.gate.clone()
        {
            return Ok((Some(entry), gate));
        }
        let gate = gates.get(&self.backend.belongings(agent)?, Gate::new);
        Ok((None, gate))
    }

    fn passed(&self, answer: Result<Pass, Shut>, claim: Claim) -> Result<Pass, Error> {
        let asked_at = claim.asked_at;
        let result = match answer {
            Ok(pass) => Ok(pass),
            Err(Shut::Own) => Err(Error::WaitsForItself {
                agent: claim.agent.as_ref().to_owned(),
            }),
            Err(Shut::Refused(Refusal::Closed)) => Err(Error::Closed),
            Err(Shut::Refused(Refusal::TimedOut { waiting })) => {
                let error = self.exhausted(Wanted::Agent, asked_at, waiting);
                count(&self.counters.timeouts);
                Err(error)
            }
        };
        if result.is_err() {
            self.waits.record(claim, false);
        }
        result
    }

    /// The right to open a connection, where agents have connections of their own and this one's is not parked.
    /// Files are opened a few at a time: SQLite opens them one by one, so more would only hold slots, in which
    /// connections of others could stay parked, while they wait for each other. `None` if there is no need, or
    /// if it takes too long: slow callbacks of some keep nobody from opening theirs.
    pub(crate) fn door(
        &self,
        passed: &Passed<B>,
        agent: &str,
        asked_at: Instant,
        place: &'static Location<'static>,
    ) -> Option<Door<'_>> {
        if !self.needs_door(passed) {
            return None;
        }
        let opened = match self.doors.acquire_free() {
            true => Ok(()),
            false => {
                let claim = Claim::new(agent, asked_at, place);
                self.doors.acquire(claim, Instant::now() + KNOCK)
            }
        };
        opened.ok().map(|()| Door(&self.doors))
    }

    /// The same, awaited.
    pub(crate) async fn door_async(
        &self,
        passed: &Passed<B>,
        agent: &str,
        asked_at: Instant,
        place: &'static Location<'static>,
    ) -> Option<Door<'_>> {
        if !self.needs_door(passed) {
            return None;
        }
        let opened = match self.doors.acquire_free() {
            true => Ok(()),
            false => {
                let claim = Claim::new(agent, asked_at, place);
                let until = Instant::now() + KNOCK;
                self.doors.acquire_async(claim, until).await
            }
        };
        opened.ok().map(|()| Door(&self.doors))
    }

    /// Whoever must wait for a permit waits there, in order.
    fn needs_door(&self, passed: &Passed<B>) -> bool {
        passed.needs_door() && self.permits.free() > 0
    }

    /// Gives back what is parked for others behind the same gate: they share what is there with `agent`.
    pub(crate) fn let_go_of_others(&self, gate: &Arc<Kept<Gate>>, agent: &str) {
        // Where it is named after the agent, it is the agent's alone.
        if **gate.key() != *agent {
            drop(self.cache.take_behind(gate));
        }
    }

    /// Lets nobody wait at a gate any more.
    pub(super) fn close_gates(&self) {
        for gate in self.gates.iter().flat_map(Registry::all) {
            gate.close();
        }
        self.doors.close();
    }
}
