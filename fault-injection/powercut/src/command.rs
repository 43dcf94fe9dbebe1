//! The commands: what each takes, and what it prints.

use std::collections::BTreeMap;
use std::net::{TcpListener, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use baleen_powercut::workload::History;
use baleen_powercut::{
    Cuts, Fault, FileSystem, LiveDisk, Plan, RecordOptions, Recording, Report, Results, Round, Run, State, Totals,
    Verdict, agent, explore, image_of, judge, judge_agent, judge_the_judge, reap, record, record_on, replay, serve,
    with_device_place, with_disk, workload_by_name, workload_names,
};

const HELP: &str = "\
Usage: baleen-powercut COMMAND

Records what a program writes to a disk, and judges it in every state that a power cut could have left.
Needs root, FUSE and loop devices. docs/powercut.md says what it shows and what it does not.

Commands:
  run        Record and explore workloads; results are kept by commit, and the next run goes on
               --fs ext4,xfs,btrfs   --workload NAME,NAME...   --folder DIR   --commit NAME   --states N   --seconds S
               --second N   --size MIB   --seed N   --torn512   --no-toys   --program PROGRAM
  record     Run one workload and keep the recording
               --workload NAME   --out FILE   [--fs FS] [--size MIB] [--sector 512|4096] [--commit NAME]
               [--from RECORDING --on STATE]   goes on from a state: a chain of cuts is one recording
               [--fault FAULT,FAULT...]        the disk fails meanwhile
               [-- PROGRAM ARGUMENT...]        the engine's program; of --workload external, the program
  fail       Run a program in a fresh folder of a disk that fails; gives its exit code
               [--fault FAULT,FAULT...] [--fs FS] [--size MIB] [--rot FILE@BYTE,...] -- PROGRAM ARGUMENT...
               With --rot it runs twice, BALEEN_POWERCUT_ROUND being 1 and 2: in between, bit 0 of each named byte
               is turned where it lies on the disk, and the faults count from there
  explore    Judge states of a recording
               RECORDING   --workload NAME   [--results FILE] [--states N] [--seconds S] [--second N] [--seed N]
               [--boundaries] [--torn512] [-- PROGRAM...]
  judge      Judge one state
               RECORDING STATE   --workload NAME   [-- PROGRAM...]
  replay     Mount one state where it was recorded, and run a program there (a shell)
               RECORDING STATE   [--image FILE] [-- PROGRAM...]
  live       Run a program with a disk whose power it cuts itself, again and again
               [--fs FS] [--size MIB]   -- PROGRAM...
  report     What came of a run
               DIR   [--json] [--html FILE]
  toys       Judge the judge: wrong writers must be convicted, right ones never
               [--fs FS] [--states N]
  agent      On a device: work and report to the judge; the init system starts it after every boot
               --judge HOST:PORT   --disk DIR   --workload NAME   [--run DIR] [-- PROGRAM...]
  referee    On the rig's host: cut the device's power, and judge what the agent finds after it
               --listen HOST:PORT   --cut COMMAND   --cuts N   --history FILE
               [--marks N] [--later MILLISECONDS] [--patience SECONDS] [--seed N]
  workloads  List the workloads

A fault is eio-read@N, eio-write@N or eio-flush@N (that one request fails), read-only@N, full@N (from that write on) or
lying-flush; N counts from 0.
A state is EPOCH:KIND:SEED, for instance 17:subset:3; kinds are none, all, prefix, subset, torn and torn512.
Exit code: 0 no promise is broken, 1 one is, 2 the rig could not work.
";

/// What was given on the command line.
#[derive(Debug, Default)]
struct Words {
    plain: Vec<String>,
    options: BTreeMap<String, String>,
    /// What follows `--`.
    program: Vec<String>,
}

/// Options without a value.
const SWITCHES: [&str; 4] = ["boundaries", "torn512", "json", "no-toys"];

impl Words {
    fn parse(arguments: &[String], known: &[&str]) -> Result<Words> {
        let mut words = Words::default();
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            if word == "--" {
                words.program = rest.cloned().collect();
                break;
            }
            let Some(option) = word.strip_prefix("--") else {
                words.plain.push(word.clone());
                continue;
            };
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            if !known.contains(&name) {
                bail!("unknown option --{name}; `baleen-powercut --help` lists them");
            }
            let value = match value {
                Some(value) => value,
                None if SWITCHES.contains(&name) => String::new(),
                None => rest.next().with_context(|| format!("option --{name} needs a value"))?.clone(),
            };
            words.options.insert(name.to_owned(), value);
        }
        Ok(words)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    fn is_set(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    fn number(&self, name: &str) -> Result<Option<u64>> {
        let parse = |text: &String| text.parse().with_context(|| format!("--{name} takes a number, not {text:?}"));
        self.options.get(name).map(parse).transpose()
    }

    fn needed(&self, name: &str) -> Result<&str> {
        self.text(name).with_context(|| format!("option --{name} is missing"))
    }

    fn plain(&self, at: usize, what: &str) -> Result<&str> {
        self.plain.get(at).map(String::as_str).with_context(|| format!("{what} is missing"))
    }

    fn filesystems(&self) -> Result<Vec<FileSystem>> {
        self.text("fs").unwrap_or("ext4").split(',').map(|name| Ok(name.parse()?)).collect()
    }

    fn size_bytes(&self) -> Result<Option<u64>> {
        Ok(self.number("size")?.map(|mebibytes| mebibytes << 20))
    }

    fn faults(&self) -> Result<Vec<Fault>> {
        self.text("fault").into_iter().flat_map(|list| list.split(',')).map(|text| Ok(text.parse()?)).collect()
    }

    fn plan(&self) -> Result<Plan> {
        Ok(Plan {
            boundaries_only: self.is_set("boundaries"),
            torn512: self.is_set("torn512"),
            states_max: self.number("states")?.unwrap_or(if self.is_set("boundaries") { u64::MAX } else { 1000 }),
            budget: self.number("seconds")?.map(Duration::from_secs),
            seed: self.number("seed")?.unwrap_or(1),
            second_cuts: self.number("second")?.unwrap_or(0),
            ..Plan::default()
        })
    }
}

/// Runs the command that the arguments name.
///
/// # Errors
/// Whatever kept it from being done, with a whole chain of causes.
pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", arguments),
    };
    let words = |known: &[&str]| Words::parse(rest, known);
    if !matches!(command, "help" | "--help" | "-h" | "workloads" | "report") {
        reap();
    }
    match command {
        "run" => run_all(&words(&[
            "fs", "workload", "folder", "commit", "states", "seconds", "second", "size", "seed", "torn512", "no-toys",
            "program",
        ])?),
        "record" => record_one(&words(&["workload", "out", "fs", "size", "sector", "commit", "from", "on", "fault"])?),
        "fail" => fail(&words(&["fault", "fs", "size", "rot"])?),
        "explore" => explore_one(&words(&[
            "workload",
            "results",
            "states",
            "seconds",
            "second",
            "seed",
            "boundaries",
            "torn512",
        ])?),
        "judge" => judge_one(&words(&["workload"])?),
        "replay" => replay_one(&words(&["image"])?),
        "live" => live(&words(&["fs", "size"])?),
        "report" => report(&words(&["json", "html"])?),
        "toys" => toys(&words(&["fs", "states"])?),
        "agent" => agent_here(&words(&["judge", "disk", "run", "workload"])?),
        "referee" => referee(&words(&["listen", "cut", "cuts", "history", "marks", "later", "patience", "seed"])?),
        "workloads" => {
            workload_names().iter().for_each(|name| println!("{name}"));
            Ok(ExitCode::SUCCESS)
        }
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("unknown command {other:?}; `baleen-powercut --help` lists the commands"),
    }
}

fn verdict_code(convicted: u64) -> ExitCode {
    if convicted == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Convictions of a workload that are printed as they come; results and reports have all.
const TOLD_MAX: u64 = 10;

/// Prints convictions as they come: one line a state.
struct Teller<'a> {
    workload: &'a str,
    told: u64,
}

impl Teller<'_> {
    fn tell(&mut self, verdict: &Verdict) {
        let Some(broken) = verdict.broken.first() else { return };
        self.told += 1;
        if self.told > TOLD_MAX {
            return;
        }
        let after = verdict.after.as_ref().map(|state| format!(" of the recovery from {state}")).unwrap_or_default();
        let more = match verdict.broken.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        println!("{}: state {}{after}: {broken}{more}", self.workload, verdict.state);
        if self.told == TOLD_MAX {
            println!("{}: further ones are in the results only", self.workload);
        }
    }
}

fn run_all(words: &Words) -> Result<ExitCode> {
    let begun = Instant::now();
    let run = Run {
        folder: words.text("folder").unwrap_or("powercut-results").into(),
        commit: words.text("commit").map_or_else(commit_here, str::to_owned),
        filesystems: words.filesystems()?,
        size_bytes: words.size_bytes()?,
        states: words.number("states")?.unwrap_or(200),
        second_cuts: words.number("second")?.unwrap_or(0),
        budget: words.number("seconds")?.map(Duration::from_secs),
        seed: words.number("seed")?.unwrap_or(1),
        torn512: words.is_set("torn512"),
    };
    let names = chosen(words.text("workload").unwrap_or("toy"));
    let program: Vec<String> = words.text("program").map(str::to_owned).into_iter().collect();
    let (mut convicted, mut failures) = (0, Vec::new());
    for filesystem in &run.filesystems {
        if !words.is_set("no-toys") {
            toys_on(*filesystem, 30)?;
        }
        for name in &names {
            let mut workload = workload_by_name(name, &program)?;
            let mut teller = Teller { workload: name, told: 0 };
            match run.one(*filesystem, workload.as_mut(), begun, &mut |verdict| teller.tell(verdict)) {
                Ok(totals) => {
                    print_totals(name, *filesystem, &totals);
                    // Wrong toys are meant to be convicted.
                    convicted += if is_wrong_toy(name) { 0 } else { totals.convicted };
                }
                // The others are judged all the same; the exit code tells.
                Err(error) => failures.push(anyhow::Error::from(error)),
            }
        }
    }
    for failure in &failures {
        eprintln!("baleen-powercut: {failure:#}");
    }
    if !failures.is_empty() {
        return Ok(ExitCode::from(2));
    }
    Ok(verdict_code(convicted))
}

fn is_wrong_toy(name: &str) -> bool {
    baleen_powercut::Toy::WRONG.iter().any(|toy| name == format!("toy/{}", toy.word()))
}

/// The workloads of a list: names, or the first parts of names (`toy`, `baleen`, `docker`).
fn chosen(list: &str) -> Vec<String> {
    let all = workload_names();
    let of = |word: &str| -> Vec<String> {
        let family: Vec<String> = all.iter().filter(|name| name.starts_with(&format!("{word}/"))).cloned().collect();
        if family.is_empty() { vec![word.to_owned()] } else { family }
    };
    list.split(',').flat_map(of).collect()
}

fn print_totals(name: &str, filesystem: FileSystem, totals: &Totals) {
    let kinds: Vec<String> = totals.by_kind.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let milliseconds = totals.milliseconds.checked_div(totals.states).unwrap_or(0);
    println!(
        "{name} on {filesystem}: {} states in {} epochs ({}; {} second cuts), {} broken, {milliseconds} ms a state",
        totals.states,
        totals.epochs,
        kinds.join(", "),
        totals.second_cuts,
        totals.convicted,
    );
}

/// The commit of the tree that one stands in, if it is one.
fn commit_here() -> String {
    let output = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let text = output.ok().filter(|output| output.status.success()).map(|output| output.stdout);
    text.map(|text| String::from_utf8_lossy(&text).trim().to_owned()).unwrap_or_default()
}

fn record_one(words: &Words) -> Result<ExitCode> {
    let out = Path::new(words.needed("out")?);
    let mut workload = workload_by_name(words.needed("workload")?, &words.program)?;
    let recording = match words.text("from") {
        Some(_) if words.is_set("fault") => bail!("--fault goes with a fresh disk, not with --from"),
        Some(before) => {
            let before = Recording::open(Path::new(before))?;
            let state: State = words.needed("on")?.parse()?;
            record_on(&before, state, workload.as_mut(), out, 3)?
        }
        None => {
            let [filesystem] = words.filesystems()?[..] else { bail!("a recording has one file system") };
            let mut options = RecordOptions::new(filesystem);
            options.size_bytes = words.size_bytes()?;
            options.sector_bytes = match words.number("sector")? {
                None | Some(4096) => 4096,
                Some(512) => 512,
                Some(other) => bail!("sectors have 512 or 4096 bytes, not {other}"),
            };
            options.commit = words.text("commit").map_or_else(commit_here, str::to_owned);
            options.faults = words.faults()?;
            record(&options, workload.as_mut(), out)?
        }
    };
    let (writes, bytes) = recording.written();
    let (epochs, name) = (recording.epoch_count(), recording.identity());
    println!("{}: {writes} writes of {} KiB in {epochs} epochs, {name}", out.display(), bytes / 1024);
    Ok(ExitCode::SUCCESS)
}

/// Runs a program on a disk that fails.
fn fail(words: &Words) -> Result<ExitCode> {
    let [filesystem] = words.filesystems()?[..] else { bail!("a disk has one file system") };
    let (program, arguments) = words.program.split_first().context("the program is missing: -- PROGRAM ARGUMENT...")?;
    let mut options = RecordOptions::new(filesystem);
    options.size_bytes = words.size_bytes()?;
    options.faults = words.faults()?;
    let rotten: Vec<(&str, u64)> = words
        .text("rot")
        .into_iter()
        .flat_map(|list| list.split(','))
        .map(|one| {
            let (file, byte) = one.rsplit_once('@').with_context(|| format!("--rot takes FILE@BYTE, not {one:?}"))?;
            Ok((file, byte.parse().with_context(|| format!("{byte:?} is no position in a file"))?))
        })
        .collect::<Result<_>>()?;
    let run = |disk: &LiveDisk<'_>, round: u32| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(disk.path()).env("BALEEN_POWERCUT_ROUND", round.to_string());
        command.env("BALEEN_POWERCUT_RUN", disk.run());
        let status = command.status();
        let (reads, writes, flushes) = disk.counted();
        eprintln!("baleen-powercut: round {round} ended after {reads} reads, {writes} writes and {flushes} flushes");
        status
    };
    let faults = options.faults.clone();
    let status = with_disk(&options, |disk| {
        let first = run(disk, 1);
        if rotten.is_empty() || !first.as_ref().is_ok_and(std::process::ExitStatus::success) {
            return Ok(first);
        }
        for (file, byte) in &rotten {
            let file = disk.path().join(file);
            disk.rot(&file, *byte, 1)?;
        }
        disk.fail(faults);
        Ok(run(disk, 2))
    })?;
    let status = status.with_context(|| format!("cannot run {program}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

fn explore_one(words: &Words) -> Result<ExitCode> {
    let path = PathBuf::from(words.plain(0, "RECORDING")?);
    let recording = Recording::open(&path)?;
    let name = words.text("workload").unwrap_or(&recording.description.workload).to_owned();
    let mut workload = workload_by_name(&name, &words.program)?;
    let results = words.text("results").map_or_else(|| path.with_extension("jsonl"), PathBuf::from);
    let mut results = Results::open(&results)?;
    let mut judged = results.judged(recording.identity());
    let mut lost = None;
    let mut teller = Teller { workload: &name, told: 0 };
    let mut keep = |verdict: &Verdict| {
        teller.tell(verdict);
        if let Err(error) = results.keep(verdict) {
            lost = Some(error);
        }
    };
    let plan = Plan { recoveries: Some(path.clone()), ..words.plan()? };
    explore(&recording, workload.as_mut(), &plan, &mut judged, &mut keep)?;
    if let Some(error) = lost {
        return Err(error.into());
    }
    let totals = Totals::of(results.verdicts());
    print_totals(&name, recording.description.filesystem.parse()?, &totals);
    Ok(verdict_code(totals.convicted))
}

fn judge_one(words: &Words) -> Result<ExitCode> {
    let recording = Recording::open(Path::new(words.plain(0, "RECORDING")?))?;
    let name = words.text("workload").unwrap_or(&recording.description.workload).to_owned();
    let mut workload = workload_by_name(&name, &words.program)?;
    let verdict = judge(&recording, workload.as_mut(), words.plain(1, "STATE")?.parse()?)?;
    println!("{}", serde_json::to_string_pretty(&verdict)?);
    Ok(verdict_code(u64::from(!verdict.broken.is_empty())))
}

fn replay_one(words: &Words) -> Result<ExitCode> {
    let recording = Recording::open(Path::new(words.plain(0, "RECORDING")?))?;
    let state: State = words.plain(1, "STATE")?.parse()?;
    if let Some(out) = words.text("image") {
        image_of(&recording, state, Path::new(out))?;
        return Ok(ExitCode::SUCCESS);
    }
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned());
    let mut program = words.program.clone();
    if program.is_empty() {
        program.push(shell);
    }
    let status = replay(&recording, state, |path| {
        eprintln!("state {state} is mounted at {} for this program alone; it is gone with it", path.display());
        Command::new(&program[0]).args(&program[1..]).current_dir("/").status()
    })?;
    let status = status.with_context(|| format!("cannot run {}", program[0]))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

fn live(words: &Words) -> Result<ExitCode> {
    let [filesystem] = words.filesystems()?[..] else { bail!("a disk has one file system") };
    let mut options = RecordOptions::new(filesystem);
    options.size_bytes = words.size_bytes()?;
    let (program, arguments) = words.program.split_first().context("the program is missing; put it after --")?;
    let status = serve(&options, Command::new(program).args(arguments))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

fn report(words: &Words) -> Result<ExitCode> {
    let report = Report::of(Path::new(words.plain(0, "DIR")?))?;
    match words.text("html") {
        Some(out) => std::fs::write(out, report.html()).with_context(|| format!("cannot write {out}"))?,
        None if words.is_set("json") => println!("{}", report.json()?),
        None => print!("{}", report.text()),
    }
    Ok(ExitCode::SUCCESS)
}

fn toys(words: &Words) -> Result<ExitCode> {
    let states = words.number("states")?.unwrap_or(60);
    for filesystem in words.filesystems()? {
        toys_on(filesystem, states)?;
        println!("{filesystem}: every wrong toy is convicted, no right one is");
    }
    Ok(ExitCode::SUCCESS)
}

fn toys_on(filesystem: FileSystem, states: u64) -> Result<()> {
    let findings = judge_the_judge(filesystem, states)?;
    if findings.is_empty() {
        return Ok(());
    }
    Err(baleen_powercut::RunError::JudgeIsWrong { filesystem, findings }.into())
}

fn agent_here(words: &Words) -> Result<ExitCode> {
    let judge = words.needed("judge")?;
    let judge = judge.to_socket_addrs().with_context(|| format!("cannot look up {judge}"))?.next();
    let judge = judge.context("the judge has no address")?;
    let mut workload = workload_by_name(words.needed("workload")?, &words.program)?;
    let (disk, run) = (words.needed("disk")?, words.text("run").unwrap_or("/run/baleen-powercut-agent"));
    with_device_place(Path::new(disk), Path::new(run), |place| agent(judge, workload.as_mut(), place))??;
    Ok(ExitCode::SUCCESS)
}

fn referee(words: &Words) -> Result<ExitCode> {
    let listen = words.needed("listen")?;
    let listener = TcpListener::bind(listen).with_context(|| format!("cannot listen at {listen}"))?;
    let command = words.needed("cut")?.to_owned();
    let path = PathBuf::from(words.needed("history")?);
    let mut history = read_history(&path)?;
    let cuts = Cuts {
        count: words.number("cuts")?.unwrap_or(100) as u32,
        marks_max: words.number("marks")?.unwrap_or(100) as u32,
        later: Duration::from_millis(words.number("later")?.unwrap_or(1000)),
        patience: Duration::from_secs(words.number("patience")?.unwrap_or(300)),
        seed: words.number("seed")?.unwrap_or(1),
    };
    let mut convicted = 0;
    let mut cut = || {
        let status = Command::new("sh").args(["-c", &command]).status()?;
        if status.success() { Ok(()) } else { Err(std::io::Error::other(format!("{command}: {status}"))) }
    };
    let mut each = |round: &Round| {
        convicted += u64::from(!round.broken.is_empty());
        println!("{}", serde_json::to_string(round).unwrap_or_default());
    };
    let judged = judge_agent(&listener, &cuts, &mut history, &mut cut, &mut each);
    // The history is kept also where the judge could not go on: the next one begins with it.
    let text = serde_json::to_string(&history.marks)?;
    std::fs::write(&path, text).with_context(|| format!("cannot keep the history in {}", path.display()))?;
    judged?;
    Ok(verdict_code(convicted))
}

fn read_history(path: &Path) -> Result<History> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let marks = serde_json::from_str(&text).with_context(|| format!("{} is no history", path.display()))?;
            Ok(History { marks })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(History::default()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}
