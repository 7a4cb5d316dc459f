//! A million distinct agents through eight connections: what that costs in memory, and whether the last
//! leases cost what the first did. Fails if it does not hold.
//!
//! `cargo bench -p leasepool-benches --bench million`; `-- N` for another number of agents.

mod process;

use std::process::ExitCode;
use std::time::Instant;

use leasepool::{Database, Pool, Synchronous};
use process::memory;

const AGENTS: usize = 1_000_000;
/// The leases before the memory is measured for the first time.
const WARM_UP: usize = 10_000;
/// Leases timed together; the median of those in a tenth counts.
const BATCH: usize = 1_000;
const MAX_GROWTH: i64 = 8 << 20;
const MAX_RATIO: f64 = 1.2;

fn main() -> ExitCode {
    let agents = std::env::args()
        .filter_map(|arg| arg.parse().ok())
        .next()
        .unwrap_or(AGENTS)
        .max(WARM_UP * 10);
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::builder(Database::file(folder.path().join("agents.db")))
        .max_connections(8)
        .synchronous(Synchronous::Off)
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .build()
        .unwrap();
    let tenth = agents / 10;
    let mut tenths = Vec::new();
    let mut before = 0;
    for i in 0..10 {
        let mut batches = Vec::new();
        for batch in 0..tenth / BATCH {
            let first = i * tenth + batch * BATCH;
            let start = Instant::now();
            for agent in first..first + BATCH {
                drop(pool.lease(format!("agent-{agent}")).unwrap());
            }
            batches.push(start.elapsed().as_nanos() as f64 / BATCH as f64);
            if first + BATCH == WARM_UP {
                before = memory() as i64;
            }
        }
        batches.sort_by(f64::total_cmp);
        tenths.push(batches[batches.len() / 2]);
    }
    let growth = memory() as i64 - before;
    let ratio = tenths[9] / tenths[0];
    let stats = pool.stats();
    println!(
        "{agents} agents: {} opens, {} reclaims",
        stats.opens, stats.reclaims
    );
    println!("ns for each lease, medians by tenths: {tenths:.0?}");
    println!("last tenth / first tenth: {ratio:.2} (at most {MAX_RATIO})");
    println!(
        "resident memory since agent {WARM_UP}: {:+.1} MB (at most {:.1})",
        growth as f64 / 1e6,
        MAX_GROWTH as f64 / 1e6
    );
    if before > 0 && growth < MAX_GROWTH && ratio <= MAX_RATIO && stats.opens == 8 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
