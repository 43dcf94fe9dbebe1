//! `daemon.json`: its keys and values as settings, each checked against the table.

use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::SettingsError;
use super::table::{self, Form, Settings};

/// Bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a file. A missing one is empty unless it was asked for by name.
pub(super) fn read(path: &Path, named: bool) -> Result<Settings, SettingsError> {
    let wrong = |reason: String| SettingsError::File { path: path.display().to_string(), reason };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !named => return Ok(Settings::new()),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(wrong("it is larger than 1 MiB".to_owned()));
    }
    parse(&bytes).map_err(|error| match error {
        SettingsError::File { reason, .. } => wrong(reason),
        other => other,
    })
}

/// Parses the text of a file; a byte order mark and an empty file are accepted.
pub(super) fn parse(bytes: &[u8]) -> Result<Settings, SettingsError> {
    let wrong = |reason: String| SettingsError::File { path: String::new(), reason };
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if text.trim_ascii().is_empty() {
        return Ok(Settings::new());
    }
    let value: Value = serde_json::from_slice(text).map_err(|error| wrong(format!("invalid JSON: {error}")))?;
    let Value::Object(entries) = value else { return Err(wrong("it is no JSON object".to_owned())) };
    let unknown: Vec<_> = entries.keys().filter(|key| table::by_key(key).is_none()).map(String::as_str).collect();
    if !unknown.is_empty() {
        return Err(SettingsError::Unknown { directives: unknown.join(", ") });
    }
    let mut settings = Settings::new();
    for (key, value) in entries {
        let Some(row) = table::by_key(&key) else { continue };
        if value.is_null() {
            continue;
        }
        let values = texts(row.form, &value)
            .ok_or_else(|| wrong(format!("directive {key} has a value of the wrong type: {value}")))?;
        for value in &values {
            row.check(value)?;
        }
        settings.insert(row.key, values);
    }
    Ok(settings)
}

/// The values as the flags would give them.
fn texts(form: Form, value: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    match form {
        Form::Bool => Some(vec![value.as_bool()?.to_string()]),
        Form::Text => Some(vec![text(value)?]),
        Form::Number => Some(vec![value.as_i64()?.to_string()]),
        Form::List => value.as_array()?.iter().map(text).collect(),
        Form::Map => value.as_object()?.iter().map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect(),
        Form::Any => Some(vec![text(value).unwrap_or_else(|| value.to_string())]),
    }
}
