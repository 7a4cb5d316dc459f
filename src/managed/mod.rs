//! Managed: the backends that are made of other pools' managers, for connections to servers.
//! They know no pools. How a connection is opened and whether it is sound, they leave to the manager.
//!
//! | module | what |
//! |---|---|
//! | [`remote`] | the backend that all of them are |
//! | [`session`] | a connection, with what the pool remembers of it |
//! | [`health`] | which connections are suspect; when to connect again |
//! | [`blocking`] | the managers of r2d2: every call on a thread of the core |
//! | [`awaited`] | the managers of bb8: every call on a runtime |

#[cfg(feature = "bb8")]
mod awaited;
#[cfg(feature = "managed")]
mod blocking;
mod health;
#[cfg(feature = "managed")]
mod off_thread;
mod remote;
mod session;

use std::fmt;
use std::time::Duration;

#[cfg(feature = "bb8")]
pub use awaited::Awaited;
#[cfg(feature = "bb8")]
pub(crate) use awaited::{Callback as AwaitedCallback, Work};
#[cfg(feature = "managed")]
pub use blocking::Managed;
pub use remote::Remote;
pub(crate) use remote::{Server, reported, says_broken};

use crate::error::{Error, caught};

/// Why the backend could not do something.
pub(crate) type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Whether an error says that its connection is broken.
type IsBroken<E> = Box<dyn Fn(&E) -> bool + Send + Sync>;

/// The callbacks given to the builder.
pub struct Hooks<K, E> {
    pub(crate) on_open: Option<K>,
    pub(crate) settle: Option<K>,
    pub(crate) reset: Option<K>,
    pub(crate) is_broken: Option<IsBroken<E>>,
}

impl<K, E> Default for Hooks<K, E> {
    fn default() -> Self {
        Hooks {
            on_open: None,
            settle: None,
            reset: None,
            is_broken: None,
        }
    }
}

/// The options of every remote backend.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    /// How long a connection may be idle and still be lent unasked.
    pub(crate) probe_after: Duration,
    pub(crate) probe_timeout: Duration,
    pub(crate) open_timeout: Duration,
    /// How many descriptors one connection holds. `None`: the user has not said.
    pub(crate) fds_per_connection: Option<usize>,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            probe_after: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            open_timeout: Duration::from_secs(5),
            fds_per_connection: None,
        }
    }
}

/// Runs code of the user's. `None`: it panicked.
fn quietly<T>(work: impl FnOnce() -> T) -> Option<T> {
    caught("a callback", work).ok()
}

/// Drops a connection, whatever that does.
fn dropped<C>(connection: Option<C>) -> Result<(), Error> {
    caught("the drop of a connection", || drop(connection))
}

/// A server did not answer in time.
#[derive(Debug)]
struct NoAnswer {
    within: Duration,
}

impl fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server did not answer within {:?}", self.within)
    }
}

impl std::error::Error for NoAnswer {}
