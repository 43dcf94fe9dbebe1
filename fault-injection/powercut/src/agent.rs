//! Power cuts on hardware: an agent on the device works and reports each step, a judge on the rig's host has the power cut,
//! and when the device is back asks the agent what is there. JSON lines over TCP (`docs/powercut.md`).
//!
//! A1  The judge has a mark before the agent goes on: what the agent was told is marked was told before the power went.
//! A2  A mark that came without its answer counts all the same: the step had begun, or been acknowledged.
//! A3  An agent that loses its judge ends its process: it must not work unseen.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use baleen_fault_injection::Random;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::workload::{Broken, History, Mark, Marks, Place, Workload, WorkloadError};

/// Longest line, in bytes: a history is one line.
const LINE_MAX: u64 = 64 << 20;
/// Breaches taken from one check.
const BROKEN_MAX: usize = 1000;
/// Exit code of an agent that has lost its judge.
pub const LOST_JUDGE: i32 = 3;
/// How long an agent waits between two tries to reach its judge.
const RETRY: Duration = Duration::from_millis(200);

/// Agent and judge that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The connection, or what is beside it.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The other side says what has no place.
    #[error("the other side says {what:?}, which has no place here; are both of one version?")]
    Unexpected {
        /// What it says.
        what: String,
    },
    /// The workload failed.
    #[error("the workload failed on the device")]
    Workload(#[source] WorkloadError),
    /// The workload failed on the device, as the agent says.
    #[error("the agent says: {why}")]
    Agent {
        /// Its words.
        why: String,
    },
    /// The device did not come back.
    #[error("no agent has connected for {seconds} s; is the device up, and does its init system start the agent?")]
    NoAgent {
        /// How long the judge waited.
        seconds: u64,
    },
}

/// What the judge asks.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
enum Ask {
    /// Lay out the disk.
    Prepare,
    /// Compare the disk with what had happened.
    Check { history: Vec<Mark> },
    /// Work until the power goes.
    Run,
}

/// What the agent says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Say {
    Mark(Mark),
    Broken(Broken),
    Failed(String),
    #[serde(serialize_with = "done", deserialize_with = "any")]
    Done(()),
}

fn done<S: serde::Serializer>(_: &(), serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(true)
}

fn any<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| ())
}

/// The judge's answer to a mark.
#[derive(Debug, Serialize, Deserialize)]
struct Marked {
    marked: bool,
}

/// One side of a connection.
#[derive(Debug)]
struct Line {
    input: BufReader<TcpStream>,
    output: TcpStream,
}

impl Line {
    fn new(stream: TcpStream) -> io::Result<Line> {
        stream.set_nodelay(true)?;
        Ok(Line { output: stream.try_clone()?, input: BufReader::new(stream) })
    }

    fn put(&mut self, word: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_string(word)?;
        text.push('\n');
        self.output.write_all(text.as_bytes())
    }

    /// The next line; `None` once the other side has gone.
    fn get<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, AgentError> {
        let mut text = Vec::new();
        let read = (&mut self.input).take(LINE_MAX).read_until(b'\n', &mut text);
        match read {
            // A line that was cut off was never said.
            Ok(_) if text.last() != Some(&b'\n') => Ok(None),
            Ok(_) => match serde_json::from_slice(&text) {
                Ok(word) => Ok(Some(word)),
                Err(_) => {
                    let what = String::from_utf8_lossy(&text).chars().take(200).collect();
                    Err(AgentError::Unexpected { what })
                }
            },
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(source) => Err(AgentError::Io { action: "read from the other side", source }),
        }
    }

    /// Whether something has come, or the other side has gone, within `time`.
    fn waits(&self, time: Duration) -> io::Result<bool> {
        if !self.input.buffer().is_empty() {
            return Ok(true);
        }
        readable(self.input.get_ref(), time)
    }
}

fn readable(descriptor: &impl std::os::fd::AsFd, time: Duration) -> io::Result<bool> {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::IN)];
    let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    Ok(poll(&mut descriptors, Some(&timeout))? > 0)
}

/// Works on the device for a judge: reaches it, however long that takes, and does what it asks.
///
/// # Blocking
/// For good. The process ends with [`LOST_JUDGE`] when the judge is gone while the workload works (A3); an init system
/// starts it again, as it does after a reboot.
/// # Errors
/// `Io`, `Workload`, `Unexpected`; the judge has been told.
pub fn agent(judge: SocketAddr, workload: &mut dyn Workload, place: &Place<'_>) -> Result<(), AgentError> {
    let stream = loop {
        match TcpStream::connect(judge) {
            Ok(stream) => break stream,
            // The device boots faster than the rig's network, or the judge starts later.
            Err(_) => std::thread::sleep(RETRY),
        }
    };
    let line = Line::new(stream).map_err(|source| AgentError::Io { action: "set up the connection", source })?;
    let line = Arc::new(Mutex::new(line));
    loop {
        let asked = locked(&line).get()?;
        let Some(asked) = asked else { return Ok(()) };
        let done = match asked {
            Ask::Prepare => workload.prepare(place).map(|()| Vec::new()),
            Ask::Check { history } => workload.check(place, &History { marks: history }),
            Ask::Run => {
                let marks = marks_over(&line);
                workload.start(place).and_then(|()| workload.run(place, &marks)).map(|()| Vec::new())
            }
        };
        if !matches!(done, Ok(ref broken) if broken.is_empty()) {
            workload.stop();
        }
        let mut line = locked(&line);
        let told = match &done {
            Ok(broken) => broken.iter().try_for_each(|broken| line.put(&Say::Broken(broken.clone()))),
            Err(error) => line.put(&Say::Failed(chain(error))),
        };
        let told = told.and_then(|()| if done.is_ok() { line.put(&Say::Done(())) } else { Ok(()) });
        told.map_err(|source| AgentError::Io { action: "answer the judge", source })?;
        done.map_err(AgentError::Workload)?;
    }
}

fn locked(line: &Mutex<Line>) -> std::sync::MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Marks that go over the connection, each answered before it returns (A1).
fn marks_over(line: &Arc<Mutex<Line>>) -> Marks {
    let line = Arc::clone(line);
    Marks::to(move |mark| {
        let mut line = locked(&line);
        let told = line.put(&Say::Mark(mark)).is_ok() && matches!(line.get::<Marked>(), Ok(Some(_)));
        if !told {
            std::process::exit(LOST_JUDGE);
        }
    })
}

/// How a judge cuts.
#[derive(Debug, Clone)]
pub struct Cuts {
    /// How often the power goes.
    pub count: u32,
    /// The power goes after at most so many marks of a run, and then within [`Cuts::later`].
    pub marks_max: u32,
    /// At most so long after the last of these marks.
    pub later: Duration,
    /// How long a device may take to come back.
    pub patience: Duration,
    /// What chooses the moments.
    pub seed: u64,
}

/// What a judge found after one cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Round {
    /// Which cut, from 1.
    pub cut: u32,
    /// Steps acknowledged so far.
    pub acknowledged: u32,
    /// Steps begun and not acknowledged when the power went.
    pub in_flight: u32,
    /// The promises that are broken.
    pub broken: Vec<Broken>,
}

/// Judges an agent through a number of power cuts. `history` has what happened before, and gets what happens now; `cut`
/// cuts the power and gives it back; `each` gets what was found after every cut.
///
/// # Blocking
/// As long as the cuts take.
/// # Errors
/// `NoAgent` if the device does not come back, `Agent` if its workload fails, what `cut` gives; the others as they say.
pub fn judge_agent(
    listener: &TcpListener,
    cuts: &Cuts,
    history: &mut History,
    cut: &mut dyn FnMut() -> io::Result<()>,
    each: &mut dyn FnMut(&Round),
) -> Result<(), AgentError> {
    let mut random = Random::new(cuts.seed);
    for number in 0..=cuts.count {
        let mut line = accept(listener, cuts.patience)?;
        let broken = match history.marks.is_empty() {
            true => ask(&mut line, &Ask::Prepare)?,
            false => ask(&mut line, &Ask::Check { history: history.marks.clone() })?,
        };
        if number > 0 {
            let acknowledged = history.acknowledged().count() as u32;
            each(&Round { cut: number, acknowledged, in_flight: history.in_flight().len() as u32, broken });
        }
        if number < cuts.count {
            let marks = 1 + random.below(u64::from(cuts.marks_max.max(1))) as u32;
            let later = Duration::from_micros(random.below(cuts.later.as_micros() as u64 + 1));
            work_until_cut(&mut line, marks, later, history, cut)?;
        }
    }
    Ok(())
}

fn accept(listener: &TcpListener, patience: Duration) -> Result<Line, AgentError> {
    let io = |action| move |source| AgentError::Io { action, source };
    if !readable(listener, patience).map_err(io("wait for the agent"))? {
        return Err(AgentError::NoAgent { seconds: patience.as_secs() });
    }
    let (stream, _) = listener.accept().map_err(io("take the agent's connection"))?;
    Line::new(stream).map_err(io("set up the connection"))
}

/// Asks for something that ends by itself.
fn ask(line: &mut Line, ask: &Ask) -> Result<Vec<Broken>, AgentError> {
    line.put(ask).map_err(|source| AgentError::Io { action: "ask the agent", source })?;
    let mut broken = Vec::new();
    loop {
        match line.get()? {
            Some(Say::Broken(found)) if broken.len() < BROKEN_MAX => broken.push(found),
            Some(Say::Done(())) => return Ok(broken),
            Some(Say::Failed(why)) => return Err(AgentError::Agent { why }),
            Some(other) => return Err(AgentError::Unexpected { what: format!("{other:?}") }),
            None => return Err(AgentError::Agent { why: "it went away before it had answered".to_owned() }),
        }
    }
}

/// Has the agent work, and cuts the power after so many marks and a while.
fn work_until_cut(
    line: &mut Line,
    marks: u32,
    later: Duration,
    history: &mut History,
    cut: &mut dyn FnMut() -> io::Result<()>,
) -> Result<(), AgentError> {
    let io = |action| move |source| AgentError::Io { action, source };
    let begun = |line: &mut Line| line.put(&Ask::Run).map_err(io("ask the agent"));
    begun(line)?;
    let mut seen = 0;
    let mut end: Option<Instant> = None;
    loop {
        let left = end.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
        if end.is_some() && left.is_zero() || !line.waits(left).map_err(io("wait for the agent"))? {
            break;
        }
        match line.get()? {
            Some(Say::Mark(mark)) => {
                history.marks.push(mark);
                // It may be gone already: what it said counts (A2).
                let _ = line.put(&Marked { marked: true });
                seen += 1;
                if seen == marks {
                    end = Some(Instant::now() + later);
                }
            }
            Some(Say::Done(())) => begun(line)?, // Its work is short: again.
            Some(Say::Failed(why)) => return Err(AgentError::Agent { why }),
            Some(other) => return Err(AgentError::Unexpected { what: format!("{other:?}") }),
            None => break, // The power went by itself.
        }
    }
    cut().map_err(io("cut the power"))?;
    // What it had said by then, and the end of the connection; a device without power does not close it.
    while line.waits(Duration::from_millis(50)).unwrap_or(false) {
        match line.get() {
            Ok(Some(Say::Mark(mark))) => history.marks.push(mark),
            _ => break,
        }
    }
    Ok(())
}

/// A place on a device: its disk, and a folder for what a reboot clears, which is emptied first: an agent that was killed
/// leaves its own.
///
/// # Errors
/// `Io`.
pub fn with_device_place<T>(disk: &Path, run: &Path, work: impl FnOnce(&Place<'_>) -> T) -> Result<T, AgentError> {
    let io = |action| move |source| AgentError::Io { action, source };
    match std::fs::remove_dir_all(run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io("empty the folder of the run")(error)),
        _ => {}
    }
    std::fs::create_dir_all(run).map_err(io("make the folder of the run"))?;
    let result = work(&Place { disk, run });
    std::fs::remove_dir_all(run).map_err(io("remove the folder of the run"))?;
    Ok(result)
}
