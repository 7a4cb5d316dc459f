//! From r2d2_sqlite. Threads; a program without agents.
//! It measures nothing: `cargo bench` does.

use std::error::Error;
use std::path::Path;
use std::thread;

use leasepool_porting::*;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

mod before {
    use r2d2_sqlite::SqliteConnectionManager;
    use rusqlite::{Connection, TransactionBehavior};

    use super::*;

    pub type Pool = r2d2::Pool<SqliteConnectionManager>;

    pub fn open(path: &Path) -> Result<Pool> {
        // Before the pool, whose connections would change the mode all at once.
        Connection::open(path)?.pragma_update(None, "journal_mode", "WAL")?;
        let manager = SqliteConnectionManager::file(path)
            .with_init(|conn| conn.pragma_update(None, "synchronous", "NORMAL"));
        let size = u32::try_from(CONNECTIONS)?;
        let pool = r2d2::Pool::builder().max_size(size).build(manager)?;
        pool.get()?.execute_batch(SCHEMA)?;
        Ok(pool)
    }

    pub fn visit(pool: &Pool, session: i64, page: &'static str) -> Result<()> {
        let mut conn = pool.get()?;
        let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        tx.execute(COUNT, [page])?;
        tx.execute(NOTE, (session, page))?;
        tx.commit()?;
        Ok(())
    }

    pub fn visits_of(pool: &Pool, page: &str) -> Result<i64> {
        let conn = pool.get()?;
        let mut statement = conn.prepare_cached(VISITS_OF)?;
        Ok(statement.query_row([page], |row| row.get(0))?)
    }

    pub fn report(pool: &Pool) -> Result<Report> {
        let mut conn = pool.get()?;
        let tx = conn.transaction()?;
        let pages = tx
            .prepare(PAGES)?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let total = tx.query_row(TOTAL, [], |row| row.get(0))?;
        Ok(Report { pages, total })
    }
}

mod after {
    use leasepool::{Database, Pool, Synchronous, rusqlite};

    use super::*;

    pub fn open(path: &Path) -> Result<Pool> {
        let pool = Pool::builder(Database::file(path))
            .max_connections(CONNECTIONS)
            .synchronous(Synchronous::Normal)
            .setup(|conn| conn.execute_batch(SCHEMA))
            .build()?;
        Ok(pool)
    }

    pub fn visit(pool: &Pool, session: i64, page: &'static str) -> Result<()> {
        pool.anonymous().write(move |tx| {
            tx.execute(COUNT, [page])?;
            tx.execute(NOTE, (session, page))?;
            Ok(())
        })?;
        Ok(())
    }

    pub fn visits_of(pool: &Pool, page: &str) -> Result<i64> {
        let conn = pool.get()?;
        let mut statement = conn.prepare_cached(VISITS_OF)?;
        Ok(statement.query_row([page], |row| row.get(0))?)
    }

    pub fn report(pool: &Pool) -> Result<Report> {
        let report = pool.anonymous().read(|tx| {
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

    let pool = before::open(&folder.path().join("before.db")).unwrap();
    in_threads(|session, page| before::visit(&pool, session, page));
    let before = before::report(&pool).unwrap();
    let home_before = before::visits_of(&pool, "home").unwrap();

    let pool = after::open(&folder.path().join("after.db")).unwrap();
    in_threads(|session, page| after::visit(&pool, session, page));
    let after = after::report(&pool).unwrap();
    let home_after = after::visits_of(&pool, "home").unwrap();
    pool.close().unwrap();

    assert_eq!(before, expected());
    assert_eq!(after, before);
    assert_eq!(home_after, home_before);
}
