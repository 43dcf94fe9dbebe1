//! The judge is judged: every toy with a mistake is convicted on a real file system, and no toy without one ever is.

use std::path::PathBuf;

use baleen_powercut::{FileSystem, Judged, Plan, RecordOptions, Recording, Summary, Toy, Verdict, explore, record};

/// Says why the rig cannot work here; in CI that is a failure.
fn skipped(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if root && std::path::Path::new("/dev/fuse").exists() && std::path::Path::new("/dev/loop-control").exists() {
        return false;
    }
    assert!(std::env::var_os("CI").is_none(), "{test}: CI must have root, FUSE and loop devices");
    eprintln!("SKIPPED: {test}: it needs root, FUSE and loop devices");
    true
}

/// A folder for recordings that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("baleen-powercut-test.{}.{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn recorded(filesystem: FileSystem, mut toy: Toy, scratch: &Scratch) -> Recording {
    let out = scratch.0.join(toy.word());
    record(&RecordOptions::new(filesystem), &mut toy, &out).unwrap_or_else(|error| panic!("{toy:?}: {}", chain(&error)))
}

fn explored(recording: &Recording, mut toy: Toy, plan: &Plan) -> (Summary, Vec<Verdict>) {
    let mut verdicts = Vec::new();
    let mut keep = |verdict: &Verdict| verdicts.push(verdict.clone());
    let summary = explore(recording, &mut toy, plan, &mut Judged::new(), &mut keep)
        .unwrap_or_else(|error| panic!("{toy:?}: {}", chain(&error)));
    (summary, verdicts)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The first state that convicts.
fn conviction(verdicts: &[Verdict]) -> Option<String> {
    let convicted = verdicts.iter().find(|verdict| !verdict.broken.is_empty())?;
    Some(format!("{}: {}", convicted.state, convicted.broken[0]))
}

#[test]
fn every_wrong_toy_is_convicted_on_ext4() {
    if skipped("every_wrong_toy_is_convicted_on_ext4") {
        return;
    }
    let scratch = Scratch::new("wrong");
    for toy in Toy::WRONG {
        let recording = recorded(FileSystem::Ext4, toy, &scratch);
        let plan = Plan { states_max: 120, convictions_max: 1, ..Plan::default() };
        let (summary, verdicts) = explored(&recording, toy, &plan);
        println!(
            "{}: {} epochs, {} states, {:?}",
            toy.word(),
            recording.epoch_count(),
            summary.judged,
            conviction(&verdicts)
        );
        assert!(summary.convicted > 0, "{toy:?} was not convicted in {summary:?}");
    }
}

#[test]
fn no_right_toy_is_ever_convicted_on_ext4() {
    if skipped("no_right_toy_is_ever_convicted_on_ext4") {
        return;
    }
    let scratch = Scratch::new("right");
    for toy in Toy::RIGHT {
        let recording = recorded(FileSystem::Ext4, toy, &scratch);
        let plan = Plan { states_max: 100, second_cuts: 1, ..Plan::default() };
        let (summary, verdicts) = explored(&recording, toy, &plan);
        println!("{}: {} epochs, {summary:?}", toy.word(), recording.epoch_count());
        assert_eq!(conviction(&verdicts), None, "{toy:?}");
        assert!(summary.judged >= 20, "{toy:?}: {summary:?}");
    }
}
