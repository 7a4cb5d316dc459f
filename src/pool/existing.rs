//! Existing: whether an agent has a database of its own, without making one.
//! It opens nothing.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use super::agent::Agent;
use crate::core::backend::Backend;
use crate::core::request::Request;
use crate::error::{Error, Wanted};
use crate::observe::call_site::CallSite;
use crate::sqlite::Sqlite;
use crate::sync::wait::await_until;

impl Agent {
    /// Whether the agent has a file on this machine, whichever node [owns](crate::Database::owner) the agent. (A lease
    /// would make one, or have it [brought](crate::Database::on_missing); this does not.)
    ///
    /// # Errors
    /// [`Error::Unsupported`] if agents have no files of their own.
    ///
    /// # Blocking
    /// For as long as the file system takes to look.
    pub fn exists(&self) -> Result<bool, Error> {
        let agent = self.borrower()?;
        self.pool().shared().core.backend.has_file(agent)
    }

    /// Like [`Agent::exists`], for async code: a thread of the pool looks, unless the agent's connection is parked.
    ///
    /// # Errors
    /// Those of [`Agent::exists`]; [`Error::Exhausted`] if the file system does not answer within `lease_timeout`;
    /// [`Error::NoThread`] if no thread can be started.
    #[track_caller]
    pub fn exists_async(&self) -> impl Future<Output = Result<bool, Error>> + Send {
        self.look(self.here(), true, Sqlite::has_file)
    }

    /// Refuses an agent without a file.
    #[cfg(any(feature = "axum", feature = "actix"))]
    pub(crate) async fn check_existing(&self) -> Result<(), Error> {
        self.look(self.place(), (), Sqlite::check_existing).await
    }

    /// Lets a thread of the pool look at the file system, unless a connection to a file of the agent's own is parked for
    /// it: then the answer is `parked`.
    async fn look<T: Send + 'static>(
        &self,
        place: CallSite,
        parked: T,
        look: fn(&Sqlite, &str) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let core = &self.pool().shared().core;
        core.check_origin()?;
        let agent = self.borrower()?;
        if core.backend.is_per_agent() && core.is_parked(agent) {
            return Ok(parked);
        }
        let request = Request::new(agent, Some(self.wait()), place).awaiting_for_a_thread();
        let (theirs, agent) = (Arc::clone(core), agent.to_owned());
        let answer = core
            .workers()
            .hand_over(move || look(&theirs.backend, &agent));
        let answer = pin!(answer.map_err(Error::no_thread)?);
        let answer = await_until(request.deadline(), answer);
        match self.pool().shared().in_time(answer).await {
            Some(answer) => answer,
            None => Err(core.given_up(&request, Wanted::Opening)),
        }
    }
}
