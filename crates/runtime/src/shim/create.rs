//! Creates the container: the runtime library at work in a forked child.
//!
//! A child, because the library leaves its marks on the process that calls it (working directory, dumpable flag, score against the
//! out-of-memory killer, grown heap), and because the shim's memory stays untouched then. The container's first process outlives
//! that child and becomes the shim's.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};
use serde::{Deserialize, Serialize};

use super::ContainerStdio;
use super::cause::Causes;
use super::program::Program;
use crate::error::StartFailure;
use crate::sys;

/// The longest report of either pipe.
const REPORT_BYTES_MAX: u64 = 64 << 10;

pub(super) struct Plan<'a> {
    pub(super) id: &'a str,
    pub(super) bundle: &'a Path,
    pub(super) library: &'a Path,
    pub(super) stdio: ContainerStdio,
    pub(super) init: bool,
}

/// A container whose program waits to be executed.
pub(super) struct Created {
    pub(super) pid: i32,
    /// Reads a `StartFailure` if the program cannot be executed, and ends when it has been.
    pub(super) outcome: OwnedFd,
}

#[derive(Serialize, Deserialize)]
enum Report {
    Created(i32),
    Failed(String),
}

pub(super) fn create(plan: Plan<'_>) -> Result<Created, StartFailure> {
    let system =
        |error: &dyn std::fmt::Display| StartFailure::other(format!("cannot create the container's process: {error}"));
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| system(&error));
    let (outcome, outcome_in) = pipe()?;
    rustix::io::ioctl_fionbio(&outcome, true).map_err(|error| system(&error))?;
    // A file, not a pipe: the container's first process inherits it and keeps it open until its program is executed.
    let memory =
        rustix::fs::memfd_create("baleen-report", rustix::fs::MemfdFlags::CLOEXEC).map_err(|error| system(&error))?;
    let mut report = File::from(memory);
    let causes = Causes::new().map_err(|error| system(&error))?;
    let child = match sys::fork().map_err(|error| system(&error))? {
        sys::Forked::Parent(pid) => pid,
        sys::Forked::Child => {
            drop(outcome);
            work(plan, report, outcome_in, &causes)
        }
    };
    // Ours must be closed, or the pipe never ends.
    drop((outcome_in, plan));
    let _ = rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty());
    let report = report.rewind().map(|()| read_all(report)).unwrap_or_default();
    match serde_json::from_slice::<Report>(&report) {
        Ok(Report::Created(pid)) => Ok(Created { pid, outcome }),
        Ok(Report::Failed(text)) => {
            // The program's own failure first: it has a kind. The library's words else, with the cause that it lost.
            Err(serde_json::from_slice(&read_all(outcome.into())).unwrap_or_else(|_| describe(&text, causes.deepest())))
        }
        Err(_) => Err(describe("the runtime library ended without an answer", causes.deepest())),
    }
}

fn describe(text: &str, cause: Option<String>) -> StartFailure {
    let text = match cause.filter(|cause| !text.contains(cause.as_str())) {
        Some(cause) => format!("{text}: {cause}"),
        None => text.to_owned(),
    };
    StartFailure::other(format!("unable to start container process: {text}"))
}

fn read_all(file: File) -> Vec<u8> {
    let mut bytes = Vec::new();
    // An empty or cut report is what the caller checks for.
    let _ = file.take(REPORT_BYTES_MAX).read_to_end(&mut bytes);
    bytes
}

/// The child: from here on nothing returns.
fn work(plan: Plan<'_>, mut report: File, outcome: OwnedFd, causes: &Causes) -> ! {
    let result = sys::clear_groups().map_err(|error| error.to_string()).and_then(|()| build(plan, outcome, causes));
    let report_text = serde_json::to_vec(&match result {
        Ok(pid) => Report::Created(pid),
        Err(text) => Report::Failed(text),
    });
    // If this fails the shim is gone, and with it the need for an answer.
    let _ = report.write_all(&report_text.unwrap_or_default());
    sys::exit_now(0)
}

fn build(plan: Plan<'_>, outcome: OwnedFd, causes: &Causes) -> Result<i32, String> {
    causes.collect().map_err(|error| error.to_string())?;
    let builder = ContainerBuilder::new(plan.id.to_owned(), SyscallType::default())
        .with_executor(Program::new(outcome, plan.init));
    let builder = builder.with_root_path(plan.library).map_err(|error| chain(&error))?;
    let builder = match plan.stdio {
        ContainerStdio::Pipes { stdin, stdout, stderr } => {
            builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr)
        }
        ContainerStdio::Terminal { socket } => builder.with_console_socket(Some(socket)),
    };
    let container =
        builder.as_init(plan.bundle).with_systemd(false).with_detach(true).build().map_err(|error| chain(&error))?;
    container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the runtime library named no process".to_owned())
}

fn chain(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}
