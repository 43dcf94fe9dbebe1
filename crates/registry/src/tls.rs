//! TLS settings: whom to trust, and what to show.
//!
//! T1  Roots are the system's bundle (or `SSL_CERT_FILE`) and the host's `certs.d/HOST/*.crt`. None at all is an error
//!     that says so, before any byte is sent.
//! T2  Verification is off for a host only if the caller's trust says so, never for all.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::config::ClientConfig;
use crate::error::{RegistryError, TlsProblem};
use crate::url::Origin;

/// Where systems keep their authorities, the first that exists wins: Debian and Alpine, Fedora, OpenSUSE, others.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The largest file of certificates or keys that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// How many files of one `certs.d` folder are looked at.
const FILES_MAX: usize = 64;

/// Makes TLS settings for hosts.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    certs_dirs: Vec<PathBuf>,
    ca_bundle: Option<PathBuf>,
    /// Shared while any connection lives, read anew otherwise: an idle daemon keeps no certificates.
    system_roots: Mutex<Weak<RootCertStore>>,
}

/// The files that concern one host.
#[derive(Default)]
struct HostFiles {
    authorities: Vec<CertificateDer<'static>>,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

impl Tls {
    pub(crate) fn new(config: &ClientConfig) -> Tls {
        let ca_bundle = config.ca_bundle.clone().or_else(|| std::env::var_os("SSL_CERT_FILE").map(PathBuf::from));
        Tls {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            certs_dirs: config.certs_dirs.clone(),
            ca_bundle: ca_bundle.filter(|path| !path.as_os_str().is_empty()),
            system_roots: Mutex::default(),
        }
    }

    /// The settings for connections to `origin`; `verified` is whether its certificate counts.
    ///
    /// # Errors
    /// `NoCertificateAuthorities` (T1); `CertificateFile` if a file that is there cannot be used.
    pub(crate) fn settings(&self, origin: &Origin, verified: bool) -> Result<rustls::ClientConfig, RegistryError> {
        let host_files = self.host_files(origin)?;
        let builder = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("the provider supports both versions");
        let builder = match verified {
            true => builder.with_root_certificates(self.roots(origin, host_files.authorities)?),
            false => {
                let verifier = Arc::new(Unverified { provider: self.provider.clone() });
                builder.dangerous().with_custom_certificate_verifier(verifier)
            }
        };
        let mut settings = match host_files.identity {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).map_err(|error| {
                RegistryError::CertificateFile { path: self.certs_dir(origin), why: error.to_string() }
            })?,
        };
        settings.alpn_protocols = vec![b"http/1.1".to_vec()];
        // A pull opens a handful of connections to a host: the default cache of 256 sessions is for browsers.
        settings.resumption = rustls::client::Resumption::in_memory_sessions(4);
        Ok(settings)
    }

    /// Random bytes, from the kernel.
    pub(crate) fn random(&self) -> Option<[u8; 8]> {
        let mut bytes = [0; 8];
        self.provider.secure_random.fill(&mut bytes).ok()?;
        Some(bytes)
    }

    fn roots(
        &self,
        origin: &Origin,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Arc<RootCertStore>, RegistryError> {
        let system = self.system_roots()?;
        let mut roots = system;
        if !authorities.is_empty() {
            let mut own = RootCertStore::clone(&roots);
            for authority in authorities {
                own.add(authority).map_err(|error| RegistryError::CertificateFile {
                    path: self.certs_dir(origin),
                    why: error.to_string(),
                })?;
            }
            roots = Arc::new(own);
        }
        match roots.is_empty() {
            true => Err(RegistryError::NoCertificateAuthorities {
                host: origin.authority(),
                certs_dir: self.certs_dir(origin),
            }),
            false => Ok(roots),
        }
    }

    fn system_roots(&self) -> Result<Arc<RootCertStore>, RegistryError> {
        let mut cached = self.system_roots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = cached.upgrade() {
            return Ok(roots);
        }
        let mut roots = RootCertStore::empty();
        let bundle = match &self.ca_bundle {
            Some(path) => Some((path.as_path(), read_file(path)?)),
            None => SYSTEM_BUNDLES.iter().map(Path::new).find_map(|path| Some((path, read_file(path).ok()?))),
        };
        if let Some((path, pem)) = bundle {
            // Bundles hold old certificates that no verifier takes: those are passed over.
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
            tracing::debug!(path = %path.display(), count = roots.len(), "read certificate authorities");
        }
        let roots = Arc::new(roots);
        *cached = Arc::downgrade(&roots);
        Ok(roots)
    }

    /// The folder that a message tells the user to put files into: the last, which is Docker's.
    fn certs_dir(&self, origin: &Origin) -> PathBuf {
        let base = self.certs_dirs.last().cloned().unwrap_or_else(|| "/etc/docker/certs.d".into());
        base.join(origin.authority())
    }

    fn host_files(&self, origin: &Origin) -> Result<HostFiles, RegistryError> {
        let mut found = HostFiles::default();
        let authority = origin.authority();
        let with_port = format!("{authority}:{}", origin.port);
        let names = match origin.port == origin.scheme.default_port() {
            true => vec![authority, with_port],
            false => vec![authority],
        };
        for dir in self.certs_dirs.iter().flat_map(|base| names.iter().map(|name| base.join(name))) {
            read_certs_dir(&dir, &mut found)?;
        }
        Ok(found)
    }
}

fn read_certs_dir(dir: &Path, found: &mut HostFiles) -> Result<(), RegistryError> {
    // A folder that is not there, or that we may not read, holds nothing for us.
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    let mut paths: Vec<PathBuf> = entries.flatten().take(FILES_MAX).map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match extension {
            Some("crt") => found.authorities.extend(read_certificates(&path)?),
            Some("cert") if found.identity.is_none() => {
                let key_path = path.with_extension("key");
                let key = PrivateKeyDer::from_pem_slice(&read_file(&key_path)?).map_err(|error| {
                    RegistryError::CertificateFile { path: key_path.clone(), why: error.to_string() }
                })?;
                found.identity = Some((read_certificates(&path)?, key));
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let unusable = |why: String| RegistryError::CertificateFile { path: path.to_owned(), why };
    let pem = read_file(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|error| unusable(error.to_string()))?;
    match certificates.is_empty() {
        true => Err(unusable("it holds no certificate".into())),
        false => Ok(certificates),
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, RegistryError> {
    let unusable = |why: String| RegistryError::CertificateFile { path: path.to_owned(), why };
    let file = fs::File::open(path).map_err(|error| unusable(error.to_string()))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unusable(error.to_string()))?;
    match bytes.len() as u64 > FILE_BYTES_MAX {
        true => Err(unusable("it is larger than 4 MiB".into())),
        false => Ok(bytes),
    }
}

/// The likely cause of a failed handshake.
pub(crate) fn problem_of(error: &io::Error) -> TlsProblem {
    use CertificateError as C;
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return TlsProblem::Other;
    };
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            // A bad signature is that of another authority of the same name, such as one that was made anew.
            C::UnknownIssuer | C::BadSignature => TlsProblem::UnknownAuthority,
            C::Expired | C::ExpiredContext { .. } | C::NotValidYet | C::NotValidYetContext { .. } => {
                TlsProblem::NotValidNow
            }
            C::NotValidForName | C::NotValidForNameContext { .. } => TlsProblem::WrongName,
            _ => TlsProblem::BadCertificate,
        },
        rustls::Error::InvalidMessage(_) => TlsProblem::NotTls,
        rustls::Error::AlertReceived(_) => TlsProblem::Refused,
        _ => TlsProblem::Other,
    }
}

/// Takes any certificate, but still wants the other side to hold its key.
#[derive(Debug)]
struct Unverified {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
