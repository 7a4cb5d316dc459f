//! Backups: as one commit left it, whole or not at all, at a path that is only a path, and within the ceiling.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::Connection;
use leasepool::{Backup, Error, Pool};

use crate::common::*;

in_both_modes! {
    a_backup_beside_writers_ends_and_is_one_commit,
    progress_is_told_and_may_end_it,
    a_compact_copy_is_smaller,
    what_is_at_the_target,
    a_path_is_a_path,
    a_target_that_is_open_is_refused,
    a_process_killed_within_leaves_the_old_one_or_the_new,
}

fn back_up(mode: Mode, pool: &Pool, to: &Path, how: Backup<'_>) -> Result<(), Error> {
    match mode {
        Mode::Shared => pool.backup_with(to, how),
        Mode::PerAgent => pool.agent("a").backup_with(to, how),
    }
}

fn rows(path: &Path) -> i64 {
    let copy = Connection::open(path).unwrap();
    let checked: String = copy
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .unwrap();
    assert_eq!(checked, "ok");
    count(&copy)
}

/// Ends what runs beside a test, also when the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn filled(fixture: &Fixture, connections: usize, rows: usize) -> Pool {
    let pool = fixture.pool(connections);
    pool.write("a", move |tx| {
        for _ in 0..rows {
            tx.execute("INSERT INTO t VALUES (randomblob(1000))", ())?;
        }
        Ok(())
    })
    .unwrap();
    pool
}

/// Each write adds two rows. A copy that was read in steps, between which others commit, has an even number.
fn a_backup_beside_writers_ends_and_is_one_commit(mode: Mode) {
    let fixture = mode.fixture();
    let pool = filled(&fixture, 4, 1_000);
    let copies = tempfile::tempdir().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    let write = pool.write("a", |tx| {
                        tx.execute("INSERT INTO t VALUES (1)", ())?;
                        tx.execute("INSERT INTO t VALUES (2)", ())?;
                        Ok(())
                    });
                    write.unwrap();
                }
            });
        }
        let _ends = Ends(&done);
        for i in 0..3 {
            let to = copies.path().join(format!("copy-{i}.db"));
            let mut steps = 0;
            // A step of SQLite's begins anew if another connection has written since the one before.
            let how = Backup::new().pages_per_step(4).progress(|done| {
                steps += 1;
                assert!(done.copied <= done.pages);
                let before = pool.stats().writes;
                eventually("the writer has written", || pool.stats().writes > before);
                match steps < 2_000 {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            });
            back_up(mode, &pool, &to, how).unwrap();
            assert!(steps > 20, "{steps}");
            let found = rows(&to);
            assert!(found >= 1_000 && found % 2 == 0, "{found}");
        }
    });
    assert_eq!(names(copies.path()).len(), 3);
    assert_whole(&pool);
}

fn progress_is_told_and_may_end_it(mode: Mode) {
    let fixture = mode.fixture();
    let pool = filled(&fixture, 2, 1_500);
    let copies = tempfile::tempdir().unwrap();
    let to = copies.path().join("copy.db");
    let mut told = Vec::new();
    let how = Backup::new().pages_per_step(50).progress(|done| {
        told.push(done);
        match told.len() {
            3 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    });
    let error = back_up(mode, &pool, &to, how).unwrap_err();
    assert!(matches!(error, Error::Backup { .. }), "{error:?}");
    assert_eq!(
        told.iter().map(|done| done.copied).collect::<Vec<_>>(),
        [50, 100, 150]
    );
    assert!(names(copies.path()).is_empty());
    // One that panics leaves nothing either.
    let how = Backup::new().progress(|_| panic!("of the test's"));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        back_up(mode, &pool, &to, how)
    }));
    assert!(panicked.is_err());
    assert!(names(copies.path()).is_empty());
    back_up(mode, &pool, &to, Backup::new()).unwrap();
    assert_eq!(rows(&to), 1_500);
    assert_whole(&pool);
}

fn a_compact_copy_is_smaller(mode: Mode) {
    let fixture = mode.fixture();
    let pool = filled(&fixture, 2, 1_000);
    pool.write("a", |tx| {
        tx.execute("DELETE FROM t WHERE rowid > 10", ())?;
        Ok(())
    })
    .unwrap();
    let copies = tempfile::tempdir().unwrap();
    let (whole, compact) = (copies.path().join("whole"), copies.path().join("compact"));
    back_up(mode, &pool, &whole, Backup::new()).unwrap();
    back_up(mode, &pool, &compact, Backup::new().compact(true)).unwrap();
    assert_eq!((rows(&whole), rows(&compact)), (10, 10));
    let length = |path: &Path| std::fs::metadata(path).unwrap().len();
    assert!(length(&compact) * 4 < length(&whole));
    assert!(pool.lease("a").unwrap().execute_batch("VACUUM").is_err());
    assert_whole(&pool);
}

/// C5: a file that is there is replaced, as a whole; what belongs to another database stays, and is not mixed in.
fn what_is_at_the_target(mode: Mode) {
    let fixture = mode.fixture();
    let pool = filled(&fixture, 2, 3);
    let copies = tempfile::tempdir().unwrap();
    let to = copies.path().join("copy.db");
    std::fs::write(&to, "something else").unwrap();
    back_up(mode, &pool, &to, Backup::new()).unwrap();
    assert_eq!(rows(&to), 3);
    for suffix in ["-wal", "-journal"] {
        let foreign = copies.path().join(format!("copy.db{suffix}"));
        std::fs::write(&foreign, "whose").unwrap();
        let error = back_up(mode, &pool, &to, Backup::new()).unwrap_err();
        assert!(matches!(error, Error::Backup { .. }), "{error:?}");
        assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "whose");
        std::fs::remove_file(&foreign).unwrap();
    }
    assert_eq!(rows(&to), 3);
    // A link is followed, and stays.
    let link = copies.path().join("link.db");
    std::os::unix::fs::symlink("copy.db", &link).unwrap();
    insert(&pool.lease("a").unwrap());
    back_up(mode, &pool, &link, Backup::new()).unwrap();
    assert!(link.is_symlink());
    assert_eq!(rows(&to), 4);
    for bad in [
        copies.path(),
        &copies.path().join("no/folder/copy.db"),
        Path::new(""),
    ] {
        let error = back_up(mode, &pool, bad, Backup::new()).unwrap_err();
        assert!(matches!(error, Error::Backup { .. }), "{bad:?}: {error:?}");
    }
    assert_whole(&pool);
}

/// C4.
fn a_path_is_a_path(mode: Mode) {
    in_child(&mode.test("backup", "a_path_is_a_path"), || {
        let fixture = mode.fixture();
        let pool = filled(&fixture, 2, 3);
        let copies = tempfile::tempdir().unwrap();
        std::env::set_current_dir(copies.path()).unwrap();
        std::fs::write("precious.db", "precious").unwrap();
        for name in [
            "file:precious.db",
            ":memory:",
            "file::memory:?cache=shared",
            "plain",
        ] {
            back_up(mode, &pool, Path::new(name), Backup::new()).unwrap();
            assert_eq!(rows(&copies.path().join(name)), 3);
        }
        assert_eq!(std::fs::read_to_string("precious.db").unwrap(), "precious");
    });
}

fn a_target_that_is_open_is_refused(mode: Mode) {
    let fixture = mode.fixture();
    let pool = filled(&fixture, 3, 3);
    let lease = pool.lease("a").unwrap();
    let error = back_up(mode, &pool, &fixture.file("a"), Backup::new()).unwrap_err();
    assert!(matches!(error, Error::AlreadyPooled { .. }), "{error:?}");
    if mode == Mode::PerAgent {
        // Nor may it become another agent's.
        let error = back_up(mode, &pool, &fixture.file("b"), Backup::new()).unwrap_err();
        assert!(matches!(error, Error::AlreadyPooled { .. }), "{error:?}");
    }
    assert_eq!(count(&lease), 3);
    // No pool's, but open.
    let copies = tempfile::tempdir().unwrap();
    let path = copies.path().join("mine.db");
    let mine = Connection::open(&path).unwrap();
    mine.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (7)")
        .unwrap();
    let error = back_up(mode, &pool, &path, Backup::new()).unwrap_err();
    assert!(matches!(error, Error::AlreadyPooled { .. }), "{error:?}");
    assert_eq!(count(&mine), 1);
    drop(mine);
    back_up(mode, &pool, &path, Backup::new()).unwrap();
    assert_eq!(rows(&path), 3);
}

#[test]
fn of_which_pool() {
    let copies = tempfile::tempdir().unwrap();
    let to = copies.path().join("copy.db");
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    insert(&pool.lease("a").unwrap());
    pool.agent("a").backup(&to).unwrap();
    assert_eq!(rows(&to), 1);
    let agents = Mode::PerAgent.fixture();
    let agents = agents.pool(1);
    let error = agents.backup(&to).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let error = agents.agent("nobody").backup(&to).unwrap_err();
    assert!(matches!(error, Error::Open { .. }), "{error:?}");
    // Of a database in memory, too.
    let memory = Pool::builder(leasepool::Database::memory())
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    insert(&memory.lease("a").unwrap());
    memory.backup(&to).unwrap();
    assert_eq!(rows(&to), 1);
}

/// C5: a backup while the agent is being set up has what `setup` makes.
#[test]
fn while_the_agent_is_being_set_up() {
    let fixture = Mode::PerAgent.fixture();
    let (tell, begun) = std::sync::mpsc::channel();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (tell, wait) = (parking_lot::Mutex::new(tell), parking_lot::Mutex::new(wait));
    let pool = fixture
        .builder(3)
        .setup(move |conn| {
            tell.lock().send(()).unwrap();
            wait.lock().recv_timeout(LONG).unwrap();
            conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x); INSERT INTO t VALUES (1)")
        })
        .build()
        .unwrap();
    let copies = tempfile::tempdir().unwrap();
    let to = copies.path().join("copy.db");
    thread::scope(|scope| {
        let lease = scope.spawn(|| drop(pool.lease("a").unwrap()));
        begun.recv_timeout(LONG).unwrap();
        let backup = scope.spawn(|| pool.agent("a").backup(&to));
        // Nothing tells that it waits; it must not have ended.
        thread::sleep(Duration::from_millis(50));
        assert!(!backup.is_finished());
        go.send(()).unwrap();
        lease.join().unwrap();
        backup.join().unwrap().unwrap();
    });
    assert_eq!(rows(&to), 1);
}

/// C7: backups of agents in use, under a limit of exactly the ceiling.
#[test]
fn backups_of_agents_in_use_stay_below_the_ceiling() {
    in_child(
        "backup::backups_of_agents_in_use_stay_below_the_ceiling",
        || {
            let fixture = Mode::PerAgent.fixture();
            let copies = tempfile::tempdir().unwrap();
            let pool = fixture
                .builder(8)
                .synchronous(leasepool::Synchronous::Off)
                .lease_timeout(Duration::from_millis(300))
                .build()
                .unwrap();
            let leases: Vec<_> = (0..6)
                .map(|i| {
                    let lease = pool.lease(format!("a{i}")).unwrap();
                    insert(&lease);
                    lease
                })
                .collect();
            limit_descriptors(
                open_descriptors() - pool.descriptors().unwrap() + pool.fd_ceiling() + 4,
            );
            let done = AtomicBool::new(false);
            thread::scope(|scope| {
                let most = scope.spawn(|| {
                    let mut most = 0;
                    while !done.load(SeqCst) {
                        most = most.max(fixture.descriptors().all());
                    }
                    most
                });
                let ends = Ends(&done);
                for round in 0..3 {
                    for i in 0..6 {
                        let to = copies.path().join(format!("{round}-{i}.db"));
                        pool.agent(format!("a{i}")).backup(&to).unwrap();
                        assert_eq!(rows(&to), 1);
                    }
                }
                // As many as can be opened while SQLite keeps a descriptor of each of the six; more wait, and are told.
                let more: Vec<_> = (0..2).map(|i| pool.lease(format!("b{i}"))).collect();
                for lease in &more {
                    match lease {
                        Ok(lease) => insert(lease),
                        Err(error) => {
                            assert!(
                                matches!(
                                    error,
                                    Error::NoDescriptors { .. } | Error::Exhausted { .. }
                                ),
                                "{error:?}"
                            )
                        }
                    }
                }
                drop(more);
                drop(ends);
                let most = most.join().unwrap();
                assert!(most > 18 && most <= pool.fd_ceiling(), "{most}");
            });
            drop(leases);
            // What SQLite kept goes with the leases.
            eventually("all are closed", || {
                fixture.descriptors().all() <= 3 * pool.stats().open
            });
            assert_whole(&pool);
            pool.close().unwrap();
            assert_eq!(fixture.descriptors().all(), 0);
        },
    );
}

const PATH: &str = "LEASEPOOL_TEST_BACKUP";

/// Makes one backup after the other until it is killed.
fn be_killed(mode: Mode, folder: &Path) {
    let pool = Pool::builder(mode.database(&folder.join("source")))
        .build()
        .unwrap();
    for number in 0.. {
        let how = Backup::new().pages_per_step(8).compact(number % 3 == 2);
        back_up(mode, &pool, &folder.join("copy.db"), how).unwrap();
        println!("made");
    }
}

fn a_process_killed_within_leaves_the_old_one_or_the_new(mode: Mode) {
    let name = mode.test(
        "backup",
        "a_process_killed_within_leaves_the_old_one_or_the_new",
    );
    if let Ok(path) = std::env::var(PATH) {
        return be_killed(mode, Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    let pool = Pool::builder(mode.database(&source))
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    pool.write("a", |tx| {
        for _ in 0..300 {
            tx.execute("INSERT INTO t VALUES (randomblob(2000))", ())?;
        }
        Ok(())
    })
    .unwrap();
    let copy = folder.path().join("copy.db");
    back_up(mode, &pool, &copy, Backup::new()).unwrap();
    pool.close().unwrap();
    let mut partial = 0;
    for kill in 0..kills() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(PATH, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        let begun = Instant::now();
        while !line.contains("made") {
            line.clear();
            std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
            assert!(begun.elapsed() < LONG);
        }
        // At a moment that differs from kill to kill.
        thread::sleep(Duration::from_micros(kill * 397 % 9_000));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(rows(&copy), 300);
        for name in names(folder.path()) {
            if name.contains(".partial") {
                partial += 1;
                std::fs::remove_file(folder.path().join(name)).unwrap();
            }
        }
    }
    assert!(partial > 0, "no kill was within a backup");
}

/// SQLite keeps the descriptors of a backup's connection while the agent's own is open. The pool closes parked connections
/// that do so when it needs room, also if their slots are not needed.
#[test]
fn backups_of_many_agents_whose_connections_are_parked_find_room() {
    let fixture = Mode::PerAgent.fixture();
    let pool = fixture.builder(16).lease_timeout(LONG).build().unwrap();
    for agent in 0..24 {
        insert(&pool.lease(agent).unwrap());
    }
    for agent in 0..24 {
        let to = fixture.in_folder(&format!("copy-{agent}"));
        pool.agent(agent).backup(to).unwrap();
    }
    assert!(pool.stats().parked > 0);
    assert!(fixture.descriptors().all() <= pool.fd_ceiling());
}
