//! Rooms: vacant slots for connections that are not lent. And an agent's database set aside, so that no connection to it
//! is open.
//! It opens nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use super::agent_lock::AgentLockGuard;
use super::backend::{Backend, CloseMode};
use super::request::Request;
use super::slot::TakenSlot;
use super::{Core, Permit, Stuck};
use crate::error::{Error, Wanted};
use crate::sync::semaphore::{Closed, Refusal};
use crate::sync::wait::block_until;

/// A vacant slot in hand. The slot goes back before the permit.
struct Room<'a, B: Backend> {
    slot: Option<TakenSlot<B>>,
    permit: Permit<'a, B>,
}

/// Rooms, and the lock of an agent whose database is closed.
pub(crate) struct SetAside<'a, B: Backend> {
    _rooms: Vec<Room<'a, B>>,
    _lock: Option<AgentLockGuard>,
}

impl<B: Backend> Core<B> {
    /// Takes `rooms` rooms. With `closed`, the agent's database is locked, and no connection to it is open.
    /// Blocks until the request's deadline, and as long as it takes to close the connections in the way.
    pub(crate) fn set_aside(
        &self,
        request: &Request<'_>,
        rooms: usize,
        closed: bool,
    ) -> Result<SetAside<'_, B>, Error> {
        self.check_origin()?;
        let taken = {
            let taking = pin!(async {
                let lock = if closed {
                    self.agent_lock(request).await?
                } else {
                    None
                };
                Ok((self.several_permits(rooms.max(1), request).await?, lock))
            });
            block_until(request.deadline(), taking)
        };
        // The request has left every queue when the error is made.
        let timed_out = || Err(self.timed_out(request, request.stage()));
        let (permits, lock) = taken.unwrap_or_else(timed_out)?;
        if let (Some(lock), Some(permit)) = (&lock, permits.first()) {
            self.close_database(permit, lock.key(), request)?;
        }
        let rooms = permits.into_iter().take(rooms);
        let rooms = rooms.map(|permit| self.room(permit, request));
        Ok(SetAside {
            _rooms: rooms.collect::<Result<_, _>>()?,
            _lock: lock,
        })
    }

    /// Takes `n` permits, all of them or none. Callers that want several take turns, so that no two wait for
    /// each other.
    async fn several_permits(
        &self,
        n: usize,
        request: &Request<'_>,
    ) -> Result<Vec<Permit<'_, B>>, Error> {
        request.set_stage(Wanted::Connection);
        let claim = request.claim(Arc::from(request.agent));
        let several = self.several.hold(|| claim.clone()).await;
        let _several = several.map_err(|Closed| Error::Closed)?;
        let mut permits = Vec::with_capacity(n);
        while permits.len() < n {
            permits.push(match self.permits.try_acquire(Instant::now()) {
                Ok(()) => Permit(self),
                Err(Refusal::Closed) => return Err(Error::Closed),
                Err(Refusal::Busy) => self.permit(claim.clone()).await?,
            });
        }
        Ok(permits)
    }

    /// Any slot, vacated. Blocks as long as it takes to close its connection.
    fn room<'a>(
        &'a self,
        permit: Permit<'a, B>,
        request: &Request<'_>,
    ) -> Result<Room<'a, B>, Error> {
        // The rule guarantees a slot to a permit holder.
        let Some(mut slot) = self.parking.lot.take_any() else {
            return Err(Error::Closed);
        };
        if let Err(Stuck) = self.vacate(&mut slot, CloseMode::Evict) {
            permit.pass_on();
            self.retire_stuck(slot);
            return Err(self.timed_out(request, Wanted::Connection));
        }
        Ok(Room {
            slot: Some(slot),
            permit,
        })
    }

    /// Closes idle connections to the database with this key, and waits until those that another permit
    /// holder has are closed, but no longer than until the request's deadline. The caller has the key's lock.
    fn close_database(
        &self,
        _permit: &Permit<'_, B>,
        key: &str,
        request: &Request<'_>,
    ) -> Result<(), Error> {
        while self.backend.is_open(key) {
            let lot = &self.parking.lot;
            let found = lot.take_matching(|slot, _| self.is_open_to(slot, key));
            let closed = match found {
                Some(mut slot) => {
                    let closed = self.vacate(&mut slot, CloseMode::Abandon).is_ok();
                    lot.put_back(slot);
                    closed
                }
                None => self.backend.wait_until_closed(key, request.deadline()),
            };
            if !closed {
                return Err(self.timed_out(request, Wanted::Agent));
            }
        }
        Ok(())
    }
}

impl<B: Backend> Drop for Room<'_, B> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            let lot = &self.permit.0.parking.lot;
            lot.put_back(slot);
        }
    }
}
