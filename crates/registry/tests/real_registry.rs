//! Against Debian's `docker-registry`, with an image pushed by `skopeo`.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use baleen_oci::{Digest, Document, Platform, Reference};
use baleen_registry::{Client, ClientConfig, Credentials, Missing, RegistryError, VerifiedBlob};
use support::{Scratch, run, skipped};

/// A registry on a port of its own, stopped when dropped.
struct Registry {
    child: Child,
    port: u16,
    _scratch: Scratch,
}

impl Registry {
    fn start() -> Registry {
        let scratch = Scratch::new("distribution");
        let config = scratch.path().join("config.yml");
        let storage = scratch.path().join("data");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry starts");
        // It says on which port it listens; the rest of its log is read away so that it never blocks.
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let port = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.split_once("listening on 127.0.0.1:")?.1.split('"').next()?.parse().ok())
            .expect("docker-registry says where it listens");
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Registry { child, port, _scratch: scratch }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes an OCI layout with one image of two gzip layers, and returns the layers' compressed bytes.
fn write_layout(dir: &Path) -> Vec<Vec<u8>> {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::sha256_of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, bytes.len())
    };
    let (mut layers, mut diff_ids, mut descriptors) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..2_u32 {
        let tree = dir.join(format!("tree{number}"));
        fs::create_dir(&tree).unwrap();
        // Text that gzip cannot shrink to nothing, some hundred KiB of it.
        let text: String = (0..40_000_u32).map(|n| format!("{:x} ", n.wrapping_mul(2_654_435_761) ^ number)).collect();
        fs::write(tree.join(format!("file{number}")), text).unwrap();
        let tar = dir.join(format!("{number}.tar"));
        let run = |command: &mut Command| assert!(command.status().unwrap().success());
        run(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."));
        diff_ids.push(format!("\"{}\"", Digest::sha256_of(&fs::read(&tar).unwrap())));
        run(Command::new("gzip").arg("-n").arg(&tar));
        layers.push(fs::read(dir.join(format!("{number}.tar.gz"))).unwrap());
        descriptors.push(put(layers.last().unwrap(), "application/vnd.oci.image.layer.v1.tar+gzip"));
    }
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["true"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        Platform::host().architecture,
        diff_ids.join(",")
    );
    let config = put(config.as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{}]}}"#,
        descriptors.join(",")
    );
    let manifest = put(manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    fs::write(dir.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#)).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    layers
}

fn push(layout: &Path, destination: &str, options: &[&str]) {
    let output = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
        .args(options)
        .arg(format!("oci:{}", layout.display()))
        .arg(format!("docker://{destination}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "skopeo: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[test]
fn an_image_pushed_by_skopeo_is_fetched_byte_for_byte() {
    for program in ["docker-registry", "skopeo"] {
        if !is_installed(program) {
            return skipped(
                "an_image_pushed_by_skopeo_is_fetched_byte_for_byte",
                &format!("{program} is not installed"),
            );
        }
    }
    let registry = Registry::start();
    let scratch = Scratch::new("layout");
    let layers = write_layout(scratch.path());
    let name = format!("127.0.0.1:{}/team/app", registry.port);
    push(scratch.path(), &format!("{name}:oci"), &["--preserve-digests"]);
    push(scratch.path(), &format!("{name}:docker"), &["--format", "v2s2"]);
    run(async {
        for tag in ["oci", "docker"] {
            let reference = Reference::parse(&format!("{name}:{tag}")).unwrap();
            let client =
                Client::new(ClientConfig::default()).repository(reference.repository(), Credentials::Anonymous);
            let image = client.resolve(&reference, &Platform::host()).await.unwrap();
            assert_eq!(image.config.diff_ids().len(), 2);
            assert!(matches!(image.manifest_document.document, Document::Manifest(_)));
            let by_digest = Reference::parse(&format!("{name}@{}", image.digest)).unwrap();
            assert_eq!(client.document(&by_digest).await.unwrap().bytes, image.manifest_document.bytes);
            for (descriptor, layer) in image.manifest.layers.iter().zip(&layers) {
                let mut blob = VerifiedBlob::new(client.blob(descriptor, 0, |_| {}));
                let mut bytes = Vec::new();
                while let Some(chunk) = blob.next_chunk().await.unwrap() {
                    bytes.extend_from_slice(&chunk);
                }
                assert_eq!(&bytes, layer);
                assert_eq!(blob.stream().fetched_bytes(), descriptor.size);
                let offset = descriptor.size / 3;
                let mut rest = client.blob(descriptor, offset, |_| {});
                let mut bytes = Vec::new();
                while let Some(chunk) = rest.next_chunk().await.unwrap() {
                    bytes.extend_from_slice(&chunk);
                }
                assert_eq!(bytes, layer[offset as usize..], "a blob that is resumed");
                assert_eq!(rest.fetched_bytes(), descriptor.size - offset, "is not fetched from its start");
            }
        }
        let client = Client::new(ClientConfig::default());
        let repository = Reference::parse(&name).unwrap();
        let mut tags = client.repository(repository.repository(), Credentials::Anonymous).tags().await.unwrap();
        tags.sort();
        assert_eq!(tags, ["docker", "oci"]);
        for (missing, expected) in
            [(format!("{name}:no"), Missing::Manifest), (format!("{name}/no:1"), Missing::Manifest)]
        {
            let reference = Reference::parse(&missing).unwrap();
            let client = client.repository(reference.repository(), Credentials::Anonymous);
            let error = client.resolve(&reference, &Platform::host()).await.unwrap_err();
            assert!(matches!(&error, RegistryError::NotFound { missing, .. } if *missing == expected), "{error}");
            assert!(error.to_string().contains("manifest unknown: manifest unknown"), "{error}");
        }
    });
}
