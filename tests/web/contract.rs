//! What both frameworks must do with one request, or a few.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leasepool::web::NODE_HEADER;
use leasepool::{Builder, Database, Owner, Pool};
use tempfile::TempDir;

use crate::client::{ask, get, get_with, read_until};
use crate::server::{FRAMEWORKS, Framework, Named, Server, WRONG};

/// Longer than anything may take; only a failing test waits for so long.
const LONG: Duration = Duration::from_secs(30);

pub(crate) struct Fixture {
    _folder: TempDir,
    pub(crate) path: PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agents.db");
        Fixture {
            _folder: folder,
            path,
        }
    }

    pub(crate) fn builder(&self, connections: usize) -> Builder {
        Pool::builder(Database::file(&self.path))
            .max_connections(connections)
            .synchronous(leasepool::Synchronous::Normal)
            .write_group(256, LONG)
            .setup(|conn| {
                conn.execute_batch(
                    "CREATE TABLE IF NOT EXISTS visit (agent NOT NULL);
                     CREATE INDEX IF NOT EXISTS visit_agent ON visit (agent)",
                )
            })
    }
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn on_each(connections: usize, named: Named, test: impl Fn(Framework, &Pool, &Server)) {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let builder = fixture.builder(connections);
        let pool = builder
            .lease_timeout(Duration::from_millis(200))
            .build()
            .unwrap();
        let server = Server::start(framework, &pool, named);
        test(framework, &pool, &server);
        server.stop();
        assert_eq!(pool.stats().lent, 0, "{framework:?}");
        pool.close().unwrap();
        assert_eq!(pool.descriptors(), Some(0));
    }
}

#[test]
fn the_agent_is_found_in_a_segment() {
    on_each(2, Named::BySegment, |_, pool, server| {
        assert_eq!(get(server.address, "/agents/alice/visit").body, "alice 1");
        let again = get(server.address, "/agents/alice/visit");
        assert_eq!((again.status, again.body.as_str()), (200, "alice 2"));
        let decoded = get(server.address, "/agents/b%C3%B6b%2F%27/visit");
        assert_eq!(decoded.body, "böb/' 1");
        assert_eq!(get(server.address, "/agents/%ff/visit").status, 400);
        let long = "x".repeat(1025);
        assert_eq!(
            get(server.address, &format!("/agents/{long}/visit")).status,
            400
        );
        assert_eq!(get(server.address, "/agents/alice/work").body, "alice 2");
        assert!(pool.stats().hits >= 1);
    });
}

#[test]
fn the_agent_is_found_in_a_header() {
    on_each(2, Named::ByHeader, |_, _, server| {
        let ask = |headers: &[u8]| get_with(server.address, "/agents/x/visit", headers);
        assert_eq!(ask(b"X-Agent: carol\r\n").body, "carol 1");
        let missing = ask(b"");
        assert_eq!(missing.status, 400);
        assert_eq!(missing.body, "the request names no agent");
        assert_eq!(ask(b"X-Agent: a\r\nX-Agent: b\r\n").status, 400);
        assert_eq!(ask(b"X-Agent: \xff\r\n").status, 400);
        assert_eq!(ask(b"X-Agent: \r\n").status, 400);
        // Who needs no lease need not say who they are.
        assert_eq!(get(server.address, "/agents/x/idle").body, "no lease");
    });
}

#[test]
fn the_agent_is_found_in_an_extension_or_by_a_function() {
    on_each(2, Named::ByExtension, |_, _, server| {
        let path = "/agents/x/visit";
        let found = get_with(server.address, path, b"X-User: dave\r\n");
        assert_eq!(found.body, "dave 1");
        assert_eq!(get(server.address, path).status, 400);
    });
    on_each(2, Named::ByFunction, |_, _, server| {
        assert_eq!(get(server.address, "/agents/x/visit?erin").body, "erin 1");
        assert_eq!(get(server.address, "/agents/x/visit").status, 400);
    });
}

#[test]
fn the_agent_may_be_the_same_for_all_requests() {
    on_each(2, Named::Constantly, |_, pool, server| {
        assert_eq!(get(server.address, "/agents/x/visit").body, "7 1");
        assert_eq!(get(server.address, "/agents/y/visit").body, "7 2");
        assert_eq!(pool.stats().hits, 1);
    });
}

#[test]
fn an_agent_of_another_node_is_a_421_that_names_the_node() {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let database = Database::per_agent(fixture.path.with_extension("agents"))
            .create(false)
            .owner(|agent| match agent {
                "bob" => Owner::Elsewhere("10.0.0.2:8080".to_owned()),
                "eve" => Owner::Elsewhere("no value\nof a header".to_owned()),
                _ => Owner::Here,
            });
        let pool = Pool::builder(database).build().unwrap();
        let server = Server::start(framework, &pool, Named::BySegment);
        for path in ["/agents/bob/visit", "/agents/bob/work", "/agents/bob/write"] {
            let refused = get(server.address, path);
            assert_eq!(refused.status, 421, "{refused:?}");
            let header = "x-leasepool-node: 10.0.0.2:8080";
            assert!(refused.head.contains(header), "{refused:?}");
            assert_eq!(refused.body, "another node serves the agent");
        }
        let refused = get(server.address, "/agents/eve/visit");
        assert_eq!(refused.status, 421);
        assert!(!refused.head.contains(NODE_HEADER), "{refused:?}");
        // Here, but without a database.
        let missing = get(server.address, "/agents/alice/visit");
        assert_eq!(missing.status, 404);
        assert_eq!(missing.body, "the agent has no database");
        server.stop();
        pool.close().unwrap();
    }
}

/// Three hundred requests for unknown agents had left three hundred databases.
#[test]
fn requests_of_unknown_agents_are_404s_that_make_no_file() {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let folder = fixture.path.with_extension("agents");
        let database = Database::per_agent(&folder).owner(|agent| match agent {
            "bob" => Owner::Elsewhere("node-2".to_owned()),
            _ => Owner::Here,
        });
        let pool = Pool::builder(database)
            .setup(|conn| conn.execute_batch("CREATE TABLE IF NOT EXISTS visit (agent NOT NULL)"))
            .build()
            .unwrap();
        let server = Server::start(framework, &pool, Named::BySegment);
        for i in 0..300 {
            for what in ["visit", "work"] {
                let missing = get(server.address, &format!("/existing/agent-{i}/{what}"));
                assert_eq!(missing.status, 404, "{missing:?}");
                assert_eq!(missing.body, "the agent has no database");
            }
        }
        assert_eq!(pool.agents().unwrap().count(), 0);
        assert_eq!(pool.stats().opens, 0);
        let elsewhere = get(server.address, "/existing/bob/visit");
        assert_eq!(elsewhere.status, 421, "{elsewhere:?}");
        // Once it is made, it is served: while it is parked, and from its file.
        assert_eq!(get(server.address, "/agents/alice/visit").body, "alice 1");
        assert_eq!(get(server.address, "/existing/alice/visit").body, "alice 2");
        assert_eq!(get(server.address, "/existing/alice/work").body, "alice 2");
        pool.evict("alice");
        assert_eq!(get(server.address, "/existing/alice/visit").body, "alice 3");
        pool.agent("alice").remove().unwrap();
        assert_eq!(get(server.address, "/existing/alice/visit").status, 404);
        server.stop();
        pool.close().unwrap();
    }
    // Where agents share a file, none has a database of its own.
    on_each(2, Named::BySegment, |_, _, server| {
        assert_eq!(get(server.address, "/existing/alice/visit").status, 500);
    });
}

/// An extractor's lease named the line where the layer was made, whatever request it served.
#[test]
fn a_holder_names_method_and_route() {
    on_each(1, Named::BySegment, |framework, pool, server| {
        let mut stream = ask(server.address, "/agents/alice/stream?n=1000000", b"");
        read_until(&mut stream, "chunk 0");
        let holders = pool.holders();
        assert_eq!(holders[0].agent, "alice");
        assert_eq!(
            holders[0].request,
            Some("GET /agents/{agent}/stream"),
            "{framework:?}"
        );
        assert!(!holders[0].is_pool());
        let told = holders[0].to_string();
        assert!(told.ends_with("(GET /agents/{agent}/stream)"), "{told}");
        // Callers that wait name it, too: for an extracted lease, and for a call of an extracted agent.
        for what in ["visit", "work"] {
            let path = format!("/agents/bob/{what}");
            let route = format!("GET /agents/{{agent}}/{what}");
            let waits = || {
                let waiting = pool.waiting();
                waiting.iter().any(|w| w.request == Some(&*route))
            };
            // The request gives up after 200 ms; a slow machine may miss it, and asks again.
            until("it waits", || {
                std::thread::scope(|scope| {
                    let request = scope.spawn(|| get(server.address, &path));
                    let mut seen = false;
                    while !request.is_finished() {
                        seen |= waits();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    assert_eq!(request.join().unwrap().status, 503);
                    seen
                })
            });
        }
        drop(stream);
        until("the stream is given up", || pool.holders().is_empty());
    });
}

#[test]
fn exhaustion_is_a_503_that_says_when_to_come_again() {
    on_each(1, Named::BySegment, |_, pool, server| {
        let held = pool.lease("the-secret-holder").unwrap();
        for path in ["/agents/bob/visit", "/agents/bob/work", "/agents/bob/write"] {
            let refused = get(server.address, path);
            assert_eq!(refused.status, 503, "{refused:?}");
            assert!(refused.head.contains("retry-after: 1"), "{refused:?}");
            assert_eq!(refused.body, "the database is busy, try again");
        }
        drop(held);
        assert_eq!(get(server.address, "/agents/bob/visit").status, 200);
        assert_eq!(pool.stats().timeouts, 3);
    });
}

#[test]
fn a_foreign_lock_is_a_503_that_says_when_to_come_again() {
    for framework in FRAMEWORKS {
        let fixture = Fixture::new();
        let pool = fixture
            .builder(2)
            .lease_timeout(Duration::from_millis(200))
            .busy_timeout(Duration::from_millis(200))
            .build()
            .unwrap();
        let server = Server::start(framework, &pool, Named::BySegment);
        let mut shell = Command::new("sqlite3")
            .arg(&fixture.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let sql = b"BEGIN IMMEDIATE; SELECT 'locked';\n";
        shell.stdin.as_mut().unwrap().write_all(sql).unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line.trim(), "locked");
        // In the queue, and on a lease by itself.
        for path in ["/agents/bob/write", "/agents/bob/visit"] {
            let refused = get(server.address, path);
            assert_eq!(refused.status, 503, "{refused:?}");
            assert!(refused.head.contains("retry-after: 1"), "{refused:?}");
            assert_eq!(refused.body, "the database is busy, try again");
        }
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert_eq!(get(server.address, "/agents/bob/write").body, "bob 1");
        server.stop();
        pool.close().unwrap();
    }
}

#[test]
fn what_is_written_is_committed_and_shares_commits() {
    on_each(4, Named::BySegment, |_, pool, server| {
        assert_eq!(get(server.address, "/agents/alice/write").body, "alice 1");
        assert_eq!(get(server.address, "/agents/alice/visit").body, "alice 2");
        assert_eq!(get(server.address, "/agents/alice/read").body, "alice 2");
        // So many requests wait for a lock that they all are written when it goes.
        let mut lease = pool.lease("slow").unwrap();
        let transaction = lease.transaction().unwrap();
        transaction
            .execute("INSERT INTO visit VALUES ('slow')", ())
            .unwrap();
        let before = pool.stats();
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..20)
                .map(|_| scope.spawn(|| get(server.address, "/agents/bob/write")))
                .collect();
            until("all wait", || pool.stats().writes_waiting == 19);
            transaction.commit().unwrap();
            for answer in asked {
                assert_eq!(answer.join().unwrap().status, 200);
            }
        });
        let after = pool.stats();
        assert_eq!(after.writes - before.writes, 20);
        assert_eq!(after.write_groups - before.write_groups, 1);
        assert_eq!(get(server.address, "/agents/bob/write").body, "bob 21");
    });
}

#[test]
fn once_the_writes_are_closed_reads_go_on() {
    on_each(2, Named::BySegment, |_, pool, server| {
        assert_eq!(get(server.address, "/agents/alice/write").body, "alice 1");
        pool.close_writes().unwrap();
        let refused = get(server.address, "/agents/alice/write");
        let told = (refused.status, refused.body.as_str());
        assert_eq!(told, (503, "the server is shutting down"));
        assert!(!refused.head.contains("retry-after"), "{refused:?}");
        assert_eq!(get(server.address, "/agents/alice/read").body, "alice 1");
    });
}

#[test]
fn a_write_that_fails_says_nothing_of_the_database_and_leaves_nothing() {
    on_each(2, Named::BySegment, |_, pool, server| {
        for way in 0..=WRONG.len() {
            let failed = get(server.address, &format!("/agents/a/write-wrong?n={way}"));
            let told = (failed.status, failed.body.as_str());
            assert_eq!(told, (500, "internal error"), "{way}");
        }
        let lease = pool.lease("a").unwrap();
        let left: i64 = lease
            .query_row("SELECT count(*) FROM visit", (), |row| row.get(0))
            .unwrap();
        assert_eq!(left, 0);
        drop(lease);
        pool.close().unwrap();
        let closed = get(server.address, "/agents/a/write");
        let told = (closed.status, closed.body.as_str());
        assert_eq!(told, (503, "the server is shutting down"));
    });
    on_each(2, Named::ByHeader, |_, _, server| {
        let unnamed = get(server.address, "/agents/x/write-wrong?n=0");
        let told = (unnamed.status, unnamed.body.as_str());
        assert_eq!(told, (400, "the request names no agent"));
    });
}

#[test]
fn what_a_lease_shows_as_its_place_is_the_users() {
    on_each(1, Named::BySegment, |_, pool, server| {
        let mut connection = ask(server.address, "/agents/a/stream?n=1000", b"");
        read_until(&mut connection, "chunk 0");
        let holder = &pool.holders()[0];
        assert_eq!(holder.agent, "a");
        assert!(holder.borrowed_at.file().ends_with("server.rs"), "{holder}");
    });
}

#[test]
fn errors_say_nothing_of_the_database() {
    on_each(1, Named::BySegment, |_, pool, server| {
        let failed = get(server.address, "/agents/a/wrong");
        assert_eq!(
            (failed.status, failed.body.as_str()),
            (500, "internal error")
        );
        pool.close().unwrap();
        let closed = get(server.address, "/agents/a/visit");
        assert_eq!(closed.status, 503);
        assert_eq!(closed.body, "the server is shutting down");
    });
    on_each(1, Named::NotAtAll, |_, _, server| {
        let failed = get(server.address, "/agents/a/visit");
        assert_eq!(
            (failed.status, failed.body.as_str()),
            (500, "internal error")
        );
        assert_eq!(get(server.address, "/agents/a/idle").status, 500);
    });
}

#[test]
fn a_lease_in_a_body_lives_until_the_body_ends() {
    on_each(1, Named::BySegment, |_, pool, server| {
        let mut connection = ask(server.address, "/agents/a/stream?n=20", b"");
        read_until(&mut connection, "chunk 0");
        assert_eq!(pool.stats().lent, 1);
        assert_eq!(get(server.address, "/agents/b/visit").status, 200);
        let mut rest = String::new();
        connection.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("chunk 19"));
        until("it is back", || pool.stats().lent == 0);
    });
}

#[test]
fn a_lease_in_a_body_ends_when_the_client_hangs_up() {
    on_each(1, Named::BySegment, |framework, pool, server| {
        // Longer than the test may take.
        let mut connection = ask(server.address, "/agents/a/stream?n=1000000", b"");
        read_until(&mut connection, "chunk 0");
        assert_eq!(pool.stats().lent, 1);
        let hung_up = Instant::now();
        drop(connection);
        until("it is back", || pool.stats().lent == 0);
        let took = hung_up.elapsed();
        assert!(took < Duration::from_secs(1), "{framework:?} {took:?}");
        assert_eq!(get(server.address, "/agents/b/visit").status, 200);
    });
}

#[test]
fn slow_clients_hold_nothing_but_their_own_streams() {
    on_each(4, Named::BySegment, |_, pool, server| {
        // They send half a request, or read nothing.
        let mut slow: Vec<_> = (0..20)
            .map(|_| std::net::TcpStream::connect(server.address).unwrap())
            .collect();
        for connection in &mut slow {
            connection.write_all(b"GET /agents/a/visit HTT").unwrap();
        }
        let unread = ask(server.address, "/agents/reader/stream?n=1000000", b"");
        until("it streams", || pool.stats().lent == 1);
        for i in 0..50 {
            let visit = get(server.address, &format!("/agents/agent-{i}/visit"));
            assert_eq!(visit.status, 200);
        }
        assert_eq!(pool.stats().lent, 1);
        drop((slow, unread));
        until("it is back", || pool.stats().lent == 0);
    });
}
