//! Host names, with a name server that answers as it is told.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use baleen_oci::{Platform, Reference};
use baleen_registry::{Client, ClientConfig, Credentials, InsecureRegistries, RegistryError, ResolveProblem};
use support::stub::{Image, Reply, Stub, quick_config};
use support::{Scratch, run};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

/// What the server does with a question.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Says that the name is 127.0.0.1.
    Known,
    /// Says so over TCP, after a truncated answer.
    KnownOverTcp,
    /// Says that the name is an alias of another, which is 127.0.0.1.
    Alias,
    /// First answers another question, with an address that leads nowhere.
    ForgedFirst,
    NoSuchName,
    NoAddress,
    Failure,
    Silence,
}

type Behaviour = dyn Fn(&str) -> Act + Send + Sync;

struct NameServer {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl NameServer {
    async fn start(behaviour: impl Fn(&str) -> Act + Send + Sync + 'static) -> NameServer {
        // The same port for both: another process may hold one of them, so a few are tried.
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let tasks =
            [tokio::spawn(serve_udp(udp, behaviour.clone(), asked.clone())), tokio::spawn(serve_tcp(tcp, behaviour))];
        NameServer { address, asked, tasks }
    }

    /// The names that were asked for, each once, in order.
    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.dedup();
        asked
    }
}

async fn serve_udp(socket: UdpSocket, behaviour: Arc<Behaviour>, asked: Arc<Mutex<Vec<String>>>) {
    let mut buffer = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
        let question = &buffer[..length];
        let name = name_of(question);
        asked.lock().unwrap().push(name.clone());
        let act = behaviour(&name);
        if act == Act::ForgedFirst {
            let mut forged = answer(question, Act::Known);
            forged[0] ^= 0xff;
            let last = forged.len() - 1;
            forged[last] = 99;
            socket.send_to(&forged, client).await.unwrap();
        }
        if act != Act::Silence {
            socket.send_to(&answer(question, act), client).await.unwrap();
        }
    }
}

async fn serve_tcp(listener: TcpListener, behaviour: Arc<Behaviour>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await.unwrap();
        assert!(behaviour(&name_of(&question)) == Act::KnownOverTcp);
        let answer = answer(&question, Act::Known);
        stream.write_u16(answer.len() as u16).await.unwrap();
        stream.write_all(&answer).await.unwrap();
    }
}

fn name_of(question: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8(question[at + 1..end].to_vec()).unwrap());
        at = end;
    }
    labels.join(".")
}

fn answer(question: &[u8], act: Act) -> Vec<u8> {
    let is_v4 = question[question.len() - 3] == 1;
    let mut message = question.to_vec();
    message[2] = 0x81;
    message[3] = match act {
        Act::NoSuchName => 0x83,
        Act::Failure => 0x82,
        _ => 0x80,
    };
    let mut record = |owner: &[u8], record_type: u8, data: &[u8]| {
        message[7] += 1;
        message.extend_from_slice(owner);
        message.extend([0, record_type, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
        message.extend_from_slice(data);
    };
    match act {
        Act::Known | Act::ForgedFirst if is_v4 => record(&[0xc0, 12], 1, &[127, 0, 0, 1]),
        Act::Alias => {
            record(&[0xc0, 12], 5, b"\x04real\x04test\0");
            if is_v4 {
                record(b"\x04real\x04test\0", 1, &[127, 0, 0, 1]);
            }
        }
        Act::KnownOverTcp => message[2] |= 2,
        _ => {}
    }
    message
}

struct Fixture {
    stub: Stub,
    scratch: Scratch,
    config: ClientConfig,
}

impl Fixture {
    async fn new(resolv_conf: &str) -> Fixture {
        let image = Image::new(1);
        let stub = Stub::start(move |asked| {
            image.reply(asked, "app", "1").unwrap_or_else(|| Reply::error(404, "MANIFEST_UNKNOWN", ""))
        })
        .await;
        let scratch = Scratch::new("names");
        let mut config = quick_config();
        config.hosts_file = scratch.path().join("hosts");
        config.resolv_conf = scratch.path().join("resolv.conf");
        fs::write(&config.resolv_conf, resolv_conf).unwrap();
        Fixture { stub, scratch, config }
    }

    /// Pulls from `host`, which is listed as insecure: names are what is tested here.
    async fn pull(&self, host: &str) -> Result<(), RegistryError> {
        let host = format!("{host}:{}", self.stub.port());
        let mut config = self.config.clone();
        config.insecure_registries = InsecureRegistries::parse([&host]).unwrap();
        let reference = Reference::parse(&format!("{host}/app:1")).unwrap();
        let client = Client::new(config).repository(reference.repository(), Credentials::Anonymous);
        client.resolve(&reference, &Platform::host()).await.map(drop)
    }

    async fn problem(&self, host: &str) -> ResolveProblem {
        match self.pull(host).await {
            Err(RegistryError::Resolve { problem, .. }) => problem,
            other => panic!("expected a name that leads nowhere, got {other:?}"),
        }
    }
}

fn server_line(server: &NameServer) -> String {
    format!("nameserver [{}]:{}\n", server.address.ip(), server.address.port())
}

#[test]
fn addresses_and_localhost_need_no_files_and_no_servers() {
    run(async {
        let mut fixture = Fixture::new("").await;
        (fixture.config.hosts_file, fixture.config.resolv_conf) = ("/nonexistent".into(), "/nonexistent".into());
        for host in ["127.0.0.1", "localhost", "LOCALHOST", "a.localhost"] {
            fixture.pull(host).await.unwrap_or_else(|error| panic!("{host}: {error}"));
        }
    });
}

#[test]
fn names_in_the_hosts_file_win() {
    run(async {
        let fixture = Fixture::new("").await;
        let text = "# 127.0.0.9 registry.test\n\n127.0.0.1\tother Registry.TEST # the one\n::1 ip6\nnonsense\n";
        fs::write(fixture.scratch.path().join("hosts"), text).unwrap();
        fixture.pull("registry.test").await.unwrap();
    });
}

#[test]
fn a_name_server_is_asked_and_its_aliases_are_followed() {
    run(async {
        for act in [Act::Known, Act::Alias, Act::KnownOverTcp, Act::ForgedFirst] {
            let server = NameServer::start(move |_| act).await;
            let fixture = Fixture::new(&format!("{}options timeout:2\n", server_line(&server))).await;
            fixture.pull("registry.test").await.unwrap();
            assert_eq!(server.asked()[0], "registry.test");
        }
    });
}

#[test]
fn search_domains_come_before_the_name_or_after_it_by_its_dots() {
    run(async {
        let server = NameServer::start(|name| match name {
            "registry.site.test" | "a.b.site.test" => Act::Known,
            _ => Act::NoSuchName,
        })
        .await;
        let fixture = Fixture::new(&format!("search other.test site.test\n{}", server_line(&server))).await;
        fixture.pull("registry.localdomainless").await.unwrap_err();
        let asked = server.asked();
        assert_eq!(asked[0], "registry.localdomainless", "a name with a dot is asked for as it is first");
        assert_eq!(asked[1], "registry.localdomainless.other.test");
        server.asked.lock().unwrap().clear();
        fixture.pull("a.b").await.unwrap();
        assert_eq!(
            server.asked(),
            ["a.b", "a.b.other.test", "a.b.site.test", "a.b", "a.b.other.test", "a.b.site.test"]
        );
        let dotted = Fixture::new(&format!("options ndots:2\nsearch site.test\n{}", server_line(&server))).await;
        server.asked.lock().unwrap().clear();
        dotted.pull("a.b").await.unwrap();
        assert_eq!(server.asked()[0], "a.b.site.test");
    });
}

#[test]
fn the_next_server_is_asked_when_one_fails_or_is_silent() {
    run(async {
        for act in [Act::Failure, Act::Silence] {
            let bad = NameServer::start(move |_| act).await;
            let good = NameServer::start(|_| Act::Known).await;
            let lines = format!("{}{}options timeout:1\n", server_line(&bad), server_line(&good));
            Fixture::new(&lines).await.pull("registry.test").await.unwrap();
            assert!(!bad.asked().is_empty());
        }
    });
}

#[test]
fn the_reasons_for_no_address_are_told_apart() {
    run(async {
        for (act, problem) in [
            (Act::NoSuchName, ResolveProblem::NoSuchHost),
            (Act::NoAddress, ResolveProblem::NoAddress),
            (Act::Failure, ResolveProblem::ServerFailure),
            (Act::Silence, ResolveProblem::Timeout),
        ] {
            let server = NameServer::start(move |_| act).await;
            let fixture = Fixture::new(&format!("{}options timeout:1 attempts:1\n", server_line(&server))).await;
            assert_eq!(fixture.problem("registry.test").await, problem);
        }
        let fixture = Fixture::new("").await;
        assert_eq!(
            fixture.problem("300.1.2.3").await,
            ResolveProblem::BadName,
            "what looks like an address is not asked for"
        );
    });
}
