//! Kernel settings of the network namespace of the calling thread, by files of `/proc/sys/net`.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::error::NetworkError;

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

/// The value, or nothing where the kernel has no such setting.
pub(crate) fn read(name: &str) -> Option<String> {
    fs::read_to_string(path(name)).ok().map(|text| text.trim().to_owned())
}

/// Sets a value unless it is so already.
pub(crate) fn write(name: &str, value: &str) -> Result<(), NetworkError> {
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    fs::write(path(name), value).map_err(|source| NetworkError::Io { action: "set", path: path(name), source })
}

/// The same where the kernel may lack the setting, as one without IPv6 does.
pub(crate) fn write_if_there(name: &str, value: &str) -> Result<(), NetworkError> {
    match write(name, value) {
        Err(NetworkError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
