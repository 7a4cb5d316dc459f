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

/// Puts another database with `n` rows in the place of the file.
pub(crate) fn renamed_over(fixture: &Fixture, n: usize) {
    std::fs::rename(another(fixture, n), &fixture.path).unwrap();
    // The old file's WAL is not the new one's: a program that swaps databases removes it.
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
    pool.evict("1");
    renamed_over(&fixture, 5);
    eventually("maintenance has closed three", || pool.stats().open == 1);
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

/// C1, C2: the log belongs to its database.
mod log {
    use super::*;

    in_both_modes! {
        a_log_that_is_left_is_not_replayed_into_another_file,
        a_log_that_is_left_while_evicted_is_not_replayed,
        a_log_that_is_removed_is_noticed,
        the_documented_way_to_restore_a_file,
    }

    fn beside(path: &std::path::Path, suffix: &str) -> std::path::PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        name.into()
    }

    /// Another database with five rows, put over the file of agent `a`.
    fn replace(fixture: &Fixture) {
        let file = fixture.file("a");
        std::fs::rename(another(fixture, 5), &file).unwrap();
        let_a_change_show();
    }

    /// Either an error that says so, or the new file as it was.
    fn refused_or_clean(fixture: &Fixture, pool: &Pool) {
        match pool.lease("a") {
            Err(Error::FileReplaced { found, .. }) => {
                assert_eq!(found, FileState::LogLeft);
                // A program that removes what is left has the new file.
                for suffix in ["-wal", "-shm"] {
                    let _ = std::fs::remove_file(beside(&fixture.file("a"), suffix));
                }
                let_a_change_show();
                assert_eq!(rows(pool, "a"), 5);
            }
            Ok(lease) => assert_eq!(count(&lease), 5),
            Err(other) => panic!("{other:?}"),
        }
        let lease = pool.lease("a").unwrap();
        let checked: String = lease
            .query_row("PRAGMA integrity_check", [], |row| row.get(0))
            .unwrap();
        assert_eq!(checked, "ok");
        insert(&lease);
        drop(lease);
        assert_eq!(rows(pool, "a"), 6);
        assert_whole(pool);
    }

    fn a_log_that_is_left_is_not_replayed_into_another_file(mode: Mode) {
        for lent in [false, true] {
            let fixture = mode.fixture();
            let pool = fixture.pool(3);
            let lease = pool.lease("a").unwrap();
            (0..100).for_each(|_| insert(&lease));
            let held = lent.then_some(lease);
            replace(&fixture);
            // By anybody's lease: in one file together it is noticed by the next.
            let noticed = pool.lease(mode.either("b", "a-neighbour"));
            if mode == Mode::Shared {
                assert!(
                    matches!(noticed, Err(Error::FileReplaced { .. })),
                    "{noticed:?}"
                );
                assert!(matches!(pool.ready(), Err(Error::FileReplaced { .. })));
            }
            drop(noticed);
            if let Some(lease) = held {
                // What is lent stays as it was.
                assert_eq!(count(&lease), 100);
            }
            refused_or_clean(&fixture, &pool);
        }
    }

    fn a_log_that_is_left_while_evicted_is_not_replayed(mode: Mode) {
        let fixture = mode.fixture();
        let pool = fixture.pool(2);
        let lease = pool.lease("a").unwrap();
        (0..20).for_each(|_| insert(&lease));
        // A reader elsewhere, so that the log stays when the connection is closed.
        let outside = leasepool::rusqlite::Connection::open(fixture.file("a")).unwrap();
        assert_eq!(count(&outside), 20);
        drop(lease);
        pool.evict("a");
        if mode == Mode::PerAgent {
            eventually("it is closed", || pool.stats().open == 0);
        }
        assert!(
            std::fs::metadata(beside(&fixture.file("a"), "-wal"))
                .unwrap()
                .len()
                > 0
        );
        replace(&fixture);
        assert!(matches!(
            pool.lease("a"),
            Err(Error::FileReplaced {
                found: FileState::LogLeft,
                ..
            })
        ));
        drop(outside);
        refused_or_clean(&fixture, &pool);
    }

    fn a_log_that_is_removed_is_noticed(mode: Mode) {
        let fixture = mode.fixture();
        let pool = fixture.pool(2);
        let lease = pool.lease("a").unwrap();
        insert(&lease);
        std::fs::remove_file(beside(&fixture.file("a"), "-wal")).unwrap();
        let_a_change_show();
        match mode {
            // No agent can be served while a lease has the old log.
            Mode::Shared => {
                let error = pool.lease("b").unwrap_err();
                let found = FileState::LogRemoved;
                assert!(
                    matches!(&error, Error::FileReplaced { found: now, .. } if *now == found),
                    "{error:?}"
                );
                assert!(matches!(pool.ready(), Err(Error::FileReplaced { .. })));
                let write = pool.write("b", |tx| tx.execute("INSERT INTO t VALUES (2)", ()));
                assert!(
                    matches!(write, Err(Error::FileReplaced { .. })),
                    "{write:?}"
                );
            }
            Mode::PerAgent => {}
        }
        drop(lease);
        // Then the database is opened anew, with a log of its own, and keeps what it is given.
        eventually("it is served again", || pool.lease("a").is_ok());
        let write = pool.write("a", |tx| tx.execute("INSERT INTO t VALUES (2)", ()));
        write.unwrap();
        pool.close().unwrap();
        let kept = leasepool::rusqlite::Connection::open(fixture.file("a")).unwrap();
        let found: i64 = kept
            .query_row("SELECT count(*) FROM t WHERE x = 2", [], |row| row.get(0))
            .unwrap();
        assert_eq!(found, 1);
        assert!(pool.stats().discarded_by_file >= 1);
    }

    /// As docs/operating.md says: first what would change the new file, then the file.
    fn the_documented_way_to_restore_a_file(mode: Mode) {
        for lent in [false, true] {
            let fixture = mode.fixture();
            let pool = fixture.pool(2);
            let lease = pool.lease("a").unwrap();
            (0..10).for_each(|_| insert(&lease));
            let held = lent.then_some(lease);
            let file = fixture.file("a");
            for suffix in ["-wal", "-shm"] {
                std::fs::remove_file(beside(&file, suffix)).unwrap();
            }
            std::fs::rename(another(&fixture, 5), &file).unwrap();
            let_a_change_show();
            drop(held);
            eventually("the new file is served", || {
                pool.lease("a").is_ok_and(|lease| count(&lease) == 5)
            });
            insert(&pool.lease("a").unwrap());
            assert_eq!(rows(&pool, "a"), 6);
            assert_whole(&pool);
        }
    }
}

/// C22: what a path leads to in the end is what is opened, and what is counted.
#[test]
fn a_link_to_a_link_to_no_file() {
    let fixture = Fixture::new();
    let (first, second) = (fixture.in_folder("first"), fixture.in_folder("second"));
    std::os::unix::fs::symlink("second", &first).unwrap();
    std::os::unix::fs::symlink(&fixture.path, &second).unwrap();
    let build = || Pool::builder(leasepool::Database::file(&first)).build();
    let pool = build().unwrap();
    let _lease = pool.lease("a").unwrap();
    assert!(fixture.path.exists());
    assert_eq!(pool.descriptors(), Some(fixture.descriptors().all()));
    assert!(fixture.descriptors().all() >= 3);
    // A circle of links is an error.
    let circle = fixture.in_folder("circle");
    std::os::unix::fs::symlink("circle", &circle).unwrap();
    let built = Pool::builder(leasepool::Database::file(&circle)).build();
    assert!(matches!(built, Err(Error::Open { .. })), "{built:?}");
}
