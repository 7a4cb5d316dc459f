//! From deadpool-sqlite. Tasks; each session is an agent.
//! It measures nothing: `cargo bench` does.

use std::error::Error;
use std::path::Path;

use leasepool_porting::*;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

mod before {
    use deadpool_sqlite::{Config, InteractError, Pool, PoolConfig, Runtime};
    use rusqlite::TransactionBehavior;

    use super::*;

    pub async fn open(path: &Path) -> Result<Pool> {
        let mut config = Config::new(path);
        config.pool = Some(PoolConfig::new(CONNECTIONS));
        let pool = config.create_pool(Runtime::Tokio1)?;
        let conn = pool.get().await?;
        let set_up = conn.interact(|conn| {
            conn.pragma_update(None, "journal_mode", "WAL")?;
            conn.execute_batch(SCHEMA)
        });
        set_up.await.map_err(panicked)??;
        Ok(pool)
    }

    pub async fn visit(pool: &Pool, session: i64, page: &'static str) -> Result<()> {
        let conn = pool.get().await?;
        let visit = conn.interact(move |conn| {
            let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
            tx.execute(COUNT, [page])?;
            tx.execute(NOTE, (session, page))?;
            tx.commit()
        });
        visit.await.map_err(panicked)??;
        Ok(())
    }

    pub async fn visits_of(pool: &Pool, page: &'static str) -> Result<i64> {
        let conn = pool.get().await?;
        let read = conn.interact(move |conn| {
            let mut statement = conn.prepare_cached(VISITS_OF)?;
            statement.query_row([page], |row| row.get(0))
        });
        let visits: rusqlite::Result<i64> = read.await.map_err(panicked)?;
        Ok(visits?)
    }

    pub async fn report(pool: &Pool) -> Result<Report> {
        let conn = pool.get().await?;
        let read = conn.interact(|conn| {
            let tx = conn.transaction()?;
            let pages = tx
                .prepare(PAGES)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let total = tx.query_row(TOTAL, [], |row| row.get(0))?;
            Ok(Report { pages, total })
        });
        let report: rusqlite::Result<Report> = read.await.map_err(panicked)?;
        Ok(report?)
    }

    fn panicked(error: InteractError) -> Box<dyn Error + Send + Sync> {
        error.to_string().into()
    }
}

mod after {
    use leasepool::{Database, Pool, rusqlite};

    use super::*;

    pub fn open(path: &Path) -> Result<Pool> {
        let pool = Pool::builder(Database::file(path))
            .max_connections(CONNECTIONS)
            .setup(|conn| conn.execute_batch(SCHEMA))
            .build()?;
        Ok(pool)
    }

    pub async fn visit(pool: &Pool, session: i64, page: &'static str) -> Result<()> {
        let visit = pool.write_async(session, move |tx| {
            tx.execute(COUNT, [page])?;
            tx.execute(NOTE, (session, page))?;
            Ok(())
        });
        visit.await?;
        Ok(())
    }

    /// A short read through an index runs in place: it takes less time than the way to another thread.
    pub async fn visits_of(pool: &Pool, session: i64, page: &str) -> Result<i64> {
        let conn = pool.lease_async(session).await?;
        let mut statement = conn.prepare_cached(VISITS_OF)?;
        Ok(statement.query_row([page], |row| row.get(0))?)
    }

    /// A read that looks at every row runs on a thread of the pool's, in one snapshot.
    pub async fn report(pool: &Pool, session: i64) -> Result<Report> {
        let read = pool.read_async(session, |tx| {
            let pages = tx
                .prepare(PAGES)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let total = tx.query_row(TOTAL, [], |row| row.get(0))?;
            Ok(Report { pages, total })
        });
        Ok(read.await?)
    }
}

/// All sessions at the same time.
async fn in_tasks<F>(visit: impl Fn(i64, &'static str) -> F + Clone + Send + 'static)
where
    F: Future<Output = Result<()>> + Send,
{
    let session = |session| {
        let visit = visit.clone();
        tokio::spawn(async move {
            for n in 0..VISITS {
                visit(session, page(n)).await.unwrap();
            }
        })
    };
    for task in (0..SESSIONS).map(session).collect::<Vec<_>>() {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_count_the_same() {
    let folder = tempfile::tempdir().unwrap();

    let pool = before::open(&folder.path().join("before.db"))
        .await
        .unwrap();
    let handle = pool.clone();
    in_tasks(move |session, page| {
        let pool = handle.clone();
        async move { before::visit(&pool, session, page).await }
    })
    .await;
    let before = before::report(&pool).await.unwrap();
    let home_before = before::visits_of(&pool, "home").await.unwrap();

    let pool = after::open(&folder.path().join("after.db")).unwrap();
    let handle = pool.clone();
    in_tasks(move |session, page| {
        let pool = handle.clone();
        async move { after::visit(&pool, session, page).await }
    })
    .await;
    let after = after::report(&pool, 0).await.unwrap();
    let home_after = after::visits_of(&pool, 0, "home").await.unwrap();
    pool.close_async().await.unwrap();

    assert_eq!(before, expected());
    assert_eq!(after, before);
    assert_eq!(home_after, home_before);
}
