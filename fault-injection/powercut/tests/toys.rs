//! The judge is judged: every toy with a mistake is convicted on a real file system, and no toy without one ever is.

mod support;

use baleen_powercut::{FileSystem, Judged, Plan, RecordOptions, Recording, Summary, Toy, Verdict, explore, record};
use support::{Scratch, chain, skipped};

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

/// The other file systems: every wrong toy, few states; `BALEEN_SOAK` gives right ones many.
fn judged_on(filesystem: FileSystem) {
    let states = if std::env::var_os("BALEEN_SOAK").is_some() { 150 } else { 20 };
    let findings =
        baleen_powercut::judge_the_judge(filesystem, states).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn the_toys_are_judged_rightly_on_xfs() {
    if !skipped("the_toys_are_judged_rightly_on_xfs") {
        judged_on(FileSystem::Xfs);
    }
}

#[test]
fn the_toys_are_judged_rightly_on_btrfs() {
    if !skipped("the_toys_are_judged_rightly_on_btrfs") {
        judged_on(FileSystem::Btrfs);
    }
}
