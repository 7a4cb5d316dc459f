//! A file for each session: what one says is nobody else's, and no more is open than connections allow.

use std::collections::HashSet;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::client::{answer, get, request, say};
use crate::server::Server;

fn start(args: &[&str]) -> Server {
    Server::start_with("--per-agent", args)
}

fn json(server: &Server, path: &str) -> serde_json::Value {
    let got = get(server.address, path);
    assert_eq!(got.status, 200, "{path}: {}", got.body);
    serde_json::from_str(&got.body).unwrap()
}

fn texts(server: &Server, session: &str) -> Vec<String> {
    let history = json(server, &format!("/api/sessions/{session}/messages"));
    let messages = history.as_array().unwrap().iter();
    messages
        .map(|message| message["text"].as_str().unwrap().to_owned())
        .collect()
}

fn listed(server: &Server, query: &str) -> Vec<String> {
    let sessions = json(server, &format!("/api/sessions{query}"));
    let sessions = sessions.as_array().unwrap().iter();
    sessions
        .map(|session| session["id"].as_str().unwrap().to_owned())
        .collect()
}

fn delete(server: &Server, session: &str) -> u16 {
    let path = format!("/api/sessions/{session}");
    let request = request(server.address, "DELETE", &path, None);
    answer(request.unwrap()).unwrap().status
}

fn files(folder: &Path) -> HashSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn each_session_has_a_file_and_sees_no_other() {
    let mut server = start(&["--stream-delay-ms", "1"]);
    for (session, text) in [("alice", "hello hers"), ("Alice", "hello capital")] {
        let events: Vec<_> = say(server.address, session, text).unwrap().collect();
        assert_eq!(events[0], ("accepted".to_owned(), "1".to_owned()));
        assert_eq!(events.last().unwrap(), &("done".to_owned(), "2".to_owned()));
    }
    assert_eq!(texts(&server, "alice")[0], "hello hers");
    assert_eq!(texts(&server, "Alice")[0], "hello capital");
    // A client that only asks makes no file.
    assert!(texts(&server, "nobody").is_empty());
    assert_eq!(
        json(&server, "/api/search?q=hello&session=nobody"),
        serde_json::json!([])
    );
    assert_eq!(delete(&server, "nobody"), 404);
    let mut found = listed(&server, "");
    found.sort();
    assert_eq!(found, ["Alice", "alice"]);

    let found = json(&server, "/api/search?q=hers&session=alice");
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["session"], "alice");
    assert_eq!(
        json(&server, "/api/search?q=hers&session=Alice"),
        serde_json::json!([])
    );
    for bad in [
        "/api/search?q=hers",
        "/api/search?q=hers&session=..%2falice",
    ] {
        assert_eq!(get(server.address, bad).status, 400, "{bad}");
    }

    assert_eq!(
        (delete(&server, "alice"), delete(&server, "alice")),
        (204, 404)
    );
    let left = files(&server.database);
    assert!(
        left.iter().all(|name| name.starts_with("%41lice.db")),
        "{left:?}"
    );
    assert!(texts(&server, "alice").is_empty());
    assert_eq!(listed(&server, ""), ["Alice"]);
    // It begins anew, also in its numbers.
    let accepted = say(server.address, "alice", "again")
        .unwrap()
        .next()
        .unwrap();
    assert_eq!(accepted.1, "1");
    for path in ["/", "/readyz", "/status/status.json", "/status/metrics"] {
        assert_eq!(get(server.address, path).status, 200, "{path}");
    }
    server.terminate();
    server.ended();
    assert_eq!(
        files(&server.database),
        HashSet::from(["alice.db".to_owned(), "%41lice.db".to_owned()])
    );
}

#[test]
fn more_sessions_than_connections() {
    const SESSIONS: usize = 60;
    let mut server = start(&["--connections", "8", "--stream-delay-ms", "1"]);
    let most = thread::scope(|scope| {
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|i| {
                let server = &server;
                scope.spawn(move || {
                    for n in 0..3 {
                        let text = format!("message {n} of {i} alone");
                        let mut stream = say(server.address, &format!("s-{i}"), &text).unwrap();
                        assert_eq!(stream.status, 200);
                        assert!(stream.any(|(event, _)| event == "done"));
                    }
                    if i % 10 == 0 {
                        assert_eq!(delete(server, &format!("s-{i}")), 204);
                    }
                })
            })
            .collect();
        let mut most = 0;
        while !sessions.iter().all(|session| session.is_finished()) {
            most = most.max(server.descriptors());
            // The server needs the processor, too.
            thread::sleep(Duration::from_millis(2));
        }
        for session in sessions {
            session.join().unwrap();
        }
        most
    });
    let kept: HashSet<_> = (0..SESSIONS).filter(|i| i % 10 != 0).collect();
    let names: HashSet<_> = kept.iter().map(|i| format!("s-{i}")).collect();
    let all = listed(&server, "?limit=100");
    assert_eq!(all.len(), names.len());
    assert_eq!(HashSet::from_iter(all), names);
    let pages = ["?limit=30", "?limit=30&offset=30"];
    let pages = pages.into_iter().flat_map(|page| listed(&server, page));
    assert_eq!(pages.collect::<HashSet<_>>(), names);
    for i in kept {
        let texts = texts(&server, &format!("s-{i}"));
        let (said, replies): (Vec<_>, Vec<_>) =
            texts.into_iter().partition(|t| t.starts_with("message"));
        let expected: Vec<_> = (0..3)
            .map(|n| format!("message {n} of {i} alone"))
            .collect();
        assert_eq!(said, expected);
        assert_eq!(replies.len(), 3);
    }
    server.terminate();
    let said = server.ended();
    // "... at most 26 of 33 descriptors on the database ..."
    let ceiling = said
        .split(" of ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let ceiling: usize = ceiling.unwrap().parse().unwrap();
    assert!(most > 3 && most <= ceiling, "{most} of {ceiling}");
    let left = files(&server.database);
    // Of those that were evicted, the short logs.
    let kinds = [".db", ".db-wal", ".db-shm"];
    let is_known = |name: &String| kinds.iter().any(|kind| name.ends_with(kind));
    assert!(left.iter().all(is_known), "{left:?}");
}
