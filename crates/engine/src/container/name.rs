//! Names and IDs of containers: the rules, and names for those who do not care.

use crate::error::EngineError;

/// Longest name; Docker has no limit, but the name is a host name and part of a record.
const NAME_BYTES_MAX: usize = 255;

const ADJECTIVES: [&str; 48] = [
    "able", "amber", "brave", "brisk", "calm", "candid", "clever", "coastal", "cosy", "curious", "daring", "deep",
    "eager", "early", "fair", "frosty", "gentle", "glad", "golden", "hardy", "humble", "jolly", "keen", "kind",
    "lively", "lucid", "mellow", "merry", "mild", "nimble", "noble", "patient", "placid", "plucky", "polar", "proud",
    "quick", "quiet", "ready", "salty", "serene", "silver", "steady", "sunny", "swift", "tidal", "vivid", "wise",
];

const SURNAMES: [&str; 48] = [
    "anning",
    "babbage",
    "bell",
    "bohr",
    "boole",
    "carson",
    "cerf",
    "cori",
    "curie",
    "darwin",
    "dijkstra",
    "dirac",
    "euler",
    "faraday",
    "fermi",
    "feynman",
    "franklin",
    "galois",
    "gauss",
    "germain",
    "goodall",
    "hamilton",
    "herschel",
    "hopper",
    "hypatia",
    "jemison",
    "joule",
    "kepler",
    "knuth",
    "lamarr",
    "leavitt",
    "linnaeus",
    "lovelace",
    "maxwell",
    "meitner",
    "mendel",
    "mirzakhani",
    "noether",
    "pascal",
    "planck",
    "raman",
    "ride",
    "shannon",
    "sinclair",
    "tesla",
    "turing",
    "volta",
    "wu",
];

/// A name without its leading slash, if it is one.
///
/// # Errors
/// `InvalidName` in Docker's words.
pub(crate) fn check(name: &str) -> Result<&str, EngineError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if first && rest && bare.len() >= 2 && bare.len() <= NAME_BYTES_MAX {
        Ok(bare)
    } else {
        Err(EngineError::InvalidName { name: name.to_owned() })
    }
}

/// A name like `brave_hopper`; from the second attempt on with a digit, so that the names never run out.
pub(crate) fn made_up(random: u64, attempt: u32) -> String {
    let adjective = ADJECTIVES[(random % ADJECTIVES.len() as u64) as usize];
    let surname = SURNAMES[(random / ADJECTIVES.len() as u64 % SURNAMES.len() as u64) as usize];
    match attempt {
        0 => format!("{adjective}_{surname}"),
        _ => format!("{adjective}_{surname}{}", random >> 32 & 0xffff),
    }
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], EngineError> {
    let mut bytes = [0; N];
    // By the system call: /dev may be empty where the daemon lives in a chroot.
    getrandom::getrandom(&mut bytes).map_err(|error| EngineError::Io {
        action: "read",
        path: "the kernel's random numbers".into(),
        source: std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or_default()),
    })?;
    Ok(bytes)
}

/// A new ID: 64 hex digits, of which the first 12 are not all decimal (a short ID must not look like a number).
pub(crate) fn new_id() -> Result<String, EngineError> {
    loop {
        let id: String = random::<32>()?.iter().map(|byte| format!("{byte:02x}")).collect();
        if !id.bytes().take(12).all(|byte| byte.is_ascii_digit()) {
            return Ok(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule_with_or_without_a_slash() {
        for name in ["ab", "/web", "a_b.c-1", "0a"] {
            assert_eq!(check(name).unwrap(), name.trim_start_matches('/'));
        }
        for name in ["", "/", "a", "_a", "-a", ".a", "a b", "a/b", "//ab", "é1", "a\n"] {
            let error = check(name).unwrap_err();
            let text = format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed");
            assert_eq!(error.to_string(), text);
        }
    }

    #[test]
    fn made_up_names_are_names() {
        for random in (0..50_000_000_u64).step_by(1_234_567) {
            assert!(check(&made_up(random, 0)).is_ok());
            assert!(check(&made_up(random << 20, 1)).is_ok());
        }
    }

    #[test]
    fn ids_have_64_hex_digits_and_differ() {
        let (one, other) = (new_id().unwrap(), new_id().unwrap());
        assert_ne!(one, other);
        assert!(one.len() == 64 && one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
