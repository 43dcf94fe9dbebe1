//! `volume.json`: what a volume is like, written once.

use std::collections::BTreeMap;

use baleen_store::Store;
use serde::{Deserialize, Serialize};

use super::{ANONYMOUS, CreateVolume};
use crate::container::random;
use crate::error::EngineError;
use crate::time::Timestamp;

const NAME: &str = "volume.json";
/// Longest that is read.
const BYTES_MAX: u64 = 4 << 20;
const VERSION: u32 = 1;
/// Longest name: what the store takes.
const NAME_BYTES_MAX: usize = 240;

/// What a volume is like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    version: u32,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) labels: Option<BTreeMap<String, String>>,
    pub(crate) options: Option<BTreeMap<String, String>>,
}

impl Description {
    /// What a request asks for, in Docker's words where it cannot be had.
    pub(crate) fn new(request: &CreateVolume) -> Result<Self, EngineError> {
        let mut labels = request.labels.clone();
        let name = match request.name.as_str() {
            "" => {
                labels.insert(ANONYMOUS.to_owned(), String::new());
                anonymous_name()?
            }
            name => name.to_owned(),
        };
        check_driver(&request.driver, &name)?;
        check_name(&name)?;
        check_options(&name, &request.options)?;
        // Docker shows `null` for what was not given.
        let some = |map: BTreeMap<String, String>| (!map.is_empty()).then_some(map);
        let (labels, options) = (some(labels), some(request.options.clone()));
        Ok(Self { version: VERSION, name, created: Timestamp::now(), labels, options })
    }

    /// The directory of the host that the volume shows instead of its own.
    pub(crate) fn device(&self) -> Option<&str> {
        self.options.as_ref()?.get("device").map(String::as_str).filter(|device| !device.is_empty())
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, EngineError> {
        let bytes =
            serde_json::to_vec(self).map_err(|error| EngineError::part("write the volume's description", error))?;
        if bytes.len() as u64 > BYTES_MAX {
            return Err(EngineError::invalid(format!(
                "the labels of volume {} are longer than {BYTES_MAX} bytes",
                self.name
            )));
        }
        Ok(bytes)
    }

    /// Reads the description of a stored volume.
    pub(crate) fn load(store: &Store, name: &str) -> Result<Self, EngineError> {
        let action = || format!("read volumes/{name}/{NAME}");
        let dir = store.volume_dir(name).map_err(|error| EngineError::part(action(), error))?;
        let disk = store.disk();
        let file = disk.open_file(&dir, NAME.as_bytes(), baleen_store::Access::Read);
        let read = file.and_then(|file| baleen_store::read_file(disk.as_ref(), &file, BYTES_MAX));
        let bytes = read.map_err(|error| EngineError::part(action(), error))?;
        let description: Self = serde_json::from_slice(&bytes).map_err(|error| EngineError::part(action(), error))?;
        if description.version != VERSION || description.name != name {
            let found = format!("it is of version {} and volume {}", description.version, description.name);
            return Err(EngineError::part(action(), found));
        }
        Ok(description)
    }
}

/// Accepts no options, and those of a bind: `type=none,o=bind,device=/path`.
fn check_options(name: &str, options: &BTreeMap<String, String>) -> Result<(), EngineError> {
    if let Some(option) = options.keys().find(|key| !["type", "o", "device", "size"].contains(&key.as_str())) {
        return Err(EngineError::invalid(format!("create {name}: invalid option: \"{option}\"")));
    }
    let of = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    if options.values().all(String::is_empty) {
        return Ok(());
    }
    let words: Vec<&str> = of("o").split(',').collect();
    let is_bind = matches!(of("type"), "" | "none" | "bind")
        && words.iter().any(|word| matches!(*word, "bind" | "rbind"))
        && words.iter().all(|word| matches!(*word, "bind" | "rbind" | "rw"))
        && of("size").is_empty();
    if !is_bind {
        let (kind, o) = (of("type"), of("o"));
        return Err(EngineError::not_implemented(format!(
            "a local volume with the options type={kind:?}, o={o:?} (only type=none,o=bind is)"
        )));
    }
    match of("device") {
        "" => Err(EngineError::invalid(format!("create {name}: missing device in volume options"))),
        device if device.starts_with('/') && !device.contains('\0') => Ok(()),
        device => Err(EngineError::invalid(format!("create {name}: invalid device {device:?}: it must be absolute"))),
    }
}

/// 64 hex digits.
fn anonymous_name() -> Result<String, EngineError> {
    let bytes: [u8; 32] = random()?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

pub(crate) fn check_driver(driver: &str, name: &str) -> Result<(), EngineError> {
    if matches!(driver, "" | "local") {
        return Ok(());
    }
    let text = format!("create {name}: error looking up volume plugin {driver}: plugin \"{driver}\" not found");
    Err(EngineError::NotFound { text })
}

/// Whether the text can be a volume's name.
///
/// # Errors
/// `InvalidParameter` in Docker's words.
pub(crate) fn check_name(name: &str) -> Result<(), EngineError> {
    let is_good = name
        .bytes()
        .enumerate()
        .all(|(at, byte)| byte.is_ascii_alphanumeric() || (at > 0 && matches!(byte, b'_' | b'.' | b'-')));
    if name.len() == 1 && is_good {
        return Err(EngineError::invalid(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    if !is_good || name.is_empty() {
        return Err(EngineError::invalid(format!(
            "create {name}: {name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        )));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(EngineError::invalid(format!("create {name}: a volume's name has at most {NAME_BYTES_MAX} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    fn request(name: &str) -> CreateVolume {
        CreateVolume { name: name.to_owned(), ..CreateVolume::default() }
    }

    #[test]
    fn a_volume_without_a_name_gets_one_and_is_marked() {
        let description = Description::new(&request("")).unwrap();
        assert_eq!(description.name.len(), 64);
        assert!(description.labels.unwrap().contains_key(ANONYMOUS));
        assert_eq!(Description::new(&request("data")).unwrap().labels, None);
    }

    #[test]
    fn what_cannot_be_had_is_refused_in_dockers_words() {
        for name in ["../x", ".x", "a/b", "a b", "-a"] {
            let error = Description::new(&request(name)).unwrap_err();
            assert!(error.to_string().contains("includes invalid characters for a local volume name"), "{error}");
        }
        let error = Description::new(&request("x")).unwrap_err();
        assert!(error.to_string().contains("too short"), "{error}");
        let other = CreateVolume { driver: "nfs".to_owned(), ..request("data") };
        let error = Description::new(&other).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        let mut options = request("data");
        options.options.insert("colour".to_owned(), "red".to_owned());
        assert_eq!(Description::new(&options).unwrap_err().to_string(), "create data: invalid option: \"colour\"");
        let with = |options: &[(&str, &str)]| {
            let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Description::new(&CreateVolume { options, ..request("data") })
        };
        let bind = with(&[("type", "none"), ("o", "bind"), ("device", "/srv")]).unwrap();
        assert_eq!(bind.device(), Some("/srv"));
        let nfs = with(&[("type", "nfs"), ("o", "addr=10.0.0.1"), ("device", ":/x")]).unwrap_err();
        assert_eq!(nfs.kind(), Kind::NotImplemented);
        for device in ["", "relative"] {
            let error = with(&[("type", "none"), ("o", "bind"), ("device", device)]).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidParameter);
        }
    }
}
