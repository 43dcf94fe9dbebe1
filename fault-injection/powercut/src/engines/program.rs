//! The two engines as programs: started on a disk, spoken to through their socket, killed with all that they started.
//!
//! G1  Everything that belongs to one boot lies in the run folder, which is new at each start of a state.
//! G2  A killed engine leaves no process, mount or control group behind.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use baleen_tests::command::wait_for;
use baleen_tests::daemon::{Daemon, wait_until_answering};
use baleen_tests::http;
use baleen_tests::scratch::unmount_below;
use serde_json::Value;

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Baleen,
    /// Debian's `dockerd` with overlay2.
    Docker,
}

/// How an engine is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Its program; none for `BALEEN_BIN` (or the build beside this program), and for `dockerd` of the path.
    pub program: Option<PathBuf>,
    /// Further variables of its environment.
    pub variables: Vec<(String, String)>,
}

/// A running engine.
#[derive(Debug)]
pub(super) enum Engine {
    Baleen(Daemon),
    Docker(Docker),
}

impl Engine {
    /// Starts one with its store at `root` and everything else in `run`, and waits until it answers.
    pub(super) fn start(kind: Kind, options: &Options, root: &Path, run: &Path) -> Result<Self> {
        match kind {
            Kind::Baleen => {
                let mut daemon = Daemon::in_folder(&run.join("d"), root)?;
                if let Some(program) = &options.program {
                    daemon.program(program);
                }
                for (name, value) in &options.variables {
                    daemon.variable(name, value);
                }
                daemon.argument("--max-download-attempts").argument("3").run()?;
                Ok(Self::Baleen(daemon))
            }
            Kind::Docker => {
                let mut docker = Docker { root: root.to_owned(), run: run.join("d"), child: None };
                docker.start(options)?;
                Ok(Self::Docker(docker))
            }
        }
    }

    /// Starts the same one again after [`Engine::kill`], in the same boot.
    pub(super) fn start_again(&mut self, options: &Options) -> Result<()> {
        match self {
            Self::Baleen(daemon) => daemon.run(),
            Self::Docker(docker) => docker.start(options),
        }
    }

    /// SIGKILL of the daemon alone.
    pub(super) fn kill(&mut self) {
        match self {
            Self::Baleen(daemon) => daemon.kill(),
            Self::Docker(docker) => docker.kill(),
        }
    }

    /// An end in order.
    pub(super) fn stop(&mut self) -> Result<()> {
        match self {
            Self::Baleen(daemon) => daemon.stop(),
            Self::Docker(docker) => docker.stop(),
        }
    }

    pub(super) fn root(&self) -> &Path {
        match self {
            Self::Baleen(daemon) => daemon.root(),
            Self::Docker(docker) => &docker.root,
        }
    }

    pub(super) fn socket(&self) -> PathBuf {
        match self {
            Self::Baleen(daemon) => daemon.socket(),
            Self::Docker(docker) => docker.socket(),
        }
    }

    /// One request; the status and the JSON of its answer, `null` for a body that is none.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
        let body = body.map(Value::to_string);
        let answer = http::request(&self.socket(), method, path, body.as_ref().map(String::as_bytes))
            .with_context(|| format!("{method} {path}"))?;
        let status = answer.status;
        let bytes = answer.body().with_context(|| format!("{method} {path}"))?;
        Ok((status, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
    }

    /// The JSON of a successful `GET`.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        match self.ask("GET", path, None)? {
            (200, value) => Ok(value),
            (status, value) => bail!("GET {path}: {status} {}", message(&value)),
        }
    }
}

/// What an error's answer says.
pub(super) fn message(value: &Value) -> &str {
    value["message"].as_str().unwrap_or("without a message")
}

/// A `dockerd` of our own. Dropping it ends everything that it started.
#[derive(Debug)]
pub(super) struct Docker {
    root: PathBuf,
    run: PathBuf,
    child: Option<Child>,
}

impl Docker {
    fn socket(&self) -> PathBuf {
        self.run.join("s")
    }

    fn start(&mut self, options: &Options) -> Result<()> {
        fs::create_dir_all(&self.run)?;
        fs::write(self.run.join("daemon.json"), "{}")?;
        // Of a daemon that was killed: it would wait for a containerd whose number is another's, or a zombie's.
        for stale in ["pid", "x/containerd/containerd.pid", "x/containerd/containerd.sock"] {
            fs::remove_file(self.run.join(stale)).ok();
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.run.join("log"))?;
        let program = options.program.clone().unwrap_or_else(|| PathBuf::from("dockerd"));
        let mut command = Command::new(&program);
        command
            .arg("--config-file")
            .arg(self.run.join("daemon.json"))
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--data-root")
            .arg(&self.root)
            .arg("--exec-root")
            .arg(self.run.join("x"))
            .arg("-p")
            .arg(self.run.join("pid"))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"])
            .envs(options.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        self.child = Some(command.spawn().with_context(|| format!("cannot start {}", program.display()))?);
        let socket = self.socket();
        let child = self.child.as_mut().context("no daemon")?;
        wait_until_answering("dockerd", child, &socket, Duration::from_secs(60))
            .map_err(|error| anyhow!("{error}:\n{}", self.log()))
    }

    fn log(&self) -> String {
        let text = fs::read(self.run.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned()
    }

    /// The daemon and its containerd: neither outlives a power cut.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
        self.kill_processes();
    }

    fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)?;
        let ended = wait_for("dockerd ending", Duration::from_secs(30), || child.try_wait().ok().flatten());
        if ended.is_err() {
            child.kill().ok();
            child.wait().ok();
        }
        self.kill_processes();
        ended.map(drop)
    }

    /// Ends what names our folder or root in its command line, in our mount namespace or one below it (shims and what runs in
    /// containers are their children, and end with their PID 1).
    fn kill_processes(&self) {
        for _ in 0..200 {
            let pids = self.processes();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn processes(&self) -> Vec<i32> {
        let mounts = fs::read_link("/proc/thread-self/ns/mnt").ok();
        let folder = self.run.to_string_lossy().into_owned();
        let mut ours = Vec::new();
        let mut others = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
            let (Some(state), Some(parent)) = (fields.first(), fields.get(1).and_then(|text| text.parse::<i32>().ok()))
            else {
                continue;
            };
            if matches!(*state, "Z" | "X") || pid == std::process::id() as i32 {
                continue;
            }
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let named = String::from_utf8_lossy(&line).contains(&folder);
            if named && fs::read_link(entry.path().join("ns/mnt")).ok() == mounts {
                ours.push(pid);
            } else {
                others.push((pid, parent));
            }
        }
        let children =
            others.iter().filter(|(_, parent)| ours.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>();
        ours.extend(children);
        ours
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        self.kill();
        unmount_below(&self.run);
        unmount_below(&self.root);
        remove_empty_groups(Path::new("/sys/fs/cgroup"));
    }
}

/// Removes the control groups that its containers had: `docker/<id>` in each hierarchy, those without a process.
fn remove_empty_groups(top: &Path) {
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    for folder in hierarchies.chain([top.to_owned()]) {
        for entry in fs::read_dir(folder.join("docker")).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir(entry.path()).ok(); // Busy: another dockerd's.
            }
        }
    }
}
