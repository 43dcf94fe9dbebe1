//! The bytes of a record: `docs/formats/wal.md`, section Records.
//!
//! R1  A record has a type and a version of its own; an unknown one is an error that names it, never skipped.
//! R2  Decoding takes exactly the bytes of the record: a rest is an error.
//! R3  A record is at most [`RECORD_BYTES_MAX`] long.

use baleen_oci::{Algorithm, ChainId, DiffId, Digest, ImageId};

use crate::facts::{
    BlobFact, ContainerFact, Desired, ImageFact, LayerFact, LayerKey, PullFact, PullLayer, Record, TagFact,
    TransactionId, VolumeFact,
};

/// The longest body of a record in bytes; a larger value is a blob that the record names.
pub(crate) const RECORD_BYTES_MAX: usize = 64 * 1024;
/// The most layers that a record names (threats: layers an image).
const LAYERS_MAX: usize = 1024;

const VERSION: u16 = 1;

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum RecordError {
    #[error("record type {0} version {1} is not known to this build")]
    Unknown(u16, u16),
    #[error("record ends early")]
    Short,
    #[error("record has {0} bytes too many")]
    Rest(usize),
    #[error("record has an impossible {0}")]
    Value(&'static str),
}

mod kind {
    pub(super) const OPENED: u16 = 1;
    pub(super) const CLOSED: u16 = 2;
    pub(super) const BASE_END: u16 = 3;
    pub(super) const BLOB_STORED: u16 = 16;
    pub(super) const BLOB_REMOVED: u16 = 17;
    pub(super) const LAYER_STORED: u16 = 18;
    pub(super) const LAYER_REMOVED: u16 = 19;
    pub(super) const IMAGE_STORED: u16 = 20;
    pub(super) const IMAGE_REMOVED: u16 = 21;
    pub(super) const TAG_SET: u16 = 22;
    pub(super) const TAG_REMOVED: u16 = 23;
    pub(super) const PULL_BEGUN: u16 = 24;
    pub(super) const PULL_ENDED: u16 = 25;
    pub(super) const CONTAINER_STORED: u16 = 26;
    pub(super) const CONTAINER_CHANGED: u16 = 27;
    pub(super) const CONTAINER_REMOVED: u16 = 28;
    pub(super) const VOLUME_STORED: u16 = 29;
    pub(super) const VOLUME_REMOVED: u16 = 30;
    pub(super) const LAYER_SUSPECT: u16 = 31;
}

/// Encodes a record: its type, its version and its body.
pub(crate) fn encode(record: &Record) -> (u16, u16, Vec<u8>) {
    let mut out = Writer(Vec::new());
    let kind = match record {
        Record::Opened => kind::OPENED,
        Record::Closed => kind::CLOSED,
        Record::BaseEnd(count) => {
            out.u64(*count);
            kind::BASE_END
        }
        Record::BlobStored(fact, transaction) => {
            out.digest(&fact.digest);
            out.u64(fact.size_bytes);
            out.transaction(*transaction);
            kind::BLOB_STORED
        }
        Record::BlobRemoved(digest) => {
            out.digest(digest);
            kind::BLOB_REMOVED
        }
        Record::LayerStored(fact) => {
            out.layer_key(&fact.key);
            out.digest(&fact.blob);
            out.u64(fact.blob_size_bytes);
            out.u64(fact.tar_size_bytes);
            out.u64(fact.unpacked_size_bytes);
            out.u64(fact.entries);
            out.u64(fact.recipe_size_bytes);
            out.u8(fact.implied_directories.into());
            kind::LAYER_STORED
        }
        Record::LayerRemoved(key) => {
            out.layer_key(key);
            kind::LAYER_REMOVED
        }
        Record::ImageStored(fact) => {
            out.digest(&fact.id.0);
            out.optional_digest(fact.manifest.as_ref());
            out.count(fact.layers.len());
            fact.layers.iter().for_each(|key| out.layer_key(key));
            kind::IMAGE_STORED
        }
        Record::ImageRemoved(id) => {
            out.digest(&id.0);
            kind::IMAGE_REMOVED
        }
        Record::TagSet(fact) => {
            out.text(&fact.name);
            out.digest(&fact.image.0);
            out.u64(fact.set_at_seconds as u64);
            kind::TAG_SET
        }
        Record::TagRemoved(name) => {
            out.text(name);
            kind::TAG_REMOVED
        }
        Record::PullBegun(fact) => {
            out.digest(&fact.manifest);
            out.count(fact.layers.len());
            for layer in &fact.layers {
                out.digest(&layer.blob);
                out.u64(layer.blob_size_bytes);
                out.layer_key(&layer.key);
            }
            kind::PULL_BEGUN
        }
        Record::PullEnded(manifest) => {
            out.digest(manifest);
            kind::PULL_ENDED
        }
        Record::ContainerStored(fact, transaction) => {
            out.container(fact);
            out.transaction(*transaction);
            kind::CONTAINER_STORED
        }
        Record::ContainerChanged(fact) => {
            out.container(fact);
            kind::CONTAINER_CHANGED
        }
        Record::ContainerRemoved(id) => {
            out.text(id);
            kind::CONTAINER_REMOVED
        }
        Record::LayerSuspect(key) => {
            out.layer_key(key);
            kind::LAYER_SUSPECT
        }
        Record::VolumeStored(fact, transaction) => {
            out.text(&fact.name);
            out.transaction(*transaction);
            kind::VOLUME_STORED
        }
        Record::VolumeRemoved(name) => {
            out.text(name);
            kind::VOLUME_REMOVED
        }
    };
    (kind, VERSION, out.0)
}

/// Decodes a record (R1, R2).
pub(crate) fn decode(kind: u16, version: u16, body: &[u8]) -> Result<Record, RecordError> {
    if version != VERSION {
        return Err(RecordError::Unknown(kind, version));
    }
    let mut input = Reader(body);
    let record = match kind {
        kind::OPENED => Record::Opened,
        kind::CLOSED => Record::Closed,
        kind::BASE_END => Record::BaseEnd(input.u64()?),
        kind::BLOB_STORED => {
            let fact = BlobFact { digest: input.digest()?, size_bytes: input.u64()? };
            Record::BlobStored(fact, input.transaction()?)
        }
        kind::BLOB_REMOVED => Record::BlobRemoved(input.digest()?),
        kind::LAYER_STORED => Record::LayerStored(LayerFact {
            key: input.layer_key()?,
            blob: input.digest()?,
            blob_size_bytes: input.u64()?,
            tar_size_bytes: input.u64()?,
            unpacked_size_bytes: input.u64()?,
            entries: input.u64()?,
            recipe_size_bytes: input.u64()?,
            implied_directories: input.flag()?,
        }),
        kind::LAYER_REMOVED => Record::LayerRemoved(input.layer_key()?),
        kind::IMAGE_STORED => {
            let id = ImageId(input.digest()?);
            let manifest = input.optional_digest()?;
            let count = input.count()?;
            let layers = (0..count).map(|_| input.layer_key()).collect::<Result<_, _>>()?;
            Record::ImageStored(ImageFact { id, manifest, layers })
        }
        kind::IMAGE_REMOVED => Record::ImageRemoved(ImageId(input.digest()?)),
        kind::TAG_SET => Record::TagSet(TagFact {
            name: input.text()?,
            image: ImageId(input.digest()?),
            set_at_seconds: input.u64()? as i64,
        }),
        kind::TAG_REMOVED => Record::TagRemoved(input.text()?),
        kind::PULL_BEGUN => {
            let manifest = input.digest()?;
            let count = input.count()?;
            let layer = |input: &mut Reader<'_>| {
                let (blob, blob_size_bytes) = (input.digest()?, input.u64()?);
                Ok(PullLayer { blob, blob_size_bytes, key: input.layer_key()? })
            };
            let layers = (0..count).map(|_| layer(&mut input)).collect::<Result<_, RecordError>>()?;
            Record::PullBegun(PullFact { manifest, layers })
        }
        kind::PULL_ENDED => Record::PullEnded(input.digest()?),
        kind::CONTAINER_STORED => {
            let fact = input.container()?;
            Record::ContainerStored(fact, input.transaction()?)
        }
        kind::CONTAINER_CHANGED => Record::ContainerChanged(input.container()?),
        kind::CONTAINER_REMOVED => Record::ContainerRemoved(input.text()?),
        kind::LAYER_SUSPECT => Record::LayerSuspect(input.layer_key()?),
        kind::VOLUME_STORED => {
            let fact = VolumeFact { name: input.text()? };
            Record::VolumeStored(fact, input.transaction()?)
        }
        kind::VOLUME_REMOVED => Record::VolumeRemoved(input.text()?),
        _ => return Err(RecordError::Unknown(kind, version)),
    };
    if input.0.is_empty() { Ok(record) } else { Err(RecordError::Rest(input.0.len())) }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn count(&mut self, count: usize) {
        self.0.extend_from_slice(&(count as u32).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn digest(&mut self, digest: &Digest) {
        self.u8(match digest.algorithm() {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        });
        self.0.extend_from_slice(digest.as_bytes());
    }

    fn optional_digest(&mut self, digest: Option<&Digest>) {
        match digest {
            None => self.u8(0),
            Some(digest) => self.digest(digest),
        }
    }

    fn layer_key(&mut self, key: &LayerKey) {
        self.digest(&key.diff_id.0);
        self.optional_digest(key.parents.as_ref().map(|chain| &chain.0));
    }

    fn transaction(&mut self, transaction: TransactionId) {
        self.u64(transaction.opened);
        self.u64(transaction.counter);
    }

    fn container(&mut self, fact: &ContainerFact) {
        self.text(&fact.id);
        self.text(&fact.name);
        self.digest(&fact.image.0);
        self.u8(match fact.desired {
            Desired::Created => 0,
            Desired::Running => 1,
            Desired::Stopped => 2,
        });
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(RecordError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        self.take(N)?.try_into().map_err(|_| RecordError::Short)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn flag(&mut self) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RecordError::Value("flag")),
        }
    }

    fn length(&mut self) -> Result<usize, RecordError> {
        Ok(u32::from_le_bytes(self.array()?) as usize)
    }

    fn count(&mut self) -> Result<usize, RecordError> {
        Some(self.length()?).filter(|count| *count <= LAYERS_MAX).ok_or(RecordError::Value("number of layers"))
    }

    fn text(&mut self) -> Result<String, RecordError> {
        let length = self.length()?;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| RecordError::Value("text"))
    }

    fn optional_digest(&mut self) -> Result<Option<Digest>, RecordError> {
        let algorithm = match self.u8()? {
            0 => return Ok(None),
            1 => Algorithm::Sha256,
            2 => Algorithm::Sha512,
            _ => return Err(RecordError::Value("digest algorithm")),
        };
        let bytes = self.take(algorithm.length_bytes())?;
        Digest::from_bytes(algorithm, bytes).map(Some).ok_or(RecordError::Value("digest"))
    }

    fn digest(&mut self) -> Result<Digest, RecordError> {
        self.optional_digest()?.ok_or(RecordError::Value("digest"))
    }

    fn layer_key(&mut self) -> Result<LayerKey, RecordError> {
        let diff_id = DiffId(self.digest()?);
        Ok(LayerKey { diff_id, parents: self.optional_digest()?.map(ChainId) })
    }

    fn transaction(&mut self) -> Result<TransactionId, RecordError> {
        Ok(TransactionId { opened: self.u64()?, counter: self.u64()? })
    }

    fn container(&mut self) -> Result<ContainerFact, RecordError> {
        let (id, name) = (self.text()?, self.text()?);
        let image = ImageId(self.digest()?);
        let desired = match self.u8()? {
            0 => Desired::Created,
            1 => Desired::Running,
            2 => Desired::Stopped,
            _ => return Err(RecordError::Value("desired state")),
        };
        Ok(ContainerFact { id, name, image, desired })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_of_each() -> Vec<Record> {
        let digest = |text: &str| Digest::sha256_of(text.as_bytes());
        let long = Digest::of(Algorithm::Sha512, b"long");
        let plain = LayerKey::new(DiffId(digest("layer")));
        let stacked = LayerKey { parents: Some(ChainId(digest("parents"))), ..plain.clone() };
        let transaction = TransactionId { opened: 5, counter: 6 };
        let container = ContainerFact {
            id: "c".repeat(64),
            name: "web".to_owned(),
            image: ImageId(digest("config")),
            desired: Desired::Running,
        };
        vec![
            Record::Opened,
            Record::Closed,
            Record::BaseEnd(9),
            Record::BlobStored(BlobFact { digest: long, size_bytes: 7 }, transaction),
            Record::BlobRemoved(digest("blob")),
            Record::LayerStored(LayerFact {
                key: stacked.clone(),
                blob: digest("blob"),
                blob_size_bytes: 1,
                tar_size_bytes: 2,
                unpacked_size_bytes: 3,
                entries: 4,
                recipe_size_bytes: 5,
                implied_directories: true,
            }),
            Record::LayerRemoved(plain.clone()),
            Record::ImageStored(ImageFact {
                id: ImageId(digest("config")),
                manifest: None,
                layers: vec![plain.clone(), stacked],
            }),
            Record::ImageRemoved(ImageId(digest("config"))),
            Record::TagSet(TagFact { name: "app:1".to_owned(), image: ImageId(long), set_at_seconds: -1 }),
            Record::TagRemoved("app:1".to_owned()),
            Record::PullBegun(PullFact {
                manifest: digest("manifest"),
                layers: vec![PullLayer { blob: digest("blob"), blob_size_bytes: 8, key: plain }],
            }),
            Record::PullEnded(digest("manifest")),
            Record::ContainerStored(container.clone(), transaction),
            Record::ContainerChanged(container.clone()),
            Record::ContainerRemoved(container.id),
            Record::VolumeStored(VolumeFact { name: "data".to_owned() }, transaction),
            Record::VolumeRemoved("data".to_owned()),
            Record::LayerSuspect(LayerKey::new(DiffId(digest("other")))),
        ]
    }

    #[test]
    fn every_record_reads_back_and_none_of_its_beginnings_does() {
        for record in one_of_each() {
            let (kind, version, body) = encode(&record);
            assert_eq!(decode(kind, version, &body).as_ref(), Ok(&record));
            for length in 0..body.len() {
                assert!(decode(kind, version, &body[..length]).is_err(), "{record:?} cut at {length}");
            }
            let longer = [&body[..], &[0]].concat();
            assert_eq!(decode(kind, version, &longer), Err(RecordError::Rest(1)));
        }
    }

    #[test]
    fn an_unknown_record_is_an_error_that_names_it() {
        assert_eq!(decode(99, 1, &[]), Err(RecordError::Unknown(99, 1)));
        assert_eq!(decode(kind::OPENED, 2, &[]), Err(RecordError::Unknown(kind::OPENED, 2)));
    }
}
