//! One version of rusqlite under leasepool: the package that compiles this file says which.
//! It asks for no more than what the versions do in different ways: hooks, the log, transactions and backups.

use std::ops::ControlFlow;

use leasepool::{Backup, Database, Pool};
use rusqlite::Connection;

/// The type is that of the package's own rusqlite: there is no other in the program.
fn count(conn: &Connection) -> rusqlite::Result<i64> {
    conn.query_row("SELECT count(*) FROM note", [], |row| row.get(0))
}

fn pool(folder: &tempfile::TempDir) -> Pool {
    Pool::builder(Database::file(folder.path().join("app.db")))
        .max_connections(2)
        .wal_size(1 << 16)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (body)"))
        .build()
        .unwrap()
}

#[test]
fn leases_write_and_read() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    let lease = pool.lease("alice").unwrap();
    lease
        .execute("INSERT INTO note VALUES ('by a lease')", [])
        .unwrap();
    drop(lease);
    pool.write("bob", |tx| {
        tx.execute("INSERT INTO note VALUES ('by write')", [])
    })
    .unwrap();
    let found = pool.read("carol", |tx| count(tx));
    assert_eq!(found.unwrap(), 2);
    pool.close().unwrap();
}

#[test]
fn a_write_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    let failed = pool.write("alice", |tx| {
        tx.execute("INSERT INTO note VALUES (1)", [])?;
        tx.execute_batch("COMMIT")
    });
    assert!(failed.is_err());
    assert_eq!(count(&pool.lease("alice").unwrap()), Ok(0));
}

#[test]
fn the_log_is_checkpointed() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    // By the hook of a lease's connection, and by that of a group of writes.
    let by_lease = || {
        let lease = pool.lease("alice").unwrap();
        lease
            .execute("INSERT INTO note VALUES (zeroblob(20000))", [])
            .unwrap();
    };
    let by_write = || {
        pool.write("bob", |tx| {
            tx.execute("INSERT INTO note VALUES (zeroblob(20000))", [])
        })
        .unwrap();
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for write in [&by_lease as &dyn Fn(), &by_write] {
        let before = pool.stats().checkpoints;
        while pool.stats().checkpoints == before {
            assert!(std::time::Instant::now() < deadline, "{:?}", pool.stats());
            write();
        }
    }
}

#[test]
fn hooks_do_not_outlive_a_lease() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::builder(Database::file(folder.path().join("app.db")))
        .max_connections(1)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS note (body)"))
        .build()
        .unwrap();
    // Since 0.41, it takes the connection for itself.
    #[allow(unused_mut, reason = "unused in 0.40")]
    let mut lease = pool.lease("alice").unwrap();
    lease.commit_hook(Some(|| true)).unwrap();
    let insert = "INSERT INTO note VALUES (1)";
    assert!(lease.execute(insert, []).is_err());
    drop(lease);
    let lease = pool.lease("bob").unwrap();
    lease.execute(insert, []).unwrap();
    assert_eq!(count(&lease), Ok(1));
}

#[test]
fn a_connection_may_be_closed_in_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    for agent in ["alice", "bob", "carol"] {
        let lease = pool.lease(agent).unwrap();
        // It is closed as it is, since it shuts others out: SQLite rolls back as it closes.
        lease
            .execute_batch(
                "PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; INSERT INTO note VALUES (1)",
            )
            .unwrap();
    }
    assert_eq!(count(&pool.lease("dave").unwrap()), Ok(0));
}

#[test]
fn a_copy_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let pool = pool(&folder);
    pool.lease("alice")
        .unwrap()
        .execute("INSERT INTO note VALUES (1)", [])
        .unwrap();
    let copy = folder.path().join("copy.db");
    let mut pages = 0;
    let how = Backup::new().progress(|progress| {
        pages = progress.pages;
        ControlFlow::Continue(())
    });
    pool.backup_with(&copy, how).unwrap();
    assert!(pages > 0);
    assert_eq!(count(&Connection::open(copy).unwrap()), Ok(1));
}
