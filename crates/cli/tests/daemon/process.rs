//! The daemon as a process: its sockets, files, signals, settings and names.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};
use std::time::Instant;

use crate::support::{Daemon, PATIENCE, Scratch, command, is_root};
use rustix::process::Signal;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn baleen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_baleen")).args(arguments).output().expect("the program starts")
}

#[test]
fn the_program_says_what_it_is_and_refuses_what_it_does_not_know() {
    let version = baleen(&["--version"]);
    assert!(version.status.success() && text(&version).starts_with("baleen version "), "{version:?}");
    assert!(text(&baleen(&["help"])).contains("daemon"));
    assert!(text(&baleen(&["daemon", "--help"])).contains("--data-root"));
    let unknown = baleen(&["frobnicate", "busybox"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("unknown command: baleen frobnicate"), "{unknown:?}");
    let flag = baleen(&["daemon", "--data-rot=/x"]);
    assert_eq!(flag.status.code(), Some(1));
    assert!(text(&flag).contains("unknown flag: --data-rot"), "{flag:?}");
}

#[test]
fn called_as_dockerd_it_is_the_daemon() {
    let scratch = Scratch::new();
    let name = scratch.path("dockerd");
    symlink(env!("CARGO_BIN_EXE_baleen"), &name).expect("a link");
    let validated = Command::new(&name).arg("--validate").arg("--config-file").arg(scratch.path("absent")).output();
    let validated = validated.expect("the program starts");
    assert!(
        !validated.status.success() && text(&validated).contains("unable to configure the daemon with file"),
        "{validated:?}"
    );
    fs::write(scratch.path("daemon.json"), r#"{"labels":["a=b"]}"#).expect("a file");
    let validated =
        Command::new(&name).arg("--validate").arg("--config-file").arg(scratch.path("daemon.json")).output();
    assert_eq!(text(&validated.expect("the program starts")), "configuration OK\n");
}

#[test]
fn a_socket_belongs_to_root_and_its_group_whatever_the_umask() {
    if !is_root("a_socket_belongs_to_root_and_its_group_whatever_the_umask") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |command| {
        command.arg("--group").arg("65533");
    });
    let found = fs::symlink_metadata(&daemon.socket).expect("it is there");
    assert!(found.file_type().is_socket());
    assert_eq!((found.permissions().mode() & 0o7777, found.uid(), found.gid()), (0o660, 0, 65533));
    for name in ["a-data", "a-run"] {
        assert_eq!(fs::metadata(scratch.path(name)).expect("it is there").permissions().mode() & 0o077, 0, "{name}");
    }
    let named = command(&scratch, "b", &scratch.path("b.sock")).args(["--group", "no-such-group"]).output();
    let named = named.expect("the program starts");
    assert!(!named.status.success() && text(&named).contains("group no-such-group not found"), "{named:?}");
    assert!(!scratch.path("b.sock").exists());
}

#[test]
fn a_second_daemon_on_a_socket_is_refused_and_the_first_one_named() {
    if !is_root("a_second_daemon_on_a_socket_is_refused_and_the_first_one_named") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = Daemon::start(&scratch, "a", |_| {});
    let second = command(&scratch, "b", &daemon.socket).output().expect("the program starts");
    assert!(!second.status.success());
    let said = text(&second);
    assert!(said.contains("another daemon (baleen ") && said.contains(&format!("(pid {})", daemon.pid())), "{said}");
    assert!(!scratch.path("b-data").exists(), "it touched its store before it looked at the socket");
    assert_eq!(daemon.get("/_ping").status, 200);
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
    if !is_root("a_stale_socket_is_replaced_and_anything_else_is_left_alone") {
        return;
    }
    let scratch = Scratch::new();
    // Its listener is gone, its name is not.
    drop(UnixListener::bind(scratch.path("a.sock")).expect("a socket"));
    assert!(scratch.path("a.sock").exists());
    // The helper waits until something listens there.
    let mut daemon = Daemon::start(&scratch, "a", |_| {});
    daemon.signal(Signal::KILL);
    daemon.wait();
    assert!(daemon.socket.exists(), "a killed daemon cannot have removed its socket");
    let again = Daemon::start(&scratch, "a", |_| {});
    assert_eq!(again.get("/_ping").status, 200);
    let found = again.get("/info").json()["DriverStatus"].to_string();
    assert!(found.contains("after a crash or power cut: 0 rolled forward"), "{found}");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs() + 1;
    let told = again.get(&format!("/events?since=1&until={now}")).body;
    assert!(told.contains(r#""Action":"recovery""#) && told.contains(r#""missing":"0""#), "{told}");

    fs::write(scratch.path("file"), "precious").expect("a file");
    let refused = command(&scratch, "b", &scratch.path("file")).output().expect("the program starts");
    assert!(!refused.status.success() && text(&refused).contains("is no socket"), "{refused:?}");
    assert_eq!(fs::read_to_string(scratch.path("file")).expect("still there"), "precious");
}

#[test]
fn daemons_with_roots_of_their_own_live_side_by_side_and_clean_up_at_their_end() {
    if !is_root("daemons_with_roots_of_their_own_live_side_by_side_and_clean_up_at_their_end") {
        return;
    }
    let scratch = Scratch::new();
    let extra = scratch.path("extra.sock");
    let mut first = Daemon::start(&scratch, "a", |command| {
        command.arg("-H").arg(format!("unix://{}", extra.display()));
    });
    let second = Daemon::start(&scratch, "b", |_| {});
    assert!(extra.exists());
    let pid_file = scratch.path("a-run").join("baleen.pid");
    assert_eq!(fs::read_to_string(&pid_file).expect("written"), first.pid().to_string());
    let same_run = command(&scratch, "a", &scratch.path("c.sock")).output().expect("the program starts");
    assert!(!same_run.status.success() && text(&same_run).contains("is held by a running daemon"), "{same_run:?}");
    let id = |daemon: &Daemon| daemon.get("/info").json()["DockerRootDir"].clone();
    assert_ne!(id(&first), id(&second));
    first.signal(Signal::TERM);
    assert!(first.wait().success());
    assert!(!first.socket.exists() && !extra.exists() && !pid_file.exists(), "it left files behind");
    assert_eq!(second.get("/_ping").status, 200);
}

#[test]
fn a_hang_up_reloads_all_or_nothing() {
    if !is_root("a_hang_up_reloads_all_or_nothing") {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.path("daemon.json");
    fs::write(&file, r#"{"labels":["site=one"]}"#).expect("a file");
    let daemon = Daemon::start(&scratch, "a", |command| {
        command.arg("--config-file").arg(&file);
    });
    let labels = || daemon.get("/info").json()["Labels"].to_string();
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < PATIENCE, "{what}: {}", fs::read_to_string(&daemon.log).unwrap_or_default());
        }
    };
    let logged = |text: &str| fs::read_to_string(&daemon.log).unwrap_or_default().contains(text);
    assert_eq!(labels(), r#"["site=one"]"#);
    fs::write(&file, r#"{"labels":["site=two"],"no-such-key":1}"#).expect("a file");
    daemon.signal(Signal::HUP);
    until("the bad file is reported", &|| logged("don't match any configuration option: no-such-key"));
    assert_eq!(labels(), r#"["site=one"]"#);
    fs::write(&file, r#"{"labels":["site=two"],"registry-mirrors":["no address"]}"#).expect("a file");
    daemon.signal(Signal::HUP);
    until("the bad mirror is reported", &|| logged("expected http://HOST"));
    assert_eq!(labels(), r#"["site=one"]"#);
    let good = r#"{"labels":["site=two"],"debug":true,"registry-mirrors":["http://127.0.0.1:9"],"insecure-registries":["10.1.0.0/16"],
        "max-concurrent-downloads":1}"#;
    fs::write(&file, good).expect("a file");
    daemon.signal(Signal::HUP);
    until("the good file is taken over", &|| labels() == r#"["site=two"]"#);
    let info = daemon.get("/info").json();
    assert_eq!(info["Debug"], true);
    assert_eq!(info["RegistryConfig"]["Mirrors"].to_string(), r#"["http://127.0.0.1:9"]"#);
    assert!(info["RegistryConfig"]["InsecureRegistryCIDRs"].to_string().contains("10.1.0.0/16"), "{info}");
    let now = || std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
    let told = || daemon.get(&format!("/events?since=1&until={}", now())).body;
    until("the event", &|| {
        told().contains(r#""Action":"reload""#) && told().contains(r#""max-concurrent-downloads":"1""#)
    });
}

#[test]
fn tcp_is_refused_unless_it_is_asked_for_in_so_many_words() {
    let scratch = Scratch::new();
    let refused = command(&scratch, "a", &scratch.path("a.sock")).args(["-H", "tcp://127.0.0.1:0"]).output();
    let refused = refused.expect("the program starts");
    assert!(!refused.status.success() && text(&refused).contains("without client certificates"), "{refused:?}");
    assert!(!scratch.path("a.sock").exists());
}
