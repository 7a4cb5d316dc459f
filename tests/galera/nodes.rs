//! A manager of r2d2 that spreads connections over the nodes: the next one on the next node, and on another where that is
//! down.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use leasepool::r2d2::ManageConnection;
use mysql::{Conn, Error};
use r2d2_mysql::MySqlConnectionManager;

use crate::cluster::is_ready;

pub(crate) struct Nodes {
    nodes: Vec<MySqlConnectionManager>,
    next: AtomicUsize,
    count: Arc<Count>,
}

/// How many connections there are, and were at most.
#[derive(Default)]
pub(crate) struct Count {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Count {
    pub(crate) fn most(&self) -> usize {
        self.most.load(SeqCst)
    }
}

/// A connection to some node. It counts from before it is opened until after it is closed.
pub(crate) struct NodeConn {
    conn: Conn,
    /// Which node it leads to.
    pub(crate) node: usize,
    _counted: Counted,
}

struct Counted(Arc<Count>);

impl Counted {
    fn new(count: &Arc<Count>) -> Self {
        let now = count.now.fetch_add(1, SeqCst) + 1;
        count.most.fetch_max(now, SeqCst);
        Counted(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

impl Nodes {
    pub(crate) fn new(nodes: Vec<MySqlConnectionManager>) -> Self {
        Nodes {
            nodes,
            next: AtomicUsize::new(0),
            count: Arc::default(),
        }
    }

    pub(crate) fn count(&self) -> Arc<Count> {
        Arc::clone(&self.count)
    }
}

impl ManageConnection for Nodes {
    type Connection = NodeConn;
    type Error = Error;

    fn connect(&self) -> Result<NodeConn, Error> {
        let counted = Counted::new(&self.count);
        let (first, nodes) = (self.next.fetch_add(1, SeqCst), self.nodes.len());
        let mut failure = None;
        for node in (first..first + nodes).map(|turn| turn % nodes) {
            // A node that accepts clients may still have no majority, and refuse all that they ask.
            let connected = self.nodes[node].connect().and_then(|mut conn| {
                let ready = is_ready(&mut conn)?;
                Ok((conn, ready))
            });
            match connected {
                Ok((conn, true)) => {
                    return Ok(NodeConn {
                        conn,
                        node,
                        _counted: counted,
                    });
                }
                Ok((_, false)) => {}
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(not_ready))
    }

    fn is_valid(&self, connection: &mut NodeConn) -> Result<(), Error> {
        match is_ready(connection)? {
            true => Ok(()),
            false => Err(not_ready()),
        }
    }

    /// r2d2_mysql asks the server here, on each check-out. It is asked soon enough: by the statements, and by `is_valid`
    /// as soon as one of them has failed.
    fn has_broken(&self, _: &mut NodeConn) -> bool {
        false
    }
}

fn not_ready() -> Error {
    Error::IoError(std::io::Error::other("the node is not ready"))
}

impl Deref for NodeConn {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        &self.conn
    }
}

impl DerefMut for NodeConn {
    fn deref_mut(&mut self) -> &mut Conn {
        &mut self.conn
    }
}
