//! A few kilobytes that claim gigabytes (threats.md, L7): each ends in an error, in bounded memory, and leaves the disk as it was.
//!
//! Sizes are cut short here; with `BALEEN_SOAK` they are those of the threat model.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use baleen_tests::archive::{Entry, archive};
use baleen_tests::daemon::Daemon;
use baleen_tests::image::{Compression, Image, Layer, gzip};
use baleen_tests::needs_root;
use baleen_tests::scratch::{Scratch, SmallDisk};
use baleen_tests::store::{Allowed, ownerless};
use baleen_tests::stub::Stub;

/// What a pull may add to the daemon's memory (DESIGN, Budgets).
const MEMORY_KIB_MAX: u64 = 32 << 10;
/// The longest that a bomb may go on.
const PATIENCE: Duration = Duration::from_secs(1200);

/// A layer of gzip members.
fn members(blob: Vec<u8>) -> Layer {
    Layer { tar: Vec::new(), blob, media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned() }
}

/// The first block of an entry that claims so many bytes.
fn header(mut entry: Entry, size_bytes: u64) -> Vec<u8> {
    entry.header_size_bytes = Some(size_bytes);
    let mut bytes = archive(&[entry]);
    // A size beyond the field's digits has a PAX record before it; the two zero blocks of the end are not wanted.
    bytes.truncate(bytes.len() - 1024);
    bytes
}

/// A file of zeros as large as it says.
fn zeros(gibibytes: u64) -> Result<Layer> {
    let mut blob = gzip(&header(Entry::file("zeros", ""), gibibytes << 30))?;
    blob.extend(gzip(&vec![0; 64 << 20])?.repeat(gibibytes as usize * 16 + 1));
    Ok(members(blob))
}

/// The same in one zstd frame after the other.
fn zeros_in_zstd(gibibytes: u64) -> Result<Layer> {
    let frame = |bytes: Vec<u8>| Layer::from_tar(bytes, Compression::Zstd).map(|layer| layer.blob);
    let mut blob = frame(header(Entry::file("zeros", ""), gibibytes << 30))?;
    blob.extend(frame(vec![0; 64 << 20])?.repeat(gibibytes as usize * 16 + 1));
    Ok(Layer { tar: Vec::new(), blob, media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned() })
}

/// A PAX record that claims this many mebibytes and has them.
fn long_record(mebibytes: u64) -> Result<Layer> {
    let mut head = header(Entry::file("PaxHeaders/entry", ""), mebibytes << 20);
    // The kind of the entry is a PAX header (pax(1), Header Block: typeflag `x`), and the sum of its bytes follows.
    head[156] = b'x';
    head[148..156].fill(b' ');
    let sum: u32 = head[..512].iter().map(|byte| u32::from(*byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let record = format!("{} comment=", mebibytes << 20);
    let mut blob = gzip(&head)?;
    blob.extend(gzip(record.as_bytes())?);
    blob.extend(gzip(&vec![b'a'; 8 << 20])?.repeat(mebibytes as usize / 8));
    Ok(members(blob))
}

/// Empty files, fifty thousand names again and again.
fn empty_files(count: usize) -> Result<Layer> {
    const NAMES: usize = 50_000;
    let entries: Vec<Entry> = (0..NAMES).map(|number| Entry::file(&format!("f{number}"), "")).collect();
    let mut bytes = archive(&entries);
    bytes.truncate(bytes.len() - 1024);
    Ok(members(gzip(&bytes)?.repeat(count / NAMES)))
}

/// A sparse file (GNU format 1.0) with a map of this many parts.
fn sparse_parts(count: u64) -> Result<Layer> {
    let mut map = format!("{count}\n");
    for part in 0..count {
        map += &format!("{}\n1\n", part * 2);
    }
    let mut content = map.into_bytes();
    content.resize(content.len().next_multiple_of(512), 0);
    content.resize(content.len() + count as usize, b'x');
    let entry = Entry::file("sparse", content)
        .pax("GNU.sparse.major", b"1".to_vec())
        .pax("GNU.sparse.minor", b"0".to_vec())
        .pax("GNU.sparse.name", b"sparse".to_vec())
        .pax("GNU.sparse.realsize", (count * 2).to_string().into_bytes());
    Layer::of(&[entry])
}

/// The most memory that the daemon has had since it was last asked, in KiB; forgets it.
fn peak_kib(daemon: &Daemon) -> Result<u64> {
    let folder = format!("/proc/{}", daemon.pid().context("no daemon")?);
    let status = fs::read_to_string(format!("{folder}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    // proc(5), clear_refs: 5 sets the peak to what is there now.
    fs::write(format!("{folder}/clear_refs"), "5")?;
    Ok(line.split_whitespace().next().context("no number")?.parse()?)
}

#[test]
fn every_bomb_ends_in_an_error_within_the_memory_of_a_pull_and_leaves_nothing() -> Result<()> {
    needs_root!("every_bomb_ends_in_an_error_within_the_memory_of_a_pull_and_leaves_nothing");
    let full = std::env::var_os("BALEEN_SOAK").is_some();
    let scratch = Scratch::new("bombs")?;
    let disk = SmallDisk::new(&scratch, "disk", 256 << 20)?;
    let mut daemon = Daemon::prepare(&scratch, &disk.path().join("root"))?;
    daemon.run()?;
    let stub = Stub::start()?;
    let pick = |short: u64, long: u64| if full { long } else { short };
    let bombs = [
        ("zeros", zeros(pick(1, 10))?),
        ("zeros-zstd", zeros_in_zstd(pick(1, 10))?),
        ("record", long_record(pick(64, 1024))?),
        ("files", empty_files(pick(150_000, 10_000_000) as usize)?),
        ("parts", sparse_parts(pick(100_000, 1_000_000))?),
    ];
    // The first pull pays for what a daemon needs once: threads, pools.
    stub.add("first", "v1", &Image::new(vec![Layer::of(&[Entry::file("first", "1")])?], &["/first"]));
    daemon.docker_ok(&["pull", "-q", &stub.reference("first:v1")])?;
    daemon.docker_ok(&["rmi", &stub.reference("first:v1")])?;
    daemon.docker_ok(&["system", "prune", "-af"])?;
    let free_before = disk.free_bytes()?;
    for (name, layer) in bombs {
        let blob_bytes = layer.blob.len();
        stub.add(name, "v1", &Image::new(vec![layer], &["/x"]));
        peak_kib(&daemon)?;
        let idle_kib = peak_kib(&daemon)?;
        let begun = Instant::now();
        let mut client = daemon.client(&["pull", &stub.reference(&format!("{name}:v1"))]);
        client.stdin(Stdio::null());
        let finished = baleen_tests::command::run(&mut client, None, PATIENCE)
            .with_context(|| format!("{name}:\n{}", daemon.log()))?;
        let took_kib = peak_kib(&daemon)?.saturating_sub(idle_kib);
        let said = finished.output().lines().last().unwrap_or_default().to_owned();
        println!(
            "{name}: {blob_bytes} bytes, {took_kib} KiB above {idle_kib}, {:.1} s: {said}",
            begun.elapsed().as_secs_f32()
        );
        ensure!(finished.code != 0, "{name} was pulled");
        ensure!(took_kib <= MEMORY_KIB_MAX, "{name} took {took_kib} KiB");
        ensure!(daemon.docker_ok(&["images", "-aq"])?.is_empty(), "{name}: an image is listed");
        daemon.docker_ok(&["system", "prune", "-af"])?;
        let stray = ownerless(&daemon, &Allowed::default())?;
        ensure!(stray.is_empty(), "{name}: left behind {stray:?}");
        let free_after = disk.free_bytes()?;
        ensure!(free_after + (1 << 20) > free_before, "{name}: {} bytes are gone", free_before - free_after);
    }
    Ok(())
}
