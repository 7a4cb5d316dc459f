//! What the server does with requests, good and bad.

use std::collections::HashSet;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::client::{answer, get, request, say, send};
use crate::server::{LONG, Server};

fn json(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {body}"))
}

#[test]
fn a_session_from_its_first_message_to_its_end() {
    let mut server = Server::start(&["--stream-delay-ms", "1"]);
    let events: Vec<_> = say(server.address, "alice", "hello wonderful world")
        .unwrap()
        .collect();
    assert_eq!(events[0], ("accepted".to_owned(), "1".to_owned()));
    assert_eq!(events.last().unwrap(), &("done".to_owned(), "2".to_owned()));
    let words = events.iter().filter(|(event, _)| event == "word");
    let words: Vec<_> = words.map(|(_, word)| word.as_str()).collect();
    assert!(
        words.contains(&"3") && words.contains(&"wonderful."),
        "{words:?}"
    );

    let history = json(&get(server.address, "/api/sessions/alice/messages").body);
    assert_eq!(history[0]["text"], "hello wonderful world");
    assert_eq!(history[1]["text"], words.join(" "));
    let page = get(
        server.address,
        "/api/sessions/alice/messages?before=2&limit=1",
    );
    assert_eq!(json(&page.body)[0]["id"], 1);
    let sessions = json(&get(server.address, "/api/sessions").body);
    assert_eq!(
        (&sessions[0]["id"], &sessions[0]["messages"]),
        (&"alice".into(), &2.into())
    );
    let found = json(&get(server.address, "/api/search?q=wonderful").body);
    assert_eq!(found.as_array().unwrap().len(), 2);
    assert_eq!(found[0]["session"], "alice");

    let delete = || {
        let request = request(server.address, "DELETE", "/api/sessions/alice", None);
        answer(request.unwrap()).unwrap().status
    };
    assert_eq!((delete(), delete()), (204, 404));
    assert_eq!(
        get(server.address, "/api/sessions/alice/messages").body,
        "[]"
    );
    assert_eq!(get(server.address, "/api/search?q=wonderful").body, "[]");
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/status",
        "/status/status.json",
        "/status/metrics",
    ] {
        assert_eq!(get(server.address, path).status, 200, "{path}");
    }
    server.terminate();
    server.ended();
}

#[test]
fn hostile_input_gets_a_4xx() {
    let mut server = Server::start(&[]);
    let long = "x".repeat(65);
    for id in [
        "..",
        ".",
        "a%20b",
        "..%2f..%2fetc",
        "a%00b",
        "%ff",
        "a'b",
        "a;b",
        &long,
    ] {
        let path = format!("/api/sessions/{id}/messages");
        let status = get(server.address, &path).status;
        assert!((400..500).contains(&status), "{id}: {status}");
    }
    let messages = "/api/sessions/a/messages";
    let post = |body: &str| {
        let request = request(server.address, "POST", messages, Some(body));
        answer(request.unwrap()).unwrap().status
    };
    let text = |text: &str| serde_json::json!({ "text": text }).to_string();
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{}",
        r#"{"text": 5}"#,
        r#"{"text": null}"#,
        "\0\0\0",
        &text(""),
        &text(" \n "),
        &text(&"x".repeat(8_001)),
    ] {
        let status = post(body);
        assert!((400..500).contains(&status), "{body:.40}: {status}");
    }
    assert_eq!(post(&text(&"x".repeat(70_000))), 413);
    for query in [
        "",
        "%22",
        "%22%22%22",
        "*",
        "a%20NEAR(",
        "-",
        "text:x",
        "%00",
        "%F0%9F%92%A9",
        "%ff",
        "a%20AND",
        "^",
    ] {
        let status = get(server.address, &format!("/api/search?q={query}")).status;
        assert!(status == 200 || status == 400, "{query}: {status}");
    }
    for path in [
        "/api/search",
        "/nope",
        "/api/sessions/a",
        "/api/sessions?limit=x",
        "/api/sessions/a/messages?before=99999999999999999999",
        "/status/nope",
    ] {
        let status = get(server.address, path).status;
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    for raw in [
        "PUT /api/sessions/a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "POST /api/sessions/a/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
        "nonsense\r\n\r\n",
    ] {
        let answer = answer(send(server.address, raw.as_bytes()).unwrap()).unwrap();
        assert!(
            (400..500).contains(&answer.status),
            "{raw}: {}",
            answer.status
        );
    }
    let sql = "'; DROP TABLE message; --";
    assert!(
        say(server.address, "a", sql)
            .unwrap()
            .any(|(event, _)| event == "done")
    );
    let history = json(&get(server.address, messages).body);
    assert_eq!(history[0]["text"], sql);
    server.terminate();
    server.ended();
}

#[test]
fn markup_stays_text_and_the_page_may_load_nothing() {
    let server = Server::start(&[]);
    let page = get(server.address, "/");
    assert!(page.head.contains("default-src 'none'"), "{}", page.head);
    for outside in ["http://", "https://", "src=", "innerHTML"] {
        assert!(!page.body.contains(outside), "{outside}");
    }
}

#[test]
fn who_hangs_up_leaves_nothing_behind() {
    let mut server = Server::start(&["--connections", "1", "--stream-delay-ms", "50"]);
    for i in 0..30 {
        let mut stream = say(server.address, &format!("s-{i}"), "are you there").unwrap();
        assert_eq!(stream.next().unwrap().0, "accepted");
    }
    // With one connection, whatever was kept would be missed.
    let status = json(&get(server.address, "/status/status.json").body);
    assert_eq!(
        (&status["lent"], &status["waiting"]),
        (&0.into(), &0.into())
    );
    let history = get(server.address, "/api/sessions/s-29/messages");
    assert_eq!(json(&history.body).as_array().unwrap().len(), 1);
    server.terminate();
    server.ended();
}

#[test]
fn three_hundred_streams_at_once_on_eight_connections() {
    const STREAMS: usize = 300;
    // Sockets, the pool's 19 and what else a process has.
    let mut server = Server::start(&[
        "--fd-limit",
        "400",
        "--per-address",
        "400",
        "--stream-delay-ms",
        "30",
    ]);
    let together = Barrier::new(STREAMS);
    let most = thread::scope(|scope| {
        let streams: Vec<_> = (0..STREAMS)
            .map(|i| {
                let (server, together) = (&server, &together);
                scope.spawn(move || {
                    let mut stream =
                        say(server.address, &format!("s-{i}"), "all together now").unwrap();
                    assert_eq!(stream.status, 200);
                    assert_eq!(stream.next().unwrap().0, "accepted");
                    together.wait();
                    assert_eq!(stream.last().unwrap().0, "done");
                })
            })
            .collect();
        let mut most = 0;
        while !streams.iter().all(|stream| stream.is_finished()) {
            most = most.max(server.descriptors());
        }
        most
    });
    assert!(most > 2 && most <= 19, "{most}");
    server.terminate();
    server.ended();
    assert_eq!(server.stored().len(), STREAMS * 2);
}

#[test]
fn more_clients_than_descriptors_wait_to_be_accepted() {
    let mut server = Server::start(&[
        "--fd-limit",
        "80",
        "--per-address",
        "80",
        "--stream-delay-ms",
        "1",
    ]);
    thread::scope(|scope| {
        for i in 0..100 {
            let server = &server;
            scope.spawn(move || {
                let stream = say(server.address, &format!("s-{i}"), "let me in").unwrap();
                assert_eq!(stream.status, 200);
                assert_eq!(stream.last().unwrap().0, "done");
            });
        }
    });
    server.terminate();
    server.ended();
}

#[test]
fn overload_is_a_503_and_passes() {
    let mut server = Server::start(&["--connections", "1", "--lease-timeout-ms", "1"]);
    let statuses: Vec<u16> = thread::scope(|scope| {
        let clients: Vec<_> = (0..40)
            .map(|i| {
                let server = &server;
                scope.spawn(move || {
                    let ask = |_| {
                        say(server.address, &format!("s-{i}"), "hurry")
                            .unwrap()
                            .status
                    };
                    (0..10).map(ask).collect::<Vec<_>>()
                })
            })
            .collect();
        clients
            .into_iter()
            .flat_map(|client| client.join().unwrap())
            .collect()
    });
    let seen: HashSet<u16> = statuses.iter().copied().collect();
    assert_eq!(seen, HashSet::from([200, 503]));
    let start = Instant::now();
    while say(server.address, "later", "and now").unwrap().status != 200 {
        assert!(start.elapsed() < LONG);
    }
    server.terminate();
    server.ended();
}

#[test]
fn a_signal_under_load_loses_nothing_that_was_acknowledged() {
    let mut server = Server::start(&["--stream-delay-ms", "30"]);
    let address = server.address;
    let clients: Vec<_> = (0..30)
        .map(|client| {
            thread::spawn(move || {
                let (mut acknowledged, mut ends) = (Vec::new(), 0);
                for i in 0.. {
                    let text = format!("message {i} of {client}");
                    let Ok(stream) = say(address, &format!("s-{client}"), &text) else {
                        break;
                    };
                    if stream.status != 200 {
                        break;
                    }
                    for (event, data) in stream {
                        match event.as_str() {
                            "accepted" => {
                                acknowledged.push((data.parse::<i64>().unwrap(), text.clone()))
                            }
                            "end" => ends += 1,
                            _ => {}
                        }
                    }
                    if ends > 0 {
                        break;
                    }
                }
                (acknowledged, ends)
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(700));
    server.terminate();
    server.ended();
    let stored = server.stored();
    let mut ended = 0;
    for client in clients {
        let (acknowledged, ends) = client.join().unwrap();
        assert!(!acknowledged.is_empty());
        ended += ends;
        for (id, text) in acknowledged {
            assert!(
                stored.iter().any(|m| m.0 == id && m.3 == text),
                "{text} is lost"
            );
        }
    }
    assert!(ended > 0, "no stream was ended by the server");
}
