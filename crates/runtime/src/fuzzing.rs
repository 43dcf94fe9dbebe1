//! What must hold of the parsers here, whatever bytes they get: for the fuzz targets. Not for other use.

use crate::protocol::{self, STREAM_BYTES_MAX, STREAM_HEADER_BYTES, StreamKind};
use crate::{clock, logs, users};

/// Resolves a user: the first line is `user\tgroup to add`, up to a line `--` is `/etc/passwd`, then `/etc/group`.
///
/// # Panics
/// If a result is out of range, or could put more than a path into the environment.
pub fn users(bytes: &[u8]) {
    let (head, files) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len()));
    let middle = files.windows(4).position(|window| window == b"\n--\n").unwrap_or(files.len());
    let (passwd, group) = files.split_at(middle);
    let Ok(head) = std::str::from_utf8(head) else { return };
    let (user, add) = head.split_once('\t').unwrap_or((head, ""));
    let add: Vec<String> = add.split_terminator('\t').map(str::to_owned).collect();
    match users::resolve_in(passwd, group, user, &add) {
        Err(error) => drop(error.to_string()),
        Ok(resolved) => {
            let ids = resolved.groups.iter().chain([&resolved.uid, &resolved.gid]);
            assert!(ids.copied().all(|id| i32::try_from(id).is_ok()), "{resolved:?}");
            assert_eq!(resolved.groups.first(), Some(&resolved.gid));
            assert!(resolved.home.starts_with('/') && !resolved.home.contains(['\0', '\n']), "{resolved:?}");
        }
    }
}

/// Reads lines of a log.
///
/// # Panics
/// If a time is read as another than it is written.
pub fn log_lines(bytes: &[u8]) {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(entry) = logs::parse(line) else { continue };
        let shown = entry.timestamp();
        // Years before 0 and after 9999 have no such form.
        if shown.len() == 30 && !shown.starts_with('-') {
            assert_eq!(
                clock::parse_rfc3339(&shown),
                Some(entry.time_nanoseconds),
                "{} is shown as {shown}",
                entry.time
            );
        }
    }
}

/// Takes frames apart, as the shim does with what clients send, and the daemon with what a shim does.
///
/// # Panics
/// If a verb or an answer that was understood is another after it has been written and read, or a frame exceeds its input.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((json, length))) = protocol::split_frame(rest, protocol::REQUEST_BYTES_MAX) {
        messages(json);
        rest = &rest[length..];
    }
    messages(rest);
    if let Some((header, _)) = rest.split_first_chunk::<STREAM_HEADER_BYTES>()
        && let Ok((kind, length)) = protocol::parse_stream_header(*header, STREAM_BYTES_MAX)
    {
        assert!(
            length <= STREAM_BYTES_MAX && matches!(kind, StreamKind::Stdin | StreamKind::Stdout | StreamKind::Stderr)
        );
    }
}

fn messages(json: &[u8]) {
    let inner = |frame: &[u8]| -> Vec<u8> {
        let frame = protocol::split_frame(frame, protocol::CONTROL_BYTES_MAX * 8);
        frame.expect("no longer than allowed").expect("a whole frame").0.to_vec()
    };
    match protocol::decode_request(json) {
        Err(error) => drop(error.to_string()),
        Ok(request) => {
            let again = protocol::decode_request(&inner(&protocol::encode_request(&request)));
            assert_eq!(again.expect("what was written is read"), request);
        }
    }
    if let Ok(response) = protocol::decode_response(json) {
        let again = protocol::decode_response(&inner(&protocol::encode_response(&response)));
        assert_eq!(again.expect("what was written is read"), response);
    }
    if let Ok(config) = protocol::decode_config(json) {
        protocol::decode_config(&inner(&protocol::encode_config(&config))).expect("what was written is read");
    }
}
