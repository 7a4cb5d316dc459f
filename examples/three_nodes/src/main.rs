//! One node of three: it serves the agents that are its own, and answers 421 for the others.
//! All messages of an agent are in a file of the agent's own; which node has it is in the directory.
//!
//! ```sh
//! cargo build -p three_nodes
//! for i in 1 2 3; do target/debug/node --listen 127.0.0.1:700$i --data /tmp/node-$i --shared /tmp/shared & done
//! mkdir /tmp/nginx && nginx -p /tmp/nginx -c "$PWD/examples/three_nodes/nginx.conf" &
//! curl -d hello http://127.0.0.1:7000/agents/alice/messages
//! curl http://127.0.0.1:7000/agents/alice/messages
//! ```

mod api;
mod client;
mod directory;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use leasepool::{Database, Pool};

use directory::Directory;

/// A node that serves agents.
#[derive(Parser)]
struct Args {
    /// Where to listen: also the name of the node.
    #[arg(long, default_value = "127.0.0.1:7001")]
    listen: String,
    /// The folder of this machine: agents' files, and copies that have arrived.
    #[arg(long)]
    data: PathBuf,
    /// What all nodes share: the directory of agents, and backups.
    #[arg(long)]
    shared: PathBuf,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Fault> {
    let args = Args::parse();
    let listener = tokio::net::TcpListener::bind(&args.listen).await?;
    let name = listener.local_addr()?.to_string();
    let copies = args.data.join("copies");
    let backups = args.shared.join("backups");
    std::fs::create_dir_all(&copies)?;
    std::fs::create_dir_all(&backups)?;
    let directory = Arc::new(Directory::open(&args.shared.join("directory.db"), &name)?);
    let pool = pool(&args.data, &copies, &backups, &directory)?;
    println!("listening on {name}");
    let app = api::router(pool.clone(), directory, copies, backups);
    axum::serve(listener, app).await?;
    pool.close()?;
    Ok(())
}

fn pool(
    data: &Path,
    copies: &Path,
    backups: &Path,
    directory: &Arc<Directory>,
) -> Result<Pool, leasepool::Error> {
    let (asked, found) = (Arc::clone(directory), Arc::clone(directory));
    let (copies, backups) = (copies.to_path_buf(), backups.to_path_buf());
    let database = Database::per_agent(data.join("agents"))
        .owner(move |agent| asked.owner(agent))
        .on_missing(move |agent, path| {
            if let Some(copy) = found.copy_of(agent) {
                // The agent was handed over to this node. If the copy is not here, that is an error: an empty
                // database must not take its place. It stays until the agent has been used.
                return std::fs::copy(copies.join(copy), path).map(drop);
            }
            // The node that had it is lost, or the agent is new.
            let backup = backups.join(api::file_name(agent));
            match backup.exists() {
                true => std::fs::copy(backup, path).map(drop),
                false => Ok(()),
            }
        });
    Pool::builder(database)
        .max_connections(16)
        .lease_timeout(Duration::from_secs(20))
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS message (body TEXT NOT NULL)"))
        .build()
}
