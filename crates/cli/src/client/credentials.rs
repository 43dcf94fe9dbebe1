//! Credentials for registries, as docker's clients keep them: `config.json`, and helper programs.
//!
//! Secrets go from the file or the helper into a header and nowhere else. The file is only read.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::json;

use super::output;
use super::text::value::Value;

/// The name under which credentials of Docker's own registry are kept.
const DEFAULT_KEY: &str = "https://index.docker.io/v1/";
const FILE_BYTES_MAX: u64 = 4 << 20;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// `--config`.
pub(crate) fn set_folder(folder: String) {
    let _ = FOLDER.set(folder.into());
}

fn config() -> Value {
    use std::io::Read;
    let named = FOLDER.get().cloned().or_else(|| std::env::var_os("DOCKER_CONFIG").map(PathBuf::from));
    let Some(folder) = named.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker")))
    else {
        return Value::Null;
    };
    let path = folder.join("config.json");
    let mut text = String::new();
    match fs::File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Value::Null,
        Err(error) => {
            output::tell(&format!("WARNING: cannot read {}: {error}", path.display()));
            return Value::Null;
        }
    }
    serde_json::from_str(&text).unwrap_or_else(|error| {
        output::tell(&format!("WARNING: {} is no JSON: {error}", path.display()));
        Value::Null
    })
}

/// The registry's host in a reference: its first part if that can be one.
pub(crate) fn registry(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The `X-Registry-Auth` header for a reference; empty for nobody in particular.
pub(crate) fn header(reference: &str) -> String {
    let host = registry(reference);
    let config = config();
    let auth = find(&config, host);
    auth.map(|auth| URL_SAFE.encode(auth.to_string())).unwrap_or_default()
}

fn find(config: &Value, host: &str) -> Option<serde_json::Value> {
    let keys: Vec<String> = match host {
        "docker.io" | "index.docker.io" => {
            vec![DEFAULT_KEY.to_owned(), "index.docker.io".to_owned(), "docker.io".to_owned()]
        }
        host => {
            vec![host.to_owned(), format!("https://{host}"), format!("https://{host}/v1/"), format!("http://{host}")]
        }
    };
    let helper = config
        .at(&["credHelpers"])
        .members()
        .iter()
        .find(|(key, _)| keys.contains(key))
        .map(|(_, helper)| helper.text());
    let helper = helper.or_else(|| Some(config.text_at(&["credsStore"]))).filter(|helper| !helper.is_empty());
    if let Some(found) = helper.and_then(|helper| keys.iter().find_map(|key| ask(helper, key))) {
        return Some(found);
    }
    let members = config.at(&["auths"]).members();
    let (key, entry) = keys
        .iter()
        .find_map(|key| members.iter().find(|(name, _)| name.trim_end_matches('/') == key.trim_end_matches('/')))?;
    let mut auth = serde_json::Map::new();
    auth.insert("serveraddress".into(), key.as_str().into());
    if let Some((user, password)) = decode(entry.text_at(&["auth"])) {
        auth.insert("username".into(), user.into());
        auth.insert("password".into(), password.into());
    }
    for (from, to) in [
        ("username", "username"),
        ("password", "password"),
        ("identitytoken", "identitytoken"),
        ("registrytoken", "registrytoken"),
    ] {
        let value = entry.text_at(&[from]);
        if !value.is_empty() {
            auth.insert(to.into(), value.into());
        }
    }
    (auth.len() > 1).then_some(auth.into())
}

fn decode(text: &str) -> Option<(String, String)> {
    let bytes = STANDARD.decode(text.trim()).ok().filter(|bytes| !bytes.is_empty())?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// Asks a helper; one that fails or knows nothing is no error, the registry will tell.
fn ask(helper: &str, key: &str) -> Option<serde_json::Value> {
    if helper.contains('/') {
        return None;
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // Its end is waited for even if it does not read.
    let _ = child.stdin.take()?.write_all(key.as_bytes());
    let answer = child.wait_with_output().ok().filter(|output| output.status.success())?;
    let answer: Value = serde_json::from_slice(&answer.stdout).ok()?;
    let (user, secret) = (answer.text_at(&["Username"]), answer.text_at(&["Secret"]));
    match user {
        "" => None,
        "<token>" => Some(json!({ "identitytoken": secret, "serveraddress": key })),
        user => Some(json!({ "username": user, "password": secret, "serveraddress": key })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_under_every_name_that_clients_use() {
        let config: Value = serde_json::from_str(
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="},"r.example:5000":{"identitytoken":"t"},"empty.example":{},
                "https://old.example/v1/":{"username":"n","password":"w"}}}"#,
        )
        .expect("JSON");
        let found = |reference: &str| find(&config, registry(reference)).map(|auth| auth.to_string());
        let hub = r#"{"password":"p:q","serveraddress":"https://index.docker.io/v1/","username":"u"}"#;
        for reference in ["busybox", "library/busybox:1", "docker.io/library/busybox"] {
            assert_eq!(found(reference).as_deref(), Some(hub), "{reference}");
        }
        assert_eq!(
            found("r.example:5000/a/b").as_deref(),
            Some(r#"{"identitytoken":"t","serveraddress":"r.example:5000"}"#)
        );
        assert!(found("old.example/a").expect("the old form").contains(r#""username":"n""#));
        assert_eq!(found("empty.example/a"), None);
        assert_eq!(found("localhost/a"), None);
    }
}
