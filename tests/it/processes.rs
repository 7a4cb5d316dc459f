//! P14: other processes are safe. The other process is the sqlite3 shell.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use leasepool::rusqlite;

use crate::common::*;

fn shell(fixture: &Fixture, sql: &str) -> String {
    let output = Command::new("sqlite3")
        .arg(&fixture.path)
        .arg(sql)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A shell that keeps running and has answered once that it has done `sql`.
fn shell_at(fixture: &Fixture, sql: &str) -> Child {
    let mut child = Command::new("sqlite3")
        .arg(&fixture.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{sql}; SELECT 'done';").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.trim(), "done");
    child
}

#[test]
fn sidecars_stay_while_others_come_and_go() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    insert(&pool.lease("a").unwrap());
    let inode = |extension: &str| {
        std::fs::metadata(fixture.path.with_extension(extension))
            .unwrap()
            .ino()
    };
    let before = (inode("db-wal"), inode("db-shm"));
    for i in 0..30 {
        assert_eq!(
            shell(&fixture, "SELECT count(*) FROM t"),
            (i * 2 + 1).to_string()
        );
        shell(&fixture, "INSERT INTO t VALUES (2)");
        insert(&pool.lease("a").unwrap());
        assert_eq!((inode("db-wal"), inode("db-shm")), before);
    }
    assert_eq!(count(&pool.lease("b").unwrap()), 61);
}

#[test]
fn a_foreign_write_lock_delays_a_write() {
    let fixture = Fixture::new();
    let pool = fixture.builder(2).busy_timeout(LONG).build().unwrap();
    let mut other = shell_at(&fixture, "BEGIN IMMEDIATE; INSERT INTO t VALUES (1)");
    let hold = Duration::from_secs(3);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let lease = pool.lease("writer").unwrap();
            insert(&lease);
            start.elapsed()
        });
        // Readers go on.
        assert_eq!(count(&pool.lease("reader").unwrap()), 0);
        std::thread::sleep(hold);
        writeln!(other.stdin.take().unwrap(), "COMMIT;").unwrap();
        let took = writer.join().unwrap();
        assert!(
            took >= hold && took < hold + Duration::from_secs(2),
            "{took:?}"
        );
    });
    assert!(other.wait().unwrap().success());
    assert_eq!(count(&pool.lease("reader").unwrap()), 2);
}

#[test]
fn a_foreign_write_lock_is_an_error_after_busy_timeout() {
    let fixture = Fixture::new();
    let busy = Duration::from_millis(200);
    let pool = fixture.builder(2).busy_timeout(busy).build().unwrap();
    let mut other = shell_at(&fixture, "BEGIN IMMEDIATE");
    let lease = pool.lease("writer").unwrap();
    let start = Instant::now();
    let error = lease.execute("INSERT INTO t VALUES (1)", []).unwrap_err();
    let took = start.elapsed();
    assert_eq!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy)
    );
    assert!(took >= busy / 2 && took < busy * 4, "{took:?}");
    // What is wrong for good fails at once.
    let start = Instant::now();
    assert!(
        lease
            .execute("INSERT INTO no_such_table VALUES (1)", [])
            .is_err()
    );
    assert!(start.elapsed() < busy / 2);
    drop(other.stdin.take());
    other.wait().unwrap();
    insert(&lease);
}
