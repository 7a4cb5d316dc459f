//! The pools of r2d2 managers.
//! They only translate.

use r2d2::ManageConnection;

use crate::managed::Managed;
use crate::observe::call_site::CallSite;
use crate::pool::Pool;
use crate::pool::builder::Builder;

impl<M> Pool<Managed<M>>
where
    M: ManageConnection<Error: Send + Sync>,
{
    /// Starts to build a pool over the connections of an r2d2 manager: of PostgreSQL, MySQL, or whatever else has one.
    /// The feature `managed`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use leasepool::Pool;
    /// # #[derive(Debug)] struct Manager;
    /// # impl leasepool::r2d2::ManageConnection for Manager {
    /// #     type Connection = Vec<String>;
    /// #     type Error = std::io::Error;
    /// #     fn connect(&self) -> Result<Vec<String>, std::io::Error> { Ok(Vec::new()) }
    /// #     fn is_valid(&self, _: &mut Vec<String>) -> Result<(), std::io::Error> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut Vec<String>) -> bool { false }
    /// # }
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let manager = Manager;
    /// let pool = Pool::managed(manager)
    ///     .max_connections(8)
    ///     .fds_per_connection(1)
    ///     .reset(|connection| {
    ///         connection.clear();
    ///         Ok::<_, std::io::Error>(())
    ///     })
    ///     .build()?;
    /// let mut lease = pool.lease("alice")?;
    /// lease.push("hello".to_owned());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The manager, the callbacks and the connections are used and dropped on threads of the pool: never on the thread of a
    /// caller, and never by a lease that ends. Only `broken` is called where an error is reported.
    pub fn managed(manager: M) -> Builder<Managed<M>> {
        Builder::over(manager)
    }
}

impl<M> Builder<Managed<M>>
where
    M: ManageConnection<Error: Send + Sync>,
{
    /// Runs on every connection when it is opened, before its first lease. If it fails, that counts as a failed
    /// opening.
    ///
    /// Defaults to doing nothing.
    pub fn on_open<F, E>(mut self, on_open: F) -> Self
    where
        F: Fn(&mut M::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.own.hooks.on_open = Some(Box::new(move |c| on_open(c).map_err(Into::into)));
        self
    }

    /// Ends what a borrower may have left open and would hold up others while the connection is parked: for an SQL
    /// server, `ROLLBACK`. Runs at the end of each lease whose borrower used the connection, on a thread of the pool;
    /// the borrower does not wait. If it fails, the connection is closed.
    ///
    /// Defaults to doing nothing: then a transaction that an agent left open stays open until the next lease, and that lease
    /// takes some microseconds longer, in which the manager is asked whether the connection is broken.
    pub fn settle<F, E>(mut self, settle: F) -> Self
    where
        F: Fn(&mut M::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.own.hooks.settle = Some(Box::new(move |c| settle(c).map_err(Into::into)));
        self
    }

    /// Removes every trace of an agent, before another agent gets the connection. If it fails, the connection is closed
    /// and another opened. See [the guide](crate::guide::servers#settle-and-reset) for what to send to PostgreSQL.
    ///
    /// Defaults to opening a new connection for each change of agents, since nothing else is safe.
    pub fn reset<F, E>(mut self, reset: F) -> Self
    where
        F: Fn(&mut M::Connection) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.own.hooks.reset = Some(Box::new(move |c| reset(c).map_err(Into::into)));
        self
    }
}

mod run {
    use std::fmt::Display;
    use std::future::Future;

    use super::*;
    use crate::core::agent_name::AgentName;
    use crate::error::Error;
    use crate::pool::agent::Agent;

    impl<M> Pool<Managed<M>>
    where
        M: ManageConnection<Error: Send + Sync>,
    {
        /// Leases a connection, runs `work` on it, and ends the lease, all on a thread of the pool. This is how an async program uses a blocking client: its calls would block an async thread,
        /// or panic there.
        ///
        /// # Cancel safety
        /// If the future is dropped before `work` begins, it never does. Otherwise `work` runs to its end, and so does the
        /// lease: give the client a time-out of its own for statements.
        ///
        /// # Errors
        /// What `work` returns; those of [`Pool::lease`], [`Error::Panicked`] and [`Error::NoThread`], as its error type.
        #[track_caller]
        pub fn run<T, E, F>(
            &self,
            agent: impl Display,
            work: F,
        ) -> impl Future<Output = Result<T, E>> + Send
        where
            F: FnOnce(&mut M::Connection) -> Result<T, E> + Send + 'static,
            T: Send + 'static,
            E: From<Error> + Send + 'static,
        {
            let (agent, place) = (AgentName::of(agent), CallSite::here());
            async move { self.run_at(agent?.as_str(), None, place, work).await? }
        }
    }

    impl<M> Agent<Managed<M>>
    where
        M: ManageConnection<Error: Send + Sync>,
    {
        /// Runs `work` on a connection of the agent, outside the async threads: [`Pool::run`].
        ///
        /// After [`Agent::within`], the wait for a connection and `work` together take at most the time given there. When
        /// that has passed, the call returns [`Error::Interrupted`], and `work` goes on by itself.
        ///
        /// # Errors
        /// Those of [`Pool::run`].
        #[track_caller]
        pub fn run<T, E, F>(&self, work: F) -> impl Future<Output = Result<T, E>> + Send
        where
            F: FnOnce(&mut M::Connection) -> Result<T, E> + Send + 'static,
            T: Send + 'static,
            E: From<Error> + Send + 'static,
        {
            self.run_from(self.here(), work)
        }
    }
}
