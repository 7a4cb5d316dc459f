//! Hosting: which agents this process serves, and where the database of an agent comes from that has none here.
//! It opens no database.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::agents::{open_fault, remove_files, remove_logs, rename_synced, sync_closed};
use super::database::{Database, Kind};
use super::identity::{SHORTEST, beside};
use super::{Fault, Sqlite};
use crate::error::{Error, caught};

/// Which process serves an agent: the answer of [`Database::owner`]'s function.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Owner {
    /// This one.
    Here,
    /// The node of this name, or at this address. It is what clients are told: [`Error::NotHere`].
    Elsewhere(String),
}

type OwnerOf = dyn Fn(&str) -> Owner + Send + Sync;
type OnMissing = dyn Fn(&str, &Path) -> Result<(), Fault> + Send + Sync;

/// What a [`Database`] says about the files of agents.
#[derive(Clone)]
pub(crate) struct Hosting {
    owner: Option<Arc<OwnerOf>>,
    /// Whether the pool may make a file that does not exist.
    pub(super) create: bool,
    on_missing: Option<Arc<OnMissing>>,
}

impl Default for Hosting {
    fn default() -> Self {
        Hosting {
            owner: None,
            create: true,
            on_missing: None,
        }
    }
}

impl fmt::Debug for Hosting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosting")
            .field("owner", &self.owner.is_some())
            .field("create", &self.create)
            .field("on_missing", &self.on_missing.is_some())
            .finish()
    }
}

/// Where a database lies while it is handed over. If the process dies then, the next lease finds it there.
const LEAVING: &str = "-leaving";
/// Where a database is made that is to be at the agent's path.
pub(super) const RESTORE: &str = "-restore";

impl Database {
    /// Which agents this process serves, where many machines share the agents. Only for
    /// [`per_agent`](Database::per_agent) and [`per_agent_with`](Database::per_agent_with).
    ///
    /// The pool asks `owner` at each lease, read, write and backup of an agent, once it is the caller's turn to
    /// use that agent's database, and before anything is opened or made; also when the agent's connection is
    /// parked. If the answer is [`Owner::Elsewhere`], the call fails with [`Error::NotHere`], which names the
    /// node. The extractors of axum and actix-web answer with 421 (Misdirected Request) and the node in the
    /// header `x-leasepool-node`. A lease that is out is never taken away.
    ///
    /// `owner` is the only place that says whose an agent is: the pool remembers no answer. So it must be quick
    /// and may not block: it runs at each call, also on threads of an async executor. Look the agent up in
    /// memory. It runs outside the pool's locks, on any thread, and may not lease from the pool. Agents whose
    /// paths are equal must have the same owner. If it panics, the call fails with [`Error::Panicked`].
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use std::sync::{Arc, RwLock};
    /// use leasepool::{Database, Error, Owner, Pool};
    ///
    /// # fn main() -> Result<(), Error> {
    /// # let folder = tempfile::tempdir().expect("a folder");
    /// # let folder = folder.path();
    /// // The agents that are not here.
    /// let moved = Arc::new(RwLock::new(HashMap::from([("bob".to_owned(), "node-2".to_owned())])));
    /// let table = Arc::clone(&moved);
    /// let database = Database::per_agent(folder).owner(move |agent| {
    ///     match table.read().ok().and_then(|table| table.get(agent).cloned()) {
    ///         Some(node) => Owner::Elsewhere(node),
    ///         None => Owner::Here,
    ///     }
    /// });
    /// let pool = Pool::builder(database).build()?;
    /// pool.lease("alice")?;
    /// assert!(matches!(pool.lease("bob"), Err(Error::NotHere { node, .. }) if node == "node-2"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [`Agent::hand_over`](crate::Agent::hand_over) moves an agent to another node.
    ///
    /// Defaults to a function that always says [`Owner::Here`].
    #[must_use = "it changes nothing of a pool that is built"]
    pub fn owner<F>(mut self, owner: F) -> Self
    where
        F: Fn(&str) -> Owner + Send + Sync + 'static,
    {
        self.1.owner = Some(Arc::new(owner));
        self
    }

    /// Whether the pool makes a database for an agent that has none. If it may not, a call for such an agent
    /// fails with [`Error::NoDatabase`] (404), unless [`on_missing`](Database::on_missing) brings one. An empty
    /// file, which a process leaves that dies as it begins to make a database, counts as none. Only for
    /// [`per_agent`](Database::per_agent) and [`per_agent_with`](Database::per_agent_with).
    ///
    /// Use `create(false)` where agents come from requests, or where another node may have the agent's data:
    /// then a wrong id or a table that is behind never makes an empty database.
    ///
    /// Defaults to `true`.
    #[must_use = "it changes nothing of a pool that is built"]
    pub fn create(mut self, create: bool) -> Self {
        self.1.create = create;
        self
    }

    /// Brings the database of an agent that has none here: from a backup, from Litestream's copies, from another
    /// machine. Only for [`per_agent`](Database::per_agent) and
    /// [`per_agent_with`](Database::per_agent_with).
    ///
    /// When a call opens an agent's database and there is none, the pool calls `on_missing` with the agent's id
    /// and a path beside the agent's file, where nothing lies. If `on_missing` puts a database there, the pool
    /// syncs it to the disk, makes it private, renames it to the agent's path, and runs
    /// [`setup`](crate::Builder::setup) on it. So a process that dies half way leaves no half database, and the
    /// next call begins anew. If it puts nothing there and returns `Ok`, there is no copy either: the pool makes
    /// an empty database, or fails with [`Error::NoDatabase`] after [`create(false)`](Database::create).
    ///
    /// ```no_run
    /// use std::process::Command;
    /// use leasepool::{Database, Pool};
    ///
    /// # fn main() -> Result<(), leasepool::Error> {
    /// let database = Database::per_agent("agents").on_missing(|agent, path| {
    ///     let replica = format!("s3://backup/agents/{agent}.db");
    ///     let restored = Command::new("litestream")
    ///         .args(["restore", "-if-replica-exists", "-o"])
    ///         .arg(path)
    ///         .arg(replica)
    ///         .status()?;
    ///     match restored.success() {
    ///         true => Ok(()),
    ///         false => Err(std::io::Error::other("litestream could not restore")),
    ///     }
    /// });
    /// let pool = Pool::builder(database).build()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// - It must copy, and keep what it copies from until the agent's database has been used: if the process dies
    ///   before the pool has renamed the copy, the pool removes what lies there and calls `on_missing` again.
    /// - It runs once at a time for an agent, also if several processes use the folder. Callers for the same agent
    ///   wait for it, as long as they wait for a lease; a caller whose time has passed gets
    ///   [`Error::Exhausted`], and `on_missing` goes on. Other agents do not wait, but it occupies one of the pool's
    ///   connections.
    /// - It runs on a thread of the pool (for [`try_lease`](crate::Pool::try_lease), on the caller's), outside the
    ///   pool's locks, and may block. It may not lease from the pool. Descriptors that it opens are not
    ///   counted.
    /// - It is not called for a file that this process has had open and that was deleted since:
    ///   [`Error::FileReplaced`]. [`Agent::exists`](crate::Agent::exists) does not call it.
    /// - The database must be whole: a `-wal` or `-journal` beside it, or a file too short for a database, is an
    ///   error. An error or a panic of `on_missing` is the source of an [`Error::Open`]; what it has put
    ///   there is removed.
    ///
    /// Defaults to bringing none.
    #[must_use = "it changes nothing of a pool that is built"]
    pub fn on_missing<F, E>(mut self, on_missing: F) -> Self
    where
        F: Fn(&str, &Path) -> Result<(), E> + Send + Sync + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        self.1.on_missing = Some(Arc::new(move |agent: &str, path: &Path| {
            on_missing(agent, path).map_err(Into::into)
        }));
        self
    }

    /// Checks that what is said of agents' files is said of a database that has some.
    pub(crate) fn check_hosting(&self) -> Result<(), Error> {
        if matches!(self.0, Kind::Agents(_)) {
            return Ok(());
        }
        let Hosting {
            owner,
            create,
            on_missing,
        } = &self.1;
        let (option, value) = if owner.is_some() {
            ("owner", "a function")
        } else if !create {
            ("create", "false")
        } else if on_missing.is_some() {
            ("on_missing", "a function")
        } else {
            return Ok(());
        };
        Err(Error::Config {
            option,
            value: value.to_owned(),
            expected: "Database::per_agent: only there each agent has a file of its own".to_owned(),
        })
    }
}

impl Hosting {
    pub(super) fn has_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Whose the agent is.
    ///
    /// # Errors
    /// [`Error::Panicked`] if the user's function panics.
    pub(super) fn owner(&self, agent: &str) -> Result<Owner, Error> {
        let Some(owner) = &self.owner else {
            return Ok(Owner::Here);
        };
        caught("the function given to owner", || owner(agent))
    }

    /// # Errors
    /// [`Error::NotHere`] if another node serves the agent.
    pub(super) fn admit(&self, agent: &str) -> Result<(), Error> {
        match self.owner(agent)? {
            Owner::Here => Ok(()),
            Owner::Elsewhere(node) => Err(Error::NotHere {
                agent: agent.to_owned(),
                node,
            }),
        }
    }

    /// Whether there is a database, or may be one in a moment.
    ///
    /// # Errors
    /// [`Error::NoDatabase`] if there is none, and nothing would bring or make one.
    pub(super) fn check_possible(&self, agent: &str, path: &Path) -> Result<(), Error> {
        let possible =
            self.create || self.on_missing.is_some() || leaving(path).exists() || is_there(path)?;
        match possible {
            true => Ok(()),
            false => Err(no_database(agent, path)),
        }
    }

    /// Brings a database to a path where none is: the one that an interrupted hand-over left, or the one that
    /// `on_missing` brings. The caller has the right, among all processes, to make the file.
    pub(super) fn bring(&self, agent: &str, path: &Path) -> Result<(), Error> {
        if is_there(path)? {
            return Ok(());
        }
        // The caller may have waited until another process had handed the agent over.
        self.admit(agent)?;
        let failed = |source| Error::Open {
            target: format!("{} (agent {agent:?})", path.display()),
            source,
        };
        let left = leaving(path);
        if left.exists() {
            return arrive(&left, path).map_err(failed);
        }
        if let Some(on_missing) = &self.on_missing {
            let restore = beside(path, RESTORE);
            let cleared = || remove_files(&restore).map_err(Fault::from);
            let brought = cleared().and_then(|()| {
                caught("on_missing", || on_missing(agent, &restore))??;
                match restore.exists() {
                    true => arrive(&restore, path),
                    false => Ok(()),
                }
            });
            if let Err(source) = brought {
                let _ = cleared();
                return Err(failed(source));
            }
        }
        match self.create || is_there(path)? {
            true => Ok(()),
            false => Err(no_database(agent, path)),
        }
    }
}

impl Sqlite {
    /// # Errors
    /// [`Error::Unsupported`] if the database does not say whose agents are.
    pub(crate) fn check_has_owner(&self) -> Result<(), Error> {
        match self.agents()?.hosting.has_owner() {
            true => Ok(()),
            false => Err(Error::Unsupported {
                operation: "moving agents between nodes",
                reason: "the pool does not know whose agents are; it needs Database::owner",
            }),
        }
    }
}

pub(super) fn leaving(path: &Path) -> PathBuf {
    beside(path, LEAVING)
}

/// Renames a whole database to the path of an agent that has none.
pub(super) fn arrive(from: &Path, path: &Path) -> Result<(), Fault> {
    let invalid = |what: String| Fault::from(io::Error::new(io::ErrorKind::InvalidData, what));
    let file = std::fs::metadata(from)?;
    if !file.is_file() || file.len() < SHORTEST {
        let what = format!("{}: too short for a database", from.display());
        return Err(invalid(what));
    }
    for suffix in ["-wal", "-journal"] {
        let log = beside(from, suffix);
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            let what = format!("{} is there: the database is not whole", log.display());
            return Err(invalid(what));
        }
    }
    keep_private(from)?;
    sync_closed(from)?;
    // What lies beside a path without a database belongs to none, and SQLite would replay it into this one.
    remove_logs(path)?;
    remove_logs(from)?;
    Ok(rename_synced(from, path)?)
}

#[cfg(unix)]
fn keep_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}

#[cfg(not(unix))]
fn keep_private(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether there is a database at the path. A process that dies as it begins to make one leaves an empty file.
pub(super) fn is_there(path: &Path) -> Result<bool, Error> {
    match std::fs::metadata(path) {
        Ok(file) => Ok(file.len() > 0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(open_fault(path, source)),
    }
}

pub(super) fn no_database(agent: &str, path: &Path) -> Error {
    Error::NoDatabase {
        agent: agent.to_owned(),
        path: path.to_path_buf(),
    }
}
