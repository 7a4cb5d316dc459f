//! P15: committed is kept. A process that writes is killed at random moments; every write that was
//! acknowledged is there afterwards, and of the others each is there as a whole or not at all.

use std::cell::RefCell;
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::Connection;
use leasepool::{Error, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::common::*;

const THREADS: i64 = 6;
const PATH: &str = "LEASEPOOL_TEST_KILLED";
/// Of agents that have a file each: the writes of a thread that go to the same.
const WRITES: i64 = 100;

in_both_modes! {
    every_acknowledged_write_survives_kill_9,
}

/// Writes until it is killed. Says of each write that it is acknowledged, after it was.
fn be_killed(mode: Mode, path: &Path) {
    let pool = Pool::builder(mode.database(path))
        .max_connections(4)
        .synchronous(Synchronous::Full)
        // Checkpoints, too, are to be hit.
        .wal_size(1 << 17)
        .setup(|conn| {
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS said (id INTEGER PRIMARY KEY);
                 CREATE TABLE IF NOT EXISTS heard (id INTEGER PRIMARY KEY, filler)",
            )
        })
        .build()
        .unwrap();
    let last = |agent: &str| -> i64 {
        let lease = pool.lease(agent).unwrap();
        let last = "SELECT coalesce(max(id), 0) FROM said";
        lease.query_row(last, [], |row| row.get(0)).unwrap()
    };
    let last: i64 = match mode {
        Mode::Shared => last("reader"),
        Mode::PerAgent => {
            let agents = pool.agents().unwrap().map(Result::unwrap);
            agents.map(|agent| last(&agent)).max().unwrap_or(0)
        }
    };
    let stdout = Mutex::new(std::io::stdout());
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (pool, stdout) = (&pool, &stdout);
            scope.spawn(move || {
                for i in 1.. {
                    let id = last + i * THREADS + t;
                    // Files are made and closed, too, while it is killed.
                    let own = format!("writer-{t}-{}", id / (WRITES * THREADS));
                    let agent = mode.either("writer", &own);
                    let write = pool.agent(agent).write_and_then(move |tx| {
                        tx.prepare_cached("INSERT INTO said VALUES (?1)")?
                            .execute([id])?;
                        if id % 7 == 0 {
                            return Err(Error::Closed);
                        }
                        tx.prepare_cached("INSERT INTO heard VALUES (?1, randomblob(500))")?
                            .execute([id])?;
                        Ok(())
                    });
                    if write.is_ok() {
                        let mut stdout = stdout.lock().unwrap();
                        writeln!(stdout, "kept {id}").unwrap();
                        stdout.flush().unwrap();
                    }
                }
            });
        }
    });
}

/// The ids in a table of all databases; one that was not set up in time has no tables.
fn ids(databases: &[Connection], table: &str) -> HashSet<i64> {
    let exists = "SELECT count(*) FROM sqlite_schema WHERE name = ?1";
    let mut found = HashSet::new();
    for database in databases {
        if 0 == database
            .query_row(exists, [table], |row| row.get::<_, i64>(0))
            .unwrap()
        {
            continue;
        }
        let mut select = database
            .prepare(&format!("SELECT id FROM {table}"))
            .unwrap();
        let ids = select.query_map([], |row| row.get(0)).unwrap();
        for id in ids {
            assert!(found.insert(id.unwrap()), "twice");
        }
    }
    found
}

/// The files of all databases.
fn files(fixture: &Fixture) -> Vec<PathBuf> {
    let entries = match fixture.mode {
        Mode::Shared => return vec![fixture.path.clone()],
        Mode::PerAgent => std::fs::read_dir(&fixture.path).unwrap(),
    };
    entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "db"))
        .collect()
}

fn every_acknowledged_write_survives_kill_9(mode: Mode) {
    if let Some(path) = std::env::var_os(PATH) {
        return be_killed(mode, Path::new(&path));
    }
    let fixture = mode.fixture();
    let name = mode.test("kill", "every_acknowledged_write_survives_kill_9");
    let mut rng = SmallRng::seed_from_u64(15);
    let acknowledged = RefCell::new(HashSet::new());
    let enough = usize::try_from(kills() * 10).unwrap();
    // A machine that has other work to do gets less done before each kill.
    let rounds = (0..kills() * 10)
        .take_while(|kill| *kill < kills() || acknowledged.borrow().len() <= enough);
    for kill in rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &name, "--nocapture", "--test-threads=1"])
            .env(PATH, &fixture.path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let theirs = Arc::clone(&heard);
        let listener = thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                // The test harness says things, too; the last line may be cut off.
                let id = line.split("kept ").nth(1).and_then(|id| id.parse().ok());
                theirs.lock().unwrap().extend(id.map(|id: i64| id));
            }
        });
        let started = Instant::now();
        while heard.lock().unwrap().is_empty() {
            assert!(
                started.elapsed() < Duration::from_secs(30),
                "it never writes"
            );
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(rng.random_range(0..60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        listener.join().unwrap();
        acknowledged
            .borrow_mut()
            .extend(heard.lock().unwrap().drain(..));
        let files = files(&fixture);
        let databases: Vec<_> = files
            .iter()
            .map(|file| Connection::open(file).unwrap())
            .collect();
        for database in &databases {
            let sound: String = database
                .query_row("PRAGMA integrity_check", [], |row| row.get(0))
                .unwrap();
            assert_eq!(sound, "ok", "after kill {kill}");
        }
        let said = ids(&databases, "said");
        let heard = ids(&databases, "heard");
        assert_eq!(said, heard, "a half, after kill {kill}");
        let acknowledged = acknowledged.borrow();
        let lost: Vec<_> = acknowledged.difference(&said).collect();
        assert!(lost.is_empty(), "after kill {kill}: {lost:?}");
    }
    let acknowledged = acknowledged.borrow().len();
    assert!(acknowledged > enough, "{acknowledged}");
    // Files were made.
    assert!(mode == Mode::Shared || files(&fixture).len() > THREADS as usize);
}
