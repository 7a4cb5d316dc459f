//! 1,000 agents on 8 connections to three nodes, while one of them is killed and joins again.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::{Lease, Managed, Pool};
use mysql::prelude::Queryable;
use mysql::{Conn, Error, TxOpts};
use r2d2_mysql::MySqlConnectionManager;

use crate::cluster::{Cluster, is_asked_for};
use crate::nodes::{Count, NodeConn, Nodes};

const NODES: usize = 3;
const AGENTS: u64 = 1_000;
const CONNECTIONS: usize = 8;
const THREADS: u64 = 32;
/// One turn in so many changes a row that other agents change, too.
const HOT: u64 = 5;
/// A node that was killed is left out after 5 s (Galera's `evs.suspect_timeout`) and what it takes to agree. Until then,
/// no commit returns.
const LEFT_OUT: Duration = Duration::from_secs(15);
const LEASE_TIMEOUT: Duration = Duration::from_secs(20);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

fn pool(cluster: &Cluster, connections: usize) -> (Pool<Managed<Nodes>>, Arc<Count>) {
    let nodes = cluster.nodes().map(|node| {
        // What bounds a statement when a node has died without a word.
        let options = cluster.app(node).read_timeout(Some(STATEMENT_TIMEOUT));
        MySqlConnectionManager::new(options.write_timeout(Some(STATEMENT_TIMEOUT)))
    });
    let nodes = Nodes::new(nodes.collect());
    let count = nodes.count();
    let pool = Pool::managed(nodes)
        .name("galera")
        .max_connections(connections)
        .fds_per_connection(1)
        .lease_timeout(LEASE_TIMEOUT)
        // Connections move to nodes that have joined.
        .max_lifetime(Duration::from_secs(10))
        .settle(|conn| conn.query_drop("ROLLBACK"))
        .reset(|conn| conn.reset())
        .broken(is_broken)
        .build()
        .unwrap();
    (pool, count)
}

/// Whether another connection may do better.
fn is_broken(error: &Error) -> bool {
    match error {
        // The node has lost its majority, or is about to end.
        Error::MySqlError(error) => [1047, 1053].contains(&error.code),
        _ => true,
    }
}

/// Whether the transaction is to be repeated: the nodes found that another had changed the same rows.
fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::MySqlError(error) if error.code == 1213 || error.state == "40001")
}

/// What agents see.
#[derive(Default)]
struct Seen {
    served: AtomicU64,
    conflicts: AtomicU64,
    /// How often each kind of error was seen.
    errors: Mutex<BTreeMap<String, usize>>,
    /// For each agent: how many of its turns were acknowledged, and how many ended so that it cannot know.
    turns: Mutex<HashMap<u64, (u64, u64)>>,
    /// When a turn last succeeded, and the longest time between two that did.
    last: Mutex<Option<Instant>>,
    gap: Mutex<Duration>,
    slowest: Mutex<Duration>,
    on_node: [AtomicUsize; NODES],
}

impl Seen {
    fn failed(&self, kind: String) {
        *self.errors.lock().unwrap().entry(kind).or_default() += 1;
    }

    fn success(&self) {
        self.served.fetch_add(1, SeqCst);
        let now = Instant::now();
        if let Some(last) = self.last.lock().unwrap().replace(now) {
            let mut gap = self.gap.lock().unwrap();
            *gap = gap.max(now.saturating_duration_since(last));
        }
    }

    fn take_gap(&self) -> Duration {
        std::mem::take(&mut *self.gap.lock().unwrap())
    }

    fn take_errors(&self) -> BTreeMap<String, usize> {
        std::mem::take(&mut *self.errors.lock().unwrap())
    }

    fn turn(&self, pool: &Pool<Managed<Nodes>>, agent: u64, number: u64) {
        let begun = Instant::now();
        let mut lease = match pool.lease(agent) {
            Ok(lease) => lease,
            Err(error) => {
                use leasepool::Error::{Exhausted, Open};
                let typed = matches!(error, Open { .. } | Exhausted { .. });
                assert!(typed, "{error:?}");
                let name = format!("{error:?}");
                return self.failed(format!("lease: {}", name.split(' ').next().unwrap()));
            }
        };
        self.on_node[lease.node].fetch_add(1, SeqCst);
        let mut done = change(&mut lease, agent, number);
        while let Err(error) = &done
            && is_conflict(error)
        {
            self.conflicts.fetch_add(1, SeqCst);
            done = change(&mut lease, agent, number);
        }
        let mut turns = self.turns.lock().unwrap();
        let (acknowledged, unknown) = turns.entry(agent).or_default();
        match done {
            Ok(()) => {
                *acknowledged += 1;
                drop(turns);
                self.success();
            }
            Err(error) => {
                *unknown += 1;
                drop(turns);
                Lease::report(&lease, &error);
                self.failed(match &error {
                    Error::MySqlError(error) => {
                        format!("statement: {} {}", error.code, error.state)
                    }
                    Error::IoError(error) => format!("statement: {}", error.kind()),
                    error => format!("statement: {error}"),
                });
            }
        }
        drop(lease);
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = slowest.max(begun.elapsed());
    }
}

fn change(conn: &mut NodeConn, agent: u64, number: u64) -> mysql::Result<()> {
    let mut transaction = conn.start_transaction(TxOpts::default())?;
    let own = "UPDATE counter SET n = n + 1 WHERE agent = ?";
    transaction.exec_drop(own, (agent,))?;
    if number.is_multiple_of(HOT) {
        let hot = "UPDATE hot SET n = n + 1 WHERE id = ?";
        transaction.exec_drop(hot, (number / HOT % 2,))?;
    }
    transaction.commit()
}

/// The clients that each node counts, by connections outside of the pool.
struct Watcher(Vec<Option<Conn>>);

impl Watcher {
    fn new(cluster: &Cluster) -> Self {
        Watcher(
            cluster
                .nodes()
                .map(|node| Conn::new(cluster.root(node)).ok())
                .collect(),
        )
    }

    fn count(&mut self) -> usize {
        let mut all = 0;
        for node in &mut self.0 {
            let count = "SELECT count(*) FROM information_schema.processlist WHERE user = 'app'";
            // A node that does not answer has no clients.
            match node
                .as_mut()
                .map(|conn| conn.query_first::<usize, _>(count))
            {
                Some(Ok(found)) => all += found.unwrap_or(0),
                _ => *node = None,
            }
        }
        all
    }
}

/// Lets all threads serve agents while `during` goes on. Returns the most clients that the nodes counted, and how often
/// they counted more than `CONNECTIONS`.
fn under_load(
    cluster: &mut Cluster,
    pool: &Pool<Managed<Nodes>>,
    seen: &Seen,
    during: impl FnOnce(&mut Cluster),
) -> (usize, usize, usize) {
    let (done, number) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut watcher = Watcher::new(cluster);
    thread::scope(|scope| {
        let watched = scope.spawn(|| {
            let (mut most, mut above, mut samples) = (0, 0, 0);
            while !done.load(SeqCst) {
                let now = watcher.count();
                most = most.max(now);
                above += usize::from(now > CONNECTIONS);
                samples += 1;
                // It leaves the processor to the agents.
                thread::sleep(Duration::from_millis(5));
            }
            (most, above, samples)
        });
        for thread in 0..THREADS {
            let (done, number) = (&done, &number);
            scope.spawn(move || {
                let mut agent = thread;
                while !done.load(SeqCst) {
                    agent = (agent * 31 + 17) % AGENTS;
                    seen.turn(pool, agent, number.fetch_add(1, SeqCst));
                }
            });
        }
        let _done = Done(&done);
        during(cluster);
        drop(_done);
        watched.join().unwrap()
    })
}

/// Says that the work is done, also when it panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_node_is_killed_under_load() {
    if !is_asked_for() {
        return;
    }
    let begun = Instant::now();
    let mut cluster = Cluster::start(NODES);
    eprintln!("three nodes: {:.1?}", begun.elapsed());
    set_up(&cluster);

    let (pool, count) = pool(&cluster, CONNECTIONS);
    let seen = Seen::default();
    let mut recovered = Duration::ZERO;
    let watched = under_load(&mut cluster, &pool, &seen, |cluster| {
        thread::sleep(Duration::from_secs(10));
        tell("three nodes, 10 s", &seen);
        assert!(seen.take_errors().is_empty());
        assert!(seen.on_node.iter().all(|turns| turns.load(SeqCst) > 0));
        seen.take_gap();

        let begun = Instant::now();
        cluster.kill(1);
        let before = seen.served.load(SeqCst);
        while seen.served.load(SeqCst) < before + 200 {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "not served again"
            );
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!(
            "killed: 200 turns were served {:.2?} later",
            begun.elapsed()
        );
        thread::sleep(Duration::from_secs(5));
        tell("two nodes", &seen);
        let (gap, errors) = (seen.take_gap(), seen.take_errors());
        assert!(gap <= LEFT_OUT, "{gap:?}");
        // Those that were on a connection to it, and one more for each that was parked and not suspect yet.
        assert!(
            errors.values().sum::<usize>() <= 2 * CONNECTIONS,
            "{errors:?}"
        );

        let begun = Instant::now();
        cluster.rejoin(1);
        eprintln!("it has joined again: {:.1?}", begun.elapsed());
        let turns = seen.on_node[1].load(SeqCst);
        while seen.on_node[1].load(SeqCst) == turns {
            assert!(begun.elapsed() < Duration::from_secs(120), "not used again");
            thread::sleep(Duration::from_millis(5));
        }
        recovered = begun.elapsed();
        thread::sleep(Duration::from_secs(3));
        tell("three nodes again", &seen);
    });
    let (most, above, samples) = watched;
    eprintln!(
        "used again after {recovered:.1?}; connections: {} of the pool at most; the nodes counted {most} at most, \
         more than {CONNECTIONS} in {above} of {samples} samples",
        count.most()
    );
    assert!(count.most() <= CONNECTIONS, "{}", count.most());
    // A node counts a connection that was closed until it notices.
    assert!(most >= 1 && above * 100 <= samples, "{above} of {samples}");
    let slowest = *seen.slowest.lock().unwrap();
    assert!(slowest <= LEASE_TIMEOUT + STATEMENT_TIMEOUT, "{slowest:?}");
    nothing_is_lost(&cluster, &seen);
    // All connections can be had again, and no more.
    let leases: Vec<_> = (0..CONNECTIONS)
        .map(|agent| pool.lease(agent).unwrap())
        .collect();
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    pool.close().unwrap();
    let mut watcher = Watcher::new(&cluster);
    let begun = Instant::now();
    while watcher.count() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}

fn tell(phase: &str, seen: &Seen) {
    let slowest = seen.slowest.lock().unwrap();
    let errors = seen.errors.lock().unwrap();
    let nodes: Vec<_> = seen
        .on_node
        .iter()
        .map(|turns| turns.load(SeqCst))
        .collect();
    eprintln!(
        "{phase}: {} turns served in all, {} conflicts repeated, gap {:.2?}, slowest turn {:.2?}, turns on nodes {nodes:?}, \
         errors {errors:?}",
        seen.served.load(SeqCst),
        seen.conflicts.load(SeqCst),
        seen.gap.lock().unwrap(),
        slowest,
    );
}

fn set_up(cluster: &Cluster) {
    let mut root = Conn::new(cluster.root(0)).unwrap();
    for statement in [
        "CREATE DATABASE app",
        "CREATE DATABASE other",
        "CREATE USER app@localhost",
        "CREATE USER app@127.0.0.1",
        "GRANT ALL ON *.* TO app@localhost",
        "GRANT ALL ON *.* TO app@127.0.0.1",
        "CREATE TABLE app.counter (agent INT PRIMARY KEY, n INT NOT NULL)",
        "CREATE TABLE app.hot (id INT PRIMARY KEY, n INT NOT NULL)",
        "INSERT INTO app.hot VALUES (0, 0), (1, 0)",
        "INSERT INTO app.counter SELECT seq, 0 FROM app.seq_0_to_999",
    ] {
        root.query_drop(statement).unwrap();
    }
    // On all nodes.
    for node in cluster.nodes() {
        let mut root = Conn::new(cluster.root(node)).unwrap();
        root.query_drop("SET SESSION wsrep_sync_wait = 1").unwrap();
        let rows: Option<u64> = root
            .query_first("SELECT count(*) FROM app.counter")
            .unwrap();
        assert_eq!(rows, Some(AGENTS));
    }
}

/// An agent does the first; another gets the same connection, and finds the second as it was.
#[test]
fn nothing_leaks() {
    if !is_asked_for() {
        return;
    }
    let cluster = Cluster::start(1);
    set_up(&cluster);
    // Why the pool's connections have an `init`.
    let mut plain = Conn::new(cluster.root(0)).unwrap();
    plain.query_drop("USE other").unwrap();
    plain.reset().unwrap();
    let database: Option<String> = plain.query_first("SELECT database()").unwrap();
    assert_eq!(database.as_deref(), Some("other"));
    for (leave, seen) in [
        ("SET @secret = 7", "SELECT @secret IS NOT NULL"),
        (
            "SET SESSION sort_buffer_size = 262144",
            "SELECT @@sort_buffer_size = 262144",
        ),
        (
            "CREATE TEMPORARY TABLE counter (secret INT)",
            "SELECT count(*) = 0 FROM counter",
        ),
        (
            "BEGIN; UPDATE counter SET n = 7 WHERE agent = 1",
            "SELECT n = 7 FROM counter WHERE agent = 1",
        ),
        ("SET autocommit = 0", "SELECT @@autocommit = 0"),
        ("SET SESSION TRANSACTION READ ONLY", "SELECT @@tx_read_only"),
        ("USE other", "SELECT database() = 'other'"),
        (
            "SET NAMES latin1",
            "SELECT @@character_set_client = 'latin1'",
        ),
        ("PREPARE secret FROM 'SELECT 1'", "EXECUTE secret"),
    ] {
        let (pool, _) = pool(&cluster, 1);
        let mut lease = pool.lease("a").unwrap();
        let id = lease.connection_id();
        // A statement that the client keeps is prepared on the server.
        lease.exec_drop("SELECT ?", (1,)).unwrap();
        for statement in leave.split(';') {
            lease.query_drop(statement).unwrap();
        }
        drop(lease);
        let mut lease = pool.lease("b").unwrap();
        assert_eq!(lease.connection_id(), id, "it was replaced, not reset");
        let found = lease.query_first::<bool, _>(seen);
        let found = match seen {
            // There is no such statement any more.
            "EXECUTE secret" => found.is_ok(),
            _ => found
                .unwrap_or_else(|error| panic!("{seen}: {error}"))
                .unwrap(),
        };
        assert!(!found, "{seen}");
        lease.exec_drop("SELECT ?", (1,)).unwrap();
        lease
            .exec_drop("UPDATE counter SET n = n WHERE agent = ?", (1,))
            .unwrap();
    }
}

/// Every turn that was acknowledged is in the database of each node, and no turn twice.
fn nothing_is_lost(cluster: &Cluster, seen: &Seen) {
    let turns = seen.turns.lock().unwrap();
    for node in cluster.nodes() {
        let mut root = Conn::new(cluster.root(node)).unwrap();
        root.query_drop("SET SESSION wsrep_sync_wait = 1").unwrap();
        let rows: Vec<(u64, u64)> = root.query("SELECT agent, n FROM app.counter").unwrap();
        assert_eq!(rows.len() as u64, AGENTS);
        for (agent, found) in rows {
            let (acknowledged, unknown) = turns.get(&agent).copied().unwrap_or_default();
            assert!(
                (acknowledged..=acknowledged + unknown).contains(&found),
                "agent {agent} on node {node}: {found} of {acknowledged} turns, {unknown} unknown"
            );
        }
    }
}
