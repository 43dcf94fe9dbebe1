//! The binary as it is shipped: one static file that needs nothing of the system around it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use baleen_tests::command::{run, succeed, wait_for};
use baleen_tests::http;
use baleen_tests::image::busybox;
use baleen_tests::needs_root;
use baleen_tests::network::{ADDRESS, Network, in_network};
use baleen_tests::registry::{Options, Registry};
use baleen_tests::scratch::Scratch;
use baleen_tests::skip::skipped;

/// The release binary, which `make test` builds and names.
fn release() -> Option<PathBuf> {
    std::env::var_os("BALEEN_RELEASE_BIN").map(PathBuf::from).filter(|path| path.is_file())
}

#[test]
fn the_release_binary_is_static_and_stripped() -> Result<()> {
    let Some(binary) = release() else {
        skipped("the_release_binary_is_static_and_stripped", "BALEEN_RELEASE_BIN is not set; `make test` sets it");
        return Ok(());
    };
    let text = binary.to_string_lossy().into_owned();
    let headers = succeed("readelf", &["-lW", &text])?.stdout();
    assert!(!headers.contains("INTERP"), "it wants a loader:\n{headers}");
    let dynamic = succeed("readelf", &["-dW", &text])?.stdout();
    assert!(!dynamic.contains("NEEDED"), "it wants libraries:\n{dynamic}");
    let sections = succeed("readelf", &["-SW", &text])?.stdout();
    assert!(!sections.contains(".symtab") && !sections.contains(".debug_info"), "it is not stripped");
    println!("{} bytes", fs::metadata(&binary)?.len());
    Ok(())
}

#[test]
fn the_release_binary_has_no_deliberate_faults() -> Result<()> {
    let Some(binary) = release() else {
        skipped("the_release_binary_has_no_deliberate_faults", "BALEEN_RELEASE_BIN is not set; `make test` sets it");
        return Ok(());
    };
    // The variable that chooses one (store/src/mutation.rs).
    let name = ["BALEEN", "MUTATION"].join("_");
    let holds = |path: &Path| -> Result<bool> {
        Ok(fs::read(path)?.windows(name.len()).any(|window| window == name.as_bytes()))
    };
    assert!(!holds(&binary)?, "{name} is in {}", binary.display());
    // Where it must be, it is found.
    if let Some(mutated) = std::env::var_os("BALEEN_MUTATED_BIN").map(PathBuf::from) {
        assert!(holds(&mutated)?, "{name} is not in {}", mutated.display());
    }
    Ok(())
}

/// A process in a chroot that is ended when this goes.
struct Jailed(std::process::Child);

impl Drop for Jailed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Answers every question for an address with `10.99.0.1`, until it is dropped. It lives in the network namespace as a Python
/// process, since a thread of the tests cannot move there.
struct NameServer(std::process::Child);

impl NameServer {
    fn start(network: &Network) -> Result<Self> {
        let script = format!(
            "import socket,sys\n\
             s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('127.0.0.1',53)); print('up',flush=True)\n\
             while True:\n\
             \x20 q,a=s.recvfrom(512)\n\
             \x20 e=q.index(0,12)+5; v4=q[e-4:e-2]==bytes([0,1])\n\
             \x20 h=q[:2]+bytes([0x81,0x80,0,1,0,1 if v4 else 0,0,0,0,0])+q[12:e]\n\
             \x20 s.sendto(h+(bytes([0xc0,12,0,1,0,1,0,0,0,9,0,4])+socket.inet_aton('{ADDRESS}') if v4 else b''),a)\n"
        );
        let mut command = in_network(Some(network.name()), "/usr/bin/python3");
        command.args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = Self(command.spawn()?);
        let mut line = [0_u8; 3];
        std::io::Read::read_exact(server.0.stdout.as_mut().context("no output")?, &mut line)
            .context("the name server did not come up")?;
        Ok(server)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn pull_in_jail(scratch: &Scratch, network: &Network, reference: &str, files: &[(&str, String)]) -> Result<()> {
    let Some(binary) = release() else { bail!("no release binary") };
    let jail = scratch.join(format!("jail{}", files.len()));
    fs::create_dir(&jail)?;
    fs::copy(&binary, jail.join("baleen"))?;
    for (path, text) in files {
        let path = jail.join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
        fs::write(path, text)?;
    }
    let log = fs::File::create(scratch.join("jail.log"))?;
    let insecure = reference.split('/').next().unwrap_or_default().to_owned();
    let mut command = in_network(Some(network.name()), "/usr/sbin/chroot");
    command
        .arg(&jail)
        .args(["/baleen", "daemon", "-H", "unix:///s", "--data-root", "/root", "--exec-root", "/x", "-p", "/pid"])
        .args(["--insecure-registry", &insecure])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let mut daemon = Jailed(command.spawn()?);
    let said = || fs::read_to_string(scratch.join("jail.log")).unwrap_or_default();
    let socket = jail.join("s");
    wait_for("the daemon in the chroot", Duration::from_secs(20), || {
        if let Ok(Some(status)) = daemon.0.try_wait() {
            return Some(Err(anyhow::anyhow!("ended with {status}: {}", said())));
        }
        matches!(http::request(&socket, "GET", "/_ping", None), Ok(answer) if answer.status == 200).then_some(Ok(()))
    })??;
    let mut client = Command::new("docker");
    client.args(["pull", reference]).env("DOCKER_HOST", format!("unix://{}", socket.display()));
    client.env("DOCKER_CONFIG", scratch.join("client"));
    run(&mut client, None, Duration::from_secs(60))?.ok().with_context(said)?;
    let names: Vec<_> = fs::read_dir(&jail)?.flatten().map(|entry| entry.file_name()).collect();
    println!("{reference} was pulled in a chroot with {names:?}");
    Ok(())
}

#[test]
fn the_release_binary_pulls_in_an_empty_chroot() -> Result<()> {
    needs_root!("the_release_binary_pulls_in_an_empty_chroot");
    if release().is_none() {
        let name = "the_release_binary_pulls_in_an_empty_chroot";
        skipped(name, "BALEEN_RELEASE_BIN is not set; `make test` sets it");
        return Ok(());
    }
    let scratch = Scratch::new("chroot")?;
    let network = Network::new()?;
    let registry =
        Registry::with(&scratch, &Options { network: Some(network.name().to_owned()), ..Options::default() })?;
    busybox()?.push_from(&scratch, &registry.reference("app:v1"), Some(network.name()), &[])?;
    pull_in_jail(&scratch, &network, &registry.reference("app:v1"), &[])
}

#[test]
fn the_release_binary_looks_names_up_without_the_systems_library() -> Result<()> {
    needs_root!("the_release_binary_looks_names_up_without_the_systems_library");
    if release().is_none() {
        let name = "the_release_binary_looks_names_up_without_the_systems_library";
        skipped(name, "BALEEN_RELEASE_BIN is not set; `make test` sets it");
        return Ok(());
    }
    let scratch = Scratch::new("names")?;
    let network = Network::new()?;
    let registry =
        Registry::with(&scratch, &Options { network: Some(network.name().to_owned()), ..Options::default() })?;
    busybox()?.push_from(&scratch, &registry.reference("app:v1"), Some(network.name()), &[])?;
    let port = registry.address().rsplit_once(':').context("no port")?.1.to_owned();
    let reference = format!("registry.test:{port}/app:v1");
    // By the list of hosts alone, then by a name server alone.
    pull_in_jail(&scratch, &network, &reference, &[("etc/hosts", format!("{ADDRESS} registry.test\n"))])?;
    let _server = NameServer::start(&network)?;
    let files = [("etc/resolv.conf", "nameserver 127.0.0.1\n".to_owned()), ("etc/hosts", String::new())];
    pull_in_jail(&scratch, &network, &reference, &files)
}
