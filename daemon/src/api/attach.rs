//! Attached streams: Docker's frames around output, detach keys in input, and both directions at once.
//!
//! T1  Each piece of output is written whole before the next one is taken: a slow client slows the program, it costs no memory.
//! T2  The end of input is passed on; output goes on until the program ends.

use baleen_engine::{Attachment, OutputStream};
use bytes::{Bytes, BytesMut};

use super::ApiError;
use crate::http::{HijackInput, Hijacked};

/// Keys of a detach sequence.
const KEYS_MAX: usize = 16;

/// Puts Docker's header of eight bytes before a piece of output; 1 is standard output, 2 standard error, 3 the daemon's own.
pub(crate) fn frame(stream: u8, payload: &[u8]) -> Bytes {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut bytes = BytesMut::with_capacity(8 + payload.len());
    bytes.extend_from_slice(&[stream, 0, 0, 0]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes.freeze()
}

/// The keys that end an attachment of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// Reads `ctrl-p,ctrl-q`; none is that.
    ///
    /// # Errors
    /// 400 with the text.
    pub(crate) fn parse(text: Option<&str>) -> Result<DetachKeys, ApiError> {
        let text = text.unwrap_or("ctrl-p,ctrl-q");
        let key = |word: &str| match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
            (Some([letter @ b'a'..=b'z']), _) => Some(letter - b'a' + 1),
            (Some(b"@"), _) => Some(0),
            (Some(b"["), _) => Some(27),
            (Some(b"\\"), _) => Some(28),
            (Some(b"]"), _) => Some(29),
            (Some(b"^"), _) => Some(30),
            (Some(b"_"), _) => Some(31),
            (None, [byte]) if byte.is_ascii() => Some(*byte),
            _ => None,
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        match keys {
            Some(keys) if keys.len() <= KEYS_MAX => Ok(DetachKeys { keys, matched: 0 }),
            _ => Err(ApiError::invalid(format!("Invalid detach keys ({text}) provided"))),
        }
    }

    /// Keys as inspect shows them: their bytes in base64.
    pub(crate) fn shown(text: &str) -> String {
        use base64::Engine as _;
        let keys = DetachKeys::parse(Some(text)).map_or_else(|_| Vec::new(), |keys| keys.keys);
        base64::engine::general_purpose::STANDARD.encode(keys)
    }

    /// Takes input; gives what is passed on, and whether the keys have come. What may be the start of them is held back.
    fn filter(&mut self, input: &[u8]) -> (Bytes, bool) {
        let mut passed = BytesMut::with_capacity(input.len() + self.matched);
        for &byte in input {
            if byte != self.keys[self.matched] {
                passed.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (passed.freeze(), true);
                }
            } else {
                passed.extend_from_slice(&[byte]);
            }
        }
        (passed.freeze(), false)
    }
}

/// Moves bytes both ways until the program has ended, the keys have come or the client no longer takes output; whether it was the keys.
pub(crate) async fn pump(hijacked: Hijacked, attachment: Attachment, keys: Option<DetachKeys>) -> bool {
    let Hijacked { input, mut output } = hijacked;
    let Attachment { tty, input: stdin, output: mut frames } = attachment;
    let out = async {
        while let Some(piece) = frames.next().await {
            let written = match piece.stream {
                _ if tty => output.write(&piece.bytes).await,
                OutputStream::Stdout => output.write(&frame(1, &piece.bytes)).await,
                OutputStream::Stderr => output.write(&frame(2, &piece.bytes)).await,
            };
            if written.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = out => false,
        () = feed(input, stdin, keys) => true,
    }
}

/// Passes input on; returns only when the keys have come. The end of input is no end of the attachment (T2).
async fn feed(mut input: HijackInput, stdin: Option<baleen_engine::AttachmentInput>, mut keys: Option<DetachKeys>) {
    let Some(mut stdin) = stdin else {
        // Read all the same: a client that has gone must not leave bytes behind that nobody takes.
        while let Ok(Some(_)) = input.chunk().await {}
        return std::future::pending().await;
    };
    while let Ok(Some(bytes)) = input.chunk().await {
        let (bytes, detach) = match &mut keys {
            Some(keys) => keys.filter(&bytes),
            None => (bytes, false),
        };
        if !bytes.is_empty() && stdin.write(bytes).await.is_err() {
            // The program takes no more; what it still writes goes on.
            return std::future::pending().await;
        }
        if detach {
            return;
        }
    }
    stdin.close();
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_carry_stream_and_length() {
        assert_eq!(&frame(2, b"abc")[..], b"\x02\0\0\0\0\0\0\x03abc");
        assert_eq!(&frame(1, b"")[..], b"\x01\0\0\0\0\0\0\0");
    }

    #[test]
    fn detach_keys_are_found_across_pieces_and_all_else_is_passed_on() {
        let mut keys = DetachKeys::parse(None).expect("the default");
        assert_eq!(keys.filter(b"ab"), (Bytes::from_static(b"ab"), false));
        assert_eq!(keys.filter(b"c\x10"), (Bytes::from_static(b"c"), false));
        assert_eq!(keys.filter(b"x"), (Bytes::from_static(b"\x10x"), false));
        assert_eq!(keys.filter(b"\x10\x10"), (Bytes::from_static(b"\x10"), false));
        assert_eq!(keys.filter(b"\x11z"), (Bytes::new(), true));
    }

    #[test]
    fn detach_keys_are_read_or_refused_by_name() {
        assert_eq!(DetachKeys::parse(Some("ctrl-a,d")).expect("two keys").keys, [1, b'd']);
        assert_eq!(DetachKeys::parse(Some("ctrl-\\")).expect("one key").keys, [28]);
        for bad in ["ctrl-", "ctrl-1", "ab", "ctrl-p,", ",", "ctrl-P", "é"] {
            let error = DetachKeys::parse(Some(bad)).expect_err(bad);
            assert_eq!(error.message, format!("Invalid detach keys ({bad}) provided"));
        }
    }
}
