//! What the rig promises of its disks: they fail as told, keep what a recording says, and a chain of cuts is one recording.

mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;

use baleen_powercut::workload::{Broken, History, Marks, Place, Workload, WorkloadError};
use baleen_powercut::{
    External, Fault, FileSystem, Judged, Plan, RecordError, RecordOptions, Recording, Report, Request, Results,
    RigError, State, Toy, Verdict, explore, image_of, judge, record, record_on, replay, serve, with_disk,
};
use support::{Scratch, chain, skipped};

fn options() -> RecordOptions {
    RecordOptions::new(FileSystem::Ext4)
}

#[test]
fn a_flush_that_fails_is_told_to_the_program_that_syncs() {
    if skipped("a_flush_that_fails_is_told_to_the_program_that_syncs") {
        return;
    }
    let told = with_disk(&options(), |disk| {
        let file = File::create(disk.path().join("file")).unwrap();
        file.write_all_at(&[7; 100], 0).unwrap();
        disk.fail(vec![Fault::Once { request: Request::Flush, number: 0 }]);
        let told = file.sync_all();
        drop(file);
        let (_, writes, flushes) = disk.counted();
        assert!(writes > 0 && flushes > 0, "{writes} writes, {flushes} flushes");
        Ok(told.map_err(|error| error.raw_os_error()))
    });
    assert_eq!(told.unwrap_or_else(|error| panic!("{}", chain(&error))), Err(Some(libc::EIO)));
}

#[test]
fn a_disk_whose_power_goes_keeps_what_was_flushed_and_some_of_the_rest() {
    if skipped("a_disk_whose_power_goes_keeps_what_was_flushed_and_some_of_the_rest") {
        return;
    }
    let lost = with_disk(&options(), |disk| {
        disk.cache_writes();
        let (mut kinds, mut lost, mut torn) = (std::collections::BTreeSet::new(), 0, 0);
        let in_place = disk.path().join("in-place");
        fs::write(&in_place, [0; 64 << 10]).unwrap();
        File::open(&in_place).unwrap().sync_all().unwrap();
        for round in 1..=20_u8 {
            let flushed = disk.path().join(format!("flushed{round}"));
            fs::write(&flushed, [round; 5000]).unwrap();
            File::open(&flushed).unwrap().sync_all().unwrap();
            File::open(disk.path()).unwrap().sync_all().unwrap();
            // Sent to the disk, block by block, and not flushed.
            let pattern = disk.run().join("pattern");
            fs::write(&pattern, [round; 64 << 10]).unwrap();
            let mut dd = std::process::Command::new("dd");
            dd.arg(format!("if={}", pattern.display())).arg(format!("of={}", in_place.display()));
            dd.args(["bs=8192", "oflag=direct", "conv=notrunc", "status=none"]);
            assert!(dd.status().unwrap().success());
            let (kind, writes) = disk.cut_power(u64::from(round))?;
            // Whoever has not noticed writes on into the dark.
            fs::write(disk.path().join("dark"), [round; 5000]).unwrap();
            disk.boot()?;
            kinds.insert(kind.word());
            lost += writes.lost;
            torn += writes.torn;
            for earlier in 1..=round {
                let kept = fs::read(disk.path().join(format!("flushed{earlier}"))).unwrap();
                assert_eq!(kept, [earlier; 5000], "after {kind:?}");
            }
            assert!(!disk.path().join("dark").exists());
            let blocks = fs::read(&in_place).unwrap();
            assert!(blocks.chunks(4096).all(|block| block.iter().all(|byte| *byte == block[0] && *byte <= round)));
        }
        assert!(kinds.len() == 5 && torn > 0, "{kinds:?}, {torn} torn");
        Ok(lost)
    });
    assert!(lost.unwrap_or_else(|error| panic!("{}", chain(&error))) > 0);
}

#[test]
fn a_program_cuts_the_power_of_its_own_disk() {
    if skipped("a_program_cuts_the_power_of_its_own_disk") {
        return;
    }
    let script = r#"
        cd "$BALEEN_POWERCUT_DISK" && echo kept > kept && sync kept && sync -f . && cd /
        ask() { echo "$1" >&0; read -r answer; }
        touch "$BALEEN_POWERCUT_RUN/gone"
        ask 'cut 7'; case $answer in dark*) ;; *) exit 1 ;; esac
        ask boot; [ "$answer" = on ] || exit 2
        [ "$(cat "$BALEEN_POWERCUT_DISK/kept")" = kept ] && ! [ -e "$BALEEN_POWERCUT_RUN/gone" ] || exit 3
        ask reboot; case $answer in error*) ;; *) exit 4 ;; esac
    "#;
    let status = serve(&options(), std::process::Command::new("sh").args(["-c", script]));
    assert_eq!(status.unwrap_or_else(|error| panic!("{}", chain(&error))).code(), Some(0));
}

#[test]
fn a_write_that_fails_is_told_by_the_next_sync() {
    if skipped("a_write_that_fails_is_told_by_the_next_sync") {
        return;
    }
    let told = with_disk(&options(), |disk| {
        let file = File::create(disk.path().join("file")).unwrap();
        file.write_all_at(&[7; 100], 0).unwrap();
        disk.fail(vec![Fault::Once { request: Request::Write, number: 0 }]);
        Ok(file.sync_all().map_err(|error| error.raw_os_error()))
    });
    assert_eq!(told.unwrap_or_else(|error| panic!("{}", chain(&error))), Err(Some(libc::EIO)));
}

#[test]
fn a_read_that_fails_is_told_to_the_reader() {
    if skipped("a_read_that_fails_is_told_to_the_reader") {
        return;
    }
    let read = with_disk(&options(), |disk| {
        fs::write(disk.path().join("file"), [7; 8192]).unwrap();
        disk.unmount()?;
        disk.mount()?;
        let file = File::open(disk.path().join("file")).unwrap();
        // The inode is in the cache now, the bytes are not. Read-ahead may take the first failure for itself.
        disk.fail((0..4).map(|number| Fault::Once { request: Request::Read, number }).collect());
        let read = file.read_exact_at(&mut [0; 100], 0);
        disk.fail(Vec::new());
        Ok(read.map_err(|error| error.raw_os_error()))
    });
    assert_eq!(read.unwrap_or_else(|error| panic!("{}", chain(&error))), Err(Some(libc::EIO)));
}

#[test]
fn a_disk_that_turns_read_only_takes_nothing_more() {
    if skipped("a_disk_that_turns_read_only_takes_nothing_more") {
        return;
    }
    let told = with_disk(&options(), |disk| {
        disk.fail(vec![Fault::ReadOnlyFrom { write: 0 }]);
        let written = File::create(disk.path().join("file")).and_then(|mut file| {
            file.write_all(b"never")?;
            file.sync_all()
        });
        Ok(written.map_err(|error| error.raw_os_error()))
    });
    let error = told.unwrap_or_else(|error| panic!("{}", chain(&error))).unwrap_err();
    assert!([Some(libc::EIO), Some(libc::EROFS)].contains(&error), "{error:?}");
}

#[test]
fn a_small_disk_fills_up() {
    if skipped("a_small_disk_fills_up") {
        return;
    }
    let filled = with_disk(&options(), |disk| {
        let written = fs::write(disk.path().join("file"), vec![7; 32 << 20]);
        Ok(written.map_err(|error| error.kind()))
    });
    assert_eq!(filled.unwrap_or_else(|error| panic!("{}", chain(&error))), Err(ErrorKind::StorageFull));
}

#[test]
fn bit_rot_changes_one_byte_of_the_file_that_was_chosen() {
    if skipped("bit_rot_changes_one_byte_of_the_file_that_was_chosen") {
        return;
    }
    let (one, other) = with_disk(&options(), |disk| {
        fs::write(disk.path().join("one"), [7; 10_000]).unwrap();
        fs::write(disk.path().join("other"), [7; 10_000]).unwrap();
        disk.rot(&disk.path().join("one"), 9_000, 0b1000)?;
        Ok((fs::read(disk.path().join("one")).unwrap(), fs::read(disk.path().join("other")).unwrap()))
    })
    .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut expected = vec![7; 10_000];
    assert_eq!(other, expected);
    expected[9_000] = 0b1111;
    assert!(one == expected, "another byte changed");
}

#[test]
fn a_chain_of_cuts_is_one_recording_that_keeps_every_acknowledgement() {
    if skipped("a_chain_of_cuts_is_one_recording_that_keeps_every_acknowledgement") {
        return;
    }
    let scratch = Scratch::new("chain");
    let mut toy = Toy::CarefulLog;
    let first =
        record(&options(), &mut toy, &scratch.0.join("first")).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let cut: State = format!("{}:none", first.epoch_count() / 2).parse().unwrap();
    let acknowledged = |recording: &Recording, epoch: u32| {
        History { marks: recording.marks_until(epoch) }.acknowledged().map(str::to_owned).collect::<Vec<_>>()
    };
    let before = acknowledged(&first, cut.epoch);
    assert!(!before.is_empty());
    let second = record_on(&first, cut, &mut toy, &scratch.0.join("second"), 3)
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let all = acknowledged(&second, second.epoch_count());
    assert!(all.len() > before.len() && all.starts_with(&before), "{before:?}, then {all:?}");
    assert!(second.epoch_count() > cut.epoch + 1);
    // Its states are judged against both parts, and the states before the cut are those of the first recording.
    let mut verdicts = Vec::new();
    let plan = Plan { states_max: 40, second_cuts: 1, ..Plan::default() };
    explore(&second, &mut toy, &plan, &mut Judged::new(), &mut |verdict: &Verdict| verdicts.push(verdict.clone()))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(verdicts.iter().all(|verdict| verdict.broken.is_empty()), "{verdicts:?}");
    assert!(verdicts.iter().any(|verdict| verdict.after.is_some()), "no recovery was cut");
    let image = |recording: &Recording, name: &str| {
        let path = scratch.0.join(name);
        image_of(recording, cut, &path).unwrap();
        fs::read(path).unwrap()
    };
    assert!(image(&first, "a") == image(&second, "b"), "the chain has other states before its cut");
}

#[test]
fn a_state_is_the_same_each_time_it_is_mounted() {
    if skipped("a_state_is_the_same_each_time_it_is_mounted") {
        return;
    }
    let scratch = Scratch::new("again");
    let mut toy = Toy::OverwriteInPlace;
    let recording =
        record(&options(), &mut toy, &scratch.0.join("r")).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut convicted = None;
    let plan = Plan { states_max: 400, convictions_max: 1, ..Plan::default() };
    let mut each = |verdict: &Verdict| convicted = Some(verdict.clone()).filter(|verdict| !verdict.broken.is_empty());
    explore(&recording, &mut toy, &plan, &mut Judged::new(), &mut each).unwrap();
    let convicted = convicted.expect("overwriting in place is convicted");
    let state: State = convicted.state.parse().unwrap();
    // What one look writes is gone before the next.
    let look = || {
        let seen = replay(&recording, state, |disk| {
            let bytes = fs::read(disk.join("file")).unwrap();
            fs::write(disk.join("file"), b"scribble").unwrap();
            bytes
        });
        seen.unwrap_or_else(|error| panic!("{}", chain(&error)))
    };
    assert_eq!(look(), look());
    let again = judge(&recording, &mut toy, state).unwrap();
    assert_eq!(again.broken, convicted.broken);
    let missing = judge(&recording, &mut toy, format!("{}:none", recording.epoch_count()).parse().unwrap());
    assert!(matches!(missing, Err(RigError::NoSuchState { .. })), "{missing:?}");
}

#[test]
fn a_recording_with_any_byte_changed_or_cut_off_is_refused() {
    if skipped("a_recording_with_any_byte_changed_or_cut_off_is_refused") {
        return;
    }
    let scratch = Scratch::new("damage");
    let path = scratch.0.join("r");
    record(&options(), &mut Toy::CarefulLog, &path).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let whole = fs::read(&path).unwrap();
    let copy = scratch.0.join("copy");
    let step = (whole.len() / 60).max(1);
    for at in (0..whole.len()).step_by(step) {
        let mut changed = whole.clone();
        changed[at] ^= 0x10;
        fs::write(&copy, &changed).unwrap();
        let opened = Recording::open(&copy);
        assert!(
            matches!(opened, Err(RecordError::Damaged { .. } | RecordError::Version { .. })),
            "byte {at} of {}: {opened:?}",
            whole.len()
        );
        fs::write(&copy, &whole[..at]).unwrap();
        assert!(matches!(Recording::open(&copy), Err(RecordError::Damaged { .. })), "cut at {at}");
    }
}

/// The same promise as a careful toy's, kept by a program that speaks lines of JSON.
const PROGRAM: &str = r#"
import json, os, sys
for line in sys.stdin:
    ask = json.loads(line)
    def say(**word):
        print(json.dumps(word), flush=True)
    def mark(**word):
        say(**word)
        assert json.loads(sys.stdin.readline())["marked"]
    path = os.path.join(ask["disk"], "file")
    if ask["do"] == "run":
        mark(begin="file")
        with open(path, "w") as file:
            file.write("hello")
            if MODE == "right":
                file.flush()
                os.fsync(file.fileno())
        if MODE == "right":
            folder = os.open(ask["disk"], os.O_RDONLY)
            os.fsync(folder)
        mark(acknowledge="file")
    elif ask["do"] == "check":
        promised = {"kind": "acknowledged", "text": "file"} in ask["history"]
        whole = os.path.exists(path) and open(path).read() == "hello"
        if promised and not whole:
            say(broken={"promise": "durable", "what": "the file is not there"})
    say(done=True)
"#;

#[test]
fn a_program_that_speaks_lines_is_judged_like_any_workload() {
    if skipped("a_program_that_speaks_lines_is_judged_like_any_workload") {
        return;
    }
    let scratch = Scratch::new("external");
    for (mode, broken) in [("right", false), ("wrong", true)] {
        let program = scratch.0.join(format!("{mode}.py"));
        fs::write(&program, format!("MODE = {mode:?}\n{PROGRAM}")).unwrap();
        let mut workload = External::new(vec!["python3".into(), program.into()]);
        let recording = record(&options(), &mut workload, &scratch.0.join(mode))
            .unwrap_or_else(|error| panic!("{mode}: {}", chain(&error)));
        let plan = Plan { states_max: 12, ..Plan::default() };
        let summary = explore(&recording, &mut workload, &plan, &mut Judged::new(), &mut |_| ())
            .unwrap_or_else(|error| panic!("{mode}: {}", chain(&error)));
        assert_eq!(summary.convicted > 0, broken, "{mode}: {summary:?}");
    }
}

#[test]
fn a_report_names_every_conviction_and_its_page_needs_nothing_beside_it() {
    if skipped("a_report_names_every_conviction_and_its_page_needs_nothing_beside_it") {
        return;
    }
    let scratch = Scratch::new("report");
    let mut toy = Toy::RenameTooEarly;
    let recording = record(&options(), &mut toy, &scratch.0.join("toy.powercut"))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut results = Results::open(&scratch.0.join("toy.jsonl")).unwrap();
    let plan = Plan { states_max: 30, ..Plan::default() };
    let mut keep = |verdict: &Verdict| results.keep(verdict).unwrap();
    let summary = explore(&recording, &mut toy, &plan, &mut Judged::new(), &mut keep).unwrap();
    assert!(summary.convicted > 0);
    // A later run goes on: what has been judged is not judged again.
    let mut judged = results.judged(recording.identity());
    assert_eq!(judged.len() as u64, summary.judged);
    let mut again = Vec::new();
    let more = Plan { states_max: 10, ..Plan::default() };
    explore(&recording, &mut toy, &more, &mut judged, &mut |verdict: &Verdict| again.push(verdict.clone())).unwrap();
    let known = |verdict: &Verdict| {
        let same = |other: &&Verdict| (other.epoch, &other.kept) == (verdict.epoch, &verdict.kept);
        results.verdicts().iter().find(same).is_some()
    };
    assert!(!again.iter().any(known), "a state was judged twice");

    let report = Report::of(&scratch.0).unwrap();
    let (text, page) = (report.text(), report.html());
    for verdict in results.verdicts().iter().filter(|verdict| !verdict.broken.is_empty()) {
        assert!(text.contains(&format!("state {}:", verdict.state)), "{}\n{text}", verdict.state);
        assert!(page.contains(&format!("<td>{}<td>", verdict.state)), "{}", verdict.state);
    }
    for outside in ["http:", "https:", "src=", "url(", "<script", "<link", "@import"] {
        assert!(!page.contains(outside), "the page needs {outside}");
    }
    let json: serde_json::Value = serde_json::from_str(&report.json().unwrap()).unwrap();
    assert_eq!(json["sections"][0]["totals"]["convicted"], summary.convicted);
}

/// Acknowledges between two halves of its work, from another thread: marks lie in order with the writes.
struct Halves;

impl Workload for Halves {
    fn name(&self) -> String {
        "halves".to_owned()
    }

    fn run(&mut self, place: &Place<'_>, marks: &Marks) -> Result<(), WorkloadError> {
        let failed = |error| WorkloadError::failed("write a half", error);
        for half in ["one", "two"] {
            marks.begin(half);
            let file = File::create(place.disk.join(half)).map_err(failed)?;
            file.write_all_at(&[1; 5000], 0).map_err(failed)?;
            file.sync_all().map_err(failed)?;
            let marks = marks.clone();
            std::thread::spawn(move || marks.acknowledge(half)).join().expect("it only marks");
        }
        Ok(())
    }

    fn check(&mut self, place: &Place<'_>, history: &History) -> Result<Vec<Broken>, WorkloadError> {
        let whole = |half: &&str| !fs::read(place.disk.join(half)).is_ok_and(|bytes| bytes == [1; 5000]);
        Ok(history.acknowledged().filter(whole).map(|half| Broken::new("durable", half)).collect())
    }
}

#[test]
fn a_mark_lies_after_the_flush_that_it_waited_for_and_before_the_next() {
    if skipped("a_mark_lies_after_the_flush_that_it_waited_for_and_before_the_next") {
        return;
    }
    let scratch = Scratch::new("marks");
    let recording =
        record(&options(), &mut Halves, &scratch.0.join("r")).unwrap_or_else(|error| panic!("{}", chain(&error)));
    // Every epoch: with an acknowledgement, the half is durable whatever is lost.
    let plan = Plan { boundaries_only: true, states_max: u64::MAX, ..Plan::default() };
    let summary = explore(&recording, &mut Halves, &plan, &mut Judged::new(), &mut |_| ()).unwrap();
    assert_eq!(summary.convicted, 0, "{summary:?}");
    let counts: Vec<usize> = (0..recording.epoch_count())
        .map(|epoch| History { marks: recording.marks_until(epoch) }.acknowledged().count())
        .collect();
    assert!(counts.is_sorted() && counts.first() == Some(&0) && counts.last() == Some(&2), "{counts:?}");
    assert!(counts.contains(&1), "the first half was never acknowledged alone: {counts:?}");
}

#[test]
fn no_writer_keeps_a_promise_on_a_disk_whose_flushes_lie() {
    if skipped("no_writer_keeps_a_promise_on_a_disk_whose_flushes_lie") {
        return;
    }
    let scratch = Scratch::new("lie");
    let mut toy = Toy::CarefulCreate;
    let options = RecordOptions { faults: vec![Fault::LyingFlush], ..options() };
    let recording =
        record(&options, &mut toy, &scratch.0.join("r")).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(recording.epoch_count(), 1, "a flush that lies begins no epoch");
    let verdict = judge(&recording, &mut toy, "0:none".parse().unwrap()).unwrap();
    assert!(!verdict.broken.is_empty() && verdict.acknowledged == 6, "{verdict:?}");
}

/// Loop devices of a process of ours, and mounts of theirs that are seen here.
fn left_of(process: u32) -> Vec<String> {
    let mine = format!("baleen-powercut.{process}.");
    let devices = fs::read_dir("/sys/block").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let backing = fs::read_to_string(path.join("loop/backing_file")).ok()?;
        backing.contains(&mine).then(|| path.display().to_string())
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = mounts.lines().filter(|line| line.contains("/baleen-powercut/")).map(str::to_owned);
    devices.chain(here).collect()
}

#[test]
fn nothing_of_a_rig_that_is_killed_is_left() {
    if skipped("nothing_of_a_rig_that_is_killed_is_left") {
        return;
    }
    let scratch = Scratch::new("killed");
    let path = scratch.0.join("r");
    record(&options(), &mut Toy::CarefulTree, &path).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut rig = std::process::Command::new(env!("CARGO_BIN_EXE_baleen-powercut"))
        .args(["replay".as_ref(), path.as_os_str(), "3:all".as_ref()])
        .args(["--", "sh", "-c", "echo mounted; exec cat"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 8];
    std::io::Read::read_exact(rig.stdout.as_mut().unwrap(), &mut word).unwrap();
    assert!(!left_of(rig.id()).is_empty(), "a device is in use while a state is mounted");
    // The program that looked ends with its input, which waiting for the rig would close: it must outlive the rig, since the last
    // process in the namespace takes the mounts along, and the rig cannot answer their flush while it dies.
    let input = rig.stdin.take();
    rig.kill().unwrap();
    rig.wait().unwrap();
    drop(input);
    let began = std::time::Instant::now();
    while !left_of(rig.id()).is_empty() {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", left_of(rig.id()));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A program whose work is right and whose recovery is not: it makes a durable file anew in its place.
struct CarelessRecovery;

impl CarelessRecovery {
    fn write(place: &Place<'_>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = File::create(place.disk.join(name))?;
        file.sync_all()?; // What is cut here has an empty file.
        file.write_all(bytes)?;
        file.sync_all()?;
        File::open(place.disk)?.sync_all()
    }
}

impl Workload for CarelessRecovery {
    fn name(&self) -> String {
        "test/careless-recovery".to_owned()
    }

    fn prepare(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        Self::write(place, "value", b"kept").map_err(|error| WorkloadError::failed("prepare", error))
    }

    fn start(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        if !place.disk.join("ran").exists() {
            return Ok(());
        }
        Self::write(place, "value", b"kept").map_err(|error| WorkloadError::failed("recover", error))
    }

    fn run(&mut self, place: &Place<'_>, marks: &Marks) -> Result<(), WorkloadError> {
        marks.begin("run");
        Self::write(place, "ran", b"").map_err(|error| WorkloadError::failed("run", error))?;
        marks.acknowledge("run");
        Ok(())
    }

    fn check(&mut self, place: &Place<'_>, _: &History) -> Result<Vec<Broken>, WorkloadError> {
        let bytes = fs::read(place.disk.join("value")).map_err(|error| WorkloadError::failed("read", error))?;
        Ok(if bytes == b"kept" { Vec::new() } else { vec![Broken::new("kept", format!("{} bytes", bytes.len()))] })
    }
}

#[test]
fn a_recovery_that_is_convicted_is_kept_and_its_states_are_judged_again_byte_for_byte() {
    if skipped("a_recovery_that_is_convicted_is_kept_and_its_states_are_judged_again_byte_for_byte") {
        return;
    }
    let scratch = Scratch::new("recovery");
    let path = scratch.0.join("first.powercut");
    let mut careless = CarelessRecovery;
    let first = record(&options(), &mut careless, &path).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut verdicts = Vec::new();
    let plan = Plan { second_cuts: 12, recoveries: Some(path.clone()), ..Plan::default() };
    explore(&first, &mut careless, &plan, &mut Judged::new(), &mut |verdict: &Verdict| verdicts.push(verdict.clone()))
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(verdicts.iter().all(|verdict| verdict.after.is_some() || verdict.broken.is_empty()), "{verdicts:?}");
    let convicted: Vec<&Verdict> = verdicts.iter().filter(|verdict| !verdict.broken.is_empty()).collect();
    assert!(!convicted.is_empty(), "no cut of the recovery is convicted");
    let mut kept = 0;
    for verdict in &convicted {
        let after = verdict.after.as_deref().unwrap().replace(':', "-");
        let recording = Recording::open(&scratch.0.join(format!("first.after-{after}.powercut"))).unwrap();
        let again = judge(&recording, &mut careless, verdict.state.parse().unwrap()).unwrap();
        assert_eq!(
            (&again.recording, &again.kept, &again.broken),
            (&verdict.recording, &verdict.kept, &verdict.broken)
        );
        kept += 1;
    }
    println!("{kept} convicted states of recoveries judged again");
    // Recoveries without a conviction are not kept.
    let files = fs::read_dir(&scratch.0).unwrap().count();
    let recoveries: std::collections::BTreeSet<_> = convicted.iter().map(|verdict| &verdict.after).collect();
    assert_eq!(files, 1 + recoveries.len());
}

#[test]
fn the_command_line_lets_a_disk_fail_and_rot_below_any_program() {
    if skipped("the_command_line_lets_a_disk_fail_and_rot_below_any_program") {
        return;
    }
    let fail = |options: &[&str], script: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_baleen-powercut"));
        command.arg("fail").args(options).args(["--", "sh", "-c", script]).output().unwrap()
    };
    let write = "dd if=/dev/zero of=file bs=64k count=4 conv=fsync";
    assert_eq!(fail(&[], write).status.code(), Some(0), "a healthy disk");
    for fault in ["read-only@0", "full@0", "eio-flush@0"] {
        let failed = fail(&["--fault", fault], write);
        assert_eq!(failed.status.code(), Some(1), "{fault}: {}", String::from_utf8_lossy(&failed.stderr));
    }
    let script = "case $BALEEN_POWERCUT_ROUND in 1) head -c 10000 /dev/zero > file;; \
                  2) test \"$(tr -d '\\0' < file | od -An -tx1 | tr -d ' ')\" = 01;; esac";
    let rotten = fail(&["--rot", "file@9000"], script);
    assert_eq!(rotten.status.code(), Some(0), "{}", String::from_utf8_lossy(&rotten.stderr));
    assert_eq!(fail(&["--fault", "eio@1"], "true").status.code(), Some(2), "no fault of that name");
}
