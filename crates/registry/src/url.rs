//! Addresses of HTTP servers, and where redirects lead.
//!
//! U1  An origin is scheme, host and port, all filled in and in lower case: two are equal if and only if a credential
//!     for one is a credential for the other.

use std::fmt;
use std::net::IpAddr;

use hyper::Uri;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }

    pub(crate) fn default_port(self) -> u16 {
        match self {
            Scheme::Http => 80,
            Scheme::Https => 443,
        }
    }
}

/// Scheme, host and port (RFC 6454).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    pub(crate) scheme: Scheme,
    /// A name in lower case or an IP address; IPv6 without brackets.
    pub(crate) host: Box<str>,
    pub(crate) port: u16,
}

impl Origin {
    /// The origin of a registry's domain: `host`, `host:port`, `[v6]:port`.
    pub(crate) fn of_domain(scheme: Scheme, domain: &str) -> Option<Origin> {
        let (host, port) = split_port(domain)?;
        Some(Origin { scheme, host: host.to_ascii_lowercase().into(), port: port.unwrap_or(scheme.default_port()) })
    }

    /// Host and port, the port only if it is not the scheme's own: what goes into `Host`, messages and `certs.d`.
    pub(crate) fn authority(&self) -> String {
        let bracketed = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.to_string() };
        match self.port == self.scheme.default_port() {
            true => bracketed,
            false => format!("{bracketed}:{}", self.port),
        }
    }

    /// The address, if the host is one.
    pub(crate) fn ip(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }

    /// Whether the host is this machine by its very name.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.ip() {
            Some(address) => address.to_canonical().is_loopback(),
            None => is_localhost(&self.host),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.name(), self.authority())
    }
}

/// `localhost` and names below it never leave this machine (RFC 6761).
pub(crate) fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let tail = host.len().checked_sub("localhost".len());
    tail.is_some_and(|at| {
        host.is_char_boundary(at)
            && host[at..].eq_ignore_ascii_case("localhost")
            && (at == 0 || host.as_bytes()[at - 1] == b'.')
    })
}

/// An address of something on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) origin: Origin,
    /// Path and query; starts with a slash.
    pub(crate) path: String,
}

/// The longest address that is followed, in bytes. Signed addresses of object stores reach 2 KiB.
const URL_BYTES_MAX: usize = 8 << 10;

impl Url {
    /// Parses an absolute address; a fragment is cut off, user information refused.
    pub(crate) fn parse(text: &str) -> Option<Url> {
        if text.len() > URL_BYTES_MAX {
            return None;
        }
        let text = text.split('#').next()?;
        let uri: Uri = text.parse().ok()?;
        let scheme = match uri.scheme_str()? {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let authority = uri.authority()?;
        if authority.as_str().contains('@') {
            return None;
        }
        let origin = Origin::of_domain(scheme, authority.as_str())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Some(Url { origin, path })
    }

    /// Where `location` leads from here (RFC 3986, section 5.2, as far as servers use it).
    pub(crate) fn join(&self, location: &str) -> Option<Url> {
        let location = location.trim();
        if location.len() > URL_BYTES_MAX || !location.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let location = location.split('#').next()?;
        if let Some(rest) = location.strip_prefix("//") {
            return Url::parse(&format!("{}://{rest}", self.origin.scheme.name()));
        }
        let has_scheme = location.split(['/', '?']).next().is_some_and(|first| first.contains(':'));
        if has_scheme {
            return Url::parse(location);
        }
        let own_path = self.path.split('?').next().unwrap_or("/");
        let path = match location.as_bytes().first() {
            None => self.path.clone(),
            Some(b'/') => location.to_owned(),
            Some(b'?') => format!("{own_path}{location}"),
            Some(_) => format!("{}/{location}", own_path.rsplit_once('/').map_or("", |(folder, _)| folder)),
        };
        // Through the parser: what it would refuse of another server it refuses of this one.
        Url::parse(&format!("{}{path}", self.origin))
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

/// Splits `host[:port]`; brackets of an IPv6 address are taken off.
pub(crate) fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            match after {
                "" => (host, None),
                after => (host, Some(after.strip_prefix(':')?)),
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port {
        None | Some("") => None,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => Some(port.parse().ok()?),
        Some(_) => return None,
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    match !host.is_empty() && host.len() <= 255 && host.bytes().all(is_host) {
        true => Some((host, port)),
        false => None,
    }
}

/// `text` in the form that a query and a form body want.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_equal_if_their_credentials_are() {
        let origin = |text| Url::parse(text).unwrap().origin;
        assert_eq!(origin("https://R.Example/a"), origin("https://r.example:443/b?c"));
        assert_ne!(origin("https://r.example"), origin("http://r.example:443"));
        assert_ne!(origin("https://r.example"), origin("https://r.example:8443"));
        assert_eq!(origin("http://[::1]:5000/").authority(), "[::1]:5000");
        for text in [
            "ftp://a/",
            "https://u:p@a/",
            "https://a b/",
            "//a/",
            "/a",
            "",
            "https://",
            "https://a:99999/",
            "http://[x]/",
        ] {
            assert_eq!(Url::parse(text), None, "{text}");
        }
    }

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        let from = Url::parse("https://r.example/v2/a/blobs/x?y=1").unwrap();
        for (location, to) in [
            ("https://cdn.example/z?sig=%2F", "https://cdn.example/z?sig=%2F"),
            ("//cdn.example/z", "https://cdn.example/z"),
            ("/z?a=b:c", "https://r.example/z?a=b:c"),
            ("z", "https://r.example/v2/a/blobs/z"),
            ("?q", "https://r.example/v2/a/blobs/x?q"),
            ("/z#part", "https://r.example/z"),
        ] {
            assert_eq!(from.join(location).unwrap().to_string(), to);
        }
        for location in ["javascript:x", "https://a\r\nb/", "http:///", "/é", "/a`b"] {
            assert_eq!(from.join(location), None, "{location}");
        }
    }

    #[test]
    fn this_machine_is_known_by_name_and_by_address() {
        let is_loopback = |domain| Origin::of_domain(Scheme::Http, domain).unwrap().is_loopback();
        for domain in [
            "localhost:5000",
            "LOCALHOST",
            "a.localhost",
            "127.0.0.1",
            "127.8.9.1:1",
            "[::1]:5000",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback(domain), "{domain}");
        }
        for domain in ["notlocalhost", "localhost.example", "128.0.0.1", "[::2]", "0.0.0.0"] {
            assert!(!is_loopback(domain), "{domain}");
        }
    }
}
