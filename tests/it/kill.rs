//! P15: committed is kept. A process that writes is killed at random moments; every write that was
//! acknowledged is there afterwards, and of the others each is there as a whole or not at all.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use leasepool::rusqlite::Connection;
use leasepool::{Database, Error, Pool, Synchronous};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const KILLS: u64 = 50;
const THREADS: i64 = 6;
const PATH: &str = "LEASEPOOL_TEST_KILLED";
const NAME: &str = "kill::every_acknowledged_write_survives_kill_9";

/// Writes until it is killed. Says of each write that it is acknowledged, after it was.
fn be_killed(path: &Path) {
    let pool = Pool::builder(Database::file(path))
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
    let last: i64 = pool
        .lease("reader")
        .unwrap()
        .query_row("SELECT coalesce(max(id), 0) FROM said", [], |row| {
            row.get(0)
        })
        .unwrap();
    let stdout = Mutex::new(std::io::stdout());
    thread::scope(|scope| {
        for t in 0..THREADS {
            let (pool, stdout) = (&pool, &stdout);
            scope.spawn(move || {
                for i in 1.. {
                    let id = last + i * THREADS + t;
                    let write = pool.write("writer", move |tx| {
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

#[test]
fn every_acknowledged_write_survives_kill_9() {
    if let Some(path) = std::env::var_os(PATH) {
        return be_killed(Path::new(&path));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("killed.db");
    let mut rng = SmallRng::seed_from_u64(15);
    let mut acknowledged = HashSet::new();
    for kill in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--nocapture", "--test-threads=1"])
            .env(PATH, &path)
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
        acknowledged.extend(heard.lock().unwrap().drain(..));
        let database = Connection::open(&path).unwrap();
        let sound: String = database
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(sound, "ok", "after kill {kill}");
        let ids = |sql: &str| -> HashSet<i64> {
            let mut select = database.prepare(sql).unwrap();
            let ids = select.query_map([], |row| row.get(0)).unwrap();
            ids.collect::<Result<_, _>>().unwrap()
        };
        let said = ids("SELECT id FROM said");
        assert_eq!(
            said,
            ids("SELECT id FROM heard"),
            "a half, after kill {kill}"
        );
        let lost: Vec<_> = acknowledged.difference(&said).collect();
        assert!(lost.is_empty(), "after kill {kill}: {lost:?}");
    }
    assert!(
        acknowledged.len() as u64 > KILLS * 10,
        "{}",
        acknowledged.len()
    );
}
