//! Debian's `dockerd` with its containerd and runc, to compare with: in mount, PID and network namespaces of its own.
//!
//! E1  It knows nothing of the machine's own Docker: socket, data, run folder and control groups are below the scratch folder and the
//!     parent that it is given.
//! E2  Its PID namespace ends with it, and so do all its containers.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};

use crate::command::wait_for;
use crate::daemon::wait_until_answering;
use crate::network::{Network, in_network};
use crate::scratch::{Scratch, unmount_below};

/// A running `dockerd`. Dropping it ends everything that it started.
#[derive(Debug)]
pub struct Dockerd {
    folder: PathBuf,
    cgroup_parent: String,
    child: Child,
}

impl Dockerd {
    /// Starts one below `scratch` in this network, with these further arguments, and waits until it answers. Mounts are private in
    /// there but those at the paths of `shared`.
    ///
    /// # Errors
    /// If the program is missing, or ends or stays silent as it starts; its log is part of the message.
    pub fn start(scratch: &Scratch, network: &Network, arguments: &[&str], shared: &[PathBuf]) -> Result<Self> {
        let folder = scratch.join("dockerd");
        fs::create_dir_all(folder.join("client"))?;
        fs::write(folder.join("daemon.json"), "{}")?;
        let log = fs::File::create(folder.join("log"))?;
        let cgroup_parent = format!("/dockerd-tests-{}", std::process::id());
        let mut command = in_network(Some(network.name()), "unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c"])
            .arg("while [ \"$1\" != -- ]; do mount --make-rshared \"$1\" || exit 1; shift; done; shift; exec dockerd \"$@\"")
            .arg("sh")
            .args(shared)
            .args(["--", "--config-file"])
            .arg(folder.join("daemon.json"))
            .arg("-H")
            .arg(format!("unix://{}", folder.join("s").display()))
            .arg("--data-root")
            .arg(folder.join("root"))
            .arg("--exec-root")
            .arg(folder.join("x"))
            .arg("-p")
            .arg(folder.join("pid"))
            .args(["--storage-driver=overlay2", "--userland-proxy=false", "--cgroup-parent", &cgroup_parent])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().context("cannot start unshare")?;
        let mut dockerd = Self { folder, cgroup_parent, child };
        let socket = dockerd.socket();
        let up = wait_until_answering("dockerd", &mut dockerd.child, &socket, Duration::from_secs(60));
        up.map_err(|error| anyhow!("{error}:\n{}", dockerd.log()))?;
        Ok(dockerd)
    }

    /// The daemon's process ID as the machine sees it.
    pub fn pid(&self) -> Option<u32> {
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Control group below which its containers live.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    /// Where its client keeps its configuration.
    pub fn client_folder(&self) -> PathBuf {
        self.folder.join("client")
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(8192)..]).into_owned()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        // The first process of its PID namespace takes all others along, and with them the namespace of its mounts.
        if let Some(pid) = self.pid().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).ok();
        }
        self.child.kill().ok();
        self.child.wait().ok();
        unmount_below(&self.folder);
        for top in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let parent = top.path().join(self.cgroup_parent.trim_start_matches('/'));
            let Ok(entries) = fs::read_dir(&parent) else { continue };
            let groups = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir());
            for folder in groups.chain([parent.clone()]) {
                wait_for("a control group to be free", Duration::from_secs(5), || fs::remove_dir(&folder).ok()).ok();
            }
        }
    }
}
