//! Making room, where agents have connections of their own: what is evicted is closed, and a few slots are kept
//! vacant, so that whoever comes next need not wait for that.
//! It takes no connection from anybody who uses it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::{Duration, Instant};

use super::{Permit, Shared, Stuck};
use crate::backend::{Backend, Ending};
use crate::error::Error;
use crate::gate::Gate;
use crate::permits::Claim;
use crate::registry::Kept;
use crate::slot::{self, TakenSlot};

/// One slot in so many is kept vacant.
const SPARE: usize = 8;

/// A vacant slot, for what opens a connection that is not lent. The slot goes back before the permit.
pub(crate) struct Room<'a, B: Backend> {
    _slot: TakenSlot<B>,
    _permit: Permit<'a, B>,
}

impl<B: Backend> Shared<B> {
    /// A vacant slot, waiting until `deadline` at most.
    pub(crate) fn room(&self, claim: Claim, deadline: Instant) -> Result<Room<'_, B>, Error> {
        loop {
            let permit = match self.free_permit() {
                Some(permit) => permit,
                None => self.permit(claim.clone(), Some(deadline))?,
            };
            let mut slot = self.any_slot()?;
            match self.vacate(&mut slot, Ending::Evicted) {
                Ok(()) => {
                    return Ok(Room {
                        _slot: slot,
                        _permit: permit,
                    });
                }
                Err(Stuck) => {
                    permit.pass_on();
                    self.strand_slot(slot);
                }
            }
        }
    }

    /// Closes every connection that is parked behind the gate, and every one that is idle. Whoever calls has
    /// passed the gate, and has a permit.
    pub(crate) fn close_belongings(&self, gate: &Arc<Kept<Gate>>, agent: &str) {
        for slot in self.cache.take_behind(gate) {
            self.vacate_and_return(slot, Ending::Faulty);
        }
        self.close_idle();
        // Somebody may have one in hand.
        self.wait_for_release(agent);
    }

    /// Waits until the agent's connection is closed that was evicted just before the agent came back: whoever has
    /// it in hand closes it, and if it is nobody's, we do. One that cannot be closed is not waited for long.
    pub(super) fn wait_for_release(&self, agent: &str) {
        const LOOK: Duration = Duration::from_millis(1);
        const LONGEST: Duration = Duration::from_secs(1);
        if self.gates.is_none() || self.backend.is_free(agent, Duration::ZERO) {
            return;
        }
        let begun = Instant::now();
        while !self.backend.is_free(agent, LOOK) && begun.elapsed() < LONGEST {
            self.close_idle();
        }
    }

    /// Whether there are fewer vacant slots than there should be, and nobody sees to it. Whoever gets `true`
    /// calls [`make_room`](Shared::make_room).
    pub(crate) fn wants_room(&self) -> bool {
        self.lacks_room() && !self.making_room.swap(true, AcqRel)
    }

    fn lacks_room(&self) -> bool {
        let max = self.options.max_connections;
        max - self.counters.open.load(Acquire).min(max) < max / SPARE
    }

    /// Closes what is missed least, until there are vacant slots enough.
    ///
    /// It takes no permit, so that nobody is refused for its sake. Whoever has a permit meanwhile and finds no
    /// slot looks again, until the one that is being vacated is there.
    pub(crate) fn make_room(&self) {
        while self.lacks_room() && !self.permits.is_closed() {
            match self.cache.take_least_missed() {
                Some(slot) => self.vacate_and_return(slot, Ending::Evicted),
                None => break,
            }
        }
        self.making_room.store(false, Release);
        self.wind_up_if_closed();
    }

    /// Closes what was evicted, and is nobody's. It takes no permit either.
    pub(super) fn close_idle(&self) {
        // All at once: r2d2 would give the same one again.
        let idle = std::iter::from_fn(|| slot::take(&self.slots));
        let idle: Vec<_> = idle.take(self.options.max_connections).collect();
        let (occupied, vacant): (Vec<_>, Vec<_>) =
            idle.into_iter().partition(|slot| slot.occupant.is_some());
        drop(vacant);
        for slot in occupied {
            self.vacate_and_return(slot, Ending::Evicted);
        }
        self.wind_up_if_closed();
    }

    /// Closes the connection in a slot, and gives the slot back. If it cannot be closed, whoever is given the
    /// slot finds that out, and has a permit to take out of circulation with it.
    fn vacate_and_return(&self, mut slot: TakenSlot<B>, ending: Ending) {
        let vacated = self.vacate(&mut slot, ending);
        drop(slot);
        drop(vacated);
    }

    /// What we had in hand as the pool was closed was not seen then.
    fn wind_up_if_closed(&self) {
        if self.permits.is_closed() {
            self.wind_up();
        }
    }

    /// Whether connections are open that are nobody's.
    pub(super) fn has_idle(&self) -> bool {
        let levels = self.cache.ledger.levels();
        let used = levels.lent + levels.parked + self.counters.stuck.load(Acquire);
        self.counters.open.load(Acquire) > used
    }
}
