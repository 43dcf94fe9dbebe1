//! The firewall: rules in chains of our own, by `iptables-restore`.
//!
//! FW1  The text of our chains is made whole from what is connected and replaces them in one transaction a table. No rule of the
//!      host's is read, changed or removed but our own jumps.
//! FW2  A jump from a chain of the host's is added where it is missing, never twice.
//! FW3  A published port leads away only what is sent to an address of this host (threats N7), and only to the address that it was
//!      published on (N4). What is not published is not reached from outside, also by its own address.
//! FW4  The source of a remote client stays (N6). Only what comes from the host's loopback addresses, or from the network itself,
//!      gets the bridge's.
//! FW5  A container does not reach the host's loopback addresses, though the bridge may route them for the way back.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::NetworkError;
use crate::port::Protocol;

/// What the rules are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules<'a> {
    pub(crate) bridge: &'a str,
    /// `172.17.0.0/16`.
    pub(crate) subnet: String,
    /// Where the network has IPv6.
    pub(crate) subnet6: Option<String>,
    pub(crate) masquerade: bool,
    pub(crate) between_containers: bool,
    /// The host did not forward before us: what is not ours is not forwarded still.
    pub(crate) nothing_else: bool,
    /// Frames between ports of any bridge pass these rules too (br_netfilter).
    pub(crate) sees_bridged: bool,
    pub(crate) ports: Vec<Leading>,
}

/// A port of the host that leads to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leading {
    pub(crate) protocol: Protocol,
    pub(crate) host_address: IpAddr,
    pub(crate) host_port: u16,
    pub(crate) container: IpAddr,
    pub(crate) container_port: u16,
}

/// Jumps from chains of the host's into ours: table, chain, condition, our chain. (FW2)
const JUMPS: [(&str, &str, &str, &str); 5] = [
    ("nat", "PREROUTING", "-m addrtype --dst-type LOCAL ", "BALEEN"),
    ("nat", "OUTPUT", "-m addrtype --dst-type LOCAL ", "BALEEN"),
    ("nat", "POSTROUTING", "", "BALEEN-POSTROUTING"),
    ("filter", "FORWARD", "", "BALEEN-FORWARD"),
    ("filter", "INPUT", "", "BALEEN-INPUT"),
];
/// Where an administrator puts rules that come before ours; never written by us.
const USER: &str = "BALEEN-USER";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// Writes our chains for these rules.
pub(crate) fn apply(rules: &Rules<'_>) -> Result<(), NetworkError> {
    apply_family(rules, Family::V4)?;
    if rules.subnet6.is_some() {
        apply_family(rules, Family::V6)?;
    }
    Ok(())
}

fn apply_family(rules: &Rules<'_>, family: Family) -> Result<(), NetworkError> {
    let (save, restore) = match family {
        Family::V4 => ("iptables-save", "iptables-restore"),
        Family::V6 => ("ip6tables-save", "ip6tables-restore"),
    };
    let present = run(save, &[], "")?;
    run(restore, &["--noflush", "--wait=10"], &text(rules, family, &present)).map(drop)
}

/// The input of `iptables-restore`, given what `iptables-save` says.
fn text(rules: &Rules<'_>, family: Family, present: &str) -> String {
    let (subnet, loopback) = match family {
        Family::V4 => (rules.subnet.as_str(), "127.0.0.0/8"),
        Family::V6 => (rules.subnet6.as_deref().unwrap_or_default(), "::1/128"),
    };
    let bridge = rules.bridge;
    let mut text = String::new();
    // Into a String, writing cannot fail.
    let mut line = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(text, "{line}");
    };
    line(format_args!("*nat\n:BALEEN - [0:0]\n:BALEEN-POSTROUTING - [0:0]"));
    missing_jumps("nat", present, &mut line);
    for port in rules.ports.iter().filter(|port| port.container.is_ipv4() == (family == Family::V4)) {
        let to = match port.container {
            IpAddr::V4(address) => format!("{address}:{}", port.container_port),
            IpAddr::V6(address) => format!("[{address}]:{}", port.container_port),
        };
        let on = if port.host_address.is_unspecified() { String::new() } else { format!("-d {} ", port.host_address) };
        let (protocol, host) = (port.protocol, port.host_port);
        line(format_args!("-A BALEEN {on}-p {protocol} -m {protocol} --dport {host} -j DNAT --to-destination {to}"));
    }
    if family == Family::V4 {
        line(format_args!("-A BALEEN-POSTROUTING -s {loopback} -o {bridge} -j MASQUERADE"));
    }
    line(format_args!(
        "-A BALEEN-POSTROUTING -s {subnet} -d {subnet} -o {bridge} -m conntrack --ctstate DNAT -j MASQUERADE"
    ));
    if rules.masquerade {
        line(format_args!("-A BALEEN-POSTROUTING -s {subnet} ! -o {bridge} -j MASQUERADE"));
    }
    line(format_args!("COMMIT\n*filter\n:BALEEN-FORWARD - [0:0]\n:BALEEN-INPUT - [0:0]"));
    if !present.lines().any(|line| line.split_whitespace().next() == Some(":BALEEN-USER")) {
        line(format_args!(":{USER} - [0:0]"));
    }
    missing_jumps("filter", present, &mut line);
    line(format_args!("-A BALEEN-FORWARD -j {USER}"));
    line(format_args!("-A BALEEN-FORWARD -o {bridge} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"));
    let between = if rules.between_containers { "ACCEPT" } else { "DROP" };
    line(format_args!("-A BALEEN-FORWARD -o {bridge} -m conntrack --ctstate DNAT -j ACCEPT"));
    line(format_args!("-A BALEEN-FORWARD -i {bridge} -o {bridge} -j {between}"));
    line(format_args!("-A BALEEN-FORWARD -i {bridge} ! -o {bridge} -j ACCEPT"));
    line(format_args!("-A BALEEN-FORWARD -o {bridge} -j DROP"));
    if rules.nothing_else {
        if rules.sees_bridged {
            // Those were passed on before as well.
            line(format_args!("-A BALEEN-FORWARD -m physdev --physdev-is-bridged -j RETURN"));
        }
        line(format_args!("-A BALEEN-FORWARD -j DROP"));
    }
    // Answers to what came from there are wanted: they have that address again by now.
    line(format_args!(
        "-A BALEEN-INPUT -i {bridge} -d {loopback} -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP"
    ));
    line(format_args!("COMMIT"));
    text
}

/// Inserts our jumps where the table has none (FW2).
fn missing_jumps(table: &str, present: &str, line: &mut dyn FnMut(std::fmt::Arguments<'_>)) {
    let head = format!("*{table}");
    let rows: Vec<&str> = present.lines().skip_while(|row| *row != head).take_while(|row| *row != "COMMIT").collect();
    for (_, chain, condition, target) in JUMPS.iter().filter(|jump| jump.0 == table) {
        let jump = format!("-A {chain} {condition}-j {target}");
        if !rows.iter().any(|row| row.trim_end() == jump) {
            line(format_args!("-I {chain} 1 {condition}-j {target}"));
        }
    }
}

/// Takes our chains and jumps away; what is not there is no failure.
pub(crate) fn remove(with_ipv6: bool) -> Result<(), NetworkError> {
    for family in [Family::V4, Family::V6] {
        if family == Family::V6 && !with_ipv6 {
            continue;
        }
        let (save, restore) = match family {
            Family::V4 => ("iptables-save", "iptables-restore"),
            Family::V6 => ("ip6tables-save", "ip6tables-restore"),
        };
        let present = run(save, &[], "")?;
        let text = removal(&present);
        if !text.is_empty() {
            run(restore, &["--noflush", "--wait=10"], &text)?;
        }
    }
    Ok(())
}

fn removal(present: &str) -> String {
    let mut text = String::new();
    for table in ["nat", "filter"] {
        let head = format!("*{table}");
        let rows: Vec<&str> =
            present.lines().skip_while(|row| *row != head).take_while(|row| *row != "COMMIT").collect();
        let own: Vec<&str> = rows
            .iter()
            .filter_map(|row| row.strip_prefix(':')?.split_whitespace().next())
            .filter(|chain| (*chain == "BALEEN" || chain.starts_with("BALEEN-")) && *chain != USER)
            .collect();
        if own.is_empty() {
            continue;
        }
        text.push_str(&format!("{head}\n"));
        // Declared again they are empty; then nothing leads to them, and then they go.
        own.iter().for_each(|chain| text.push_str(&format!(":{chain} - [0:0]\n")));
        let is_jump = |row: &&&str| own.iter().any(|chain| row.trim_end().ends_with(&format!("-j {chain}")));
        let jumps = rows.iter().filter(is_jump).filter_map(|row| row.strip_prefix("-A "));
        jumps.filter(|row| !row.starts_with("BALEEN")).for_each(|row| text.push_str(&format!("-D {row}\n")));
        own.iter().for_each(|chain| text.push_str(&format!("-X {chain}\n")));
        text.push_str("COMMIT\n");
    }
    text
}

/// Runs a firewall program of the host, never one that the environment names (threats T2).
fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, NetworkError> {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let path = folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists());
    let path = path.ok_or(NetworkError::FirewallMissing { program })?;
    let io = |source| NetworkError::Io { action: "run", path: path.clone(), source };
    let mut child = Command::new(&path)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(io)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let output_text: String = said.chars().take(1000).collect::<String>().trim().replace('\n', "; ");
        return Err(NetworkError::Firewall { program, status: output.status.to_string(), output: output_text });
    }
    written.map_err(io)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules<'static> {
        Rules {
            bridge: "br",
            subnet: "10.1.0.0/16".to_owned(),
            subnet6: None,
            masquerade: true,
            between_containers: true,
            nothing_else: false,
            sees_bridged: false,
            ports: vec![Leading {
                protocol: Protocol::Tcp,
                host_address: "127.0.0.1".parse().unwrap(),
                host_port: 8080,
                container: "10.1.0.2".parse().unwrap(),
                container_port: 80,
            }],
        }
    }

    #[test]
    fn a_port_leads_only_from_the_address_that_it_was_published_on() {
        let text = text(&rules(), Family::V4, "");
        let rule = "-A BALEEN -d 127.0.0.1 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.0.2:80\n";
        assert!(text.contains(rule), "{text}");
        assert_eq!(text.matches("COMMIT\n").count(), 2);
    }

    #[test]
    fn jumps_are_added_where_they_are_missing_and_never_twice() {
        let first = text(&rules(), Family::V4, "");
        assert_eq!(first.matches("-I ").count(), JUMPS.len());
        let mut present = String::new();
        for table in ["nat", "filter"] {
            present.push_str(&format!("*{table}\n:BALEEN-USER - [0:0]\n"));
            for (_, chain, condition, target) in JUMPS.iter().filter(|jump| jump.0 == table) {
                present.push_str(&format!("-A {chain} {condition}-j {target}\n"));
            }
            present.push_str("COMMIT\n");
        }
        let second = text(&rules(), Family::V4, &present);
        assert!(!second.contains("-I ") && !second.contains(":BALEEN-USER"), "{second}");
        // A jump of the other table is none of this one.
        let only_nat = present.split_once("*filter").unwrap().0;
        assert_eq!(text(&rules(), Family::V4, only_nat).matches("-I ").count(), 2);
    }

    #[test]
    fn a_removal_takes_our_chains_and_jumps_and_nothing_else() {
        let present = "*filter\n:INPUT ACCEPT [0:0]\n:DOCKER - [0:0]\n:BALEEN-FORWARD - [0:0]\n:BALEEN-USER - [0:0]\n\
                       -A FORWARD -j BALEEN-FORWARD\n-A FORWARD -j DOCKER\n-A BALEEN-FORWARD -j BALEEN-USER\nCOMMIT\n";
        let expected = "*filter\n:BALEEN-FORWARD - [0:0]\n-D FORWARD -j BALEEN-FORWARD\n-X BALEEN-FORWARD\nCOMMIT\n";
        assert_eq!(removal(present), expected);
        assert_eq!(removal("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"), "");
    }
}
