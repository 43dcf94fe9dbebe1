//! Writes the recipes with which the corpus of `recipe` began: those of some kept archives, whole and damaged.

use std::fs;
use std::sync::Arc;

use anyhow::Result;
use baleen_fault_injection::SimulatedDisk;
use baleen_fuzz::corpus;
use baleen_oci::{DiffId, Digest};
use baleen_snapshotter::Limits;
use baleen_snapshotter::tree::TreeWriter;
use baleen_store::recipe::RECIPE_NAME;
use baleen_store::{Access, Disk, read_file};

const ARCHIVES: &[&str] =
    &["plain", "sparse-1.0", "pax-size-700", "garbage-after-end", "zeros-after-end", "gnu-oldgnu"];

fn main() -> Result<()> {
    let folder = corpus::folder().join("recipe");
    for name in ARCHIVES {
        let archive = fs::read(corpus::folder().join("tar").join(format!("{name}.tar")))?;
        let disk: Arc<dyn Disk> = Arc::new(SimulatedDisk::new());
        let layer_dir = disk.root()?;
        let mut tree = TreeWriter::create(Arc::clone(&disk), &layer_dir, Limits::default())?;
        tree.take(&archive)?;
        tree.finish(DiffId(Digest::sha256_of(&archive)))?;
        let recipe = read_file(&*disk, &disk.open_file(&layer_dir, RECIPE_NAME, Access::Read)?, 1 << 20)?;
        fs::write(folder.join(format!("file-{name}")), &recipe)?;
        if *name == "plain" {
            let changed = |at: usize| [&recipe[..at], &[recipe[at] ^ 0x41], &recipe[at + 1..]].concat();
            let length = recipe.len();
            for (kind, bytes) in [
                ("magic", changed(0)),
                ("newer", changed(9)),
                ("frame-length", changed(18)),
                ("frame", changed(30)),
                ("index-offset", changed(length - 32)),
                ("trailer", changed(length - 1)),
                ("cut", recipe[..length - 40].to_vec()),
                ("short", recipe[..20].to_vec()),
            ] {
                fs::write(folder.join(format!("file-damaged-{kind}")), bytes)?;
            }
        }
    }
    Ok(())
}
