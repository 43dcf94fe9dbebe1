//! Repair: what a check has found, put right from what is at hand.
//!
//! R1  A layer that a running container has mounted is left as it is, and the finding says which container to stop.
//! R2  What is written over was known to be wrong, and what replaces it was verified before the first byte is written. A
//!     cut leaves a finding that the next repair mends.
//! R3  What is moved out of a layer goes to `quarantine/`. Only links and device nodes, which the recipe has whole, and
//!     further names of a file that is there, are removed.
//! R4  A file is written in its own inode: every layer that shares it is mended at once.
//! R5  Each repair is judged by comparing the object again, never by its own word. What was fetched again is compared too.

mod content;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use baleen_oci::Digest;
use baleen_store::{
    Access, Disk, Inspection, LayerFact, LayerKey, Opened, Stand, Standing, Store, StoreError, StoredObject, read_file,
};

use crate::deep::{self, Progress, Target};
use crate::finding::{Code, Finding, Outcome, shown};
use crate::layer::{self, Difference, Interrupted, child};
use crate::report::{Depth, Report};
use crate::users::Users;
use crate::{REPORT_VERSION, quick};

/// What a repair asks of whoever runs it.
pub trait Source {
    /// The running containers that have this layer mounted, by name.
    fn containers_on(&self, layer: &LayerKey) -> Vec<String>;

    /// Fetches a damaged or lost layer again from where it came, and stores it. `Ok(false)`: there is no such place, and the
    /// next pull has to do it. No running container has the layer mounted.
    ///
    /// # Errors
    /// Why it could not be fetched, for people.
    fn fetch(&self, store: &Store, layer: &LayerKey) -> Result<bool, String>;
}

/// Opens the store as a daemon would, which sees to everything that was in flight and to a damaged log; gives what was
/// found before with what has become of it.
///
/// # Errors
/// Those of [`Store::open`].
pub fn open(disk: Arc<dyn Disk>, new_id: [u8; 16]) -> Result<(Store, Vec<Finding>), StoreError> {
    let mut findings = {
        let inspection = Inspection::open(Arc::clone(&disk))?;
        quick::check(&inspection, &Users::of(&inspection))?
    };
    let (store, opened) = Store::open(disk, new_id)?;
    store.empty_trash(u64::MAX)?;
    let stands = store.inspection()?.stands()?;
    findings.iter_mut().for_each(|finding| finding.outcome = after_opening(finding, &opened, &stands));
    Ok((store, findings))
}

fn after_opening(finding: &Finding, opened: &Opened, stands: &[Stand]) -> Outcome {
    let corrected = |what: &str| Outcome::Corrected(what.to_owned());
    match finding.code {
        Code::FormatMissing | Code::FormatDamaged => corrected("written anew"),
        Code::LogDamaged => Outcome::Corrected(match opened.damage.is_empty() {
            true => "the log goes on without it".to_owned(),
            false => opened.damage.join("; "),
        }),
        Code::DirectoryMissing => corrected("made anew, empty"),
        Code::LogTorn | Code::NotClosed | Code::DirectoryMode | Code::ObjectStaged | Code::TrashWaiting => {
            corrected("seen to")
        }
        Code::LeftOver => {
            let stays = stands.iter().any(|stand| stand.path == finding.path && stand.standing == Standing::LeftOver);
            if stays {
                Outcome::Left("the store was closed in order, so nothing else is moved".to_owned())
            } else {
                corrected("thrown away")
            }
        }
        Code::ObjectMissing if opened.missing.contains(&finding.path) && !finding.path.starts_with("containers/") => {
            Outcome::Left("forgotten, so that the next pull fetches it".to_owned())
        }
        _ => Outcome::Left(finding.remedy.to_owned()),
    }
}

/// Checks every byte of an open store, and puts right what can be.
///
/// `findings` are those of [`open`]; `watch` is that of [`crate::deep()`].
///
/// # Durability
/// What the report calls corrected is durable.
/// # Errors
/// `Io` if the store cannot be listed; `WritesStopped`. What cannot be put right is told in its finding.
pub fn repair(
    store: &Store,
    source: &dyn Source,
    mut findings: Vec<Finding>,
    watch: &mut dyn FnMut(&Progress) -> bool,
) -> Result<Report, StoreError> {
    fetch_lost(store, source, &mut findings)?;
    let inspection = store.inspection()?;
    let users = Users::of(&inspection);
    let owner = deep::owner_of(&inspection);
    let work = Work { store, source, inspection: &inspection, owner };
    let targets = deep::targets(&inspection, None);
    let mut progress = Progress { total_bytes: targets.iter().map(Target::bytes).sum(), ..Progress::default() };
    let (mut complete, mut checked_through) = (true, None);
    for target in targets {
        progress.object = target.object().path();
        let started_bytes = progress.done_bytes;
        let mut found = Vec::new();
        let mut advance = |bytes| {
            progress.done_bytes += bytes;
            watch(&progress)
        };
        let done = match &target {
            Target::Layer(fact) => work.layer(fact, &mut found, &mut advance)?,
            Target::Blob(digest, size_bytes) => work.blob(digest, *size_bytes, &mut found, &mut advance),
            Target::Container(id) => {
                crate::container::check(&inspection, id, &mut found);
                Ok(())
            }
        };
        for finding in &mut found {
            if finding.outcome == Outcome::Found {
                finding.outcome = Outcome::Left(finding.remedy.to_owned());
            }
            finding.touched = users.of_object(&target.object());
        }
        findings.extend(found);
        if done.is_err() {
            complete = false;
            break;
        }
        progress.done_bytes = started_bytes + target.bytes();
        progress.findings = findings.len();
        checked_through = Some(progress.object.clone());
    }
    let suspects: BTreeSet<String> = store.suspects().into_iter().map(|key| StoredObject::Layer(key).path()).collect();
    for finding in findings.iter_mut().filter(|finding| finding.code == Code::LayerSuspect) {
        if !suspects.contains(&finding.path) {
            finding.outcome = Outcome::Corrected("the layer was fetched again".to_owned());
        }
    }
    let checked_through = checked_through.filter(|_| !complete);
    Ok(Report { version: REPORT_VERSION, depth: Depth::Deep, complete, checked_through, findings, usage: None })
}

/// Fetches the layers that images name and the store does not have any more, and says so in the findings that name them.
fn fetch_lost(store: &Store, source: &dyn Source, findings: &mut [Finding]) -> Result<(), StoreError> {
    let inspection = store.inspection()?;
    let missing = inspection.missing(&inspection.stands()?);
    let recorded: BTreeSet<LayerKey> = store.layers().into_iter().map(|layer| layer.key).collect();
    let named: BTreeSet<LayerKey> = store.images().into_iter().flat_map(|image| image.layers).collect();
    let is_lost =
        |key: &&LayerKey| !recorded.contains(key) || missing.contains(&StoredObject::Layer(LayerKey::clone(key)));
    for key in named.iter().filter(is_lost) {
        let running = source.containers_on(key);
        let outcome = if running.is_empty() {
            match source.fetch(store, key) {
                Ok(true) if store.layers().iter().any(|layer| layer.key == *key) => {
                    Outcome::Corrected("the layer was fetched again".to_owned())
                }
                Ok(_) => {
                    mark_recorded(store, &recorded, key)?;
                    continue;
                }
                Err(error) => {
                    mark_recorded(store, &recorded, key)?;
                    Outcome::Left(format!("it could not be fetched ({error}); the next pull tries again"))
                }
            }
        } else {
            Outcome::Left(format!("{} has it mounted: stop it first", running.join(", ")))
        };
        let object = StoredObject::Layer(key.clone());
        let (path, lacks) = (object.path(), quick::lacks(&object));
        for finding in findings.iter_mut() {
            let is_it = match finding.code {
                Code::ObjectMissing => finding.path == path,
                Code::ImageIncomplete => finding.detail == lacks,
                _ => false,
            };
            if is_it {
                finding.outcome = outcome.clone();
            }
        }
    }
    Ok(())
}

/// Marks a layer that is recorded and not there, so that a pull does not take it for stored.
fn mark_recorded(store: &Store, recorded: &BTreeSet<LayerKey>, key: &LayerKey) -> Result<(), StoreError> {
    if recorded.contains(key) { store.mark_suspect(std::slice::from_ref(key)) } else { Ok(()) }
}

/// Whether a finding is about what a node is like, and not about what it holds.
fn is_attribute(code: Code) -> bool {
    matches!(code, Code::NodeMode | Code::NodeOwner | Code::NodeTime | Code::NodeXattrs)
}

/// What a repair works with.
struct Work<'a> {
    store: &'a Store,
    source: &'a dyn Source,
    inspection: &'a Inspection,
    owner: (u32, u32),
}

impl Work<'_> {
    fn disk(&self) -> &Arc<dyn Disk> {
        self.inspection.disk()
    }

    fn compare(&self, fact: &LayerFact, advance: layer::Advance<'_>) -> Result<Option<layer::Compared>, Interrupted> {
        let object = StoredObject::Layer(fact.key.clone());
        let opened = self.inspection.place(&object).and_then(|(dir, name)| self.disk().open_dir(&dir, &name));
        match opened {
            Ok(folder) => layer::compare(self.disk(), folder, fact, self.owner, advance).map(Some),
            Err(_) => Ok(None), // The quick check names it.
        }
    }

    /// Compares a layer, mends it, and compares it again (R5).
    fn layer(
        &self,
        fact: &LayerFact,
        findings: &mut Vec<Finding>,
        advance: layer::Advance<'_>,
    ) -> Result<Result<(), Interrupted>, StoreError> {
        let object = StoredObject::Layer(fact.key.clone());
        let compared = match self.compare(fact, advance) {
            Ok(Some(compared)) => compared,
            Ok(None) => return Ok(Ok(())),
            Err(interrupted) => return Ok(Err(interrupted)),
        };
        if compared.differences.is_empty() {
            return Ok(Ok(()));
        }
        let path = object.path();
        let mut told: Vec<(Difference, Finding)> = Vec::new();
        for difference in compared.differences {
            let below = child(path.as_bytes(), &difference.path);
            let below = if difference.path.is_empty() { path.clone() } else { shown(&below) };
            let finding = Finding::new(difference.code, below, difference.detail.clone());
            told.push((difference, finding));
        }
        let running = self.source.containers_on(&fact.key);
        if !running.is_empty() {
            let why = format!("{} has it mounted: stop it first", running.join(", "));
            told.iter_mut().for_each(|(_, finding)| finding.outcome = Outcome::Left(why.clone()));
            findings.extend(told.into_iter().map(|(_, finding)| finding));
            return Ok(Ok(()));
        }
        let mut how: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        if let Some(expected) = &compared.expected {
            let differences: Vec<&Difference> = told.iter().map(|(difference, _)| difference).collect();
            tree::mend(self.store, self.inspection, &object, expected, &differences, self.owner, &mut how);
        }
        let left = match self.compare(fact, &mut |_| false) {
            Ok(Some(again)) => again.differences,
            _ => Vec::new(),
        };
        let is_left = |found: &Difference| left.iter().any(|left| (left.code, &left.path) == (found.code, &found.path));
        let mut suspect = false;
        for (difference, finding) in &mut told {
            let word = how.get(&difference.path);
            finding.outcome = if is_left(difference) {
                suspect = true;
                Outcome::Left(word.map_or("nothing at hand has what was stored", String::as_str).to_owned())
            } else if is_attribute(difference.code) {
                Outcome::Corrected("set again from the recipe".to_owned())
            } else {
                Outcome::Corrected(word.map_or("restored from the recipe", String::as_str).to_owned())
            };
        }
        if suspect {
            let fetched = match self.source.fetch(self.store, &fact.key) {
                Ok(true) if self.is_whole(&fact.key) => Ok(true),
                Ok(true) => Err("what came is not what was stored either".to_owned()),
                other => other,
            };
            let word = match &fetched {
                Ok(true) => "the layer was fetched again".to_owned(),
                Ok(false) => "the layer is marked: the next pull of its image fetches it again".to_owned(),
                Err(error) => format!("it could not be fetched ({error}); the next pull of its image tries again"),
            };
            if !matches!(fetched, Ok(true)) {
                self.store.mark_suspect(std::slice::from_ref(&fact.key))?;
            }
            for (difference, finding) in told.iter_mut().filter(|(difference, _)| is_left(difference)) {
                let why = how.get(&difference.path).map(|word| format!("{word}; ")).unwrap_or_default();
                finding.outcome = match fetched {
                    Ok(true) => Outcome::Corrected(word.clone()),
                    _ => Outcome::Left(format!("{why}{word}")),
                };
            }
        }
        findings.extend(told.into_iter().map(|(_, finding)| finding));
        Ok(Ok(()))
    }

    /// Whether a layer that was stored again is as it should be (R5).
    fn is_whole(&self, key: &LayerKey) -> bool {
        let Some(fact) = self.store.layers().into_iter().find(|fact| fact.key == *key) else { return false };
        matches!(self.compare(&fact, &mut |_| false), Ok(Some(again)) if again.differences.is_empty())
    }

    fn blob(
        &self,
        digest: &Digest,
        size_bytes: u64,
        findings: &mut Vec<Finding>,
        advance: layer::Advance<'_>,
    ) -> Result<(), Interrupted> {
        deep::blob(self.inspection, digest, size_bytes, self.owner, findings, advance)?;
        if findings.is_empty() {
            return Ok(());
        }
        let object = StoredObject::Blob(*digest);
        let mended = self.mend_blob(&object, digest);
        let mut left = Vec::new();
        deep::blob(self.inspection, digest, size_bytes, self.owner, &mut left, &mut |_| false)?;
        let left: BTreeSet<(Code, String)> = left.into_iter().map(|finding| (finding.code, finding.detail)).collect();
        for finding in findings.iter_mut() {
            let is_left = left.contains(&(finding.code, finding.detail.clone()));
            finding.outcome = match (&mended, is_left, finding.code) {
                (_, false, Code::BlobContent) => Outcome::Corrected("one bit was flipped: it is as it was".to_owned()),
                (_, false, _) => Outcome::Corrected("set again".to_owned()),
                (Err(error), true, _) => Outcome::Left(format!("it cannot be written: {error}")),
                (Ok(()), true, _) => Outcome::Left("the next pull of the image brings it again".to_owned()),
            };
        }
        Ok(())
    }

    fn mend_blob(&self, object: &StoredObject, digest: &Digest) -> std::io::Result<()> {
        let disk = self.disk().as_ref();
        let (dir, name) = self.inspection.place(object)?;
        let file = disk.open_file(&dir, &name, Access::ReadWrite)?;
        disk.set_owner(&file, self.owner.0, self.owner.1)?;
        disk.set_mode(&file, deep::BLOB_MODE)?;
        for (attribute, _) in disk.xattrs(&file)?.iter().filter(|(name, _)| layer::is_layers_xattr(name)) {
            disk.remove_xattr(&file, attribute)?;
        }
        let bytes = read_file(disk, &file, content::ONE_BIT_BYTES_MAX).unwrap_or_default();
        if !digest.matches(&bytes)
            && let Some((at, byte)) = content::one_flipped_bit(&bytes, &|bytes| digest.matches(bytes))
        {
            disk.write_at(&file, &[byte], at as u64)?;
        }
        disk.sync(&file)
    }
}
