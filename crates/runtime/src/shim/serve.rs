//! The shim's loop: one thread, one `poll`, everything else follows from what is ready.
//!
//! V1  Every buffer is bounded: while an attached client does not read, the container's output waits in its pipe; while the program
//!     does not read, a client's input waits in its socket.
//! V2  The order at the end is: output drained, log finished, exit recorded, waiters answered, streams closed. (H3)
//!     Nothing in the run directory is touched after that.
//! V3  Only the owner of the shim and root are served.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, WaitOptions};

use super::exec::Gate;
use super::{LIBRARY_NAME, RECORD_VERSION, Streams, remove_work_files, write_private};
use crate::cgroup::Cgroup;
use crate::client::{EXIT_NAME, SOCKET_NAME};
use crate::clock;
use crate::error::{FailureKind, StartFailure};
use crate::logs::{LogStream, LogWriter};
use crate::protocol::{
    self, AttachOptions, ContainerStatus, ExitRecord, REQUEST_BYTES_MAX, Request, Response, STREAM_BYTES_MAX,
    STREAM_HEADER_BYTES, ShimState, StreamKind,
};
use crate::sys;

/// Connections at once.
const CLIENTS_MAX: usize = 128;
/// Output that waits for one client before the container's output waits too.
const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// Input that waits for the program before clients' input waits too.
const INPUT_BYTES_MAX: usize = 64 << 10;
/// One read.
const READ_BYTES: usize = 16 << 10;
/// How long output may still come after the container's end: a process outside its cgroup may hold the pipe.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// Reads of each pipe after that: more than a pipe holds.
const LAST_READS_MAX: usize = 64;
/// How long clients may take to read their last bytes.
const LINGER_MAX: Duration = Duration::from_secs(10);

pub(super) struct Parts {
    pub(super) id: String,
    pub(super) held: OwnedFd,
    pub(super) listener: UnixListener,
    pub(super) signals: OwnedFd,
    pub(super) pid: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) outcome: OwnedFd,
    pub(super) streams: Streams,
    pub(super) log: LogWriter,
    pub(super) group: Cgroup,
    /// Its first process executes the program itself, and not by an init.
    pub(super) executes: bool,
    /// Of a further program in a container of another shim.
    pub(super) gate: Option<Gate>,
}

pub(super) struct Server {
    parts: Parts,
    phase: Phase,
    paused: bool,
    started_at: Option<String>,
    /// What the program's executor has said so far.
    outcome_text: Vec<u8>,
    outcome_open: bool,
    failure: Option<StartFailure>,
    sources: [Option<OwnedFd>; 2],
    input: Input,
    clients: Vec<Client>,
    buffer: Box<[u8; READ_BYTES]>,
}

#[derive(PartialEq)]
enum Phase {
    Created,
    /// Told to go; its program is not executed yet.
    Starting,
    Running,
    /// Ended, but its output may not all have arrived.
    Draining {
        code: i32,
        finished_at: String,
        until: Instant,
    },
    /// Recorded.
    Over {
        record: Box<ExitRecord>,
        until: Instant,
    },
}

#[derive(Default)]
struct Input {
    stream: Option<OwnedFd>,
    waiting: Vec<u8>,
    /// No more will come: close when all is written.
    ends: bool,
}

struct Client {
    stream: UnixStream,
    role: Role,
    input: Vec<u8>,
    /// Bytes of the stream frame being read that are still to come.
    frame_left: usize,
    output: Vec<u8>,
    sent: usize,
    input_ended: bool,
    hung_up: bool,
    gone: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Control,
    AwaitsStart,
    AwaitsExit,
    AwaitsRemoval,
    Attached(AttachOptions),
    /// Has all that it will get.
    Closing,
}

#[derive(Clone, Copy)]
enum Ready {
    Signals,
    Outcome,
    Source(usize),
    Input,
    Listener,
    Client(usize),
}

impl Server {
    pub(super) fn new(mut parts: Parts) -> Self {
        let stdin = parts.streams.stdin.take();
        let sources = [parts.streams.stdout.take(), parts.streams.stderr.take()];
        Self {
            parts,
            phase: Phase::Created,
            paused: false,
            started_at: None,
            outcome_text: Vec::new(),
            outcome_open: true,
            failure: None,
            sources,
            input: Input { stream: stdin, ..Input::default() },
            clients: Vec::new(),
            buffer: Box::new([0; READ_BYTES]),
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.parts.pid.as_raw_nonzero().get()
    }

    pub(super) fn run(mut self) {
        while !self.is_finished() {
            let ready = self.wait();
            for event in ready {
                self.handle(event);
            }
            self.advance();
            self.clients.retain_mut(|client| {
                if client.is_done() {
                    client.close();
                }
                !client.gone
            });
        }
        self.clients.iter_mut().for_each(Client::close);
    }

    /// The run directory, by descriptor: if it has been removed and made anew for another run, it is not ours any more.
    fn dir(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.parts.held.as_raw_fd()))
    }

    fn is_finished(&self) -> bool {
        match &self.phase {
            Phase::Over { until, .. } => {
                Instant::now() >= *until || self.clients.iter().all(|client| client.pending() == 0)
            }
            _ => false,
        }
    }

    /// Blocks until something is ready; says what, each with what the kernel said.
    fn wait(&mut self) -> Vec<Ready> {
        let hold_output = !self.is_draining() && self.clients.iter().any(|client| client.is_behind());
        let take_input = self.input.waiting.len() < INPUT_BYTES_MAX;
        let mut watched: Vec<(Ready, BorrowedFd<'_>, PollFlags)> =
            vec![(Ready::Signals, self.parts.signals.as_fd(), PollFlags::IN)];
        if self.outcome_open {
            watched.push((Ready::Outcome, self.parts.outcome.as_fd(), PollFlags::IN));
        }
        for (index, source) in self.sources.iter().enumerate() {
            if let Some(source) = source.as_ref().filter(|_| !hold_output) {
                watched.push((Ready::Source(index), source.as_fd(), PollFlags::IN));
            }
        }
        if let Some(stream) = self.input.stream.as_ref().filter(|_| !self.input.waiting.is_empty()) {
            watched.push((Ready::Input, stream.as_fd(), PollFlags::OUT));
        }
        if self.clients.len() < CLIENTS_MAX {
            watched.push((Ready::Listener, self.parts.listener.as_fd(), PollFlags::IN));
        }
        for (index, client) in self.clients.iter().enumerate() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !client.input_ended && (take_input || !matches!(client.role, Role::Attached(_))));
            flags.set(PollFlags::OUT, client.pending() > 0);
            // A client that hung up is always ready: it is looked at only while its last input can be taken.
            if !client.hung_up || !flags.is_empty() {
                watched.push((Ready::Client(index), client.stream.as_fd(), flags));
            }
        }
        let deadline = match &self.phase {
            Phase::Draining { until, .. } | Phase::Over { until, .. } => {
                Some(until.saturating_duration_since(Instant::now()))
            }
            _ => None,
        };
        let timeout =
            deadline.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
        let mut fds: Vec<PollFd<'_>> =
            watched.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)).collect();
        // Interrupted or failed: nothing is ready, and the next round tries again.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
        let mut ready = Vec::new();
        let mut hung_up = Vec::new();
        for ((what, _, _), fd) in watched.iter().zip(&fds) {
            let events = fd.revents();
            if events.is_empty() {
                continue;
            }
            if let (Ready::Client(index), true) = (what, events.intersects(PollFlags::HUP | PollFlags::ERR)) {
                hung_up.push(*index);
            }
            ready.push(*what);
        }
        drop(watched);
        for index in hung_up {
            self.clients[index].hung_up = true;
        }
        ready
    }

    fn handle(&mut self, ready: Ready) {
        match ready {
            Ready::Signals => self.reap(),
            Ready::Outcome => self.read_outcome(),
            Ready::Source(index) => {
                self.read_source(index);
            }
            Ready::Input => self.write_input(),
            Ready::Listener => self.accept(),
            Ready::Client(index) => self.serve(index),
        }
    }

    /// Moves on to the next phase if this one is done.
    fn advance(&mut self) {
        if let Phase::Draining { code, finished_at, until } = &self.phase {
            let drained = self.sources.iter().all(Option::is_none) && !self.outcome_open;
            if drained || Instant::now() >= *until {
                let (code, finished_at) = (*code, finished_at.clone());
                // The time may have passed without this process having had its turn: what lies in the pipes is taken all the same.
                for index in 0..self.sources.len() {
                    (0..LAST_READS_MAX).find(|_| !self.read_source(index));
                }
                self.record(code, finished_at);
            }
        }
    }

    fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Over { .. })
    }

    // --- the container's process ---

    fn reap(&mut self) {
        let mut info = [0_u8; 128];
        while rustix::io::read(&self.parts.signals, &mut info).is_ok_and(|read| read > 0) {}
        // A short program may have been executed and have ended within one round of the loop. While it is not reaped the kernel tells
        // whether it was.
        self.read_outcome();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if let Some((signal, executed)) = sys::stop_of(status) {
                if let Some(gate) = self.parts.gate.as_mut().filter(|_| pid == self.parts.pid) {
                    gate.stopped(signal, executed);
                }
                continue;
            }
            if pid == self.parts.pid && !self.is_draining() {
                // Between the look before and its end it may have been executed.
                self.read_outcome();
                if let (Phase::Starting, None, Some(gate)) = (&self.phase, &self.failure, &self.parts.gate) {
                    self.failure = Some(gate.killed());
                }
                let code = status
                    .exit_status()
                    .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
                    .unwrap_or(255);
                // Whatever else runs in its cgroup (a container in the host's PID namespace) ends with its first process.
                self.parts.group.kill_all();
                self.phase = Phase::Draining {
                    code,
                    finished_at: clock::rfc3339(clock::now()),
                    until: Instant::now() + DRAIN_MAX,
                };
            }
        }
    }

    /// Takes what the executor has said, and acts on its silence.
    fn read_outcome(&mut self) {
        while self.outcome_open {
            match rustix::io::read(&self.parts.outcome, &mut self.buffer[..]) {
                Ok(read) if read > 0 && self.outcome_text.len() + read <= REQUEST_BYTES_MAX => {
                    self.outcome_text.extend_from_slice(&self.buffer[..read]);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                _ => self.outcome_open = false,
            }
        }
        self.program_executed_or_not();
    }

    /// The executor has closed its pipe: by executing the program, by failing to (then it said why), or by being killed.
    fn program_executed_or_not(&mut self) {
        if !self.outcome_text.is_empty() {
            let unreadable = || StartFailure::new(FailureKind::Other, "the program could not be executed");
            self.failure = Some(serde_json::from_slice(&self.outcome_text).unwrap_or_else(|_| unreadable()));
            return;
        }
        if self.phase == Phase::Starting
            && self.failure.is_none()
            && (!self.parts.executes || sys::has_executed(self.parts.pid))
        {
            self.phase = Phase::Running;
            if let Some(gate) = &mut self.parts.gate {
                gate.opened();
            }
            let started_at = clock::rfc3339(clock::now());
            self.started_at = Some(started_at.clone());
            let response = Response::Started { pid: self.pid(), started_at };
            self.answer(Role::AwaitsStart, &response, Role::Control);
            // What the runtime library left behind is not needed any more; the bundle is, for exec.
            let _ = fs::remove_dir_all(self.dir().join(LIBRARY_NAME));
        }
    }

    // --- streams ---

    /// Takes one piece of output; whether there was one.
    fn read_source(&mut self, index: usize) -> bool {
        let Some(source) = &self.sources[index] else { return false };
        let read = match rustix::io::read(source, &mut self.buffer[..]) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
            // A terminal whose last user has gone says EIO.
            other => other.unwrap_or(0),
        };
        if read == 0 {
            self.sources[index] = None;
            return false;
        }
        let (kind, stream) =
            if index == 0 { (StreamKind::Stdout, LogStream::Stdout) } else { (StreamKind::Stderr, LogStream::Stderr) };
        let bytes = &self.buffer[..read];
        self.parts.log.write(stream, bytes);
        let header = protocol::stream_header(kind, u32::try_from(read).unwrap_or(0));
        for client in &mut self.clients {
            if client.wants(index, self.parts.streams.terminal.is_some()) {
                client.output.extend_from_slice(&header);
                client.output.extend_from_slice(bytes);
                client.flush();
            }
        }
        true
    }

    fn write_input(&mut self) {
        let Some(stream) = &self.input.stream else { return };
        match rustix::io::write(stream, &self.input.waiting) {
            Ok(written) => drop(self.input.waiting.drain(..written)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            // The program has closed its input: what it did not want is dropped.
            Err(_) => {
                self.input.stream = None;
                self.input.waiting = Vec::new();
            }
        }
        self.close_input_if_done();
    }

    fn close_input_if_done(&mut self) {
        // A terminal has no end of input of its own: whoever types sends ^D.
        if self.input.ends && self.input.waiting.is_empty() && self.parts.streams.terminal.is_none() {
            self.input.stream = None;
        }
    }

    // --- clients ---

    fn accept(&mut self) {
        let Ok((stream, _)) = self.parts.listener.accept() else { return };
        let own = rustix::process::geteuid();
        let served =
            rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == own);
        if served && stream.set_nonblocking(true).is_ok() {
            self.clients.push(Client::new(stream));
        }
    }

    fn serve(&mut self, index: usize) {
        self.clients[index].flush();
        self.read_client(index);
        loop {
            let progressed = match self.clients[index].role {
                Role::Control => self.next_request(index),
                Role::Attached(options) => {
                    self.take_input(index, options);
                    false
                }
                _ => false,
            };
            if !progressed || self.clients[index].gone {
                break;
            }
        }
    }

    fn read_client(&mut self, index: usize) {
        let full = self.input.waiting.len() >= INPUT_BYTES_MAX;
        let client = &mut self.clients[index];
        if client.input_ended || (full && matches!(client.role, Role::Attached(_))) {
            return;
        }
        match client.stream.read(&mut self.buffer[..]) {
            Ok(0) => client.input_ended = true,
            Ok(read) => client.input.extend_from_slice(&self.buffer[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => {
                client.input_ended = true;
                client.hung_up = true;
            }
        }
        // Someone who talks while waiting, or after hanging up, is not listened to without end.
        if client.input.len() > REQUEST_BYTES_MAX + READ_BYTES {
            client.gone = true;
        }
    }

    /// Handles one verb of a client; whether there was one.
    fn next_request(&mut self, index: usize) -> bool {
        let client = &mut self.clients[index];
        let request = match protocol::split_frame(&client.input, REQUEST_BYTES_MAX) {
            Ok(None) => return false,
            Ok(Some((json, used))) => {
                let request = protocol::decode_request(json);
                client.input.drain(..used);
                request
            }
            Err(error) => Err(error),
        };
        match request {
            Ok(request) => self.obey(index, request),
            Err(error) => {
                client.send(&Response::Refused { message: error.to_string() });
                client.role = Role::Closing;
            }
        }
        true
    }

    fn obey(&mut self, index: usize, request: Request) {
        let response = match request {
            Request::Start => match self.start(index) {
                Ok(()) => return,
                Err(message) => Response::Refused { message },
            },
            Request::Wait => match &self.phase {
                Phase::Over { record, .. } => Response::Exited((**record).clone()),
                _ => {
                    self.clients[index].role = Role::AwaitsExit;
                    return;
                }
            },
            Request::Delete => {
                if !matches!(self.phase, Phase::Over { .. }) {
                    self.clients[index].role = Role::AwaitsRemoval;
                    let _ = sys::send_signal(&self.parts.pidfd, libc::SIGKILL);
                    self.thaw_if_paused();
                    return;
                }
                Response::Done
            }
            Request::State => Response::State(self.state()),
            Request::Attach(options) => {
                self.clients[index].send(&Response::Done);
                self.clients[index].role = Role::Attached(options);
                return;
            }
            Request::Kill { signal } => done(self.kill(signal)),
            Request::Resize { height, width } => done(self.resize(height, width)),
            Request::CloseStdin => {
                self.input.ends = true;
                self.close_input_if_done();
                Response::Done
            }
            Request::Pause => done(self.set_paused(true)),
            Request::Unpause => done(self.set_paused(false)),
        };
        self.clients[index].send(&response);
    }

    fn start(&mut self, index: usize) -> Result<(), String> {
        if self.phase != Phase::Created {
            return Err("container has been started already".to_owned());
        }
        if let Some(gate) = &mut self.parts.gate {
            self.phase = Phase::Starting;
            self.clients[index].role = Role::AwaitsStart;
            if let Err(failure) = gate.open() {
                // Told when it is gone.
                self.failure = Some(failure);
                let _ = sys::send_signal(&self.parts.pidfd, libc::SIGKILL);
            }
            return Ok(());
        }
        // The runtime library's process waits for a connection here (its notify socket).
        let path =
            format!("/proc/self/fd/{}/{LIBRARY_NAME}/{}/notify.sock", self.parts.held.as_raw_fd(), self.parts.id);
        let told = UnixStream::connect(path).and_then(|mut socket| socket.write_all(b"start container"));
        told.map_err(|error| format!("cannot start the created process: {error}"))?;
        self.phase = Phase::Starting;
        self.clients[index].role = Role::AwaitsStart;
        Ok(())
    }

    fn kill(&mut self, signal: i32) -> Result<(), String> {
        if self.is_draining() {
            return Err("container is not running".to_owned());
        }
        sys::send_signal(&self.parts.pidfd, signal).map_err(|error| format!("cannot send signal {signal}: {error}"))?;
        if signal == libc::SIGKILL {
            // A process frozen by cgroup v1 dies only once it is thawed.
            self.thaw_if_paused();
        }
        Ok(())
    }

    fn resize(&mut self, height: u16, width: u16) -> Result<(), String> {
        let terminal = self.parts.streams.terminal.as_ref().filter(|_| !self.is_draining());
        let terminal = terminal.ok_or("container has no terminal, or is not running")?;
        let size = rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).map_err(|error| format!("cannot resize the terminal: {error}"))
    }

    fn set_paused(&mut self, paused: bool) -> Result<(), String> {
        if self.phase != Phase::Running {
            return Err("container is not running".to_owned());
        }
        if self.paused == paused {
            return Err(if paused { "container is already paused" } else { "container is not paused" }.to_owned());
        }
        self.parts
            .group
            .set_frozen(paused)
            .map_err(|(path, error)| format!("cannot write {}: {error}", path.display()))?;
        self.paused = paused;
        Ok(())
    }

    fn thaw_if_paused(&mut self) {
        if self.paused && self.parts.group.set_frozen(false).is_ok() {
            self.paused = false;
        }
    }

    fn state(&self) -> ShimState {
        let (status, exit) = match &self.phase {
            Phase::Created | Phase::Starting => (ContainerStatus::Created, None),
            Phase::Running if self.paused => (ContainerStatus::Paused, None),
            Phase::Running => (ContainerStatus::Running, None),
            Phase::Draining { .. } => (ContainerStatus::Stopped, None),
            Phase::Over { record, .. } => (ContainerStatus::Stopped, Some((**record).clone())),
        };
        let pid = if self.is_draining() { 0 } else { self.pid() };
        ShimState {
            id: self.parts.id.clone(),
            status,
            pid,
            started_at: self.started_at.clone(),
            exit,
            log_records_lost: self.parts.log.lost(),
        }
    }

    /// Takes stream frames of an attached client for the container's input.
    fn take_input(&mut self, index: usize, options: AttachOptions) {
        let client = &mut self.clients[index];
        let mut at = 0;
        let mut ended = client.input_ended;
        while at < client.input.len() {
            let rest = &client.input[at..];
            if client.frame_left > 0 {
                let taken = client.frame_left.min(rest.len());
                if options.stdin && self.input.stream.is_some() && !self.input.ends {
                    self.input.waiting.extend_from_slice(&rest[..taken]);
                }
                client.frame_left -= taken;
                at += taken;
                continue;
            }
            let Some(header) = rest.first_chunk::<STREAM_HEADER_BYTES>() else { break };
            match protocol::parse_stream_header(*header, STREAM_BYTES_MAX) {
                Ok((StreamKind::Stdin, 0)) => ended = true,
                Ok((StreamKind::Stdin, length)) => client.frame_left = length,
                _ => {
                    client.gone = true;
                    return;
                }
            }
            at += STREAM_HEADER_BYTES;
        }
        client.input.drain(..at);
        if ended && options.stdin && options.close_stdin {
            self.input.ends = true;
        }
        self.write_input_now();
    }

    /// Most input fits its pipe at once: that saves a round of the loop.
    fn write_input_now(&mut self) {
        if self.input.waiting.is_empty() {
            self.close_input_if_done();
        } else {
            self.write_input();
        }
    }

    /// Answers every client that waits in this role.
    fn answer(&mut self, role: Role, response: &Response, next: Role) {
        for client in self.clients.iter_mut().filter(|client| client.role == role) {
            client.send(response);
            client.role = next;
        }
    }

    // --- the end ---

    fn record(&mut self, code: i32, finished_at: String) {
        self.parts.log.finish();
        let oom_killed = self.parts.group.oom_kills() > 0;
        // What cannot be removed stays named in state.json, for the daemon's clean-up.
        let removed = self.parts.group.kill_and_remove().is_ok();
        let exit_code = self.failure.as_ref().map_or(code, |failure| failure.kind.exit_code());
        let record = ExitRecord {
            version: RECORD_VERSION,
            id: self.parts.id.clone(),
            exit_code,
            oom_killed,
            started_at: self.started_at.clone(),
            finished_at,
            failure: self.failure.clone(),
        };
        let dir = self.dir();
        let path = dir.join(EXIT_NAME);
        let temporary = path.with_extension("new");
        let text = serde_json::to_vec(&record).unwrap_or_default();
        // If the run directory is gone, the daemon has given the container up; waiters still get their answer.
        let _ = write_private(&temporary, &text).and_then(|()| fs::rename(&temporary, &path));
        if removed {
            remove_work_files(&dir);
        }
        // Before anybody is answered: from then on the directory may be another run's.
        let _ = fs::remove_file(dir.join(SOCKET_NAME));
        let start = match &self.failure {
            Some(failure) => Response::Failed(failure.clone()),
            None => Response::Refused { message: "container was killed before its program was executed".to_owned() },
        };
        self.answer(Role::AwaitsStart, &start, Role::Closing);
        self.answer(Role::AwaitsExit, &Response::Exited(record.clone()), Role::Closing);
        self.answer(Role::AwaitsRemoval, &Response::Done, Role::Closing);
        self.phase = Phase::Over { record: Box::new(record), until: Instant::now() + LINGER_MAX };
        for client in &mut self.clients {
            if matches!(client.role, Role::Attached(_)) {
                client.role = Role::Closing;
            }
        }
    }
}

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::Done,
        Err(message) => Response::Refused { message },
    }
}

impl Client {
    fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            role: Role::Control,
            input: Vec::new(),
            frame_left: 0,
            output: Vec::new(),
            sent: 0,
            input_ended: false,
            hung_up: false,
            gone: false,
        }
    }

    /// Whether nothing more will pass on this connection.
    fn is_done(&self) -> bool {
        let over = match self.role {
            Role::Closing => true,
            Role::Attached(_) => self.input_ended && self.hung_up,
            _ => self.input_ended,
        };
        over && self.pending() == 0
    }

    /// Ends the connection so that the other side reads an end, and no error: unread input would turn it into a reset.
    fn close(&mut self) {
        // If the other side has gone there is nothing to end.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let mut rest = [0; 1024];
        while self.stream.read(&mut rest).is_ok_and(|read| read > 0) {}
        self.gone = true;
    }

    fn pending(&self) -> usize {
        if self.gone { 0 } else { self.output.len() - self.sent }
    }

    fn is_behind(&self) -> bool {
        matches!(self.role, Role::Attached(_)) && self.pending() >= OUTPUT_BYTES_MAX
    }

    fn wants(&self, source: usize, terminal: bool) -> bool {
        match self.role {
            Role::Attached(options) if source == 0 => options.stdout || (terminal && options.stderr),
            Role::Attached(options) => options.stderr,
            _ => false,
        }
    }

    fn send(&mut self, response: &Response) {
        self.output.extend_from_slice(&protocol::encode_response(response));
        self.flush();
    }

    fn flush(&mut self) {
        while self.pending() > 0 {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
        self.output = Vec::new();
        self.sent = 0;
    }
}
