//! Tags, removal and prune: Docker's rules for what may go, told in Docker's words.
//!
//! R1  An image goes with its last tag; the last tag of a repository takes the repository's digests along.
//! R2  An image that a container uses stays in the store, whatever is forced: the container needs its layers. Forced, it
//!     loses its names only.
//! R3  Blocks are freed in the background, except by a prune, which answers when they are free.

use std::collections::BTreeMap;
use std::sync::Arc;

use baleen_oci::{ImageId, Reference, Repository};
use baleen_store::{ImageFact, Store, StoreError, TagFact};

use super::lookup::{self, Found, Names, store_error};
use super::{ImageDeletion, Pruned, RemoveImage};
use crate::container::PruneFilter;
use crate::door::to_its_end;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::events::EventType;
use crate::time::Timestamp;

/// Names that are unlinked between two looks at whether the engine still lives.
const TRASH_STEP: u64 = 256;

impl Engine {
    /// Gives an image one more name.
    ///
    /// # Errors
    /// `NoSuchImage`, `InvalidReference`, `AmbiguousTag`.
    pub async fn tag_image(
        self: &Arc<Self>,
        name: &str,
        repository: &str,
        tag: Option<&str>,
    ) -> Result<(), EngineError> {
        let invalid = |source| EngineError::InvalidReference { text: repository.to_owned(), source };
        let parsed = Repository::parse(repository).map_err(invalid)?;
        if parsed.familiar() == "sha256" || parsed.familiar() == "sha512" {
            return Err(EngineError::AmbiguousTag);
        }
        let tag = tag.filter(|tag| !tag.is_empty()).unwrap_or("latest");
        let target = parsed.with_tag(tag).map_err(invalid)?;
        let (engine, name) = (Arc::clone(self), name.to_owned());
        self.door
            .enter("tag an image", move || {
                let image = lookup::find(&engine.store, &name)?.image;
                let mut txn = engine.store.begin().map_err(store_error("tag the image"))?;
                txn.set_tag(tag_fact(&target, image.id)).map_err(store_error("tag the image"))?;
                txn.commit().map_err(store_error("tag the image"))?;
                engine.image_event("tag", &image.id.to_string(), &target.familiar());
                Ok(())
            })
            .await
    }

    /// Removes a name of an image, and the image when that was the last one.
    ///
    /// # Errors
    /// `NoSuchImage`; `ImageInUse` in Docker's words.
    pub async fn remove_image(
        self: &Arc<Self>,
        name: &str,
        how: RemoveImage,
    ) -> Result<Vec<ImageDeletion>, EngineError> {
        let (engine, name) = (Arc::clone(self), name.to_owned());
        let removed = self.door.enter("remove an image", move || engine.remove_named(&name, how)).await;
        self.empty_trash_later();
        removed
    }

    /// Removes images that nothing uses. With `dangling_only` unset, also what unfinished pulls have left.
    ///
    /// # Errors
    /// Of the store; `Conflict` if a prune is already running.
    pub async fn prune_images(self: &Arc<Self>, filter: PruneFilter) -> Result<Pruned<ImageDeletion>, EngineError> {
        let engine = Arc::clone(self);
        to_its_end("prune images", async move {
            let Ok(_turn) = engine.prune_turn.try_acquire() else {
                return Err(EngineError::conflict("a prune operation is already running"));
            };
            // One empties the trash at a time; who prunes waits until it is empty (R3).
            let trash_turn = Arc::clone(&engine.trash_turn).acquire_owned().await;
            let worker = Arc::clone(&engine);
            let pruned = engine.door.enter("prune images", move || worker.prune(&filter)).await;
            drop(trash_turn);
            pruned
        })
        .await
    }

    pub(crate) fn image_event(&self, action: &str, id: &str, name: &str) {
        let attributes = BTreeMap::from([("name".to_owned(), name.to_owned())]);
        self.events.send(EventType::Image, action, id, attributes);
    }

    /// Frees the blocks of what was removed, a few names at a time, behind everybody's back.
    pub(crate) fn empty_trash_later(self: &Arc<Self>) {
        let Ok(turn) = Arc::clone(&self.trash_turn).try_acquire_owned() else {
            return; // Whoever has it goes on until the trash is empty.
        };
        let engine = Arc::clone(self);
        drop(tokio::spawn(async move {
            loop {
                let store = engine.store.clone();
                let emptied = engine
                    .door
                    .enter("empty the trash", move || {
                        store.empty_trash(TRASH_STEP).map_err(store_error("empty the trash"))
                    })
                    .await;
                match emptied {
                    Ok(emptied) if emptied.more => tokio::task::yield_now().await,
                    Ok(_) => break,
                    Err(error) => {
                        tracing::warn!(
                            error = error.chain(),
                            "the trash cannot be emptied; the next removal tries again"
                        );
                        break;
                    }
                }
            }
            drop(turn);
        }));
    }

    fn remove_named(&self, name: &str, how: RemoveImage) -> Result<Vec<ImageDeletion>, EngineError> {
        let found = lookup::find(&self.store, name)?;
        let plan = plan(&self.store, &found, how, &|id| self.is_running(id))?;
        self.carry_out(&found.image, &plan)
    }

    /// Removes names, and the image if the plan says so. What the answer tells has happened.
    fn carry_out(&self, image: &ImageFact, plan: &Plan) -> Result<Vec<ImageDeletion>, EngineError> {
        let mut done = Vec::new();
        if plan.deletes {
            match self.store.remove_image(&image.id) {
                Ok(_) => {}
                // A container was created meanwhile.
                Err(StoreError::ImageInUse { container, .. }) => {
                    return Err(in_use(image, &container, "must be forced", "stopped"));
                }
                Err(StoreError::ImageMissing { image }) => return Err(EngineError::NoSuchImage { name: image }),
                Err(error) => return Err(EngineError::part("remove the image", error)),
            }
        } else {
            let mut txn = self.store.begin().map_err(store_error("remove the tag"))?;
            plan.untagged.iter().for_each(|reference| txn.remove_tag(&reference.to_string()));
            txn.commit().map_err(store_error("remove the tag"))?;
        }
        let id = image.id.to_string();
        for reference in &plan.untagged {
            self.image_event("untag", &id, &id);
            done.push(ImageDeletion::Untagged(reference.familiar()));
        }
        if plan.deletes {
            self.image_event("delete", &id, &id);
            done.push(ImageDeletion::Deleted(id));
        }
        Ok(done)
    }

    fn prune(&self, filter: &PruneFilter) -> Result<Pruned<ImageDeletion>, EngineError> {
        let mut pruned = Pruned::default();
        let names = Names::of(&self.store);
        let used: Vec<ImageId> = self.store.containers().into_iter().map(|container| container.image).collect();
        for image in self.store.images() {
            let is_dangling = names.tags(&image.id).next().is_none();
            if used.contains(&image.id) || (filter.dangling_only && !is_dangling) || !self.passes(&image, filter)? {
                continue;
            }
            let untagged = names.tags(&image.id).chain(names.digests(&image.id)).cloned().collect();
            match self.carry_out(&image, &Plan { untagged, deletes: true }) {
                Ok(deletions) => pruned.deleted.extend(deletions),
                Err(EngineError::ImageInUse { .. } | EngineError::NoSuchImage { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let rest = if filter.dangling_only { self.store.collect() } else { self.store.forget_pulls() };
        rest.map_err(store_error("collect what nothing needs"))?;
        loop {
            let emptied =
                self.store.empty_trash(u64::MAX).map_err(store_error("free the blocks of what was removed"))?;
            pruned.reclaimed_bytes += emptied.bytes;
            if !emptied.more {
                break;
            }
        }
        let attributes = BTreeMap::from([("reclaimed".to_owned(), pruned.reclaimed_bytes.to_string())]);
        self.events.send(EventType::Image, "prune", "", attributes);
        Ok(pruned)
    }

    fn passes(&self, image: &ImageFact, filter: &PruneFilter) -> Result<bool, EngineError> {
        if filter.until.is_none() && filter.labels.is_empty() && filter.not_labels.is_empty() {
            return Ok(true);
        }
        let config = lookup::config(&self.store, &image.id)?;
        let created = config.created().and_then(Timestamp::parse_rfc3339).unwrap_or(Timestamp::ZERO);
        let labels = config.run_config().labels.clone().unwrap_or_default();
        Ok(filter.lets_pass(created, &labels))
    }
}

pub(crate) fn tag_fact(reference: &Reference, image: ImageId) -> TagFact {
    TagFact { name: reference.to_string(), image, set_at_seconds: Timestamp::now().seconds }
}

/// What a removal will do.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    untagged: Vec<Reference>,
    deletes: bool,
}

/// Docker's decision table.
fn plan(
    store: &Store,
    found: &Found,
    how: RemoveImage,
    is_running: &dyn Fn(&str) -> bool,
) -> Result<Plan, EngineError> {
    let image = &found.image;
    let names = Names::of(store);
    let users: Vec<String> =
        store.containers().into_iter().filter(|container| container.image == image.id).map(|user| user.id).collect();
    let running = users.iter().find(|id| is_running(id));
    if let Some(tag) = &found.tag {
        let others = names.tags(&image.id).filter(|name| *name != tag).count();
        if others > 0 || (tag.digest().is_some() && names.tags(&image.id).next().is_some()) {
            return Ok(Plan { untagged: with_digests(&names, &image.id, tag), deletes: false });
        }
        // The last name.
        if let Some(user) = running.or(users.first()) {
            if running.is_none() && how.force {
                return Ok(Plan { untagged: all_names(&names, &image.id), deletes: false });
            }
            let (name, user, image) = (tag.familiar(), short(user), short(&image.id.hex()));
            return Err(EngineError::ImageInUse {
                text: format!(
                    "unable to remove repository reference \"{name}\" (must force) - container {user} is using its referenced image {image}"
                ),
            });
        }
        return Ok(Plan { untagged: all_names(&names, &image.id), deletes: true });
    }
    if let Some(user) = running {
        return Err(in_use(image, user, "cannot be forced", "running"));
    }
    if let Some(user) = users.first()
        && !how.force
    {
        return Err(in_use(image, user, "must be forced", "stopped"));
    }
    if names.repositories(&image.id).len() > 1 && !how.force {
        let image = short(&image.id.hex());
        return Err(EngineError::ImageInUse {
            text: format!("unable to delete {image} (must be forced) - image is referenced in multiple repositories"),
        });
    }
    Ok(Plan { untagged: all_names(&names, &image.id), deletes: users.is_empty() })
}

fn in_use(image: &ImageFact, user: &str, how: &str, state: &str) -> EngineError {
    let (image, user) = (short(&image.id.hex()), short(user));
    EngineError::ImageInUse {
        text: format!("unable to delete {image} ({how}) - image is being used by {state} container {user}"),
    }
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// A tag, and its repository's digests if no other tag of the repository is left (R1).
fn with_digests(names: &Names, id: &ImageId, tag: &Reference) -> Vec<Reference> {
    let mut untagged = vec![tag.clone()];
    let same = |name: &&Reference| name.repository() == tag.repository() && *name != tag;
    if tag.digest().is_none() && !names.tags(id).any(|name| same(&name)) {
        untagged.extend(names.digests(id).filter(same).cloned());
    }
    untagged
}

fn all_names(names: &Names, id: &ImageId) -> Vec<Reference> {
    names.tags(id).chain(names.digests(id)).cloned().collect()
}
