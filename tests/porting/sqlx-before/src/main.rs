//! The program of `tests/sqlx.rs` as it is with sqlx: it counts the visits of pages, and fails if it counts wrongly.
//! It may not be a member of the workspace: sqlx 0.9 wants libsqlite3-sys below 0.38, rusqlite 0.40 wants 0.38, and Cargo
//! lets one tree of dependencies have one crate only that links SQLite.
//!
//! `cargo run --manifest-path tests/porting/sqlx-before/Cargo.toml`

// What the program must do is the same for all.
#[allow(dead_code)]
#[path = "../../src/lib.rs"]
mod job;

use std::error::Error;
use std::path::Path;

use job::*;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

async fn open(path: &Path) -> Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Normal);
    let pool = SqlitePoolOptions::new()
        .max_connections(u32::try_from(CONNECTIONS)?)
        .connect_with(options)
        .await?;
    sqlx::raw_sql(SCHEMA).execute(&pool).await?;
    Ok(pool)
}

async fn visit(pool: &SqlitePool, session: i64, page: &'static str) -> Result<()> {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::query(COUNT).bind(page).execute(&mut *tx).await?;
    sqlx::query(NOTE)
        .bind(session)
        .bind(page)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

async fn visits_of(pool: &SqlitePool, page: &str) -> Result<i64> {
    let visits = sqlx::query_scalar(VISITS_OF).bind(page.to_owned());
    Ok(visits.fetch_one(pool).await?)
}

async fn report(pool: &SqlitePool) -> Result<Report> {
    let mut tx = pool.begin().await?;
    let pages = sqlx::query_as(PAGES).fetch_all(&mut *tx).await?;
    let total = sqlx::query_scalar(TOTAL).fetch_one(&mut *tx).await?;
    Ok(Report { pages, total })
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pool = open(&folder.path().join("before.db")).await?;
    let session = |session| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for n in 0..VISITS {
                visit(&pool, session, page(n)).await?;
            }
            Result::Ok(())
        })
    };
    for task in (0..SESSIONS).map(session).collect::<Vec<_>>() {
        task.await??;
    }
    let report = report(&pool).await?;
    let home = visits_of(&pool, "home").await?;
    pool.close().await;

    if report != expected() || report.pages.get(1) != Some(&("home".to_owned(), home)) {
        return Err(format!("counted {report:?} and {home}, expected {:?}", expected()).into());
    }
    println!("{} visits of {} pages", report.total, report.pages.len());
    Ok(())
}
