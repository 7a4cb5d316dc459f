//! Load from another process: many agents, exhaustion, shutdown while it goes on.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::client::{ask, get, read_until};
use crate::contract::{Fixture, until};
use crate::server::{FRAMEWORKS, Named, Server};

const TARGET: &str = "LEASEPOOL_TEST_TARGET";
const AGENTS: &str = "LEASEPOOL_TEST_AGENTS";
const CLIENTS: usize = 24;

/// The other process is this test, started again with somewhere to aim at. It says how many requests got which
/// status, and goes on until it cannot connect or its time is over.
#[test]
fn client_process() {
    let Ok(target) = std::env::var(TARGET) else {
        return;
    };
    let target: SocketAddr = target.parse().unwrap();
    let agents: usize = std::env::var(AGENTS).unwrap().parse().unwrap();
    let [ok, busy, cut, other] = [const { AtomicUsize::new(0) }; 4];
    let end = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (ok, busy, cut, other) = (&ok, &busy, &cut, &other);
            scope.spawn(move || {
                let mut i = client;
                while Instant::now() < end {
                    i += CLIENTS;
                    let path = format!("/agents/agent-{}/visit", i % agents);
                    let status = std::panic::catch_unwind(|| get(target, &path).status);
                    match status {
                        Ok(200) => ok.fetch_add(1, SeqCst),
                        Ok(503) => busy.fetch_add(1, SeqCst),
                        Ok(_) => other.fetch_add(1, SeqCst),
                        Err(_) => {
                            cut.fetch_add(1, SeqCst);
                            break;
                        }
                    };
                }
            });
        }
    });
    println!(
        "\nresult {} {} {} {}",
        ok.into_inner(),
        busy.into_inner(),
        cut.into_inner(),
        other.into_inner()
    );
}

struct Load {
    ok: usize,
    busy: usize,
    cut: usize,
    other: usize,
}

fn start_load(target: SocketAddr, agents: usize) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "load::client_process", "--nocapture"])
        .env(TARGET, target.to_string())
        .env(AGENTS, agents.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn finish_load(child: Child) -> Load {
    let output = child.wait_with_output().unwrap();
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = output.lines().find_map(|line| line.strip_prefix("result "));
    let numbers: Vec<usize> = line
        .unwrap_or_else(|| panic!("{output}"))
        .split(' ')
        .map(|n| n.parse().unwrap())
        .collect();
    let [ok, busy, cut, other] = numbers[..] else {
        panic!("{output}");
    };
    Load {
        ok,
        busy,
        cut,
        other,
    }
}

#[test]
fn a_flood_of_agents_stays_under_the_ceiling() {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let pool = fixture.builder(8).build().unwrap();
        let server = Server::start(framework, &pool, Named::BySegment);
        let load = start_load(server.address, 5_000);
        let most = AtomicUsize::new(0);
        let done = AtomicBool::new(false);
        let load = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    most.fetch_max(pool.descriptors().unwrap(), SeqCst);
                }
            });
            let load = finish_load(load);
            done.store(true, SeqCst);
            load
        });
        assert!(load.ok > 500, "{framework:?} {}", load.ok);
        assert_eq!(
            (load.busy, load.cut, load.other),
            (0, 0, 0),
            "{framework:?}"
        );
        let most = most.into_inner();
        assert!(
            most > 2 && most <= pool.fd_ceiling(),
            "{framework:?} {most}"
        );
        let rows =
            pool.lease("count")
                .unwrap()
                .query_row("SELECT count(*) FROM visit", [], |row| row.get::<_, i64>(0));
        assert_eq!(rows.unwrap(), load.ok as i64, "{framework:?}");
        // A checkpoint of the pool's may still be at work.
        until("all are back", || pool.stats().lent == 0);
    }
}

#[test]
fn exhaustion_under_load_ends_when_connections_come_back() {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let builder = fixture.builder(2).lease_timeout(Duration::from_millis(500));
        let pool = builder.build().unwrap();
        // Both are open, so that no stream waits for that.
        drop(["x", "y"].map(|agent| {
            pool.agent(agent)
                .within(Duration::from_secs(30))
                .lease()
                .unwrap()
        }));
        let server = Server::start(framework, &pool, Named::BySegment);
        // Streams hold every connection.
        let mut streams = ["a", "b"].map(|agent| {
            ask(
                server.address,
                &format!("/agents/{agent}/stream?n=1000000"),
                b"",
            )
        });
        for stream in &mut streams {
            read_until(stream, "chunk 0");
        }
        let load = start_load(server.address, 50);
        until("requests are refused", || pool.stats().timeouts > 100);
        assert_eq!(pool.stats().lent, 2);
        let before = pool.stats().leases;
        drop(streams);
        until("they are served", || pool.stats().leases > before + 200);
        let load = finish_load(load);
        assert!(load.busy >= 100 && load.ok >= 200, "{framework:?}");
        assert_eq!((load.cut, load.other), (0, 0), "{framework:?}");
        assert_eq!(get(server.address, "/agents/a/visit").status, 200);
    }
}

#[test]
fn shutdown_under_load_loses_nothing() {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let pool = Arc::new(fixture.builder(4).build().unwrap());
        let server = Server::start(framework, &pool, Named::BySegment);
        let load = start_load(server.address, 500);
        let mut stream = ask(server.address, "/agents/reader/stream?n=100", b"");
        read_until(&mut stream, "chunk 0");
        until("it is loaded", || pool.stats().leases > 300);
        server.stop();
        // A checkpoint of the pool's may still be at work.
        until("all are back", || pool.stats().lent == 0);
        pool.close().unwrap();
        assert_eq!(pool.descriptors(), Some(0), "{framework:?}");
        // Requests that were cut off had not been answered, and may have been served or not.
        let load = finish_load(load);
        assert_eq!(load.other, 0, "{framework:?}");
        let again = fixture.builder(1).build().unwrap();
        let rows: i64 = again
            .lease("count")
            .unwrap()
            .query_row("SELECT count(*) FROM visit", [], |row| row.get(0))
            .unwrap();
        let (least, most) = (load.ok as i64, (load.ok + load.cut) as i64);
        assert!(
            (least..=most).contains(&rows),
            "{framework:?} {least} {rows} {most}"
        );
    }
}
