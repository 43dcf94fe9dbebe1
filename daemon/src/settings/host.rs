//! Where the daemon listens.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::SettingsError;

/// The socket that every client tries.
pub(crate) const DEFAULT_SOCKET: &str = "/run/docker.sock";

/// One `-H`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// `unix://PATH`.
    Unix(PathBuf),
    /// `fd://` or `fd://N`: what the service manager passes.
    Activated(Option<u32>),
    /// `tcp://ADDRESS:PORT`.
    Tcp(SocketAddr),
}

impl Host {
    /// Reads a host as dockerd does; an empty one is the default socket.
    pub(super) fn parse(text: &str, tls: bool) -> Result<Host, SettingsError> {
        let wrong = |reason: &str| SettingsError::Invalid {
            key: "hosts".to_owned(),
            value: text.to_owned(),
            reason: reason.to_owned(),
        };
        if text.is_empty() || text == "unix://" {
            return Ok(Host::Unix(DEFAULT_SOCKET.into()));
        }
        if let Some(path) = text.strip_prefix("unix://") {
            // The address of a Unix socket holds 108 bytes, its end included.
            return match path {
                path if !path.starts_with('/') => Err(wrong("the path must be absolute")),
                path if path.len() > 107 => Err(wrong("the path is longer than 107 bytes")),
                path => Ok(Host::Unix(path.into())),
            };
        }
        if let Some(which) = text.strip_prefix("fd://") {
            return match which {
                "" | "*" => Ok(Host::Activated(None)),
                number => {
                    number.parse().map(|n| Host::Activated(Some(n))).map_err(|_| wrong("expected fd:// or fd://N"))
                }
            };
        }
        let address =
            text.strip_prefix("tcp://").ok_or_else(|| wrong("expected unix://PATH, fd:// or tcp://ADDRESS:PORT"))?;
        let address = address.trim_end_matches('/');
        let port = if tls { 2376 } else { 2375 };
        let address = match address {
            "" => format!("127.0.0.1:{port}"),
            address if address.parse::<std::net::IpAddr>().is_ok() => match address.contains(':') {
                true => format!("[{address}]:{port}"),
                false => format!("{address}:{port}"),
            },
            address if address.starts_with(':') => format!("0.0.0.0{address}"),
            address => address.replace("localhost:", "127.0.0.1:"),
        };
        address.parse().map(Host::Tcp).map_err(|_| wrong("expected an IP address and a port"))
    }
}
