//! Where the daemon listens: Unix sockets with the right owner from their first moment, activated ones, TCP.
//!
//! K1  A socket in the file system is 0600 when it appears and 0660 root:GROUP before it accepts anything.
//! K2  A stale socket is removed only after a connection to it was refused; a socket that answers is never touched, and the
//!     daemon behind it is named.
//! K3  At the end, only a socket that is still ours is removed.
//!
//! Touches: the paths of `unix://` hosts, `/etc/group`.

use std::fs;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{TcpListener, UnixListener};

use crate::http::Stream;
use crate::settings::Host;
use crate::sys;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// `/etc/group` is not read beyond this.
const GROUP_BYTES_MAX: u64 = 4 << 20;
/// How long another daemon may take to say who it is.
const ANSWER_TIME: Duration = Duration::from_secs(2);

/// Why the daemon cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SocketError {
    /// K2.
    #[error("{who} answers on unix://{path}; stop it, or give this daemon a socket of its own with -H unix://PATH")]
    InUse {
        /// The socket.
        path: PathBuf,
        /// The other daemon, as far as it could be found out.
        who: String,
    },
    /// Something else has the name.
    #[error("{path} exists and is no socket; remove it, or choose another path with -H unix://PATH")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// `--group` names nobody.
    #[error("group {group} not found; add it with `groupadd {group}`, or name another one with --group")]
    NoSuchGroup {
        /// As given.
        group: String,
    },
    /// `fd://` without a service manager.
    #[error("no sockets found via socket activation: make sure the service was started by systemd")]
    NotActivated,
    /// A system call failed.
    #[error("cannot {action} {place}")]
    Io {
        /// A verb.
        action: &'static str,
        /// Path or address.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One place where connections come from.
pub(crate) enum Listener {
    /// With the path and inode of what we made, if we made it.
    Unix(UnixListener, Option<(PathBuf, u64)>),
    Tcp(TcpListener),
}

impl Listener {
    /// Waits for the next connection.
    pub(crate) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
            Listener::Tcp(listener) => Ok(Stream::Tcp(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Listener::Unix(_, Some((path, inode))) = self else { return };
        if fs::symlink_metadata(&*path).is_ok_and(|found| found.ino() == *inode) {
            // It is only a name: whoever comes next finds it stale.
            let _ = fs::remove_file(path);
        }
    }
}

/// Opens all hosts. Must run before other threads exist, since it sets the umask for a moment, and inside a runtime.
///
/// # Errors
/// Each variant of [`SocketError`]. What was opened before the one that failed is closed again.
pub(crate) fn listen(hosts: &[Host], group: &str, group_is_named: bool) -> Result<Vec<Listener>, SocketError> {
    let mut listeners = Vec::new();
    for host in hosts {
        match host {
            Host::Unix(path) => {
                let gid = match find_group(Path::new("/etc/group"), group) {
                    Some(gid) => gid,
                    None if group_is_named => return Err(SocketError::NoSuchGroup { group: group.to_owned() }),
                    None => {
                        tracing::warn!(group, "group not found; the socket belongs to root alone");
                        0
                    }
                };
                listeners.push(unix(path, gid)?);
            }
            Host::Tcp(address) => listeners.push(tcp(*address)?),
            Host::Activated(which) => listeners.extend(activated(*which)?),
        }
    }
    Ok(listeners)
}

fn unix(path: &Path, gid: u32) -> Result<Listener, SocketError> {
    let io_error = |action, source: io::Error| SocketError::Io { action, place: path.display().to_string(), source };
    remove_stale(path)?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(|error| io_error("make the folder of", error))?;
    }
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| io_error("open a socket for", error.into()))?;
    let address = SocketAddrUnix::new(path).map_err(|error| io_error("name", error.into()))?;
    // Nobody but us may connect between the name's appearance and its final mode (K1).
    let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(umask);
    bound.map_err(|error| io_error("bind", error.into()))?;
    chown(path, Some(0), Some(gid)).map_err(|error| io_error("give to its group", error))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(|error| io_error("set the mode of", error))?;
    let inode = fs::symlink_metadata(path).map_err(|error| io_error("look at", error))?.ino();
    rustix::net::listen(&socket, BACKLOG).map_err(|error| io_error("listen on", error.into()))?;
    let listener = unix_listener(socket).map_err(|error| io_error("listen on", error))?;
    Ok(Listener::Unix(listener, Some((path.to_owned(), inode))))
}

fn unix_listener(socket: OwnedFd) -> io::Result<UnixListener> {
    let listener = StdUnixListener::from(socket);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn tcp(address: SocketAddr) -> Result<Listener, SocketError> {
    let io_error = |source| SocketError::Io { action: "listen on", place: format!("tcp://{address}"), source };
    let listener = std::net::TcpListener::bind(address).map_err(io_error)?;
    listener.set_nonblocking(true).map_err(io_error)?;
    tracing::warn!(address = %address, "the API is open on the network without client certificates: whoever reaches it is root");
    TcpListener::from_std(listener).map(Listener::Tcp).map_err(io_error)
}

fn activated(which: Option<u32>) -> Result<Vec<Listener>, SocketError> {
    let mut sockets = sys::take_activated_sockets();
    if let Some(which) = which {
        let index = usize::try_from(which).ok().and_then(|number| number.checked_sub(3)).filter(|n| *n < sockets.len());
        sockets = index.map(|index| vec![sockets.swap_remove(index)]).unwrap_or_default();
    }
    if sockets.is_empty() {
        return Err(SocketError::NotActivated);
    }
    let io_error = |source| SocketError::Io { action: "listen on", place: "fd://".to_owned(), source };
    let open = |socket: OwnedFd| match rustix::net::sockopt::socket_domain(&socket)? {
        AddressFamily::UNIX => Ok(Listener::Unix(unix_listener(socket)?, None)),
        _ => {
            let listener = std::net::TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener).map(Listener::Tcp)
        }
    };
    sockets.into_iter().map(|socket| open(socket).map_err(io_error)).collect()
}

/// Makes way for a new socket (K2).
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let io_error = |action, source| SocketError::Io { action, place: path.display().to_string(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("look at", error)),
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match StdUnixStream::connect(path) {
        Ok(stream) => Err(SocketError::InUse { path: path.to_owned(), who: who_answers(stream) }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| io_error("remove the stale socket", error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("find out who listens on", error)),
    }
}

/// Finds out who listens: its process by the socket, its name and version by asking.
fn who_answers(mut stream: StdUnixStream) -> String {
    let pid = rustix::net::sockopt::socket_peercred(&stream).ok().map(|peer| peer.pid.as_raw_nonzero().get());
    let name = ask_version(&mut stream).ok().flatten().unwrap_or_else(|| "another daemon".to_owned());
    match pid {
        Some(pid) => format!("{name} (pid {pid})"),
        None => name,
    }
}

fn ask_version(stream: &mut StdUnixStream) -> io::Result<Option<String>> {
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    stream.write_all(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((_, body)) = answer.split_once("\r\n\r\n") else { return Ok(None) };
    // HTTP/1.0 gets no chunks; if it does all the same, the document still lies between the first and the last brace.
    let document =
        body.find('{').zip(body.rfind('}')).and_then(|(start, end)| body.get(start..=end)).unwrap_or_default();
    let Ok(version) = serde_json::from_str::<serde_json::Value>(document) else { return Ok(None) };
    let text = |value: &serde_json::Value| {
        value.as_str().map(|text| text.chars().filter(|c| !c.is_control()).take(80).collect())
    };
    let number: Option<String> = text(&version["Version"]);
    let engine: String = text(&version["Engine"])
        .or_else(|| text(&version["Platform"]["Name"]))
        .filter(|name: &String| !name.is_empty())
        .unwrap_or_else(|| "Docker".to_owned());
    Ok(number.map(|number| format!("another daemon ({engine} {number})")))
}

/// Looks a group up by name or number in a group file, without the C library's name services.
fn find_group(file: &Path, group: &str) -> Option<u32> {
    let mut text = String::new();
    let opened = fs::File::open(file).and_then(|file| file.take(GROUP_BYTES_MAX).read_to_string(&mut text));
    let found = opened.ok().and_then(|_| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let gid = fields.nth(1)?.parse().ok()?;
            (name == group).then_some(gid)
        })
    });
    found.or_else(|| group.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_name_and_by_number() {
        let file = std::env::temp_dir().join(format!("baleen-group-{}", std::process::id()));
        fs::write(&file, "root:x:0:\nbroken\ndocker:x:106:alice\n\nlate:x:nan:\n").expect("a scratch file");
        let found = ["docker", "root", "106", "absent", "late", "broken"].map(|name| find_group(&file, name));
        fs::remove_file(&file).expect("still there");
        assert_eq!(found, [Some(106), Some(0), Some(106), None, None, None]);
        assert_eq!(find_group(Path::new("/nonexistent"), "docker"), None);
    }
}
