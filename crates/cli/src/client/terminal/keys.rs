//! The keys that detach: docker's default is ctrl-p ctrl-q.

use super::super::failure::Failure;

/// What is looked for among the keys that are typed.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    sequence: Vec<u8>,
    /// How much of it was typed last.
    typed: usize,
}

impl Keys {
    /// Reads `ctrl-p,ctrl-q`, `a`, `ctrl-@`. Empty are the default keys.
    ///
    /// # Errors
    /// `Refused` for anything else.
    pub(crate) fn parse(text: &str) -> Result<Keys, Failure> {
        let text = if text.is_empty() { "ctrl-p,ctrl-q" } else { text };
        let key = |word: &str| match (word.strip_prefix("ctrl-").map(str::as_bytes), word.as_bytes()) {
            (Some([letter @ b'a'..=b'z']), _) => Some(letter - b'a' + 1),
            (Some([letter @ (b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]), _) => Some(letter - b'@'),
            (None, [letter]) => Some(*letter),
            _ => None,
        };
        let sequence: Option<Vec<u8>> = text.split(',').map(key).collect();
        let sequence = sequence.ok_or_else(|| Failure::refused(format!("invalid detach keys ({text}) provided")))?;
        Ok(Keys { sequence, typed: 0 })
    }

    /// What of the typed bytes goes on to the container, and whether the sequence was completed. Its beginning is held back
    /// until it is clear that it is not the sequence.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(typed.len() + self.typed);
        for byte in typed {
            if *byte == self.sequence[self.typed] {
                self.typed += 1;
                if self.typed == self.sequence.len() {
                    self.typed = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend_from_slice(&self.sequence[..self.typed]);
            self.typed = 0;
            if *byte == self.sequence[0] {
                self.typed = 1;
            } else {
                passed.push(*byte);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_are_found_wherever_they_are_cut_and_all_else_passes() {
        let mut keys = Keys::parse("").expect("the default");
        assert_eq!(keys.pass(b"ab"), (b"ab".to_vec(), false));
        assert_eq!(keys.pass(b"c\x10"), (b"c".to_vec(), false));
        assert_eq!(keys.pass(b"d"), (b"\x10d".to_vec(), false));
        assert_eq!(keys.pass(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.pass(b"\x11x"), (Vec::new(), true));
        let mut one = Keys::parse("ctrl-a,x").expect("well formed");
        assert_eq!(one.pass(b"y\x01x"), (b"y".to_vec(), true));
        for wrong in ["ctrl-", "ctrl-A", "ab", "ctrl-p,", ","] {
            assert!(Keys::parse(wrong).is_err(), "{wrong}");
        }
    }
}
