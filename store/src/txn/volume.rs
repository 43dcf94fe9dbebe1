//! Volumes: staged like containers, and what is particular to users' data.
//!
//! V1  A volume's folder is `volume.json` and an empty `_data`; both are durable before its record is written.
//! V2  What is in `_data` belongs to the user: nothing here opens it, and opening leaves alone what no record names.
//! V3  So the rename of a removal is durable before the removal is answered: no later opening would do it again.

use crate::error::{IoContext, StoreError};
use crate::facts::{Record, VolumeFact};
use crate::layout::Object;
use crate::store::{Key, Store};

use super::{StagedDir, Txn};

/// The longest name of a volume in bytes: with what staging adds it is one name of a directory.
pub(crate) const VOLUME_NAME_BYTES_MAX: usize = 240;

/// Whether the text can be a volume's name, and so a name below `volumes/`.
///
/// # Errors
/// `VolumeName`.
pub(crate) fn check_volume_name(name: &str) -> Result<(), StoreError> {
    let fits = |at: usize, byte: u8| byte.is_ascii_alphanumeric() || (at > 0 && matches!(byte, b'_' | b'.' | b'-'));
    let is_good = !name.is_empty()
        && name.len() <= VOLUME_NAME_BYTES_MAX
        && name.bytes().enumerate().all(|(at, byte)| fits(at, byte));
    if is_good {
        return Ok(());
    }
    Err(StoreError::VolumeName { name: name.to_owned(), limit_bytes: VOLUME_NAME_BYTES_MAX })
}

impl Txn {
    /// Stages a volume's folder: `volume.json` with these bytes and an empty `_data`.
    ///
    /// # Errors
    /// `VolumeName`; `SeveralMounts` if `volumes/` is a mount of its own; `FullDisk`, `Io`.
    pub fn stage_volume(&mut self, fact: VolumeFact, description: &[u8]) -> Result<(), StoreError> {
        check_volume_name(&fact.name)?;
        let shared = self.store.shared.clone();
        let disk = shared.disk.clone();
        let device = |dir| disk.metadata(dir).context("read", || "volumes".to_owned()).map(|facts| facts.device);
        if device(&shared.layout.volumes)? != device(&shared.layout.staging)? {
            // A rename does not reach another mount.
            return Err(StoreError::SeveralMounts { path: "volumes".to_owned() });
        }
        let object = Object::Volume(fact.name.clone());
        let (name, path) = (object.staged_name(), object.path());
        self.staging()?;
        let dir = self.dir.as_ref().expect("made by the line above");
        disk.create_dir(dir, &name, 0o700).context("create", || path.clone())?;
        let dir = disk.open_dir(dir, &name).context("open", || path.clone())?;
        let mut staged = StagedDir { disk: disk.as_ref(), nodes: &mut self.staged, dir, path };
        staged.file("volume.json", 0o600, description)?;
        staged.dir("_data", 0o755, 0, 0)?;
        let StagedDir { dir, .. } = staged;
        self.staged.0.push(dir);
        self.keys.insert(Key::Object(object.clone()));
        self.records.push(Record::VolumeStored(fact, self.id));
        self.objects.push(object);
        Ok(())
    }
}

impl Store {
    /// Makes the name of a removed volume durably free (V3).
    pub(crate) fn settle_removed_volume(&self) -> Result<(), StoreError> {
        self.shared.disk.sync(&self.shared.layout.volumes).context("sync", || "volumes".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_folders() {
        let longest = "a".repeat(VOLUME_NAME_BYTES_MAX);
        for name in ["a", "0", "my_data.v1-x", &longest] {
            assert!(check_volume_name(name).is_ok(), "{name}");
        }
        let longer = format!("{longest}a");
        for name in ["", ".", "..", ".hidden", "-x", "a/b", "../x", "a b", "ä", "a\0", &longer] {
            assert!(matches!(check_volume_name(name), Err(StoreError::VolumeName { .. })), "{name}");
        }
    }
}
