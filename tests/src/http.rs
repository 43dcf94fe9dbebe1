//! The smallest HTTP/1.1 client that the tests need: one request over the daemon's socket, its answer whole or as it comes.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// An answer, its body not read yet.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Header names in lower case with their values.
    pub headers: Vec<(String, String)>,
    reader: BufReader<UnixStream>,
    chunked: bool,
    left: Option<u64>,
}

impl Answer {
    /// The value of a header, by its lower-case name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The next part of the body: a chunk, or what has arrived. `None` at its end.
    ///
    /// # Errors
    /// If the connection breaks inside the body.
    pub fn next_part(&mut self) -> Result<Option<Vec<u8>>> {
        if self.chunked {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
                .with_context(|| format!("not a chunk size: {line:?}"))?;
            let mut part = vec![0; size + 2];
            self.reader.read_exact(&mut part)?;
            part.truncate(size);
            return Ok(if size == 0 { None } else { Some(part) });
        }
        let limit = self.left.unwrap_or(u64::MAX).min(65_536) as usize;
        if limit == 0 {
            return Ok(None);
        }
        let mut part = vec![0; limit];
        let count = self.reader.read(&mut part)?;
        if count == 0 {
            if self.left.is_some() {
                bail!("the connection ended inside the body");
            }
            return Ok(None);
        }
        part.truncate(count);
        if let Some(left) = &mut self.left {
            *left -= count as u64;
        }
        Ok(Some(part))
    }

    /// The whole body.
    ///
    /// # Errors
    /// If the connection breaks inside the body.
    pub fn body(mut self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(part) = self.next_part()? {
            body.extend(part);
        }
        Ok(body)
    }

    /// The whole body as JSON.
    ///
    /// # Errors
    /// If the connection breaks or the body is none.
    pub fn json(self) -> Result<Value> {
        let body = self.body()?;
        serde_json::from_slice(&body).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&body)))
    }

    /// The underlying connection with what was read ahead, for hijacked streams.
    pub fn into_reader(self) -> BufReader<UnixStream> {
        self.reader
    }
}

/// Sends one request. `path` has its query; a body is sent with its length as `application/json`.
///
/// # Errors
/// If the daemon cannot be reached or does not answer in HTTP within a minute.
pub fn request(socket: &Path, method: &str, path: &str, body: Option<&[u8]>) -> Result<Answer> {
    request_with(socket, method, path, &[("Content-Type", "application/json")], body)
}

/// Sends one request with these headers.
///
/// # Errors
/// As [`request`].
pub fn request_with(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&[u8]>,
) -> Result<Answer> {
    let mut stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n");
    if let Some(body) = body {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        if body.is_some() || *name != "Content-Type" {
            head += &format!("{name}: {value}\r\n");
        }
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.unwrap_or_default())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not a status line: {line:?}"))?;
    let mut answer = Answer { status, headers: Vec::new(), reader, chunked: false, left: None };
    loop {
        let mut line = String::new();
        answer.reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        answer.chunked |= name == "transfer-encoding" && value == "chunked";
        if name == "content-length" {
            answer.left = Some(value.parse()?);
        }
        answer.headers.push((name, value));
    }
    if method == "HEAD" || matches!(status, 204 | 304) {
        answer.left = Some(0);
    }
    Ok(answer)
}
