//! Running programs to their end, within a time, and saying what went wrong when they fail.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How many times longer than on this machine everything may take: `BALEEN_TEST_PATIENCE`, else 1. A machine in software emulation
/// starts programs fifty times slower.
pub fn patience() -> u32 {
    std::env::var("BALEEN_TEST_PATIENCE").ok().and_then(|text| text.parse().ok()).unwrap_or(1).clamp(1, 100)
}

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The program and its arguments, for messages.
    pub line: String,
    /// Exit code, or 128 + the signal that ended it, as a shell tells it.
    pub code: i32,
    /// Standard output, as bytes.
    pub stdout_bytes: Vec<u8>,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Finished {
    /// Standard output, lossily decoded.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout_bytes).into_owned()
    }

    /// Both outputs, for messages and for texts that clients put on either.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout(), self.stderr)
    }

    /// This, if the program succeeded.
    ///
    /// # Errors
    /// What it printed, if it did not.
    pub fn ok(self) -> Result<Self> {
        if self.code != 0 {
            bail!("{} ended with {}:\n{}", self.line, self.code, self.output());
        }
        Ok(self)
    }
}

/// Runs a program until it ends; past `limit` it is killed, which is an error.
///
/// # Errors
/// If it cannot be started or does not end in time. An exit code other than zero is none.
pub fn run(command: &mut Command, input: Option<&[u8]>, limit: Duration) -> Result<Finished> {
    let line = describe(command);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.spawn().with_context(|| format!("cannot start {line}"))?;
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take().context("no standard output")?;
    let mut stderr = child.stderr.take().context("no standard error")?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if let (Some(stdin), Some(input)) = (stdin.as_mut(), input) {
                stdin.write_all(input).ok(); // A program that does not read all of it says so by its exit code.
            }
            drop(stdin);
        });
        let out = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let err = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let limit = limit * patience();
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if Instant::now() >= deadline {
                child.kill().ok();
                child.wait().ok();
                break None;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let stdout_bytes = out.join().expect("reader of standard output")?;
        let stderr = String::from_utf8_lossy(&err.join().expect("reader of standard error")?).into_owned();
        let Some(status) = status else {
            bail!("{line} did not end within {limit:?}:\n{}{stderr}", String::from_utf8_lossy(&stdout_bytes));
        };
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        Ok(Finished { line, code, stdout_bytes, stderr })
    })
}

/// Runs a program that must succeed within two minutes.
///
/// # Errors
/// If it cannot be started, takes longer or fails.
pub fn succeed<I: AsRef<OsStr>>(program: &str, arguments: &[I]) -> Result<Finished> {
    run(Command::new(program).args(arguments), None, Duration::from_secs(120))?.ok()
}

/// The program and its arguments as a person would type them.
pub fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Asks until `condition` gives a value; the bounded wait for what announces itself in no better way.
///
/// # Errors
/// If it has given none within `limit`; the message says what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let limit = limit * patience();
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
