//! The daemon under a service manager: sockets that it is given, and what it tells about its state.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Answer, PATIENCE, Scratch, is_root, no_settings};

/// A child that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon started as a service manager starts it: with sockets from descriptor 3 on, and `LISTEN_PID` its own.
fn activated(scratch: &Scratch, listener: UnixListener, host: &str, notify: Option<&std::path::Path>) -> Ended {
    let mut command = Command::new("/bin/sh");
    // The socket arrives as standard input, which the shell moves to where the protocol wants it.
    command
        .args([
            "-c",
            "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_baleen"),
        ])
        .args(["daemon", "-H", host, "--config-file"])
        .arg(no_settings(scratch))
        .arg("--data-root")
        .arg(scratch.path("data"))
        .arg("--exec-root")
        .arg(scratch.path("run"))
        .env_remove("DOCKER_MIN_API_VERSION")
        .env_remove("NOTIFY_SOCKET")
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(fs::File::create(scratch.path("log")).expect("a log"));
    if let Some(path) = notify {
        command.env("NOTIFY_SOCKET", path);
    }
    Ended(command.spawn().expect("the shell starts"))
}

#[test]
fn a_daemon_serves_the_socket_that_it_is_given_and_leaves_it_to_its_owner() {
    if !is_root("a_daemon_serves_the_socket_that_it_is_given_and_leaves_it_to_its_owner") {
        return;
    }
    for host in ["fd://", "fd://3"] {
        let scratch = Scratch::new();
        let path = scratch.path("given.sock");
        let listener = UnixListener::bind(&path).expect("a socket");
        // Requests may come before the daemon does: that is what activation is for.
        let early = std::thread::spawn({
            let path = path.clone();
            move || Answer::of(&path, "GET /version HTTP/1.1\r\nConnection: close\r\n\r\n")
        });
        let mut daemon = activated(&scratch, listener, host, None);
        assert_eq!(early.join().expect("an answer").json()["Engine"], "baleen", "{host}");
        kill_process(Pid::from_child(&daemon.0), Signal::TERM).expect("our child");
        assert!(daemon.0.wait().expect("our child").success());
        assert!(path.exists(), "{host}: the socket belongs to whoever made it");
    }
}

#[test]
fn without_a_given_socket_activation_is_refused_in_docker_s_words() {
    let scratch = Scratch::new();
    for (host, listen) in [("fd://", None), ("fd://9", Some("1"))] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_baleen"));
        command
            .args(["daemon", "-H", host, "--config-file"])
            .arg(no_settings(&scratch))
            .arg("--data-root")
            .arg(scratch.path("data"))
            .arg("--exec-root")
            .arg(scratch.path("run"));
        command.env_remove("LISTEN_PID").env_remove("LISTEN_FDS").env_remove("NOTIFY_SOCKET");
        if let Some(count) = listen {
            // Meant for another process: not for this one.
            command.env("LISTEN_FDS", count).env("LISTEN_PID", "1");
        }
        let refused = command.output().expect("the program starts");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("no sockets found via socket activation"), "{host}: {said}");
    }
}

#[test]
fn the_service_manager_is_told_when_the_daemon_is_ready_and_when_it_ends() {
    if !is_root("the_service_manager_is_told_when_the_daemon_is_ready_and_when_it_ends") {
        return;
    }
    let scratch = Scratch::new();
    let manager = UnixDatagram::bind(scratch.path("notify")).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let told = || {
        let mut text = [0; 1024];
        let length = manager.recv(&mut text).expect("the daemon tells");
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    let path = scratch.path("given.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    let mut daemon = activated(&scratch, listener, "fd://", Some(&scratch.path("notify")));
    assert_eq!(told(), "READY=1");
    // It says so only once it serves.
    assert_eq!(Answer::of(&path, "GET /_ping HTTP/1.1\r\nConnection: close\r\n\r\n").status, 200);
    kill_process(Pid::from_child(&daemon.0), Signal::TERM).expect("our child");
    assert_eq!(told(), "STOPPING=1");
    assert!(daemon.0.wait().expect("our child").success());
}
