//! Networks through the unmodified `docker` client. The daemon lives in a network namespace of the test: the machine's own links and
//! firewall are never touched.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use baleen_tests::command::{Finished, run, succeed, wait_for};
use baleen_tests::daemon::Daemon;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::network::{ADDRESS, Network, in_network};
use baleen_tests::scratch::Scratch;
use serde_json::{Value, json};

/// A daemon in a network of its own that has the busybox image as `busybox`.
fn daemon_in(network: &Network, scratch: &Scratch) -> Result<Daemon> {
    let mut daemon = Daemon::prepare(scratch, &scratch.join("root"))?;
    daemon.network(network).run()?;
    // A registry of the test's would be on another loopback.
    daemon.docker_with(&["load", "-q"], Some(&busybox()?.docker_archive("busybox:latest")))?.ok()?;
    Ok(daemon)
}

/// Runs a program of the host's inside the network.
fn on_host(network: &Network, program: &str, arguments: &[&str]) -> Result<Finished> {
    run(in_network(Some(network.name()), program).args(arguments), None, Duration::from_secs(10))
}

/// What a server at that address says, or nothing if there is none.
fn ask(network: &Network, address: &str, port: &str) -> Result<String> {
    Ok(on_host(network, "busybox", &["nc", "-w", "2", address, port])?.stdout().trim().to_owned())
}

const SERVER: [&str; 6] = ["nc", "-ll", "-p", "80", "-e", "hostname"];

fn inspect(daemon: &Daemon, name: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&daemon.docker_ok(&["inspect", name])?)?;
    Ok(all[0]["NetworkSettings"].clone())
}

#[test]
fn a_program_reaches_itself_on_loopback_whatever_its_network() -> Result<()> {
    needs_root!("a_program_reaches_itself_on_loopback_whatever_its_network");
    let (network, scratch) = (Network::new()?, Scratch::new("loopback")?);
    let daemon = daemon_in(&network, &scratch)?;
    // Asked again until the server listens.
    let talk =
        "nc -l -p 7000 -e echo heard & for n in $(seq 50); do nc -w 2 127.0.0.1 7000 && exit; sleep 0.1; done; exit 1";
    for mode in ["bridge", "none"] {
        assert_eq!(
            daemon.docker_ok(&["run", "--rm", "--network", mode, "busybox", "sh", "-c", talk])?,
            "heard",
            "{mode}"
        );
        assert_eq!(
            daemon.docker_ok(&["run", "--rm", "--network", mode, "busybox", "cat", "/sys/class/net/lo/flags"])?,
            "0x9"
        );
    }
    Ok(())
}

#[test]
fn a_published_port_is_reached_through_a_crash_of_the_daemon_and_gone_with_its_container() -> Result<()> {
    needs_root!("a_published_port_is_reached_through_a_crash_of_the_daemon_and_gone_with_its_container");
    let (network, scratch) = (Network::new()?, Scratch::new("ports")?);
    let mut daemon = daemon_in(&network, &scratch)?;
    let start = [
        "run",
        "-d",
        "--name",
        "box",
        "--hostname",
        "inner",
        "-p",
        "8080:80",
        "-p",
        "127.0.0.1:8443:80/tcp",
        "busybox",
    ];
    let id = daemon.docker_ok(&[&start[..], &SERVER].concat())?;
    let answers = |address: &str, port: &str| {
        wait_for("the server", Duration::from_secs(10), || {
            ask(&network, address, port).ok().filter(|text| text == "inner")
        })
    };
    answers("127.0.0.1", "8080")?;
    answers(ADDRESS, "8080")?;
    answers("127.0.0.1", "8443")?;
    assert_eq!(ask(&network, ADDRESS, "8443")?, "", "a port of loopback answers elsewhere");
    // Shown as Docker shows it.
    assert_eq!(daemon.docker_ok(&["port", "box"])?, "80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8443");
    let ports = daemon.docker_ok(&["ps", "--format", "{{.Ports}}"])?;
    assert_eq!(ports, "0.0.0.0:8080->80/tcp, 127.0.0.1:8443->80/tcp");
    let settings = inspect(&daemon, "box")?;
    assert_eq!(settings["IPAddress"], "172.17.0.2");
    assert_eq!((&settings["Gateway"], &settings["IPPrefixLen"]), (&"172.17.0.1".into(), &16.into()));
    assert_eq!(settings["MacAddress"], "02:42:ac:11:00:02");
    assert_eq!(settings["Networks"]["bridge"]["IPAddress"], "172.17.0.2");
    assert_eq!(settings["Ports"]["80/tcp"][0]["HostPort"], "8080");
    let shown: Value = serde_json::from_str(&daemon.docker_ok(&["network", "inspect", "bridge"])?)?;
    assert_eq!(shown[0]["Containers"][&id]["IPv4Address"], "172.17.0.2/16");
    assert_eq!(shown[0]["IPAM"]["Config"][0]["Subnet"], "172.17.0.0/16");
    assert_eq!(shown[0]["Options"]["com.docker.network.bridge.name"], "baleen0");
    // The same port is given once, and told in Docker's words.
    let refused = daemon.docker(&["run", "--rm", "-p", "8080:81", "busybox", "true"])?;
    assert_eq!(refused.code, 125, "{}", refused.output());
    assert!(refused.stderr.contains("Bind for 0.0.0.0:8080 failed: port is already allocated"), "{}", refused.stderr);
    // Through a crash: packets go on without any daemon, and the next one knows them.
    daemon.kill();
    answers("127.0.0.1", "8080")?;
    daemon.run()?;
    answers("127.0.0.1", "8080")?;
    assert_eq!(inspect(&daemon, "box")?, settings);
    let other = daemon.docker_ok(&["run", "--rm", "busybox", "ip", "-4", "-o", "address", "show", "dev", "eth0"])?;
    assert!(other.contains("172.17.0.3/16"), "{other}");
    // Somebody flushes the firewall; a hang-up writes it again.
    on_host(&network, "iptables", &["-t", "nat", "-F"])?.ok()?;
    assert!(!on_host(&network, "iptables-save", &[])?.stdout().contains("DNAT --to"));
    let pid = rustix::process::Pid::from_raw(i32::try_from(daemon.pid().context("a daemon")?)?).context("a daemon")?;
    rustix::process::kill_process(pid, rustix::process::Signal::HUP)?;
    wait_for("the rules", Duration::from_secs(10), || {
        let rules = on_host(&network, "iptables-save", &[]).ok()?.stdout();
        rules.contains("DNAT --to").then_some(())
    })?;
    answers("127.0.0.1", "8080")?;
    // A start again gets the same address, and so does a port.
    daemon.docker_ok(&["restart", "-t", "0", "box"])?;
    answers("127.0.0.1", "8080")?;
    assert_eq!(inspect(&daemon, "box")?["IPAddress"], "172.17.0.2");
    daemon.docker_ok(&["rm", "-f", "box"])?;
    assert_eq!(ask(&network, "127.0.0.1", "8080")?, "");
    let links = on_host(&network, "ip", &["-o", "link"])?.stdout();
    assert!(!links.contains("bv") && links.contains("baleen0"), "{links}");
    let rules = on_host(&network, "iptables-save", &[])?.stdout();
    assert!(!rules.contains("DNAT --to"), "{rules}");
    let left: Vec<_> = fs::read_dir(daemon.exec_root().join("network/endpoints"))?.collect();
    assert!(left.is_empty(), "{left:?}");
    // Nothing of it is in the machine's own network.
    assert!(!succeed("ip", &["-o", "link"])?.stdout().contains("baleen0"));
    assert!(!Path::new("/proc/sys/net/ipv4/conf/baleen0").exists());
    Ok(())
}

#[test]
fn names_inside_are_those_that_were_asked_for() -> Result<()> {
    needs_root!("names_inside_are_those_that_were_asked_for");
    let (network, scratch) = (Network::new()?, Scratch::new("names")?);
    let daemon = daemon_in(&network, &scratch)?;
    let options = [
        "run",
        "--rm",
        "--hostname",
        "inner",
        "--domainname",
        "example.org",
        "--dns",
        "10.1.2.3",
        "--dns-search",
        "lan",
        "--dns-option",
        "ndots:2",
        "--add-host",
        "db:10.0.0.7",
        "--add-host",
        "host.docker.internal:host-gateway",
        "--mac-address",
        "02:42:ac:11:00:99",
        "busybox",
    ];
    let script =
        "cat /etc/resolv.conf; tail -n 3 /etc/hosts; cat /etc/hostname; cat /sys/class/net/eth0/address; ip route";
    let seen = daemon.docker_ok(&[&options[..], &["sh", "-c", script]].concat())?;
    let expected = "nameserver 10.1.2.3\nsearch lan\noptions ndots:2\n10.0.0.7\tdb\n172.17.0.1\thost.docker.internal\n\
                    172.17.0.2\tinner.example.org inner\ninner\n02:42:ac:11:00:99\n\
                    default via 172.17.0.1 dev eth0 \n172.17.0.0/16 dev eth0 scope link  src 172.17.0.2 ";
    assert_eq!(seen, expected);
    // Another container's network, with its names.
    daemon.docker_ok(&["run", "-d", "--name", "box", "--hostname", "boxes-name", "busybox", "sleep", "1000"])?;
    let script = "hostname; cat /etc/hostname; ip -4 -o address show dev eth0 | grep -o 172.17.0.2; grep boxes /etc/hosts | cut -f 2";
    let seen = daemon.docker_ok(&["run", "--rm", "--network", "container:box", "busybox", "sh", "-c", script])?;
    assert_eq!(seen, "boxes-name\nboxes-name\n172.17.0.2\nboxes-name");
    for (options, words) in [
        (&["--network", "container:nobody"][..], "No such container: nobody"),
        (&["--network", "container:box", "-p", "80:80"], "conflicting options"),
        (&["--network", "container:box", "--hostname", "x"], "conflicting options: hostname and the network mode"),
        (&["--network", "mine"], "network mode \"mine\" is not implemented yet"),
        (&["-p", "[::1]:80:80"], "the bridge has no IPv6"),
    ] {
        let refused = daemon.docker(&[&["run", "--rm"], options, &["busybox", "true"]].concat())?;
        assert!(refused.code == 125 && refused.stderr.contains(words), "{options:?}: {}", refused.output());
    }
    // Older clients forget --ip where they see that it cannot be had.
    let asked = json!({ "Image": "busybox", "NetworkingConfig": { "EndpointsConfig": { "bridge": {
        "IPAMConfig": { "IPv4Address": "172.17.0.9" } } } } });
    let refused = daemon.api("POST", "/containers/create", Some(&asked), 400)?.to_string();
    let words = "user specified IP address is supported on user defined networks only";
    assert!(refused.contains(words), "{refused}");
    daemon.docker_ok(&["stop", "-t", "0", "box"])?;
    let refused = daemon.docker(&["run", "--rm", "--network", "container:box", "busybox", "true"])?;
    assert!(refused.stderr.contains("cannot join network of a non running container"), "{}", refused.output());
    // An ended container shows its network without an address.
    let settings = inspect(&daemon, "box")?;
    assert_eq!((&settings["IPAddress"], &settings["Networks"]["bridge"]["IPAddress"]), (&"".into(), &"".into()));
    assert_eq!(settings["Ports"], serde_json::json!({}));
    Ok(())
}

#[test]
fn ports_of_every_form_are_published() -> Result<()> {
    needs_root!("ports_of_every_form_are_published");
    let (network, scratch) = (Network::new()?, Scratch::new("forms")?);
    let mut daemon = Daemon::prepare(&scratch, &scratch.join("root"))?;
    daemon.network(&network).argument("--bip=10.50.0.1/24").argument("--bridge=br7").argument("--ipv6");
    daemon.argument("--fixed-cidr-v6=fd00:50::/64").run()?;
    daemon.docker_with(&["load", "-q"], Some(&busybox()?.docker_archive("busybox:latest")))?.ok()?;
    let options = [
        "run",
        "-d",
        "--name",
        "box",
        "-p",
        "9000-9002:80-82",
        "-p",
        "9100-9110:90",
        "-p",
        "53:53/udp",
        "-p",
        "95",
        "--expose",
        "96",
        "-P",
        "busybox",
    ];
    daemon.docker_ok(&[&options[..], &SERVER].concat())?;
    let ports = inspect(&daemon, "box")?["Ports"].clone();
    let of = |port: &str| -> Vec<String> {
        let list = ports[port].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|one| format!("{}:{}", one["HostIp"].as_str().unwrap_or("?"), one["HostPort"].as_str().unwrap_or("?")))
            .collect()
    };
    assert_eq!(of("80/tcp"), ["0.0.0.0:9000", ":::9000"]);
    assert_eq!(of("82/tcp"), ["0.0.0.0:9002", ":::9002"]);
    assert_eq!(of("90/tcp"), ["0.0.0.0:9100", ":::9100"]);
    assert_eq!(of("53/udp"), ["0.0.0.0:53", ":::53"]);
    for chosen in ["95/tcp", "96/tcp"] {
        assert_eq!(of(chosen).len(), 2, "{chosen}: {ports}");
    }
    // The next one of the range; then the first is free again.
    daemon.docker_ok(&["run", "-d", "--name", "two", "-p", "9100-9110:90", "busybox", "sleep", "1000"])?;
    assert!(daemon.docker_ok(&["port", "two"])?.contains("0.0.0.0:9101"));
    let name = daemon.docker_ok(&["exec", "box", "hostname"])?;
    for (address, port) in [("127.0.0.1", "9000"), ("10.50.0.1", "9000"), ("fd00:50::1", "9000"), ("fd00:50::2", "80")]
    {
        wait_for(&format!("{address} {port}"), Duration::from_secs(10), || {
            ask(&network, address, port).ok().filter(|text| *text == name)
        })?;
    }
    let taken = "9101";
    let busy =
        run(in_network(Some(network.name()), "busybox").args(["nc", "-l", "-p", taken]), None, Duration::from_secs(2));
    assert!(busy.is_ok_and(|finished| finished.code != 0), "the port of a container was free for another program");
    let six = daemon.docker_ok(&["inspect", "-f", "{{.NetworkSettings.GlobalIPv6Address}}", "box"])?;
    assert_eq!(six, "fd00:50::2");
    daemon.docker_ok(&["rm", "-f", "box", "two"])?;
    Ok(())
}

#[test]
fn starts_and_ends_leave_no_link_rule_or_descriptor_also_when_daemon_and_shim_are_killed() -> Result<()> {
    needs_root!("starts_and_ends_leave_no_link_rule_or_descriptor_also_when_daemon_and_shim_are_killed");
    let (network, scratch) = (Network::new()?, Scratch::new("cycles")?);
    let mut daemon = daemon_in(&network, &scratch)?;
    let rounds = std::env::var("BALEEN_SOAK").map_or(6, |_| 1000);
    daemon.docker_ok(&["run", "--rm", "-p", "8080:80", "busybox", "true"])?;
    let count = |daemon: &Daemon| -> Result<(usize, usize, usize)> {
        let links = on_host(&network, "ip", &["-o", "link"])?.stdout().lines().count();
        let rules =
            on_host(&network, "iptables-save", &[])?.stdout().lines().filter(|line| line.starts_with("-A")).count();
        let pid = daemon.pid().context("a daemon")?;
        Ok((links, rules, fs::read_dir(format!("/proc/{pid}/fd"))?.count()))
    };
    let before = count(&daemon)?;
    for round in 0..rounds {
        daemon.docker_ok(&["run", "--rm", "-p", "8080:80", "-p", "53/udp", "busybox", "true"])?;
        if round % 2 == 1 {
            // One whose program does not exist: the start is undone.
            assert_eq!(daemon.docker(&["run", "--rm", "-p", "8080:80", "busybox", "nothing"])?.code, 127);
        }
    }
    let settled =
        wait_for("the counts of before", Duration::from_secs(10), || (count(&daemon).ok()? == before).then_some(()));
    settled.with_context(|| format!("{before:?} became {:?}", count(&daemon)))?;
    // A daemon and its container's shim that are both killed: the next daemon takes everything away.
    daemon.docker_ok(&["run", "-d", "--name", "box", "-p", "8080:80", "busybox", "sleep", "1000"])?;
    let pid = daemon.pid().context("a daemon")?;
    let shims: Vec<u32> = daemon.processes().into_iter().filter(|found| *found != pid).collect();
    daemon.kill();
    for shim in shims {
        if let Some(shim) = rustix::process::Pid::from_raw(i32::try_from(shim)?) {
            rustix::process::kill_process(shim, rustix::process::Signal::KILL).ok();
        }
    }
    daemon.run()?;
    assert_eq!(daemon.docker_ok(&["ps", "-q"])?, "");
    let (links, rules, _) = count(&daemon)?;
    assert_eq!((links, rules), (before.0, before.1));
    // Nothing is in the way of its next run.
    daemon.docker_ok(&["start", "box"])?;
    daemon.docker_ok(&["rm", "-f", "box"])?;
    Ok(())
}

#[test]
fn events_tell_of_a_containers_network_in_dockers_order() -> Result<()> {
    needs_root!("events_tell_of_a_containers_network_in_dockers_order");
    let (network, scratch) = (Network::new()?, Scratch::new("network-events")?);
    let daemon = daemon_in(&network, &scratch)?;
    daemon.docker_ok(&["run", "--rm", "busybox", "true"])?;
    let until = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() + 1;
    let format = ["--format", "{{.Type}} {{.Action}}", "-f", "type=container", "-f", "type=network"];
    let events =
        daemon.docker_ok(&[&["events", "--since", "0", "--until", &until.to_string()], &format[..]].concat())?;
    let wanted = [
        "container create",
        "network connect",
        "container start",
        "container die",
        "network disconnect",
        "container destroy",
    ];
    let seen: Vec<&str> = events.lines().filter(|line| wanted.contains(line)).collect();
    assert_eq!(seen, wanted, "{events}");
    assert_eq!(
        daemon.docker_ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"])?,
        "bridge bridge\nhost host\nnone null"
    );
    Ok(())
}
