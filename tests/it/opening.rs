//! The order in which a connection is opened: `on_connect`, the pool's pragmas, `on_open`, `setup`; and what is limited
//! from the first on.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::thread;

use leasepool::rusqlite::limits::Limit;
use leasepool::rusqlite::{self, Connection};
use leasepool::{Builder, Database, Error, Pool};

use crate::common::*;

in_both_modes!(
    on_connect_comes_before_the_first_page_is_written,
    on_connect_may_fail_in_any_way,
    on_open_may_need_what_setup_makes,
    on_open_runs_once_on_a_connection,
    attach_is_limited_from_the_first_on,
    attach_in_setup_stays_below_the_ceiling,
);

fn text(conn: &Connection, pragma: &str) -> String {
    conn.pragma_query_value(None, pragma, |row| row.get(0))
        .unwrap()
}

fn number(conn: &Connection, pragma: &str) -> i64 {
    conn.pragma_query_value(None, pragma, |row| row.get(0))
        .unwrap()
}

/// The builder of each kind of database.
fn builders(fixture: &Fixture) -> [Builder; 2] {
    [
        fixture.builder(2),
        Pool::builder(Database::memory())
            .max_connections(2)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)")),
    ]
}

/// Builds a pool, and takes a lease from it: what fails at either.
fn open(builder: Builder) -> Result<Pool, Error> {
    let pool = builder.build()?;
    drop(pool.lease("a")?);
    Ok(pool)
}

fn on_connect_comes_before_the_first_page_is_written(mode: Mode) {
    let fixture = mode.fixture();
    for builder in builders(&fixture) {
        let pool = builder
            .on_connect(|conn| {
                conn.pragma_update(None, "page_size", 8192)?;
                conn.pragma_update(None, "encoding", "UTF-16le")?;
                conn.pragma_update(None, "auto_vacuum", "FULL")
            })
            .build()
            .unwrap();
        let lease = pool.lease("a").unwrap();
        insert(&lease);
        assert_eq!(number(&lease, "page_size"), 8192);
        assert_eq!(text(&lease, "encoding"), "UTF-16le");
        assert_eq!(number(&lease, "auto_vacuum"), 1);
    }
}

fn on_connect_may_fail_in_any_way(mode: Mode) {
    #[derive(Debug)]
    struct NoKey;
    impl std::fmt::Display for NoKey {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("no key today")
        }
    }
    impl std::error::Error for NoKey {}

    let fixture = mode.fixture();
    for builder in builders(&fixture) {
        let error = open(builder.on_connect(|_| Err(NoKey))).unwrap_err();
        let Error::Open { source, .. } = &error else {
            panic!("{error:?}");
        };
        assert!(source.is::<NoKey>(), "{source:?}");
    }
    for builder in builders(&fixture) {
        let error = open(builder.on_connect(|_| -> rusqlite::Result<()> { panic!("broke") }));
        let Err(Error::Open { source, .. }) = &error else {
            panic!("{error:?}");
        };
        assert_eq!(source.to_string(), "on_connect panicked: broke");
    }
    assert_eq!(fixture.descriptors().all(), 0);
    // The file, where one was made, is no hindrance.
    assert_whole(&fixture.pool(2));
}

/// A temporary trigger on a table that `setup` makes.
fn on_open_may_need_what_setup_makes(mode: Mode) {
    let fixture = mode.fixture();
    for builder in builders(&fixture) {
        let pool = builder
            .on_open(|conn| {
                // Left open, where the next statement fails.
                conn.execute_batch(
                    "BEGIN;
                     CREATE TEMP TABLE seen (x);
                     CREATE TEMP TRIGGER see AFTER INSERT ON main.t
                     BEGIN INSERT INTO seen VALUES (new.x); END",
                )
            })
            .build()
            .unwrap();
        let lease = pool.lease("a").unwrap();
        insert(&lease);
        let seen = lease.query_row("SELECT count(*) FROM seen", [], |row| row.get::<_, i64>(0));
        assert_eq!(seen, Ok(1));
    }
}

/// The temporary table would be there the second time.
fn on_open_runs_once_on_a_connection(mode: Mode) {
    let fixture = mode.fixture();
    for builder in builders(&fixture) {
        let pool = builder
            .on_open(|conn| conn.execute_batch("CREATE TEMP TABLE once (x)"))
            .build()
            .unwrap();
        for agent in ["a", "b", "c"] {
            let lease = pool.lease(agent).unwrap();
            assert_eq!(lease.execute("INSERT INTO once VALUES (1)", []), Ok(1));
            let rows = lease.query_row("SELECT count(*) FROM once", [], |row| row.get::<_, i64>(0));
            assert_eq!(rows, Ok(1));
        }
    }
}

fn attach(conn: &Connection) -> rusqlite::Result<()> {
    conn.execute_batch("ATTACH ':memory:' AS other")
}

fn attach_is_limited_from_the_first_on(mode: Mode) {
    let fixture = mode.fixture();
    let refused = |builder: Builder| {
        let error = open(builder).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("too many attached databases"), "{error:?}");
    };
    for callback in [Callback::OnConnect, Callback::OnOpen, Callback::Setup] {
        for builder in builders(&fixture) {
            refused(callback.set(builder, |conn| attach(conn)));
        }
        for builder in builders(&fixture) {
            let builder = callback.set(builder, |conn| attach(conn));
            open(builder.attach_limit(1)).unwrap();
        }
    }
    // A callback that raises the limit does so for itself at most.
    for callback in [Callback::OnConnect, Callback::OnOpen] {
        for builder in builders(&fixture) {
            let builder = callback.set(builder, |conn| {
                conn.set_limit(Limit::SQLITE_LIMIT_ATTACHED, 5).map(drop)
            });
            let pool = builder.build().unwrap();
            assert!(attach(&pool.lease("a").unwrap()).is_err());
        }
    }
}

#[derive(Clone, Copy)]
enum Callback {
    OnConnect,
    OnOpen,
    Setup,
}

impl Callback {
    fn set(
        self,
        builder: Builder,
        f: impl Fn(&mut Connection) -> rusqlite::Result<()> + Send + Sync + 'static,
    ) -> Builder {
        match self {
            Callback::OnConnect => builder.on_connect(f),
            Callback::OnOpen => builder.on_open(f),
            Callback::Setup => builder.setup(f),
        }
    }
}

/// C8: `setup` attached files that nobody had counted, for several agents at once.
fn attach_in_setup_stays_below_the_ceiling(mode: Mode) {
    const AGENTS: usize = 4;
    let test = mode.test("opening", "attach_in_setup_stays_below_the_ceiling");
    in_child(&test, || {
        let fixture = mode.fixture();
        let other = fixture.in_folder("other.sqlite");
        Connection::open(&other)
            .unwrap()
            .execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE o (x)")
            .unwrap();
        let before = open_descriptors();
        let most = Arc::new(AtomicUsize::new(0));
        let all = Arc::new(Barrier::new(mode.either(1, AGENTS)));
        let (seen, met) = (Arc::clone(&most), Arc::clone(&all));
        let pool = Pool::builder(mode.database(&fixture.path))
            .max_connections(AGENTS)
            .setup(move |conn| {
                let path = other.to_str().unwrap();
                for name in ["one", "two", "three"] {
                    let attached = conn.execute(&format!("ATTACH ?1 AS {name}"), [path]);
                    if attached.is_ok() {
                        let _ = conn.execute(&format!("INSERT INTO {name}.o VALUES (1)"), []);
                    }
                }
                conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)")?;
                met.wait();
                seen.fetch_max(open_descriptors(), SeqCst);
                met.wait();
                Ok::<_, rusqlite::Error>(())
            })
            .build()
            .unwrap();
        thread::scope(|scope| {
            for agent in 0..AGENTS {
                let pool = &pool;
                scope.spawn(move || drop(pool.lease(agent.to_string()).unwrap()));
            }
        });
        let used = most.load(SeqCst) - before;
        assert!(used > 0);
        assert!(used <= pool.fd_ceiling(), "{used} > {}", pool.fd_ceiling());
    });
}

/// Each connection of a backup is opened like every other.
#[test]
fn on_connect_runs_on_the_connections_of_a_backup() {
    let fixture = Mode::PerAgent.fixture();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let pool = fixture
        .builder(4)
        .on_connect(move |conn| {
            counted.fetch_add(1, SeqCst);
            conn.pragma_update(None, "page_size", 8192)
        })
        .build()
        .unwrap();
    insert(&pool.lease("a").unwrap());
    let before = calls.load(SeqCst);
    let to = fixture.in_folder("copy.db");
    pool.agent("a").backup(&to).unwrap();
    assert_eq!(calls.load(SeqCst), before + 2);
    drop(pool);
    let copy = Connection::open(&to).unwrap();
    assert_eq!((count(&copy), number(&copy, "page_size")), (1, 8192));
}

/// On a database in memory, the connection that keeps it is one more.
#[test]
fn on_connect_runs_on_every_connection() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let pool = Pool::builder(Database::memory())
        .max_connections(3)
        .on_connect(move |_| {
            counted.fetch_add(1, SeqCst);
            Ok::<_, rusqlite::Error>(())
        })
        .build()
        .unwrap();
    // The one that keeps it, that of `setup`, and the one that shows whether connections can be opened.
    assert_eq!(calls.load(SeqCst), 3);
    let leases = ["a", "b", "c"].map(|agent| pool.lease(agent).unwrap());
    drop(leases);
    assert_eq!(calls.load(SeqCst), 6);
}

#[cfg(feature = "collation")]
mod registered {
    use super::*;

    in_both_modes!(
        setup_has_what_both_register,
        a_reset_keeps_what_on_connect_registers,
    );

    fn collation(conn: &Connection, name: &str) -> rusqlite::Result<()> {
        conn.create_collation(name, |a, b| a.len().cmp(&b.len()))
    }

    /// C21.
    fn setup_has_what_both_register(mode: Mode) {
        let fixture = mode.fixture();
        for builder in builders(&fixture) {
            let pool = builder
                .on_connect(|conn| collation(conn, "first"))
                .on_open(|conn| collation(conn, "second"))
                .setup(|conn| {
                    conn.execute_batch(
                        "CREATE TABLE IF NOT EXISTS words (a COLLATE first, b COLLATE second);
                         CREATE INDEX IF NOT EXISTS by_a ON words (a);
                         CREATE INDEX IF NOT EXISTS by_b ON words (b);
                         INSERT INTO words VALUES ('yes', 'yes');",
                    )
                })
                .build()
                .unwrap();
            for agent in ["a", "b"] {
                let lease = pool.lease(agent).unwrap();
                let equal = "SELECT count(*) FROM words WHERE a = 'abc' AND b = 'abc'";
                let rows = lease.query_row(equal, [], |row| row.get::<_, i64>(0));
                assert_eq!(rows, Ok(1));
            }
        }
    }

    /// One connection goes from agent to agent; it is neither closed, nor does it lose the collation.
    fn a_reset_keeps_what_on_connect_registers(mode: Mode) {
        let fixture = mode.fixture();
        for builder in builders(&fixture) {
            let pool = builder
                .max_connections(1)
                .on_connect(|conn| {
                    conn.set_limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 77)?;
                    collation(conn, "length")
                })
                .build()
                .unwrap();
            for agent in ["a", "b", "a", "c"] {
                let lease = pool.lease(agent).unwrap();
                let sql = "SELECT 'yes' = 'abc' COLLATE length";
                assert_eq!(lease.query_row(sql, [], |row| row.get(0)), Ok(true));
                assert_eq!(lease.limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER), Ok(77));
                lease
                    .set_limit(Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 5)
                    .unwrap();
            }
            assert_eq!(pool.stats().discarded_by_reset, 0);
        }
    }
}
