//! Proxies: what they see, and whom they are not asked for.

mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use baleen_oci::{Platform, Reference};
use baleen_registry::{Client, ClientConfig, Credentials, InsecureRegistries, Proxies, RegistryError};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::PrivateKeyDer;
use support::stub::{Image, Reply, Stub, quick_config};
use support::{Scratch, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A proxy for tunnels that keeps what passed through it.
struct Tunnels {
    port: u16,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Tunnels {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tunnels {
    /// Leads to 127.0.0.1 at the port asked for, whatever the host, after answering with `status`.
    async fn start(status: &'static str) -> Tunnels {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = heads.clone();
        let task = tokio::spawn(async move {
            let mut tunnels = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tunnels.spawn(lead(stream, status, kept.clone()));
            }
        });
        Tunnels { port, heads, task }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn lead(mut client: TcpStream, status: &str, heads: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    let port: u16 = head.split(' ').nth(1).unwrap().rsplit(':').next().unwrap().parse().unwrap();
    heads.lock().unwrap().push(head);
    client.write_all(format!("HTTP/1.1 {status}\r\nVia: test\r\n\r\n").as_bytes()).await.unwrap();
    if status.starts_with("200") {
        let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // Ends with either side.
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

fn certificates() -> (String, ServerConfig) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["registry.test".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let settings = builder.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (pem, settings)
}

/// Settings under which no name leads anywhere: only the proxy knows the way.
fn lost() -> ClientConfig {
    let mut config = quick_config();
    (config.hosts_file, config.resolv_conf) = ("/nonexistent".into(), "/nonexistent".into());
    config
}

async fn resolve(config: ClientConfig, host: &str) -> Result<(), RegistryError> {
    let reference = Reference::parse(&format!("{host}/app:1")).unwrap();
    let client = Client::new(config).repository(reference.repository(), Credentials::Anonymous);
    client.resolve(&reference, &Platform::host()).await.map(drop)
}

#[test]
fn tls_goes_through_a_tunnel_and_is_verified_at_its_end() {
    run(async {
        let (authority, settings) = certificates();
        let image = Image::new(1);
        let stub = Stub::start_tls(settings, move |asked| image.reply(asked, "app", "1").unwrap()).await;
        let scratch = Scratch::new("proxies");
        let bundle = scratch.path().join("bundle.crt");
        fs::write(&bundle, authority).unwrap();
        let host = format!("registry.test:{}", stub.port());
        let proxy = Tunnels::start("200 Connected").await;
        let mut config = lost();
        config.ca_bundle = Some(bundle);
        config.proxies = Some(Proxies::new("", &format!("http://me:secret@127.0.0.1:{}", proxy.port), "").unwrap());
        resolve(config.clone(), &host).await.unwrap();
        let [head] = &proxy.heads()[..] else { panic!("one tunnel serves the whole pull") };
        assert!(head.starts_with(&format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n")), "{head}");
        assert!(head.contains("\r\nProxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{head}");
        assert!(stub.asked().iter().all(|asked| asked.header("proxy-authorization").is_none()));

        let error = resolve(config, &format!("other.test:{}", stub.port())).await.unwrap_err();
        assert!(matches!(error, RegistryError::Tls { .. }), "the name at the end counts: {error}");
    });
}

#[test]
fn a_proxy_that_refuses_is_named_and_its_password_is_not() {
    run(async {
        let proxy = Tunnels::start("407 Proxy Authentication Required").await;
        let mut config = lost();
        config.proxies = Some(Proxies::new("", &format!("http://me:secret@127.0.0.1:{}", proxy.port), "").unwrap());
        let scratch = Scratch::new("proxies");
        let bundle = scratch.path().join("bundle.crt");
        fs::write(&bundle, certificates().0).unwrap();
        config.ca_bundle = Some(bundle);
        let error = resolve(config, "registry.test").await.unwrap_err();
        assert!(matches!(error, RegistryError::Proxy { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("407 Proxy Authentication Required") && !text.contains("secret"), "{text}");
    });
}

#[test]
fn plain_requests_name_the_whole_address_to_the_proxy() {
    run(async {
        let image = Image::new(1);
        let proxy = Stub::start(move |asked| {
            let mut inner = asked.clone();
            inner.path = asked.path.strip_prefix("http://registry.test").unwrap_or("").to_owned();
            image.reply(&inner, "app", "1").unwrap_or_else(|| Reply::new(400, ""))
        })
        .await;
        let mut config = lost();
        config.insecure_registries = InsecureRegistries::parse(["registry.test"]).unwrap();
        config.proxies = Some(Proxies::new(&format!("u:p@127.0.0.1:{}", proxy.port()), "", "").unwrap());
        // Only plain HTTP has a proxy here: TLS is tried directly first, at a port where nobody is.
        let scratch = Scratch::new("proxies");
        config.hosts_file = scratch.path().join("hosts");
        fs::write(&config.hosts_file, "127.0.0.1 registry.test\n").unwrap();
        resolve(config, "registry.test").await.unwrap();
        let asked = proxy.asked();
        assert!(asked.iter().all(|asked| asked.path.starts_with("http://registry.test/v2/app/")));
        assert_eq!(asked[0].header("host"), Some("registry.test"));
        assert_eq!(asked[0].header("proxy-authorization"), Some("Basic dTpw"));
    });
}

#[test]
fn this_machine_and_exceptions_are_reached_without_the_proxy() {
    run(async {
        let image = Image::new(1);
        let stub = Stub::start(move |asked| image.reply(asked, "app", "1").unwrap()).await;
        let proxy = Stub::start(|_| Reply::new(400, "")).await;
        let address = format!("127.0.0.1:{}", proxy.port());
        let mut config = lost();
        config.proxies = Some(Proxies::new(&address, &address, "").unwrap());
        resolve(config.clone(), &format!("127.0.0.1:{}", stub.port())).await.unwrap();
        resolve(config.clone(), &format!("localhost:{}", stub.port())).await.unwrap();
        let scratch = Scratch::new("proxies");
        config.hosts_file = scratch.path().join("hosts");
        fs::write(&config.hosts_file, "127.0.0.1 registry.test\n").unwrap();
        let host = format!("registry.test:{}", stub.port());
        config.insecure_registries = InsecureRegistries::parse([&host]).unwrap();
        config.proxies = Some(Proxies::new(&address, &address, "registry.test").unwrap());
        resolve(config.clone(), &host).await.unwrap();
        // Insecure by its address: nobody could check that address behind a proxy.
        config.insecure_registries = InsecureRegistries::parse(["127.0.0.0/8"]).unwrap();
        config.proxies = Some(Proxies::new(&address, &address, "").unwrap());
        resolve(config, &host).await.unwrap();
        assert_eq!(proxy.accepted_connections(), 0);
    });
}
