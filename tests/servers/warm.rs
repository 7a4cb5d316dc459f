//! What it costs to borrow and return a connection to PostgreSQL when nothing stands in the way:
//! `cargo bench -p leasepool-servers-tests --bench warm`. Contenders take turns within one run; the table shows medians.

#[allow(dead_code, reason = "the tests use more of it")]
mod common;

use std::future::Future;
use std::time::{Duration, Instant};

use bb8_postgres::PostgresConnectionManager as AsyncManager;
use postgres::NoTls;

use common::{a_server, awaited, blocking, manager};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(300);

/// Nanoseconds for each call of `borrow`.
fn timed(mut borrow: impl FnMut()) -> f64 {
    let begun = Instant::now();
    let mut times = 0_u32;
    while begun.elapsed() < ROUND {
        for _ in 0..16 {
            borrow();
        }
        times += 16;
    }
    begun.elapsed().as_nanos() as f64 / f64::from(times)
}

async fn timed_async<F: Future<Output = ()>>(mut borrow: impl FnMut() -> F) -> f64 {
    let begun = Instant::now();
    let mut times = 0_u32;
    while begun.elapsed() < ROUND {
        for _ in 0..16 {
            borrow().await;
        }
        times += 16;
    }
    begun.elapsed().as_nanos() as f64 / f64::from(times)
}

fn table(title: &str, mut rows: Vec<(&str, Vec<f64>)>) {
    println!("\n{title:<44}{:>12}{:>16}", "ns", "x leasepool");
    let mut first = None;
    for (name, times) in &mut rows {
        times.sort_by(f64::total_cmp);
        let median = times[times.len() / 2];
        let first = *first.get_or_insert(median);
        println!("{name:<44}{median:>12.0}{:>16.2}", median / first);
    }
}

fn main() {
    let Some(server) = a_server() else {
        return;
    };
    let url = server.url();
    let leasepool = blocking(&url, 8).build().unwrap();
    let r2d2 = |check| {
        r2d2::Pool::builder()
            .max_size(8)
            .test_on_check_out(check)
            .build(manager(&url))
            .unwrap()
    };
    let (unchecked, checked) = (r2d2(false), r2d2(true));
    let mut rows = vec![
        ("leasepool: lease", Vec::new()),
        ("leasepool: get", Vec::new()),
        ("r2d2, check off", Vec::new()),
        ("r2d2, as it is by default", Vec::new()),
    ];
    for _ in 0..ROUNDS {
        rows[0]
            .1
            .push(timed(|| drop(leasepool.lease("a").unwrap())));
        rows[1].1.push(timed(|| drop(leasepool.get().unwrap())));
        rows[2].1.push(timed(|| drop(unchecked.get().unwrap())));
        rows[3].1.push(timed(|| drop(checked.get().unwrap())));
    }
    table("blocking, one thread", rows);
    drop((leasepool, unchecked, checked));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let rows = runtime.block_on(async {
        let leasepool = awaited(&url, 8).build().unwrap();
        let bb8 = |check| {
            let manager = AsyncManager::new_from_stringlike(&url, NoTls).unwrap();
            bb8::Pool::builder()
                .max_size(8)
                .test_on_check_out(check)
                .build(manager)
        };
        let (unchecked, checked) = (bb8(false).await.unwrap(), bb8(true).await.unwrap());
        let mut rows = vec![
            ("leasepool: lease_async", Vec::new()),
            ("leasepool: get_async", Vec::new()),
            ("bb8, check off", Vec::new()),
            ("bb8, as it is by default", Vec::new()),
        ];
        for _ in 0..ROUNDS {
            let lease = async || drop(leasepool.lease_async("a").await.unwrap());
            rows[0].1.push(timed_async(lease).await);
            let get = async || drop(leasepool.get_async().await.unwrap());
            rows[1].1.push(timed_async(get).await);
            let get = async || drop(unchecked.get().await.unwrap());
            rows[2].1.push(timed_async(get).await);
            let get = async || drop(checked.get().await.unwrap());
            rows[3].1.push(timed_async(get).await);
        }
        rows
    });
    table("async, one task", rows);
    // Its connections end with their runtime.
    runtime.shutdown_timeout(Duration::from_secs(5));
}
