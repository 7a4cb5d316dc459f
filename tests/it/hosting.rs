//! Whose an agent is, and where its database comes from: `Database::owner`, `create`, `on_missing`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use leasepool::rusqlite::Connection;
use leasepool::{Database, Error, Owner, Pool};

use crate::common::{LONG, count, eventually, in_child, insert};

struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Node {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn database(&self) -> Database {
        Database::per_agent(self.folder.path().join("agents"))
    }

    fn pool(&self, database: Database) -> Pool {
        Pool::builder(database)
            .max_connections(2)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
            .build()
            .unwrap()
    }

    /// The names of all files in the folder of agents, in order.
    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path().join("agents")).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn file(&self, agent: &str) -> PathBuf {
        self.folder.path().join(format!("agents/{agent}.db"))
    }

    /// A database with so many rows, beside the folder of agents.
    fn copy(&self, rows: usize) -> PathBuf {
        let path = self.folder.path().join("copy.db");
        let conn = Connection::open(&path).unwrap();
        conn.execute_batch("CREATE TABLE t (x)").unwrap();
        (0..rows).for_each(|_| insert(&conn));
        path
    }
}

fn is_elsewhere<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::NotHere { agent, node, .. }) if agent == "bob" && node == "node-2")
}

fn has_no_database<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::NoDatabase { agent, .. }) if agent == "bob")
}

#[test]
fn every_call_for_an_agent_of_another_node_is_refused_before_anything_is_made() {
    let node = Node::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let pool = node.pool(node.database().owner(move |agent| {
        count.fetch_add(1, SeqCst);
        match agent {
            "bob" => Owner::Elsewhere("node-2".to_owned()),
            _ => Owner::Here,
        }
    }));
    drop(pool.lease("alice").unwrap());
    let bob = pool.agent("bob");
    assert!(is_elsewhere(bob.lease()));
    assert!(is_elsewhere(bob.try_lease()));
    assert!(is_elsewhere(smol::block_on(bob.lease_async())));
    assert!(is_elsewhere(bob.read(|_| Ok(()))));
    assert!(is_elsewhere(smol::block_on(bob.read_async(|_| Ok(())))));
    assert!(is_elsewhere(smol::block_on(bob.run(|_| Ok(())))));
    assert!(is_elsewhere(bob.write(|_| Ok(()))));
    assert!(is_elsewhere(smol::block_on(bob.write_async(|_| Ok(())))));
    assert!(is_elsewhere(bob.execute("SELECT 1", ())));
    assert!(is_elsewhere(bob.vacuum()));
    assert!(is_elsewhere(bob.remove()));
    assert!(is_elsewhere(bob.backup(node.folder.path().join("b.db"))));
    assert!(is_elsewhere(bob.hand_over(|_| Ok::<_, Error>(()))));
    assert!(!bob.exists().unwrap());
    assert!(node.files().iter().all(|file| file.starts_with("alice")));
    let error = bob.lease().unwrap_err();
    assert_eq!((error.http_status(), error.is_retryable()), (421, false));
    assert_eq!(error.retry_after(), None);
    // Also for a hit.
    let before = asked.load(SeqCst);
    drop(pool.lease("alice").unwrap());
    assert_eq!(asked.load(SeqCst), before + 1);
}

#[test]
fn an_agent_that_moves_away_is_served_no_more_from_its_parked_connection_and_when_it_returns_it_is()
{
    let node = Node::new();
    let elsewhere = Arc::new(AtomicBool::new(false));
    let is_elsewhere_now = Arc::clone(&elsewhere);
    let pool = node.pool(
        node.database()
            .owner(move |_| match is_elsewhere_now.load(SeqCst) {
                true => Owner::Elsewhere("node-2".to_owned()),
                false => Owner::Here,
            }),
    );
    let lease = pool.lease("bob").unwrap();
    insert(&lease);
    elsewhere.store(true, SeqCst);
    // A lease that is out is not taken away; and nobody waits for it in vain.
    assert!(is_elsewhere(pool.agent("bob").within(LONG).lease()));
    insert(&lease);
    drop(lease);
    assert!(is_elsewhere(pool.lease("bob")));
    elsewhere.store(false, SeqCst);
    assert_eq!(count(&pool.lease("bob").unwrap()), 2);
}

#[test]
fn a_panic_of_the_owner_function_is_an_error() {
    let node = Node::new();
    let pool = node.pool(node.database().owner(|agent| match agent {
        "bob" => panic!("no table"),
        _ => Owner::Here,
    }));
    for error in [
        pool.lease("bob").map(drop).unwrap_err(),
        pool.write("bob", |_| Ok(())).unwrap_err(),
        pool.agent("bob").remove().map(drop).unwrap_err(),
    ] {
        let text = error.to_string();
        assert_eq!(text, "the function given to owner panicked: no table");
    }
    assert_eq!(node.files(), [""; 0]);
    crate::common::assert_whole(&pool);
}

type With = fn(Database) -> Database;

#[test]
fn options_of_files_need_files() {
    let databases: [(&str, With); 3] = [
        ("owner", |database| database.owner(|_| Owner::Here)),
        ("create", |database| database.create(false)),
        ("on_missing", |database| {
            database.on_missing(|_, _| Ok::<_, Error>(()))
        }),
    ];
    for (name, with) in databases {
        let built = Pool::builder(with(Database::memory())).build();
        assert!(
            matches!(built, Err(Error::Config { option, .. }) if option == name),
            "{name}"
        );
    }
}

#[test]
fn without_create_no_file_is_made() {
    let node = Node::new();
    let pool = node.pool(node.database().create(false));
    assert!(has_no_database(pool.lease("bob")));
    assert!(has_no_database(pool.write("bob", |_| Ok(()))));
    assert!(has_no_database(pool.try_lease("bob")));
    assert_eq!(node.files(), [""; 0]);
    assert_eq!(pool.lease("bob").unwrap_err().http_status(), 404);
    // What a process leaves that dies as it begins to make a database.
    std::fs::write(node.file("bob"), "").unwrap();
    assert!(has_no_database(pool.lease("bob")));
    assert!(!pool.agent("bob").exists().unwrap());
    std::fs::copy(node.copy(3), node.file("bob")).unwrap();
    assert_eq!(count(&pool.lease("bob").unwrap()), 3);
    assert!(pool.agent("bob").exists().unwrap());
}

#[test]
fn a_missing_database_is_brought_once_and_set_up() {
    let node = Node::new();
    let copy = node.copy(3);
    let called = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&called);
    let database = node.database().on_missing(move |agent, path| {
        calls.fetch_add(1, SeqCst);
        assert!(!path.exists());
        match agent {
            "bob" => std::fs::copy(&copy, path).map(drop),
            _ => Ok(()),
        }
    });
    let pool = Pool::builder(database)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS of_setup (x)"))
        .build()
        .unwrap();
    let all = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                all.wait();
                let lease = pool.lease("bob").unwrap();
                assert_eq!(count(&lease), 3);
                lease.execute_batch("SELECT x FROM of_setup").unwrap();
            });
        }
    });
    pool.evict("bob");
    drop(pool.lease("bob").unwrap());
    assert_eq!(called.load(SeqCst), 1);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(node.file("bob")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // It brings none: one is made.
    drop(pool.lease("carol").unwrap());
    assert_eq!(called.load(SeqCst), 2);
    pool.close().unwrap();
    assert_eq!(node.files(), ["bob.db", "carol.db"]);
}

#[test]
fn what_is_not_brought_is_not_made_either_without_create() {
    let node = Node::new();
    let pool = node.pool(
        node.database()
            .create(false)
            .on_missing(|_, _| Ok::<_, Error>(())),
    );
    assert!(has_no_database(pool.lease("bob")));
    assert_eq!(node.files(), [""; 0]);
}

#[test]
fn a_log_that_lies_at_the_path_is_not_replayed_into_what_is_brought() {
    let node = Node::new();
    let (copy, file) = (node.copy(3), node.file("bob"));
    let pool = node.pool(
        node.database()
            .on_missing(move |_, path| std::fs::copy(&copy, path).map(drop)),
    );
    // That of another database, which SQLite has no way to tell.
    let other = node.folder.path().join("copy.other");
    let conn = Connection::open(&other).unwrap();
    conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    conn.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
        .unwrap();
    std::fs::copy(
        other.with_extension("other-wal"),
        file.with_extension("db-wal"),
    )
    .unwrap();
    assert_eq!(count(&pool.lease("bob").unwrap()), 3);
}

type Bring = fn(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[test]
fn what_cannot_be_brought_is_an_error_and_leaves_nothing() {
    let node = Node::new();
    let bring: [(&str, Bring); 4] = [
        ("no replica", |path| {
            std::fs::write(path, [0; 4096])?;
            Err("no replica".into())
        }),
        ("on_missing panicked: half way", |path| {
            std::fs::write(path, [0; 4096])?;
            panic!("half way");
        }),
        ("too short", |path| Ok(std::fs::write(path, "no database")?)),
        ("not whole", |path| {
            std::fs::write(path, [0; 4096])?;
            let mut log = path.to_path_buf().into_os_string();
            log.push("-wal");
            Ok(std::fs::write(log, [0; 4096])?)
        }),
    ];
    for (expected, bring) in bring {
        let fail = Arc::new(AtomicBool::new(true));
        let fails = Arc::clone(&fail);
        let database = node
            .database()
            .on_missing(move |_, path| match fails.load(SeqCst) {
                true => bring(path),
                false => Ok(()),
            });
        let pool = node.pool(database);
        let Err(Error::Open { source, .. }) = pool.lease("bob") else {
            panic!("{expected}");
        };
        assert!(source.to_string().contains(expected), "{source}");
        assert_eq!(node.files(), [""; 0], "{expected}");
        // The next call begins anew.
        fail.store(false, SeqCst);
        assert_eq!(count(&pool.lease("bob").unwrap()), 0);
        pool.agent("bob").remove().unwrap();
        crate::common::assert_whole(&pool);
        for agent in pool.agents().unwrap() {
            pool.agent(agent.unwrap()).remove().unwrap();
        }
        pool.close().unwrap();
    }
}

#[test]
fn others_do_not_wait_for_a_restore_and_a_caller_whose_time_has_passed_does_not_end_it() {
    let node = Node::new();
    let copy = node.copy(3);
    let (begun, begins) = mpsc::channel();
    let (go_on, wait) = mpsc::channel::<()>();
    let wait = by_any_thread(wait);
    let pool = node.pool(node.database().on_missing(move |agent, path| {
        if agent == "bob" {
            begun.send(()).unwrap();
            wait();
            std::fs::copy(&copy, path)?;
        }
        Ok::<_, std::io::Error>(())
    }));
    std::thread::scope(|scope| {
        let bob = scope.spawn(|| pool.agent("bob").within(LONG).lease().map(|l| count(&l)));
        begins.recv_timeout(LONG).unwrap();
        insert(&pool.lease("carol").unwrap());
        let soon = pool.agent("bob").within(Duration::from_millis(5));
        assert!(matches!(soon.lease(), Err(Error::Exhausted { .. })));
        go_on.send(()).unwrap();
        assert_eq!(bob.join().unwrap().unwrap(), 3);
    });
    assert!(begins.try_recv().is_err());
}

/// A receiver that any thread may wait at.
fn by_any_thread(receiver: mpsc::Receiver<()>) -> impl Fn() + Send + Sync {
    let receiver = std::sync::Mutex::new(receiver);
    move || receiver.lock().unwrap().recv_timeout(LONG).unwrap()
}

/// P15 for restores: what a process leaves that dies within `on_missing` is not used.
#[test]
fn a_process_that_dies_half_way_leaves_no_half_database() {
    const CHILD: &str = "LEASEPOOL_TEST_RESTORES_IN";
    const NAME: &str = "hosting::a_process_that_dies_half_way_leaves_no_half_database";
    if let Some(folder) = std::env::var_os(CHILD) {
        let database = Database::per_agent(folder).on_missing(|_, path| {
            std::fs::write(path, [1; 8192]).unwrap();
            std::process::abort();
            #[allow(unreachable_code, reason = "it says what the closure's error would be")]
            Ok::<_, std::io::Error>(())
        });
        let pool = Pool::builder(database).build().unwrap();
        let _ = pool.lease("bob");
        return;
    }
    let node = Node::new();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME])
        .env(CHILD, node.folder.path().join("agents"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("the child dies", || child.try_wait().unwrap().is_some());
    assert!(node.files().contains(&"bob.db-restore".to_owned()));
    let copy = node.copy(3);
    let pool = node.pool(node.database().on_missing(move |_, path| {
        assert!(!path.exists());
        std::fs::copy(&copy, path).map(drop)
    }));
    assert_eq!(count(&pool.lease("bob").unwrap()), 3);
    pool.close().unwrap();
    assert_eq!(node.files(), ["bob.db"]);
}

/// P1: `on_missing` and the rename open nothing that stays open.
#[test]
fn nothing_stays_open_of_a_restore() {
    in_child("hosting::nothing_stays_open_of_a_restore", || {
        let node = Node::new();
        let copy = node.copy(1);
        let pool = node.pool(
            node.database()
                .on_missing(move |_, path| std::fs::copy(&copy, path).map(drop)),
        );
        let before = crate::common::open_descriptors();
        for i in 0..20 {
            drop(pool.lease(i).unwrap());
        }
        assert!(crate::common::open_descriptors() <= before + pool.fd_ceiling());
        pool.close().unwrap();
        assert_eq!(pool.descriptors(), Some(0));
    });
}
