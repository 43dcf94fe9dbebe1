//! Which lines of a source a program runs: each statement gets a breakpoint, and loses it once it is reached.
//!
//! That needs an ordinary build with a line table and nothing else: no instrumented build, no profile to read, no other
//! program. A reached breakpoint costs one stop, and is gone; so the program runs nearly as fast as without.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::lines::{Statement, statements};

/// Set for a program that shall wait to be traced.
const TRACED: &str = "BALEEN_FUZZ_TRACED";
/// What such a program sends itself before each input.
const NEXT: Signal = Signal::SIGUSR1;
/// What stops a processor of this kind.
const BREAKPOINT: u8 = 0xcc;

/// Lines of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coverage {
    /// The source.
    pub source: PathBuf,
    /// Lines that have code in the program.
    pub lines: BTreeSet<u32>,
    /// Those that were run.
    pub run: BTreeSet<u32>,
}

/// Share of lines that were run, in percent; 0 if there are none.
pub fn percent(coverage: &[Coverage]) -> f64 {
    let lines: usize = coverage.iter().map(|source| source.lines.len()).sum();
    let run: usize = coverage.iter().map(|source| source.run.len()).sum();
    if lines == 0 { 0.0 } else { 100.0 * run as f64 / lines as f64 }
}

impl Coverage {
    /// The lines that were not run, as ranges.
    pub fn missed(&self) -> String {
        let mut ranges: Vec<(u32, u32)> = Vec::new();
        // A range goes on over lines without code.
        let mut goes_on = false;
        for line in &self.lines {
            match (self.run.contains(line), ranges.last_mut()) {
                (true, _) => goes_on = false,
                (false, Some(range)) if goes_on => range.1 = *line,
                (false, _) => {
                    ranges.push((*line, *line));
                    goes_on = true;
                }
            }
        }
        let texts: Vec<String> = ranges
            .iter()
            .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
            .collect();
        texts.join(" ")
    }
}

/// To be called first thing by a program that is to be measured: waits for the tracer, if there is one.
///
/// # Errors
/// If the kernel does not let this process be traced.
pub fn wait_for_tracer() -> Result<()> {
    if std::env::var_os(TRACED).is_some() {
        ptrace::traceme().context("cannot be traced; allow ptrace(2) here")?;
        raise(Signal::SIGSTOP)?;
    }
    Ok(())
}

/// To be called by such a program before each input: the tracer counts.
///
/// # Errors
/// If the process cannot signal itself.
pub fn next_input() -> Result<()> {
    if std::env::var_os(TRACED).is_some() {
        raise(NEXT)?; // The tracer takes it away.
    }
    Ok(())
}

/// Runs `program`, which calls [`wait_for_tracer`], and tells which lines of `sources` it ran. Blocks until it ends.
///
/// # Errors
/// If the program cannot be traced, or does not end well.
pub fn measure(program: &Path, arguments: &[&OsStr], sources: &[PathBuf]) -> Result<Vec<Coverage>> {
    let statements = statements(program, sources)?;
    let addresses = statements.values().flatten().map(|statement| statement.address).collect();
    let reached = trace(program, arguments, &addresses)?;
    let coverage = statements.into_iter().map(|(source, statements)| {
        let lines = |statements: &mut dyn Iterator<Item = &Statement>| statements.map(|found| found.line).collect();
        let run = lines(&mut statements.iter().filter(|statement| reached.contains_key(&statement.address)));
        Coverage { source, lines: lines(&mut statements.iter()), run }
    });
    Ok(coverage.collect())
}

/// The numbers, from 1, of the inputs that run a statement of `sources` which no input before them did.
///
/// # Errors
/// As [`measure`].
pub fn that_run_more(program: &Path, arguments: &[&OsStr], sources: &[PathBuf]) -> Result<BTreeSet<usize>> {
    let addresses = statements(program, sources)?.values().flatten().map(|statement| statement.address).collect();
    Ok(trace(program, arguments, &addresses)?.into_values().collect())
}

/// A process that we trace; it dies with this.
struct Traced(Pid);

impl Drop for Traced {
    fn drop(&mut self) {
        // Both fail for one that has ended.
        let _ = ptrace::kill(self.0);
        let _ = waitpid(self.0, None);
    }
}

/// Which of `addresses` the program reaches, and at which input first.
fn trace(program: &Path, arguments: &[&OsStr], addresses: &BTreeSet<u64>) -> Result<BTreeMap<u64, usize>> {
    ensure!(cfg!(target_arch = "x86_64"), "breakpoints of this processor are not implemented yet");
    let child = Command::new(program)
        .args(arguments)
        .env(TRACED, "1")
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let traced = Traced(pid);
    match waitpid(pid, None)? {
        WaitStatus::Stopped(_, Signal::SIGSTOP) => {}
        other => bail!("{} did not wait to be traced: {other:?}", program.display()),
    }
    ptrace::setoptions(pid, ptrace::Options::PTRACE_O_EXITKILL)?;
    let base = base_address(pid, program)?;
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let mut waiting = BTreeMap::new();
    for address in addresses {
        waiting.insert(base + address, replace(&memory, base + address, BREAKPOINT)?);
    }
    let mut reached = BTreeMap::new();
    let mut input = 0;
    let mut signal = None;
    loop {
        ptrace::cont(pid, signal.take())?;
        match waitpid(pid, None)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                let at = stopped_at(pid)?;
                let Some(byte) = waiting.remove(&at) else { bail!("stopped at {at:#x}, where nothing stops it") };
                replace(&memory, at, byte)?;
                go_back_to(pid, at)?;
                reached.insert(at - base, input);
            }
            WaitStatus::Stopped(_, NEXT) => input += 1,
            WaitStatus::Stopped(_, other) => signal = Some(other),
            WaitStatus::Exited(_, 0) => break,
            other => bail!("{} ended with {other:?}", program.display()),
        }
    }
    std::mem::forget(traced); // It has ended and been waited for: its number may be another's.
    Ok(reached)
}

/// What is to be added to the program's addresses: it is loaded somewhere else each time.
fn base_address(pid: Pid, program: &Path) -> Result<u64> {
    let program = program.canonicalize()?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let first = maps.lines().find(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (offset, path) = (fields.nth(2), fields.nth(2));
        offset == Some("00000000") && path.is_some_and(|path| Path::new(path) == program)
    });
    let first = first.with_context(|| format!("{} is not in the memory of its process", program.display()))?;
    let start = first.split('-').next().unwrap_or_default();
    Ok(u64::from_str_radix(start, 16)?)
}

/// Writes a byte of the program; gives the one that was there.
fn replace(memory: &File, at: u64, byte: u8) -> Result<u8> {
    let mut before = [0];
    memory.read_exact_at(&mut before, at)?;
    memory.write_all_at(&[byte], at)?;
    Ok(before[0])
}

#[cfg(target_arch = "x86_64")]
fn stopped_at(pid: Pid) -> Result<u64> {
    Ok(ptrace::getregs(pid)?.rip - 1)
}

#[cfg(target_arch = "x86_64")]
fn go_back_to(pid: Pid, at: u64) -> Result<()> {
    let mut registers = ptrace::getregs(pid)?;
    registers.rip = at;
    Ok(ptrace::setregs(pid, registers)?)
}

#[cfg(not(target_arch = "x86_64"))]
fn stopped_at(_: Pid) -> Result<u64> {
    bail!("breakpoints of this processor are not implemented yet")
}

#[cfg(not(target_arch = "x86_64"))]
fn go_back_to(_: Pid, _: u64) -> Result<()> {
    bail!("breakpoints of this processor are not implemented yet")
}
