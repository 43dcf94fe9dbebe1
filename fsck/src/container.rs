//! A container's folder: what makes it one, without looking into what belongs to the container.

use std::io;

use baleen_oci::Digest;
use baleen_store::{Access, Inspection, NodeKind, StoredObject, read_file};

use crate::finding::{Code, Finding};

const CONFIG_NAME: &[u8] = b"config.json";
/// Longest that is read (docs/formats/container.md).
const CONFIG_BYTES_MAX: u64 = 8 << 20;
const VERSION: u64 = 1;
/// What begins the digest that ends a configuration, and what follows its digits.
const DIGEST_FIELD: &str = ",\"digest\":\"sha256:";
const DIGEST_END: &str = "\"}";

/// Checks `config.json` and that the folder has what a start needs.
pub(crate) fn check(inspection: &Inspection, id: &str, findings: &mut Vec<Finding>) {
    let disk = inspection.disk();
    let object = StoredObject::Container(id.to_owned());
    let path = object.path();
    let folder = match inspection.place(&object).and_then(|(dir, name)| disk.open_dir(&dir, &name)) {
        Ok(folder) => folder,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return, // The quick check names it.
        Err(error) => {
            findings.push(Finding::new(Code::ContainerIncomplete, path, format!("cannot be opened: {error}")));
            return;
        }
    };
    for name in ["upper", "work", "merged"] {
        let there = disk.metadata_at(&folder, name.as_bytes());
        if !there.is_ok_and(|found| found.kind == NodeKind::Directory) {
            let detail = format!("lacks the directory {name}");
            findings.push(Finding::new(Code::ContainerIncomplete, path.clone(), detail));
        }
    }
    let file = disk.open_file(&folder, CONFIG_NAME, Access::Read);
    let problem = match file.and_then(|file| read_file(disk.as_ref(), &file, CONFIG_BYTES_MAX)) {
        Ok(bytes) => problem_of(&bytes, id),
        Err(error) => Some(unreadable(&error)),
    };
    if let Some(problem) = problem {
        findings.push(Finding::new(Code::ContainerConfig, format!("{path}/config.json"), problem));
    }
}

fn unreadable(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "is not there".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

/// What is wrong with a configuration.
fn problem_of(bytes: &[u8], id: &str) -> Option<String> {
    let Ok(text) = std::str::from_utf8(bytes) else { return Some("is not text".to_owned()) };
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => return Some(format!("is not JSON: {error}")),
    };
    if value["version"].as_u64() != Some(VERSION) {
        return Some("is of a version that this build does not know".to_owned());
    }
    if value["id"].as_str() != Some(id) {
        return Some("is that of another container".to_owned());
    }
    if (value.get("digest").is_some() || ends_like_a_digest(text)) && !digest_matches(text) {
        return Some("has other bytes than were stored".to_owned());
    }
    None
}

/// Whether the last value is as long as a digest's digits: the name of the field may be what is damaged.
fn ends_like_a_digest(text: &str) -> bool {
    let tail = text.trim_end().strip_suffix(DIGEST_END).unwrap_or_default();
    let digits = tail.bytes().rev().take_while(u8::is_ascii_hexdigit).count();
    digits == 64
}

/// Whether a configuration that ends with its own digest is what that digest says.
fn digest_matches(text: &str) -> bool {
    let Some(start) = text.rfind(DIGEST_FIELD) else { return false };
    let (body, tail) = text.split_at(start);
    let hex = tail[DIGEST_FIELD.len()..].trim_end().strip_suffix(DIGEST_END);
    let Some(Ok(digest)) = hex.map(|hex| format!("sha256:{hex}").parse::<Digest>()) else { return false };
    digest.matches(format!("{body}}}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_held_to_its_digest() {
        let body = r#"{"version":1,"id":"abc","path":"true"}"#;
        assert_eq!(problem_of(body.as_bytes(), "abc"), None);
        let digest = Digest::sha256_of(body.as_bytes());
        let whole = format!("{},\"digest\":\"{digest}\"}}", &body[..body.len() - 1]);
        assert_eq!(problem_of(whole.as_bytes(), "abc"), None);
        assert!(problem_of(whole.as_bytes(), "abd").is_some());
        for index in 0..whole.len() {
            let mut changed = whole.clone().into_bytes();
            changed[index] ^= 0x01;
            assert!(problem_of(&changed, "abc").is_some(), "byte {index}");
        }
    }
}
