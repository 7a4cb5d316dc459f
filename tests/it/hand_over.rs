//! Agents that move from one node to another: `Agent::hand_over`. Each node is a pool with a folder of its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::{Connection, ErrorCode};
use leasepool::{Builder, Database, Error, Owner, Pool};

use crate::common::{LONG, count, eventually, insert};
use crate::shell::Shell;

/// The agents that are at another node than the first, and at which.
type Moved = Arc<Mutex<HashMap<String, usize>>>;

struct Nodes {
    folder: tempfile::TempDir,
    moved: Moved,
}

impl Nodes {
    fn new() -> Self {
        Nodes {
            folder: tempfile::tempdir().unwrap(),
            moved: Moved::default(),
        }
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }

    fn file(&self, node: usize, agent: &str) -> PathBuf {
        self.folder(node).join(format!("{agent}.db"))
    }

    /// Where a copy waits for the node that it is for.
    fn arrival(&self, node: usize, agent: &str) -> PathBuf {
        self.folder.path().join(format!("{agent}-for-{node}"))
    }

    fn database(&self, node: usize) -> Database {
        let (moved, folder) = (Arc::clone(&self.moved), self.folder.path().to_path_buf());
        Database::per_agent(self.folder(node))
            .owner(move |agent| {
                let owner = moved.lock().unwrap().get(agent).copied().unwrap_or(0);
                match owner == node {
                    true => Owner::Here,
                    false => Owner::Elsewhere(owner.to_string()),
                }
            })
            .on_missing(move |agent, path| {
                let arrival = folder.join(format!("{agent}-for-{node}"));
                match arrival.exists() {
                    true => std::fs::copy(arrival, path).map(drop),
                    false => Ok(()),
                }
            })
            // Nobody may make a database for an agent that has one somewhere.
            .create(node == 0)
    }

    fn builder(&self, node: usize) -> Builder {
        Pool::builder(self.database(node))
            .max_connections(3)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
    }

    fn pool(&self, node: usize) -> Pool {
        self.builder(node).build().unwrap()
    }

    /// What the work given to `hand_over` does.
    fn copy(&self, file: &Path, agent: &str, to: usize) -> std::io::Result<()> {
        let (partial, arrival) = (
            self.folder(to).with_extension("part"),
            self.arrival(to, agent),
        );
        std::fs::copy(file, &partial)?;
        std::fs::rename(partial, arrival)?;
        self.moved.lock().unwrap().insert(agent.to_owned(), to);
        Ok(())
    }

    fn files(&self, node: usize) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder(node)).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn is_elsewhere<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::NotHere { node, .. }) if node == "1")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// How many descriptors this process has on the agent's files.
fn descriptors(nodes: &Nodes) -> usize {
    let folder = nodes.folder(0).canonicalize().unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = links.filter_map(|link| link.path().read_link().ok());
    targets.filter(|target| target.starts_with(&folder)).count()
}

#[test]
fn an_agent_moves_with_all_that_was_committed_and_leaves_no_file() {
    let nodes = Nodes::new();
    let (here, there) = (nodes.pool(0), nodes.pool(1));
    for _ in 0..10 {
        insert(&here.lease("a").unwrap());
    }
    let file = nodes.file(0, "a");
    assert!(beside(&file, "-wal").exists());
    let copied = here.agent("a").hand_over(|path| {
        assert_eq!(
            path,
            beside(&file.canonicalize().unwrap_or(file.clone()), "-leaving")
        );
        // Whole, in one file, closed, and not at the agent's path.
        for suffix in ["", "-wal", "-shm", "-journal"] {
            assert!(!beside(&file, suffix).exists(), "{suffix}");
        }
        let lock = "a.db-setup";
        assert!(
            nodes
                .files(0)
                .iter()
                .all(|name| name == "a.db-leaving" || name == lock)
        );
        nodes.copy(path, "a", 1).map(|()| "done")
    });
    assert_eq!(copied.unwrap(), "done");
    assert_eq!(nodes.files(0), [""; 0]);
    assert_eq!(descriptors(&nodes), 0);
    assert!(is_elsewhere(here.lease("a")));
    assert_eq!(count(&there.lease("a").unwrap()), 10);
    // And back.
    insert(&there.lease("a").unwrap());
    there
        .agent("a")
        .hand_over(|path| nodes.copy(path, "a", 0))
        .unwrap();
    assert_eq!(count(&here.lease("a").unwrap()), 11);
    assert_eq!(nodes.files(1), [""; 0]);
    crate::common::assert_whole(&here);
}

#[test]
fn while_it_is_copied_nothing_of_it_is_open() {
    let nodes = Nodes::new();
    let pool = nodes.pool(0);
    insert(&pool.lease("a").unwrap());
    // Other tests have files of the same names in other folders.
    let leaving = nodes.folder(0).canonicalize().unwrap();
    let leaving = leaving.join("a.db-leaving");
    let open = pool.agent("a").hand_over(|_| -> Result<usize, Error> {
        let of_lock = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let targets = of_lock.filter_map(|link| link.path().read_link().ok());
        let open = targets.filter(|target| *target == leaving).count();
        nodes.moved.lock().unwrap().insert("a".to_owned(), 1);
        Ok(open)
    });
    assert_eq!(open.unwrap(), 0);
}

type Call = fn(&Pool) -> Result<(), Error>;

/// What waits at the agent's lock meanwhile: leases, reads, writes, awaiting or not.
#[test]
fn callers_that_wait_are_told_the_node_and_make_no_file() {
    let nodes = Nodes::new();
    let pool = nodes.builder(0).lease_timeout(LONG).build().unwrap();
    insert(&pool.lease("a").unwrap());
    let calls: [Call; 7] = [
        |pool| pool.lease("a").map(drop),
        |pool| smol::block_on(pool.lease_async("a")).map(drop),
        |pool| pool.read("a", |_| Ok(())),
        |pool| pool.write("a", |tx| tx.execute_batch("INSERT INTO t VALUES (1)")),
        |pool| smol::block_on(pool.write_async("a", |_| Ok(()))),
        |pool| pool.agent("a").remove().map(drop),
        |pool| {
            pool.agent("a")
                .hand_over(|_| -> Result<(), Error> { panic!("a second copy") })
        },
    ];
    thread::scope(|scope| {
        let mut waiting = Vec::new();
        let done = pool.agent("a").hand_over(|path| {
            for call in calls {
                let pool = &pool;
                waiting.push(scope.spawn(move || call(pool)));
            }
            // One of the two writes leads and waits at the lock; the other waits for it.
            eventually("all wait", || {
                pool.waiting().len() + pool.stats().writes_waiting == calls.len()
            });
            nodes.copy(path, "a", 1)
        });
        done.unwrap();
        for call in waiting {
            assert!(is_elsewhere(call.join().unwrap()));
        }
    });
    assert_eq!(nodes.files(0), [""; 0]);
    assert_eq!(count(&nodes.pool(1).lease("a").unwrap()), 1);
    crate::common::assert_whole(&pool);
}

/// Why a hand-over fails, and what its error says.
type Failure = (
    &'static str,
    fn(&Nodes, &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
);

#[test]
fn what_fails_leaves_the_agent_as_it_was_and_callers_that_wait_go_on() {
    let failures: [Failure; 3] = [
        ("no route", |_, _| Err("no route".into())),
        ("the work given to hand_over panicked: half way", |_, _| {
            panic!("half way")
        }),
        ("still says that the agent is here", |nodes, path| {
            std::fs::copy(path, nodes.arrival(1, "a"))?;
            Ok(())
        }),
    ];
    for (expected, fail) in failures {
        let nodes = Nodes::new();
        let pool = nodes.builder(0).lease_timeout(LONG).build().unwrap();
        insert(&pool.lease("a").unwrap());
        thread::scope(|scope| {
            let mut waiting = None;
            let done = pool.agent("a").hand_over(|path| {
                waiting = Some(scope.spawn(|| pool.lease("a").map(|lease| count(&lease))));
                eventually("it waits", || pool.waiting().len() == 1);
                fail(&nodes, path)
            });
            let Err(Error::HandOver { agent, source, .. }) = done else {
                panic!("{expected}: {done:?}");
            };
            assert_eq!(agent, "a");
            assert!(source.to_string().contains(expected), "{source}");
            assert_eq!(waiting.unwrap().join().unwrap().unwrap(), 1);
        });
        pool.close().unwrap();
        assert_eq!(nodes.files(0), ["a.db"]);
        crate::common::assert_whole(&nodes.pool(0));
    }
}

#[test]
fn it_waits_for_the_lease_and_takes_along_what_the_lease_wrote_last() {
    let nodes = Nodes::new();
    let pool = nodes.pool(0);
    let lease = pool.lease("a").unwrap();
    insert(&lease);
    let soon = pool.agent("a").within(Duration::from_millis(5));
    let error = soon.hand_over(|_| Ok::<_, Error>(())).unwrap_err();
    assert!(error.is_exhausted() && error.is_retryable());
    thread::scope(|scope| {
        let agent = pool.agent("a").within(LONG);
        let nodes = &nodes;
        let handed = scope.spawn(move || agent.hand_over(|path| nodes.copy(path, "a", 1)));
        eventually("it waits", || pool.waiting().len() == 1);
        insert(&lease);
        drop(lease);
        handed.join().unwrap().unwrap();
    });
    assert_eq!(count(&nodes.pool(1).lease("a").unwrap()), 2);
}

#[test]
fn close_waits_for_it_and_from_within_it_is_an_error() {
    let nodes = Nodes::new();
    let pool = nodes.pool(0);
    insert(&pool.lease("a").unwrap());
    let soon = Duration::from_millis(5);
    pool.agent("a")
        .hand_over(|path| {
            assert!(matches!(pool.close(), Err(Error::Reentrant { .. })));
            // Other agents are served.
            insert(&pool.lease("b").unwrap());
            let closed = thread::scope(|scope| {
                let other = scope.spawn(|| pool.close_within(soon));
                other.join().unwrap()
            });
            assert!(closed.unwrap_err().is_exhausted());
            nodes.copy(path, "a", 1)
        })
        .unwrap();
    pool.close().unwrap();
    assert!(nodes.files(0).iter().all(|file| file == "b.db"));
    assert_eq!(count(&nodes.pool(1).lease("a").unwrap()), 1);
    let late = pool.agent("b").hand_over(|_| Ok::<_, Error>(()));
    assert!(matches!(late, Err(Error::Closed)));
}

#[test]
fn an_agent_without_a_database_moves_with_an_empty_one_that_is_set_up() {
    let nodes = Nodes::new();
    let pool = nodes.pool(0);
    pool.agent("a")
        .hand_over(|path| nodes.copy(path, "a", 1))
        .unwrap();
    assert_eq!(count(&nodes.pool(1).lease("a").unwrap()), 0);
    // Where none is made, there is none to hand over.
    nodes.moved.lock().unwrap().insert("b".to_owned(), 1);
    drop(pool);
    let there = nodes.pool(1);
    let none = there.agent("b").hand_over(|_| Ok::<_, Error>(()));
    assert!(matches!(none, Err(Error::NoDatabase { .. })));
}

#[test]
fn it_needs_files_of_agents_an_owner_and_a_pool_that_writes() {
    let nodes = Nodes::new();
    let work = |_: &Path| Ok::<_, Error>(());
    let memory = Pool::builder(Database::memory()).build().unwrap();
    let unsupported = memory.agent("a").hand_over(work);
    assert!(matches!(unsupported, Err(Error::Unsupported { .. })));
    let without = Pool::builder(Database::per_agent(nodes.folder(0)))
        .build()
        .unwrap();
    let unsupported = without.agent("a").hand_over(work);
    assert!(matches!(unsupported, Err(Error::Unsupported { .. })));
    without.close().unwrap();
    let reads = nodes.builder(0).reads_only(true).build().unwrap();
    let refused = reads.agent("a").hand_over(work);
    assert!(matches!(refused, Err(Error::ReadOnly)));
}

#[test]
fn a_backup_that_begins_meanwhile_waits_and_is_told_the_node() {
    let nodes = Nodes::new();
    let pool = nodes.builder(0).lease_timeout(LONG).build().unwrap();
    insert(&pool.lease("a").unwrap());
    let to = nodes.folder.path().join("backup");
    thread::scope(|scope| {
        let mut backup = None;
        pool.agent("a")
            .hand_over(|path| {
                backup = Some(scope.spawn(|| pool.agent("a").backup(&to)));
                nodes.copy(path, "a", 1)
            })
            .unwrap();
        assert!(is_elsewhere(backup.unwrap().join().unwrap()));
    });
    assert!(!to.exists());
}

/// A process that dies at the end of a hand-over leaves its database, and one that is declared dead and comes back has one.
/// When the agent returns, it must not be taken for the agent's.
#[test]
fn what_is_left_of_an_agent_is_removed_before_the_agent_returns() {
    let nodes = Nodes::new();
    let (here, there) = (nodes.pool(0), nodes.pool(1));
    insert(&here.lease("a").unwrap());
    // As long as the agent is here, there is nothing of another node's.
    let refused = here.agent("a").remove_leftovers();
    assert!(
        matches!(refused, Err(Error::Unsupported { .. })),
        "{refused:?}"
    );
    let old = nodes.folder.path().join("old");
    here.agent("a")
        .hand_over(|path| std::fs::copy(path, &old).and_then(|_| nodes.copy(path, "a", 1)))
        .unwrap();
    insert(&there.lease("a").unwrap());
    assert!(!here.agent("a").remove_leftovers().unwrap());
    for left in [nodes.file(0, "a"), beside(&nodes.file(0, "a"), "-leaving")] {
        std::fs::copy(&old, &left).unwrap();
        assert!(is_elsewhere(here.lease("a")));
        assert!(here.agent("a").remove_leftovers().unwrap());
        assert!(!here.agent("a").exists().unwrap());
    }
    assert_eq!(nodes.files(0), [""; 0]);
    std::fs::copy(&old, beside(&nodes.file(0, "a"), "-leaving")).unwrap();
    there
        .agent("a")
        .hand_over(|path| {
            assert!(here.agent("a").remove_leftovers().unwrap());
            nodes.copy(path, "a", 0)
        })
        .unwrap();
    assert_eq!(count(&here.lease("a").unwrap()), 2);
}

/// In each mode that changes how a file is opened, with the one connection that a pool may have at least, and within its
/// ceiling.
#[test]
fn it_needs_no_more_than_one_connection_in_any_mode() {
    type With = fn(Builder) -> Builder;
    let modes: [With; 4] = [
        |builder| builder,
        |builder| builder.exclusive_locking(true),
        |builder| builder.synchronous(leasepool::Synchronous::Off),
        |builder| builder.external_checkpoints(None),
    ];
    for mode in modes {
        let nodes = Nodes::new();
        let pool = mode(nodes.builder(0).max_connections(1)).build().unwrap();
        let there = mode(nodes.builder(1).max_connections(1)).build().unwrap();
        for agent in ["a", "b"] {
            insert(&pool.lease(agent).unwrap());
            // Work that fails, and that has read the file by SQLite.
            let failed = pool.agent(agent).hand_over(|path| {
                let conn = Connection::open(path).unwrap();
                assert_eq!(count(&conn), 1);
                assert!(descriptors(&nodes) <= pool.fd_ceiling());
                Err::<(), _>("not yet")
            });
            assert!(matches!(failed, Err(Error::HandOver { .. })), "{failed:?}");
            insert(&pool.lease(agent).unwrap());
            let copied = pool.agent(agent);
            copied.hand_over(|path| nodes.copy(path, agent, 1)).unwrap();
            assert_eq!(count(&there.lease(agent).unwrap()), 2);
        }
        assert_eq!(nodes.files(0), [""; 0]);
        assert_eq!(pool.descriptors(), Some(0));
    }
}

/// A shell that has run `sql` and keeps the database open.
fn shell_after(file: &Path, sql: &str) -> Shell {
    let mut shell = Shell::on(file);
    shell.run(sql);
    shell
}

fn is_busy(error: &Error) -> bool {
    let Error::Open { source, .. } = error else {
        return false;
    };
    let source = source.downcast_ref::<leasepool::rusqlite::Error>().unwrap();
    source.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

#[test]
fn another_process_that_has_it_open_keeps_it_here() {
    let nodes = Nodes::new();
    let pool = nodes.pool(0);
    insert(&pool.lease("a").unwrap());
    let shell = shell_after(&nodes.file(0, "a"), "SELECT count(*) FROM t");
    let agent = pool.agent("a").within(Duration::from_millis(20));
    let error = agent.hand_over(|_| -> Result<(), Error> { panic!("not alone") });
    let error = error.unwrap_err();
    assert!(is_busy(&error) && error.is_retryable(), "{error:?}");
    assert_eq!(count(&pool.lease("a").unwrap()), 1);
    drop(shell);
    agent
        .within(LONG)
        .hand_over(|path| nodes.copy(path, "a", 1))
        .unwrap();
    assert_eq!(count(&nodes.pool(1).lease("a").unwrap()), 1);
}

/// As Litestream does: it reads the log, and stays.
#[test]
fn the_process_that_runs_the_checkpoints_may_have_it_open() {
    let nodes = Nodes::new();
    let pool = nodes.builder(0).external_checkpoints(None).build().unwrap();
    for _ in 0..10 {
        insert(&pool.lease("a").unwrap());
    }
    let file = nodes.file(0, "a");
    // It has read only a part of the log, and keeps the rest from being copied into the file.
    let _reads = shell_after(&file, "BEGIN; SELECT count(*) FROM t");
    insert(&pool.lease("a").unwrap());
    let writes = shell_after(&file, "BEGIN IMMEDIATE");
    let agent = pool.agent("a").within(Duration::from_millis(20));
    let error = agent.hand_over(|_| Ok::<_, Error>(())).unwrap_err();
    assert!(is_busy(&error), "{error:?}");
    drop(writes);
    agent
        .within(LONG)
        .hand_over(|path| nodes.copy(path, "a", 1))
        .unwrap();
    assert_eq!(nodes.files(0), [""; 0]);
    assert_eq!(count(&nodes.pool(1).lease("a").unwrap()), 11);
    // The same for the removal of a database.
    insert(&pool.lease("b").unwrap());
    let _reads = shell_after(&nodes.file(0, "b"), "BEGIN; SELECT count(*) FROM t");
    assert!(
        pool.agent("b")
            .within(Duration::from_millis(20))
            .remove()
            .unwrap()
    );
}

/// A process that dies while it hands over leaves the whole database, which the next lease finds.
#[test]
fn a_process_that_dies_meanwhile_keeps_the_agent() {
    const CHILD: &str = "LEASEPOOL_TEST_HANDS_OVER_IN";
    const NAME: &str = "hand_over::a_process_that_dies_meanwhile_keeps_the_agent";
    if let Some(folder) = std::env::var_os(CHILD) {
        let database = Database::per_agent(folder).owner(|_| Owner::Here);
        let pool = Pool::builder(database).build().unwrap();
        let _ = pool.agent("a").hand_over(|_| -> Result<(), Error> {
            std::process::abort();
        });
        return;
    }
    let nodes = Nodes::new();
    let pool = nodes.pool(0);
    for _ in 0..10 {
        insert(&pool.lease("a").unwrap());
    }
    pool.close().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, nodes.folder(0))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the child dies", || child.try_wait().unwrap().is_some());
    assert!(nodes.files(0).contains(&"a.db-leaving".to_owned()));
    // `create` and `on_missing` are not asked for what lies here.
    let calls = Arc::new(AtomicUsize::new(0));
    let called = Arc::clone(&calls);
    let database = nodes.database(0).create(false).on_missing(move |_, _| {
        called.fetch_add(1, SeqCst);
        Ok::<_, Error>(())
    });
    let pool = Pool::builder(database).build().unwrap();
    assert!(pool.agent("a").exists().unwrap());
    assert_eq!(count(&pool.lease("a").unwrap()), 10);
    assert_eq!(calls.load(SeqCst), 0);
    pool.close().unwrap();
    assert_eq!(nodes.files(0), ["a.db"]);
    // It may be removed, too.
    std::fs::rename(nodes.file(0, "a"), beside(&nodes.file(0, "a"), "-leaving")).unwrap();
    let pool = nodes.pool(0);
    assert!(pool.agent("a").remove().unwrap());
    assert_eq!(nodes.files(0), [""; 0]);
}

/// The main promise: writers write at two nodes, agents go to and fro, and each acknowledged write is there once.
#[test]
fn no_acknowledged_write_is_lost_however_often_agents_move() {
    const AGENTS: usize = 6;
    const MOVES: usize = 150;
    let nodes = Nodes::new();
    let pools = [0, 1].map(|node| {
        let builder = nodes.builder(node).lease_timeout(LONG);
        builder.wal_size(1 << 16).build().unwrap()
    });
    let agents: Vec<String> = (0..AGENTS).map(|i| format!("agent-{i}")).collect();
    for agent in &agents {
        drop(pools[0].lease(agent).unwrap());
    }
    let over = AtomicBool::new(false);
    let (next, redirected) = (AtomicI64::new(0), AtomicUsize::new(0));
    let acknowledged: Mutex<Vec<Vec<i64>>> = Mutex::new(vec![Vec::new(); AGENTS]);
    thread::scope(|scope| {
        for writer in 0..6_usize {
            let (pools, agents, over) = (&pools, &agents, &over);
            let (next, redirected, acknowledged) = (&next, &redirected, &acknowledged);
            scope.spawn(move || {
                let mut node = 0;
                while !over.load(SeqCst) {
                    let x = next.fetch_add(1, SeqCst);
                    let agent = usize::try_from(x).unwrap() % AGENTS;
                    loop {
                        let written = match writer % 3 {
                            0 => pools[node].execute(
                                &agents[agent],
                                "INSERT INTO t VALUES (?1)",
                                [x],
                            ),
                            1 => smol::block_on(pools[node].execute_async(
                                &agents[agent],
                                "INSERT INTO t VALUES (?1)",
                                [x],
                            )),
                            _ => pools[node].lease(&agents[agent]).and_then(|lease| {
                                Ok(lease.execute("INSERT INTO t VALUES (?1)", [x])?)
                            }),
                        };
                        match written {
                            Ok(_) => break,
                            Err(Error::NotHere { node: to, .. }) => {
                                redirected.fetch_add(1, SeqCst);
                                node = to.parse().unwrap();
                            }
                            Err(error) => panic!("{error:?}"),
                        }
                    }
                    acknowledged.lock().unwrap()[agent].push(x);
                }
            });
        }
        let started = Instant::now();
        for i in 0..MOVES {
            let agent = &agents[i % AGENTS];
            let from = nodes.moved.lock().unwrap().get(agent).copied().unwrap_or(0);
            let handed = pools[from]
                .agent(agent)
                .hand_over(|path| nodes.copy(path, agent, 1 - from));
            if handed.is_err() {
                over.store(true, SeqCst);
            }
            handed.unwrap();
        }
        eprintln!("{MOVES} hand-overs in {:?}", started.elapsed());
        over.store(true, SeqCst);
    });
    drop(pools);
    let acknowledged = acknowledged.into_inner().unwrap();
    let mut writes = 0;
    for (agent, mut acknowledged) in agents.iter().zip(acknowledged) {
        let node = nodes.moved.lock().unwrap()[agent];
        let path = match nodes.file(node, agent) {
            file if file.exists() => file,
            _ => nodes.arrival(node, agent),
        };
        assert!(!nodes.file(1 - node, agent).exists());
        let conn = Connection::open(path).unwrap();
        let mut rows = conn.prepare("SELECT x FROM t ORDER BY x").unwrap();
        let rows = rows.query_map([], |row| row.get(0)).unwrap();
        let rows: Vec<i64> = rows.collect::<Result<_, _>>().unwrap();
        acknowledged.sort_unstable();
        writes += rows.len();
        assert!(
            rows == acknowledged,
            "{agent}: {} of {}",
            rows.len(),
            acknowledged.len()
        );
    }
    eprintln!("{writes} writes, {} sent on", redirected.load(SeqCst));
    assert!(writes > MOVES && redirected.load(SeqCst) > 0);
}

/// What each of the two nodes of one process needs to know, on the disk: the node that has the agent, and the copy that it
/// arrived as.
struct Directory(PathBuf);

impl Directory {
    fn find(&self) -> (usize, String) {
        let found = std::fs::read_to_string(self.0.join("owner")).unwrap_or("0 none".to_owned());
        let (node, copy) = found.split_once(' ').unwrap();
        (node.parse().unwrap(), copy.to_owned())
    }

    fn record(&self, node: usize, copy: &str) -> std::io::Result<()> {
        let partial = self.0.join("owner-partial");
        std::fs::write(&partial, format!("{node} {copy}"))?;
        std::fs::rename(partial, self.0.join("owner"))
    }

    fn pools(folder: &Path) -> [Pool; 2] {
        [0, 1].map(|node| {
            let (asked, found) = (Directory(folder.to_owned()), Directory(folder.to_owned()));
            let database = Database::per_agent(folder.join(format!("node-{node}")))
                .owner(move |_| match asked.find().0 {
                    owner if owner == node => Owner::Here,
                    owner => Owner::Elsewhere(owner.to_string()),
                })
                .on_missing(move |_, path| match found.find().1.as_str() {
                    "none" => Ok(()),
                    copy => std::fs::copy(found.0.join(copy), path).map(drop),
                });
            Pool::builder(database)
                .max_connections(2)
                .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
                .build()
                .unwrap()
        })
    }
}

/// Writes, prints what is acknowledged, and moves the agent to and fro, until it is killed.
fn move_to_and_fro(folder: &Path, from: i64) {
    let directory = Directory(folder.to_owned());
    let pools = Directory::pools(folder);
    for x in from.. {
        let node = directory.find().0;
        pools[node]
            .execute("a", "INSERT INTO t VALUES (?1)", [x])
            .unwrap();
        println!("acknowledged {x}");
        if x % 2 == 0 {
            let copy = format!("copy-{x}-{}", std::process::id());
            let handed = pools[node].agent("a").hand_over(|file| {
                std::fs::copy(file, folder.join(&copy))?;
                // What an earlier process may have left, if it was killed at the end of a hand-over.
                pools[1 - node].agent("a").remove_leftovers().unwrap();
                directory.record(1 - node, &copy)
            });
            handed.unwrap();
        }
    }
}

/// P15 and P21: at whatever moment the process is killed, the agent is at the node that the directory says, with all that was
/// acknowledged.
#[test]
fn a_process_that_is_killed_at_any_moment_loses_no_acknowledged_write() {
    use std::io::{BufRead, BufReader};

    const CHILD: &str = "LEASEPOOL_TEST_MOVES_IN";
    const NAME: &str =
        "hand_over::a_process_that_is_killed_at_any_moment_loses_no_acknowledged_write";
    if let Some(folder) = std::env::var_os(CHILD) {
        let from = std::env::var("LEASEPOOL_TEST_MOVES_FROM").unwrap();
        return move_to_and_fro(Path::new(&folder), from.parse().unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let (mut acknowledged, mut moves) = (Vec::new(), 0);
    for kill in 0..crate::common::kills() {
        let from = 1_000 * (i64::try_from(kill).unwrap() + 1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture"])
            .env(CHILD, folder.path())
            .env("LEASEPOOL_TEST_MOVES_FROM", from.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Some acknowledged writes, and then a moment that differs each time.
        let mut of_child = 0;
        let number = |line: std::io::Result<String>| -> Option<i64> {
            line.ok()?.strip_prefix("acknowledged ")?.parse().ok()
        };
        for line in lines {
            let Some(x) = number(line) else { continue };
            acknowledged.push(x);
            of_child += 1;
            if of_child == 2 + kill % 5 {
                thread::sleep(Duration::from_micros(kill * 1_700 % 23_000));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let node = Directory(folder.path().to_owned()).find().0;
        let pools = Directory::pools(folder.path());
        assert!(pools[1 - node].lease("a").is_err());
        let lease = pools[node].lease("a").unwrap();
        let mut select = lease.prepare("SELECT x FROM t ORDER BY x").unwrap();
        let rows = select.query_map([], |row| row.get(0)).unwrap();
        let rows: Vec<i64> = rows.collect::<Result<_, _>>().unwrap();
        for x in &acknowledged {
            assert_eq!(
                rows.iter().filter(|row| *row == x).count(),
                1,
                "{x} of {rows:?}"
            );
        }
        // Of each process, one write may be there whose acknowledgement was not printed.
        assert!(rows.len() <= acknowledged.len() + 1 + usize::try_from(kill).unwrap());
        moves += of_child / 2;
    }
    assert!(moves > 0);
    eprintln!("{} acknowledged, some {moves} moves", acknowledged.len());
}
