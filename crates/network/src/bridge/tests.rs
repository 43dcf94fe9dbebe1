//! Each test has network namespaces of its own, entered by its own threads: the machine's network is never touched.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::*;
use crate::port::{PortRequest, Protocol};

/// Runs `work` on a thread in a new network namespace whose loopback is up.
fn in_new_namespace(test: &str, work: impl FnOnce(&Path) + Send) {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "may not be skipped here");
        eprintln!("SKIPPED: {test}: needs root");
        return;
    }
    let dir = std::env::temp_dir().join(format!("baleen-network-{}-{test}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    let outcome = std::thread::scope(|scope| {
        let dir = &dir;
        scope
            .spawn(move || {
                new_namespace();
                work(dir);
            })
            .join()
    });
    let _ = fs::remove_dir_all(&dir);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Gives this thread a network namespace of its own.
fn new_namespace() {
    #[allow(deprecated, reason = "what is deprecated about it is leaving a shared table of descriptors")]
    rustix::thread::unshare(UnshareFlags::NEWNET).unwrap();
    // A new namespace may begin with the settings of the machine's.
    sysctl::write("ipv4/ip_forward", "0").unwrap();
    loopback_up();
}

fn loopback_up() {
    let mut netlink = Netlink::open().unwrap();
    let lo = link::link(&mut netlink, "lo").unwrap().unwrap();
    link::set_up(&mut netlink, lo.index, "lo").unwrap();
}

fn own_namespace() -> OwnedFd {
    fs::File::open("/proc/thread-self/ns/net").unwrap().into()
}

/// A namespace as a container has it: with nothing but its loopback.
fn container_namespace() -> OwnedFd {
    std::thread::spawn(|| {
        new_namespace();
        own_namespace()
    })
    .join()
    .unwrap()
}

fn inside<T: Send>(namespace: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope
            .spawn(move || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            })
            .join()
            .unwrap()
    })
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn link_names() -> Vec<String> {
    link::links(&mut Netlink::open().unwrap()).unwrap().into_iter().map(|link| link.name).collect()
}

fn id(digit: char) -> String {
    std::iter::repeat_n(digit, 64).collect()
}

fn publish(host: &str, host_port: &str, container_port: u16) -> EndpointRequest {
    let port = PortRequest::new((container_port, Protocol::Tcp), host, host_port).unwrap();
    EndpointRequest { ports: vec![port], mac: None }
}

/// Answers each connection with the client's address.
fn serve(namespace: &OwnedFd, address: &str) {
    let listener = inside(namespace, || TcpListener::bind(address).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
}

fn ask(address: &str) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect_timeout(&address.parse().unwrap(), Duration::from_millis(700))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Answers each datagram with its sender's address.
fn echo(namespace: &OwnedFd, address: &str) {
    let socket = inside(namespace, || UdpSocket::bind(address).unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

fn send(from: &str, to: &str) -> String {
    let socket = UdpSocket::bind(from).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"who am I").unwrap();
    let mut bytes = [0; 64];
    let count = socket.recv(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..count]).into_owned()
}

/// Joins this namespace and a new one, which is another host of the same segment: 10.77.0.1 here, 10.77.0.2 there.
fn neighbour() -> OwnedFd {
    let there = container_namespace();
    let mut netlink = Netlink::open().unwrap();
    link::create_bridge(&mut netlink, "lan", [2, 0, 0, 0, 0, 9], 1500).unwrap();
    let lan = link::link(&mut netlink, "lan").unwrap().unwrap().index;
    link::create_pair(&mut netlink, "lan-port", lan, there.as_fd(), [2, 0, 0, 0, 0, 2], 1500).unwrap();
    link::add_address(&mut netlink, lan, "lan", "10.77.0.1".parse().unwrap(), 24).unwrap();
    let port = link::link(&mut netlink, "lan-port").unwrap().unwrap().index;
    link::set_up(&mut netlink, port, "lan-port").unwrap();
    link::set_up(&mut netlink, lan, "lan").unwrap();
    inside(&there, || {
        let mut netlink = Netlink::open().unwrap();
        let own = link::link(&mut netlink, link::INSIDE).unwrap().unwrap().index;
        link::add_address(&mut netlink, own, link::INSIDE, "10.77.0.2".parse().unwrap(), 24).unwrap();
        link::set_up(&mut netlink, own, link::INSIDE).unwrap();
        // It may try to reach the containers' own addresses through this host.
        output("ip", &["route", "add", "default", "via", "10.77.0.1"]);
    });
    there
}

#[test]
fn containers_reach_the_world_and_are_reached_where_their_ports_are_published() {
    in_new_namespace("reach", |dir| {
        assert_eq!(sysctl::read("ipv4/ip_forward").as_deref(), Some("0"), "forwarding is off at first");
        let bridge = Bridge::new(BridgeConfig::at(dir.to_owned()));
        let (one, two) = (container_namespace(), container_namespace());
        let neighbour = neighbour();
        let first = bridge.reserve(&id('1'), &publish("", "8080", 80)).unwrap();
        bridge.connect(&id('1'), one.as_fd()).unwrap();
        let second = bridge.reserve(&id('2'), &publish("127.0.0.1", "8081", 80)).unwrap();
        bridge.connect(&id('2'), two.as_fd()).unwrap();
        assert_eq!(
            (first.address.to_string().as_str(), second.address.to_string().as_str()),
            ("172.17.0.2", "172.17.0.3")
        );
        serve(&one, "0.0.0.0:80");
        serve(&two, "0.0.0.0:80");
        serve(&neighbour, "10.77.0.2:7000");
        // Outwards: the neighbour sees the host's address.
        assert_eq!(inside(&one, || ask("10.77.0.2:7000")).unwrap(), "10.77.0.1");
        // From the host, by its loopback address and by the container's own.
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "172.17.0.1");
        assert_eq!(ask("127.0.0.1:8081").unwrap(), "172.17.0.1");
        assert_eq!(ask("172.17.0.2:80").unwrap(), "172.17.0.1");
        // Datagrams, from the neighbour and from loopback.
        let mut both = publish("", "8082", 80);
        both.ports.push(PortRequest::new((53, Protocol::Udp), "", "5353").unwrap());
        let three = container_namespace();
        bridge.reserve(&id('3'), &both).unwrap();
        bridge.connect(&id('3'), three.as_fd()).unwrap();
        echo(&three, "0.0.0.0:53");
        assert_eq!(inside(&neighbour, || send("0.0.0.0:0", "10.77.0.1:5353")), "10.77.0.2");
        assert_eq!(send("127.0.0.1:0", "127.0.0.1:5353"), "172.17.0.1");
        bridge.disconnect(&id('3')).unwrap();
        // From the neighbour: its own address is seen (N6); what is on loopback or not published is closed (N4).
        assert_eq!(inside(&neighbour, || ask("10.77.0.1:8080")).unwrap(), "10.77.0.2");
        assert!(inside(&neighbour, || ask("10.77.0.1:8081")).is_err(), "a port of loopback is open to the segment");
        assert!(inside(&neighbour, || ask("172.17.0.3:80")).is_err(), "a container is reached by its own address");
        assert!(
            inside(&neighbour, || ask("172.17.0.2:80")).is_err(),
            "a published container is reached by its own address"
        );
        // Containers among themselves, also through the host's ports, also to themselves.
        assert_eq!(inside(&one, || ask("172.17.0.3:80")).unwrap(), "172.17.0.2");
        assert_eq!(inside(&two, || ask("10.77.0.1:8080")).unwrap(), "172.17.0.1");
        assert_eq!(inside(&one, || ask("172.17.0.1:8080")).unwrap(), "172.17.0.1");
        // The host's loopback is not the containers' (FW5).
        let secret = TcpListener::bind("127.0.0.1:9999").unwrap();
        inside(&one, || output("ip", &["route", "add", "127.9.0.0/16", "via", "172.17.0.1"]));
        inside(&one, || sysctl::write("ipv4/conf/eth0/route_localnet", "1").unwrap());
        assert!(inside(&one, || ask("127.9.0.1:9999")).is_err());
        drop(secret);
        // Somebody flushes the firewall: what was closed may be open until it is written again, by a hang-up or the next change.
        for table in ["nat", "filter"] {
            output("iptables", &["-t", table, "-F"]);
            output("iptables", &["-t", table, "-X"]);
        }
        assert!(ask("127.0.0.1:8080").is_err());
        bridge.refresh().unwrap();
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "172.17.0.1");
        assert!(inside(&neighbour, || ask("172.17.0.3:80")).is_err(), "open after the firewall was written again");
        // A new owner of the same network keeps it closed as well.
        let next = Bridge::new(BridgeConfig::at(dir.to_owned()));
        next.restore(&BTreeSet::from([id('1'), id('2')])).unwrap();
        assert!(
            inside(&neighbour, || ask("10.77.0.1:8081")).is_err()
                && inside(&neighbour, || ask("172.17.0.3:80")).is_err()
        );
        drop(next);
        // No address by itself (N3), and no rule or link of ours once they have gone.
        assert_eq!(inside(&one, || output("ip", &["-6", "-o", "address", "show", "dev", "eth0"])), "");
        bridge.disconnect(&id('1')).unwrap();
        assert!(ask("127.0.0.1:8080").is_err());
        bridge.disconnect(&id('2')).unwrap();
        assert!(bridge.remove().unwrap());
        assert!(!link_names().iter().any(|name| name.starts_with("bv") || name == "baleen0"), "{:?}", link_names());
        let left = output("iptables-save", &[]);
        assert!(!left.replace("BALEEN-USER", "").contains("BALEEN"), "{left}");
        assert_eq!(sysctl::read("ipv4/ip_forward").as_deref(), Some("0"));
    });
}

#[test]
fn what_the_host_did_not_forward_before_is_not_forwarded_because_of_us() {
    in_new_namespace("forward", |dir| {
        let bridge = Bridge::new(BridgeConfig::at(dir.to_owned()));
        let (container, neighbour) = (container_namespace(), neighbour());
        // A third host, on a link that has nothing to do with containers.
        let third = container_namespace();
        let mut netlink = Netlink::open().unwrap();
        link::create_bridge(&mut netlink, "lan2", [2, 0, 0, 0, 0, 8], 1500).unwrap();
        let lan = link::link(&mut netlink, "lan2").unwrap().unwrap().index;
        link::create_pair(&mut netlink, "lan2-port", lan, third.as_fd(), [2, 0, 0, 0, 0, 3], 1500).unwrap();
        output("ip", &["address", "add", "10.78.0.1/24", "dev", "lan2"]);
        output("ip", &["link", "set", "lan2-port", "up"]);
        output("ip", &["link", "set", "lan2", "up"]);
        inside(&third, || {
            output("ip", &["address", "add", "10.78.0.2/24", "dev", "eth0"]);
            output("ip", &["link", "set", "eth0", "up"]);
            output("ip", &["route", "add", "default", "via", "10.78.0.1"]);
        });
        serve(&third, "10.78.0.2:80");
        bridge.reserve(&id('1'), &EndpointRequest::default()).unwrap();
        bridge.connect(&id('1'), container.as_fd()).unwrap();
        assert_eq!(inside(&container, || ask("10.78.0.2:80")).unwrap(), "10.78.0.1");
        assert!(inside(&neighbour, || ask("10.78.0.2:80")).is_err(), "the host has become a router");
        // An administrator's rule comes before ours, and stays through our changes.
        output("iptables", &["-A", "BALEEN-USER", "-i", "lan", "-o", "lan2", "-j", "ACCEPT"]);
        output("iptables", &["-A", "BALEEN-USER", "-i", "lan2", "-o", "lan", "-j", "ACCEPT"]);
        bridge.disconnect(&id('1')).unwrap();
        assert_eq!(inside(&neighbour, || ask("10.78.0.2:80")).unwrap(), "10.77.0.2");
    });
}

#[test]
fn a_connect_or_disconnect_that_fails_at_any_step_leaves_nothing_and_can_be_repeated() {
    in_new_namespace("faults", |dir| {
        let bridge = Bridge::new(BridgeConfig::at(dir.to_owned()));
        let mut failed = 0;
        for step in 0.. {
            assert!(step < 100, "the steps have no end");
            let container = container_namespace();
            bridge.reserve(&id('1'), &publish("127.0.0.1", "8080", 80)).unwrap();
            bridge.faults.store(step, Ordering::SeqCst);
            let outcome = bridge.connect(&id('1'), container.as_fd());
            let reached = bridge.faults.swap(usize::MAX, Ordering::SeqCst) == usize::MAX;
            if outcome.is_ok() {
                assert!(!reached, "a fault was swallowed");
                bridge.disconnect(&id('1')).unwrap();
                break;
            }
            failed += 1;
            assert!(!link_names().iter().any(|name| name.starts_with("bv")), "step {step}: {:?}", link_names());
            assert!(!output("iptables-save", &["-t", "nat"]).contains("DNAT --to"), "step {step} left a rule");
            assert!(bridge.endpoint(&id('1')).is_none());
            assert_eq!(fs::read_dir(dir.join("endpoints")).map(|entries| entries.count()).unwrap_or(0), 0);
            assert!(TcpListener::bind("127.0.0.1:8080").is_ok(), "step {step} left the port held");
        }
        assert!(failed >= 6, "only {failed} steps");
        // A removal goes on past what fails, and tells it.
        for step in 0..2 {
            let container = container_namespace();
            bridge.reserve(&id('1'), &publish("127.0.0.1", "8080", 80)).unwrap();
            bridge.connect(&id('1'), container.as_fd()).unwrap();
            bridge.faults.store(step, Ordering::SeqCst);
            let error = bridge.disconnect(&id('1')).unwrap_err();
            bridge.faults.store(usize::MAX, Ordering::SeqCst);
            assert!(error.to_string().contains("injected"), "{error}");
            assert!(bridge.endpoint(&id('1')).is_none() && TcpListener::bind("127.0.0.1:8080").is_ok());
        }
        // What was left in the kernel goes with the next run of that container.
        let container = container_namespace();
        bridge.reserve(&id('1'), &publish("127.0.0.1", "8080", 80)).unwrap();
        bridge.connect(&id('1'), container.as_fd()).unwrap();
        serve(&container, "0.0.0.0:80");
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "172.17.0.1");
    });
}

#[test]
fn a_new_owner_keeps_who_is_alive_and_takes_away_the_rest() {
    in_new_namespace("restore", |dir| {
        let (one, two) = (container_namespace(), container_namespace());
        let before = Bridge::new(BridgeConfig::at(dir.to_owned()));
        for (digit, namespace, port) in [('1', &one, "8080"), ('2', &two, "8081")] {
            before.reserve(&id(digit), &publish("", port, 80)).unwrap();
            before.connect(&id(digit), namespace.as_fd()).unwrap();
        }
        serve(&one, "0.0.0.0:80");
        let endpoint = before.endpoint(&id('1')).unwrap();
        // As a SIGKILL leaves it: everything is there, and the sockets that held the ports are gone.
        drop(before);
        let after = Bridge::new(BridgeConfig::at(dir.to_owned()));
        after.restore(&BTreeSet::from([id('1')])).unwrap();
        assert_eq!(after.endpoint(&id('1')), Some(endpoint));
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "172.17.0.1");
        assert!(TcpListener::bind("0.0.0.0:8080").is_err(), "the port of a running container is free");
        assert!(TcpListener::bind("0.0.0.0:8081").is_ok());
        let links: Vec<String> = link_names().into_iter().filter(|name| name.starts_with("bv")).collect();
        assert_eq!(links, [host_link(&id('1'))]);
        assert!(!output("iptables-save", &[]).contains("172.17.0.3:80"));
        // The address of the one that is gone is free; its old owner gets it again.
        let again = after.reserve(&id('2'), &EndpointRequest::default()).unwrap();
        assert_eq!(again.address.to_string(), "172.17.0.3");
        after.disconnect(&id('2')).unwrap();
        // After a reboot neither links nor rules are there, and nothing is made before it is needed.
        in_new_namespace("restore-reboot", |other| {
            let fresh = Bridge::new(BridgeConfig::at(other.to_owned()));
            fresh.restore(&BTreeSet::new()).unwrap();
            assert_eq!(link_names(), ["lo"]);
            assert!(!output("iptables-save", &[]).contains("BALEEN"));
        });
    });
}

#[test]
fn a_network_of_the_hosts_is_left_to_the_host_and_another_links_name_too() {
    in_new_namespace("choice", |dir| {
        let mut netlink = Netlink::open().unwrap();
        link::create_bridge(&mut netlink, "other", [2, 0, 0, 0, 0, 9], 1500).unwrap();
        let other = link::link(&mut netlink, "other").unwrap().unwrap().index;
        link::add_address(&mut netlink, other, "other", "172.17.5.1".parse().unwrap(), 24).unwrap();
        let bridge = Bridge::new(BridgeConfig::at(dir.to_owned()));
        assert_eq!(bridge.subnet().unwrap().to_string(), "172.18.0.1/16");
        let container = container_namespace();
        let named = Bridge::new(BridgeConfig { name: "lo".to_owned(), ..BridgeConfig::at(dir.to_owned()) });
        named.reserve(&id('1'), &EndpointRequest::default()).unwrap();
        assert!(matches!(named.connect(&id('1'), container.as_fd()), Err(NetworkError::NotABridge { .. })));
    });
}

#[test]
fn ipv6_is_there_where_it_was_asked_for() {
    in_new_namespace("ipv6", |dir| {
        let config =
            BridgeConfig { address6: Some("fd00:77::1/64".parse().unwrap()), ..BridgeConfig::at(dir.to_owned()) };
        let bridge = Bridge::new(config);
        let container = container_namespace();
        let endpoint = bridge.reserve(&id('1'), &publish("", "8080", 80)).unwrap();
        assert_eq!(endpoint.ports.len(), 2);
        bridge.connect(&id('1'), container.as_fd()).unwrap();
        serve(&container, "[::]:80");
        assert_eq!(ask("[fd00:77::2]:80").unwrap(), "fd00:77::1");
        // Through the published port, by an address of the host.
        assert_eq!(ask("[fd00:77::1]:8080").unwrap(), "fd00:77::1");
        assert_eq!(ask("127.0.0.1:8080").unwrap(), "::ffff:172.17.0.1");
    });
}
