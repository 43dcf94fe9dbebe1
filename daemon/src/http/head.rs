//! The head of a request: request line and headers, and what they say about the length of the body.
//!
//! Takes bytes and gives values; reads nothing by itself. Invariants H1 and H2 of [`super`] are decided here.

use std::fmt;

/// Bytes of a head, with the request line and the empty line at its end.
pub(crate) const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers of one request.
pub(crate) const HEADERS_MAX: usize = 100;

/// The methods that the API knows; any other finds no route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Other,
}

/// The headers of a request, in the order in which they came.
#[derive(Debug, Default, Clone)]
pub(crate) struct Headers(Vec<(String, Vec<u8>)>);

impl Headers {
    /// Gives the first value of a header as text; none if it is absent or not ASCII.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok().filter(|text| text.is_ascii()).map(str::trim)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether a header is there at all.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key.eq_ignore_ascii_case(name))
    }

    /// Gives each comma-separated word of every header of that name, in lower case.
    fn words(&self, name: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .flat_map(|(_, value)| String::from_utf8_lossy(value).split(',').map(str::to_owned).collect::<Vec<_>>())
            .map(|word| word.trim().to_ascii_lowercase())
            .filter(|word| !word.is_empty())
            .collect()
    }
}

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// There is no body.
    Empty,
    /// So many bytes.
    Length(u64),
    /// Chunks with their sizes before them.
    Chunked,
}

/// A request's head, checked.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// Path and query as the client sent them, percent-encoded; `*` for a server-wide `OPTIONS`.
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) framing: Framing,
    /// The client accepts chunked replies (HTTP/1.1).
    pub(crate) chunked_reply: bool,
    pub(crate) keep_alive: bool,
    pub(crate) expects_continue: bool,
}

impl Head {
    /// Tells whether the client asks for another protocol on this connection (it names `tcp`, but any will do).
    pub(crate) fn wants_upgrade(&self) -> bool {
        self.headers.contains("upgrade")
    }
}

/// Why a head is refused, as it is answered; the connection is closed after the answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadHead {
    pub(crate) status: u16,
    pub(crate) message: &'static str,
}

impl fmt::Display for BadHead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.message)
    }
}

const fn bad(message: &'static str) -> BadHead {
    BadHead { status: 400, message }
}

/// Parses a head from the start of `bytes` and gives it with its length; nothing if its end has not arrived yet.
///
/// # Errors
/// A [`BadHead`] with the status to answer: 431 for a head over [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`], 505 for an
/// unknown version of HTTP, 400 for all else.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, BadHead> {
    const TOO_LARGE: BadHead = BadHead { status: 431, message: "request header block is larger than 64 KiB" };
    let mut slots = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut slots);
    let limited = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let length = match parsed.parse(limited) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => return Err(TOO_LARGE),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(BadHead { status: 431, message: "request has more than 100 headers" });
        }
        Err(httparse::Error::Version) => {
            return Err(BadHead { status: 505, message: "only HTTP/1.0 and HTTP/1.1 are spoken here" });
        }
        Err(_) => return Err(bad("malformed HTTP request")),
    };
    let headers = Headers(parsed.headers.iter().map(|h| (h.name.to_owned(), h.value.to_vec())).collect());
    let newest = parsed.version == Some(1);
    let target = origin_form(parsed.path.unwrap_or_default()).ok_or(bad("malformed request target"))?;
    let connection = headers.words("connection");
    let says = |word: &str| connection.iter().any(|w| w == word);
    let head = Head {
        method: method(parsed.method.unwrap_or_default()),
        target,
        framing: framing(&headers, newest)?,
        chunked_reply: newest,
        keep_alive: if newest { !says("close") } else { says("keep-alive") },
        expects_continue: newest && headers.words("expect").iter().any(|word| word == "100-continue"),
        headers,
    };
    Ok(Some((head, length)))
}

fn method(word: &str) -> Method {
    match word {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        _ => Method::Other,
    }
}

/// Takes scheme and authority off a target in absolute form: `Host` is ignored, so what stands there is as well.
fn origin_form(target: &str) -> Option<String> {
    if target.starts_with('/') || target == "*" {
        return Some(target.to_owned());
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"))?;
    Some(rest.find('/').map_or_else(|| "/".to_owned(), |at| rest[at..].to_owned()))
}

/// Decides where the body ends (H2). Two answers to that question are how requests are smuggled, so they are refused.
fn framing(headers: &Headers, newest: bool) -> Result<Framing, BadHead> {
    let lengths = headers.words("content-length");
    let has_length = headers.contains("content-length");
    if headers.contains("transfer-encoding") {
        if has_length {
            return Err(bad("both Content-Length and Transfer-Encoding are given"));
        }
        if !newest || headers.words("transfer-encoding") != ["chunked"] {
            return Err(bad("unsupported Transfer-Encoding: only chunked is known"));
        }
        return Ok(Framing::Chunked);
    }
    if !has_length {
        return Ok(Framing::Empty);
    }
    let first = lengths.first().ok_or(bad("malformed Content-Length"))?;
    if lengths.iter().any(|length| length != first) {
        return Err(bad("two different values of Content-Length are given"));
    }
    // `parse` alone would accept a sign.
    if !first.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("malformed Content-Length"));
    }
    match first.parse::<u64>() {
        Ok(0) => Ok(Framing::Empty),
        Ok(length) => Ok(Framing::Length(length)),
        Err(_) => Err(bad("malformed Content-Length")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Head, BadHead> {
        parse(text.as_bytes()).map(|found| found.expect("a whole head").0)
    }

    #[test]
    fn a_plain_request_is_understood() {
        let head = head("GET /v1.44/containers/json?all=1 HTTP/1.1\r\nHost: docker\r\n\r\n").expect("well-formed");
        assert_eq!(head.method, Method::Get);
        assert_eq!(head.target, "/v1.44/containers/json?all=1");
        assert_eq!(head.framing, Framing::Empty);
        assert!(head.keep_alive && head.chunked_reply && !head.expects_continue);
    }

    #[test]
    fn a_head_that_has_not_ended_asks_for_more() {
        assert!(matches!(parse(b"GET / HTTP/1.1\r\nHost: d\r\n"), Ok(None)));
    }

    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for headers in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 6\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 99999999999999999999999\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Content-Length : 5\r\n",
        ] {
            let refused = head(&format!("POST /x HTTP/1.1\r\n{headers}\r\n")).expect_err(headers);
            assert_eq!(refused.status, 400, "{headers}");
        }
        assert!(head("POST /x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
    }

    #[test]
    fn heads_over_their_limits_are_refused_with_431() {
        let many = (0..=HEADERS_MAX).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
        assert_eq!(head(&format!("GET / HTTP/1.1\r\n{many}\r\n")).expect_err("101 headers").status, 431);
        let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(HEAD_BYTES_MAX));
        assert_eq!(parse(long.as_bytes()).expect_err("64 KiB and more").status, 431);
    }

    #[test]
    fn a_target_in_absolute_form_loses_its_authority() {
        assert_eq!(head("GET http://docker/_ping HTTP/1.1\r\n\r\n").expect("well-formed").target, "/_ping");
        assert_eq!(head("GET http://docker HTTP/1.1\r\n\r\n").expect("well-formed").target, "/");
        assert!(head("GET docker/_ping HTTP/1.1\r\n\r\n").is_err());
    }
}
