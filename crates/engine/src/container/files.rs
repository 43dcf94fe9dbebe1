//! `hosts`, `hostname` and `resolv.conf` of a container: files in the exec root that are bound into it.
//!
//! F1  They are made once and then left alone: a file that the container changed is not rewritten while it exists.
//! F2  They lie in the exec root: after a reboot they are made again, and a start writes nothing to the disk for them.
//! F3  The engine writes nothing into a container's tree: these are mounts (threats R14).

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::stored::StoredContainer;
use crate::error::EngineError;

/// Longest host file that is copied.
const HOST_FILE_BYTES_MAX: u64 = 1 << 20;

/// Paths of the three files.
#[derive(Debug, Clone)]
pub(crate) struct EtcFiles {
    pub(crate) dir: PathBuf,
}

impl EtcFiles {
    pub(crate) fn of(exec_root: &Path, id: &str) -> Self {
        Self { dir: exec_root.join("etc").join(id) }
    }

    pub(crate) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub(crate) fn hostname(&self) -> PathBuf {
        self.dir.join("hostname")
    }

    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.dir.join("resolv.conf")
    }

    /// Makes what is missing.
    pub(crate) fn make(&self, container: &StoredContainer) -> Result<(), EngineError> {
        let io = |source| EngineError::Io { action: "create", path: self.dir.clone(), source };
        fs::create_dir_all(&self.dir).map_err(io)?;
        // The files are read by any user of the container, through a mount; the way to them is root's alone.
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
        let is_host = container.host_config.network_mode == "host";
        write_once(&self.hostname(), &format!("{}\n", container.config.hostname))?;
        write_once(&self.hosts(), &hosts(container, is_host))?;
        write_once(&self.resolv_conf(), &resolv_conf(container, is_host))
    }

    pub(crate) fn remove(&self) -> Result<(), EngineError> {
        match fs::remove_dir_all(&self.dir) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(EngineError::Io { action: "remove", path: self.dir.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

fn write_once(path: &Path, text: &str) -> Result<(), EngineError> {
    use std::io::Write;
    let io = |source| EngineError::Io { action: "write", path: path.to_owned(), source };
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).map_err(io),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(io(source)),
    }
}

/// A file of the host, or nothing if there is none or it is no plain text of a sane size.
fn host_file(path: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.take(HOST_FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
                     ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";

fn hosts(container: &StoredContainer, is_host: bool) -> String {
    let mut text = if is_host { host_file("/etc/hosts") } else { None }.unwrap_or_else(|| HOSTS.to_owned());
    for entry in container.host_config.extra_hosts.iter().flatten() {
        if let Some((name, address)) = entry.split_once([':', '=']) {
            if !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&format!("{}\t{name}\n", address.trim_matches(['[', ']'])));
        }
    }
    text
}

fn resolv_conf(container: &StoredContainer, is_host: bool) -> String {
    let host_config = &container.host_config;
    let own = [&host_config.dns, &host_config.dns_search, &host_config.dns_options];
    let host = if is_host { host_file("/etc/resolv.conf").unwrap_or_default() } else { String::new() };
    if own.iter().all(|list| list.as_ref().is_none_or(Vec::is_empty)) {
        return host;
    }
    let mut text = String::new();
    for (keyword, list) in [("nameserver", own[0]), ("search", own[1]), ("options", own[2])] {
        match list.as_ref().filter(|list| !list.is_empty()) {
            Some(list) if keyword == "nameserver" => {
                list.iter().for_each(|server| text.push_str(&format!("nameserver {server}\n")));
            }
            Some(list) => text.push_str(&format!("{keyword} {}\n", list.join(" "))),
            None => {
                let kept = host.lines().filter(|line| line.split_whitespace().next() == Some(keyword));
                kept.for_each(|line| text.push_str(&format!("{line}\n")));
            }
        }
    }
    text
}
