//! The client with a person at a keyboard: a pseudo terminal made by script(1).

use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use crate::client::{Setting, until};
use crate::support::PATIENCE;

/// A shell command on a terminal of its own.
struct Typed {
    child: Child,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Typed {
    fn start(setting: &Setting, command: &str) -> Option<Typed> {
        let mut script = Command::new("script");
        script.args(["-qec", command, "/dev/null"]).env("DOCKER_HOST", setting.daemon.host()).env_remove("BALEEN_HOST");
        script.env("B", env!("CARGO_BIN_EXE_baleen")).env("TERM", "xterm");
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = match script.spawn() {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "script(1) does not start: {error}");
                eprintln!("SKIPPED: terminal: script(1) does not start: {error}");
                return None;
            }
        };
        let mut from = child.stdout.take().expect("piped");
        let (sender, output) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Some(Typed { child, output, seen: String::new() })
    }

    fn key(&mut self, keys: &[u8]) {
        self.child.stdin.as_mut().expect("piped").write_all(keys).expect("it reads");
    }

    /// Waits until the screen shows a text that was not asked for before.
    fn sees(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = PATIENCE.saturating_sub(start.elapsed());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("the screen does not show {text:?} but {:?}", self.seen),
            }
        }
    }

    fn ends_with(mut self, code: i32) {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                assert_eq!(status.code(), Some(code), "{:?}", self.seen);
                return;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end: {:?}", self.seen);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_terminal_has_its_size_its_keys_and_its_exit_code_and_is_left_as_it_was() {
    let test = "a_terminal_has_its_size_its_keys_and_its_exit_code_and_is_left_as_it_was";
    let Some(setting) = Setting::new(test) else { return };
    let folder = setting.scratch.path("").display().to_string();
    let command = format!(
        "stty rows 33 cols 77; stty -g > {folder}/before; $B run -it --rm --network none bb sh; code=$?; stty -g > {folder}/after; exit $code"
    );
    let Some(mut typed) = Typed::start(&setting, &command) else { return };
    typed.sees("#");
    typed.key(b"echo $((40 + 2)) $(stty size)\r");
    typed.sees("42 33 77");
    typed.key(b"exit 5\r");
    typed.ends_with(5);
    let read = |name: &str| fs::read_to_string(setting.scratch.path(name)).expect("written");
    assert_eq!(read("before"), read("after"));

    // Ctrl-C is the container's, not the client's.
    let script = "trap 'echo caught; exit 8' INT; echo ready; while :; do sleep 0.05; done";
    let command = format!("$B run -it --rm --network none bb sh -c \"{script}\"");
    let Some(mut typed) = Typed::start(&setting, &command) else { return };
    typed.sees("ready");
    typed.key(b"\x03");
    typed.sees("caught");
    typed.ends_with(8);
}

#[test]
fn the_detach_keys_leave_the_container_running_and_attach_finds_it_again() {
    let test = "the_detach_keys_leave_the_container_running_and_attach_finds_it_again";
    let Some(setting) = Setting::new(test) else { return };
    let Some(mut typed) = Typed::start(&setting, "$B run -it --name typed --network none bb sh") else { return };
    typed.sees("#");
    typed.key(b"x=kept; echo so$((1 + 1))\r");
    typed.sees("so2");
    typed.key(b"\x10\x11");
    typed.ends_with(0);
    assert_eq!(setting.baleen(&["inspect", "-f", "{{.State.Running}}", "typed"]).out, "true\n");
    let Some(mut typed) = Typed::start(&setting, "$B attach --detach-keys ctrl-a,d typed") else { return };
    until("the client is attached", || {
        setting.baleen(&["events", "--since", "1h", "--until", "0s", "--filter", "event=attach"]).out.lines().count()
            >= 2
    });
    typed.key(b"echo $x again\r");
    typed.sees("kept again");
    typed.key(b"\x01d");
    typed.ends_with(0);
    assert_eq!(setting.baleen(&["inspect", "-f", "{{.State.Running}}", "typed"]).out, "true\n");
    let Some(mut typed) = Typed::start(&setting, "$B attach typed") else { return };
    until("the client is attached", || {
        setting.baleen(&["events", "--since", "1h", "--until", "0s", "--filter", "event=attach"]).out.lines().count()
            >= 3
    });
    typed.key(b"exit 6\r");
    typed.ends_with(6);
    // Without a terminal on this side there is none to give.
    let refused = setting.baleen(&["run", "-it", "--rm", "--network", "none", "bb", "sh"]);
    assert!(refused.code == 1 && refused.err.contains("the input device is not a TTY"), "{refused:?}");
}

#[test]
fn a_program_in_a_container_has_a_terminal_of_its_own() {
    let test = "a_program_in_a_container_has_a_terminal_of_its_own";
    let Some(setting) = Setting::new(test) else { return };
    assert_eq!(setting.baleen(&["run", "-d", "--network", "none", "--name", "host", "bb", "sleep", "1000"]).code, 0);
    let Some(mut typed) = Typed::start(&setting, "stty rows 31 cols 79; $B exec -it host sh") else { return };
    typed.sees("#");
    typed.key(b"echo $((40 + 2)) $(stty size)\r");
    typed.sees("42 31 79");
    typed.key(b"exit 4\r");
    typed.ends_with(4);
}
