//! Blocking: connections of an r2d2 manager. Every call of the manager, of a callback and of a connection's drop may block,
//! so each runs on a thread of the core.
//! It does not decide when: the core does.

use r2d2::ManageConnection;

use super::off_thread::OffThread;
use super::remote::{Remote, Server};
use super::session::Session;
use super::{Fault, Hooks, dropped, quietly};
use crate::error::{Error, caught};

/// The kind of pool that lends the connections of an r2d2 manager: [`Pool::managed`](crate::Pool::managed).
pub struct Managed<M: ManageConnection> {
    server: Server,
    owned: OffThread<Owned<M>>,
}

/// What may do anything when it is dropped.
struct Owned<M: ManageConnection> {
    manager: M,
    hooks: Hooks<Callback<M::Connection>, M::Error>,
}

/// A callback that works on a connection.
pub(crate) type Callback<C> = Box<dyn Fn(&mut C) -> Result<(), Fault> + Send + Sync>;

impl<M: ManageConnection> std::fmt::Debug for Managed<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Managed")
            .field("name", &self.server.name())
            .finish_non_exhaustive()
    }
}

impl<M> Remote for Managed<M>
where
    M: ManageConnection<Error: Send + Sync>,
{
    type ManagerError = M::Error;
    type Inner = M::Connection;
    type Callback = Callback<M::Connection>;
    type Parts = M;

    // That of r2d2_mysql does.
    const HAS_BROKEN_MAY_WAIT: bool = true;

    fn new(server: Server, manager: M, hooks: Hooks<Self::Callback, M::Error>) -> Self {
        Managed {
            server,
            owned: OffThread::new(Owned { manager, hooks }),
        }
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn hooks(&self) -> &Hooks<Self::Callback, M::Error> {
        &self.owned.hooks
    }

    fn connect(&self) -> Result<M::Connection, Fault> {
        let Owned { manager, hooks } = &*self.owned;
        let mut connection = caught("the manager's connect", || manager.connect())??;
        if let Some(on_open) = &hooks.on_open
            && let Err(fault) = caught("on_open", || on_open(&mut connection))
                .map_err(Fault::from)
                .and_then(|done| done)
        {
            let _ = dropped(Some(connection));
            return Err(fault);
        }
        Ok(connection)
    }

    fn has_broken(&self, connection: &mut M::Connection) -> bool {
        self.owned.manager.has_broken(connection)
    }

    fn is_valid(&self, session: &mut Session<M::Connection>) -> bool {
        let ask = |connection: &mut M::Connection| self.owned.manager.is_valid(connection).is_ok();
        session
            .inner_mut()
            .is_some_and(|connection| quietly(|| ask(connection)) == Some(true))
    }

    fn run(&self, callback: &Self::Callback, session: &mut Session<M::Connection>) -> bool {
        // Its error is dropped within.
        let work = |connection: &mut M::Connection| callback(connection).is_ok();
        session
            .inner_mut()
            .is_some_and(|connection| quietly(|| work(connection)) == Some(true))
    }

    fn close(&self, connection: Option<M::Connection>) -> Result<(), Error> {
        dropped(connection)
    }
}
