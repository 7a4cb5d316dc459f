//! The pools of bb8 managers.
//! They only translate.

use std::fmt::Display;
use std::future::Future;
use std::sync::Arc;

use bb8::ManageConnection;
use tokio::runtime::Handle;

use crate::core::agent_name::AgentName;
use crate::error::Error;
use crate::managed::{Awaited, AwaitedCallback, Work};
use crate::observe::call_site::CallSite;
use crate::pool::Pool;
use crate::pool::agent::Agent;
use crate::pool::builder::Builder;

impl<M> Pool<Awaited<M>>
where
    M: ManageConnection<Error: std::error::Error + Sync>,
{
    /// Starts to build a pool over the connections of a bb8 manager. Its work runs on `runtime`, which must be
    /// multi-threaded, or be running a task whenever the pool is used. The feature `bb8`.
    ///
    /// ```
    /// # use leasepool::Pool;
    /// # struct Manager;
    /// # impl leasepool::bb8::ManageConnection for Manager {
    /// #     type Connection = Vec<String>;
    /// #     type Error = std::io::Error;
    /// #     async fn connect(&self) -> Result<Vec<String>, std::io::Error> { Ok(Vec::new()) }
    /// #     async fn is_valid(&self, _: &mut Vec<String>) -> Result<(), std::io::Error> { Ok(()) }
    /// #     fn has_broken(&self, _: &mut Vec<String>) -> bool { false }
    /// # }
    /// # fn main() -> Result<(), leasepool::Error> {
    /// # let manager = Manager;
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let pool = Pool::awaited(manager, tokio::runtime::Handle::current())
    ///     .max_connections(8)
    ///     .fds_per_connection(1)
    ///     .reset(|connection| {
    ///         Box::pin(async move {
    ///             connection.clear();
    ///             Ok::<_, std::io::Error>(())
    ///         })
    ///     })
    ///     .build()?;
    /// let mut lease = pool.lease_async("alice").await?;
    /// lease.push("hello".to_owned());
    /// # Ok(())
    /// # })
    /// # }
    /// ```
    ///
    /// Connections are dropped on threads of the pool, in the context of `runtime`. Such a drop may wait until the connection
    /// is closed: no other is opened in its place before it returns. The drop of tokio-postgres's client does not wait. If the
    /// server does not answer, its socket stays open, and no longer counts; a manager that ends the client's task closes it.
    pub fn awaited(manager: M, runtime: Handle) -> Builder<Awaited<M>> {
        Builder::over((manager, runtime))
    }

    /// Leases a connection as [`Pool::lease_async`] does, runs `work` on it, and ends the lease.
    ///
    /// # Cancel safety
    /// Dropping the future drops `work` where it waits, and ends the lease: what it left half done is for
    /// [`Builder::settle`](crate::Builder) to end.
    ///
    /// # Errors
    /// What `work` returns; those of [`Pool::lease_async`], as its error type.
    #[track_caller]
    pub fn run<T, E, F>(&self, agent: impl Display, work: F) -> impl Future<Output = Result<T, E>>
    where
        F: AsyncFnOnce(&mut M::Connection) -> Result<T, E>,
        E: From<Error>,
    {
        let (agent, place) = (AgentName::of(agent), CallSite::here());
        async move {
            let (agent, wait) = (agent?, self.lease_timeout());
            let lease = self.lease_async_within(agent.as_str(), wait, place);
            work(&mut *lease.await?).await
        }
    }
}

impl<M> Agent<Awaited<M>>
where
    M: ManageConnection<Error: std::error::Error + Sync>,
{
    /// Leases a connection, runs `work` on it, and ends the lease: [`Pool::run`].
    ///
    /// # Errors
    /// Those of [`Pool::run`].
    pub async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: AsyncFnOnce(&mut M::Connection) -> Result<T, E>,
        E: From<Error>,
    {
        let mut lease = self.lease_async().await?;
        work(&mut lease).await
    }
}

impl<M> Builder<Awaited<M>>
where
    M: ManageConnection<Error: std::error::Error + Sync>,
{
    /// Runs on every connection when it is opened, before its first lease. If it fails, that counts as a failed
    /// opening.
    ///
    /// Defaults to doing nothing.
    pub fn on_open<F, E>(mut self, on_open: F) -> Self
    where
        F: for<'a> Fn(&'a mut M::Connection) -> Work<'a, E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        self.own.hooks.on_open = Some(shared(on_open));
        self
    }

    /// Ends what a borrower may have left open and would hold up others while the connection is parked: for an SQL
    /// server, `ROLLBACK`. Runs at the end of each lease whose borrower used the connection, as a task; the borrower
    /// does not wait. It may take as long as a probe. If it fails, the connection is closed.
    ///
    /// Defaults to doing nothing: then a transaction that an agent left open stays open until the next lease.
    pub fn settle<F, E>(mut self, settle: F) -> Self
    where
        F: for<'a> Fn(&'a mut M::Connection) -> Work<'a, E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        self.own.hooks.settle = Some(shared(settle));
        self
    }

    /// Removes every trace of an agent, before another agent gets the connection. It may take as long as a probe. If it
    /// fails, the connection is closed and another opened. See [the guide](crate::guide::servers#settle-and-reset) for what to
    /// send to PostgreSQL.
    ///
    /// Defaults to opening a new connection for each change of agents, since nothing else is safe.
    pub fn reset<F, E>(mut self, reset: F) -> Self
    where
        F: for<'a> Fn(&'a mut M::Connection) -> Work<'a, E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
    {
        self.own.hooks.reset = Some(shared(reset));
        self
    }
}

/// The same callback, with the error type that the backend wants.
fn shared<C, F, E>(callback: F) -> AwaitedCallback<C>
where
    C: Send + 'static,
    F: for<'a> Fn(&'a mut C) -> Work<'a, E> + Send + Sync + 'static,
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    Arc::new(move |connection| {
        let work = callback(connection);
        Box::pin(async move { work.await.map_err(Into::into) })
    })
}
