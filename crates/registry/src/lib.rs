//! The client side of the distribution protocol: authentication, manifests, and blobs that resume in the middle.
//!
//! N1  Content is what its name says: documents and configurations are verified here, by digest and size. A blob's
//!     size is checked while it streams; its digest is checked by whoever extracts it, or by [`VerifiedBlob`].
//! N2  A credential goes to the registry that it was given for and to the token server that this registry named, and
//!     to nobody else: never to the target of a redirect, never to a mirror (threats M4).
//! N3  TLS is verified, unless the user listed the host as insecure or it is this machine. From `https` nothing ever
//!     leads to `http`.
//! N4  Every answer has a maximum, and every wait has one; dropping a future or a [`BlobStream`] ends its connection.
//! N5  A broken connection costs no byte twice: a blob goes on at its offset, as long as the registry serves ranges.
//! N6  Once a byte of a layer has come, a network that fails never ends a pull by itself (B3 of `blob`).
//!
//! Touches: the network; reads `/etc/hosts`, `/etc/resolv.conf`, CA bundles and `certs.d`, and works without them
//! where it can. Names are resolved here, not by libc, which could not in a static binary. Writes nothing.

#![forbid(unsafe_code)]

mod auth;
mod blob;
mod client;
mod config;
mod connect;
mod credentials;
mod error;
mod exchange;
mod proxy;
mod push;
mod resolve;
mod retry;
mod tls;
mod url;

pub use blob::{BlobEvent, BlobStream, VerifiedBlob};
pub use client::{Client, FetchedDocument, RepositoryClient, ResolvedImage};
pub use config::{Cidr, ClientConfig, ConfigError, InsecureRegistries, Mirror, Timeouts};
pub use credentials::{Credentials, CredentialsError, Secret};
pub use error::{Missing, RegistryError, ResolveProblem, TlsProblem};
pub use proxy::Proxies;
pub use retry::{Clock, MonotonicClock};

/// Parsers of untrusted bytes, for the fuzz targets. Not for other use.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::auth::parse_challenges;
    pub use crate::blob::parse_content_range;
    pub use crate::resolve::message::parse_answer;
    pub use crate::retry::retry_after;
    use crate::url::{Origin, Scheme, Url};

    /// Parses an address, and where a redirect leads from it.
    ///
    /// # Panics
    /// If a written address is read as another (U1 of `url`), or a path could end the request line.
    pub fn addresses(address: &str, location: &str) {
        let check = |url: &Url| {
            assert_eq!(Url::parse(&url.to_string()).as_ref(), Some(url), "{url} is read as another");
            let domain = url.origin.authority();
            assert_eq!(Origin::of_domain(url.origin.scheme, &domain).as_ref(), Some(&url.origin), "{domain}");
            assert!(url.path.starts_with('/') && !url.path.bytes().any(|byte| byte.is_ascii_control() || byte == b' '));
            let _ = (url.origin.is_loopback(), url.origin.ip());
        };
        let base =
            Url { origin: Origin { scheme: Scheme::Https, host: "r.example".into(), port: 443 }, path: "/v2/".into() };
        let parsed = Url::parse(address);
        parsed.iter().for_each(check);
        if let Some(to) = parsed.unwrap_or(base).join(location) {
            check(&to);
        }
    }
}
