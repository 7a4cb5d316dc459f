//! P12: the file replaced, truncated or deleted under us. Typed error or new generation, never a write
//! into the old file, never re-created by a checkout.

use leasepool::{Error, FileState, Pool};

use crate::common::*;

/// A database with `n` rows, made elsewhere.
fn another(fixture: &Fixture, n: usize) -> std::path::PathBuf {
    let other = Fixture::new();
    let pool = other.pool(1);
    let lease = pool.lease("a").unwrap();
    (0..n).for_each(|_| insert(&lease));
    drop(lease);
    drop(pool);
    let path = fixture.in_folder("another.db");
    std::fs::copy(&other.path, &path).unwrap();
    path
}

fn renamed_over(fixture: &Fixture, n: usize) {
    std::fs::rename(another(fixture, n), &fixture.path).unwrap();
    // The old file's WAL is not the new one's: whoever swaps databases removes it.
    for sidecar in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(fixture.path.with_extension(sidecar));
    }
    let_a_change_show();
}

fn rows(pool: &Pool, agent: &str) -> i64 {
    count(&pool.lease(agent).unwrap())
}

#[test]
fn a_file_renamed_over_is_opened_by_the_next_lease() {
    let fixture = Fixture::new();
    let pool = fixture.pool(3);
    let (a, b) = (pool.lease("a").unwrap(), pool.lease("b").unwrap());
    insert(&a);
    insert(&b);
    drop((a, b));
    renamed_over(&fixture, 5);
    assert_eq!(rows(&pool, "a"), 5);
    assert_eq!(rows(&pool, "b"), 5);
    assert_eq!(rows(&pool, "c"), 5);
    assert_eq!(pool.stats().discarded_by_file, 2);
    assert_eq!(fixture.descriptors().deleted, 0);
    insert(&pool.lease("a").unwrap());
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
    assert_eq!(rows(&fixture.pool(1), "a"), 6);
}

#[test]
fn the_new_file_is_set_up() {
    let fixture = Fixture::new();
    let pool = fixture.pool(1);
    drop(pool.lease("a").unwrap());
    let empty = fixture.in_folder("empty.db");
    leasepool::rusqlite::Connection::open(&empty)
        .unwrap()
        .execute_batch("CREATE TABLE unrelated (x)")
        .unwrap();
    std::fs::rename(&empty, &fixture.path).unwrap();
    for sidecar in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(fixture.path.with_extension(sidecar));
    }
    let_a_change_show();
    assert_eq!(rows(&pool, "a"), 0);
}

#[test]
fn idle_connections_to_the_old_file_are_closed_without_a_lease() {
    let fixture = Fixture::new();
    let pool = fixture.pool(4);
    let leases: Vec<_> = (0..4)
        .map(|i| pool.lease(format!("{i}")).unwrap())
        .collect();
    leases.iter().for_each(|lease| insert(lease));
    let mut leases = leases.into_iter();
    let lent = leases.next().unwrap();
    let free = leases.next().unwrap();
    drop(leases);
    drop(free);
    pool.release("1");
    renamed_over(&fixture, 5);
    eventually("the keeper has closed three", || pool.stats().open == 1);
    // The lent one works on what it has, and is closed when it comes back.
    assert_eq!(count(&lent), 4);
    insert(&lent);
    drop(lent);
    eventually("a thread of the pool's has closed it", || {
        pool.stats().open == 0
    });
    let stats = pool.stats();
    assert_eq!((stats.open, stats.discarded_by_file), (0, 4), "{stats:?}");
    assert_eq!(fixture.descriptors().all(), 0);
    assert_eq!(rows(&pool, "a"), 5);
    assert_whole(&pool);
}

#[test]
fn a_deleted_file_is_an_error_and_stays_deleted() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    let lent = pool.lease("lent").unwrap();
    insert(&lent);
    drop(pool.lease("a").unwrap());
    let kept = another(&fixture, 7);
    std::fs::remove_file(&fixture.path).unwrap();
    let_a_change_show();
    for agent in ["a", "b", "a"] {
        let error = pool.lease(agent).unwrap_err();
        let Error::FileReplaced { path, found, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((path, found), (fixture.path.clone(), FileState::Deleted));
        assert!(!fixture.path.exists());
    }
    assert_eq!(count(&lent), 1);
    drop(lent);
    assert!(!fixture.path.exists());
    eventually("a thread of the pool's has closed it", || {
        pool.stats().open == 0
    });
    assert_eq!(fixture.descriptors().all(), 0);
    // Put back, it is served again.
    for sidecar in ["db-wal", "db-shm"] {
        let _ = std::fs::remove_file(fixture.path.with_extension(sidecar));
    }
    std::fs::rename(kept, &fixture.path).unwrap();
    let_a_change_show();
    assert_eq!(rows(&pool, "a"), 7);
    assert_whole(&pool);
    std::fs::remove_file(&fixture.path).unwrap();
    drop(pool);
    assert!(!fixture.path.exists());
}

#[test]
fn a_truncated_file_is_an_error() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    insert(&pool.lease("a").unwrap());
    pool.close().unwrap();
    drop(pool);
    let pool = fixture.pool(2);
    drop(pool.lease("a").unwrap());
    // By path: this process may not open the file itself.
    let truncated = std::process::Command::new("truncate")
        .args(["-s", "0"])
        .arg(&fixture.path)
        .status()
        .unwrap();
    assert!(truncated.success());
    let_a_change_show();
    for agent in ["a", "b"] {
        let error = pool.lease(agent).unwrap_err();
        assert!(
            matches!(
                error,
                Error::FileReplaced {
                    found: FileState::Truncated,
                    ..
                }
            ),
            "{error:?}"
        );
    }
    drop(pool);
    assert_eq!(std::fs::metadata(&fixture.path).unwrap().len(), 0);
    assert_eq!(fixture.descriptors().all(), 0);
}

/// The same file with other contents: nothing tells it from a write of another process, so what comes
/// out is what SQLite says. It must be an answer, and cost no connection.
#[test]
fn a_file_copied_over_loses_no_connection() {
    let fixture = Fixture::new();
    let pool = fixture.pool(2);
    insert(&pool.lease("a").unwrap());
    drop(pool.lease("b").unwrap());
    let other = another(&fixture, 9);
    let copied = std::process::Command::new("cp")
        .arg(&other)
        .arg(&fixture.path)
        .status()
        .unwrap();
    assert!(copied.success());
    let_a_change_show();
    for agent in ["a", "b", "c"] {
        match pool.lease(agent) {
            Ok(lease) => {
                let counted =
                    lease.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, i64>(0));
                assert!(
                    counted.is_err() || matches!(counted, Ok(1 | 9)),
                    "{counted:?}"
                );
            }
            Err(Error::Open { .. } | Error::Setup { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(pool.stats().lent, 0);
    assert!(pool.stats().open <= 2);
}
