//! The names that users give images: `[domain/]path[:tag][@digest]`, with Docker's defaults.
//!
//! R1  A `Reference` is always normal: `docker.io` and `library/` are filled in, and it has a tag or a digest.
//! R2  Every part has passed its grammar, so that it can go into a URL without escaping.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::{Digest, DigestError};
use crate::limits::{REFERENCE_BYTES_MAX, REPOSITORY_NAME_BYTES_MAX, TAG_BYTES_MAX};

/// The domain of a name that gives none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of a reference that gives neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
const OFFICIAL_PREFIX: &str = "library/";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";

/// A repository of a registry: `docker.io/library/busybox`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    domain: Box<str>,
    path: Box<str>,
}

/// An image by name: a repository with a tag, a digest, or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    repository: Repository,
    tag: Option<Box<str>>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// The text is empty or its name is.
    #[error("invalid reference format: the name is empty")]
    Empty,
    /// The text or the name in it is longer than allowed.
    #[error("invalid reference format: the name is longer than {REPOSITORY_NAME_BYTES_MAX} characters")]
    TooLong,
    /// The domain is not a host name or address with an optional port.
    #[error("invalid reference format: {domain:?} is not a registry host")]
    Domain {
        /// The part before the first slash.
        domain: String,
    },
    /// The path has upper-case letters.
    #[error("invalid reference format: repository name ({path}) must be lowercase")]
    UpperCase {
        /// The path as given.
        path: String,
    },
    /// The path is not lower-case words joined by `.`, `_`, `__`, `-` and `/`.
    #[error("invalid reference format: {path:?} is not a repository name")]
    Path {
        /// The path as given.
        path: String,
    },
    /// The tag is not 1 to 128 word characters, dots and hyphens.
    #[error("invalid reference format: {tag:?} is not a tag")]
    Tag {
        /// The tag as given.
        tag: String,
    },
    /// The part after `@` is not a digest.
    #[error("invalid reference format: {digest:?} is not a digest")]
    Digest {
        /// The text after `@`.
        digest: String,
        /// Why.
        #[source]
        source: DigestError,
    },
    /// The name is 64 hexadecimal digits, which Docker's clients take for an image ID.
    #[error("invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")]
    LooksLikeId {
        /// The name as given.
        name: String,
    },
}

impl Repository {
    /// Parses a name without tag and digest: `busybox`, `registry:5000/team/app`.
    pub fn parse(name: &str) -> Result<Repository, ReferenceError> {
        let (repository, tag, digest) = split(name)?;
        match (tag, digest) {
            (None, None) => Ok(repository),
            _ => Err(ReferenceError::Path { path: name.to_owned() }),
        }
    }

    /// The registry: a host with an optional port; `docker.io` for Docker's own.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path within the registry, as it goes into URLs: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the registry is Docker's own.
    pub fn is_docker_io(&self) -> bool {
        &*self.domain == DEFAULT_DOMAIN
    }

    /// The short form that users know: `busybox`, `team/app`, `registry:5000/team/app`.
    pub fn familiar(&self) -> String {
        if !self.is_docker_io() {
            return self.to_string();
        }
        match self.path.strip_prefix(OFFICIAL_PREFIX) {
            // `library/a/b` is not official: its short form would be read as `a/b`.
            Some(name) if !name.contains('/') => name.to_owned(),
            // `docker.io/a.b/c`: without its domain it would be read as a name of the registry `a.b`.
            _ if split_domain(&self.path).1 != &*self.path => self.to_string(),
            _ => self.path.to_string(),
        }
    }

    /// This repository with a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        let tag = Some(checked_tag(tag)?);
        Ok(Reference { repository: self.clone(), tag, digest: None })
    }

    /// This repository with a digest.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }
}

impl Reference {
    /// Parses a reference as Docker's command line takes it; without tag and digest it means `latest`.
    pub fn parse(text: &str) -> Result<Reference, ReferenceError> {
        let (repository, tag, digest) = split(text)?;
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.into()),
            (tag, _) => tag,
        };
        Ok(Reference { repository, tag, digest })
    }

    /// The reference that `fromImage` and `tag` of Docker's pull call mean: `tag` may be a tag or a digest, and
    /// replaces the tag or digest of `from_image`. An empty `tag` counts as none.
    pub fn from_image_and_tag(from_image: &str, tag: Option<&str>) -> Result<Reference, ReferenceError> {
        let Some(tag) = tag.filter(|tag| !tag.is_empty()) else { return Reference::parse(from_image) };
        let (repository, own_tag, _) = split(from_image)?;
        if tag.contains(':') {
            let digest = tag.parse();
            let digest = digest.map_err(|source| ReferenceError::Digest { digest: tag.to_owned(), source })?;
            return Ok(Reference { repository, tag: own_tag, digest: Some(digest) });
        }
        repository.with_tag(tag)
    }

    /// The repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The registry: a host with an optional port.
    pub fn domain(&self) -> &str {
        self.repository.domain()
    }

    /// The path within the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        self.repository.path()
    }

    /// The tag, if one was given or filled in.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given. With a tag beside it, the digest decides.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The short form that users know: `busybox:latest`.
    pub fn familiar(&self) -> String {
        self.with_name(self.repository.familiar())
    }

    fn with_name(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

/// The full form: `docker.io/library/busybox:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_name(self.repository.to_string()))
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Repository, ReferenceError> {
        Repository::parse(text)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        let text = String::deserialize(deserializer)?;
        Reference::parse(&text).map_err(serde::de::Error::custom)
    }
}

type Parts = (Repository, Option<Box<str>>, Option<Digest>);

/// Takes a reference apart and checks each part; fills in the domain and `library/`, but no tag.
fn split(text: &str) -> Result<Parts, ReferenceError> {
    if text.len() > REFERENCE_BYTES_MAX {
        return Err(ReferenceError::TooLong);
    }
    if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(ReferenceError::LooksLikeId { name: text.to_owned() });
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => {
            let parsed = digest.parse::<Digest>();
            let parsed = parsed.map_err(|source| ReferenceError::Digest { digest: digest.to_owned(), source })?;
            (rest, Some(parsed))
        }
    };
    let (domain, rest) = split_domain(rest);
    let (path, tag) = match rest.rsplit_once(':') {
        None => (rest, None),
        Some((path, tag)) => (path, Some(checked_tag(tag)?)),
    };
    if path.is_empty() {
        return Err(ReferenceError::Empty);
    }
    if !is_domain(domain) {
        return Err(ReferenceError::Domain { domain: domain.to_owned() });
    }
    if !path.split('/').all(is_path_component) {
        let path = path.to_owned();
        return Err(match is_upper_case_only_fault(&path) {
            true => ReferenceError::UpperCase { path },
            false => ReferenceError::Path { path },
        });
    }
    let path = match domain == DEFAULT_DOMAIN && !path.contains('/') {
        true => format!("{OFFICIAL_PREFIX}{path}"),
        false => path.to_owned(),
    };
    if domain.len() + 1 + path.len() > REPOSITORY_NAME_BYTES_MAX {
        return Err(ReferenceError::TooLong);
    }
    Ok((Repository { domain: domain.into(), path: path.into() }, tag, digest))
}

/// Decides whether the part before the first slash is a domain, by Docker's rule: it has a dot, a colon or an
/// upper-case letter, or it is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else { return false };
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            match after.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if after.is_empty() => (None, None),
                None => return false,
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let port_fits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok();
    host.is_none_or(|host| host.split('.').all(is_domain_label)) && port.is_none_or(port_fits)
}

fn is_domain_label(label: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(inner)
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(first) || !is_word(last) {
        return false;
    }
    bytes
        .split(|&byte| is_word(byte))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-'))
}

fn is_upper_case_only_fault(path: &str) -> bool {
    path.to_ascii_lowercase().split('/').all(is_path_component)
}

fn checked_tag(tag: &str) -> Result<Box<str>, ReferenceError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let inner = |byte: u8| is_word(byte) || matches!(byte, b'.' | b'-');
    let fits = tag.len() <= TAG_BYTES_MAX && tag.bytes().next().is_some_and(is_word) && tag.bytes().all(inner);
    match fits {
        true => Ok(tag.into()),
        false => Err(ReferenceError::Tag { tag: tag.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn the_defaults_are_those_of_docker() {
        for (text, full, familiar) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("team/app", "docker.io/team/app:latest", "team/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("index.docker.io/team/app:x", "docker.io/team/app:x", "team/app:x"),
            ("library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000/a/b:latest", "127.0.0.1:5000/a/b:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest", "[::1]:5000/app:latest"),
            ("ghcr.io/a__b/c--d.e", "ghcr.io/a__b/c--d.e:latest", "ghcr.io/a__b/c--d.e:latest"),
            ("Registry/app", "Registry/app:latest", "Registry/app:latest"),
        ] {
            let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.familiar(), familiar);
            assert_eq!(Reference::parse(full), Ok(reference.clone()), "the full form is the same reference");
            assert_eq!(Reference::parse(familiar), Ok(reference), "and so is the short one");
        }
    }

    #[test]
    fn a_digest_stands_beside_a_tag_or_alone() {
        let digest = format!("sha256:{HEX}");
        let alone = Reference::parse(&format!("busybox@{digest}")).unwrap();
        assert_eq!((alone.tag(), alone.digest().unwrap().to_string()), (None, digest.clone()));
        let both = Reference::parse(&format!("r.example:5000/a:1@{digest}")).unwrap();
        assert_eq!(both.to_string(), format!("r.example:5000/a:1@{digest}"));
        assert_eq!((both.tag(), both.path()), (Some("1"), "a"));
    }

    #[test]
    fn the_tag_of_a_pull_call_may_be_a_digest() {
        let digest = format!("sha256:{HEX}");
        let pulled = |image, tag| Reference::from_image_and_tag(image, tag).map(|found| found.to_string());
        assert_eq!(pulled("a", Some("1")).unwrap(), "docker.io/library/a:1");
        assert_eq!(pulled("a:2", Some("1")).unwrap(), "docker.io/library/a:1");
        assert_eq!(pulled("a", Some("")).unwrap(), "docker.io/library/a:latest");
        assert_eq!(pulled("a", Some(&digest)).unwrap(), format!("docker.io/library/a@{digest}"));
        assert!(matches!(pulled("a", Some("sha256:..")), Err(ReferenceError::Digest { .. })));
        assert!(matches!(pulled("a", Some("../x")), Err(ReferenceError::Tag { .. })));
    }

    #[test]
    fn what_is_no_reference_is_refused_by_its_part() {
        use ReferenceError as E;
        let refused = |text: &str| Reference::parse(text).expect_err(text);
        assert_eq!(refused(""), E::Empty);
        assert_eq!(refused(":tag"), E::Empty);
        assert!(matches!(refused(HEX), E::LooksLikeId { .. }));
        assert!(matches!(refused("BusyBox"), E::UpperCase { .. }));
        for path in [
            "a//b", "/a", "a/", "../a", "a/../b", "[x]/c", "-a", "a-", "a___b", "a..b", "a b", "a\0", "é", "a?b",
            "a%2f",
        ] {
            assert!(matches!(refused(path), E::Path { .. } | E::Domain { .. }), "{path}: {}", refused(path));
        }
        for domain in ["a:b/c", "a.b:99999/c", "a..b/c", "-a.b/c", "[::1/c", "[x]:1/c", "[::1]x/c", "a.b:+5/c"] {
            assert!(matches!(refused(domain), E::Domain { .. }), "{domain}: {}", refused(domain));
        }
        for tag in ["a:", "a:.b", "a:-b", "a:b/c:", "a:é"] {
            assert!(matches!(refused(tag), E::Tag { .. } | E::Domain { .. }), "{tag}: {}", refused(tag));
        }
        assert!(matches!(refused(&format!("a:{}", "x".repeat(129))), E::Tag { .. }));
        assert!(matches!(refused("a@sha256:abc"), E::Digest { .. }));
        assert_eq!(refused(&format!("a.b/{}", "x".repeat(252))), E::TooLong);
        assert!(Reference::parse(&format!("a.b/{}", "x".repeat(251))).is_ok());
        assert_eq!(refused(&"a".repeat(5000)), E::TooLong);
    }
}
