//! Directory: which node has which agent. The table is shared by all nodes; what this node needs of it is in memory.
//! It moves no files.
//!
//! Here the table is an SQLite file that the three processes share. Nodes on machines of their own have it in a service
//! that they can all reach, such as PostgreSQL or etcd; the statements stay the same.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use leasepool::rusqlite::{OptionalExtension, Transaction};
use leasepool::{Database, Error, Owner, Pool, rusqlite};

pub(crate) struct Directory {
    /// This node.
    name: String,
    table: Pool,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    places: HashMap<String, Place>,
    /// Changed before and after each hand-over: what was read of the table in between may be out of date.
    moves: u64,
}

#[derive(Clone)]
enum Place {
    /// At this node. The copy that it arrived as, if it was handed over.
    Here(Option<String>),
    At(String),
}

/// Agents of other nodes that a node remembers at most.
const STRANGERS: usize = 10_000;

impl Directory {
    pub(crate) fn open(path: &Path, name: &str) -> Result<Self, Error> {
        let table = Pool::builder(Database::file(path))
            .max_connections(4)
            .setup(|conn| {
                conn.execute_batch(
                    "CREATE TABLE IF NOT EXISTS node (name TEXT PRIMARY KEY, alive INT NOT NULL);
                     CREATE TABLE IF NOT EXISTS agent (id TEXT PRIMARY KEY, node TEXT NOT NULL, copy TEXT)",
                )
            })
            .build()?;
        let sql = "INSERT INTO node VALUES (?1, 1) ON CONFLICT DO UPDATE SET alive = 1";
        table.anonymous().execute(sql, [name.to_owned()])?;
        Ok(Directory {
            name: name.to_owned(),
            table,
            memory: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The owner function of the pool. It asks the memory only: `find` has put there what is known.
    pub(crate) fn owner(&self, agent: &str) -> Owner {
        match self.memory().places.get(agent) {
            Some(Place::Here(_)) => Owner::Here,
            Some(Place::At(node)) => Owner::Elsewhere(node.clone()),
            None => Owner::Elsewhere(String::new()),
        }
    }

    /// The copy that the agent arrived as.
    pub(crate) fn copy_of(&self, agent: &str) -> Option<String> {
        match self.memory().places.get(agent) {
            Some(Place::Here(copy)) => copy.clone(),
            _ => None,
        }
    }

    /// The same, once: the agent's own database is in use, so the copy may go.
    pub(crate) fn take_copy_of(&self, agent: &str) -> Option<String> {
        match self.memory().places.get_mut(agent) {
            Some(Place::Here(copy)) => copy.take(),
            _ => None,
        }
    }

    /// Finds out whose the agent is. An agent that no node has, or that a dead node had, is this node's from now on:
    /// the proxies decide, by asking this node.
    pub(crate) async fn find(&self, agents: &Pool, agent: &str) -> Result<(), Error> {
        loop {
            let moves = {
                let memory = self.memory();
                if let Some(Place::Here(_)) = memory.places.get(agent) {
                    return Ok(());
                }
                memory.moves
            };
            let (name, id) = (self.name.clone(), agent.to_owned());
            let table = self.table.anonymous();
            let found = table.read_async(move |tx| look_up(tx, &id)).await?;
            let place = match found {
                Some((node, copy, _)) if node == name => Place::Here(copy),
                Some((node, _, true)) => Place::At(node),
                _ => {
                    // This node may have had the agent before, and died or been declared dead since.
                    let handle = agents.agent(agent);
                    blocking(move || handle.remove_leftovers()).await?;
                    let id = agent.to_owned();
                    table.write_async(move |tx| claim(tx, &id, &name)).await?;
                    continue;
                }
            };
            let mut memory = self.memory();
            // An agent that was handed over meanwhile must not be taken for this node's.
            if memory.moves == moves {
                if memory.places.len() > STRANGERS {
                    memory
                        .places
                        .retain(|_, place| matches!(place, Place::Here(_)));
                }
                memory.places.insert(agent.to_owned(), place);
                return Ok(());
            }
        }
    }

    /// Records that the agent is at another node now. It runs within a hand-over.
    pub(crate) fn record(&self, agent: &str, to: &str, copy: &str) -> Result<(), Error> {
        self.memory().moves += 1;
        let (name, id) = (self.name.clone(), agent.to_owned());
        let (new, copy) = (to.to_owned(), copy.to_owned());
        let moved = self.table.anonymous().write(move |tx| {
            let sql = "UPDATE agent SET node = ?3, copy = ?4 WHERE id = ?1 AND node = ?2";
            tx.execute(sql, [id, name, new, copy])
        })?;
        let mut memory = self.memory();
        memory.moves += 1;
        if moved == 1 {
            memory
                .places
                .insert(agent.to_owned(), Place::At(to.to_owned()));
        }
        Ok(())
    }

    /// Declares a node dead: its agents belong to whichever node is asked for them. Only for a node that has ended.
    pub(crate) async fn bury(&self, node: String) -> Result<(), Error> {
        let sql = "UPDATE node SET alive = 0 WHERE name = ?1";
        self.table.anonymous().execute_async(sql, [node]).await?;
        Ok(())
    }

    /// All agents and their nodes, a line each.
    pub(crate) async fn list(&self) -> Result<String, Error> {
        let table = self.table.anonymous();
        let list = table.read_async(|tx| {
            let mut rows = tx.prepare("SELECT id || ' ' || node FROM agent ORDER BY id")?;
            let lines = rows.query_map([], |row| row.get(0))?;
            lines.collect::<rusqlite::Result<Vec<String>>>()
        });
        Ok(list.await?.join("\n"))
    }
}

/// Runs work that waits for files.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    // It does not panic; so the runtime is shutting down.
    done.unwrap_or(Err(Error::NoRuntime))
}

/// The node that has the agent, the copy it arrived as, and whether the node is alive.
type Found = Option<(String, Option<String>, bool)>;

fn look_up(tx: &Transaction<'_>, agent: &str) -> rusqlite::Result<Found> {
    let sql = "SELECT node, copy, alive FROM agent JOIN node ON node = name WHERE id = ?1";
    let mut select = tx.prepare_cached(sql)?;
    let found = select.query_row([agent], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
    found.optional()
}

fn claim(tx: &rusqlite::Savepoint<'_>, agent: &str, node: &str) -> rusqlite::Result<usize> {
    tx.execute(
        "INSERT INTO agent VALUES (?1, ?2, NULL) ON CONFLICT DO UPDATE SET node = ?2, copy = NULL
         WHERE node IN (SELECT name FROM node WHERE NOT alive)",
        [agent, node],
    )
}
