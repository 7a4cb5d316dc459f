//! What the router answers.

use std::time::Duration;

use leasepool::{Database, Pool};

use crate::server::Server;

fn pool(connections: usize) -> (tempfile::TempDir, Pool) {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::builder(Database::file(folder.path().join("a\"b.db")))
        .max_connections(connections)
        .lease_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    (folder, pool)
}

#[test]
fn json_says_what_the_pool_says() {
    let (_folder, pool) = pool(4);
    let server = Server::start(&pool, 0);
    let held = pool.lease("holder").unwrap();
    let line = line!() - 1;
    held.execute_batch("CREATE TABLE t (x)").unwrap();
    drop(pool.lease("parked").unwrap());
    drop(pool.lease("parked").unwrap());
    let json = server.json();
    assert_eq!(json["name"], "a\"b.db");
    assert_eq!(
        (json["lent"].as_u64(), json["parked"].as_u64()),
        (Some(1), Some(1))
    );
    assert_eq!(
        (json["leases"].as_u64(), json["hits"].as_u64()),
        (Some(3), Some(1))
    );
    assert_eq!(json["descriptor_ceiling"], pool.fd_ceiling());
    assert_eq!(json["descriptors"], pool.descriptors().unwrap());
    assert_eq!(json["holders"][0]["agent"], "holder");
    let place = json["holders"][0]["place"].as_str().unwrap();
    assert!(place.ends_with(&format!("router.rs:{line}")), "{place}");
    assert_eq!(json["hold"]["count"], 2);
    assert_eq!(json["not_ready"], serde_json::Value::Null);
    assert!(!json["history"].as_array().unwrap().is_empty());
    drop(held);
    pool.close().unwrap();
    let json = server.json();
    assert_eq!(
        (json["closed"].as_bool(), json["descriptors"].as_u64()),
        (Some(true), Some(0))
    );
    server.stop();
}

#[test]
fn who_waited_and_who_waits_is_told() {
    let (_folder, pool) = pool(1);
    let server = Server::start(&pool, 0);
    let held = pool.lease("holder").unwrap();
    assert!(pool.lease("gave up").is_err());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pool.lease_timeout("patient", Duration::from_secs(20))
                .map(drop)
        });
        while pool.stats().waiting == 0 {
            std::thread::yield_now();
        }
        let json = server.json();
        assert_eq!(json["waiters"][0]["agent"], "patient");
        assert_eq!(json["not_ready"], "exhausted");
        drop(held);
    });
    let json = server.json();
    let slowest = json["slowest_waits"].as_array().unwrap();
    let of = |agent| slowest.iter().find(|wait| wait["agent"] == agent).unwrap();
    assert_eq!(of("gave up")["served"], false);
    assert_eq!(of("patient")["served"], true);
    assert!(of("gave up")["seconds"].as_f64().unwrap() >= 0.05);
    assert_eq!(json["wait"]["count"], 3);
    server.stop();
}

#[test]
fn prometheus_text_is_well_formed_and_true() {
    let (_folder, pool) = pool(2);
    let server = Server::start(&pool, 0);
    for _ in 0..5 {
        drop(pool.lease("a").unwrap());
    }
    let (head, body) = server.get("/status/metrics");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let value = |series: &str| -> f64 {
        let line = body.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series} in\n{body}"))
            .trim()
            .parse()
            .unwrap()
    };
    let pool_label = r#"pool="a\"b.db""#;
    assert_eq!(
        value(&format!(
            "leasepool_leases_total{{{pool_label},outcome=\"hit\"}}"
        )),
        4.0
    );
    assert_eq!(
        value(&format!(
            "leasepool_connections{{{pool_label},state=\"parked\"}}"
        )),
        1.0
    );
    assert_eq!(
        value(&format!("leasepool_descriptor_ceiling{{{pool_label}}}")),
        7.0
    );
    assert_eq!(
        value(&format!("leasepool_hold_seconds_count{{{pool_label}}}")),
        5.0
    );
    let mut before = 0.0;
    for line in body
        .lines()
        .filter(|line| line.starts_with("leasepool_hold_seconds_bucket"))
    {
        let n: f64 = line.rsplit_once(' ').unwrap().1.parse().unwrap();
        assert!(n >= before, "{line}");
        before = n;
    }
    assert_eq!(before, 5.0);
    for line in body.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(
            series.ends_with('}') && value.parse::<f64>().is_ok(),
            "{line}"
        );
    }
    server.stop();
}

#[test]
fn events_come_while_somebody_watches_and_end_with_the_server() {
    let (_folder, pool) = pool(2);
    let server = Server::start(&pool, 0);
    let mut events = server.events();
    assert_eq!(events.next().unwrap()["lent"], 0);
    let held = pool.lease("holder").unwrap();
    assert!(
        events
            .by_ref()
            .take(4)
            .any(|event| event["holders"][0]["agent"] == "holder")
    );
    drop(held);
    assert!(events.by_ref().take(4).any(|event| event["lent"] == 0));
    pool.close().unwrap();
    assert!(events.by_ref().take(4).any(|event| event["closed"] == true));
    server.stop();
    assert_eq!(events.take(3).count(), 0);
}

#[test]
fn no_more_than_so_many_may_watch() {
    let (_folder, pool) = pool(1);
    let server = Server::start(&pool, 0);
    let status = |connection: &mut std::net::TcpStream| {
        use std::io::Read;
        let mut head = [0; 12];
        connection.read_exact(&mut head).unwrap();
        String::from_utf8_lossy(&head[9..]).into_owned()
    };
    let mut watching: Vec<_> = (0..64).map(|_| server.ask("/status/events")).collect();
    for connection in &mut watching {
        assert_eq!(status(connection), "200");
    }
    assert_eq!(status(&mut server.ask("/status/events")), "503");
    drop(watching);
    // Those who went are noticed when they are next told something.
    let start = std::time::Instant::now();
    while status(&mut server.ask("/status/events")) != "200" {
        assert!(start.elapsed() < crate::server::LONG);
    }
    server.stop();
}

#[test]
fn the_page_is_one_file() {
    let (_folder, pool) = pool(1);
    let server = Server::start(&pool, 0);
    for path in ["/status", "/status/"] {
        let (head, page) = server.get(path);
        if head.starts_with("http/1.1 404") && path.ends_with('/') {
            continue; // as the outer router has it
        }
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        assert!(head.contains("default-src 'none'"), "{head}");
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme") && page.contains("width=device-width"));
    }
    server.stop();
}
