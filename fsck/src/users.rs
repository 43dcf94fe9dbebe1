//! Who needs what: from a blob or a layer to the images that name it, and from those to their containers.

use std::collections::{BTreeMap, BTreeSet};

use baleen_oci::{Digest, ImageId};
use baleen_store::{Inspection, LayerKey, StoredObject};

use crate::finding::{Touched, TouchedContainer, TouchedImage};

/// The records of a store, by what they use.
pub(crate) struct Users {
    blobs: BTreeMap<Digest, BTreeSet<ImageId>>,
    layers: BTreeMap<LayerKey, BTreeSet<ImageId>>,
    tags: BTreeMap<ImageId, Vec<String>>,
    containers: BTreeMap<ImageId, Vec<TouchedContainer>>,
    names: BTreeMap<String, String>,
}

impl Users {
    pub(crate) fn of(inspection: &Inspection) -> Self {
        let mut users = Self {
            blobs: BTreeMap::new(),
            layers: BTreeMap::new(),
            tags: BTreeMap::new(),
            containers: BTreeMap::new(),
            names: BTreeMap::new(),
        };
        for image in inspection.images() {
            for digest in [Some(image.id.0), image.manifest].into_iter().flatten() {
                users.blobs.entry(digest).or_default().insert(image.id);
            }
            for key in image.layers {
                users.layers.entry(key).or_default().insert(image.id);
            }
        }
        for tag in inspection.tags() {
            users.tags.entry(tag.image).or_default().push(tag.name);
        }
        for container in inspection.containers() {
            users.names.insert(container.id.clone(), container.name.clone());
            let touched = TouchedContainer { id: container.id, name: container.name };
            users.containers.entry(container.image).or_default().push(touched);
        }
        users
    }

    /// The images and containers that need an object.
    pub(crate) fn of_object(&self, object: &StoredObject) -> Touched {
        match object {
            StoredObject::Blob(digest) => self.of_images(self.blobs.get(digest).into_iter().flatten()),
            StoredObject::Layer(key) => self.of_images(self.layers.get(key).into_iter().flatten()),
            StoredObject::Container(id) => {
                let name = self.names.get(id).cloned().unwrap_or_default();
                let containers = vec![TouchedContainer { id: id.clone(), name }];
                Touched { images: Vec::new(), containers }
            }
        }
    }

    /// An image with its containers.
    pub(crate) fn of_image(&self, id: &ImageId) -> Touched {
        self.of_images([id])
    }

    fn of_images<'a>(&self, ids: impl IntoIterator<Item = &'a ImageId>) -> Touched {
        let mut touched = Touched::default();
        for id in ids {
            let tags = self.tags.get(id).cloned().unwrap_or_default();
            touched.images.push(TouchedImage { id: id.to_string(), tags });
            touched.containers.extend(self.containers.get(id).into_iter().flatten().cloned());
        }
        touched
    }
}
