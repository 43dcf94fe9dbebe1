//! A connection to a process: what is typed goes in, what it says comes out.
//!
//! S1  Every byte that the daemon sent before it closed the connection is written before the session ends.
//! S2  The end of our standard input closes the process's, and nothing else: output goes on.

use std::io::{self, BufReader, Read, Write};
use std::sync::mpsc;

use super::super::failure::Failure;
use super::super::http::{Answer, Stream};
use super::super::output;
use super::Raw;
use super::keys::Keys;

/// Longest frame that is accepted; daemons send a few KiB.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// By the daemon: the process ended.
    Closed,
    /// By the detach keys.
    Detached,
}

/// What of a session is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Streams {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    /// The process has a terminal: its output is one stream without frames.
    pub(crate) tty: bool,
    pub(crate) keys: Keys,
}

enum Event {
    Output(Result<(), Failure>),
    Detached,
}

/// Copies in both directions until the process ends or the keys are typed.
///
/// # Errors
/// `Io` if the connection breaks, `OutputClosed` if nobody reads our output any more.
pub(crate) fn run(answer: Answer, streams: Streams) -> Result<End, Failure> {
    let connection = answer.taken_over();
    let again = || connection.get_ref().again().map_err(Failure::io("use the connection"));
    let (sender, events) = mpsc::channel();
    // Only a terminal on our side can be raw, and only for one on the other side.
    let _raw = if streams.stdin && streams.tty { Raw::enter() } else { None };
    if streams.stdin {
        let (to, sender) = (again()?, sender.clone());
        let keys = streams.tty.then(|| streams.keys.clone());
        std::thread::spawn(move || {
            if input(io::stdin().lock(), to, keys) {
                let _ = sender.send(Event::Detached);
            }
        });
    } else {
        // A container that waits for its input must see that none comes.
        let _ = connection.get_ref().end_of_writing();
    }
    std::thread::spawn(move || {
        let ended = if streams.tty { plain(connection, streams.stdout) } else { framed(connection, &streams) };
        let _ = sender.send(Event::Output(ended));
    });
    match events.recv() {
        Ok(Event::Output(ended)) => ended.map(|()| End::Closed),
        Ok(Event::Detached) => Ok(End::Detached),
        Err(_) => Err(Failure::Answer { reason: "the session ended without a result".to_owned() }),
    }
}

/// Passes input on; answers whether the detach keys were typed.
fn input(mut from: impl Read, mut to: Stream, mut keys: Option<Keys>) -> bool {
    let mut buffer = [0; 8192];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let (passed, detached) = match &mut keys {
            Some(keys) => keys.pass(&buffer[..length]),
            None => (buffer[..length].to_vec(), false),
        };
        // The process may be gone before its input ends; its output tells how.
        if to.write_all(&passed).is_err() {
            return false;
        }
        if detached {
            return true;
        }
    }
    let _ = to.end_of_writing();
    false
}

fn plain(mut from: BufReader<Stream>, shown: bool) -> Result<(), Failure> {
    let mut buffer = [0; 16 << 10];
    loop {
        let length = read(&mut from, &mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        if shown {
            output::write(&mut io::stdout().lock(), &buffer[..length])?;
        }
    }
}

fn read(from: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Failure> {
    loop {
        match from.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A daemon that was killed, not one that ended the session.
            ended => return ended.map_err(Failure::io("read the container's output")),
        }
    }
}

fn framed(from: impl Read, streams: &Streams) -> Result<(), Failure> {
    frames(from, |kind, bytes| match kind {
        0 | 1 if streams.stdout => output::write(&mut io::stdout().lock(), bytes),
        2 if streams.stderr => output::write(&mut io::stderr().lock(), bytes),
        _ => Ok(()),
    })
}

/// Takes a multiplexed stream apart: gives the number of the stream, and bytes.
///
/// # Errors
/// `Io`, `Answer` for a stream that is not framed or cut within a frame, or with what the daemon reports within the stream.
pub(crate) fn frames(
    mut from: impl Read,
    mut show: impl FnMut(u8, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let cut = || Failure::Answer { reason: "the stream was cut within a frame".to_owned() };
    let mut buffer = vec![0; 16 << 10];
    loop {
        let mut head = [0; 8];
        let mut filled = 0;
        while filled < head.len() {
            match read(&mut from, &mut head[filled..])? {
                0 if filled == 0 => return Ok(()),
                0 => return Err(cut()),
                length => filled += length,
            }
        }
        let [kind, 0, 0, 0, length @ ..] = head else {
            return Err(Failure::Answer { reason: "the stream is not framed".to_owned() });
        };
        let mut left = u32::from_be_bytes(length) as usize;
        if kind > 3 || left > FRAME_BYTES_MAX {
            return Err(Failure::Answer { reason: "the stream is not framed".to_owned() });
        }
        let mut report = Vec::new();
        while left > 0 {
            let most = left.min(buffer.len());
            let length = read(&mut from, &mut buffer[..most])?;
            if length == 0 {
                return Err(cut());
            }
            left -= length;
            match kind {
                3 if report.len() < 4096 => report.extend_from_slice(&buffer[..length]),
                3 => {}
                kind => show(kind, &buffer[..length])?,
            }
        }
        if kind == 3 {
            return Err(Failure::Api { status: 500, message: String::from_utf8_lossy(&report).into_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, text: &str) -> Vec<u8> {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend_from_slice(&(text.len() as u32).to_be_bytes());
        frame.extend_from_slice(text.as_bytes());
        frame
    }

    fn apart(bytes: &[u8]) -> Result<(String, String), Failure> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        frames(bytes, |kind, bytes| {
            if kind == 2 {
                err.extend_from_slice(bytes)
            } else {
                out.extend_from_slice(bytes)
            }
            Ok(())
        })?;
        Ok((String::from_utf8(out).expect("text"), String::from_utf8(err).expect("text")))
    }

    #[test]
    fn streams_are_taken_apart_and_cut_ones_are_errors() {
        let whole = [frame(1, "out\n"), frame(2, "err\n"), frame(1, ""), frame(1, &"x".repeat(100_000))].concat();
        let (out, err) = apart(&whole).expect("well formed");
        assert_eq!((out.len(), err.as_str()), (100_004, "err\n"));
        for length in [3, 8, 10] {
            assert!(apart(&whole[..length]).is_err(), "cut at {length}");
        }
        assert!(apart(b"plain text").is_err());
        assert!(apart(&[1, 0, 0, 0, 255, 255, 255, 255]).is_err());
        let reported = apart(&frame(3, "no log")).expect_err("the daemon reports");
        assert_eq!(reported.to_string(), "Error response from daemon: no log");
    }
}
