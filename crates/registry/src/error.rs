//! What can go wrong between here and a registry, by what a user can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use baleen_oci::{Digest, DocumentError};

/// A failure to get something from a registry.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry does not have it, or does not show it to this user. The text is the one that Docker's clients know.
    #[error("{}", .missing.text(.name, .detail))]
    NotFound {
        /// What is missing.
        missing: Missing,
        /// The familiar name of the image or repository.
        name: String,
        /// What the registry said, cleaned.
        detail: String,
    },
    /// The registry wants credentials, or others than it got.
    #[error("unauthorized: {registry} refuses access: {detail}; log in with 'docker login'")]
    Unauthorized {
        /// The registry's host.
        registry: String,
        /// What it said, cleaned.
        detail: String,
    },
    /// The registry answered with a status that stands for none of the other errors.
    #[error("{host} answered with status {status}: {detail}")]
    Server {
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What it said, cleaned, at most 1 KiB.
        detail: String,
        /// How long it asks to be left alone, at most a quarter of an hour.
        retry_after: Option<Duration>,
    },
    /// An answer is larger than allowed.
    #[error("{what} of {host} is larger than {bytes_max} bytes; it is refused")]
    TooLarge {
        /// Who sent it.
        host: String,
        /// What it was to be.
        what: &'static str,
        /// The limit.
        bytes_max: u64,
    },
    /// The bytes are not those that the digest names.
    #[error("content does not match its digest: expected {expected}, the registry sent {found}; nothing was stored")]
    DigestMismatch {
        /// The digest asked for.
        expected: Box<Digest>,
        /// The digest of what came.
        found: Box<Digest>,
    },
    /// There are more or fewer bytes than the descriptor says.
    #[error("blob {digest} has {found} bytes, its descriptor says {expected}; nothing was stored")]
    SizeMismatch {
        /// The blob.
        digest: Digest,
        /// The size by its descriptor.
        expected: u64,
        /// Bytes that came or that the registry announced; at least so many.
        found: u64,
    },
    /// The manifest or configuration is refused.
    #[error("cannot use the {what} of {name}")]
    Document {
        /// Which document.
        what: &'static str,
        /// The image.
        name: String,
        /// Why.
        #[source]
        source: DocumentError,
    },
    /// The configuration and the manifest name different numbers of layers.
    #[error("the manifest of {name} has {layers} layers, its configuration {diff_ids}; the image is refused")]
    LayerCount {
        /// The image.
        name: String,
        /// Layers of the manifest.
        layers: usize,
        /// Diff IDs of the configuration.
        diff_ids: usize,
    },
    /// TLS could not be agreed on.
    #[error("cannot make a TLS connection to {host}: {}", .problem.text(.host))]
    Tls {
        /// Host and port.
        host: String,
        /// The likely cause.
        problem: TlsProblem,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// There is no certificate authority to trust.
    #[error(
        "no certificate authorities were found for {host}; install the package ca-certificates, set SSL_CERT_FILE, or put the registry's CA into {certs_dir}/ca.crt"
    )]
    NoCertificateAuthorities {
        /// Host and port.
        host: String,
        /// Where this host's own CA would be looked for.
        certs_dir: PathBuf,
    },
    /// A certificate or key file cannot be used.
    #[error("cannot use the certificate file {path}: {why}; it must be PEM")]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The host name leads to no address.
    #[error("cannot resolve {host}: {}", .problem.text())]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        problem: ResolveProblem,
    },
    /// No address of the host accepts a connection.
    #[error("cannot connect to {host}; check that the registry runs and the network reaches it")]
    Connect {
        /// Host and port.
        host: String,
        /// Why the last address refused.
        #[source]
        source: io::Error,
    },
    /// The proxy does not lead there.
    #[error("the proxy {proxy} does not lead to {host}: {why}; check HTTPS_PROXY and NO_PROXY")]
    Proxy {
        /// The proxy's host and port.
        proxy: String,
        /// Host and port that it was to lead to.
        host: String,
        /// What it said, cleaned.
        why: String,
    },
    /// Something took too long.
    #[error("{host} did not {what} within {seconds} seconds; check the network")]
    Timeout {
        /// Host and port.
        host: String,
        /// What was waited for, as a verb.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The connection ended in the middle of an answer.
    #[error("the connection to {host} broke")]
    Broken {
        /// Host and port.
        host: String,
        /// Why, if it was not simply closed.
        #[source]
        source: Option<hyper::Error>,
    },
    /// The answer makes no sense.
    #[error("{host} answered in a way that is not understood: {what}")]
    Protocol {
        /// Who answered.
        host: String,
        /// What is wrong.
        what: &'static str,
    },
    /// What was to be pushed ended before its size was reached.
    #[error("blob {digest} was to be pushed, and ends after {found} bytes; it is not in the registry")]
    SourceEnded {
        /// The blob.
        digest: Digest,
        /// Bytes that there were.
        found: u64,
    },
    /// A redirect that would be unsafe, or one too many.
    #[error("the redirect from {from} to {to} is refused: {why}")]
    Redirect {
        /// The host that sent it.
        from: String,
        /// Where it leads, cleaned.
        to: String,
        /// Why.
        why: &'static str,
    },
}

/// What a registry does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missing {
    /// The repository, or the right to see it: registries do not say which.
    AccessDenied,
    /// The right to push to the repository.
    PushDenied,
    /// The repository.
    Repository,
    /// The tag or digest.
    Manifest,
    /// A layer or configuration that a manifest names.
    Blob,
}

impl Missing {
    fn text(self, name: &str, detail: &str) -> String {
        let text = match self {
            Missing::AccessDenied => {
                format!("pull access denied for {name}, repository does not exist or may require 'docker login'")
            }
            Missing::PushDenied => {
                return match detail.is_empty() {
                    true => format!("denied: requested access to {name} is denied; log in with 'docker login'"),
                    false => format!("{detail}; {name} takes pushes of others, see 'docker login'"),
                };
            }
            Missing::Repository => format!("repository {name} not found: does not exist or no pull access"),
            Missing::Manifest => format!("manifest for {name} not found"),
            Missing::Blob => format!("a blob of {name} is not in the registry; push the image again"),
        };
        match detail.is_empty() {
            true => text,
            false => format!("{text}: {detail}"),
        }
    }
}

/// Why TLS failed, as far as it can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsProblem {
    /// The certificate is signed by nobody known.
    UnknownAuthority,
    /// The certificate has expired or is not valid yet.
    NotValidNow,
    /// The certificate is for another name.
    WrongName,
    /// The certificate is bad in another way.
    BadCertificate,
    /// The other side does not speak TLS.
    NotTls,
    /// The other side refused, as it does without the client certificate that it wants.
    Refused,
    /// The connection ended during the handshake, or something else.
    Other,
}

impl TlsProblem {
    fn text(self, host: &str) -> String {
        match self {
            TlsProblem::UnknownAuthority => format!(
                "its certificate is signed by an unknown authority; put the authority's certificate into \
                 /etc/docker/certs.d/{host}/ca.crt, or list {host} in insecure-registries"
            ),
            TlsProblem::NotValidNow => {
                "its certificate has expired or is not valid yet; check this machine's clock first, then the certificate"
                    .into()
            }
            TlsProblem::WrongName => "its certificate is for another name; use the name that it was issued for".into(),
            TlsProblem::BadCertificate => "its certificate is not acceptable; have the registry's operator look".into(),
            TlsProblem::NotTls => format!(
                "the other side does not speak TLS; if it is meant to be a plain HTTP registry, list {host} in \
                 insecure-registries"
            ),
            TlsProblem::Refused => format!(
                "the other side refused; if it wants a client certificate, put client.cert and client.key into \
                 /etc/docker/certs.d/{host}/"
            ),
            TlsProblem::Other => "the handshake failed; check the network and the registry".into(),
        }
    }
}

/// Why a name has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResolveProblem {
    /// The name servers say that it does not exist.
    NoSuchHost,
    /// It exists but has no address.
    NoAddress,
    /// No name server answered in time.
    Timeout,
    /// The name servers could not answer.
    ServerFailure,
    /// The text is not a host name.
    BadName,
}

impl ResolveProblem {
    fn text(self) -> &'static str {
        match self {
            ResolveProblem::NoSuchHost => "no such host; check the spelling of the registry's name",
            ResolveProblem::NoAddress => "the name has no address",
            ResolveProblem::Timeout => "no name server answered in time; check the network and /etc/resolv.conf",
            ResolveProblem::ServerFailure => "the name servers could not answer; check /etc/resolv.conf",
            ResolveProblem::BadName => "it is not a host name",
        }
    }
}

impl RegistryError {
    /// Whether the same request may succeed a little later, nothing else having changed.
    pub fn is_transient(&self) -> bool {
        use ResolveProblem::{ServerFailure, Timeout};
        match self {
            RegistryError::Connect { .. }
            | RegistryError::Proxy { .. }
            | RegistryError::Timeout { .. }
            | RegistryError::Broken { .. } => true,
            RegistryError::Resolve { problem, .. } => matches!(problem, Timeout | ServerFailure),
            RegistryError::Tls { problem, .. } => *problem == TlsProblem::Other,
            RegistryError::Server { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            _ => false,
        }
    }

    /// How long the server asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            RegistryError::Server { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The HTTP status that Docker's API gives for this error.
    pub fn docker_status(&self) -> u16 {
        match self {
            RegistryError::NotFound { .. } => 404,
            RegistryError::Document { source: DocumentError::NoMatchingPlatform { .. }, .. } => 404,
            RegistryError::Unauthorized { .. } => 401,
            _ => 500,
        }
    }
}

/// The longest text of a registry that is shown to a user.
const SHOWN_BYTES_MAX: usize = 1024;

/// What a stranger sent, fit to be shown: no control characters, at most 1 KiB.
pub(crate) fn clean(text: &str) -> String {
    let mut shown = String::new();
    let mut last_was_space = true;
    for letter in text.chars() {
        // Format characters such as right-to-left overrides are no control characters for `char`, but act as such.
        let hides =
            matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        let letter = if letter.is_control() || letter.is_whitespace() || hides { ' ' } else { letter };
        if letter == ' ' && last_was_space {
            continue;
        }
        if shown.len() + letter.len_utf8() > SHOWN_BYTES_MAX {
            break;
        }
        last_was_space = letter == ' ';
        shown.push(letter);
    }
    shown.truncate(shown.trim_end().len());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_sent_is_shown_without_tricks() {
        assert_eq!(clean("  a\r\n\x1b[31mb\u{202e}c\0 "), "a [31mb c");
        assert_eq!(clean(&"é".repeat(1000)).len(), 1024);
        assert_eq!(clean("\u{7}"), "");
    }

    #[test]
    fn texts_are_those_that_clients_know() {
        let text = |missing, detail: &str| {
            RegistryError::NotFound { missing, name: "a:1".into(), detail: detail.into() }.to_string()
        };
        assert_eq!(text(Missing::Manifest, "manifest unknown"), "manifest for a:1 not found: manifest unknown");
        assert!(
            text(Missing::AccessDenied, "denied")
                .starts_with("pull access denied for a:1, repository does not exist or")
        );
    }
}
