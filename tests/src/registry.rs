//! The registry that Debian ships (`docker-registry`), on a loopback port with storage of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command::wait_for;
use crate::image::Image;
use crate::network::{self, in_network};
use crate::scratch::Scratch;

/// How a registry is to be reached.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Certificate and key: TLS, else plain HTTP.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// An htpasswd file (bcrypt): basic authentication.
    pub htpasswd: Option<PathBuf>,
    /// Whether every request is noted: see [`Registry::requests`].
    pub access_log: bool,
    /// The network to live in, at its own address; else the loopback address of the machine.
    pub network: Option<String>,
}

/// A running registry. Dropping it ends the process; its storage goes with the scratch folder.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    host: &'static str,
    port: u16,
    log: PathBuf,
}

impl Registry {
    /// Starts one over plain HTTP without authentication.
    ///
    /// # Errors
    /// As [`Registry::with`].
    pub fn start(scratch: &Scratch) -> Result<Self> {
        Self::with(scratch, &Options::default())
    }

    /// Starts one.
    ///
    /// # Errors
    /// If the program is missing or does not listen within ten seconds.
    pub fn with(scratch: &Scratch, options: &Options) -> Result<Self> {
        for _ in 0..5 {
            let port = free_port()?;
            let storage = scratch.join(format!("registry-{port}"));
            fs::create_dir_all(&storage)?;
            let host = if options.network.is_some() { network::ADDRESS } else { "127.0.0.1" };
            let mut config = format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: {}\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: {host}:{port}\n",
                !options.access_log,
                storage.display()
            );
            if let Some((certificate, key)) = &options.tls {
                config += &format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display());
            }
            if let Some(file) = &options.htpasswd {
                config += &format!("auth:\n  htpasswd:\n    realm: tests\n    path: {}\n", file.display());
            }
            let file = scratch.join(format!("registry-{port}.yml"));
            fs::write(&file, config)?;
            let log_file = scratch.join(format!("registry-{port}.log"));
            let log = fs::File::create(&log_file)?;
            let child = in_network(options.network.as_deref(), "docker-registry")
                .arg("serve")
                .arg(&file)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()
                .context("cannot start docker-registry; `make deps` installs it")?;
            let mut registry = Self { child, host, port, log: log_file };
            let address = registry.address();
            let up = wait_for("docker-registry listening", Duration::from_secs(10), || {
                if let Ok(Some(status)) = registry.child.try_wait() {
                    return Some(Err(status)); // Another program took the port in between: try the next one.
                }
                if options.network.is_none() {
                    return TcpStream::connect(&address).is_ok().then_some(Ok(()));
                }
                let url = format!("http://{address}/");
                // Any answer will do, that of a server which wants TLS too.
                let mut curl = in_network(options.network.as_deref(), "curl");
                curl.args(["-s", "-o", "/dev/null", "-m", "2", &url]).stdin(Stdio::null());
                curl.status().is_ok_and(|status| status.success()).then_some(Ok(()))
            })?;
            if up.is_ok() {
                return Ok(registry);
            }
        }
        bail!("docker-registry ended five times as it started")
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The requests so far, as `GET /v2/app/blobs/sha256:…`, if they are noted.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn requests(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(&self.log)?;
        let request = |line: &str| Some(line.split('"').nth(1)?.trim_end_matches(" HTTP/1.1").to_owned());
        Ok(text.lines().filter_map(request).filter(|request| request.contains(" /v2/")).collect())
    }

    /// Uploads an image as `name:tag` (OCI distribution-spec, Pushing Blobs Monolithically) without a client's help, where `skopeo` is
    /// not at hand. Plain HTTP without authentication only.
    ///
    /// # Errors
    /// If the registry refuses any of it.
    pub fn upload(&self, image: &Image, name: &str, tag: &str) -> Result<()> {
        for (digest, bytes) in image.blobs() {
            let begun = self.send("POST", &format!("/v2/{name}/blobs/uploads/"), None, &[])?;
            let location = begun.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
            });
            let location = location.with_context(|| format!("no place to upload to: {begun}"))?;
            let path = location.strip_prefix(&format!("http://{}", self.address())).unwrap_or(&location);
            let joint = if path.contains('?') { '&' } else { '?' };
            self.send("PUT", &format!("{path}{joint}digest={digest}"), Some("application/octet-stream"), &bytes)?;
        }
        let path = format!("/v2/{name}/manifests/{tag}");
        self.send("PUT", &path, Some(&image.manifest_type), &image.manifest).map(drop)
    }

    /// One request with its own connection; the answer's head, if it is one of success.
    fn send(&self, method: &str, path: &str, kind: Option<&str>, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(self.address())?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let kind = kind.map(|kind| format!("Content-Type: {kind}\r\n")).unwrap_or_default();
        let (address, length) = (self.address(), body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{kind}Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.take(1 << 20).read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|code| code.parse::<u16>().ok()).unwrap_or(0);
        if !(200..300).contains(&status) {
            bail!("{method} {path}: {answer}");
        }
        Ok(answer)
    }

    /// The reference of `name` (with its tag) in this registry.
    pub fn reference(&self, name: &str) -> String {
        format!("{}:{}/{name}", self.host, self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A port that nobody listens on at this moment.
///
/// # Errors
/// If the kernel gives none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
