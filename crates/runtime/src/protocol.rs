//! The language between a shim and its daemon. The bytes: docs/formats/shim-protocol.md, version 1.
//!
//! Pure encoders and decoders; who reads and writes the socket is the caller's business.
//!
//! P1  Every control message is a frame: 4 bytes little-endian length, then that many bytes of JSON, at most 4 MiB.
//! P2  Every message names the version it is written in; unknown fields are ignored, an unknown verb is refused by name.
//! P3  After the answer to `attach` a connection carries only stream frames, in both directions: Docker's 8 bytes of header
//!     `[type, 0, 0, 0, length as 4 bytes big-endian]`, then the payload.

use serde::{Deserialize, Serialize};

use crate::client::ShimConfig;
use crate::error::StartFailure;

/// The version that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// The longest control message: a container with a very large environment fits.
pub const CONTROL_BYTES_MAX: usize = 4 << 20;
/// The longest control message that a running shim accepts: all but the configuration are small.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// The longest payload of one stream frame from a client.
pub const STREAM_BYTES_MAX: usize = 64 << 10;
/// Length of a stream frame's header.
pub const STREAM_HEADER_BYTES: usize = 8;

/// What a stream frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// Client to shim: input. An empty payload means: this client's input has ended.
    Stdin = 0,
    /// Shim to client: the container's output; with a terminal, all of it.
    Stdout = 1,
    /// Shim to client: the container's error output.
    Stderr = 2,
}

/// A verb for the shim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// Lets the created container run. Answered when its program has been executed, or could not be.
    Start,
    /// Answered when the container has ended.
    Wait,
    /// Sends a signal to the container's first process, created or running.
    Kill {
        /// The signal's number.
        signal: i32,
    },
    /// Sets the terminal's size.
    Resize {
        /// Rows.
        height: u16,
        /// Columns.
        width: u16,
    },
    /// Asks for the state.
    State,
    /// Turns this connection into a stream.
    Attach(AttachOptions),
    /// Closes the container's input.
    CloseStdin,
    /// Freezes all processes.
    Pause,
    /// Thaws them.
    Unpause,
    /// Kills whatever runs, cleans up and ends the shim; answered when the container is gone.
    Delete,
}

/// Which streams a client wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOptions {
    /// Sends input.
    #[serde(default)]
    pub stdin: bool,
    /// Wants output.
    #[serde(default)]
    pub stdout: bool,
    /// Wants error output (with a terminal it is part of the output).
    #[serde(default)]
    pub stderr: bool,
    /// The end of this client's input is the end of the container's (Docker's `StdinOnce`).
    #[serde(default)]
    pub close_stdin: bool,
}

/// Where a container is in its life, as far as the shim can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerStatus {
    /// Set up, its program not yet executed.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

/// The state that a shim reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimState {
    /// The container's ID.
    pub id: String,
    /// Where it is in its life.
    pub status: ContainerStatus,
    /// Host PID of the container's first process; 0 when it has ended.
    pub pid: i32,
    /// When its program was executed (RFC 3339 with nanoseconds), if it was.
    pub started_at: Option<String>,
    /// How it ended, if it has.
    pub exit: Option<ExitRecord>,
    /// Log records that could not be written (full disk).
    #[serde(default)]
    pub log_records_lost: u64,
}

/// How a container ended; also the content of `exit.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Version of this record.
    pub version: u32,
    /// The container's ID.
    pub id: String,
    /// The program's exit code, or 128 + signal; 126, 127 or 128 if it never ran.
    pub exit_code: i32,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// When its program was executed, if it was (RFC 3339 with nanoseconds).
    pub started_at: Option<String>,
    /// When it ended (RFC 3339 with nanoseconds).
    pub finished_at: String,
    /// Why its program could not be executed.
    pub failure: Option<StartFailure>,
}

/// A shim's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The container is set up (answer to the configuration, on the readiness pipe).
    Ready {
        /// Host PID of the container's first process.
        pid: i32,
    },
    /// The program runs.
    Started {
        /// Host PID of the container's first process.
        pid: i32,
        /// When (RFC 3339 with nanoseconds).
        started_at: String,
    },
    /// The container could not be created or started.
    Failed(StartFailure),
    /// It has ended.
    Exited(ExitRecord),
    /// The state.
    State(ShimState),
    /// Done.
    Done,
    /// The verb does not fit the state.
    Refused {
        /// Why, in words.
        message: String,
    },
}

/// A message with the version it is written in.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    #[serde(flatten)]
    body: T,
}

#[derive(Debug, Serialize, Deserialize)]
struct ResponseBody {
    answer: Response,
}

#[derive(Debug, Serialize, Deserialize)]
struct ConfigBody {
    config: ShimConfig,
}

/// Why a message was not understood.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// Longer than the limit.
    #[error("message of {length} bytes is longer than {limit}")]
    TooLong {
        /// Announced length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// Not the JSON that was expected.
    #[error("message is malformed")]
    Malformed(#[source] serde_json::Error),
    /// Another version.
    #[error("message has version {found}, known up to {VERSION}")]
    Version {
        /// The message's version.
        found: u32,
    },
    /// A stream frame of an unknown type.
    #[error("stream frame has type {0}")]
    StreamType(u8),
}

/// The frame of one verb.
#[must_use]
pub fn encode_request(request: &Request) -> Vec<u8> {
    encode(&Envelope { version: VERSION, body: request })
}

/// The frame of one answer.
#[must_use]
pub fn encode_response(response: &Response) -> Vec<u8> {
    encode(&Envelope { version: VERSION, body: ResponseBody { answer: response.clone() } })
}

/// The frame of the configuration that starts a shim.
#[must_use]
pub fn encode_config(config: &ShimConfig) -> Vec<u8> {
    encode(&Envelope { version: VERSION, body: ConfigBody { config: config.clone() } })
}

/// Takes the first frame off `buffer`: its JSON and how many bytes it used, or `None` while it is incomplete.
/// # Errors
/// `TooLong` as soon as the announced length exceeds `limit`.
pub fn split_frame(buffer: &[u8], limit: usize) -> Result<Option<(&[u8], usize)>, ProtocolError> {
    let Some((head, rest)) = buffer.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*head) as usize;
    if length > limit {
        return Err(ProtocolError::TooLong { length, limit });
    }
    Ok(rest.get(..length).map(|json| (json, length + 4)))
}

/// Reads a verb.
/// # Errors
/// `Malformed` also for an unknown verb, `Version` for a newer one.
pub fn decode_request(json: &[u8]) -> Result<Request, ProtocolError> {
    decode::<Request>(json)
}

/// Reads an answer.
/// # Errors
/// `Malformed`, `Version`.
pub fn decode_response(json: &[u8]) -> Result<Response, ProtocolError> {
    decode::<ResponseBody>(json).map(|body| body.answer)
}

/// Reads a shim's configuration.
/// # Errors
/// `Malformed`, `Version`.
pub fn decode_config(json: &[u8]) -> Result<ShimConfig, ProtocolError> {
    decode::<ConfigBody>(json).map(|body| body.config)
}

/// The header of a stream frame.
#[must_use]
pub fn stream_header(kind: StreamKind, payload_bytes: u32) -> [u8; STREAM_HEADER_BYTES] {
    let length = payload_bytes.to_be_bytes();
    [kind as u8, 0, 0, 0, length[0], length[1], length[2], length[3]]
}

/// Reads the header of a stream frame: its kind and the length of its payload.
/// # Errors
/// `StreamType`; `TooLong` beyond `limit`.
pub fn parse_stream_header(
    header: [u8; STREAM_HEADER_BYTES],
    limit: usize,
) -> Result<(StreamKind, usize), ProtocolError> {
    let kind = match header[0] {
        0 => StreamKind::Stdin,
        1 => StreamKind::Stdout,
        2 => StreamKind::Stderr,
        other => return Err(ProtocolError::StreamType(other)),
    };
    let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
    if length > limit {
        return Err(ProtocolError::TooLong { length, limit });
    }
    Ok((kind, length))
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    // These types hold no map with keys other than strings, so that serialising cannot fail.
    let json = serde_json::to_vec(message).expect("protocol types serialise");
    let length = u32::try_from(json.len()).expect("a message is shorter than 4 GiB");
    let mut frame = Vec::with_capacity(json.len() + 4);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&json);
    frame
}

fn decode<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Result<T, ProtocolError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    // The version first: a newer message may not parse as this version's type at all.
    let Version { version: found } = serde_json::from_slice(json).map_err(ProtocolError::Malformed)?;
    if found == 0 || found > VERSION {
        return Err(ProtocolError::Version { found });
    }
    serde_json::from_slice(json).map_err(ProtocolError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_survives_its_frame() {
        let attach = AttachOptions { stdin: true, stdout: true, stderr: false, close_stdin: true };
        for request in [
            Request::Start,
            Request::Wait,
            Request::Kill { signal: 15 },
            Request::Resize { height: 24, width: 80 },
            Request::State,
            Request::Attach(attach),
            Request::CloseStdin,
            Request::Pause,
            Request::Unpause,
            Request::Delete,
        ] {
            let frame = encode_request(&request);
            let (json, used) = split_frame(&frame, REQUEST_BYTES_MAX).unwrap().unwrap();
            assert_eq!(used, frame.len());
            assert_eq!(decode_request(json).unwrap(), request);
        }
    }

    #[test]
    fn an_incomplete_frame_waits_and_a_long_one_is_refused_at_its_length() {
        let frame = encode_request(&Request::State);
        for cut in 0..frame.len() {
            assert!(split_frame(&frame[..cut], REQUEST_BYTES_MAX).unwrap().is_none());
        }
        assert!(matches!(split_frame(&[0xff; 4], 1024), Err(ProtocolError::TooLong { limit: 1024, .. })));
    }

    #[test]
    fn a_newer_version_is_named_and_an_unknown_verb_is_malformed() {
        assert!(matches!(
            decode_request(br#"{"version":2,"verb":"teleport"}"#),
            Err(ProtocolError::Version { found: 2 })
        ));
        assert!(matches!(decode_request(br#"{"version":1,"verb":"teleport"}"#), Err(ProtocolError::Malformed(_))));
        assert_eq!(decode_request(br#"{"version":1,"verb":"start","later":true}"#).unwrap(), Request::Start);
    }

    #[test]
    fn stream_headers_are_dockers() {
        assert_eq!(stream_header(StreamKind::Stderr, 258), [2, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(parse_stream_header([2, 0, 0, 0, 0, 0, 1, 2], 1024).unwrap(), (StreamKind::Stderr, 258));
        assert!(parse_stream_header([9, 0, 0, 0, 0, 0, 0, 0], 1024).is_err());
        assert!(parse_stream_header([0, 0, 0, 0, 1, 0, 0, 0], 1024).is_err());
    }
}
