//! Extracts a layer from a file into a new directory, to measure it: `extract BLOB DIRECTORY`.
#![allow(clippy::disallowed_methods, reason = "reads its input and makes its output directory")]

use std::io::Read;
use std::sync::Arc;

use baleen_snapshotter::{Expectation, Extraction};
use baleen_store::{Disk, SystemDisk};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(blob), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: extract BLOB DIRECTORY".into());
    };
    std::fs::create_dir_all(&directory)?;
    let disk: Arc<dyn Disk> = Arc::new(SystemDisk::open(directory.as_ref())?);
    disk.create_dir(&disk.root()?, b"layer", 0o700)?;
    let layer = disk.open_dir(&disk.root()?, b"layer")?;
    // A descriptor of its own, opened before the first write (store::disk, D4).
    let barrier = disk.root()?;
    let extraction = Extraction::start(Arc::clone(&disk), layer, Expectation::default())?;
    let mut file = std::fs::File::open(blob)?;
    loop {
        let mut chunk = vec![0; 128 << 10];
        let count = file.read(&mut chunk)?;
        chunk.truncate(count);
        if count == 0 || extraction.feed(chunk).is_err() {
            break;
        }
    }
    let extracted = extraction.finish()?;
    disk.barrier(&barrier)?;
    println!("{extracted:#?}");
    Ok(())
}
