//! Makes images: layers of any content and compression, configuration, manifest; as an OCI layout, a Docker archive, or pushed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::archive::{Entry, archive};
use crate::command::{run, succeed};
use crate::network::in_network;

/// `sha256:` and the hexadecimal digest of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let mut text = String::from("sha256:");
    for byte in hash {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By the command `gzip`.
    Gzip,
    /// Two gzip members, one after the other, as parallel compressors write them.
    GzipTwoMembers,
    /// By the command `zstd`.
    Zstd,
}

/// One layer: the tar, and the blob that a registry holds of it.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The uncompressed tar.
    pub tar: Vec<u8>,
    /// The blob as it is transferred.
    pub blob: Vec<u8>,
    /// OCI media type of the blob.
    pub media_type: String,
}

impl Layer {
    /// The layer with these entries, gzip-compressed.
    ///
    /// # Errors
    /// If `gzip` fails.
    pub fn of(entries: &[Entry]) -> Result<Self> {
        Self::from_tar(archive(entries), Compression::Gzip)
    }

    /// The layer with this tar.
    ///
    /// # Errors
    /// If the compressor fails.
    pub fn from_tar(tar: Vec<u8>, compression: Compression) -> Result<Self> {
        let media_type = match compression {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip | Compression::GzipTwoMembers => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        };
        let blob = match compression {
            Compression::None => tar.clone(),
            Compression::Gzip => gzip(&tar)?,
            Compression::GzipTwoMembers => {
                let (first, second) = tar.split_at(tar.len() / 2);
                let mut blob = gzip(first)?;
                blob.extend(gzip(second)?);
                blob
            }
            Compression::Zstd => filter("zstd", &["-q", "-c"], &tar)?,
        };
        Ok(Self { tar, blob, media_type: media_type.to_owned() })
    }

    /// The digest of the blob.
    pub fn digest(&self) -> String {
        digest(&self.blob)
    }

    /// The digest of the tar.
    pub fn diff_id(&self) -> String {
        digest(&self.tar)
    }
}

/// These bytes, compressed by the command `gzip`.
///
/// # Errors
/// If `gzip` fails.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    filter("gzip", &["-n", "-c"], bytes)
}

fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    Ok(run(Command::new(program).args(arguments), Some(input), Duration::from_secs(300))?.ok()?.stdout_bytes)
}

/// An image: its layers, lowest first, and its documents.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layers.
    pub layers: Vec<Layer>,
    /// The configuration document.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Media type of the manifest.
    pub manifest_type: String,
}

impl Image {
    /// An OCI image of these layers that runs `command` (Docker's `Cmd`).
    pub fn new(layers: Vec<Layer>, command: &[&str]) -> Self {
        Self::with_config(layers, &json!({ "Cmd": command, "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"] }))
    }

    /// An OCI image with this `config` object.
    pub fn with_config(layers: Vec<Layer>, config: &Value) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(Layer::diff_id).collect();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let document = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-01T00:00:00Z",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": layers.iter().map(|_| json!({ "created_by": "baleen-tests" })).collect::<Vec<_>>(),
        });
        Self::from_documents(layers, document.to_string().into_bytes(), "application/vnd.oci.image.manifest.v1+json")
    }

    /// An image with this configuration document as it is, and a manifest of this type that describes what is there.
    pub fn from_documents(layers: Vec<Layer>, config: Vec<u8>, manifest_type: &str) -> Self {
        let docker = manifest_type.contains("docker");
        let config_type = if docker {
            "application/vnd.docker.container.image.v1+json"
        } else {
            "application/vnd.oci.image.config.v1+json"
        };
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let media_type = if docker {
                    "application/vnd.docker.image.rootfs.diff.tar.gzip"
                } else {
                    layer.media_type.as_str()
                };
                json!({ "mediaType": media_type, "digest": layer.digest(), "size": layer.blob.len() })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": { "mediaType": config_type, "digest": digest(&config), "size": config.len() },
            "layers": descriptors,
        });
        Self { layers, config, manifest: manifest.to_string().into_bytes(), manifest_type: manifest_type.to_owned() }
    }

    /// The image's ID: the digest of its configuration.
    pub fn id(&self) -> String {
        digest(&self.config)
    }

    /// The digest of the manifest.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Sum of the layers' blobs, in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob.len() as u64).sum()
    }

    /// Every blob but the manifest, by digest.
    pub fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let mut blobs = BTreeMap::from([(self.id(), self.config.clone())]);
        for layer in &self.layers {
            blobs.insert(layer.digest(), layer.blob.clone());
        }
        blobs
    }

    /// Writes an OCI layout (OCI image-spec, Image Layout) whose one manifest is named `tag`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write_layout(&self, folder: &Path, tag: &str) -> Result<()> {
        let blobs = folder.join("blobs/sha256");
        fs::create_dir_all(&blobs)?;
        fs::write(folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": self.manifest_type, "digest": self.digest(), "size": self.manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": tag },
            }],
        });
        fs::write(folder.join("index.json"), index.to_string())?;
        let mut all = self.blobs();
        all.insert(self.digest(), self.manifest.clone());
        for (name, bytes) in all {
            fs::write(blobs.join(name.trim_start_matches("sha256:")), bytes)?;
        }
        Ok(())
    }

    /// The archive that `docker save` would write of this image under `reference` (manifest.json and uncompressed layers).
    pub fn docker_archive(&self, reference: &str) -> Vec<u8> {
        let config_name = format!("{}.json", self.id().trim_start_matches("sha256:"));
        let mut entries = vec![Entry::file(&config_name, self.config.clone())];
        let mut layers = Vec::new();
        for layer in &self.layers {
            let name = format!("{}/layer.tar", layer.diff_id().trim_start_matches("sha256:"));
            layers.push(name.clone());
            entries.push(Entry::file(&name, layer.tar.clone()));
        }
        let manifest = json!([{ "Config": config_name, "RepoTags": [reference], "Layers": layers }]);
        entries.push(Entry::file("manifest.json", manifest.to_string()));
        archive(&entries)
    }

    /// Pushes it to `reference` (`127.0.0.1:port/name:tag`) with `skopeo`, as it is.
    ///
    /// # Errors
    /// If `skopeo` fails.
    pub fn push(&self, scratch: &crate::scratch::Scratch, reference: &str) -> Result<()> {
        self.push_from(scratch, reference, None, &[])
    }

    /// The same from inside a network and with further options of `skopeo copy`.
    ///
    /// # Errors
    /// If `skopeo` fails.
    pub fn push_from(
        &self,
        scratch: &crate::scratch::Scratch,
        reference: &str,
        network: Option<&str>,
        options: &[&str],
    ) -> Result<()> {
        let folder = scratch.join(format!("layout-{}", &self.digest()[7..23]));
        if !folder.exists() {
            self.write_layout(&folder, "latest")?;
        }
        let source = format!("oci:{}:latest", folder.display());
        let target = format!("docker://{reference}");
        let mut skopeo = in_network(network, "skopeo");
        skopeo
            .args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"])
            .args(options)
            .args([&source, &target]);
        run(&mut skopeo, None, Duration::from_secs(120))?.ok()?;
        fs::remove_dir_all(&folder)?;
        Ok(())
    }
}

/// The entries of a small system: busybox with its usual names, `/etc/passwd`, and the folders that programs expect.
///
/// # Errors
/// If `/bin/busybox` is missing or cannot name its applets.
pub fn busybox_entries() -> Result<Vec<Entry>> {
    let program =
        fs::read("/bin/busybox").or_else(|_| fs::read("/usr/bin/busybox")).context("busybox-static is missing")?;
    let mut entries = Vec::new();
    for folder in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "var"] {
        entries.push(Entry::folder(folder));
    }
    entries.push(Entry::folder("tmp").mode(0o1777));
    entries.push(Entry::file("bin/busybox", program).mode(0o755));
    for name in succeed("busybox", &["--list"])?.stdout().lines() {
        if name != "busybox" {
            entries.push(Entry::symlink(&format!("bin/{name}"), "/bin/busybox"));
        }
    }
    entries.push(Entry::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n"));
    entries.push(Entry::file("etc/group", "root:x:0:\nuser:x:1000:\n"));
    entries.push(Entry::file("etc/not-a-program", "this text has no interpreter line\n").mode(0o644));
    Ok(entries)
}

/// The busybox image: one layer, a shell as its command.
///
/// # Errors
/// As [`busybox_entries`].
pub fn busybox() -> Result<Image> {
    Ok(Image::new(vec![Layer::of(&busybox_entries()?)?], &["sh"]))
}
