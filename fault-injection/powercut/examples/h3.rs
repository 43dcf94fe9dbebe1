//! Scratch.
use baleen_powercut::engines;
use baleen_powercut::*;
use std::path::Path;
use std::time::{Duration, Instant};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let name = &args[1];
    let states: u64 = args.get(2).and_then(|t| t.parse().ok()).unwrap_or(20);
    let mut options = RecordOptions::new(FileSystem::Ext4);
    options.size_bytes = Some(std::env::var("MIB").ok().and_then(|t| t.parse().ok()).unwrap_or(96u64) << 20);
    if let Ok(fs) = std::env::var("FS") {
        options.filesystem = fs.parse().unwrap();
    }
    let program = std::env::var_os("BIN").map(Into::into);
    let mut workload = engines::named(name, program).unwrap().unwrap();
    let t = Instant::now();
    let out = format!("/tmp/h3-{}.rec", name.replace('/', "-"));
    let recording = match std::env::var_os("REUSE") {
        Some(_) => Recording::open(Path::new(&out)).unwrap(),
        None => match record(&options, &mut workload, Path::new(&out)) {
            Ok(recording) => recording,
            Err(error) => {
                let mut e: &dyn std::error::Error = &error;
                eprint!("{e}");
                while let Some(s) = e.source() {
                    eprint!(": {s}");
                    e = s;
                }
                eprintln!();
                std::process::exit(1)
            }
        },
    };
    println!(
        "recorded in {:?}: {} epochs, {} writes",
        t.elapsed(),
        recording.epoch_count(),
        (0..recording.epoch_count()).map(|e| recording.write_count(e) as u64).sum::<u64>()
    );
    if let Ok(state) = std::env::var("STATE") {
        let verdict = judge(&recording, &mut workload, state.parse().unwrap()).unwrap();
        println!("{} {:?}", verdict.state, verdict.broken);
        return;
    }
    let t = Instant::now();
    let mut judged = Judged::default();
    let plan = Plan {
        states_max: states,
        budget: Some(Duration::from_secs(std::env::var("SECS").ok().and_then(|t| t.parse().ok()).unwrap_or(300))),
        convictions_max: std::env::var("MAX").ok().and_then(|t| t.parse().ok()).unwrap_or(5),
        second_cuts: std::env::var("SECOND").ok().and_then(|t| t.parse().ok()).unwrap_or(0),
        seed: std::env::var("SEED").ok().and_then(|t| t.parse().ok()).unwrap_or(1),
        ..Plan::default()
    };
    let summary = explore(&recording, &mut workload, &plan, &mut judged, &mut |verdict| {
        if !verdict.broken.is_empty() {
            println!("{} {:?} after {:?}", verdict.state, verdict.broken, verdict.after)
        }
    });
    println!("{:?} in {:?}", summary, t.elapsed());
}
