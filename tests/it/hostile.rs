//! P15 against whatever a member of a group may do: of what returned `Ok` everything is there, of what returned an
//! error nothing is.
//!
//! What is left out is what nothing can forbid: work that takes the pool's commit hook off, has SQLite roll the
//! transaction back, and then writes on, which SQLite commits by itself; and work that takes off both the hook and the
//! authorizer (or on a lease has a COMMIT in its cache, or has taken the authorizer off before), and commits.

use std::collections::HashSet;
use std::sync::mpsc;
use std::thread;

use leasepool::rusqlite::hooks::{Action as Change, AuthContext, Authorization};
use leasepool::rusqlite::{self, Connection, Savepoint};
use leasepool::{Builder, Error, Lease, Pool};
use proptest::prelude::*;

use crate::common::*;

/// What a member may do. It ignores all errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Insert,
    OrRollback,
    RaiseRollback,
    DiskFull,
    Interrupt,
    Sql(&'static str),
    Cached(&'static str),
    Blind,
    Veto,
    NoHooks,
    DeferredForeignKey,
    Panic,
    Fail,
}

const DISGUISES: [&str; 14] = [
    "COMMIT",
    "END",
    "/* */ commit",
    "ROLLBACK",
    "COMMIT; BEGIN",
    "ROLLBACK; BEGIN IMMEDIATE",
    "RELEASE leasepool_member",
    "ROLLBACK TO leasepool_member",
    "SAVEPOINT leasepool_member",
    "SAVEPOINT x",
    "RELEASE x",
    "ROLLBACK TO x",
    "SAVEPOINT \"leasepool_member\"",
    "BEGIN",
];

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Insert),
        1 => Just(Act::OrRollback),
        1 => Just(Act::RaiseRollback),
        1 => Just(Act::DiskFull),
        1 => Just(Act::Interrupt),
        4 => prop::sample::select(DISGUISES.to_vec()).prop_map(Act::Sql),
        3 => prop::sample::select(DISGUISES.to_vec()).prop_map(Act::Cached),
        1 => Just(Act::Blind),
        1 => Just(Act::Veto),
        1 => Just(Act::NoHooks),
        1 => Just(Act::DeferredForeignKey),
        1 => Just(Act::Panic),
        1 => Just(Act::Fail),
    ]
}

impl Act {
    fn takes_hooks_off(self) -> bool {
        matches!(self, Act::Veto | Act::NoHooks)
    }

    /// Whether SQLite may roll back by it, where the authorizer does not see it.
    fn may_roll_back(self) -> bool {
        !matches!(self, Act::Insert | Act::Panic | Act::Fail) && !self.takes_hooks_off()
    }
}

/// Puts aside what is left out.
fn within_reach(acts: &[Act]) -> bool {
    let hooks = acts.iter().position(|act| act.takes_hooks_off());
    let rolled_back = acts.iter().position(|act| act.may_roll_back());
    let writes = acts.iter().rposition(|act| *act == Act::Insert);
    let unseen = |act: &Act| matches!(act, Act::Blind | Act::Cached(_));
    hooks.is_none()
        || !acts.iter().any(unseen) && (rolled_back.is_none() || writes < hooks.max(rolled_back))
}

/// Whether hooks are taken off where the authorizer is off already.
fn takes_off_both(acts: &[Act]) -> bool {
    let blind = acts.iter().position(|act| *act == Act::Blind);
    let hooks = acts.iter().rposition(|act| act.takes_hooks_off());
    blind.is_some_and(|blind| hooks.is_some_and(|hooks| blind < hooks))
}

fn builder(fixture: &Fixture) -> Builder {
    fixture
        .builder(2)
        .pragma("max_page_count", 300)
        .lease_timeout(LONG)
        .write_group(256, LONG)
        .setup(|conn| {
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS done (member, step, UNIQUE (member, step));
                 CREATE TABLE IF NOT EXISTS taken (x INTEGER PRIMARY KEY);
                 INSERT OR IGNORE INTO taken VALUES (1);
                 CREATE TABLE IF NOT EXISTS raising (x);
                 CREATE TRIGGER IF NOT EXISTS raise BEFORE INSERT ON raising
                 BEGIN SELECT RAISE(ROLLBACK, 'on purpose'); END;
                 CREATE TABLE IF NOT EXISTS child (
                     x REFERENCES taken DEFERRABLE INITIALLY DEFERRED
                 );",
            )
        })
}

/// Works through the script. Returns the steps whose rows must be there if it is acknowledged.
fn perform(conn: &Connection, member: i64, acts: &[Act]) -> Result<HashSet<i64>, Error> {
    let mut inserted = HashSet::new();
    let mut undone = false;
    for (step, act) in (0..).zip(acts) {
        match act {
            Act::Insert => {
                let insert = "INSERT INTO done VALUES (?1, ?2)";
                if conn.execute(insert, [member, step]).is_ok() {
                    inserted.insert(step);
                }
            }
            Act::OrRollback => {
                let _ = conn.execute_batch("INSERT OR ROLLBACK INTO taken VALUES (1)");
            }
            Act::RaiseRollback => _ = conn.execute_batch("INSERT INTO raising VALUES (1)"),
            Act::DiskFull => {
                let _ = conn.execute_batch("INSERT INTO raising SELECT zeroblob(4000000)");
                let fill = "INSERT INTO done VALUES (-1, zeroblob(4000000))";
                let _ = conn.execute_batch(fill);
            }
            Act::Interrupt => {
                let handle = conn.get_interrupt_handle();
                let endless = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c)
                               INSERT INTO child SELECT NULL FROM c";
                thread::scope(|scope| {
                    let (stop, stopped) = mpsc::channel::<()>();
                    scope.spawn(move || {
                        let tick = std::time::Duration::from_micros(300);
                        while stopped.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                            handle.interrupt();
                        }
                    });
                    let _ = conn.execute_batch(endless);
                    drop(stop);
                });
            }
            Act::Sql(sql) => {
                undone |= sql.contains("ROLLBACK TO");
                let _ = conn.execute_batch(sql);
            }
            Act::Cached(sql) => {
                undone |= sql.contains("ROLLBACK TO");
                if let Ok(mut statement) = conn.prepare_cached(sql) {
                    let _ = statement.execute([]);
                }
            }
            Act::Blind => {
                conn.authorizer(None::<fn(AuthContext<'_>) -> Authorization>)
                    .unwrap();
            }
            Act::Veto => conn.commit_hook(Some(|| true)).unwrap(),
            Act::NoHooks => {
                conn.commit_hook(None::<fn() -> bool>).unwrap();
                conn.rollback_hook(None::<fn()>).unwrap();
                conn.update_hook(None::<fn(Change, &str, &str, i64)>)
                    .unwrap();
            }
            Act::DeferredForeignKey => _ = conn.execute_batch("INSERT INTO child VALUES (99)"),
            Act::Panic => panic!("on purpose"),
            Act::Fail => return Err(rusqlite::Error::InvalidQuery.into()),
        }
    }
    // Its own ROLLBACK TO may have undone any of them, and it knows.
    if undone {
        inserted.clear();
    }
    Ok(inserted)
}

/// What is there, and what was acknowledged.
fn check(pool: &Pool, acknowledged: &[(i64, Option<HashSet<i64>>)]) {
    let lease = pool.lease("a").unwrap();
    for (member, answer) in acknowledged {
        let mut select = lease
            .prepare("SELECT step FROM done WHERE member = ?1")
            .unwrap();
        let rows = select.query_map([member], |row| row.get(0)).unwrap();
        let found: HashSet<i64> = rows.collect::<Result<_, _>>().unwrap();
        match answer {
            Some(steps) => assert!(found.is_superset(steps), "{member}: {found:?} {steps:?}"),
            None => assert!(found.is_empty(), "{member} was refused: {found:?}"),
        }
    }
    let checked = "PRAGMA integrity_check";
    let integrity: String = lease.query_row(checked, [], |row| row.get(0)).unwrap();
    assert_eq!(integrity, "ok");
}

fn one_group(mode: Mode, pool: &Pool, first: i64, scripts: &[Vec<Act>]) {
    let (go_on, wait) = mpsc::channel::<()>();
    let (tell, began) = mpsc::channel();
    let mut acknowledged = Vec::new();
    thread::scope(|scope| {
        let holder = scope.spawn(move || {
            pool.write("a", move |_| {
                tell.send(()).unwrap();
                let _ = wait.recv();
                Ok(())
            })
        });
        began.recv().unwrap();
        let mut waiting = Vec::new();
        for (i, acts) in (0..).zip(scripts) {
            let member = first + i;
            let acts = acts.clone();
            // Of one file, all agents' writes are one queue.
            let agent = mode.either(["a", "b", "c"][i as usize % 3], "a");
            let work = move |tx: &mut Savepoint<'_>| perform(tx, member, &acts);
            let write = async move { pool.agent(agent).write_and_then_async(work).await };
            let mut write = Box::pin(write);
            assert!(smol::block_on(smol::future::poll_once(&mut write)).is_none());
            waiting.push((member, write));
        }
        drop(go_on);
        // It may be of their group.
        let _ = holder.join().unwrap();
        for (member, write) in waiting {
            acknowledged.push((member, smol::block_on(write).ok()));
        }
    });
    check(pool, &acknowledged);
}

fn groups_of_hostile_members_are_told_the_truth(mode: Mode) {
    let config = ProptestConfig {
        cases: asked("LEASEPOOL_HOSTILE_CASES", 60),
        max_shrink_iters: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let script =
        prop::collection::vec(act(), 1..6).prop_filter("out of reach", |a| within_reach(a));
    let groups = prop::collection::vec(prop::collection::vec(script, 2..6), 1..3);
    proptest!(config, |(groups in groups)| {
        let fixture = mode.fixture();
        let pool = builder(&fixture).build().unwrap();
        let mut first = 0;
        for scripts in &groups {
            one_group(mode, &pool, first, scripts);
            first += scripts.len() as i64;
        }
        assert_whole(&pool);
        pool.close().unwrap();
    });
}

fn a_hostile_write_on_a_lease_is_told_the_truth(mode: Mode) {
    let config = ProptestConfig {
        cases: 60,
        max_shrink_iters: 500,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let script =
        prop::collection::vec(act(), 1..6).prop_filter("out of reach", |a| within_reach(a));
    // All work on one connection, and an authorizer that one has taken off is off for the next.
    let scripts = prop::collection::vec(script, 1..4)
        .prop_filter("out of reach", |scripts| !takes_off_both(&scripts.concat()));
    proptest!(config, |(scripts in scripts)| {
        let fixture = mode.fixture();
        let pool = builder(&fixture).build().unwrap();
        let mut acknowledged = Vec::new();
        for (member, acts) in (0..).zip(&scripts) {
            let mut lease = pool.lease("a").unwrap();
            let work = || Lease::write_and_then(&mut lease, |tx| perform(tx, member, acts));
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            acknowledged.push((member, answer.ok().and_then(Result::ok)));
            drop(lease);
        }
        check(&pool, &acknowledged);
        assert_whole(&pool);
        pool.close().unwrap();
    });
}

in_both_modes! {
    groups_of_hostile_members_are_told_the_truth,
    a_hostile_write_on_a_lease_is_told_the_truth,
    a_transaction_of_its_own_is_not_the_groups,
    what_is_written_after_the_end_of_the_transaction_is_not_kept,
    a_cached_commit_ends_no_group,
    a_hook_that_a_member_leaves_does_not_stop_the_group,
}

/// B1: one member's statement rolls the group's transaction back; it goes on in one of its own, and reports an error.
fn a_transaction_of_its_own_is_not_the_groups(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    let scripts = [
        vec![Act::Insert],
        vec![
            Act::OrRollback,
            Act::Sql("SAVEPOINT x"),
            Act::Insert,
            Act::Fail,
        ],
        vec![Act::Insert],
    ];
    one_group(mode, &pool, 0, &scripts);
    assert_whole(&pool);
}

/// B2: a statement fails with a full disk, which ends the transaction; the next would be committed by itself.
fn what_is_written_after_the_end_of_the_transaction_is_not_kept(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    let work = |conn: &Connection| perform(conn, 1, &[Act::DiskFull, Act::Insert]);
    let answer = pool.agent("a").write_and_then(move |tx| work(tx));
    assert!(
        matches!(answer, Err(Error::RolledBack { .. })),
        "{answer:?}"
    );
    let mut lease = pool.lease("a").unwrap();
    let answer = Lease::write_and_then(&mut lease, |tx| work(tx));
    assert!(
        matches!(answer, Err(Error::RolledBack { .. })),
        "{answer:?}"
    );
    drop(lease);
    check(&pool, &[(1, None)]);
}

/// B4: a statement that a lease of the agent's left in the cache.
fn a_cached_commit_ends_no_group(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    for sql in ["COMMIT", "ROLLBACK", "END"] {
        let lease = pool.lease("a").unwrap();
        lease.execute_batch("BEGIN").unwrap();
        lease.prepare_cached(sql).unwrap().execute([]).unwrap();
    }
    let scripts = [
        vec![Act::Insert],
        vec![Act::Insert, Act::Cached("COMMIT")],
        vec![Act::Insert, Act::Cached("ROLLBACK"), Act::Insert],
    ];
    one_group(mode, &pool, 0, &scripts);
    assert_whole(&pool);
}

/// B6: a hook that forbids commits is the member's, and ends with it.
fn a_hook_that_a_member_leaves_does_not_stop_the_group(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    let left = pool.write("a", |tx| {
        tx.execute_batch("INSERT INTO done VALUES (7, 7)")?;
        tx.commit_hook(Some(|| true))?;
        Ok(())
    });
    left.unwrap();
    check(&pool, &[(7, Some(HashSet::from([7])))]);
    assert_whole(&pool);
}

/// B5: what a member changes about the connection ends with it, where another agent's comes next.
#[test]
fn a_member_leaves_nothing_for_another_agents() {
    use rusqlite::config::DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY;
    use rusqlite::limits::Limit::SQLITE_LIMIT_VARIABLE_NUMBER;
    let fixture = Fixture::new();
    let pool = fixture
        .builder(2)
        .lease_timeout(LONG)
        .pragma("foreign_keys", "ON")
        .setup(|conn| {
            conn.execute_batch(
                "CREATE TABLE IF NOT EXISTS parent (x INTEGER PRIMARY KEY);
                 CREATE TABLE IF NOT EXISTS child (x REFERENCES parent);",
            )
        })
        .build()
        .unwrap();
    let alice = |tx: &mut Savepoint<'_>| {
        tx.set_db_config(SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        tx.set_limit(SQLITE_LIMIT_VARIABLE_NUMBER, 1)?;
        #[cfg(feature = "functions")]
        {
            let flags = rusqlite::functions::FunctionFlags::SQLITE_UTF8;
            tx.create_scalar_function("lower", 1, flags, |_| Ok("alice's"))?;
            tx.create_scalar_function("hers", 0, flags, |_| Ok(1))?;
        }
        tx.execute("INSERT INTO parent VALUES (1000)", [])?;
        Ok(())
    };
    let bob = |tx: &mut Savepoint<'_>| {
        assert_eq!(tx.last_insert_rowid(), 0);
        let lower: String = tx.query_row("SELECT lower('BOB')", [], |row| row.get(0))?;
        assert_eq!(lower, "bob");
        assert!(tx.prepare("SELECT hers()").is_err());
        assert_eq!(
            tx.query_row("SELECT ?1 + ?2", [1, 2], |row| row.get::<_, i64>(0))?,
            3
        );
        let orphan = tx.execute("INSERT INTO child VALUES (1)", []);
        assert!(orphan.is_err(), "no such parent");
        Ok(())
    };
    // One after the other, and in one group.
    pool.write("alice", alice).unwrap();
    pool.write("bob", bob).unwrap();
    let (go_on, wait) = mpsc::channel::<()>();
    let (tell, began) = mpsc::channel();
    thread::scope(|scope| {
        let pool = &pool;
        scope.spawn(move || {
            let hold = move |_: &mut Savepoint<'_>| {
                tell.send(()).unwrap();
                let _ = wait.recv();
                Ok(())
            };
            pool.write("holder", hold)
        });
        began.recv().unwrap();
        let alice = move |tx: &mut Savepoint<'_>| {
            tx.execute("DELETE FROM parent", [])?;
            alice(tx)
        };
        let mut first = Box::pin(pool.write_async("alice", alice));
        let mut second = Box::pin(pool.write_async("bob", bob));
        assert!(smol::block_on(smol::future::poll_once(&mut first)).is_none());
        assert!(smol::block_on(smol::future::poll_once(&mut second)).is_none());
        drop(go_on);
        smol::block_on(first).unwrap();
        smol::block_on(second).unwrap();
    });
    assert_whole(&pool);
}
