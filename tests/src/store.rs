//! What lies on the disk below a daemon's root, judged from outside: layers against `tar -x`, and an owner for every path.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::image::Image;
use crate::scratch::Scratch;
use crate::tree;

/// The folders of an image's layers, lowest first, as `image inspect` names them.
///
/// # Errors
/// If the image is not there or names none.
pub fn layer_folders(daemon: &Daemon, reference: &str) -> Result<Vec<PathBuf>> {
    let found: Value = serde_json::from_str(&daemon.docker_ok(&["image", "inspect", reference])?)?;
    folders_of(&found[0])
}

/// The folders of an image's layers, lowest first, from the answer of an inspection.
///
/// # Errors
/// If it names none.
pub fn folders_of(inspected: &Value) -> Result<Vec<PathBuf>> {
    let data = &inspected["GraphDriver"]["Data"];
    // As of Docker's overlay2: the top layer is the upper folder, the others follow from the top downwards.
    let mut folders: Vec<PathBuf> = ["UpperDir", "LowerDir"]
        .iter()
        .filter_map(|key| data[*key].as_str())
        .flat_map(|text| text.split(':'))
        .map(PathBuf::from)
        .collect();
    folders.reverse();
    if folders.is_empty() {
        bail!("no folders in {data}");
    }
    Ok(folders)
}

/// Compares every layer of a pulled image with what `tar -x` makes of it: content, mode, owner, times, attributes, links.
///
/// # Errors
/// If a layer differs (each difference is named) or cannot be read.
pub fn assert_image_is_whole(daemon: &Daemon, scratch: &Scratch, reference: &str, image: &Image) -> Result<()> {
    let folders = layer_folders(daemon, reference)?;
    if folders.len() != image.layers.len() {
        bail!("{reference} has {} layers, and {} folders: {folders:?}", image.layers.len(), folders.len());
    }
    for (number, (folder, layer)) in folders.iter().zip(&image.layers).enumerate() {
        let expected = tree::of_layer(scratch, &layer.tar)?;
        let differences =
            layer_differences(folder, &expected).with_context(|| format!("layer {number} of {reference}"))?;
        if !differences.is_empty() {
            bail!(
                "layer {number} of {reference} in {}: first on disk, second by tar\n{}",
                folder.display(),
                differences.join("\n")
            );
        }
    }
    Ok(())
}

/// What an unpacked layer has otherwise than [`tree::of_layer`] of its archive, one line a difference.
///
/// # Errors
/// If it cannot be read.
pub fn layer_differences(folder: &Path, expected: &tree::Tree) -> Result<Vec<String>> {
    let mut found = tree::read(folder)?;
    if expected.get(".").is_some_and(|root| root.mtime.is_none()) {
        // The archive says nothing of the layer's own folder.
        let mut expected = expected.clone();
        expected.remove(".");
        found.remove(".");
        return Ok(tree::differences(&found, &expected));
    }
    Ok(tree::differences(&found, expected))
}

/// What may lie in the store besides what the listed images and containers need.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Diff IDs of layers that a pull in progress has finished.
    pub layers: BTreeSet<String>,
    /// Digests of blobs that a pull in progress holds: manifest, config, and the layers being fetched.
    pub blobs: BTreeSet<String>,
}

impl Allowed {
    /// What a cut pull of this image may have left.
    pub fn pull_of(image: &Image) -> Self {
        let mut blobs: BTreeSet<String> = image.layers.iter().map(|layer| layer.digest()).collect();
        blobs.insert(image.id());
        blobs.insert(image.digest());
        Self { layers: image.layers.iter().map(|layer| layer.diff_id()).collect(), blobs }
    }
}

/// Names every path of the root that belongs to no listed image, no container, no pull in progress and not to the store itself.
/// (`docs/formats/root.md` has the folders; trash may hold anything until it is emptied.)
///
/// # Errors
/// If the daemon does not answer or the root cannot be read.
pub fn ownerless(daemon: &Daemon, allowed: &Allowed) -> Result<Vec<String>> {
    let mut layers = allowed.layers.clone();
    let mut blobs = allowed.blobs.clone();
    for image in daemon.api("GET", "/images/json?all=1", None, 200)?.as_array().context("no list of images")? {
        let id = image["Id"].as_str().context("an image without an ID")?;
        let found = daemon.api("GET", &format!("/images/{id}/json"), None, 200)?;
        blobs.insert(id.to_owned());
        for digest in found["RepoDigests"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            blobs.extend(digest.rsplit_once('@').map(|(_, digest)| digest.to_owned()));
        }
        layers.extend(
            found["RootFS"]["Layers"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned),
        );
    }
    let mut containers = BTreeSet::new();
    for container in
        daemon.api("GET", "/containers/json?all=1", None, 200)?.as_array().context("no list of containers")?
    {
        containers.insert(container["Id"].as_str().context("a container without an ID")?.to_owned());
    }
    let hex = |digests: &BTreeSet<String>| -> BTreeSet<String> {
        digests.iter().map(|digest| digest.trim_start_matches("sha256:").to_owned()).collect()
    };
    let (layers, blobs) = (hex(&layers), hex(&blobs));

    let mut found = Vec::new();
    let names = |folder: &str| -> Vec<String> {
        let entries = fs::read_dir(daemon.root().join(folder)).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    for name in names("") {
        match name.as_str() {
            "FORMAT" | "LOCK" | "wal" | "index-0" | "index-1" | "trash" | "volumes" => {}
            "blobs" => found.extend(
                names("blobs/sha256")
                    .into_iter()
                    .filter(|name| !blobs.contains(name))
                    .map(|name| format!("blobs/sha256/{name}")),
            ),
            "layers" => found.extend(
                names("layers")
                    .into_iter()
                    .filter(|name| !layers.contains(bare(name)))
                    .map(|name| format!("layers/{name}")),
            ),
            "partial" => found.extend(
                names("partial")
                    .into_iter()
                    .filter(|name| !blobs.contains(bare(name)))
                    .map(|name| format!("partial/{name}")),
            ),
            "containers" => found.extend(
                names("containers")
                    .into_iter()
                    .filter(|name| !containers.contains(name))
                    .map(|name| format!("containers/{name}")),
            ),
            // Nothing is in flight when this is asked.
            "staging" | "quarantine" => found.extend(names(&name).into_iter().map(|inner| format!("{name}/{inner}"))),
            other => found.push(other.to_owned()),
        }
    }
    Ok(found)
}

/// The hexadecimal digest in a folder's name: `sha256:` before it and a suffix after it are left out.
fn bare(name: &str) -> &str {
    let name = name.strip_prefix("sha256:").or_else(|| name.strip_prefix("sha256-")).unwrap_or(name);
    &name[..name.len().min(64)]
}
