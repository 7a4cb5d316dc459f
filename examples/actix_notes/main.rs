//! Notes of many users in one SQLite file, on actix-web: `cargo run -p actix_notes`, then
//!
//! ```sh
//! curl -H 'x-agent: alice' -d 'buy milk' localhost:8081/notes
//! curl -H 'x-agent: alice' localhost:8081/notes
//! ```

use actix_web::web::{Json, get, post};
use actix_web::{App, HttpServer};
use leasepool::web::{Agent, AgentSource, LeaseData};
use leasepool::{Database, Error, Lease, Pool, Synchronous};

/// Short SQL, run where the request is: the lease comes as an argument, and ends with the handler.
async fn list(lease: Lease) -> Result<Json<Vec<String>>, Error> {
    let mut select = lease.prepare_cached("SELECT body FROM note WHERE agent = ?1 ORDER BY id")?;
    let notes = select.query_map([Lease::agent(&lease)], |row| row.get(0))?;
    Ok(Json(notes.collect::<Result<_, _>>()?))
}

/// The pool writes on a thread of its own.
async fn add(agent: Agent, body: String) -> Result<String, Error> {
    let id = agent.id()?.to_owned();
    let insert = "INSERT INTO note (agent, body) VALUES (?1, ?2)";
    agent.execute_async(insert, [id, body]).await?;
    Ok("noted\n".to_owned())
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = Pool::builder(Database::file(
        std::env::temp_dir().join("leasepool-notes.db"),
    ))
    .max_connections(8)
    .synchronous(Synchronous::Normal)
    .setup(|conn| {
        conn.execute_batch(
            "CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, agent TEXT, body TEXT);
                 CREATE INDEX IF NOT EXISTS note_agent ON note (agent, id)",
        )
    })
    .build()?;
    let leases = LeaseData::new(pool.clone(), AgentSource::header("x-agent"));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(leases.clone())
            .route("/notes", get().to(list))
            .route("/notes", post().to(add))
    });
    let server = server.bind(("127.0.0.1", 8081))?;
    println!("listening on http://{}", server.addrs()[0]);
    server.run().await?;
    pool.close_async().await?; // Ctrl-C: actix has let requests finish
    Ok(())
}
