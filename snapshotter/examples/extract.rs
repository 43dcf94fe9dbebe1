//! Extracts a layer from a file into a store in a new directory, to measure it: `extract BLOB DIRECTORY [MIB]`. With MIB it takes a
//! checkpoint after so much output, however soon.
#![allow(clippy::disallowed_methods, reason = "reads its input and makes its output directory")]

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use baleen_oci::Digest;
use baleen_snapshotter::{CheckpointPolicy, Expectation, Extraction, Intervals, Pace, Support};
use baleen_store::{Store, SystemDisk};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(blob), Some(directory)) = (arguments.next(), arguments.next()) else {
        return Err("usage: extract BLOB DIRECTORY [MIB]".into());
    };
    let interval: Option<u64> = arguments.next().map(|text| text.to_string_lossy().parse()).transpose()?;
    std::fs::create_dir_all(&directory)?;
    let disk = Arc::new(SystemDisk::open(directory.as_ref())?);
    let (store, _) = Store::open(disk, *b"a measured store")?;
    let partial = store.begin_partial(&Digest::sha256_of(b"a measured layer"))?;
    let mut support = Support::default();
    if let Some(mebibytes) = interval {
        let intervals = Intervals { output_bytes: mebibytes << 20, spacing: Duration::ZERO, ..Intervals::default() };
        let start = Instant::now();
        let pace = Arc::new(Pace::new(intervals, Box::new(move || start.elapsed())));
        let sink = Box::new(partial.checkpoints());
        support.checkpoints = Some(CheckpointPolicy { sink, pace, cuts: 0, beside: true });
    }
    let layer = store.disk().open_dir_in_root(partial.dir(), ".".as_ref())?;
    // A descriptor of its own, opened before the first write (store::disk, D4).
    let barrier = store.disk().root()?;
    let start = Instant::now();
    let extraction = Extraction::start_with(Arc::clone(store.disk()), layer, Expectation::default(), support)?;
    let progress = extraction.progress();
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
    let written = start.elapsed();
    store.disk().barrier(&barrier)?;
    println!("{extracted:#?}");
    println!("{} checkpoints; written after {written:?}, durable after {:?}", progress.checkpoints(), start.elapsed());
    partial.keep();
    Ok(())
}
