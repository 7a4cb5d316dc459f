//! P14: several processes begin with the same database at once, or end with it: each is a child of the test's.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use leasepool::rusqlite::{self, Connection};
use leasepool::{Error, Pool};

use crate::common::*;

in_both_modes! {
    several_processes_begin_with_a_fresh_database,
    several_processes_migrate_one_database,
    a_setup_that_fails_removes_nothing_of_others,
}

const ROLE: &str = "LEASEPOOL_TEST_STARTS";
const PROCESSES: usize = 8;

/// Another process, which runs this test again, as the other. It answers each line with a line.
struct Other {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(test: &str, argument: &str) -> Other {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Other {
            child,
            stdin,
            stdout,
        }
    }

    fn ask(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "it died");
            if let Some((_, answer)) = line.split_once("answer: ") {
                return answer.trim().to_owned();
            }
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: answers each line with what `does` says of it.
fn be_other(mut does: impl FnMut(&str) -> String) {
    for line in std::io::stdin().lines() {
        println!("answer: {}", does(line.unwrap().trim()));
    }
}

fn said<T, E: std::fmt::Debug>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => format!("{error:?}").replace('\n', " "),
    }
}

fn ask_all(others: &mut [Other], line: &str) -> Vec<String> {
    others.iter_mut().for_each(|other| other.ask(line));
    others.iter_mut().map(Other::answer).collect()
}

/// C18, C19: each round, all open the same new database, set it up, and write a row.
fn several_processes_begin_with_a_fresh_database(mode: Mode) {
    let name = mode.test("starts", "several_processes_begin_with_a_fresh_database");
    if std::env::var(ROLE).is_ok() {
        return be_other(|path| {
            said(
                Pool::builder(mode.database(Path::new(path)))
                    .max_connections(2)
                    .busy_timeout(LONG)
                    .lease_timeout(LONG)
                    // Written as one would: not for several at once.
                    .setup(|conn| {
                        let there: bool = conn.query_row(
                            "SELECT count(*) FROM sqlite_schema WHERE name = 't'",
                            [],
                            |row| row.get(0),
                        )?;
                        if !there {
                            conn.execute_batch("CREATE TABLE t (x)")?;
                            conn.execute_batch("CREATE TABLE u (x); INSERT INTO u VALUES (1)")?;
                        }
                        Ok::<_, rusqlite::Error>(())
                    })
                    .build()
                    .and_then(|pool| {
                        pool.write("a", |tx| {
                            tx.execute("INSERT INTO t VALUES (1)", ())?;
                            Ok(())
                        })?;
                        pool.close()
                    }),
            )
        });
    }
    let mut others: Vec<_> = (0..PROCESSES).map(|_| Other::start(&name, "")).collect();
    let folder = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let path = folder.path().join(format!("round-{round}"));
        let answers = ask_all(&mut others, path.to_str().unwrap());
        assert!(
            answers.iter().all(|answer| answer == "ok"),
            "{round}: {answers:?}"
        );
        let file = mode.either(path.clone(), path.join("a.db"));
        let found = Connection::open(&file).unwrap();
        let sum = |table| -> i64 {
            let sql = format!("SELECT count(*) FROM {table}");
            found.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert_eq!((sum("t"), sum("u")), (PROCESSES as i64, 1));
    }
    // No lock is left over.
    let left = std::fs::read_dir(folder.path()).unwrap().flatten();
    assert!(
        !left
            .into_iter()
            .any(|entry| entry.file_name().to_string_lossy().ends_with("-setup"))
    );
}

/// With rusqlite_migration, on a database that has a version already and is in use.
fn several_processes_migrate_one_database(mode: Mode) {
    use rusqlite_migration::{M, Migrations};
    let name = mode.test("starts", "several_processes_migrate_one_database");
    let migrations = |n: usize| {
        let all =
            (0..n).map(|i| M::up(Box::leak(format!("CREATE TABLE t{i} (x)").into_boxed_str())));
        Migrations::new(all.collect())
    };
    let build = move |path: &str, n: usize| {
        let migrations = migrations(n);
        Pool::builder(mode.database(Path::new(path)))
            .max_connections(2)
            .busy_timeout(LONG)
            .lease_timeout(LONG)
            .setup(move |conn| {
                migrations
                    .to_latest(conn)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
            })
            .build()
            .and_then(|pool| pool.lease("a").map(drop).map(|()| pool))
    };
    if std::env::var(ROLE).is_ok() {
        let mut kept = None;
        return be_other(|line| {
            let (n, path) = line.split_once(' ').unwrap();
            drop(kept.take());
            let built = build(path, n.parse().unwrap());
            let answer = said(built.as_ref());
            kept = built.ok();
            answer
        });
    }
    let mut others: Vec<_> = (0..PROCESSES).map(|_| Other::start(&name, "")).collect();
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let path = folder.path().join(format!("round-{round}"));
        let path = path.to_str().unwrap();
        for n in [2, 4, 8] {
            let answers = ask_all(&mut others, &format!("{n} {path}"));
            assert!(
                answers.iter().all(|answer| answer == "ok"),
                "{n}: {answers:?}"
            );
        }
    }
}

/// C25: one process makes a file, and its setup fails after another program has used the file.
fn a_setup_that_fails_removes_nothing_of_others(mode: Mode) {
    let fixture = mode.fixture();
    let file = fixture.file("a");
    let others = file.clone();
    let built = Pool::builder(mode.database(&fixture.path))
        .setup(move |_| {
            let status = Command::new("sqlite3")
                .arg(&others)
                .arg("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (7)")
                .status()
                .unwrap();
            assert!(status.success());
            Err(rusqlite::Error::InvalidQuery)
        })
        .build();
    let error = match built {
        Ok(pool) => pool.lease("a").map(drop).unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, Error::Setup { .. }), "{error:?}");
    let theirs = Connection::open(&file).unwrap();
    let found: i64 = theirs
        .query_row("SELECT x FROM theirs", [], |row| row.get(0))
        .unwrap();
    assert_eq!(found, 7);
}

/// C27: an agent's file is not removed while another process has it open.
#[test]
fn no_file_is_removed_under_another_process() {
    let fixture = Mode::PerAgent.fixture();
    let pool = fixture.pool(2);
    insert(&pool.lease("a").unwrap());
    pool.evict("a");
    let mut other = Command::new("sqlite3")
        .arg(fixture.file("a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = other.stdin.take().unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    writeln!(
        stdin,
        "BEGIN IMMEDIATE; INSERT INTO t VALUES (2); SELECT 'done';"
    )
    .unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "done");
    let refused = |pool: &Pool| match pool.agent("a").within(Duration::from_millis(200)).remove() {
        Err(Error::Open { source, .. }) => {
            let source = source.downcast::<rusqlite::Error>().unwrap();
            assert_eq!(
                source.sqlite_error_code(),
                Some(rusqlite::ErrorCode::DatabaseBusy)
            );
        }
        other => panic!("{other:?}"),
    };
    refused(&pool);
    writeln!(stdin, "COMMIT; SELECT count(*) FROM t;").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "2");
    // Also while it is open and does nothing.
    refused(&pool);
    assert_eq!(count(&pool.lease("a").unwrap()), 2);
    // It goes as soon as the other does.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            drop(stdin);
            other.wait().unwrap();
        });
        eventually("it is removed", || {
            pool.agent("a").remove().unwrap_or(false)
        });
    });
    assert!(!fixture.file("a").exists());
    assert_eq!(std::fs::read_dir(&fixture.path).unwrap().count(), 0);
    assert_eq!(count(&pool.lease("a").unwrap()), 0);
    assert_whole(&pool);
}

/// C13: nor under another pool of this process.
#[test]
fn no_file_is_removed_under_another_pool() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap().join("shared.db");
    let build = || {
        let path = path.clone();
        Pool::builder(leasepool::Database::per_agent_with(move |_| path.clone()))
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
            .build()
            .unwrap()
    };
    let (first, second) = (build(), build());
    insert(&first.lease("a").unwrap());
    let removed = second.agent("a").remove();
    assert!(
        matches!(removed, Err(Error::AlreadyPooled { .. })),
        "{removed:?}"
    );
    assert_eq!(count(&first.lease("a").unwrap()), 1);
}

/// C3: what another process commits stays, and a lease that only reads waits for nobody.
#[test]
fn leases_of_an_agent_undo_nothing_of_another_process() {
    let fixture = Mode::PerAgent.fixture();
    let pool = fixture
        .builder(1)
        .busy_timeout(Duration::ZERO)
        .build()
        .unwrap();
    drop(pool.lease("a").unwrap());
    let mut other = Command::new("sqlite3")
        .arg(fixture.file("a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = other.stdin.take().unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    const COMMITS: i64 = 400;
    std::thread::scope(|scope| {
        let stdin = scope.spawn(move || {
            writeln!(stdin, ".timeout 30000").unwrap();
            for i in 1..=COMMITS {
                writeln!(
                    stdin,
                    "BEGIN IMMEDIATE; PRAGMA user_version={i}; INSERT INTO t VALUES ({i}); COMMIT;"
                )
                .unwrap();
            }
            writeln!(stdin, "SELECT 'done';").unwrap();
            stdin
        });
        let ended = scope.spawn(move || lines.next().unwrap().unwrap());
        while !ended.is_finished() {
            let lease = pool.lease("a").unwrap();
            let sql = "SELECT count(*), (SELECT user_version FROM pragma_user_version) FROM t";
            let (rows, version): (i64, i64) = lease
                .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap();
            assert_eq!(rows, version);
            drop(lease);
            // Opened anew for another agent's sake.
            drop(pool.lease("b").unwrap());
        }
        assert_eq!(ended.join().unwrap(), "done");
        // As the last to close a file, the shell would lock it.
        drop(stdin.join().unwrap());
    });
    other.wait().unwrap();
    assert_eq!(count(&pool.lease("a").unwrap()), COMMITS);
}

/// C20: a pool does not follow a fork. The child is told so, and harms nothing, whichever of the two ends first.
#[test]
fn a_pool_does_not_follow_a_fork() {
    in_child("starts::a_pool_does_not_follow_a_fork", || {
        for parent_first in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            for mode in [Mode::Shared, Mode::PerAgent] {
                let path = folder.path().join(mode.either("agents.db", "agents"));
                let (told, go) = (folder.path().join("told"), folder.path().join("go"));
                let pool = Pool::builder(mode.database(&path))
                    .max_connections(3)
                    .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
                    .build()
                    .unwrap();
                let lease = pool.lease("a").unwrap();
                insert(&lease);
                drop(pool.lease(mode.either("b", "b")).unwrap());
                match fork::fork().unwrap() {
                    fork::Fork::Child => {
                        if parent_first {
                            eventually("the parent has closed the pool", || go.exists());
                        }
                        let found = forked(pool, lease);
                        std::fs::write(&told, found).unwrap();
                        std::process::exit(0);
                    }
                    fork::Fork::Parent(child) => {
                        if !parent_first {
                            fork::waitpid(child).unwrap();
                        }
                        // All goes on as before.
                        insert(&lease);
                        assert_eq!(count(&lease), 2);
                        drop(lease);
                        pool.write("a", |tx| tx.execute("INSERT INTO t VALUES (2)", ()))
                            .unwrap();
                        assert_whole(&pool);
                        pool.close().unwrap();
                        if parent_first {
                            std::fs::write(&go, "").unwrap();
                            fork::waitpid(child).unwrap();
                        }
                        assert_eq!(std::fs::read_to_string(&told).unwrap(), "as expected");
                        let _ = std::fs::remove_file(&told);
                        let _ = std::fs::remove_file(&go);
                        let file = mode.either(path.clone(), path.join("a.db"));
                        let kept = Connection::open(file).unwrap();
                        assert_eq!(count(&kept), 3);
                        let checked: String = kept
                            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                            .unwrap();
                        assert_eq!(checked, "ok");
                    }
                }
            }
        }
    });
}

/// What the calls of a forked process return.
fn forked(pool: Pool, mut lease: leasepool::Lease) -> String {
    let work = |tx: &mut rusqlite::Savepoint<'_>| tx.execute("INSERT INTO t VALUES (9)", ());
    let copy = std::env::temp_dir().join("never-made.db");
    let results = [
        pool.lease("a").map(drop),
        pool.try_lease("c").map(drop),
        smol::block_on(pool.lease_async("b")).map(drop),
        pool.write("a", work).map(drop),
        smol::block_on(pool.write_async("a", work)).map(drop),
        leasepool::Lease::write(&mut lease, |tx| tx.execute("INSERT INTO t VALUES (9)", ()))
            .map(drop),
        pool.read("a", |_| Ok(())),
        pool.agent("a").vacuum(),
        pool.ready(),
        pool.close_writes(),
        pool.close(),
        smol::block_on(pool.close_async()),
        match pool.fd_ceiling() {
            // One file, or one for each agent.
            11 => pool.backup(&copy),
            _ => pool.agent("a").backup(&copy),
        },
    ];
    let nothing = !pool.evict("a") && pool.holders().is_empty() && pool.stats().lent == 0;
    drop(lease);
    drop(pool);
    for result in results {
        if !matches!(result, Err(Error::Forked)) {
            return format!("{result:?}");
        }
    }
    match nothing {
        true => "as expected".to_owned(),
        false => "something was told of the pool".to_owned(),
    }
}
