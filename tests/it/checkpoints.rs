//! Who runs checkpoints: the pool, also where a borrower's WAL hook has taken the place of the pool's; or another
//! process, and then nothing of the pool's but in an emergency.

use std::path::Path;
use std::time::Duration;

use leasepool::rusqlite::Connection;
use leasepool::rusqlite::config::DbConfig;
use leasepool::{Builder, Error, Pool, Synchronous};

use crate::common::*;

in_both_modes!(
    a_wal_hook_of_on_open_stops_no_checkpoint,
    a_lease_with_a_wal_hook_of_its_own_goes_on,
    a_lease_whose_connection_is_used_at_one_go_leaves_no_long_log,
    a_pragma_of_on_open_is_obeyed,
    an_external_checkpointer_is_left_the_whole_log,
    whatever_borrowers_did_the_log_is_left,
    in_an_emergency_the_pool_copies_the_log,
    a_backup_runs_no_checkpoint,
    what_does_not_go_with_external_checkpoints_is_refused;
    only in shared:
    a_lease_that_never_lets_go_is_noticed,
);

const WAL_SIZE: u32 = 256 << 10;
/// What the file `-wal` is cut to, and as much again: with checkpoints, it is never longer for long.
/// While the pool's thread runs a checkpoint, no other can; and that thread may have to wait for the processor.
const LONGEST: u64 = 12 * WAL_SIZE as u64;
/// As in the case that these tests are for.
const ROW: usize = 20_000;
const ROWS: usize = 400;

fn builder(fixture: &Fixture) -> Builder {
    fixture
        .builder(4)
        .wal_size(WAL_SIZE)
        .synchronous(Synchronous::Normal)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

fn add(conn: &Connection, bytes: usize) {
    conn.execute("INSERT INTO t VALUES (randomblob(?1))", [bytes as i64])
        .unwrap();
}

fn write(pool: &Pool, agent: &str, bytes: usize) {
    pool.write(agent, move |tx| {
        add(tx, bytes);
        Ok(())
    })
    .unwrap();
}

/// Guards: B9. The hook hid from the pool that nobody had asked for checkpoints of SQLite's own, and it ran none.
fn a_wal_hook_of_on_open_stops_no_checkpoint(mode: Mode) {
    let fixture = mode.fixture();
    let builder = builder(&fixture).on_open(|conn| {
        conn.wal_hook(Some(|_, _| Ok(())));
        Ok::<_, rusqlite::Error>(())
    });
    let pool = builder.build().unwrap();
    for _ in 0..3 {
        fill_until_short(&fixture, |bytes| write(&pool, "a", bytes));
    }
    for _ in 0..3 {
        let lease = pool.lease("a").unwrap();
        fill_until_short(&fixture, |bytes| add(&lease, bytes));
        // Reset, where the connection is not the agent's own.
        drop(lease);
        drop(pool.lease("b").unwrap());
    }
    // What commits note arrives.
    if mode == Mode::Shared {
        assert!(pool.stats().wal_pages > 0);
    }
}

/// Writes as much as the log must not become, and then little, until the log has begun anew.
fn fill_until_short(fixture: &Fixture, mut add: impl FnMut(usize)) {
    for _ in 0..ROWS / 4 {
        add(ROW);
    }
    eventually("the log begins anew", || {
        add(1);
        fixture.wal_length("a") < LONGEST
    });
}

/// Guards: B9 for a hook that a lease sets. Nothing tells that it has, and the lease does not end.
fn a_lease_with_a_wal_hook_of_its_own_goes_on(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    let lease = pool.lease("a").unwrap();
    lease.wal_hook(Some(|_, _| Ok(())));
    for _ in 0..5 {
        fill_until_short(&fixture, |bytes| add(&lease, bytes));
    }
    // Likewise without a hook, and with transactions.
    lease.wal_hook(None);
    let mut lease = lease;
    for _ in 0..5 {
        fill_until_short(&fixture, |bytes| {
            let transaction = lease.transaction().unwrap();
            add(&transaction, bytes);
            transaction.commit().unwrap();
        });
    }
    drop(lease);
    // The hook stays with its agent, and so do checkpoints.
    for _ in 0..ROWS {
        add(&pool.lease("a").unwrap(), ROW);
    }
    eventually("the log is short", || {
        add(&pool.lease("a").unwrap(), 1);
        fixture.wal_length("a") < LONGEST
    });
    assert!(pool.stats().checkpoints > 0);
    assert_eq!(pool.stats().emergency_checkpoints, 0);
}

fn a_lease_whose_connection_is_used_at_one_go_leaves_no_long_log(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    let lease = pool.lease("a").unwrap();
    // The pool cannot see how often this is used.
    let conn: &Connection = &lease;
    conn.wal_hook(Some(|_, _| Ok(())));
    for _ in 0..ROWS {
        add(conn, ROW);
    }
    drop(lease);
    eventually("the log is short", || {
        add(&pool.lease("a").unwrap(), 1);
        fixture.wal_length("a") < LONGEST
    });
}

fn a_lease_that_never_lets_go_is_noticed(mode: Mode) {
    let fixture = mode.fixture();
    let pool = builder(&fixture).build().unwrap();
    let lease = pool.lease("a").unwrap();
    let conn: &Connection = &lease;
    conn.wal_hook(Some(|_, _| Ok(())));
    for _ in 0..3 {
        fill_until_short(&fixture, |bytes| add(conn, bytes));
    }
}

/// Who asks for SQLite's own checkpoints gets them.
fn a_pragma_of_on_open_is_obeyed(mode: Mode) {
    for (pages, short) in [(10, true), (0, false)] {
        let fixture = mode.fixture();
        // Maintenance is done every 10 ms, where it looks at the log.
        let idle_timeout = mode.either(Duration::from_millis(40), LONG);
        let pool = builder(&fixture)
            .idle_timeout(idle_timeout)
            .on_open(move |conn| conn.pragma_update(None, "wal_autocheckpoint", pages))
            .build()
            .unwrap();
        for round in 0..3 {
            let lease = pool.lease("a").unwrap();
            for _ in 0..ROWS / 3 {
                add(&lease, ROW);
            }
            let asked: i64 = lease
                .pragma_query_value(None, "wal_autocheckpoint", |row| row.get(0))
                .unwrap();
            assert_eq!(asked, pages, "{round}");
            drop(lease);
            drop(pool.lease("b").unwrap());
            write(&pool, "a", ROW);
        }
        if mode == Mode::Shared {
            // Time enough for the pool to do what it should not.
            std::thread::sleep(Duration::from_millis(100));
            write(&pool, "a", ROW);
        }
        assert_eq!(fixture.wal_length("a") < LONGEST, short, "{pages}");
        assert_eq!(pool.stats().checkpoints, 0);
    }
}

/// A builder of pools that leave checkpoints to another process, with a `setup` whose writes alone would make SQLite
/// run one.
fn external(fixture: &Fixture, emergency: Option<u32>) -> Builder {
    builder(fixture)
        .external_checkpoints(emergency)
        .setup(|conn| {
            conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)")?;
            if count(conn) == 0 {
                for _ in 0..SET_UP {
                    add(conn, ROW);
                }
            }
            Ok::<_, rusqlite::Error>(())
        })
}

/// Rows of `setup`: more than 1,000 pages.
const SET_UP: usize = 300;

/// Everything that was written is in the log, and next to nothing in the database.
fn assert_all_in_log(fixture: &Fixture, rows: usize, what: &str) {
    let (file, log) = (length(&fixture.file("a")), fixture.wal_length("a"));
    assert!(file <= 4096, "{what}: {file} bytes are in the database");
    let least = (rows * ROW) as u64;
    assert!(log >= least, "{what}: {log} of {least} bytes in the log");
}

fn an_external_checkpointer_is_left_the_whole_log(mode: Mode) {
    let fixture = mode.fixture();
    let pool = external(&fixture, None).build().unwrap();
    drop(pool.lease("a").unwrap());
    assert_all_in_log(&fixture, SET_UP, "setup");
    for _ in 0..ROWS {
        write(&pool, "a", ROW);
    }
    assert_all_in_log(&fixture, SET_UP + ROWS, "writes");
    let lease = pool.lease("a").unwrap();
    for _ in 0..ROWS {
        add(&lease, ROW);
    }
    drop(lease);
    assert_all_in_log(&fixture, SET_UP + 2 * ROWS, "leases");
    // Evicted, and closed where the connection is the agent's own.
    pool.evict("a");
    mode.assert_open(&pool, 0, pool.stats().open);
    assert_all_in_log(&fixture, SET_UP + 2 * ROWS, "eviction");
    drop(pool.lease("a").unwrap());
    let stats = pool.stats();
    assert_eq!((stats.checkpoints, stats.emergency_checkpoints), (0, 0));
    pool.close().unwrap();
    assert_eq!(fixture.descriptors().all(), 0);
    assert_all_in_log(&fixture, SET_UP + 2 * ROWS, "close");
    // The next process goes on with it.
    let pool = external(&fixture, None).build().unwrap();
    assert_eq!(count(&pool.lease("a").unwrap()) as usize, SET_UP + 2 * ROWS);
    drop(pool);
    assert_all_in_log(&fixture, SET_UP + 2 * ROWS, "drop");
}

fn whatever_borrowers_did_the_log_is_left(mode: Mode) {
    let fixture = mode.fixture();
    let on_close = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    let pool = external(&fixture, None)
        .max_connections(1)
        .on_open(move |conn| {
            conn.wal_hook(Some(|_, _| Ok(())));
            conn.set_db_config(on_close, false)?;
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    for end in 0..3 {
        let lease = pool.lease("a").unwrap();
        assert!(lease.db_config(on_close).unwrap(), "{end}");
        let limit: i64 = lease
            .pragma_query_value(None, "journal_size_limit", |row| row.get(0))
            .unwrap();
        assert_eq!(limit, -1);
        lease.set_db_config(on_close, false).unwrap();
        lease.wal_hook(Some(|wal, pages| match pages {
            // Never.
            i32::MAX => wal.checkpoint(),
            _ => Ok(()),
        }));
        for _ in 0..ROWS / 4 {
            add(&lease, ROW);
        }
        // Closed as it is; parked, and reset or closed for another agent; parked, and closed with the pool.
        match end {
            0 => leasepool::Lease::discard(lease),
            1 => {
                drop(lease);
                drop(pool.lease("b").unwrap());
            }
            _ => drop(lease),
        }
        let rows = SET_UP + (end + 1) * (ROWS / 4);
        assert_all_in_log(&fixture, rows, &format!("end {end}"));
    }
    pool.close().unwrap();
    assert_all_in_log(&fixture, SET_UP + 3 * (ROWS / 4), "close");
}

fn in_an_emergency_the_pool_copies_the_log(mode: Mode) {
    for by_lease in [false, true] {
        let fixture = mode.fixture();
        let emergency = 1 << 20;
        let pool = builder(&fixture)
            .external_checkpoints(Some(emergency))
            .build()
            .unwrap();
        let add = |bytes| match by_lease {
            true => add(&pool.lease("a").unwrap(), bytes),
            false => write(&pool, "a", bytes),
        };
        while fixture.wal_length("a") < u64::from(emergency) - 100_000 {
            add(ROW);
        }
        assert_eq!(pool.stats().emergency_checkpoints, 0, "too early");
        assert!(length(&fixture.file("a")) <= 8192);
        for _ in 0..ROWS / 4 {
            add(ROW);
        }
        eventually("the pool runs one", || {
            add(1);
            pool.stats().emergency_checkpoints > 0
        });
        assert!(length(&fixture.file("a")) > u64::from(emergency) / 2);
        // It goes on so, and the log stays about as long.
        for _ in 0..ROWS {
            add(ROW);
        }
        eventually("the log begins anew", || {
            add(1);
            pool.stats().emergency_checkpoints > 2
        });
        assert_eq!(pool.stats().checkpoints, 0);
    }
}

fn a_backup_runs_no_checkpoint(mode: Mode) {
    if mode == Mode::Shared {
        return;
    }
    let fixture = mode.fixture();
    let pool = external(&fixture, None).build().unwrap();
    drop(pool.lease("a").unwrap());
    pool.evict("a");
    mode.assert_open(&pool, 0, 0);
    // The only connection there is to the file is the backup's.
    pool.agent("a").backup(fixture.in_folder("copy")).unwrap();
    assert_all_in_log(&fixture, SET_UP, "backup");
    let copy = Connection::open(fixture.in_folder("copy")).unwrap();
    assert_eq!(count(&copy) as usize, SET_UP);
}

fn what_does_not_go_with_external_checkpoints_is_refused(mode: Mode) {
    let fixture = mode.fixture();
    let base = || builder(&fixture).external_checkpoints(None);
    let mut cases = vec![
        base().external_checkpoints(Some(1)),
        base().external_checkpoints(Some(u32::MAX)),
        base().pragma("wal_autocheckpoint", 1000),
        base().pragma("WAL_AutoCheckpoint", 0),
        base().pragma("journal_size_limit", 0),
    ];
    if mode == Mode::PerAgent {
        cases.push(base().exclusive_locking(true));
    } else {
        let memory = Pool::builder(leasepool::Database::memory());
        cases.push(memory.external_checkpoints(None));
    }
    for builder in cases {
        let error = builder.build().unwrap_err();
        let Error::Config { option, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(*option, "external_checkpoints", "{error}");
    }
    // A short patience is only told of.
    let pool = base().busy_timeout(Duration::ZERO).build().unwrap();
    let vacuumed = match mode {
        Mode::Shared => pool.vacuum(),
        Mode::PerAgent => pool.agent("a").vacuum(),
    };
    for error in [vacuumed, pool.agent("a").vacuum()] {
        let refused = matches!(
            error,
            Err(Error::Unsupported {
                operation: "VACUUM",
                ..
            })
        );
        assert!(refused, "{error:?}");
    }
    let lease = pool.lease("a").unwrap();
    let set = |pragma, value: i32| lease.pragma_update(None, pragma, value);
    set("wal_autocheckpoint", 7).unwrap_err();
    set("journal_size_limit", 0).unwrap_err();
    set("wal_autocheckpoint", 0).unwrap();
    set("journal_size_limit", -1).unwrap();
    drop(lease);
    pool.close().unwrap();
    let refused = base()
        .on_open(|conn| conn.pragma_update(None, "wal_autocheckpoint", 1000))
        .build()
        .and_then(|pool| pool.lease("a").map(drop));
    assert!(matches!(refused, Err(Error::Open { .. })), "{refused:?}");
}
