//! A small image with real programs, as an archive that `load` takes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::support::Scratch;

const BUSYBOX: &str = "/bin/busybox";
/// What the image's busybox answers to.
const NAMES: &[&str] = &["sh", "cat", "echo", "env", "head", "id", "kill", "ls", "seq", "sleep", "stty", "true"];

/// Writes an archive of an image with the given names; says so if the machine has no busybox.
pub(crate) fn archive(test: &str, scratch: &Scratch, tags: &[&str]) -> Option<PathBuf> {
    if !Path::new(BUSYBOX).exists() {
        assert!(std::env::var_os("CI").is_none(), "{test} needs busybox-static");
        eprintln!("SKIPPED: {test}: busybox-static is not installed");
        return None;
    }
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_path_with_name(BUSYBOX, "bin/busybox").expect("busybox");
    for name in NAMES {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer.append_link(&mut header, format!("bin/{name}"), "busybox").expect("a link");
    }
    let layer = layer.into_inner().expect("a layer");
    let hex = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "created": "2024-05-01T10:00:00Z",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/bin"], "Labels": { "made.by": "a test" } },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
        "history": [{ "created": "2024-05-01T10:00:00Z", "created_by": "busybox" }],
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": ["one/layer.tar"] }]).to_string();
    let path = scratch.path("image.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).expect("a file"));
    for (name, bytes) in
        [(config_name.as_str(), config.as_bytes()), ("one/layer.tar", &layer), ("manifest.json", manifest.as_bytes())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).expect("an entry");
    }
    archive.finish().expect("an archive");
    Some(path)
}
