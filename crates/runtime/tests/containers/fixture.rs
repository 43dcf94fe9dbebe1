//! A root file system with busybox in it, a container on it, and everything removed again whatever happens.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use baleen_runtime::client::{self, LogConfig};
use baleen_runtime::logs::{LogQuery, LogStream, read_logs};
use baleen_runtime::{ContainerSpec, ExitRecord, RuntimeError, Shim, ShimConfig};

/// First argument that makes this program the other process of a test.
pub(crate) const HELPER: &str = "helper";
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: &[&str] = &[
    "sh", "true", "false", "echo", "cat", "sleep", "id", "ls", "stty", "head", "grep", "mkdir", "mknod", "mount",
    "unshare", "hostname", "pwd", "env", "dd", "yes", "kill", "wc", "ps", "touch", "sync", "readlink", "tty", "tail",
    "trap", "chroot", "test", "seq", "rm", "ln",
];

/// One container's places on the host.
pub(crate) struct Fixture {
    pub(crate) base: PathBuf,
    pub(crate) spec: ContainerSpec,
    pub(crate) log: Option<LogConfig>,
}

impl Fixture {
    /// A container that would run `args`.
    pub(crate) fn new(args: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:08x}{number:056x}", std::process::id());
        let base = std::env::temp_dir().join(format!("baleen-runtime-{}-{number}", std::process::id()));
        for directory in
            ["rootfs/bin", "rootfs/etc", "rootfs/tmp", "rootfs/proc", "rootfs/sys", "rootfs/dev", "run", "log"]
        {
            fs::create_dir_all(base.join(directory)).unwrap();
        }
        fs::set_permissions(base.join("rootfs/tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::copy(BUSYBOX, base.join("rootfs/bin/busybox")).expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", base.join("rootfs/bin").join(applet)).unwrap();
        }
        fs::write(base.join("rootfs/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nann:x:1001:100::/home/ann:/bin/sh\n")
            .unwrap();
        fs::write(base.join("rootfs/etc/group"), "root:x:0:\nusers:x:100:\naudio:x:29:ann\n").unwrap();
        let spec = ContainerSpec {
            id,
            args: args.iter().map(|&argument| argument.to_owned()).collect(),
            env: vec!["PATH=/bin".to_owned()],
            hostname: "box".to_owned(),
            cgroup_parent: "/baleen-test".to_owned(),
            ..ContainerSpec::default()
        };
        let log = Some(LogConfig::new(base.join("log/container-json.log")));
        Self { base, spec, log }
    }

    /// A container that would run a shell script.
    pub(crate) fn sh(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.base.join("rootfs")
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.base.join("run").join(&self.spec.id)
    }

    pub(crate) fn config(&self) -> ShimConfig {
        ShimConfig { log: self.log.clone(), ..ShimConfig::new(self.dir(), self.rootfs(), self.spec.clone()) }
    }

    pub(crate) fn create(&self) -> Result<Shim, RuntimeError> {
        Shim::spawn(&self.config())
    }

    /// Creates, starts and waits.
    pub(crate) fn run(&self) -> Result<ExitRecord, RuntimeError> {
        let shim = self.create()?;
        shim.start()?;
        shim.wait()
    }

    /// What the container wrote, from its log, after it has run to success.
    pub(crate) fn output(&self) -> String {
        let record = self.run().unwrap();
        let text = self.logged(LogStream::Stdout);
        assert_eq!(record.exit_code, 0, "stdout: {text:?}, stderr: {:?}", self.logged(LogStream::Stderr));
        text
    }

    pub(crate) fn logged(&self, stream: LogStream) -> String {
        let mut text = String::new();
        let query = LogQuery {
            stdout: stream == LogStream::Stdout,
            stderr: stream == LogStream::Stderr,
            ..LogQuery::default()
        };
        read_logs(&self.log.as_ref().unwrap().path, 1, &query, |entry| {
            text.push_str(&entry.text);
            Ok(())
        })
        .unwrap();
        text
    }

    /// Directories of the container's cgroup that exist.
    pub(crate) fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let own = format!("baleen-test/{}", self.spec.id);
        let mut dirs: Vec<PathBuf> =
            fs::read_dir(root).unwrap().flatten().map(|entry| entry.path().join(&own)).collect();
        dirs.push(root.join(&own));
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    /// Waits until the shim has ended by itself.
    pub(crate) fn wait_for_shim_end(&self) {
        eventually("the shim has ended", || matches!(Shim::connect(&self.dir()), Err(RuntimeError::ShimGone { .. })));
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // The shim first, so that it does not outlive a failed test; then what it may have left.
        if let Ok(shim) = Shim::connect(&self.dir()) {
            let _ = shim.delete();
        }
        let cleaned = client::clean_up(&self.dir());
        let _ = fs::remove_dir_all(&self.base);
        remove_empty_parents();
        if !std::thread::panicking() {
            cleaned.unwrap();
            assert_eq!(self.cgroup_dirs(), Vec::<PathBuf>::new(), "cgroups are left");
        }
    }
}

/// The groups' parent goes with the last of them; the kernel may call it busy for a moment after that.
fn remove_empty_parents() {
    let begun = Instant::now();
    let has_children =
        |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| entry.path().is_dir());
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    for root in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
        let parent = root.join("baleen-test");
        while parent.is_dir() && !has_children(&parent) && fs::remove_dir(&parent).is_err() {
            if begun.elapsed() > Duration::from_secs(2) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The mounts of this mount namespace that have to do with these tests. (Others mount and unmount meanwhile.)
pub(crate) fn own_mounts() -> Vec<String> {
    let own = format!("baleen-runtime-{}-", std::process::id());
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    all.lines().filter(|line| line.contains(&own) || line.contains("baleen-canary")).map(str::to_owned).collect()
}

/// Waits for a condition that another process brings about.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// PID of the shim of a container.
pub(crate) fn shim_pid(fixture: &Fixture) -> i32 {
    let state = fs::read_to_string(fixture.dir().join(client::STATE_NAME)).unwrap();
    let number = state.split("\"shim_pid\":").nth(1).unwrap();
    number.split(|character: char| !character.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// This program as another process: `helper spawn <config.json>` spawns and starts a container, then waits to be killed.
pub(crate) fn helper(arguments: &[String]) -> ExitCode {
    let [verb, path] = arguments else { return ExitCode::FAILURE };
    if verb == "probe" {
        return crate::probe::run(path);
    }
    assert_eq!(verb, "spawn");
    let frame = fs::read(path).unwrap();
    let (json, _) = baleen_runtime::protocol::split_frame(&frame, 4 << 20).unwrap().unwrap();
    let shim = Shim::spawn(&baleen_runtime::protocol::decode_config(json).unwrap()).unwrap();
    shim.start().unwrap();
    println!("started");
    loop {
        std::thread::park();
    }
}

/// A helper process, killed with the test.
pub(crate) struct Helper(pub(crate) std::process::Child);

impl Helper {
    pub(crate) fn spawn(fixture: &Fixture) -> Self {
        use std::io::BufRead;
        let path = fixture.base.join("helper.json");
        fs::write(&path, baleen_runtime::protocol::encode_config(&fixture.config())).unwrap();
        let mut command = Command::new("/proc/self/exe");
        command.args([HELPER, "spawn"]).arg(&path).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "started\n");
        Self(child)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
