//! From tokio-rusqlite. Tasks; a program without agents.
//! It measures nothing: `cargo bench` does.

use std::error::Error;
use std::path::Path;

use leasepool_porting::*;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

mod before {
    use tokio_rusqlite::{Connection, rusqlite};

    use super::*;

    pub async fn open(path: &Path) -> Result<Connection> {
        let conn = Connection::open(path).await?;
        let set_up = conn.call(|conn| {
            conn.pragma_update(None, "journal_mode", "WAL")?;
            conn.execute_batch(SCHEMA)
        });
        set_up.await?;
        Ok(conn)
    }

    pub async fn visit(conn: &Connection, session: i64, page: &'static str) -> Result<()> {
        let visit = conn.call(move |conn| {
            let tx = conn.transaction()?;
            tx.execute(COUNT, [page])?;
            tx.execute(NOTE, (session, page))?;
            tx.commit()
        });
        visit.await?;
        Ok(())
    }

    pub async fn visits_of(conn: &Connection, page: &'static str) -> Result<i64> {
        let read = conn.call(move |conn| {
            let mut statement = conn.prepare_cached(VISITS_OF)?;
            statement.query_row([page], |row| row.get(0))
        });
        Ok(read.await?)
    }

    pub async fn report(conn: &Connection) -> Result<Report> {
        let read = conn.call(|conn| {
            let pages = conn
                .prepare(PAGES)?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let total = conn.query_row(TOTAL, [], |row| row.get(0))?;
            Ok::<_, rusqlite::Error>(Report { pages, total })
        });
        Ok(read.await?)
    }
}

mod after {
    use leasepool::{Agent, Database, Pool, rusqlite};

    use super::*;

    pub fn open(path: &Path) -> Result<Agent> {
        let pool = Pool::builder(Database::file(path))
            .max_connections(CONNECTIONS)
            .setup(|conn| conn.execute_batch(SCHEMA))
            .build()?;
        Ok(pool.anonymous())
    }

    pub async fn visit(db: &Agent, session: i64, page: &'static str) -> Result<()> {
        let visit = db.write_async(move |tx| {
            tx.execute(COUNT, [page])?;
            tx.execute(NOTE, (session, page))?;
            Ok(())
        });
        visit.await?;
        Ok(())
    }

    /// A short read through an index runs in place: it takes less time than the way to another thread.
    pub async fn visits_of(db: &Agent, page: &str) -> Result<i64> {
        let conn = db.lease_async().await?;
        let mut statement = conn.prepare_cached(VISITS_OF)?;
        Ok(statement.query_row([page], |row| row.get(0))?)
    }

    /// A read that looks at every row runs elsewhere. `run` is the nearest to `call`: the connection itself, which
    /// the work may use as it likes, on a thread of the pool's.
    pub async fn report(db: &Agent) -> Result<Report> {
        let read = db.run(|conn| {
            let tx = conn.transaction()?;
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

    let conn = before::open(&folder.path().join("before.db"))
        .await
        .unwrap();
    let handle = conn.clone();
    in_tasks(move |session, page| {
        let conn = handle.clone();
        async move { before::visit(&conn, session, page).await }
    })
    .await;
    let before = before::report(&conn).await.unwrap();
    let home_before = before::visits_of(&conn, "home").await.unwrap();

    let db = after::open(&folder.path().join("after.db")).unwrap();
    let handle = db.clone();
    in_tasks(move |session, page| {
        let db = handle.clone();
        async move { after::visit(&db, session, page).await }
    })
    .await;
    let after = after::report(&db).await.unwrap();
    let home_after = after::visits_of(&db, "home").await.unwrap();
    db.pool().close_async().await.unwrap();

    assert_eq!(before, expected());
    assert_eq!(after, before);
    assert_eq!(home_after, home_before);
}
