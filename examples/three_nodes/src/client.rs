//! A client for one request at a time: HTTP/1.0, so that a response ends with its connection.
//! It tries nothing again.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Response {
    /// The value of a header.
    #[allow(dead_code, reason = "the test looks at headers")]
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = fields.find(|(field, _)| field.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    }
}

/// Sends one request. `headers` are whole lines.
pub(crate) fn send(
    address: &str,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<Response> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    let response = String::from_utf8_lossy(&response);
    let no_http = || io::Error::new(io::ErrorKind::UnexpectedEof, format!("{response:?}"));
    let (head, body) = response.split_once("\r\n\r\n").ok_or_else(no_http)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok(Response {
        status: status.ok_or_else(no_http)?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// Puts a file to another node, which has it safe when this returns.
#[allow(dead_code, reason = "the test puts nothing")]
pub(crate) fn put(address: &str, path: &str, body: &[u8]) -> io::Result<()> {
    let response = send(address, "PUT", path, "", body)?;
    match response.status {
        201 => Ok(()),
        status => {
            let body = response.body;
            let what = format!("{address} answered {status}: {body}");
            Err(io::Error::other(what))
        }
    }
}

/// A segment of a path.
pub(crate) fn encoded(segment: &str) -> String {
    let mut path = String::new();
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => path.push(char::from(byte)),
            other => path += &format!("%{other:02X}"),
        }
    }
    path
}
