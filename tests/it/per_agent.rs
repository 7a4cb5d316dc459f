//! One database file for each agent, under one cap.

use std::collections::HashSet;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::{self, Connection, OpenFlags};
use leasepool::{Builder, Database, Error, FileState, Lease, Pool, Wanted};

use crate::common::{
    LONG, eventually, in_child, let_a_change_show, limit_descriptors, open_descriptors,
};
use crate::shell::Shell;

struct Agents {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Agents {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("agents");
        Agents {
            _folder: folder,
            path,
        }
    }

    fn builder(&self, connections: usize) -> Builder {
        Pool::builder(Database::per_agent(&self.path))
            .max_connections(connections)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
    }

    fn pool(&self, connections: usize) -> Pool {
        self.builder(connections).build().unwrap()
    }

    fn file(&self, agent: &str) -> PathBuf {
        self.path.join(agent).with_extension("db")
    }

    /// All descriptors that this process has on files of the folder.
    fn descriptors(&self) -> usize {
        // Read one by one, what is closed and opened meanwhile would count twice.
        let list = || {
            let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let targets = links.filter_map(|link| link.path().read_link().ok());
            targets
                .filter(|target| target.starts_with(&self.path))
                .collect::<Vec<_>>()
        };
        let mut before = list();
        loop {
            let now = list();
            if now == before {
                return now.len();
            }
            before = now;
        }
    }
}

fn insert(conn: &Connection, x: i64) {
    conn.execute("INSERT INTO t VALUES (?1)", [x]).unwrap();
}

fn rows(conn: &Connection) -> Vec<i64> {
    let mut select = conn.prepare("SELECT x FROM t ORDER BY rowid").unwrap();
    let rows = select.query_map([], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[test]
fn each_agent_has_its_own() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    for i in 0..20 {
        insert(&pool.lease(format!("agent-{i}")).unwrap(), i);
        assert!(agents.descriptors() <= 6);
        assert!(pool.stats().files <= 2);
        assert_eq!(pool.descriptors(), Some(agents.descriptors()));
    }
    for i in 0..20 {
        assert_eq!(rows(&pool.lease(format!("agent-{i}")).unwrap()), [i]);
    }
    // Four for each that is synced, and one for each of these to be set up at the same time; and one.
    assert_eq!(pool.fd_ceiling(), 4 * 2 + 2 + 1);
    let mut ids: Vec<_> = pool.agents().unwrap().map(Result::unwrap).collect();
    ids.sort();
    let mut wanted: Vec<_> = (0..20).map(|i| format!("agent-{i}")).collect();
    wanted.sort();
    assert_eq!(ids, wanted);
    pool.close().unwrap();
    assert_eq!(agents.descriptors(), 0);
}

#[test]
fn files_and_folder_are_private() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    insert(&pool.lease("a").unwrap(), 1);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&agents.path), 0o700);
    let file = agents.file("a");
    for path in [&file, &beside(&file, "-wal"), &beside(&file, "-shm")] {
        assert_eq!(mode(path), 0o600, "{path:?}");
    }
}

/// P19, through the pool: hostile ids stay in the folder, and in files of their own.
#[test]
fn hostile_ids() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    let ids = [
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "a/b",
        "a\\b",
        "a\0b",
        "A",
        "a",
        "é",
        "e\u{301}",
        "%41",
        "a.db",
        "a.db-wal",
        " ",
        "~",
        "-",
        "file:x?mode=memory",
        ":memory:",
        "\n",
    ];
    for (i, id) in (0..).zip(ids) {
        insert(&pool.lease(id).unwrap(), i);
    }
    for (i, id) in (0..).zip(ids) {
        assert_eq!(rows(&pool.lease(id).unwrap()), [i], "{id:?}");
    }
    let listed: HashSet<_> = pool.agents().unwrap().map(Result::unwrap).collect();
    assert_eq!(listed, ids.iter().map(|id| (*id).to_owned()).collect());
    let outside = std::fs::read_dir(agents.path.parent().unwrap()).unwrap();
    assert_eq!(outside.count(), 1);
    for refused in ["", "con", "lpt1", &"x".repeat(300), &"X".repeat(90)] {
        let error = pool.lease(refused).unwrap_err();
        assert!(matches!(error, Error::InvalidAgent { .. }), "{error}");
        let error = pool.write(refused, |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::InvalidAgent { .. }), "{error}");
    }
    // Other files in the folder are nobody's.
    std::fs::write(agents.path.join("README"), "").unwrap();
    std::fs::write(agents.path.join("UPPER.db"), "").unwrap();
    assert_eq!(pool.agents().unwrap().count(), ids.len());
}

#[test]
fn a_second_borrower_waits_and_takes_nobody_elses_place() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    let lease = pool.lease("a").unwrap();
    thread::scope(|scope| {
        let waiting: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| insert(&pool.lease("a").unwrap(), 1)))
            .collect();
        eventually("they wait", || pool.stats().waiting == 8);
        // Eight wait for one agent; the other slot is there for anybody.
        for i in 0..10 {
            let start = Instant::now();
            insert(&pool.try_lease(format!("other-{i}")).unwrap(), 1);
            assert!(start.elapsed() < Duration::from_secs(1));
        }
        assert_eq!(pool.waiting().len(), 8);
        assert!(matches!(
            pool.try_lease("a"),
            Err(Error::Exhausted {
                wanted: Wanted::Agent,
                ..
            })
        ));
        drop(lease);
        waiting
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(rows(&pool.lease("a").unwrap()).len(), 8);
}

#[test]
fn borrowers_of_one_agent_are_served_in_order() {
    let agents = Agents::new();
    let pool = agents.pool(4);
    let lease = pool.lease("a").unwrap();
    thread::scope(|scope| {
        for i in 0..12 {
            let pool = &pool;
            scope.spawn(move || match i % 2 {
                0 => insert(&pool.lease("a").unwrap(), i),
                _ => insert(&smol::block_on(pool.lease_async("a")).unwrap(), i),
            });
            eventually("it waits", || pool.stats().waiting == i as usize + 1);
        }
        drop(lease);
    });
    let lease = pool.lease("a").unwrap();
    assert_eq!(rows(&lease), (0..12).collect::<Vec<_>>());
}

#[test]
fn waiting_for_oneself_is_told_in_time() {
    let agents = Agents::new();
    let pool = agents.builder(4);
    let pool = pool
        .lease_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    // To make a file takes as long as the disk does.
    let lease = pool.agent("a").within(LONG).lease().unwrap();
    let names_itself = |error: Error| {
        let Error::Exhausted {
            holders,
            all_holders_wait,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(holders.len(), 1, "{error}");
        assert_eq!(holders[0].agent, "a");
        assert!(all_holders_wait, "{error}");
        assert!(error.to_string().contains("itself waiting"), "{error}");
    };
    let start = Instant::now();
    names_itself(pool.lease("a").unwrap_err());
    names_itself(pool.write("a", |_| Ok(())).unwrap_err());
    names_itself(pool.agent("a").remove().unwrap_err());
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(600), "{took:?}");
    assert!(took < Duration::from_millis(750), "{took:?}");
    // A lease that another thread uses is waited for.
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || {
            insert(&lease, 1);
            tell.send(()).unwrap();
            thread::sleep(Duration::from_millis(100));
            drop(lease);
        });
        told.recv().unwrap();
        assert_eq!(rows(&pool.lease("a").unwrap()), [1]);
    });
}

#[test]
fn agents_with_one_path_wait_for_each_other() {
    let agents = Agents::new();
    std::fs::create_dir(&agents.path).unwrap();
    let folder = agents.path.clone();
    // Ids that begin alike share a file.
    let place = move |agent: &str| folder.join(&agent[..1]).with_extension("db");
    let pool = Pool::builder(Database::per_agent_with(place))
        .max_connections(3)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    let mut lease = pool.lease("a1").unwrap();
    lease.execute_batch("CREATE TEMP TABLE mine (x)").unwrap();
    insert(&lease, 1);
    let other = pool.agent("a2").within(Duration::from_millis(100));
    let error = thread::scope(|scope| scope.spawn(|| other.lease().map(drop)).join().unwrap());
    assert!(matches!(
        error,
        Err(Error::Exhausted {
            wanted: Wanted::Agent,
            ..
        })
    ));
    insert(&pool.lease("b1").unwrap(), 2);
    let transaction = lease.transaction().unwrap();
    transaction.execute("INSERT INTO t VALUES (3)", []).unwrap();
    transaction.commit().unwrap();
    drop(lease);
    let lease = pool.lease("a2").unwrap();
    assert_eq!(rows(&lease), [1, 3]);
    assert!(
        lease.prepare("SELECT * FROM mine").is_err(),
        "another agent's"
    );
    drop(lease);
    assert!(pool.descriptors().unwrap() <= pool.fd_ceiling());
    assert!(pool.agents().is_err());
    assert!(pool.agent("a3").remove().unwrap());
    assert!(!agents.file("a").exists());
    pool.close().unwrap();
    assert_eq!(agents.descriptors(), 0);
}

#[test]
fn setup_runs_once_for_64_first_leases() {
    let agents = Agents::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let theirs = Arc::clone(&runs);
    let pool = agents
        .builder(8)
        .setup(move |conn| {
            theirs.fetch_add(1, SeqCst);
            // Not idempotent on purpose.
            conn.execute_batch("CREATE TABLE t (x)")
        })
        .build()
        .unwrap();
    let start = Barrier::new(64);
    thread::scope(|scope| {
        for i in 0..64 {
            let (pool, start) = (&pool, &start);
            scope.spawn(move || {
                start.wait();
                insert(&pool.lease("a").unwrap(), i);
            });
        }
    });
    assert_eq!(runs.load(SeqCst), 1);
    assert_eq!(rows(&pool.lease("a").unwrap()).len(), 64);
    // Also when it is opened again and again.
    for i in 0..20 {
        drop(pool.lease(format!("other-{i}")).unwrap());
    }
    assert_eq!(rows(&pool.lease("a").unwrap()).len(), 64);
    assert_eq!(runs.load(SeqCst), 21);
}

#[test]
fn what_setup_leaves_on_its_connection_does_not_stay() {
    let agents = Agents::new();
    let pool = agents
        .builder(2)
        .setup(|conn| {
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS t (x); CREATE TEMP TABLE scratch (x);
                 PRAGMA foreign_keys = OFF; PRAGMA cache_size = 17; INSERT INTO t VALUES (1)",
            )
        })
        .build()
        .unwrap();
    let lease = pool.lease("a").unwrap();
    let one = |sql: &str| {
        lease
            .query_row(sql, [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(
        (one("PRAGMA foreign_keys"), one("PRAGMA cache_size")),
        (1, -2000)
    );
    assert_eq!(one("SELECT last_insert_rowid()"), 0);
    assert!(lease.prepare("SELECT * FROM scratch").is_err());
}

#[test]
fn a_failing_migration_leaves_the_file_as_it_was() {
    let agents = Agents::new();
    let failing = Arc::new(AtomicBool::new(true));
    let theirs = Arc::clone(&failing);
    let pool = agents
        .builder(2)
        .setup(move |conn| {
            let transaction = conn.transaction()?;
            transaction
                .execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (7)")?;
            if theirs.load(SeqCst) {
                transaction.execute_batch("INSERT INTO no_such_table VALUES (1)")?;
            }
            transaction.commit()
        })
        .build()
        .unwrap();
    for _ in 0..5 {
        let error = pool.lease("a").unwrap_err();
        match &error {
            Error::Setup { target, .. } => assert!(target.contains("\"a\""), "{target}"),
            other => panic!("{other:?}"),
        }
        // It was not there, and is not there.
        assert_eq!(std::fs::read_dir(&agents.path).unwrap().count(), 0);
    }
    failing.store(false, SeqCst);
    assert_eq!(rows(&pool.lease("a").unwrap()), [7]);
    pool.close().unwrap();
    drop(pool);
    // One that was there is as it was, and blocks nobody else.
    let pool = agents
        .builder(2)
        .setup(|conn| {
            let transaction = conn.transaction()?;
            transaction
                .execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (8)")?;
            let n: i64 = transaction.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?;
            if n > 1 {
                transaction.execute_batch("INSERT INTO no_such_table VALUES (1)")?;
            }
            transaction.commit()
        })
        .build()
        .unwrap();
    assert!(matches!(pool.lease("a"), Err(Error::Setup { .. })));
    assert_eq!(rows(&pool.lease("b").unwrap()), [8]);
    pool.close().unwrap();
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let file = Connection::open_with_flags(agents.file("a"), flags).unwrap();
    assert_eq!(rows(&file), [7]);
}

#[test]
fn slow_setup_of_one_blocks_no_other() {
    let agents = Agents::new();
    let (tell, began) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let pool = agents
        .builder(4)
        .on_open(move |conn| {
            if conn.path().is_some_and(|path| path.ends_with("slow.db")) {
                tell.lock().unwrap().send(()).unwrap();
                thread::sleep(Duration::from_secs(2));
            }
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    thread::scope(|scope| {
        let slow = scope.spawn(|| drop(pool.lease("slow").unwrap()));
        began.recv().unwrap();
        for agent in ["a", "b", "a", "c"] {
            let start = Instant::now();
            drop(pool.lease(agent).unwrap());
            assert!(start.elapsed() < Duration::from_millis(500));
        }
        assert!(!slow.is_finished());
    });
}

/// Where the checkpoint and the close happen: not within another agent's lease, and a log does not stay large.
#[test]
fn eviction_closes_the_file_and_leaves_no_long_log() {
    let agents = Agents::new();
    let pool = agents
        .builder(16)
        .synchronous(leasepool::Synchronous::Normal)
        .build()
        .unwrap();
    let fill = |agent: &str, bytes: usize| {
        let lease = pool.lease(agent).unwrap();
        lease
            .execute("INSERT INTO t VALUES (zeroblob(?1))", [bytes as i64])
            .unwrap();
    };
    let wal =
        |agent: &str| std::fs::metadata(beside(&agents.file(agent), "-wal")).map_or(0, |f| f.len());
    fill("short", 1_000);
    fill("long", 2_000_000);
    assert!(wal("long") > 2_000_000);
    for agent in ["short", "long"] {
        assert!(pool.evict(agent));
    }
    // By the pool itself: nobody leases.
    eventually("both are closed", || pool.stats().files == 0);
    assert_eq!(agents.descriptors(), 0);
    assert_eq!(wal("long"), 0);
    assert!(wal("short") < 256 * 1024);
    // Nothing is lost either way.
    for agent in ["short", "long"] {
        let lease = pool.lease(agent).unwrap();
        let n: i64 = lease
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(n, 1);
    }
    // With more agents than slots, slots are vacated before they are needed.
    for i in 0..200 {
        fill(&format!("agent-{i}"), 10);
    }
    eventually("there is room", || pool.stats().open <= 14);
    pool.close().unwrap();
}

#[test]
fn an_agent_removed_begins_anew() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    assert!(!pool.agent("a").remove().unwrap());
    insert(&pool.lease("a").unwrap(), 1);
    let lease = pool.lease("b").unwrap();
    insert(&lease, 2);
    // Refused while lent.
    thread::scope(|scope| {
        let refused = scope.spawn(|| pool.agent("b").within(Duration::ZERO).remove());
        assert!(matches!(
            refused.join().unwrap(),
            Err(Error::Exhausted {
                wanted: Wanted::Agent,
                ..
            })
        ));
        // Or waited for.
        let removing = scope.spawn(|| pool.agent("b").remove());
        eventually("it waits", || pool.stats().waiting == 1);
        insert(&lease, 3);
        drop(lease);
        assert!(removing.join().unwrap().unwrap());
    });
    assert!(pool.agent("a").remove().unwrap());
    assert_eq!(std::fs::read_dir(&agents.path).unwrap().count(), 0);
    assert_eq!((agents.descriptors(), pool.stats().open), (0, 0));
    for agent in ["a", "b"] {
        assert!(rows(&pool.lease(agent).unwrap()).is_empty());
    }
}

#[test]
fn a_backup_is_a_snapshot_of_an_agent_in_use() {
    let agents = Agents::new();
    let pool = agents.pool(4);
    let mut lease = pool.lease("a").unwrap();
    for i in 0..100 {
        insert(&lease, i);
    }
    let copy = agents.path.with_extension("copy");
    let transaction = lease.transaction().unwrap();
    transaction
        .execute("INSERT INTO t VALUES (1000)", [])
        .unwrap();
    pool.agent("a").backup(&copy).unwrap();
    transaction.commit().unwrap();
    insert(&lease, 1001);
    drop(lease);
    let mode = std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(
        rows(&Connection::open(&copy).unwrap()),
        (0..100).collect::<Vec<_>>()
    );
    assert_eq!(rows(&pool.lease("a").unwrap()).len(), 102);
    // It takes the place of the one before; what is not there is not made.
    pool.agent("a").backup(&copy).unwrap();
    assert_eq!(rows(&Connection::open(&copy).unwrap()).len(), 102);
    let other = agents.path.with_extension("other");
    assert!(matches!(
        pool.agent("nobody").backup(&other),
        Err(Error::Open { .. })
    ));
    assert!(!other.exists());
    assert!(!agents.file("nobody").exists());
    let stats = pool.stats();
    assert_eq!((stats.lent, stats.waiting), (0, 0));
    pool.close().unwrap();
    assert_eq!(agents.descriptors(), 0);
}

#[test]
fn vacuum_is_for_one_agent() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    let lease = pool.lease("a").unwrap();
    lease
        .execute_batch("INSERT INTO t VALUES (zeroblob(1000000)); DELETE FROM t")
        .unwrap();
    drop(lease);
    pool.agent("a").vacuum().unwrap();
    let lease = pool.lease("a").unwrap();
    let pages: i64 = lease
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    assert!(pages < 10, "{pages}");
    drop(lease);
    assert!(matches!(pool.vacuum(), Err(Error::Unsupported { .. })));
    assert_eq!(pool.agents().unwrap().count(), 1);
    assert!(pool.agent("a").exists().unwrap() && !pool.agent("b").exists().unwrap());
}

/// A statement that is never finished keeps a file open: the slot is out of circulation, with its permit, and
/// nobody waits for it.
#[test]
fn a_connection_that_cannot_be_closed_costs_its_slot_only() {
    let agents = Agents::new();
    let pool = agents.pool(3);
    {
        let lease = pool.lease("careless").unwrap();
        insert(&lease, 1);
        let mut statement = lease.prepare("SELECT * FROM t").unwrap();
        let mut rows = statement.query([]).unwrap();
        assert!(rows.next().unwrap().is_some());
        std::mem::forget(rows);
        std::mem::forget(statement);
    }
    pool.evict("careless");
    for i in 0..30 {
        insert(&pool.lease(format!("agent-{i}")).unwrap(), i);
        assert!(agents.descriptors() <= pool.fd_ceiling());
    }
    let leases: Vec<_> = (0..2)
        .map(|i| pool.lease(format!("agent-{i}")).unwrap())
        .collect();
    assert_eq!(pool.stats().stuck, 1);
    assert!(pool.try_lease("one too many").is_err());
    drop(leases);
    insert(&pool.lease("after").unwrap(), 1);
}

/// P12.
#[test]
fn files_replaced_and_deleted_from_outside() {
    let agents = Agents::new();
    let pool = agents.pool(3);
    for agent in ["replaced", "deleted", "evicted"] {
        insert(&pool.lease(agent).unwrap(), 1);
    }
    let other = agents.path.with_extension("other");
    {
        let conn = Connection::open(&other).unwrap();
        conn.execute_batch(
            "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (9)",
        )
        .unwrap();
    }
    let lent = pool.lease("replaced").unwrap();
    std::fs::rename(&other, agents.file("replaced")).unwrap();
    // What is lent works on with what it has.
    insert(&lent, 2);
    assert_eq!(rows(&lent), [1, 2]);
    drop(lent);
    let_a_change_show();
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(beside(&agents.file("replaced"), suffix));
    }
    assert_eq!(rows(&pool.lease("replaced").unwrap()), [9]);
    assert_eq!(pool.stats().discarded_by_file, 1);
    // Deleted under a parked connection, and after its eviction.
    pool.evict("evicted");
    eventually("it is closed", || pool.stats().files == 2);
    for agent in ["deleted", "evicted"] {
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(beside(&agents.file(agent), suffix));
        }
        let_a_change_show();
        for _ in 0..3 {
            match pool.lease(agent) {
                Err(Error::FileReplaced { found, .. }) => assert_eq!(found, FileState::Deleted),
                other => panic!("{agent}: {other:?}"),
            }
            assert!(!agents.file(agent).exists(), "never created again");
        }
        // Until the program removes the agent.
        assert!(!pool.agent(agent).remove().unwrap());
        assert!(rows(&pool.lease(agent).unwrap()).is_empty());
    }
}

/// P16.
#[test]
fn a_folder_and_its_files_belong_to_one_pool() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    assert!(matches!(
        agents.builder(2).build(),
        Err(Error::AlreadyPooled { .. })
    ));
    let link = agents.path.with_extension("link");
    std::os::unix::fs::symlink(&agents.path, &link).unwrap();
    let again = Pool::builder(Database::per_agent(&link)).build();
    assert!(matches!(again, Err(Error::AlreadyPooled { .. })));
    // Also one file of it, while it is open; hard links are the same file.
    let lease = pool.lease("a").unwrap();
    let file = Pool::builder(Database::file(agents.file("a"))).build();
    assert!(matches!(file, Err(Error::AlreadyPooled { .. })));
    std::fs::hard_link(agents.file("a"), agents.file("b")).unwrap();
    let error = pool.lease("b").unwrap_err();
    assert!(matches!(error, Error::AlreadyPooled { .. }), "{error:?}");
    drop(lease);
    pool.close().unwrap();
    drop(pool);
    agents.pool(2);
}

/// P14: another process reads and writes while connections are parked, and waits for nobody.
#[test]
fn other_processes_may_use_the_files() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    insert(&pool.lease("a").unwrap(), 1);
    let inode = || {
        std::fs::metadata(beside(&agents.file("a"), "-wal"))
            .unwrap()
            .ino()
    };
    let before = inode();
    for i in 0..10 {
        let shell = Command::new("sqlite3")
            .arg(agents.file("a"))
            .arg(format!(
                "INSERT INTO t VALUES ({i}); SELECT count(*) FROM t"
            ))
            .output()
            .unwrap();
        let said = String::from_utf8(shell.stdout).unwrap();
        assert_eq!(said.trim(), (2 * i + 2).to_string());
        insert(&pool.lease("a").unwrap(), 1);
        assert_eq!(inode(), before);
    }
    pool.close().unwrap();
}

#[test]
fn an_exclusive_file_is_shared_with_who_has_it_open_and_given_back_by_evict() {
    const COUNT: &str = "SELECT count(*) FROM t";
    let agents = Agents::new();
    let pool = agents.builder(2).exclusive_locking(true).build().unwrap();
    let shm = beside(&agents.file("a"), "-shm");
    insert(&pool.lease("a").unwrap(), 1);
    assert!(!shm.exists());
    let copy = agents.path.with_extension("copy");
    pool.agent("a").backup(&copy).unwrap();
    let copied = rows(&Connection::open(&copy).unwrap());
    assert_eq!(copied, rows(&pool.lease("a").unwrap()));
    let gets_in = || {
        let mut shell = Command::new("sqlite3");
        shell.args([agents.file("a").as_os_str(), COUNT.as_ref()]);
        shell.output().unwrap().status.success()
    };
    assert!(
        !gets_in(),
        "the file is locked while its connection is parked"
    );
    assert!(pool.evict("a"));
    eventually("the connection is closed", gets_in);
    let mut shell = Shell::on(&agents.file("a"));
    assert_eq!(shell.run(COUNT), "1");
    // The shell keeps the file open: both use it.
    insert(&pool.lease("a").unwrap(), 2);
    assert!(shm.exists());
    assert_eq!(shell.run(COUNT), "2");
    assert_eq!(
        shell.run(&format!("INSERT INTO t VALUES (3); {COUNT}")),
        "3"
    );
    assert_eq!(rows(&pool.lease("a").unwrap()), [1, 2, 3]);
    pool.write("a", |tx| tx.execute("INSERT INTO t VALUES (4)", ()))
        .unwrap();
    assert_eq!(shell.run(COUNT), "4");
    // Alone again.
    shell.end();
    assert!(pool.evict("a"));
    eventually("the connection is closed", || pool.stats().files == 0);
    assert_eq!(rows(&pool.lease("a").unwrap()), [1, 2, 3, 4]);
    assert!(!gets_in());
    pool.close().unwrap();
    let shared = Pool::builder(Database::memory())
        .exclusive_locking(true)
        .build();
    assert!(matches!(
        shared,
        Err(Error::Config {
            option: "exclusive_locking",
            ..
        })
    ));
}

#[test]
fn writes_are_grouped_for_each_agent_and_go_on_beside_each_other() {
    let agents = Agents::new();
    let pool = agents.builder(8).write_group(256, LONG).build().unwrap();
    let (held, hold) = mpsc::channel::<()>();
    let (tell, began) = mpsc::channel();
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            pool.write("a", move |_| {
                tell.send(()).unwrap();
                let _ = hold.recv();
                Ok(())
            })
        });
        began.recv().unwrap();
        for i in 0..10 {
            let pool = &pool;
            scope.spawn(move || {
                pool.write("a", move |tx| {
                    tx.execute("INSERT INTO t VALUES (?1)", [i])?;
                    Ok(())
                })
                .unwrap();
            });
        }
        eventually("they queue", || pool.stats().writes_waiting == 10);
        let groups = pool.stats().write_groups;
        // Others do not wait for them.
        for i in 0..5 {
            smol::block_on(pool.write_async(format!("other-{i}"), |tx| {
                tx.execute("INSERT INTO t VALUES (5)", [])?;
                Ok(())
            }))
            .unwrap();
        }
        assert_eq!(pool.stats().write_groups, groups + 5);
        held.send(()).unwrap();
        holder.join().unwrap().unwrap();
    });
    // The holder's, the ten's, and the five.
    assert_eq!(pool.stats().write_groups, 7);
    assert_eq!(rows(&pool.lease("a").unwrap()).len(), 10);
    assert_eq!(rows(&pool.lease("other-3").unwrap()), [5]);
    let mut lease = pool.lease("a").unwrap();
    Lease::write(&mut lease, |tx| tx.execute("INSERT INTO t VALUES (6)", [])).unwrap();
    assert_eq!(rows(&lease).len(), 11);
}

/// The same agent's connection keeps what it had, another's never sees it.
#[test]
fn a_connection_serves_its_agent_only() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    pool.lease("a")
        .unwrap()
        .execute_batch("CREATE TEMP TABLE mine (x)")
        .unwrap();
    assert!(
        pool.lease("b")
            .unwrap()
            .prepare("SELECT * FROM mine")
            .is_err()
    );
    assert!(
        pool.lease("a")
            .unwrap()
            .prepare("SELECT * FROM mine")
            .is_ok()
    );
    assert_eq!(pool.stats().resets, 0);
}

/// 10,000 agents, 32 threads, 64 connections under the limit of 256 (a tenth of the turns of the bench).
#[test]
fn many_agents_under_a_limit_of_descriptors() {
    in_child(
        "per_agent::many_agents_under_a_limit_of_descriptors",
        || {
            limit_descriptors(256);
            let agents = Agents::new();
            let pool = agents
                .builder(64)
                .synchronous(leasepool::Synchronous::Off)
                .build()
                .unwrap();
            let (turns, most, done) = (
                AtomicUsize::new(0),
                AtomicUsize::new(0),
                AtomicBool::new(false),
            );
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(SeqCst) {
                        most.fetch_max(agents.descriptors(), SeqCst);
                    }
                });
                let threads: Vec<_> = (0..32_usize)
                    .map(|t| {
                        let (pool, turns) = (&pool, &turns);
                        scope.spawn(move || {
                            for i in 0..60 {
                                let agent = format!("agent-{}", (t * 7919 + i * 104_729) % 1_000);
                                insert(&pool.lease(agent).unwrap(), 1);
                                turns.fetch_add(1, SeqCst);
                            }
                        })
                    })
                    .collect();
                threads
                    .into_iter()
                    .for_each(|thread| thread.join().unwrap());
                done.store(true, SeqCst);
            });
            assert_eq!(turns.into_inner(), 32 * 60);
            let most = most.into_inner();
            assert!(most > 64 && most <= 192 + 4, "{most}");
            let mut total = 0;
            for agent in pool.agents().unwrap() {
                total += rows(&pool.lease(agent.unwrap()).unwrap()).len();
            }
            assert_eq!(total, 32 * 60);
            pool.close().unwrap();
            assert_eq!(agents.descriptors(), 0);
        },
    );
}

/// The budget counts three for each slot, or four where commits are synced.
#[test]
fn the_budget() {
    let agents = Agents::new();
    let unsynced = |n| agents.builder(n).synchronous(leasepool::Synchronous::Off);
    let pool = unsynced(1).fd_budget(5).build().unwrap();
    assert_eq!(pool.fd_ceiling(), 5);
    drop(pool);
    let pool = Pool::builder(Database::per_agent(&agents.path))
        .fd_budget(37)
        .build()
        .unwrap();
    assert_eq!((pool.stats().max_connections, pool.fd_ceiling()), (8, 37));
    drop(pool);
    assert!(matches!(
        unsynced(2).fd_budget(7).build(),
        Err(Error::Budget { .. })
    ));
    in_child("per_agent::the_budget", || {
        let agents = Agents::new();
        let unsynced = |n| agents.builder(n).synchronous(leasepool::Synchronous::Off);
        limit_descriptors(open_descriptors() + 28);
        assert!(matches!(unsynced(8).build(), Err(Error::Budget { .. })));
        unsynced(7).build().unwrap();
    });
}

#[test]
fn awaited_too() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    smol::block_on(async {
        for i in 0..10 {
            let lease = pool.lease_async(format!("agent-{i}")).await.unwrap();
            insert(&lease, i);
        }
        let lease = pool.lease_async("agent-3").await.unwrap();
        assert_eq!(rows(&lease), [3]);
        // A future that is dropped while it waits for the agent leaves nothing.
        let mut waiting = Box::pin(pool.lease_async("agent-3"));
        assert!(smol::future::poll_once(&mut waiting).await.is_none());
        assert_eq!(pool.stats().waiting, 1);
        drop(waiting);
        assert_eq!(pool.stats().waiting, 0);
    });
    let start = Instant::now();
    drop(pool.try_lease("agent-3").unwrap());
    assert!(start.elapsed() < LONG);
}

#[test]
fn close_wakes_those_who_wait_for_an_agent() {
    let agents = Agents::new();
    let pool = agents.pool(2);
    let lease = pool.lease("a").unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.lease("a").map(drop));
        eventually("it waits", || pool.stats().waiting == 1);
        let closing = scope.spawn(|| pool.close());
        assert!(matches!(waiting.join().unwrap(), Err(Error::Closed)));
        drop(lease);
        closing.join().unwrap().unwrap();
    });
    assert_eq!(agents.descriptors(), 0);
    assert!(!beside(&agents.file("a"), "-wal").exists());
    let _: rusqlite::Result<()> = Ok(());
}

/// C4: SQLite takes a relative path for more than a path.
#[test]
fn a_backup_goes_where_its_path_says() {
    let fixture = crate::common::Mode::PerAgent.fixture();
    let pool = fixture.pool(2);
    insert(&pool.lease("a").unwrap(), 1);
    let precious = fixture.in_folder("precious.db");
    std::fs::write(&precious, "precious").unwrap();
    let folder = precious.parent().unwrap();
    for name in ["file:precious.db", ":memory:", "file:x?mode=memory"] {
        let to = folder.join(name);
        pool.agent("a").backup(&to).unwrap();
        let copy = rusqlite::Connection::open(&to).unwrap();
        let rows = copy.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
        assert_eq!(rows.unwrap(), 1);
        // Relative to where the process works; nothing else there is touched.
        let here = std::path::Path::new(name);
        let taken = std::env::current_dir().unwrap().join(name);
        assert!(!taken.exists());
        pool.agent("a").backup(here).unwrap();
        assert!(taken.exists(), "{name}");
        std::fs::remove_file(taken).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious");
}
