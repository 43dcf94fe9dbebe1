//! The quick check: what an opening would see. Its work depends on what was in flight, not on how much is stored.
//!
//! Q1  Nothing below an object is opened.

use baleen_oci::ImageId;
use baleen_store::{FormatState, Inspection, Standing, StoreError, StoredObject};

use crate::finding::{Code, Finding, Touched};
use crate::users::Users;

/// Looks at the log, at the names below the root, and at whether the records fit each other.
pub(crate) fn check(inspection: &Inspection, users: &Users) -> Result<Vec<Finding>, StoreError> {
    let mut findings = Vec::new();
    log(inspection, &mut findings);
    names(inspection, users, &mut findings)?;
    records(inspection, users, &mut findings);
    Ok(findings)
}

fn log(inspection: &Inspection, findings: &mut Vec<Finding>) {
    match inspection.format() {
        FormatState::Whole => {}
        FormatState::Missing => findings.push(Finding::new(Code::FormatMissing, "FORMAT", "is not there")),
        FormatState::Damaged(what) => findings.push(Finding::new(Code::FormatDamaged, "FORMAT", what.clone())),
    }
    let log = inspection.log();
    for damage in &log.damage {
        findings.push(Finding::new(Code::LogDamaged, damage.path.clone(), damage.what.clone()));
    }
    for path in &log.damaged_copies {
        findings.push(Finding::new(Code::SecondCopyDamaged, path.clone(), "is not whole; nothing is lost by that"));
    }
    if log.torn {
        let detail = "its last batch was cut while it was written; it was never acknowledged";
        findings.push(Finding::new(Code::LogTorn, "wal", detail));
    }
    if !log.clean && log.damage.is_empty() {
        findings.push(Finding::new(Code::NotClosed, "wal", "the store was not closed in order"));
    }
}

fn names(inspection: &Inspection, users: &Users, findings: &mut Vec<Finding>) -> Result<(), StoreError> {
    let stands = inspection.stands()?;
    for stand in &stands {
        let path = stand.path.clone();
        findings.extend(match &stand.standing {
            Standing::Recorded(_) | Standing::Partial => None,
            Standing::Staged(object) => {
                let detail = format!("belongs to {}", object.path());
                Some(Finding::new(Code::ObjectStaged, path, detail).touching(users.of_object(object)))
            }
            Standing::LeftOver => Some(Finding::new(Code::LeftOver, path, "no record names it")),
            Standing::Trash => Some(Finding::new(Code::TrashWaiting, path, "waits for deletion")),
            Standing::Quarantine => Some(Finding::new(Code::QuarantineWaiting, path, "waits for a person")),
            Standing::Absent => Some(Finding::new(Code::DirectoryMissing, path, "is not there")),
            Standing::Mode(found, wanted) => {
                Some(Finding::new(Code::DirectoryMode, path, crate::layer::modes(*found, *wanted)))
            }
            _ => Some(Finding::new(Code::ForeignName, path, "belongs to nothing that the store knows")),
        });
    }
    for object in inspection.missing(&stands) {
        let touched = users.of_object(&object);
        findings.push(Finding::new(Code::ObjectMissing, object.path(), "is not there").touching(touched));
    }
    Ok(())
}

/// Whether what a record names is recorded too.
fn records(inspection: &Inspection, users: &Users, findings: &mut Vec<Finding>) {
    let blobs: std::collections::BTreeSet<_> = inspection.blobs().into_iter().map(|blob| blob.digest).collect();
    let layers: std::collections::BTreeSet<_> = inspection.layers().into_iter().map(|layer| layer.key).collect();
    for tag in inspection.tags().into_iter().filter(|tag| !inspection.has_image(&tag.image)) {
        let detail = format!("names the image {}, which is not recorded", tag.image);
        findings.push(Finding::new(Code::TagWithoutImage, format!("tag {}", tag.name), detail));
    }
    for image in inspection.images() {
        let config = (!blobs.contains(&image.id.0)).then_some(StoredObject::Blob(image.id.0));
        let manifest = image.manifest.filter(|digest| !blobs.contains(digest)).map(StoredObject::Blob);
        let keys = image.layers.iter().filter(|key| !layers.contains(key)).cloned().map(StoredObject::Layer);
        for object in config.into_iter().chain(manifest).chain(keys) {
            findings.push(on_image(Code::ImageIncomplete, &image.id, lacks(&object), users.of_image(&image.id)));
        }
    }
    for key in inspection.suspects() {
        let object = StoredObject::Layer(key);
        let touched = users.of_object(&object);
        let detail = "is marked as damaged: the next pull of its image fetches it again";
        findings.push(Finding::new(Code::LayerSuspect, object.path(), detail).touching(touched));
    }
    for container in inspection.containers().into_iter().filter(|fact| !inspection.has_image(&fact.image)) {
        let detail = format!("was made from the image {}, which is not recorded", container.image);
        let object = StoredObject::Container(container.id);
        let touched = users.of_object(&object);
        findings.push(Finding::new(Code::ContainerWithoutImage, object.path(), detail).touching(touched));
    }
}

/// What is told of an image that lacks an object.
pub(crate) fn lacks(object: &StoredObject) -> String {
    format!("lacks {}, which is not recorded", object.path())
}

fn on_image(code: Code, id: &ImageId, detail: String, touched: Touched) -> Finding {
    Finding::new(code, format!("image {id}"), detail).touching(touched)
}
