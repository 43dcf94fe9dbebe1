//! Makes the delta of two images that are given as tars of their layers, applies it, and compares: `pair OLD.tar... -- NEW.tar...`.
//! Prints one line of JSON; `bench/delta` reads it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use baleen_delta::{Decoder, FileBytes, Level, Options, SourceLayer, Sources as _, TarLayer, Target, encode};
use baleen_oci::{Algorithm, DiffId, Digest, DigestHasher};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut parts = arguments.split(|argument| argument == Path::new("--"));
    let (Some(old), Some(new)) = (parts.next(), parts.next()) else {
        return Err("pair OLD.tar... -- NEW.tar...".into());
    };
    let level = if std::env::var_os("PAIR_FAST").is_some() { Level::Fast } else { Level::Default };
    let threads = std::env::var("PAIR_THREADS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let open = |path: &PathBuf| FileBytes::new(File::open(path)?);
    let mut sources = Vec::new();
    for path in old {
        sources.push(TarLayer::open(diff_id(path)?, open(path)?)?);
    }
    let mut tars = Vec::new();
    for path in new {
        let diff_id = diff_id(path)?;
        if sources.layer(&diff_id).is_none() {
            tars.push((diff_id, open(path)?));
        }
    }
    let layers: Vec<&dyn SourceLayer> = sources.iter().map(|layer| layer as &dyn SourceLayer).collect();
    let targets: Vec<Target<'_>> = tars.iter().map(|(diff_id, tar)| Target { diff_id: *diff_id, tar }).collect();
    let path = std::env::temp_dir().join(format!("baleen-pair-{}", std::process::id()));
    let mut scratch = File::options().create_new(true).read(true).write(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let mut delta = Vec::new();
    let begun = Instant::now();
    let options = Options { level, threads, ..Options::default() };
    let report = encode(&Digest::sha256_of(b"config"), &layers, &targets, &options, &mut scratch, &mut delta)?;
    let made = begun.elapsed();
    scratch.rewind()?;
    if let Ok(path) = std::env::var("PAIR_DELTA") {
        std::fs::write(path, &delta)?;
    }
    let begun = Instant::now();
    let mut decoder = Decoder::new(delta.as_slice(), &sources, u64::MAX)?;
    let mut hasher = Hashing(DigestHasher::new(Algorithm::Sha256));
    while let Some(done) = decoder.next_frame(&mut hasher)? {
        if done.layer_complete {
            let found = std::mem::replace(&mut hasher.0, DigestHasher::new(Algorithm::Sha256)).finish();
            let wanted = decoder.header().layers[done.layer].diff_id;
            if found != wanted.0 {
                return Err(format!("layer {wanted} came out as {found}").into());
            }
        }
    }
    let applied = begun.elapsed();
    println!(
        "{{\"bytes\": {}, \"make_s\": {:.2}, \"apply_s\": {:.2}, \"frames\": {}, \"memory\": {}}}",
        report.delta_bytes,
        made.as_secs_f64(),
        applied.as_secs_f64(),
        report.header.frames.len(),
        report.header.memory_bytes
    );
    for (name, share) in &report.shares {
        eprintln!("{name:20} {:6} payloads {:10} bytes, raw {:9}", share.payloads, share.output_bytes, share.raw_bytes);
    }
    for (name, raw, packed) in &report.streams {
        eprintln!("{name:20} {raw:10} -> {packed:9}");
    }
    Ok(())
}

fn diff_id(path: &Path) -> io::Result<DiffId> {
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(DiffId(hasher.finish())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

struct Hashing(DigestHasher);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
