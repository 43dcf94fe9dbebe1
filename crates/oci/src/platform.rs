//! Platforms: what an image was built for, what this machine runs, and the best of an index.
//!
//! P1  A platform is always in Docker's normal form: `amd64`, `arm64` (its `v8` left out), `arm` with its variant.
//! P2  A machine runs its own architecture's variants downwards, then its 32-bit sister: `arm64` runs `arm/v8` to
//!     `arm/v5`, `amd64` runs `386`. The first in that order that an index offers is the best.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::json::null_as_default;

/// An operating system, architecture and variant (OCI image-spec, image index, `platform`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux` for everything that runs here.
    #[serde(default, deserialize_with = "null_as_default")]
    pub os: String,
    /// `amd64`, `arm64`, `arm`, `386`, `riscv64` and so on, as Go names them.
    #[serde(default, deserialize_with = "null_as_default")]
    pub architecture: String,
    /// `v7` of `arm/v7`; empty if none.
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a platform; write os/architecture or os/architecture/variant, such as linux/arm/v7")]
pub struct PlatformError {
    /// The text.
    pub text: String,
}

impl Platform {
    /// The platform in normal form.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Platform {
        let (os, architecture, variant) = (os.to_lowercase(), architecture.to_lowercase(), variant.to_lowercase());
        let os = if os == "macos" { "darwin".to_owned() } else { os };
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Platform { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// The platform that this program was built for.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86" => ("386", ""),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
            "arm" if cfg!(target_feature = "v7") => ("arm", "v7"),
            "arm" if cfg!(target_feature = "v6") => ("arm", "v6"),
            "arm" => ("arm", "v5"),
            other => (other, ""),
        };
        Platform::new(std::env::consts::OS, architecture, variant)
    }

    /// The platform of a machine whose `uname -m` says `machine` (`armv7l`, `aarch64`): a program built for `arm/v6`
    /// learns by it that the processor is a v7. Falls back to [`Platform::host`].
    pub fn host_on(machine: &str) -> Platform {
        let host = Platform::host();
        if host.architecture != "arm" {
            return host;
        }
        let variant = match machine.as_bytes() {
            [b'a', b'r', b'm', b'v', version @ b'5'..=b'8', ..] => format!("v{}", char::from(*version)),
            b"aarch64" => "v8".to_owned(),
            _ => return host,
        };
        Platform { variant, ..host }
    }

    /// In normal form (P1); for one that came from a document.
    pub fn normalised(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, &self.variant)
    }

    /// Whether `other` is the same but for the way it is written.
    pub fn is_same(&self, other: &Platform) -> bool {
        self.normalised() == other.normalised()
    }

    /// How well an image for `image` runs on a machine of this platform: 0 is best, `None` is not at all (P2).
    pub fn rank(&self, image: &Platform) -> Option<usize> {
        let (own, image) = (self.normalised(), image.normalised());
        if own.os != image.os {
            return None;
        }
        own.runnable()
            .iter()
            .position(|(architecture, variant)| *architecture == image.architecture && *variant == image.variant)
    }

    /// Architectures and variants that this platform runs, best first. `self` is in normal form.
    fn runnable(&self) -> Vec<(String, String)> {
        let mut list = vec![(self.architecture.clone(), self.variant.clone())];
        let mut add = |architecture: &str, variant: String| {
            let item = (architecture.to_owned(), variant);
            if !list.contains(&item) {
                list.push(item);
            }
        };
        let level = |default: u32| match self.variant.strip_prefix('v') {
            Some(digits) => digits.split('.').next().unwrap_or("").parse().unwrap_or(default),
            None => default,
        };
        match self.architecture.as_str() {
            "amd64" => {
                for below in (2..level(1).min(9)).rev() {
                    add("amd64", format!("v{below}"));
                }
                add("amd64", String::new());
                add("386", String::new());
            }
            "arm64" => {
                for below in (9..level(8).min(20)).rev() {
                    add("arm64", format!("v{below}"));
                }
                add("arm64", String::new());
                for below in (5..=8).rev() {
                    add("arm", format!("v{below}"));
                }
            }
            "arm" => {
                for below in (5..level(7).min(9)).rev() {
                    add("arm", format!("v{below}"));
                }
            }
            _ => {}
        }
        list
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Platform, PlatformError> {
        let error = || PlatformError { text: text.chars().take(64).collect() };
        let part_fits = |part: &&str| {
            let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
            !part.is_empty() && part.len() <= 32 && part.bytes().all(inner)
        };
        let parts: Vec<&str> = text.split('/').take(4).collect();
        if !parts.iter().all(part_fits) {
            return Err(error());
        }
        match parts[..] {
            // As Docker: one word is an operating system if it is one, else an architecture.
            [os @ ("linux" | "windows" | "darwin" | "macos" | "freebsd")] => {
                let host = Platform::host();
                Ok(Platform::new(os, &host.architecture, &host.variant))
            }
            [architecture] => Ok(Platform::new("linux", architecture, "")),
            [os, architecture] => Ok(Platform::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Platform::new(os, architecture, variant)),
            _ => Err(error()),
        }
    }
}

/// `linux/arm/v7`, as Docker writes it.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.is_empty() {
            true => Ok(()),
            false => write!(f, "/{}", self.variant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn platforms_are_normal_whatever_they_were_called() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("Linux/ARM/6", "linux/arm/v6"),
            ("arm64", "linux/arm64"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(platform(text).to_string(), normal);
        }
        for text in ["", "/", "linux/", "a/b/c/d", "linux/a b", "linux/amd64/"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_machine_runs_its_variants_downwards_then_its_sister() {
        let rank = |machine, image| platform(machine).rank(&platform(image));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v7"), Some(0));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v6"), Some(1));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v5"), Some(2));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), None);
        assert_eq!(rank("linux/arm64", "linux/arm64/v8"), Some(0));
        assert!(rank("linux/arm64", "linux/arm64") < rank("linux/arm64", "linux/arm/v7"));
        assert!(rank("linux/arm64", "linux/arm/v7") < rank("linux/arm64", "linux/arm/v6"));
        assert_eq!(rank("linux/amd64", "linux/386"), Some(1));
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), None);
        assert_eq!(rank("linux/amd64/v3", "linux/amd64/v2"), Some(1));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64"), Some(2));
        assert_eq!(rank("linux/amd64", "windows/amd64"), None);
        assert_eq!(rank("linux/amd64", "linux/arm64"), None);
    }

    #[test]
    fn this_machine_runs_what_it_was_built_for() {
        assert_eq!(Platform::host().rank(&Platform::host()), Some(0));
        assert_eq!(Platform::host_on("nonsense"), Platform::host());
    }
}
