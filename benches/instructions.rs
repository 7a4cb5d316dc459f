//! One kind of call, again and again, for a tool that counts instructions: `.ci/instructions` runs it twice, and divides
//! the difference by that of the numbers of calls.
//!
//! ```sh
//! .ci/instructions            # compares with benches/instructions.txt
//! .ci/instructions --update   # writes it
//! ```

use leasepool::rusqlite::Connection;
use leasepool::{Database, Pool, Synchronous};

fn pool(folder: &tempfile::TempDir, connections: usize) -> Pool {
    Pool::builder(Database::file(folder.path().join("counted.db")))
        .max_connections(connections)
        .synchronous(Synchronous::Off)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let (what, calls) = match &arguments[..] {
        [_, what, calls, ..] => (what.as_str(), calls.parse().unwrap_or(0)),
        // `cargo bench` of the whole package.
        _ => return,
    };
    let folder = tempfile::tempdir().unwrap();
    match what {
        "hit" => {
            let pool = pool(&folder, 2);
            for _ in 0..calls {
                drop(pool.lease("alice").unwrap());
            }
        }
        "miss" => {
            let pool = pool(&folder, 1);
            for call in 0..calls {
                drop(pool.lease(["alice", "bob"][call % 2]).unwrap());
            }
        }
        "write" => {
            let pool = pool(&folder, 2);
            for call in 0..calls {
                let write = pool.write("alice", move |tx| {
                    let mut insert =
                        tx.prepare_cached("REPLACE INTO t (rowid, x) VALUES (1, ?1)")?;
                    insert.execute([call as i64])
                });
                write.unwrap();
            }
        }
        "run" => {
            let pool = pool(&folder, 2);
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(async {
                for _ in 0..calls {
                    let work = |conn: &mut Connection| {
                        let mut select = conn.prepare_cached("SELECT 1")?;
                        select.query_row([], |row| row.get::<_, i64>(0))
                    };
                    pool.run("alice", work).await.unwrap();
                }
            });
        }
        other => panic!("{other}: hit, miss, write or run"),
    }
}
