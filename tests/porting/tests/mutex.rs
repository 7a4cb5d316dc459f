//! From `Arc<Mutex<Connection>>`. Threads; a program without agents.
//! It measures nothing: `cargo bench` does.

use std::error::Error;
use std::path::Path;
use std::thread;

use leasepool_porting::*;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

mod before {
    use std::sync::{Arc, Mutex, MutexGuard};

    use rusqlite::Connection;

    use super::*;

    #[derive(Clone)]
    pub struct Store(Arc<Mutex<Connection>>);

    pub fn open(path: &Path) -> Result<Store> {
        let conn = Connection::open(path)?;
        conn.pragma_update(None, "journal_mode", "WAL")?;
        conn.pragma_update(None, "synchronous", "NORMAL")?;
        conn.execute_batch(SCHEMA)?;
        Ok(Store(Arc::new(Mutex::new(conn))))
    }

    impl Store {
        fn lock(&self) -> MutexGuard<'_, Connection> {
            self.0.lock().unwrap()
        }

        pub fn visit(&self, session: i64, page: &'static str) -> Result<()> {
            let mut conn = self.lock();
            let tx = conn.transaction()?;
            tx.execute(COUNT, [page])?;
            tx.execute(NOTE, (session, page))?;
            tx.commit()?;
            Ok(())
        }

        pub fn visits_of(&self, page: &str) -> Result<i64> {
            let conn = self.lock();
            let mut statement = conn.prepare_cached(VISITS_OF)?;
            Ok(statement.query_row([page], |row| row.get(0))?)
        }

        pub fn report(&self) -> Result<Report> {
            let conn = self.lock();
            let pages = conn
                .prepare(PAGES)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let total = conn.query_row(TOTAL, [], |row| row.get(0))?;
            Ok(Report { pages, total })
        }
    }
}

mod after {
    use leasepool::{Agent, Database, Pool, Synchronous, rusqlite};

    use super::*;

    /// `Agent` is a handle as cheap to clone as the `Arc` was.
    #[derive(Clone)]
    pub struct Store(Agent);

    pub fn open(path: &Path) -> Result<Store> {
        let pool = Pool::builder(Database::file(path))
            .max_connections(CONNECTIONS)
            .synchronous(Synchronous::Normal)
            .setup(|conn| conn.execute_batch(SCHEMA))
            .build()?;
        Ok(Store(pool.anonymous()))
    }

    impl Store {
        pub fn visit(&self, session: i64, page: &'static str) -> Result<()> {
            self.0.write(move |tx| {
                tx.execute(COUNT, [page])?;
                tx.execute(NOTE, (session, page))?;
                Ok(())
            })?;
            Ok(())
        }

        pub fn visits_of(&self, page: &str) -> Result<i64> {
            let conn = self.0.lease()?;
            let mut statement = conn.prepare_cached(VISITS_OF)?;
            Ok(statement.query_row([page], |row| row.get(0))?)
        }

        pub fn report(&self) -> Result<Report> {
            // Others may write between two statements of a lease. The mutex kept them out; `read` keeps a snapshot.
            let report = self.0.read(|tx| {
                let pages = tx
                    .prepare(PAGES)?
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect::<rusqlite::Result<_>>()?;
                let total = tx.query_row(TOTAL, [], |row| row.get(0))?;
                Ok(Report { pages, total })
            })?;
            Ok(report)
        }
    }
}

/// All sessions at the same time.
fn in_threads(visit: impl Fn(i64, &'static str) -> Result<()> + Sync) {
    thread::scope(|scope| {
        for session in 0..SESSIONS {
            let visit = &visit;
            scope.spawn(move || (0..VISITS).for_each(|n| visit(session, page(n)).unwrap()));
        }
    });
}

#[test]
fn both_count_the_same() {
    let folder = tempfile::tempdir().unwrap();

    let store = before::open(&folder.path().join("before.db")).unwrap();
    in_threads(|session, page| store.visit(session, page));
    let before = store.report().unwrap();
    let home_before = store.visits_of("home").unwrap();

    let store = after::open(&folder.path().join("after.db")).unwrap();
    in_threads(|session, page| store.visit(session, page));
    let after = store.report().unwrap();
    let home_after = store.visits_of("home").unwrap();

    assert_eq!(before, expected());
    assert_eq!(after, before);
    assert_eq!(home_after, home_before);
}
