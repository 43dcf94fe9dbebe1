//! API versions: which are announced, what a path asks for, and how one asks whether a version changes something.

use std::fmt;

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion {
    major: u32,
    minor: u32,
}

/// The oldest version that any client may ask for.
pub(crate) const FLOOR: ApiVersion = ApiVersion { major: 1, minor: 24 };
/// The newest version, which is announced.
pub(crate) const MAX: ApiVersion = ApiVersion { major: 1, minor: 44 };

impl ApiVersion {
    /// Reads `1.44`.
    pub(crate) fn parse(text: &str) -> Option<ApiVersion> {
        let (major, minor) = text.split_once('.')?;
        let number = |digits: &str| {
            (1..=4)
                .contains(&digits.len())
                .then(|| digits.parse().ok())
                .flatten()
                .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
        };
        Some(ApiVersion { major: number(major)?, minor: number(minor)? })
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// What a request asks for: a version, or none, which takes inputs as the newest does and answers with every field that
/// any version had (the balena supervisor speaks so).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked(pub(crate) Option<ApiVersion>);

impl Asked {
    /// Whether something that came with `1.minor` is understood and answered.
    pub(crate) fn since(self, minor: u32) -> bool {
        self.0.is_none_or(|version| version >= ApiVersion { major: 1, minor })
    }

    /// Whether a field that went away with `1.minor` is still answered.
    pub(crate) fn until(self, minor: u32) -> bool {
        self.0.is_none_or(|version| version < ApiVersion { major: 1, minor })
    }

    /// Whether the version itself is older than `1.minor` (where old and new answers exclude each other).
    pub(crate) fn before(self, minor: u32) -> bool {
        self.0.is_some_and(|version| version < ApiVersion { major: 1, minor })
    }
}

/// Takes `/v1.44` off a path. Gives the text of the version and the rest, which begins with a slash; or all of it.
pub(crate) fn split(path: &str) -> (Option<&str>, &str) {
    let Some(rest) = path.strip_prefix("/v") else { return (None, path) };
    let Some(slash) = rest.find('/') else { return (None, path) };
    let (version, rest) = rest.split_at(slash);
    if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return (None, path);
    }
    (Some(version), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_taken_off_a_path_only_if_it_is_one() {
        assert_eq!(split("/v1.44/_ping"), (Some("1.44"), "/_ping"));
        assert_eq!(split("/v1.44//x"), (Some("1.44"), "//x"));
        assert_eq!(split("/volumes"), (None, "/volumes"));
        assert_eq!(split("/volumes/x"), (None, "/volumes/x"));
        assert_eq!(split("/v/x"), (None, "/v/x"));
        assert_eq!(split("/_ping"), (None, "/_ping"));
    }

    #[test]
    fn versions_compare_as_numbers_not_as_text() {
        let nine = ApiVersion::parse("1.9").expect("a version");
        assert!(nine < FLOOR && FLOOR < MAX);
        for bad in ["1", "1.", ".1", "1.2.3", "1.+4", "99999.1", "", "1.44444"] {
            assert_eq!(ApiVersion::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_version_takes_the_newest_inputs_and_gives_every_output() {
        let none = Asked(None);
        assert!(none.since(44) && none.until(44) && !none.before(44));
        let old = Asked(ApiVersion::parse("1.43"));
        assert!(!old.since(44) && old.until(44) && old.before(44));
        let new = Asked(ApiVersion::parse("1.44"));
        assert!(new.since(44) && !new.until(44) && !new.before(44));
    }
}
