//! The names of OpenTelemetry, and the pool's own, as a real exporter for Prometheus writes them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use leasepool::{Database, Pool};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

const POOL: &str = "db_client_connection_pool_name=\"chat\"";

/// Series and their values.
fn scrape(exporter: &PrometheusHandle) -> HashMap<String, f64> {
    let text = exporter.render();
    let series = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    series
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[test]
fn opentelemetrys_names_reach_an_exporter() {
    let exporter = PrometheusBuilder::new().install_recorder().unwrap();
    let build = |name: &str, opentelemetry| {
        let pool = Pool::builder(Database::memory())
            .name(name)
            .max_connections(2)
            .lease_timeout(Duration::from_secs(60))
            .opentelemetry(opentelemetry);
        pool.build().unwrap()
    };
    let (pool, plain) = (build("chat", true), build("plain", false));
    drop(plain.lease("a").unwrap());
    // One is used, one idle, and then both are used and a caller waits.
    drop([pool.lease("a").unwrap(), pool.lease("b").unwrap()]);
    let first = pool.lease("a").unwrap();
    let until = |series: &str, wanted: f64| {
        let series = match series.contains('{') {
            true => series.to_owned(),
            false => format!("{series}{{{POOL}}}"),
        };
        let start = Instant::now();
        while scrape(&exporter).get(&series) != Some(&wanted) {
            let late = start.elapsed() > Duration::from_secs(30);
            assert!(!late, "{series} is not {wanted}:\n{}", exporter.render());
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    let state = |state: &str| {
        format!("db_client_connection_count{{{POOL},db_client_connection_state=\"{state}\"}}")
    };
    until(&state("used"), 1.0);
    until(&state("idle"), 1.0);
    until("db_client_connection_max", 2.0);
    let second = pool.lease("b").unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| drop(pool.lease("c").unwrap()));
        until(&state("used"), 2.0);
        until("db_client_connection_pending_requests", 1.0);
        drop(second);
        waits.join().unwrap();
    });
    assert!(pool.agent("a").within(Duration::ZERO).lease().is_ok());
    let third = pool.lease("b").unwrap();
    assert!(pool.try_lease("d").is_err());
    until("db_client_connection_pending_requests", 0.0);
    until("db_client_connection_timeouts", 1.0);
    drop((first, third));
    let stats = pool.stats();
    until(
        "db_client_connection_create_time_count",
        stats.open_time.count() as f64,
    );
    until(
        "db_client_connection_wait_time_count",
        stats.wait.count() as f64,
    );
    until(
        "db_client_connection_use_time_count",
        stats.hold.count() as f64,
    );
    assert_eq!(stats.open_time.count(), stats.opens);
    // The pool's own names stay, and the other pool has only these.
    let series = scrape(&exporter);
    assert_eq!(series["leasepool_max_connections{pool=\"chat\"}"], 2.0);
    assert_eq!(series["leasepool_max_connections{pool=\"plain\"}"], 2.0);
    let foreign = |name: &&String| name.starts_with("db_") && !name.contains(POOL);
    assert_eq!(series.keys().find(foreign), None);
    // Each name has a type and a text.
    let text = exporter.render();
    for name in [
        "count",
        "max",
        "pending_requests",
        "timeouts",
        "create_time",
        "wait_time",
        "use_time",
    ] {
        for comment in ["HELP", "TYPE"] {
            let line = format!("# {comment} db_client_connection_{name} ");
            assert!(text.contains(&line), "no {line}:\n{text}");
        }
    }
    pool.close().unwrap();
    plain.close().unwrap();
}
