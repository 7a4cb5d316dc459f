//! Migrations, where each agent has a database of its own: they run when the agent's file is first opened.
//! One that fails leaves that file as it was, and keeps no other agent waiting.
//!
//! `cargo run --example migrations`

use std::error::Error;
use std::path::Path;

use leasepool::rusqlite::{self, Connection};
use leasepool::{Database, Pool};
use rusqlite_migration::{M, Migrations};

const MIGRATIONS: &[M<'_>] = &[
    M::up("CREATE TABLE note (title TEXT NOT NULL, body TEXT)"),
    M::up("ALTER TABLE note ADD COLUMN pinned NOT NULL DEFAULT 0"),
    M::up("CREATE UNIQUE INDEX note_title ON note (title)"),
];

/// A pool of the program that knows the first `known` migrations.
fn release(folder: &Path, known: usize) -> Result<Pool, leasepool::Error> {
    Pool::builder(Database::per_agent(folder))
        .setup(move |conn: &mut Connection| {
            // All that are due are one transaction.
            let migrated = Migrations::from_slice(&MIGRATIONS[..known]).to_latest(conn);
            migrated.map_err(|error| match error {
                rusqlite_migration::Error::RusqliteError { err, .. } => err,
                other => rusqlite::Error::ToSqlConversionFailure(Box::new(other)),
            })
        })
        .build()
}

fn show(pool: &Pool, agent: &str) {
    match version(pool, agent) {
        Ok(version) => println!("  {agent:<6} is at version {version}"),
        Err(error) => {
            let why = error.source().map_or(String::new(), |why| why.to_string());
            println!("  {agent:<6} cannot be served: {error}: {why}");
        }
    }
}

fn version(pool: &Pool, agent: &str) -> Result<i64, leasepool::Error> {
    let lease = pool.lease(agent)?;
    Ok(lease.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let folder = temporary.path().join("agents");
    let bobs = folder.join("bob.db");

    let pool = release(&folder, 1)?;
    for (agent, title) in [("alice", "tea"), ("bob", "tea"), ("bob", "tea")] {
        let insert = "INSERT INTO note (title) VALUES (?1)";
        pool.execute(agent, insert, [title])?;
    }
    pool.close()?;
    let before = std::fs::read(&bobs)?;

    println!("the next release; bob has two notes of one title, which the last migration forbids");
    let pool = release(&folder, MIGRATIONS.len())?;
    for agent in ["bob", "alice", "carol"] {
        show(&pool, agent);
    }
    let same = std::fs::read(&bobs)? == before;
    println!("  bob's file is as it was, to the byte: {same}");

    println!("bob's notes are put right; his next lease tries again");
    let repair = "DELETE FROM note WHERE rowid NOT IN (SELECT min(rowid) FROM note GROUP BY title)";
    Connection::open(&bobs)?.execute(repair, [])?;
    show(&pool, "bob");
    pool.close()?;
    Ok(())
}
