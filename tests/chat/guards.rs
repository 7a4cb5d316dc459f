//! What keeps one client, or a stranger, from what is others'.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use crate::client::{Answer, answer, get, send};
use crate::server::{LONG, Server};

/// From an address of loopback that others do not use.
fn connect_from(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    // Not for the servers that other tests start meanwhile.
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    bind(&socket, &SocketAddr::from((from, 0))).unwrap();
    connect(&socket, &to).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

#[test]
fn who_sends_half_a_head_keeps_nobody_out() {
    keeps_nobody_out(b"GET /healthz HTTP/1.1\r\nhost: x\r\nslow: ");
}

#[test]
fn who_sends_half_a_body_keeps_nobody_out() {
    keeps_nobody_out(
        b"POST /api/sessions/a/messages HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{",
    );
}

fn keeps_nobody_out(half: &[u8]) {
    let mut server = Server::start(&["--fd-limit", "128"]);
    let start = Instant::now();
    // Those beyond the limit of an address are sent away, at once or while they write.
    let mut slow: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.address);
            let _ = stream.write_all(half);
            stream
        })
        .collect();
    for _ in 0..20 {
        let asked = Instant::now();
        assert_eq!(get(server.address, "/healthz").status, 200);
        assert!(
            asked.elapsed() < Duration::from_secs(1),
            "{:?}",
            asked.elapsed()
        );
    }
    // The others lose their places in time.
    for stream in &mut slow {
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    let mut again = connect_from(Ipv4Addr::new(127, 0, 0, 2), server.address);
    again
        .write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(answer(again).unwrap().status, 200);
    server.terminate();
    server.ended();
}

/// Between two requests, and before the first.
#[test]
fn an_idle_client_loses_its_place() {
    let mut server = Server::start(&[]);
    let mut silent = send(server.address, b"").unwrap();
    let mut idle = send(server.address, b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let start = Instant::now();
    let mut said = Vec::new();
    idle.read_to_end(&mut said).unwrap();
    assert!(said.starts_with(b"HTTP/1.1 200"));
    let _ = silent.read_to_end(&mut said);
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    server.terminate();
    server.ended();
}

fn status_with(address: SocketAddr, authorization: &str) -> Answer {
    let request = format!(
        "GET /status/status.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization}\r\n"
    );
    answer(send(address, request.as_bytes()).unwrap()).unwrap()
}

#[test]
fn the_status_page_wants_its_token() {
    let mut server = Server::start(&["--status-token", "open sesame"]);
    for (authorization, status) in [
        ("", 401),
        ("authorization: Bearer wrong\r\n", 401),
        ("authorization: Bearer open\r\n", 401),
        ("authorization: Basic !!!\r\n", 401),
        // "x:wrong"
        ("authorization: Basic eDp3cm9uZw==\r\n", 401),
        // "x:open sesame"
        ("authorization: Basic eDpvcGVuIHNlc2FtZQ==\r\n", 200),
        ("authorization: bearer open sesame\r\n", 200),
    ] {
        let answer = status_with(server.address, authorization);
        assert_eq!(answer.status, status, "{authorization}");
        assert_eq!(
            answer.head.contains("www-authenticate: basic"),
            status == 401
        );
    }
    server.terminate();
    server.ended();
}

/// A page of another site can send requests to loopback, under a name of its own.
#[test]
fn the_status_page_is_not_for_other_sites() {
    let mut server = Server::start(&[]);
    for (host, status) in [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("", 403),
    ] {
        let request = format!(
            "GET /status/status.json HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
        );
        let answer = answer(send(server.address, request.as_bytes()).unwrap()).unwrap();
        assert_eq!(answer.status, status, "{host}");
    }
    server.terminate();
    server.ended();
}

#[test]
fn the_status_page_is_not_for_the_world() {
    let mut server = Server::start(&["--listen", "0.0.0.0:0"]);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.address.port()));
    assert_eq!(get(address, "/healthz").status, 200);
    for path in [
        "/status",
        "/status/",
        "/status/status.json",
        "/status/metrics",
    ] {
        assert_eq!(get(address, path).status, 404, "{path}");
    }
    server.terminate();
    server.ended();
    let refused = Server::refused(&["--status-token", ""]);
    assert!(refused.contains("--status-token"), "{refused}");
    let refused = Server::refused(&["--status", "0.0.0.0:0"]);
    assert!(refused.contains("--status-token"), "{refused}");
    let mut server = Server::start(&["--status", "127.0.0.1:0"]);
    assert_eq!(get(server.address, "/status/").status, 404);
    let page = server
        .said("status page on http://")
        .trim_end_matches('/')
        .to_owned();
    assert_eq!(get(page.parse().unwrap(), "/status.json").status, 200);
    server.terminate();
    server.ended();
}
