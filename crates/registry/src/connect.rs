//! Connections: whether a host may be trusted without TLS, to which address to go, and the handshake.
//!
//! K1  What makes a host insecure is its name in the user's list, a mirror's address that says `http`, its being this
//!     machine, or *all* its addresses lying in the user's networks; in the last two cases only such addresses are
//!     connected to.
//! K2  A connection ends when its `Connection` is dropped.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::{Cidr, ClientConfig, InsecureRegistries, Timeouts};
use crate::error::RegistryError;
use crate::proxy::{self, Proxies, Proxy};
use crate::resolve::Resolver;
use crate::tls::{self, Tls};
use crate::url::{Origin, Scheme};

/// How far a host is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    /// TLS with a verified certificate, or nothing.
    Verified,
    /// Any certificate and plain HTTP, at the addresses that pass.
    Insecure(Addresses),
}

/// Which addresses of an insecure host pass (K1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Addresses {
    Any,
    Loopback,
    Networks(Arc<[Cidr]>),
}

impl Addresses {
    fn pass(&self, address: IpAddr) -> bool {
        match self {
            Addresses::Any => true,
            Addresses::Loopback => address.to_canonical().is_loopback(),
            Addresses::Networks(networks) => networks.iter().any(|network| network.contains(address)),
        }
    }
}

/// Opens connections.
pub(crate) struct Dialer {
    pub(crate) tls: Arc<Tls>,
    resolver: Resolver,
    insecure: InsecureRegistries,
    networks: Arc<[Cidr]>,
    /// Mirrors whose address says `http`: whoever configured it wanted that.
    plain_mirrors: Vec<Origin>,
    proxies: Proxies,
    timeouts: Timeouts,
}

/// An open HTTP/1.1 connection.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    /// What a proxy in the middle of a connection without TLS wants: whole addresses, and this authorization.
    pub(crate) proxy: Option<Proxy>,
    task: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How many addresses of a host are tried.
const ADDRESSES_MAX: usize = 8;
/// How long one address has before the next is tried beside it (RFC 8305 recommends it).
const HEAD_START: Duration = Duration::from_millis(250);
/// The largest head of an answer, in bytes; about as much is read ahead of a body.
const BUFFER_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;

impl Dialer {
    pub(crate) fn new(config: &ClientConfig) -> Dialer {
        let tls = Arc::new(Tls::new(config));
        Dialer {
            resolver: Resolver::new(config.hosts_file.clone(), config.resolv_conf.clone(), tls.clone()),
            tls,
            insecure: config.insecure_registries.clone(),
            networks: config.insecure_registries.networks().into(),
            plain_mirrors: config
                .mirrors
                .iter()
                .map(|mirror| mirror.url.origin.clone())
                .filter(|origin| origin.scheme == Scheme::Http)
                .collect(),
            proxies: proxies(config),
            timeouts: config.timeouts.clone(),
        }
    }

    /// How far `origin` is trusted. Asks name servers only if the user listed networks.
    pub(crate) async fn trust(&self, origin: &Origin) -> Trust {
        if origin.is_loopback() {
            return Trust::Insecure(Addresses::Loopback);
        }
        if self.insecure.lists(origin) || self.plain_mirrors.contains(origin) {
            return Trust::Insecure(Addresses::Any);
        }
        if self.networks.is_empty() {
            return Trust::Verified;
        }
        let passing = Addresses::Networks(self.networks.clone());
        match self.resolver.lookup(&origin.host).await {
            // All: else who controls the name could choose an address elsewhere and be spared TLS.
            Ok(found) if found.iter().all(|address| passing.pass(*address)) => Trust::Insecure(passing),
            _ => Trust::Verified,
        }
    }

    /// Opens a connection; `settings` are for TLS and unused without it.
    pub(crate) async fn dial(
        &self,
        origin: &Origin,
        trust: &Trust,
        settings: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Connection, RegistryError> {
        let proxy = self.proxy(origin, trust);
        let stream = match proxy {
            None => self.reach(origin, trust).await?,
            // The proxy is the user's own choice: its address need not pass.
            Some(proxy) => self.reach(&proxy.origin, &Trust::Insecure(Addresses::Any)).await?,
        };
        match (origin.scheme, settings) {
            (Scheme::Http, _) if *trust == Trust::Verified => {
                unreachable!("callers refuse plain HTTP before they dial")
            }
            (Scheme::Http, _) => handshake(origin, stream, proxy.cloned()).await,
            (Scheme::Https, None) => unreachable!("callers make settings for TLS"),
            (Scheme::Https, Some(settings)) => {
                let stream = match proxy {
                    None => stream,
                    Some(proxy) => self.tunnel(stream, proxy, origin).await?,
                };
                let stream = self.secure(origin, stream, settings).await?;
                handshake(origin, stream, None).await
            }
        }
    }

    fn proxy(&self, origin: &Origin, trust: &Trust) -> Option<&Proxy> {
        match trust {
            Trust::Verified | Trust::Insecure(Addresses::Any) => self.proxies.of(origin),
            Trust::Insecure(Addresses::Loopback | Addresses::Networks(_)) => None,
        }
    }

    async fn tunnel(&self, stream: TcpStream, proxy: &Proxy, origin: &Origin) -> Result<TcpStream, RegistryError> {
        let wait = self.timeouts.answer;
        let too_late = |_| RegistryError::Timeout {
            host: proxy.origin.authority(),
            what: "open a tunnel",
            seconds: wait.as_secs(),
        };
        timeout(wait, proxy::tunnel(stream, proxy, origin)).await.map_err(too_late)?
    }

    /// Connects to the first address that accepts.
    async fn reach(&self, origin: &Origin, trust: &Trust) -> Result<TcpStream, RegistryError> {
        let mut addresses = self.resolver.lookup(&origin.host).await?;
        if let Trust::Insecure(passing) = trust {
            addresses.retain(|address| passing.pass(*address));
        }
        addresses.truncate(ADDRESSES_MAX);
        let wait = self.timeouts.connect;
        let host = || origin.authority();
        match timeout(wait, race(addresses, origin.port)).await {
            Err(_) => {
                Err(RegistryError::Timeout { host: host(), what: "accept a connection", seconds: wait.as_secs() })
            }
            Ok(Err(source)) => Err(RegistryError::Connect { host: host(), source }),
            Ok(Ok(stream)) => {
                // Requests are small and wait for an answer: sending them late would only cost time.
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
        }
    }

    async fn secure(
        &self,
        origin: &Origin,
        stream: TcpStream,
        settings: Arc<rustls::ClientConfig>,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, RegistryError> {
        let host = || origin.authority();
        let name = ServerName::try_from(origin.host.to_string())
            .map_err(|_| RegistryError::Protocol { host: host(), what: "its name cannot be used with TLS" })?;
        let wait = self.timeouts.handshake;
        match timeout(wait, TlsConnector::from(settings).connect(name, stream)).await {
            Err(_) => {
                Err(RegistryError::Timeout { host: host(), what: "finish the TLS handshake", seconds: wait.as_secs() })
            }
            Ok(Err(source)) => Err(RegistryError::Tls { host: host(), problem: tls::problem_of(&source), source }),
            Ok(Ok(stream)) => Ok(stream),
        }
    }
}

/// The proxies by the configuration or the environment; a variable that makes no sense is told once and left out.
fn proxies(config: &ClientConfig) -> Proxies {
    let configured = config.proxies.clone().map_or_else(Proxies::from_environment, Ok);
    configured.unwrap_or_else(|error| {
        tracing::warn!(error = %error, "the environment names a proxy that cannot be used");
        Proxies::default()
    })
}

/// Connects to the addresses in order, each with a head start over the next.
async fn race(addresses: Vec<IpAddr>, port: u16) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    // Dropping the set ends the attempts that lost.
    let mut running = JoinSet::new();
    let mut last_error = io::Error::new(io::ErrorKind::AddrNotAvailable, "no address may be used");
    loop {
        let has_more = match waiting.next() {
            Some(address) => {
                running.spawn(TcpStream::connect(SocketAddr::new(address, port)));
                waiting.len() > 0
            }
            None => false,
        };
        tokio::select! {
            finished = running.join_next() => match finished {
                None => return Err(last_error),
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last_error = error,
                Some(Err(error)) => last_error = io::Error::other(error),
            },
            () = tokio::time::sleep(HEAD_START), if has_more => {}
        }
    }
}

async fn handshake<T>(origin: &Origin, stream: T, proxy: Option<Proxy>) -> Result<Connection, RegistryError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX);
    let (sender, connection) = builder
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|source| RegistryError::Broken { host: origin.authority(), source: Some(source) })?;
    let task = tokio::spawn(async move {
        // What goes wrong is told to whoever waits for an answer.
        let _ = connection.await;
    });
    Ok(Connection { sender, proxy, task })
}
