//! A workload that is a program of its own: JSON lines over its standard input and output (`docs/powercut.md`).
//!
//! Y1  Each mark of the program is answered once it is in the recording, and the program waits for the answer.

use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::workload::{Broken, History, Mark, Marks, Place, Workload, WorkloadError};

/// Longest line of a program, in bytes.
const LINE_MAX: u64 = 64 << 10;
/// Breaches taken from one check.
const BROKEN_MAX: usize = 1000;

/// What the rig asks.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
enum Ask<'a> {
    Prepare { disk: &'a str, run: &'a str },
    Start { disk: &'a str, run: &'a str },
    Run { disk: &'a str, run: &'a str },
    Check { disk: &'a str, run: &'a str, history: &'a [Mark] },
}

/// What a program says.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Say {
    Begin(String),
    Acknowledge(String),
    Note(String),
    Broken(Broken),
    Failed(String),
    Done(IgnoredAny),
}

/// A program as a workload.
#[derive(Debug)]
pub struct External {
    command: Vec<OsString>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl External {
    /// The workload of a program and its arguments.
    pub fn new(command: Vec<OsString>) -> External {
        External { command, running: None }
    }

    fn ask(&mut self, ask: &Ask<'_>, marks: Option<&Marks>) -> Result<Vec<Broken>, WorkloadError> {
        let failed = |action: &'static str| move |error: io::Error| WorkloadError::failed(action, error);
        if self.running.is_none() {
            self.running = Some(self.spawn().map_err(failed("start the program"))?);
        }
        let running = self.running.as_mut().expect("it was started above");
        let line = serde_json::to_string(ask).map_err(io::Error::from).map_err(failed("ask the program"))?;
        writeln!(running.input, "{line}").map_err(failed("ask the program"))?;
        let mut broken = Vec::new();
        loop {
            let mut text = Vec::new();
            let read = (&mut running.output).take(LINE_MAX).read_until(b'\n', &mut text);
            if read.map_err(failed("read what the program says"))? == 0 {
                return Err(WorkloadError::failed("go on", "the program ended before it was done"));
            }
            let say = serde_json::from_slice(&text).map_err(io::Error::from);
            match (say.map_err(failed("understand what the program says"))?, marks) {
                (Say::Begin(step), Some(marks)) => marks.begin(step),
                (Say::Acknowledge(step), Some(marks)) => marks.acknowledge(step),
                (Say::Note(text), Some(marks)) => marks.note(text),
                (Say::Broken(found), None) if broken.len() < BROKEN_MAX => {
                    broken.push(found);
                    continue;
                }
                (Say::Done(IgnoredAny), _) => return Ok(broken),
                (Say::Failed(why), _) => return Err(WorkloadError::failed("do what was asked", why)),
                (other, _) => {
                    let what = format!("{other:?} has no place here");
                    return Err(WorkloadError::failed("understand what the program says", what));
                }
            }
            running.input.write_all(b"{\"marked\":true}\n").map_err(failed("answer the program"))?;
        }
    }

    fn spawn(&self) -> io::Result<Running> {
        let (program, arguments) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        match (input, output) {
            (Some(input), Some(output)) => Ok(Running { child, input, output: BufReader::new(output) }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn text(path: &std::path::Path) -> Result<&str, WorkloadError> {
    path.to_str().ok_or_else(|| WorkloadError::failed("name a path", "it is not UTF-8"))
}

impl Workload for External {
    fn name(&self) -> String {
        let program = self.command.first().map(std::path::Path::new).and_then(|path| path.file_name());
        format!("external/{}", program.unwrap_or_default().to_string_lossy())
    }

    fn prepare(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        self.ask(&Ask::Prepare { disk: text(place.disk)?, run: text(place.run)? }, None).map(|_| ())
    }

    fn start(&mut self, place: &Place<'_>) -> Result<(), WorkloadError> {
        self.ask(&Ask::Start { disk: text(place.disk)?, run: text(place.run)? }, None).map(|_| ())
    }

    fn run(&mut self, place: &Place<'_>, marks: &Marks) -> Result<(), WorkloadError> {
        self.ask(&Ask::Run { disk: text(place.disk)?, run: text(place.run)? }, Some(marks)).map(|_| ())
    }

    fn stop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        if let Some(group) = rustix::process::Pid::from_raw(running.child.id() as i32) {
            // It fails only if all of the group has gone.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = running.child.wait();
    }

    fn check(&mut self, place: &Place<'_>, history: &History) -> Result<Vec<Broken>, WorkloadError> {
        let (disk, run) = (text(place.disk)?, text(place.run)?);
        self.ask(&Ask::Check { disk, run, history: &history.marks }, None)
    }
}

impl Drop for External {
    fn drop(&mut self) {
        self.stop();
    }
}
