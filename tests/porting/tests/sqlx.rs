//! From sqlx. Tasks; a program without agents. The program before is `sqlx-before/src/main.rs`: sqlx and rusqlite 0.40
//! want different versions of libsqlite3-sys, of which one program can link one only.
//! It measures nothing: `cargo bench` does.

use std::error::Error;
use std::path::Path;

use leasepool_porting::*;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

mod after {
    use leasepool::{Agent, Database, Pool, Synchronous, rusqlite};

    use super::*;

    pub fn open(path: &Path) -> Result<Agent> {
        let pool = Pool::builder(Database::file(path))
            .max_connections(CONNECTIONS)
            .synchronous(Synchronous::Normal)
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

    /// Two reads of one moment, on a thread of the pool's.
    pub async fn report(db: &Agent) -> Result<Report> {
        let read = db.read_async(|tx| {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_counts_what_the_other_counts() {
    let folder = tempfile::tempdir().unwrap();
    let db = after::open(&folder.path().join("after.db")).unwrap();
    let session = |session| {
        let db = db.clone();
        tokio::spawn(async move {
            for n in 0..VISITS {
                after::visit(&db, session, page(n)).await.unwrap();
            }
        })
    };
    for task in (0..SESSIONS).map(session).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    let report = after::report(&db).await.unwrap();
    let home = after::visits_of(&db, "home").await.unwrap();
    db.pool().close_async().await.unwrap();

    assert_eq!(report, expected());
    assert_eq!(Some(&("home".to_owned(), home)), report.pages.get(1));
}
