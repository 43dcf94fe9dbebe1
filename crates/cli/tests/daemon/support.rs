//! Daemons in places of their own, and a client that sees every byte.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take before a test gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the test can run: daemons need root. One that cannot says so, and must not be skipped where CI runs it.
pub(crate) fn is_root(test: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "{test} needs root");
    eprintln!("SKIPPED: {test}: needs root");
    false
}

/// A folder that goes away with its owner.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("baleen-cli-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("a fresh folder");
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A settings file that says nothing: the machine's own is not for tests.
pub(crate) fn no_settings(scratch: &Scratch) -> PathBuf {
    let path = scratch.path("no-settings.json");
    fs::write(&path, "{}").expect("a file");
    path
}

/// The program under test, as the daemon with its own roots in `scratch`.
pub(crate) fn command(scratch: &Scratch, name: &str, socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baleen"));
    command
        .arg("daemon")
        .args([OsStr::new("--config-file"), no_settings(scratch).as_os_str()])
        .arg("--host")
        .arg(format!("unix://{}", socket.display()))
        .args([OsStr::new("--data-root"), scratch.path(&format!("{name}-data")).as_os_str()])
        .args([OsStr::new("--exec-root"), scratch.path(&format!("{name}-run")).as_os_str()])
        .env_remove("DOCKER_MIN_API_VERSION")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A running daemon; ends with its owner.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Starts one and waits until it answers.
    pub(crate) fn start(scratch: &Scratch, name: &str, tune: impl FnOnce(&mut Command)) -> Daemon {
        let socket = scratch.path(&format!("{name}.sock"));
        let log = scratch.path(&format!("{name}.log"));
        let mut command = command(scratch, name, &socket);
        command.stderr(fs::File::create(&log).expect("a log")).stdout(Stdio::null());
        tune(&mut command);
        let child = command.spawn().expect("the program starts");
        let mut daemon = Daemon { child, socket, log };
        let start = Instant::now();
        while UnixStream::connect(&daemon.socket).is_err() {
            if let Some(status) = daemon.child.try_wait().expect("our child") {
                panic!("the daemon ended with {status}: {}", fs::read_to_string(&daemon.log).unwrap_or_default());
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not listen");
            std::thread::yield_now();
        }
        assert_eq!(daemon.get("/_ping").status, 200);
        daemon
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("our child");
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.exchange(&format!("GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"))
    }

    pub(crate) fn request(&self, method: &str, path: &str, content_type: &str, body: &str) -> Answer {
        let content_type =
            if content_type.is_empty() { String::new() } else { format!("Content-Type: {content_type}\r\n") };
        self.exchange(&format!(
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n{content_type}Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    }

    /// Sends bytes on a connection of their own and reads to its end.
    pub(crate) fn exchange(&self, text: &str) -> Answer {
        Answer::of(&self.socket, text)
    }

    /// How its socket is named on command lines.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Our own client, asking this daemon.
    pub(crate) fn client(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_baleen"));
        command.env("DOCKER_HOST", self.host()).env_remove("BALEEN_HOST").env_remove("DOCKER_API_VERSION");
        command
    }
}

/// Docker's own client, if the machine has it. Where it has not, the test that asked says so.
pub(crate) fn docker(test: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join("docker")).find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs docker's client");
        eprintln!("SKIPPED: {test}: docker's client is not installed");
    }
    found
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A test that failed leaves it running; its containers, if any, are those of the test.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer taken apart.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Sends bytes to a socket and reads to the end of the connection.
    pub(crate) fn of(socket: &Path, text: &str) -> Answer {
        let mut stream = UnixStream::connect(socket).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(text.as_bytes()).expect("it reads");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).expect("it answers");
        Answer::parse(&String::from_utf8(bytes).expect("text"))
    }

    fn parse(text: &str) -> Answer {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head in {text:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let body = if head.contains("Transfer-Encoding: chunked") { unchunk(body) } else { body.to_owned() };
        Answer { status, head: format!("{head}\r\n"), body }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The text of a refusal, whose form is checked.
    pub(crate) fn message(&self) -> String {
        assert_eq!(self.header("Content-Type"), Some("application/json"), "{self:?}");
        assert!(self.body.ends_with("}\n"), "{self:?}");
        let value = self.json();
        assert_eq!(value.as_object().expect("an object").len(), 1, "{self:?}");
        value["message"].as_str().expect("a message").to_owned()
    }
}

fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a size");
        whole.push_str(&rest[..size]);
        if size == 0 {
            return whole;
        }
        body = rest[size..].strip_prefix("\r\n").expect("a chunk's end");
    }
}
