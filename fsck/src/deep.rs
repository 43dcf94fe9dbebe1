//! The deep check: every blob by its digest, every file of every layer by its recipe, every container's folder by what
//! makes it one.
//!
//! X1  Objects are checked one after the other in a fixed order, so that a check that was interrupted goes on behind the
//!     last one that it finished.
//! X2  Nothing of a container but its configuration is read: upper, logs and volumes are the user's.

use baleen_oci::Digest;
use baleen_store::{Access, Inspection, LayerFact, NodeKind, StoredObject, read_file};

use crate::container;
use crate::finding::{Code, Finding, shown};
use crate::layer::{self, Interrupted, child};
use crate::users::Users;

/// The longest blob that is read whole: manifests, indexes and configs have at most 4 MiB.
const BLOB_BYTES_MAX: u64 = 4 << 20;
pub(crate) const BLOB_MODE: u32 = 0o600;

/// How far a check is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// What is being checked, below the data root.
    pub object: String,
    /// Bytes read so far.
    pub done_bytes: u64,
    /// Bytes to be read in all, as the log counts them.
    pub total_bytes: u64,
    /// Findings so far.
    pub findings: usize,
}

/// How a deep check ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything was checked.
    Complete,
    /// It was stopped; the last object that was checked whole, if one was.
    Interrupted(Option<String>),
}

/// Checks everything behind `after`, a path that an earlier check has ended with. `watch` is called often and says
/// whether to stop.
pub(crate) fn check(
    inspection: &Inspection,
    users: &Users,
    after: Option<&str>,
    findings: &mut Vec<Finding>,
    watch: &mut dyn FnMut(&Progress) -> bool,
) -> Ended {
    let objects = targets(inspection, after);
    let mut progress = Progress { total_bytes: objects.iter().map(Target::bytes).sum(), ..Progress::default() };
    let mut last = after.map(str::to_owned);
    let owner = owner_of(inspection);
    for target in objects {
        progress.object = target.object().path();
        let before = findings.len();
        let started_bytes = progress.done_bytes;
        let mut advance = |bytes| {
            progress.done_bytes += bytes;
            watch(&progress)
        };
        let checked = match &target {
            Target::Blob(digest, size_bytes) => blob(inspection, digest, *size_bytes, owner, findings, &mut advance),
            Target::Layer(fact) => layer(inspection, fact, owner, findings, &mut advance),
            Target::Container(id) => {
                container::check(inspection, id, findings);
                if advance(0) { Err(Interrupted) } else { Ok(()) }
            }
        };
        let touched = users.of_object(&target.object());
        findings[before..].iter_mut().for_each(|finding| finding.touched = touched.clone());
        if checked.is_err() {
            // This object is looked at again, from its beginning.
            findings.truncate(before);
            return Ended::Interrupted(last);
        }
        progress.done_bytes = started_bytes + target.bytes();
        progress.findings = findings.len();
        last = Some(progress.object.clone());
    }
    Ended::Complete
}

/// Who owns what no record describes: whoever owns the data root.
pub(crate) fn owner_of(inspection: &Inspection) -> (u32, u32) {
    inspection.disk().metadata(inspection.root()).map_or((0, 0), |root| (root.uid, root.gid))
}

/// Everything to be checked behind `after`, in order (X1).
pub(crate) fn targets(inspection: &Inspection, after: Option<&str>) -> Vec<Target> {
    let blobs = inspection.blobs().into_iter().map(|blob| Target::Blob(blob.digest, blob.size_bytes));
    let layers = inspection.layers().into_iter().map(Target::Layer);
    let containers = inspection.containers().into_iter().map(|fact| Target::Container(fact.id));
    let mut targets: Vec<Target> = blobs.chain(layers).chain(containers).collect();
    targets.retain(|target| after.is_none_or(|after| target.rank() > rank_of(after)));
    targets.sort_by_key(Target::rank);
    targets
}

/// One object to be checked.
pub(crate) enum Target {
    Blob(Digest, u64),
    Layer(LayerFact),
    Container(String),
}

impl Target {
    pub(crate) fn object(&self) -> StoredObject {
        match self {
            Target::Blob(digest, _) => StoredObject::Blob(*digest),
            Target::Layer(fact) => StoredObject::Layer(fact.key.clone()),
            Target::Container(id) => StoredObject::Container(id.clone()),
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Target::Blob(_, size_bytes) => *size_bytes,
            Target::Layer(fact) => fact.unpacked_size_bytes + fact.recipe_size_bytes,
            Target::Container(_) => 0,
        }
    }

    fn rank(&self) -> (u8, String) {
        rank_of(&self.object().path())
    }
}

/// Blobs first, then layers, then containers; each by its path.
fn rank_of(path: &str) -> (u8, String) {
    let class = match path.split('/').next() {
        Some("blobs") => 0,
        Some("layers") => 1,
        _ => 2,
    };
    (class, path.to_owned())
}

pub(crate) fn blob(
    inspection: &Inspection,
    digest: &Digest,
    size_bytes: u64,
    owner: (u32, u32),
    findings: &mut Vec<Finding>,
    advance: layer::Advance<'_>,
) -> Result<(), Interrupted> {
    let disk = inspection.disk();
    let object = StoredObject::Blob(*digest);
    let path = object.path();
    let mut add = |code, detail: String| findings.push(Finding::new(code, path.clone(), detail));
    let opened = inspection.place(&object).and_then(|(dir, name)| {
        let file = disk.open_file(&dir, &name, Access::Read)?;
        Ok((disk.metadata(&file)?, file))
    });
    let (found, file) = match opened {
        Ok(opened) => opened,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()), // The quick check names it.
        Err(error) if layer::is_tree_error(&error) => {
            add(Code::NodeKind, "is not a file".to_owned());
            return Ok(());
        }
        Err(error) => {
            add(Code::ReadError, format!("cannot be read: {error}"));
            return Ok(());
        }
    };
    if found.mode != BLOB_MODE {
        add(Code::BlobAttributes, layer::modes(found.mode, BLOB_MODE));
    }
    if (found.uid, found.gid) != owner {
        add(Code::BlobAttributes, layer::owners((found.uid, found.gid), owner));
    }
    match disk.xattrs(&file) {
        Ok(xattrs) => {
            for (name, _) in xattrs.iter().filter(|(name, _)| layer::is_layers_xattr(name)) {
                add(Code::BlobAttributes, format!("has the extended attribute {}", shown(name)));
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(error) => add(Code::ReadError, format!("its attributes cannot be read: {error}")),
    }
    if found.size_bytes != size_bytes {
        add(Code::BlobContent, format!("has {} bytes, and should have {size_bytes}", found.size_bytes));
    } else {
        match read_file(disk.as_ref(), &file, BLOB_BYTES_MAX) {
            Ok(bytes) if digest.matches(&bytes) => {}
            Ok(_) => add(Code::BlobContent, "has other bytes than its digest says".to_owned()),
            Err(error) => add(Code::BlobContent, format!("cannot be read: {error}")),
        }
    }
    let _ = disk.drop_cache(&file, 0, 0);
    if advance(size_bytes) { Err(Interrupted) } else { Ok(()) }
}

fn layer(
    inspection: &Inspection,
    fact: &LayerFact,
    owner: (u32, u32),
    findings: &mut Vec<Finding>,
    advance: layer::Advance<'_>,
) -> Result<(), Interrupted> {
    let object = StoredObject::Layer(fact.key.clone());
    let path = object.path();
    let disk = inspection.disk();
    let folder = match inspection.place(&object).and_then(|(dir, name)| disk.open_dir(&dir, &name)) {
        Ok(folder) => folder,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()), // The quick check names it.
        Err(error) if layer::is_tree_error(&error) => {
            findings.push(Finding::new(Code::NodeKind, path, format!("is not {:?}", NodeKind::Directory)));
            return Ok(());
        }
        Err(error) => {
            findings.push(Finding::new(Code::ReadError, path, format!("cannot be read: {error}")));
            return Ok(());
        }
    };
    let compared = layer::compare(disk, folder, fact, owner, advance)?;
    for difference in compared.differences {
        let below = child(path.as_bytes(), &difference.path);
        let below = if difference.path.is_empty() { path.clone() } else { shown(&below) };
        findings.push(Finding::new(difference.code, below, difference.detail));
    }
    Ok(())
}
