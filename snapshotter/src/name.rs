//! Names of an archive's entries: cleaned without looking at any disk, and what a whiteout's name means.
//!
//! A1  A cleaned path has no empty part, no `.`, no `..`; a path that would climb above its start is refused.
//! A2  `..` takes back the part before it by its letters, as Docker does: it never looks where that part leads.

use crate::error::{ExtractError, shown};
use crate::limits::{COMPONENT_BYTES_MAX, PATH_BYTES_MAX};

/// A path from the layer's root; no parts at all is the root itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CleanPath<'a>(Vec<&'a [u8]>);

/// What an entry does, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning<'a> {
    /// It is what its header says.
    Plain,
    /// It hides this name of the layers below.
    Whiteout(&'a [u8]),
    /// It hides all that the layers below have in its directory.
    Opaque,
    /// A trace of AUFS that means nothing here.
    Ignored,
}

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

impl<'a> CleanPath<'a> {
    /// Cleans `path`. A leading `/` counts for nothing.
    ///
    /// # Errors
    /// [`ExtractError::PathOutside`] if it climbs out; [`ExtractError::BadPath`] if it is too long or has a NUL.
    pub fn parse(path: &'a [u8]) -> Result<Self, ExtractError> {
        let bad = |problem| ExtractError::BadPath { path: shown(path), problem };
        if path.len() > PATH_BYTES_MAX {
            return Err(bad("has a name longer than 4096 bytes"));
        }
        if path.contains(&0) {
            return Err(bad("has a name with a zero byte"));
        }
        let mut parts = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    parts.pop().ok_or_else(|| ExtractError::PathOutside { path: shown(path) })?;
                }
                _ if part.len() > COMPONENT_BYTES_MAX => return Err(bad("has a part longer than 255 bytes")),
                _ => parts.push(part),
            }
        }
        Ok(Self(parts))
    }

    /// The parts.
    pub fn parts(&self) -> &[&'a [u8]] {
        &self.0
    }

    /// The directory's parts and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(&[&'a [u8]], &'a [u8])> {
        self.0.split_last().map(|(name, parents)| (parents, *name))
    }
}

/// What the last part of a name means (OCI image-spec, Whiteouts; `.wh..wh.` is AUFS's own).
///
/// # Errors
/// [`ExtractError::BadPath`] for a whiteout of nothing, of `.` or of `..`.
pub fn meaning(name: &[u8]) -> Result<Meaning<'_>, ExtractError> {
    if name == OPAQUE_NAME {
        return Ok(Meaning::Opaque);
    }
    let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) else { return Ok(Meaning::Plain) };
    if name.starts_with(AUFS_PREFIX) {
        return Ok(Meaning::Ignored);
    }
    match hidden {
        b"" | b"." | b".." => Err(ExtractError::BadPath { path: shown(name), problem: "is a whiteout of no file" }),
        _ => Ok(Meaning::Whiteout(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_cleaned_by_its_letters_and_never_climbs_out() {
        let clean = |path: &'static str| CleanPath::parse(path.as_bytes()).map(|path| path.parts().join(&b'/'));
        for (path, expected) in
            [("a/b", "a/b"), ("./a//b/", "a/b"), ("/a", "a"), ("a/../b", "b"), (".", ""), ("/", ""), ("", "")]
        {
            assert_eq!(clean(path).unwrap(), expected.as_bytes(), "{path}");
        }
        for path in ["..", "../x", "/../x", "a/../../x", "a/b/../../../x", "./../x"] {
            assert!(matches!(clean(path), Err(ExtractError::PathOutside { .. })), "{path}");
        }
        let long = "x".repeat(5000);
        assert!(matches!(CleanPath::parse(long.as_bytes()), Err(ExtractError::BadPath { .. })));
        assert!(matches!(CleanPath::parse(&long.as_bytes()[..256]), Err(ExtractError::BadPath { .. })));
        assert!(matches!(CleanPath::parse(b"a\0b"), Err(ExtractError::BadPath { .. })));
    }

    #[test]
    fn a_whiteout_of_no_file_is_refused() {
        assert_eq!(meaning(b".wh.a").unwrap(), Meaning::Whiteout(b"a"));
        assert_eq!(meaning(b".wh..wh..opq").unwrap(), Meaning::Opaque);
        assert_eq!(meaning(b".wh..wh.plnk").unwrap(), Meaning::Ignored);
        for name in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(meaning(name).is_err(), "{name:?}");
        }
    }
}
