//! An HTTP client that can do what clients do: be slow, hang up, send nonsense.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    get_with(address, path, b"")
}

/// `headers` are sent as they are, and each must end with a line break.
pub(crate) fn get_with(address: SocketAddr, path: &str, headers: &[u8]) -> Answer {
    let mut connection = ask(address, path, headers);
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).unwrap();
    parse(&answer)
}

/// Sends the request and reads nothing yet.
pub(crate) fn ask(address: SocketAddr, path: &str, headers: &[u8]) -> TcpStream {
    let mut connection = TcpStream::connect(address).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    request.push_str("Accept: */*\r\n");
    let mut request = request.into_bytes();
    request.extend_from_slice(headers);
    request.extend_from_slice(b"\r\n");
    connection.write_all(&request).unwrap();
    connection
}

/// Reads until the first chunk of a streamed body is there.
pub(crate) fn read_until(connection: &mut TcpStream, wanted: &str) {
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while !seen.contains(wanted) {
        let n = connection.read(&mut buffer).unwrap();
        assert!(n > 0, "the server hung up: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

fn parse(answer: &[u8]) -> Answer {
    let answer = String::from_utf8_lossy(answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Answer {
        status,
        head: head.to_ascii_lowercase(),
        body: match chunked {
            true => unchunk(body),
            false => body.to_owned(),
        },
    }
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&after[..size]);
        rest = after.get(size + 2..).unwrap_or("");
    }
    body
}
