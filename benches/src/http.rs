//! HTTP/1 on loopback, blocking: the meter must not bring a client of its own that costs more to build than what it
//! measures.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// An answer, with its head as it stood on the wire.
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Sends one request to an `http://` URL, over a connection of its own.
#[must_use]
pub fn send(method: &str, url: &str, headers: &[(String, String)], body: &[u8]) -> Answer {
    let rest = url.strip_prefix("http://").expect("an http:// URL");
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // HTTP/1.0 has no chunks: the answer ends with the connection.
    let mut head = format!(
        "{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut connection = TcpStream::connect(host).unwrap_or_else(|e| panic!("{method} {url}: {e}"));
    let mut answer = Vec::new();
    connection
        .write_all(&[head.as_bytes(), body].concat())
        .and_then(|()| connection.read_to_end(&mut answer))
        .unwrap_or_else(|e| panic!("{method} {url}: {e}"));
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("{method} {url}: the answer is not HTTP"));
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("{method} {url}: no status in {head:?}")),
        head,
        body: answer.split_off(end + 4),
    }
}

/// A connection that stays open for the next request, as an action handler's callers keep theirs.
pub struct Connection {
    host: String,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects to the host of an `http://` URL.
    #[must_use]
    pub fn open(url: &str) -> Self {
        let rest = url.strip_prefix("http://").expect("an http:// URL");
        let host = rest.split('/').next().unwrap_or(rest).to_owned();
        let stream = TcpStream::connect(&host).unwrap_or_else(|e| panic!("connecting to {url}: {e}"));
        let _ = stream.set_nodelay(true);
        Self {
            host,
            stream: BufReader::new(stream),
        }
    }

    /// Posts a body and reads the answer to its end; the status.
    pub fn post(&mut self, path: &str, headers: &[(&str, String)], body: &[u8]) -> u16 {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n",
            self.host,
            body.len()
        );
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let request = [request.as_bytes(), body].concat();
        let answered = self.stream.get_mut().write_all(&request).map(|()| self.answer());
        let status = answered.unwrap_or_else(|e| panic!("POST {path}: {e}"));
        status.unwrap_or_else(|| panic!("POST {path}: the answer is not HTTP, or ends early"))
    }

    fn answer(&mut self) -> Option<u16> {
        let (mut status, mut length) = (None, 0);
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim_end().to_lowercase();
            if line.is_empty() {
                break;
            } else if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            } else if status.is_none() {
                status = line.split(' ').nth(1)?.parse().ok();
            }
        }
        self.stream.read_exact(&mut vec![0; length]).ok()?;
        status
    }
}

/// Reads one request: its path and body. `None` when the peer closed the connection.
#[must_use]
pub fn receive(connection: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.to_lowercase());
    }
    let path = lines.first()?.split(' ').nth(1)?.to_owned();
    let value = |name: &str| {
        lines
            .iter()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let mut body = Vec::new();
    if let Some(length) = value("content-length:") {
        body.resize(length.parse().ok()?, 0);
        connection.read_exact(&mut body).ok()?;
    } else if value("transfer-encoding:") == Some("chunked") {
        loop {
            let mut size = String::new();
            connection.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size + 2];
            connection.read_exact(&mut chunk).ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    }
    Some((path, body))
}
