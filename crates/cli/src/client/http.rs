//! The API as a client sees it: one connection a request, answers with a limit, streams, and connections that are taken over.
//!
//! H1  What a daemon sends is bounded: heads, documents and lines of streams have limits, and nothing is read ahead of its use.
//! H2  A request is sent to the daemon that was named and to no other: no redirects, no proxies.
//!
//! Paths carry no version unless `DOCKER_API_VERSION` says so: a daemon then speaks its newest, and we read what we know of it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::failure::Failure;
use super::text::value::Value;

/// Bytes of an answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Bytes of a document.
const DOCUMENT_BYTES_MAX: u64 = 256 << 20;
/// Bytes of one message of a stream.
const LINE_BYTES_MAX: u64 = 4 << 20;

/// Where the daemon listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    Unix(PathBuf),
    Tcp(String),
}

impl Host {
    /// Reads `unix://PATH` or `tcp://HOST:PORT`.
    ///
    /// # Errors
    /// `Refused` for any other scheme.
    pub(crate) fn parse(text: &str) -> Result<Host, Failure> {
        if let Some(path) = text.strip_prefix("unix://") {
            let path = if path.is_empty() { "/run/docker.sock" } else { path };
            return Ok(Host::Unix(path.into()));
        }
        if let Some(address) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            let address = address.trim_end_matches('/');
            let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            return Ok(Host::Tcp(if has_port { address.to_owned() } else { format!("{address}:2375") }));
        }
        Err(Failure::refused(format!("host {text:?} is not supported; use unix://PATH or tcp://HOST:PORT")))
    }

    /// As people write it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Host::Unix(path) => format!("unix://{}", path.display()),
            Host::Tcp(address) => format!("tcp://{address}"),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn open(host: &Host) -> Result<Stream, Failure> {
        let opened = match host {
            Host::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Host::Tcp(address) => TcpStream::connect(address).map(Stream::Tcp),
        };
        opened.map_err(|source| Failure::NoDaemon { host: host.shown(), source })
    }

    /// Another handle of the same connection.
    pub(crate) fn again(&self) -> io::Result<Stream> {
        match self {
            Stream::Unix(stream) => stream.try_clone().map(Stream::Unix),
            Stream::Tcp(stream) => stream.try_clone().map(Stream::Tcp),
        }
    }

    /// Says that nothing more will be written.
    pub(crate) fn end_of_writing(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.read(buffer),
            Stream::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.write(bytes),
            Stream::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is asked.
pub(crate) struct Request<'a> {
    method: &'static str,
    path: String,
    query: String,
    headers: Vec<(&'static str, String)>,
    body: Body<'a>,
}

enum Body<'a> {
    None,
    Json(String),
    /// A stream of unknown length.
    Reader(&'static str, &'a mut dyn Read),
}

impl<'a> Request<'a> {
    /// A request for a path whose variable parts are escaped already.
    pub(crate) fn new(method: &'static str, path: impl Into<String>) -> Request<'a> {
        Request { method, path: path.into(), query: String::new(), headers: Vec::new(), body: Body::None }
    }

    pub(crate) fn get(path: impl Into<String>) -> Request<'a> {
        Request::new("GET", path)
    }

    pub(crate) fn post(path: impl Into<String>) -> Request<'a> {
        Request::new("POST", path)
    }

    /// Adds a parameter.
    pub(crate) fn query(mut self, name: &str, value: impl AsRef<str>) -> Request<'a> {
        let separator = if self.query.is_empty() { '?' } else { '&' };
        self.query.push(separator);
        self.query.push_str(name);
        self.query.push('=');
        self.query.push_str(&escape(value.as_ref(), ""));
        self
    }

    /// Adds a parameter if it is true.
    pub(crate) fn query_if(self, name: &str, value: bool) -> Request<'a> {
        if value { self.query(name, "1") } else { self }
    }

    /// Adds a parameter if there is a value.
    pub(crate) fn query_maybe(self, name: &str, value: Option<impl AsRef<str>>) -> Request<'a> {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: String) -> Request<'a> {
        self.headers.push((name, value));
        self
    }

    pub(crate) fn json(mut self, body: &serde_json::Value) -> Request<'a> {
        self.body = Body::Json(body.to_string());
        self
    }

    pub(crate) fn reader(mut self, content_type: &'static str, reader: &'a mut dyn Read) -> Request<'a> {
        self.body = Body::Reader(content_type, reader);
        self
    }

    fn send(self, stream: &mut Stream, upgrade: bool) -> io::Result<()> {
        let version = std::env::var("DOCKER_API_VERSION").ok().filter(|version| !version.is_empty());
        let prefix = version.map(|version| format!("/v{}", version.trim_start_matches('v'))).unwrap_or_default();
        let mut head = format!(
            "{} {prefix}{}{} HTTP/1.1\r\nHost: docker\r\nUser-Agent: baleen/{}\r\n",
            self.method,
            self.path,
            self.query,
            env!("CARGO_PKG_VERSION")
        );
        head.push_str(if upgrade { "Connection: Upgrade\r\nUpgrade: tcp\r\n" } else { "Connection: close\r\n" });
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match self.body {
            Body::None if self.method == "GET" || self.method == "HEAD" => head.push_str("\r\n"),
            Body::None => head.push_str("Content-Length: 0\r\n\r\n"),
            Body::Json(text) => {
                head.push_str(&format!(
                    "Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}",
                    text.len()
                ));
            }
            Body::Reader(content_type, reader) => {
                head.push_str(&format!("Content-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"));
                stream.write_all(head.as_bytes())?;
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let length = match reader.read(&mut buffer) {
                        Ok(length) => length,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(error) => return Err(error),
                    };
                    stream.write_all(format!("{length:x}\r\n").as_bytes())?;
                    stream.write_all(&buffer[..length])?;
                    stream.write_all(b"\r\n")?;
                    if length == 0 {
                        return Ok(());
                    }
                }
            }
        }
        stream.write_all(head.as_bytes())
    }
}

/// Escapes for a URL; `keep` are characters that stay beside letters, digits and `-_.~`.
pub(crate) fn escape(text: &str, keep: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let c = char::from(byte);
        if c.is_ascii_alphanumeric() || "-_.~".contains(c) || (c.is_ascii() && keep.contains(c)) {
            escaped.push(c);
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// A name within a path: a container, a volume, an image with slashes.
pub(crate) fn name(text: &str) -> String {
    escape(text, "/:@")
}

/// An answer whose head was read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    body: BufReader<Stream>,
    left: Left,
}

/// What of a body is still to come.
enum Left {
    Length(u64),
    /// Bytes of this chunk; none before the first and after the last.
    Chunk(u64, bool),
    /// To the end of the connection.
    All,
}

impl Answer {
    /// Sends a request on a connection of its own and reads the head of the answer.
    ///
    /// # Errors
    /// `NoDaemon`, `Io` or `Answer`. A status that says no is no error here.
    pub(crate) fn to(host: &Host, request: Request<'_>, upgrade: bool) -> Result<Answer, Failure> {
        let mut stream = Stream::open(host)?;
        let is_head = request.method == "HEAD";
        // A daemon that refuses early stops reading: its answer tells more than our broken pipe.
        let sent = request.send(&mut stream, upgrade);
        let mut body = BufReader::new(stream);
        let head = match (read_head(&mut body), sent) {
            (Ok(head), _) => head,
            (Err(_), Err(source)) => return Err(Failure::Io { action: "send a request to the daemon".into(), source }),
            (Err(source), Ok(())) => return Err(Failure::Io { action: "read the daemon's answer".into(), source }),
        };
        let mut slots = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut slots);
        if !parsed.parse(&head).is_ok_and(|status| status.is_complete()) {
            return Err(Failure::Answer { reason: "it is no HTTP".to_owned() });
        }
        let status = parsed.code.unwrap_or_default();
        let headers: Vec<(String, String)> = parsed
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()))
            .collect();
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let left = if is_head || status == 204 || status == 304 {
            Left::Length(0)
        } else if header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            Left::Chunk(0, false)
        } else if let Some(length) = header("content-length").and_then(|length| length.trim().parse().ok()) {
            Left::Length(length)
        } else {
            Left::All
        };
        Ok(Answer { status, body, left })
    }

    /// The answer if its status is good.
    ///
    /// # Errors
    /// `Api` with the daemon's message.
    pub(crate) fn good(mut self) -> Result<Answer, Failure> {
        if self.status < 400 {
            return Ok(self);
        }
        let status = self.status;
        let mut text = Vec::new();
        (&mut self).take(1 << 20).read_to_end(&mut text).map_err(Failure::io("read the daemon's answer"))?;
        let message = match serde_json::from_slice::<Value>(&text) {
            Ok(value) if value.get("message").is_some() => value.text_at(&["message"]).to_owned(),
            _ => String::from_utf8_lossy(&text).trim().to_owned(),
        };
        let message = if message.is_empty() { format!("status {status} without a reason") } else { message };
        Err(Failure::Api { status, message })
    }

    /// The whole body as a document; null if it is empty.
    ///
    /// # Errors
    /// `Io`, or `Answer` if it is no JSON or too long.
    pub(crate) fn document(mut self) -> Result<Value, Failure> {
        let mut text = Vec::new();
        let read = (&mut self).take(DOCUMENT_BYTES_MAX + 1).read_to_end(&mut text);
        let length = read.map_err(Failure::io("read the daemon's answer"))?;
        if length as u64 > DOCUMENT_BYTES_MAX {
            return Err(Failure::Answer { reason: "it is too long".to_owned() });
        }
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&text).map_err(|error| Failure::Answer { reason: error.to_string() })
    }

    /// The next message of a stream of JSON lines; nothing at its end.
    ///
    /// # Errors
    /// `Io`, or `Answer` if a line is no JSON or too long.
    pub(crate) fn message(lines: &mut BufReader<Answer>) -> Result<Option<Value>, Failure> {
        loop {
            let mut line = Vec::new();
            let read = lines.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
            if read.map_err(Failure::io("read the daemon's stream"))? == 0 {
                return Ok(None);
            }
            if line.len() as u64 == LINE_BYTES_MAX {
                return Err(Failure::Answer { reason: "a message is too long".to_owned() });
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            return serde_json::from_slice(&line)
                .map(Some)
                .map_err(|error| Failure::Answer { reason: error.to_string() });
        }
    }

    /// The connection itself, once the daemon has handed it over, with what came behind the head.
    pub(crate) fn taken_over(self) -> BufReader<Stream> {
        self.body
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let early = || {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection in the middle of its answer")
        };
        if let Left::Chunk(0, started) = self.left {
            let mut line = String::new();
            if started {
                (&mut self.body).take(2).read_line(&mut line)?;
                line.clear();
            }
            (&mut self.body).take(1024).read_line(&mut line)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| early())?;
            self.left = if size == 0 { Left::Length(0) } else { Left::Chunk(size, true) };
        }
        match &mut self.left {
            Left::All => self.body.read(buffer),
            Left::Length(0) => Ok(0),
            Left::Length(left) | Left::Chunk(left, _) => {
                let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                let length = self.body.read(&mut buffer[..most])?;
                if length == 0 && most > 0 {
                    return Err(early());
                }
                *left -= length as u64;
                Ok(length)
            }
        }
    }
}

fn read_head(reader: &mut BufReader<Stream>) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    loop {
        let before = head.len();
        let left = (HEAD_BYTES_MAX - before) as u64;
        reader.by_ref().take(left).read_until(b'\n', &mut head)?;
        if head.len() == before {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection was closed without an answer"));
        }
        if matches!(&head[before..], b"\r\n" | b"\n") {
            return Ok(head);
        }
        if head.len() >= HEAD_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer's head is too long"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn answered(text: &str) -> Result<Answer, Failure> {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(text.as_bytes()).expect("it fits");
        drop(theirs);
        let mut body = BufReader::new(Stream::Unix(ours));
        let head = read_head(&mut body).map_err(Failure::io("read"))?;
        assert!(head.ends_with(b"\r\n\r\n"));
        let left = if text.contains("chunked") { Left::Chunk(0, false) } else { Left::All };
        Ok(Answer { status: 200, body, left })
    }

    #[test]
    fn bodies_are_read_in_each_framing_and_cut_ones_are_errors() {
        let text = |answer: Answer| {
            let mut text = String::new();
            let mut answer = answer;
            answer.read_to_string(&mut text).map(|_| text)
        };
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let whole = answered(&format!("{chunked}5\r\nhello\r\nA;x=y\r\n 0123456 \r\r\n0\r\n\r\n")).expect("a head");
        assert_eq!(text(whole).expect("whole"), "hello 0123456 \r");
        for cut in ["", "5\r\nhel", "5\r\nhello", "5\r\nhello\r\n", "x\r\n"] {
            assert!(text(answered(&format!("{chunked}{cut}")).expect("a head")).is_err(), "{cut:?}");
        }
        assert_eq!(text(answered("HTTP/1.1 200 OK\r\n\r\nabc").expect("a head")).expect("to the end"), "abc");
    }

    #[test]
    fn messages_come_one_by_one_and_the_daemons_reason_is_told() {
        let mut lines = BufReader::new(answered("HTTP/1.1 200 OK\r\n\r\n{\"a\":1}\r\n\r\n{\"a\":2}").expect("a head"));
        let mut next = || Answer::message(&mut lines).expect("JSON").map(|value| value.at(&["a"]).number());
        assert_eq!((next(), next(), next()), (Some(1), Some(2), None));
        let mut refused = answered("HTTP/1.1 200 OK\r\n\r\n{\"message\":\"no such thing\"}\n").expect("a head");
        refused.status = 404;
        let failure = refused.good().err().expect("a refusal");
        assert!(failure.is_not_found());
        assert_eq!(failure.to_string(), "Error response from daemon: no such thing");
    }

    #[test]
    fn requests_say_what_they_mean_and_names_are_escaped() {
        let folder = std::env::temp_dir().join(format!("baleen-client-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = folder.join("sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client");
            let mut bytes = Vec::new();
            let mut buffer = [0; 4096];
            while !bytes.ends_with(b"0\r\n\r\n") {
                let length = stream.read(&mut buffer).expect("a request");
                bytes.extend_from_slice(&buffer[..length]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK").expect("an answer");
            String::from_utf8(bytes).expect("text")
        });
        let request = Request::post(format!("/images/{}/x", name("a b/c:d"))).query("q", "1&2/ü").query_if("no", false);
        let answer = Answer::to(&Host::Unix(path), request.reader("application/x-tar", &mut &b"data"[..]), false);
        assert_eq!(answer.map(|answer| answer.status).map_err(|error| error.to_string()), Ok(200));
        let asked = server.join().expect("no panic");
        let _ = std::fs::remove_dir_all(folder);
        assert!(asked.starts_with("POST /images/a%20b/c:d/x?q=1%262%2F%C3%BC HTTP/1.1\r\n"), "{asked}");
        assert!(asked.ends_with("\r\n\r\n4\r\ndata\r\n0\r\n\r\n"), "{asked}");
    }

    #[test]
    fn hosts_are_read_as_docker_reads_them() {
        assert_eq!(Host::parse("unix:///x").ok(), Some(Host::Unix("/x".into())));
        assert_eq!(Host::parse("unix://").ok(), Some(Host::Unix("/run/docker.sock".into())));
        assert_eq!(Host::parse("tcp://h").ok(), Some(Host::Tcp("h:2375".to_owned())));
        assert_eq!(Host::parse("tcp://[::1]:99/").ok(), Some(Host::Tcp("[::1]:99".to_owned())));
        assert!(Host::parse("ssh://h").is_err());
    }
}
