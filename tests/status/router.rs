//! What the router answers.

use std::time::Duration;

use leasepool::status::{Agents, Page, Places};
use leasepool::{Database, Error, Pool};

use crate::server::{LONG, Server};

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
            pool.agent("patient")
                .within(Duration::from_secs(20))
                .lease()
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
fn buckets_are_those_that_were_asked_for() {
    let (_folder, pool) = pool(2);
    let ends = [5, 250, 1].map(Duration::from_millis);
    let page = leasepool::status::Page::new(&pool).buckets(ends);
    let server = Server::of(page, leasepool::status::Page::public, 0);
    let lease = pool.lease("a").unwrap();
    std::thread::sleep(Duration::from_millis(6));
    drop(lease);
    let (_, body) = server.get("/status/metrics");
    let holds = |line: &&str| line.starts_with("leasepool_hold_seconds_bucket");
    let of = |line: &str| line.split("le=").nth(1).map(str::to_owned);
    let buckets: Vec<_> = body.lines().filter(holds).filter_map(of).collect();
    let ends: Vec<_> = buckets
        .iter()
        .map(|line| line.split('}').next().unwrap())
        .collect();
    assert_eq!(
        ends,
        [
            "\"0.001048575\"",
            "\"0.005242879\"",
            "\"0.251658239\"",
            "\"+Inf\""
        ]
    );
    assert!(
        buckets[1].ends_with(" 0") && buckets[3].ends_with(" 1"),
        "{buckets:?}"
    );
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
        9.0
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

/// A pool with a table, and what writes do to it: two by themselves, four in one transaction, and one that
/// fails. `see` is called while three of the four wait.
fn written(see: impl FnOnce(&Server)) -> (tempfile::TempDir, Pool, Server) {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::builder(Database::file(folder.path().join("a\"b.db")))
        .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS t (x)"))
        .lease_timeout(LONG)
        .write_group(256, LONG)
        .wal_size(64 << 10)
        .build()
        .unwrap();
    let server = Server::start(&pool, 0);
    let write = |sql: &'static str| {
        pool.write("writer", move |tx| {
            tx.execute_batch(sql)?;
            Ok(())
        })
    };
    const INSERT: &str = "INSERT INTO t VALUES (1)";
    write(INSERT).unwrap();
    write(INSERT).unwrap();
    std::thread::scope(|scope| {
        // Here, so that `see` may panic: the write then ends, too.
        let (begun, has_begun) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel();
        // One that blocks would do its own write by itself.
        let first = pool.write_async("first", move |tx| {
            begun.send(()).unwrap();
            may_go_on.recv().unwrap();
            tx.execute_batch(INSERT)?;
            Ok(())
        });
        scope.spawn(|| smol::block_on(first).unwrap());
        has_begun.recv().unwrap();
        for _ in 0..3 {
            scope.spawn(|| write(INSERT).unwrap());
        }
        while pool.stats().writes_waiting < 3 {
            std::thread::yield_now();
        }
        see(&server);
        go_on.send(()).unwrap();
    });
    let refused = pool.write("fails", |tx| {
        let _ = tx.execute_batch("COMMIT");
        Ok(())
    });
    assert!(
        matches!(refused, Err(Error::NotInWrite { .. })),
        "{refused:?}"
    );
    (folder, pool, server)
}

#[test]
fn json_says_what_was_written() {
    let pause = Duration::from_millis(30);
    let (folder, pool, server) = written(|server| {
        std::thread::sleep(pause);
        let json = server.json();
        assert_eq!(
            (&json["writes_waiting"], &json["writes"]),
            (&3.into(), &2.into())
        );
    });
    let json = server.json();
    assert_eq!(
        (&json["writes_waiting"], &json["writes"]),
        (&0.into(), &6.into())
    );
    let counters = &json["counters"];
    assert_eq!(counters["write_failures"], 1);
    assert_eq!(counters["write_groups"], 4);
    let write = &json["write"];
    assert_eq!(write["count"], 7);
    // Four of seven lasted until they had been seen.
    for quantile in ["p50", "p99", "max"] {
        assert!(
            write[quantile].as_f64().unwrap() >= pause.as_secs_f64(),
            "{write}"
        );
    }
    let wal = std::fs::metadata(folder.path().join("a\"b.db-wal")).unwrap();
    assert_eq!(json["wal_pages"], (wal.len() - 32) / (4096 + 24));
    assert_eq!(json["wal_bytes"], wal.len());
    assert_eq!(json["files"], 1);
    assert_eq!(
        (&counters["checkpoints"], &counters["checkpoints_pinned"]),
        (&0.into(), &0.into())
    );
    let start = std::time::Instant::now();
    while server.json()["history"]
        .as_array()
        .unwrap()
        .iter()
        .all(|sample| sample["writes"] != 6)
    {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(20));
    }

    // A reader that stays holds the log.
    let reader = pool.lease("reader").unwrap();
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM t")
        .unwrap();
    while server.json()["counters"]["checkpoints_pinned"] != 1 {
        assert!(start.elapsed() < LONG);
        pool.write("writer", |tx| {
            tx.execute("INSERT INTO t VALUES (randomblob(20 * 4096))", [])?;
            Ok(())
        })
        .unwrap();
    }
    let before = pool.stats().checkpoints;
    let told = server.json()["counters"]["checkpoints"].as_u64().unwrap();
    assert!((before..=pool.stats().checkpoints).contains(&told));
    // It is tried again, and counted, but it is held only once.
    while server.json()["counters"]["checkpoints"].as_u64().unwrap() < 3 {
        assert!(start.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.json()["counters"]["checkpoints_pinned"], 1);
    drop(reader);
    server.stop();
}

#[test]
fn prometheus_is_told_what_was_written() {
    let value = |server: &Server, series: &str| -> f64 {
        let (_, body) = server.get("/status/metrics");
        let (name, labels) = series.split_once(' ').unwrap_or((series, ""));
        let series = format!("{name}{{pool=\"a\\\"b.db\"{labels}}}");
        let line = body.lines().find_map(|line| line.strip_prefix(&series));
        let value = line.unwrap_or_else(|| panic!("no {series} in\n{body}"));
        value.trim().parse().unwrap()
    };
    let (folder, pool, server) = written(|server| {
        assert_eq!(value(server, "leasepool_writes_waiting"), 3.0);
    });
    let wal = std::fs::metadata(folder.path().join("a\"b.db-wal")).unwrap();
    for (series, wanted) in [
        ("leasepool_writes_total ,outcome=\"committed\"", 6),
        ("leasepool_writes_total ,outcome=\"failed\"", 1),
        ("leasepool_write_groups_total", 4),
        ("leasepool_write_seconds_count", 7),
        ("leasepool_write_seconds_bucket ,le=\"60.129542143\"", 7),
        ("leasepool_write_seconds_bucket ,le=\"0.000001023\"", 0),
        ("leasepool_writes_waiting", 0),
        ("leasepool_wal_pages", (wal.len() - 32) / (4096 + 24)),
        ("leasepool_files", 1),
        ("leasepool_checkpoints_total", 0),
        ("leasepool_emergency_checkpoints_total", 0),
        ("leasepool_checkpoints_pinned_total", 0),
    ] {
        assert_eq!(value(&server, series), wanted as f64, "{series}");
    }
    let sum = value(&server, "leasepool_write_seconds_sum");
    assert!((sum - pool.stats().write.sum().as_secs_f64()).abs() < 1e-9);
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
            .take(40)
            .any(|event| event["holders"][0]["agent"] == "holder")
    );
    drop(held);
    assert!(events.by_ref().take(40).any(|event| event["lent"] == 0));
    pool.close().unwrap();
    assert!(
        events
            .by_ref()
            .take(40)
            .any(|event| event["closed"] == true)
    );
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
    // The server notices that a client has gone when it next tells it something.
    let start = std::time::Instant::now();
    while status(&mut server.ask("/status/events")) != "200" {
        assert!(start.elapsed() < crate::server::LONG);
    }
    server.stop();
}

/// D5, D6.
#[test]
fn the_page_is_one_file_and_may_only_show_itself() {
    let (_folder, pool) = pool(1);
    let server = Server::start(&pool, 0);
    let mut nonces = Vec::new();
    for path in ["/status", "/status/"] {
        let (head, page) = server.get(path);
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        for header in [
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "cache-control: no-store",
            "default-src 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(head.contains(header), "{header}: {head}");
        }
        assert!(!head.contains("unsafe-inline"), "{head}");
        let nonce = head.split("script-src 'nonce-").nth(1).unwrap();
        let nonce = nonce.split('\'').next().unwrap().to_owned();
        assert!(page.contains(&format!("<script nonce=\"{nonce}\">")));
        assert!(page.contains(&format!("<style nonce=\"{nonce}\">")));
        nonces.push(nonce);
        for outside in ["http://", "src=", "@import", "url(", " style="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("prefers-color-scheme") && page.contains("width=device-width"));
    }
    assert_ne!(nonces[0], nonces[1]);
    for path in ["status.json", "metrics", "healthz", "readyz"] {
        let (head, _) = server.get(&format!("/status/{path}"));
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        for header in ["nosniff", "frame-ancestors 'none'", "no-store"] {
            assert!(head.contains(header), "{header} {path}: {head}");
        }
    }
    server.stop();
}

fn status_of(mut connection: std::net::TcpStream) -> String {
    use std::io::Read;
    let mut head = [0; 12];
    connection.read_exact(&mut head).unwrap();
    String::from_utf8_lossy(&head[9..]).into_owned()
}

#[test]
fn a_guard_lets_through_whom_it_knows() {
    let (_folder, pool) = pool(1);
    let guarded = |page: Page| {
        page.guarded(|head| {
            let token = head.headers.get("authorization");
            token.is_some_and(|token| token == "Bearer secret")
        })
    };
    let server = Server::of(Page::new(&pool), guarded, 0);
    let known = "Authorization: Bearer secret\r\n";
    for path in ["", "/", "/status.json", "/metrics", "/events"] {
        let path = format!("/status{path}");
        assert_eq!(status_of(server.ask(&path)), "403", "{path}");
        assert_eq!(status_of(server.ask_with(&path, known)), "200", "{path}");
    }
    // A probe has no secret, and is told no more than a word.
    for (path, word) in [("healthz", "healthy\n"), ("readyz", "ready\n")] {
        let (head, body) = server.get(&format!("/status/{path}"));
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(body, word);
    }
    server.stop();
}

#[test]
fn a_public_page_hides_who_and_where() {
    let (_folder, pool) = pool(2);
    let _held = pool.lease("alice@example.org").unwrap();
    let shown = |page: Page| {
        let server = Server::of(page, Page::public, 0);
        let json = server.json();
        server.stop();
        let holder = &json["holders"][0];
        let text = |key: &str| holder[key].as_str().unwrap().to_owned();
        assert_eq!(
            json.to_string().contains("alice"),
            text("agent").contains("alice")
        );
        assert_eq!(
            json.to_string().contains(".rs"),
            text("place").contains(".rs")
        );
        (text("agent"), text("place"))
    };
    let (agent, place) = shown(Page::new(&pool));
    assert!(agent.starts_with('#') && agent.len() == 17, "{agent}");
    assert_eq!(place, "–");
    // Another router has another secret.
    assert_ne!(shown(Page::new(&pool)).0, agent);
    let page = Page::new(&pool).agents(Agents::Hide).places(Places::Show);
    let (agent, place) = shown(page);
    assert!(
        agent == "–" && place.contains("router.rs:"),
        "{agent} {place}"
    );
    let (agent, _) = shown(Page::new(&pool).agents(Agents::Show));
    assert_eq!(agent, "alice@example.org");
}

#[test]
fn several_pools_are_on_one_page() {
    let (_folder, first) = pool(1);
    let second = Pool::builder(Database::memory())
        .name("second")
        .max_connections(3)
        .build()
        .unwrap();
    let server = Server::of(Page::new(&first).and(&second), Page::public, 0);
    let json =
        |path: &str| -> serde_json::Value { serde_json::from_str(&server.get(path).1).unwrap() };
    assert_eq!(server.json()["name"], "a\"b.db");
    let of_second = json("/status/status.json?pool=1");
    assert_eq!(
        (&of_second["name"], &of_second["max_connections"]),
        (&"second".into(), &3.into())
    );
    assert_eq!(of_second["pools"][0]["name"], "a\"b.db");
    assert_eq!(of_second["pools"][1]["state"], "healthy");
    for path in [
        "status.json?pool=2",
        "status.json?pool=x",
        "events?pool=2",
        "events?pool=",
    ] {
        let (head, _) = server.get(&format!("/status/{path}"));
        assert!(head.starts_with("http/1.1 404"), "{head}");
    }
    let (_, metrics) = server.get("/status/metrics");
    let types: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let distinct: std::collections::HashSet<_> = types.iter().collect();
    assert_eq!(types.len(), distinct.len());
    for name in ["a\\\"b.db", "second"] {
        assert!(metrics.contains(&format!("pool=\"{name}\"")), "{name}");
    }
    // The probes tell of the worst.
    let probe = |path: &str| server.get(&format!("/status/{path}")).0[9..12].to_owned();
    assert_eq!(
        (probe("healthz"), probe("readyz")),
        ("200".into(), "200".into())
    );
    second.close().unwrap();
    assert_eq!(
        (probe("healthz"), probe("readyz")),
        ("503".into(), "503".into())
    );
    assert_eq!(server.json()["pools"][1]["state"], "down");
    server.stop();
}

/// D3: another process holds the write lock.
#[test]
fn a_page_whose_writes_fail_does_not_say_ready() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked.db");
    let pool = Pool::builder(Database::file(&path))
        .setup(|conn| conn.execute_batch("CREATE TABLE t (x)"))
        .lease_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let server = Server::start(&pool, 0);
    assert_eq!(server.json()["health"]["state"], "healthy");
    let other = leasepool::rusqlite::Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let start = std::time::Instant::now();
    let told = loop {
        assert!(pool.execute("a", "INSERT INTO t VALUES (1)", []).is_err());
        let json = server.json();
        if let Some(reason) = json["health"]["reasons"].get(0)
            && reason["code"] == "writes-locked-out"
        {
            break json;
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{}",
            json["health"]
        );
    };
    assert_eq!(told["health"]["state"], "degraded");
    assert_eq!(told["not_ready"], "writes are locked out");
    assert!(server.get("/status/readyz").0.starts_with("http/1.1 503"));
    // It lends connections, so a restart would not help.
    assert_eq!(server.get("/status/healthz").1, "degraded\n");
    other.execute_batch("ROLLBACK").unwrap();
    pool.execute("a", "INSERT INTO t VALUES (1)", []).unwrap();
    assert!(server.get("/status/readyz").0.starts_with("http/1.1 200"));
    server.stop();
}

/// D4.
#[test]
fn with_every_place_taken_the_numbers_can_still_be_had() {
    let (_folder, pool) = pool(1);
    let page = Page::new(&pool).watchers(200);
    let server = Server::of(page, Page::public, 0);
    let watching: Vec<_> = (0..200).map(|_| server.ask("/status/events")).collect();
    let start = std::time::Instant::now();
    while status_of(server.ask("/status/events")) != "503" {
        assert!(start.elapsed() < LONG);
    }
    let before = server.json()["leases"].as_u64().unwrap();
    drop(pool.lease("a").unwrap());
    assert_eq!(server.json()["leases"].as_u64(), Some(before + 1));
    drop(watching);
    server.stop();
}

/// D2: what is shown costs no look at all descriptors of the process. (The kernel's count is in `tests/it/cap.rs`.)
#[test]
fn descriptors_are_those_of_the_kernel_without_asking_it() {
    let (_folder, pool) = pool(4);
    let server = Server::start(&pool, 0);
    for n in 1..=4 {
        let held: Vec<_> = (0..n).map(|_| pool.lease("a").unwrap()).collect();
        assert_eq!(server.json()["descriptors"], pool.descriptors().unwrap());
        drop(held);
        let (_, metrics) = server.get("/status/metrics");
        let line = metrics
            .lines()
            .find(|line| line.starts_with("leasepool_descriptors{"));
        let counted = line.unwrap().rsplit_once(' ').unwrap().1;
        assert_eq!(counted, pool.descriptors().unwrap().to_string());
    }
    server.stop();
}

/// A check of the pool's books.
#[test]
fn the_kernel_is_asked_on_demand() {
    let (_folder, pool) = pool(4);
    let server = Server::start(&pool, 0);
    let held = [pool.lease("a").unwrap(), pool.lease("b").unwrap()];
    let asked: Vec<_> = std::thread::scope(|scope| {
        let asks = || server.get("/status/descriptors").1;
        let asking: Vec<_> = (0..8).map(|_| scope.spawn(asks)).collect();
        asking
            .into_iter()
            .map(|asks| asks.join().unwrap())
            .collect()
    });
    let descriptors = pool.descriptors();
    let wanted = serde_json::json!({
        "counted": descriptors, "kernel": descriptors, "ceiling": pool.fd_ceiling(),
    });
    assert!(descriptors > Some(0));
    for answer in asked {
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer, wanted);
    }
    drop(held);
    assert!(server.get("/status/descriptors?pool=1").0.contains(" 404 "));
    server.stop();
}

#[test]
fn json_has_the_verdict_the_windows_and_their_history() {
    let (_folder, pool) = pool(2);
    let server = Server::start(&pool, 0);
    for _ in 0..50 {
        drop(pool.lease("a").unwrap());
    }
    let start = std::time::Instant::now();
    let json = loop {
        let json = server.json();
        let history = json["history"].as_array().unwrap();
        if history
            .last()
            .is_some_and(|sample| sample["hold_p99"].as_f64() > Some(0.0))
        {
            break json;
        }
        assert!(start.elapsed() < LONG, "{json}");
        std::thread::sleep(Duration::from_millis(20));
    };
    for window in ["10s", "1m", "5m"] {
        let window = &json["windows"][window];
        assert_eq!(
            (&window["leases"], &window["timeouts"]),
            (&50.into(), &0.into())
        );
        assert!(window["hit_rate"].as_f64().unwrap() > 0.9, "{window}");
        assert_eq!(window["hold"]["count"], 50);
        assert_eq!(window["group_size"], serde_json::Value::Null);
    }
    assert_eq!(json["limits"]["lease_timeout_s"], 0.05);
    assert_eq!(json["limits"]["sqlite"], leasepool::rusqlite::version());
    pool.close().unwrap();
    let health = &server.json()["health"];
    assert_eq!(
        (&health["state"], &health["reasons"][0]["code"]),
        (&"down".into(), &"closed".into())
    );
    assert!(
        health["reasons"][0]["link"]
            .as_str()
            .unwrap()
            .starts_with("https://docs.rs/")
    );
    server.stop();
}

/// D2: a process with thousands of sockets. The page asks the system for none of them.
#[test]
fn thousands_of_sockets_do_not_make_the_numbers_slow() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let limit = limit.and_then(|line| line.split_whitespace().nth(3)?.parse().ok());
    // The tests beside this one need descriptors, too.
    let most = limit.unwrap_or(0_usize).saturating_sub(2_000).min(6_000);
    if most < 1_000 {
        eprintln!("the limit of descriptors is too low for a thousand sockets");
        return;
    }
    let (_folder, pool) = pool(2);
    let server = Server::start(&pool, 0);
    let _sockets: Vec<_> = (0..most)
        .map(|_| std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap())
        .collect();
    let median = |look: &dyn Fn()| {
        let mut times: Vec<_> = (0..41)
            .map(|_| {
                let start = std::time::Instant::now();
                look();
                start.elapsed()
            })
            .collect();
        times.sort();
        times[20]
    };
    let scan = median(&|| _ = pool.descriptors());
    for path in ["status.json", "metrics", "healthz"] {
        let path = format!("/status/{path}");
        let took = median(&|| assert!(server.get(&path).0.starts_with("http/1.1 200")));
        println!("{path}: {took:?}; a scan takes {scan:?}");
        assert!(took < scan / 2, "{path}: {took:?}, a scan {scan:?}");
    }
    server.stop();
}
