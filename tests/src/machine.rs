//! A virtual machine for one command: Debian's kernel and a small Debian root (made by `scripts/vm-images`), by software emulation.
//!
//! M1  A machine ends with its command, with its time, or with the guard that holds it, whichever comes first; nothing of it is left.
//! M2  It sees a disk with what it was given, and no network but its own loopback. The images are only read: machines may run side by side.
//! M3  An exit code is the command's own. A machine that did not come to an answer is an error, told with the end of its console.
//!
//! What the command prints comes over one virtio port, its exit code over another: the console has the kernel's log alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::command::{run, succeed};
use crate::scratch::Scratch;

/// A processor architecture, by Debian's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit Intel and AMD.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Arch {
    /// Debian's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    fn emulator(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Self::Amd64 => ("qemu-system-x86_64", &["-machine", "q35", "-cpu", "max"], "ttyS0"),
            // Not `max`: its pointer authentication costs four times the time in software.
            Self::Arm64 => ("qemu-system-aarch64", &["-machine", "virt", "-cpu", "cortex-a72"], "ttyAMA0"),
        }
    }
}

/// A machine that is not started yet.
#[derive(Debug)]
pub struct Machine {
    images: PathBuf,
    arch: Arch,
    kernel: &'static str,
    memory_mib: u32,
    disk_mib: u32,
    limit: Duration,
    share: Vec<(PathBuf, String)>,
}

/// What a command in a machine left.
#[derive(Debug)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// What it printed on both outputs, lossily decoded.
    pub output: String,
    /// From the start of the emulator to its end.
    pub took: Duration,
}

impl Answer {
    /// The output, if the command succeeded.
    ///
    /// # Errors
    /// The output, if it did not.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("the command in the machine ended with {}:\n{}", self.code, self.output);
        }
        Ok(self.output)
    }
}

impl Machine {
    /// One with this kernel (`6.1`), a gibibyte of memory and of disk, and five minutes.
    ///
    /// # Errors
    /// If the images are not there or do not hold that kernel.
    pub fn new(arch: Arch, kernel: &'static str) -> Result<Self> {
        let folder = folder().context("BALEEN_VM names no folder with images; `make test-vm` makes them")?;
        let machine = Self {
            images: folder.join("images").join(arch.name()),
            arch,
            kernel,
            memory_mib: 1024,
            disk_mib: 1024,
            limit: Duration::from_secs(300),
            share: Vec::new(),
        };
        for name in [machine.vmlinuz(), machine.initramfs(), machine.root()] {
            if !name.is_file() {
                bail!("{} is missing; `make test-vm` makes the images", name.display());
            }
        }
        Ok(machine)
    }

    /// Another time limit, from the emulator's start.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Puts a copy of a file or folder at `/given/<name>`.
    #[must_use]
    pub fn with(mut self, source: &Path, name: &str) -> Self {
        self.share.push((source.to_owned(), name.to_owned()));
        self
    }

    fn vmlinuz(&self) -> PathBuf {
        self.images.join(format!("vmlinuz-{}", self.kernel))
    }

    fn initramfs(&self) -> PathBuf {
        self.images.join(format!("initramfs-{}", self.kernel))
    }

    fn root(&self) -> PathBuf {
        self.images.join("root.img")
    }

    /// Boots, runs a shell script as root in `/given`, and returns when the machine is off.
    ///
    /// # Errors
    /// If the machine cannot be started, does not end in time, or ends without an answer (M3).
    pub fn run(&self, script: &str) -> Result<Answer> {
        let begun = Instant::now();
        let mut running = self.start(script)?;
        loop {
            if let Some(status) = running.child.try_wait()? {
                let answer = fs::read_to_string(running.scratch.join("code"))?;
                let Ok(code) = answer.trim().parse() else {
                    bail!("the machine ended with {status} and no answer:\n{}", running.told());
                };
                return Ok(Answer { code, output: running.output(), took: begun.elapsed() });
            }
            if begun.elapsed() >= self.limit {
                bail!("the machine did not end within {:?}:\n{}", self.limit, running.told());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the machine and leaves it running.
    ///
    /// # Errors
    /// If its disk cannot be made, or the emulator is missing.
    pub fn start(&self, script: &str) -> Result<Running> {
        let scratch = Scratch::new("vm")?;
        let share = scratch.join("share");
        fs::create_dir(&share)?;
        for (source, name) in &self.share {
            let target = share.join(name);
            fs::create_dir_all(target.parent().context("a name below the share")?)?;
            let paths = [source.as_os_str(), target.as_os_str()];
            run(Command::new("cp").args(["-rL", "--reflink=auto"]).args(paths), None, Duration::from_secs(120))?
                .ok()?;
        }
        fs::write(share.join(".command"), script)?;
        let disk = scratch.join("disk");
        let size = format!("{}M", self.disk_mib);
        let [share_text, disk_text] = [&share, &disk].map(|path| path.to_string_lossy().into_owned());
        let options = ["-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", &share_text, &disk_text, &size];
        succeed("mke2fs", &options)?;
        fs::remove_dir_all(&share)?;

        let (emulator, model, console) = self.arch.emulator();
        let port = |name: &str| {
            let path = scratch.join(name);
            fs::write(&path, "").map(|()| format!("file,id={name},path={}", path.display()))
        };
        let drive = |path: &Path, id: &str, more: &str| {
            format!("if=none,format=raw,cache=unsafe,file={},id={id}{more}", path.display())
        };
        let child = Command::new(emulator)
            .args(model)
            .args(["-accel", "tcg,thread=multi", "-smp", "2", "-m", &self.memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(self.vmlinuz())
            .arg("-initrd")
            .arg(self.initramfs())
            // A panic ends the machine: it would reboot, which `-no-reboot` turns into an end.
            .args(["-append", &format!("console={console} quiet loglevel=4 panic=-1")])
            .args(["-drive", &drive(&self.root(), "root", ",snapshot=on")])
            .args(["-device", "virtio-blk-pci,drive=root"])
            .args(["-drive", &drive(&disk, "share", "")])
            .args(["-device", "virtio-blk-pci,drive=share"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &port("output")?, "-device", "virtserialport,chardev=output,name=output"])
            .args(["-chardev", &port("code")?, "-device", "virtserialport,chardev=code,name=code"])
            .args(["-serial", &format!("file:{}", scratch.join("console").display())])
            // Where the emulator keeps what is written to the root.
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(scratch.join("emulator"))?)
            .spawn()
            .with_context(|| format!("cannot start {emulator}; `make deps` installs it"))?;
        Ok(Running { child, scratch })
    }
}

/// A machine that runs. Dropping it ends it and removes its disk (M1).
#[derive(Debug)]
pub struct Running {
    child: Child,
    scratch: Scratch,
}

impl Running {
    /// What the command has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.scratch.join("output")).unwrap_or_default()).into_owned()
    }

    /// The emulator's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its disk lies.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// The output and the end of what emulator and kernel said, for messages.
    fn told(&self) -> String {
        let mut text = self.output();
        for name in ["emulator", "console"] {
            let bytes = fs::read(self.scratch.join(name)).unwrap_or_default();
            let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(4096)..]).into_owned();
            text.push_str(&format!("\n[{name}] {}", tail.trim_end()));
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The folder of images and of programs for each architecture (`scripts/vm-programs`): `BALEEN_VM`, if it has been made.
pub fn folder() -> Option<PathBuf> {
    std::env::var_os("BALEEN_VM").map(PathBuf::from).filter(|path| path.join("images").is_dir())
}
