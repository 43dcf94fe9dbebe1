//! The folders that the daemon is given: fit for what only root may write?
//!
//! P1  Every folder on the way belongs to root, and others may write into it only if it is sticky; a symbolic link on the
//!     way belongs to root. Else somebody could exchange the store under the daemon (threats F5).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Why a folder is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// P1.
    #[error(
        "{path} belongs to user {owner}, who could exchange what lies below it; give it to root (chown root), or choose another root folder"
    )]
    ForeignOwner {
        /// The folder or link.
        path: PathBuf,
        /// Its user ID.
        owner: u32,
    },
    /// P1.
    #[error(
        "{path} may be written by everybody, who could exchange what lies below it; take that right away (chmod o-w), or choose another root folder"
    )]
    Open {
        /// The folder.
        path: PathBuf,
    },
    /// It cannot be looked at.
    #[error("cannot look at {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks a folder that may not exist yet, as it is named and as it is after all links.
///
/// # Errors
/// Each variant of [`PlaceError`], with the part of the path that it is about.
pub(crate) fn check(path: &Path) -> Result<(), PlaceError> {
    check_as_named(path)?;
    let mut existing = path;
    let real = loop {
        match fs::canonicalize(existing) {
            Ok(real) => break real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => match existing.parent() {
                Some(parent) => existing = parent,
                None => return Ok(()),
            },
            Err(source) => return Err(PlaceError::Io { path: existing.to_owned(), source }),
        }
    };
    check_as_named(&real)
}

fn check_as_named(path: &Path) -> Result<(), PlaceError> {
    let mut parts: Vec<&Path> = path.ancestors().collect();
    parts.reverse();
    for part in parts {
        let found = match fs::symlink_metadata(part) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(PlaceError::Io { path: part.to_owned(), source }),
        };
        // Who runs the daemon is trusted as root is: without root it cannot do harm to others.
        let owner = found.uid();
        if owner != 0 && owner != rustix::process::geteuid().as_raw() {
            return Err(PlaceError::ForeignOwner { path: part.to_owned(), owner });
        }
        let (others_write, sticky) = (found.mode() & 0o002 != 0, found.mode() & 0o1000 != 0);
        if found.is_dir() && others_write && !sticky {
            return Err(PlaceError::Open { path: part.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, lchown, symlink};

    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_root_that_others_could_exchange_is_refused() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("SKIPPED: a_root_that_others_could_exchange_is_refused: needs root");
            return;
        }
        let scratch = Scratch(std::env::temp_dir().join(format!("baleen-places-{}", std::process::id())));
        let at = |name: &str| scratch.0.join(name);
        fs::create_dir_all(at("mine/below")).expect("fresh folders");
        assert!(check(&at("mine/below")).is_ok());
        assert!(check(&at("mine/to/come")).is_ok());

        fs::create_dir(at("open")).expect("a fresh folder");
        fs::set_permissions(at("open"), fs::Permissions::from_mode(0o777)).expect("ours");
        assert!(matches!(check(&at("open/data")), Err(PlaceError::Open { path }) if path == at("open")));
        fs::set_permissions(at("open"), fs::Permissions::from_mode(0o1777)).expect("ours");
        assert!(check(&at("open/data")).is_ok());

        fs::create_dir(at("theirs")).expect("a fresh folder");
        lchown(at("theirs"), Some(65534), Some(65534)).expect("we are root");
        assert!(matches!(check(&at("theirs/data")), Err(PlaceError::ForeignOwner { owner: 65534, .. })));

        symlink(at("theirs"), at("link")).expect("a fresh link");
        assert!(
            matches!(check(&at("link/data")), Err(PlaceError::ForeignOwner { path, .. }) if path.ends_with("theirs"))
        );
        symlink(at("mine"), at("their-link")).expect("a fresh link");
        lchown(at("their-link"), Some(65534), Some(65534)).expect("we are root");
        assert!(
            matches!(check(&at("their-link/x")), Err(PlaceError::ForeignOwner { path, .. }) if path == at("their-link"))
        );
    }
}
