//! An engine of the test's own: the built binary as a daemon on a scratch root, and the `docker` client that speaks to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::Value;

use crate::command::{Finished, run, wait_for};
use crate::http;
use crate::network::{Network, in_network};
use crate::scratch::{Scratch, unmount_below};

/// Waits until an engine answers at its socket.
///
/// # Errors
/// If it ends, or does not answer in time.
pub fn wait_until_answering(what: &str, child: &mut Child, socket: &Path, patience: Duration) -> Result<()> {
    let up = wait_for(&format!("{what} answering"), patience, || {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(Err(status));
        }
        matches!(http::request(socket, "GET", "/_ping", None), Ok(answer) if answer.status == 200).then_some(Ok(()))
    })?;
    up.map_err(|status| anyhow!("{what} ended with {status}"))
}

/// The binary to test: `BALEEN_BIN`, else the debug build beside the test program.
///
/// # Errors
/// If there is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BALEEN_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { bail!("BALEEN_BIN names no file: {}", path.display()) };
    }
    let program = std::env::current_exe()?;
    let folder = program.parent().and_then(Path::parent).context("the test program has no build folder")?;
    let path = folder.join("baleen");
    if !path.is_file() {
        bail!("{} is not built; run `cargo build -p baleen-cli` or `make test`", path.display());
    }
    Ok(path)
}

/// A daemon with root, run directory, socket and control groups of its own. Dropping it ends everything that it started.
#[derive(Debug)]
pub struct Daemon {
    program: Option<PathBuf>,
    folder: PathBuf,
    root: PathBuf,
    cgroup_parent: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    namespace: Option<String>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts one below `scratch` and waits until it answers.
    ///
    /// # Errors
    /// If the binary is missing, or ends or stays silent as it starts; its log is part of the message.
    pub fn start(scratch: &Scratch) -> Result<Self> {
        let mut daemon = Self::prepare(scratch, &scratch.join("root"))?;
        daemon.run()?;
        Ok(daemon)
    }

    /// One that is not started yet, with its store at `root`.
    ///
    /// # Errors
    /// If its folder cannot be made.
    pub fn prepare(scratch: &Scratch, root: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::in_folder(&scratch.join(format!("d{number}")), root)
    }

    /// The same with its socket, run directory and log in this folder, which is made if it is missing.
    ///
    /// # Errors
    /// As [`Daemon::prepare`].
    pub fn in_folder(folder: &Path, root: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = folder.to_owned();
        fs::create_dir_all(folder.join("client"))?;
        // What the machine's own daemon is told to do is nothing to this one.
        fs::write(folder.join("daemon.json"), "{}")?;
        let cgroup_parent = format!("/baleen-tests-{}-{number}", std::process::id());
        Ok(Self {
            program: None,
            folder,
            root: root.to_owned(),
            cgroup_parent,
            arguments: Vec::new(),
            environment: Vec::new(),
            namespace: None,
            child: None,
        })
    }

    /// Another binary than that of [`binary`].
    pub fn program(&mut self, path: &Path) -> &mut Self {
        self.program = Some(path.to_owned());
        self
    }

    /// One more argument for `baleen daemon`.
    pub fn argument(&mut self, text: &str) -> &mut Self {
        self.arguments.push(text.to_owned());
        self
    }

    /// One more variable in the daemon's environment.
    pub fn variable(&mut self, name: &str, value: &str) -> &mut Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets the daemon live in this network.
    pub fn network(&mut self, network: &Network) -> &mut Self {
        self.namespace = Some(network.name().to_owned());
        self
    }

    /// Starts the daemon (again) and waits until it answers.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn run(&mut self) -> Result<()> {
        self.launch()?;
        let socket = self.socket();
        let child = self.child.as_mut().context("no daemon")?;
        wait_until_answering("the daemon", child, &socket, Duration::from_secs(30))
            .map_err(|error| anyhow!("{error}:\n{}", self.log()))
    }

    /// Starts the daemon and does not wait for its answer.
    ///
    /// # Errors
    /// If the binary cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        let binary = self.program.clone().map_or_else(binary, Ok)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = in_network(self.namespace.as_deref(), &binary.to_string_lossy());
        command
            .arg("daemon")
            .arg("--config-file")
            .arg(self.folder.join("daemon.json"))
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--data-root")
            .arg(&self.root)
            .arg("--exec-root")
            .arg(self.exec_root())
            .arg("-p")
            .arg(self.folder.join("pid"))
            .args(["--cgroup-parent", &self.cgroup_parent, "--log-level", "debug"])
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("cannot start {}", binary.display()))?);
        Ok(())
    }

    /// The process ID of the running daemon.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Kills the daemon as a crash would: SIGKILL. Containers and their shims live on.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Asks the daemon to end (SIGTERM) and waits for it.
    ///
    /// # Errors
    /// If it does not end within 20 seconds.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let ended = wait_for("the daemon ending", Duration::from_secs(20), || child.try_wait().ok().flatten());
        if ended.is_err() {
            child.kill().ok();
            child.wait().ok();
        }
        ended.map(|_| ())
    }

    /// Ends the daemon and all that it started, with its mounts and what it keeps in its run directory: what a reboot leaves.
    ///
    /// # Errors
    /// If the run directory cannot be removed.
    pub fn reboot(&mut self) -> Result<()> {
        self.clean_up();
        match fs::remove_dir_all(self.exec_root()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether the daemon has ended by itself, and how.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// The store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The run directory.
    pub fn exec_root(&self) -> PathBuf {
        self.folder.join("x")
    }

    /// Where its client keeps its configuration.
    pub fn client_folder(&self) -> PathBuf {
        self.folder.join("client")
    }

    /// Control group below which its containers live.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// The end of the daemon's log.
    pub fn log(&self) -> String {
        let text = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(8192)..]).into_owned()
    }

    /// All of the daemon's log since its folder was made.
    pub fn whole_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder.join("log")).unwrap_or_default()).into_owned()
    }

    /// The `docker` client with these arguments, not started yet.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(arguments)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.folder.join("client"))
            .env_remove("DOCKER_CONTEXT")
            .env_remove("DOCKER_API_VERSION");
        command
    }

    /// Runs the `docker` client to its end, whatever its exit code.
    ///
    /// # Errors
    /// If it cannot be started or does not end within two minutes; the daemon's log is part of the message.
    pub fn docker(&self, arguments: &[&str]) -> Result<Finished> {
        self.docker_with(arguments, None)
    }

    /// The same with this standard input.
    ///
    /// # Errors
    /// As [`Daemon::docker`].
    pub fn docker_with(&self, arguments: &[&str], input: Option<&[u8]>) -> Result<Finished> {
        run(&mut self.client(arguments), input, Duration::from_secs(120))
            .with_context(|| format!("the daemon's log:\n{}", self.log()))
    }

    /// Runs the `docker` client, which must succeed; gives its standard output without the last line end.
    ///
    /// # Errors
    /// If it fails; the daemon's log is part of the message.
    pub fn docker_ok(&self, arguments: &[&str]) -> Result<String> {
        let finished = self.docker(arguments)?.ok().with_context(|| format!("the daemon's log:\n{}", self.log()))?;
        Ok(finished.stdout().trim_end_matches('\n').to_owned())
    }

    /// One request of the API that must be answered with `status`; its JSON.
    ///
    /// # Errors
    /// If the answer is another one or no JSON.
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>, status: u16) -> Result<Value> {
        let body = body.map(Value::to_string);
        let answer = http::request(&self.socket(), method, path, body.as_ref().map(String::as_bytes))?;
        let found = answer.status;
        let bytes = answer.body()?;
        if found != status {
            bail!("{method} {path}: {found} {}\n{}", String::from_utf8_lossy(&bytes), self.log());
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&bytes)))
    }

    /// The processes of this daemon: those that carry its folder in their command line (itself), and those that have a file open in
    /// its folder or root (its shims, which hold their logs). Only those that see the calling thread's mounts: elsewhere the same path
    /// may be another daemon's.
    pub fn processes(&self) -> BTreeSet<u32> {
        let mut found = BTreeSet::new();
        let mounts = fs::read_link("/proc/thread-self/ns/mnt").ok();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if pid == std::process::id() || fs::read_link(entry.path().join("ns/mnt")).ok() != mounts {
                continue;
            }
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let named = line.contains(&*self.folder.to_string_lossy()) && !line.starts_with("docker\0");
            let mut files = fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            let holds = |link: PathBuf| link.starts_with(&self.folder) || link.starts_with(&self.root);
            if named || files.any(|file| fs::read_link(file.path()).is_ok_and(holds)) {
                found.insert(pid);
            }
        }
        found
    }

    /// The control groups below its parent, in every hierarchy, the deepest first.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut tops = vec![PathBuf::from("/sys/fs/cgroup")];
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            tops.push(entry.path());
        }
        for top in tops {
            let mut folders = vec![top.join(self.cgroup_parent.trim_start_matches('/'))];
            while let Some(folder) = folders.pop() {
                if !folder.is_dir() {
                    continue;
                }
                for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        folders.push(entry.path());
                    }
                }
                found.push(folder);
            }
        }
        found.sort_by_key(|path| std::cmp::Reverse(path.as_os_str().len()));
        found
    }

    fn clean_up(&mut self) {
        self.kill();
        for _ in 0..100 {
            let mut pids = self.processes();
            for folder in self.cgroups() {
                let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            }
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for path in [&self.folder, &self.root] {
            unmount_below(path);
        }
        // A group is free a moment after its last process: the kernel answers "busy" until then.
        for folder in self.cgroups() {
            wait_for("a control group to be free", Duration::from_secs(2), || fs::remove_dir(&folder).ok()).ok();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        self.clean_up();
    }
}
