//! Certificates: whom the client believes, and what it says when it does not.

mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use baleen_oci::{Platform, Reference};
use baleen_registry::{
    Client, ClientConfig, Credentials, InsecureRegistries, RegistryError, ResolvedImage, Secret, TlsProblem,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::stub::{Image, Reply, Stub, quick_config};
use support::{Scratch, run};

/// An authority that nobody knows.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Authority {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Authority::named(&format!("authority {}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    fn named(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Authority { issuer: Issuer::new(params, key), pem, der }
    }

    /// A certificate for `name` and its key.
    fn issue(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn server(&self, name: &str) -> ServerConfig {
        server_with(self.issue(name, |_| {}), None)
    }
}

fn server_with((certificate, key): (rcgen::Certificate, KeyPair), clients_of: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = match clients_of {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    builder.with_single_cert(vec![certificate.der().clone()], key).unwrap()
}

/// A registry over TLS at `registry.test`, and settings that lead there and trust nobody.
struct Fixture {
    stub: Stub,
    scratch: Scratch,
    config: ClientConfig,
}

impl Fixture {
    async fn new(settings: ServerConfig) -> Fixture {
        let image = Image::new(1);
        let stub = Stub::start_tls(settings, move |asked| {
            image.reply(asked, "app", "1").unwrap_or_else(|| Reply::error(404, "MANIFEST_UNKNOWN", ""))
        })
        .await;
        Fixture::around(stub)
    }

    fn around(stub: Stub) -> Fixture {
        let scratch = Scratch::new("tls");
        let hosts = scratch.path().join("hosts");
        fs::write(&hosts, "127.0.0.1 registry.test plain.test\n").unwrap();
        let bundle = scratch.path().join("bundle.crt");
        fs::write(&bundle, Authority::new().pem).unwrap();
        let mut config = quick_config();
        config.hosts_file = hosts;
        config.resolv_conf = "/nonexistent".into();
        config.ca_bundle = Some(bundle);
        config.certs_dirs = vec![scratch.path().join("certs.d")];
        Fixture { stub, scratch, config }
    }

    fn host(&self) -> String {
        format!("registry.test:{}", self.stub.port())
    }

    fn put_cert(&self, name: &str, text: &str) {
        let dir = self.scratch.path().join("certs.d").join(self.host());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), text).unwrap();
    }

    async fn resolve(&self) -> Result<ResolvedImage, RegistryError> {
        self.resolve_at(&self.host()).await
    }

    async fn resolve_at(&self, host: &str) -> Result<ResolvedImage, RegistryError> {
        let reference = Reference::parse(&format!("{host}/app:1")).unwrap();
        let credentials = Credentials::Basic { username: "user".into(), password: Secret::new("pass") };
        let client = Client::new(self.config.clone()).repository(reference.repository(), credentials);
        client.resolve(&reference, &Platform::host()).await
    }

    async fn problem(&self) -> TlsProblem {
        match self.resolve().await {
            Err(RegistryError::Tls { problem, .. }) => problem,
            other => panic!("expected a failed handshake, got {other:?}"),
        }
    }
}

#[test]
fn a_private_authority_is_refused_then_believed_by_certs_d_or_by_the_bundle_or_by_insecure_registries() {
    run(async {
        let authority = Authority::new();
        let mut fixture = Fixture::new(authority.server("registry.test")).await;
        let error = fixture.resolve().await.unwrap_err();
        assert!(matches!(error, RegistryError::Tls { problem: TlsProblem::UnknownAuthority, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(&format!("certs.d/{}/ca.crt", fixture.host())), "says where it would go: {text}");
        assert!(fixture.stub.asked().is_empty(), "nothing was said to a stranger");

        fixture.put_cert("ca.crt", &authority.pem);
        fixture.resolve().await.unwrap();

        fixture.config.certs_dirs.clear();
        assert_eq!(fixture.problem().await, TlsProblem::UnknownAuthority);
        fixture.config.insecure_registries = InsecureRegistries::parse([fixture.host()]).unwrap();
        fixture.resolve().await.unwrap();

        fixture.config.insecure_registries = InsecureRegistries::default();
        fs::write(fixture.config.ca_bundle.as_ref().unwrap(), &authority.pem).unwrap();
        fixture.resolve().await.unwrap();
    });
}

#[test]
fn an_authority_that_was_made_anew_under_its_old_name_is_unknown() {
    run(async {
        let (old, new) = (Authority::named("one name"), Authority::named("one name"));
        let fixture = Fixture::new(new.server("registry.test")).await;
        fixture.put_cert("ca.crt", &old.pem);
        assert_eq!(fixture.problem().await, TlsProblem::UnknownAuthority);
    });
}

#[test]
fn a_network_that_is_listed_is_insecure_by_address_and_by_name() {
    run(async {
        let mut fixture = Fixture::new(Authority::new().server("registry.test")).await;
        fixture.config.insecure_registries = InsecureRegistries::parse(["127.0.0.0/8"]).unwrap();
        fixture.resolve().await.unwrap();
        // One address outside is enough to want TLS: else who answers for the name could choose.
        fs::write(&fixture.config.hosts_file, "127.0.0.1 registry.test\n192.0.2.1 registry.test\n").unwrap();
        assert_eq!(fixture.problem().await, TlsProblem::UnknownAuthority);
    });
}

#[test]
fn no_authorities_at_all_is_an_error_that_says_so() {
    run(async {
        let mut fixture = Fixture::new(Authority::new().server("registry.test")).await;
        fs::write(fixture.config.ca_bundle.as_ref().unwrap(), "").unwrap();
        let error = fixture.resolve().await.unwrap_err();
        assert!(matches!(error, RegistryError::NoCertificateAuthorities { .. }), "{error}");
        fixture.config.ca_bundle = Some("/nonexistent".into());
        let error = fixture.resolve().await.unwrap_err();
        assert!(matches!(error, RegistryError::CertificateFile { .. }), "a file that was named must be there: {error}");
    });
}

#[test]
fn a_certificate_for_another_name_or_another_time_is_told_apart() {
    run(async {
        let authority = Authority::new();
        let expired = |params: &mut CertificateParams| params.not_after = date_time_ymd(2001, 1, 1);
        let future = |params: &mut CertificateParams| params.not_before = date_time_ymd(4000, 1, 1);
        for (settings, problem) in [
            (authority.server("other.test"), TlsProblem::WrongName),
            (server_with(authority.issue("registry.test", expired), None), TlsProblem::NotValidNow),
            (server_with(authority.issue("registry.test", future), None), TlsProblem::NotValidNow),
        ] {
            let fixture = Fixture::new(settings).await;
            fixture.put_cert("ca.crt", &authority.pem);
            assert_eq!(fixture.problem().await, problem);
        }
    });
}

#[test]
fn a_registry_without_tls_is_never_spoken_to_in_the_clear() {
    run(async {
        let stub = Stub::start(|_| Reply::new(200, "{}")).await;
        let fixture = Fixture::around(stub);
        let error = fixture.resolve().await.unwrap_err();
        assert!(matches!(error, RegistryError::Tls { problem: TlsProblem::NotTls, .. }), "{error:?}");
        assert!(error.to_string().contains("insecure-registries"));
        assert!(fixture.stub.asked().is_empty());
    });
}

#[test]
fn an_insecure_registry_without_tls_is_spoken_to_in_the_clear() {
    run(async {
        let image = Image::new(1);
        let stub = Stub::start(move |asked| image.reply(asked, "app", "1").unwrap()).await;
        let mut fixture = Fixture::around(stub);
        fixture.config.insecure_registries = InsecureRegistries::parse([fixture.host()]).unwrap();
        fixture.resolve().await.unwrap();
    });
}

#[test]
fn a_client_certificate_is_shown_where_it_was_put() {
    run(async {
        let authority = Authority::new();
        let settings = server_with(authority.issue("registry.test", |_| {}), Some(&authority));
        let fixture = Fixture::new(settings).await;
        fixture.put_cert("ca.crt", &authority.pem);
        // With TLS 1.3 the refusal comes after the handshake, as the end of the connection or as an alert.
        fixture.resolve().await.unwrap_err();
        assert!(fixture.stub.asked().is_empty());

        let (certificate, key) = authority.issue("client", |_| {});
        fixture.put_cert("client.cert", &certificate.pem());
        let error = fixture.resolve().await.unwrap_err();
        assert!(
            matches!(&error, RegistryError::CertificateFile { path, .. } if path.ends_with("client.key")),
            "{error}"
        );
        fixture.put_cert("client.key", &key.serialize_pem());
        fixture.resolve().await.unwrap();
    });
}

#[test]
fn a_certificate_file_that_is_none_is_named() {
    run(async {
        let fixture = Fixture::new(Authority::new().server("registry.test")).await;
        fixture.put_cert("ca.crt", "not a certificate");
        let error = fixture.resolve().await.unwrap_err();
        assert!(matches!(&error, RegistryError::CertificateFile { path, .. } if path.ends_with("ca.crt")), "{error}");
    });
}

#[test]
fn nothing_leads_from_tls_to_plain_http() {
    run(async {
        let authority = Authority::new();
        let plain = Stub::start(|_| Reply::new(200, "{}")).await;
        let port = plain.port();
        let realm = format!("Bearer realm=\"http://plain.test:{port}/token\"");
        let redirecting = Stub::start_tls(authority.server("registry.test"), move |_| {
            Reply::redirect(format!("http://plain.test:{port}/"))
        })
        .await;
        let challenging = Stub::start_tls(authority.server("registry.test"), move |_| {
            Reply::new(401, "").header("WWW-Authenticate", realm.clone())
        })
        .await;
        for stub in [redirecting, challenging] {
            let mut fixture = Fixture::around(stub);
            fixture.put_cert("ca.crt", &authority.pem);
            let error = fixture.resolve().await.unwrap_err();
            assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
            // Not even if the other side is insecure by the user's word.
            fixture.config.insecure_registries = InsecureRegistries::parse([format!("plain.test:{port}")]).unwrap();
            let error = fixture.resolve().await.unwrap_err();
            assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
        }
        assert!(plain.asked().is_empty());
    });
}

#[test]
fn the_target_of_a_redirect_is_verified_for_its_own_name() {
    run(async {
        let (authority, other_authority) = (Authority::new(), Authority::new());
        let other = Stub::start_tls(other_authority.server("plain.test"), |_| Reply::new(200, "{}")).await;
        let port = other.port();
        let stub = Stub::start_tls(authority.server("registry.test"), move |_| {
            Reply::redirect(format!("https://plain.test:{port}/"))
        })
        .await;
        let fixture = Fixture::around(stub);
        fixture.put_cert("ca.crt", &authority.pem);
        let error = fixture.resolve().await.unwrap_err();
        assert!(
            matches!(&error, RegistryError::Tls { host, problem: TlsProblem::UnknownAuthority, .. } if host.starts_with("plain.test"))
        );
        assert!(other.asked().is_empty());
    });
}
