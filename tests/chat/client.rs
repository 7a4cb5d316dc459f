//! A client of the chat server, one connection for each request.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::server::LONG;

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A reply on the way.
pub(crate) struct Stream {
    pub(crate) status: u16,
    lines: BufReader<TcpStream>,
}

pub(crate) fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> io::Result<TcpStream> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if let Some(body) = body {
        let length = body.len();
        head += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
    }
    head += "\r\n";
    head += body.unwrap_or("");
    send(address, head.as_bytes())
}

pub(crate) fn send(address: SocketAddr, bytes: &[u8]) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(LONG))?;
    connection.write_all(bytes)?;
    Ok(connection)
}

pub(crate) fn answer(mut connection: TcpStream) -> io::Result<Answer> {
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(cut)?;
    Ok(Answer {
        status: status(head).ok_or_else(cut)?,
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    })
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    answer(request(address, "GET", path, None).unwrap()).unwrap()
}

fn status(head: &str) -> Option<u16> {
    head.split(' ').nth(1)?.parse().ok()
}

/// Says something; the reply streams.
pub(crate) fn say(address: SocketAddr, session: &str, text: &str) -> io::Result<Stream> {
    let body = serde_json::json!({ "text": text }).to_string();
    let path = format!("/api/sessions/{session}/messages");
    let mut lines = BufReader::new(request(address, "POST", &path, Some(&body))?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "no status");
    let status = status(&line).ok_or_else(cut)?;
    Ok(Stream { status, lines })
}

impl Iterator for Stream {
    type Item = (String, String);

    /// The next event, until the stream ends or is cut.
    fn next(&mut self) -> Option<(String, String)> {
        let mut event = String::new();
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(name) = line.trim_end().strip_prefix("event: ") {
                event = name.to_owned();
            } else if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some((event, data.to_owned()));
            }
        }
    }
}
