//! PAX extended header records (POSIX pax, "length key=value\n").

use baleen_store::Timestamp;

use super::sparse::{self, Sparse};
use super::{Segment, TarProblem};

/// The records of one extended header; of repeated keys the last counts.
#[derive(Debug, Default)]
pub(super) struct Records {
    records: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU sparse 0.0: `offset` and `numbytes` alternate, one record each.
    sparse_numbers: Vec<u64>,
}

impl Records {
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarProblem> {
        let mut found = std::collections::BTreeMap::new();
        let mut sparse_numbers = Vec::new();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarProblem::Pax)?;
            bytes = rest;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let expected: &[u8] = match sparse_numbers.len() % 2 {
                        0 => b"GNU.sparse.offset",
                        _ => b"GNU.sparse.numbytes",
                    };
                    if key != expected {
                        return Err(TarProblem::SparseMap);
                    }
                    sparse_numbers.push(sparse::map_number(value)?);
                }
                _ => {
                    found.insert(key.to_vec(), value.to_vec());
                }
            }
        }
        Ok(Self { records: found.into_iter().collect(), sparse_numbers })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.records.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// The value of `key`, if it is there and not empty.
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let at = self.records.binary_search_by(|(known, _)| known.as_slice().cmp(key)).ok()?;
        Some(self.records[at].1.as_slice()).filter(|value| !value.is_empty())
    }

    /// What the records say of a sparse file, if they describe one that we know.
    pub(super) fn sparse(&self) -> Result<Option<Sparse>, TarProblem> {
        let version = (self.get(b"GNU.sparse.major"), self.get(b"GNU.sparse.minor"));
        let map = self.get(b"GNU.sparse.map");
        let in_data = match version {
            (Some(b"0"), Some(b"0" | b"1")) => false,
            (Some(b"1"), Some(b"0")) => true,
            // Go reads such a file as if it were not sparse; its contents would not be what the archive means.
            (Some(_), _) | (_, Some(_)) => return Err(TarProblem::SparseMap),
            (None, None) if map.is_some() || !self.sparse_numbers.is_empty() => false,
            (None, None) => return Ok(None),
        };
        let size = self.get(b"GNU.sparse.size").or_else(|| self.get(b"GNU.sparse.realsize"));
        let size_bytes = size.map(sparse::map_number).transpose()?;
        let path = self.get(b"GNU.sparse.name").map(<[u8]>::to_vec);
        let segments = if in_data { None } else { Some(self.segments(map)?) };
        Ok(Some(Sparse { path, size_bytes, segments }))
    }

    /// The map of version 0.0, as records, or 0.1, as one text.
    fn segments(&self, map: Option<&[u8]>) -> Result<Vec<Segment>, TarProblem> {
        let count = self.get(b"GNU.sparse.numblocks").map(sparse::map_number).transpose()?;
        let count = count.ok_or(TarProblem::SparseMap)?;
        let numbers = match map {
            _ if !self.sparse_numbers.is_empty() => self.sparse_numbers.clone(),
            Some(text) => text.split(|byte| *byte == b',').map(sparse::map_number).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        if count.checked_mul(2) != Some(numbers.len() as u64) {
            return Err(TarProblem::SparseMap);
        }
        sparse::pairs(&numbers)
    }
}

/// The first record of `bytes`: key, value, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // A record of 1 MiB has seven digits.
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    if length < 5 || length > bytes.len() || length < space + 2 {
        return None;
    }
    let (line, rest) = bytes.split_at(length);
    let line = line[space + 1..].strip_suffix(b"\n")?;
    let equals = line.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&line[..equals], &line[equals + 1..]);
    let is_text = matches!(key, b"path" | b"linkpath" | b"uname" | b"gname");
    let has_nul = if is_text { value } else { key }.contains(&0);
    (!key.is_empty() && !has_nul).then_some((key, value, rest))
}

/// A decimal integer with an optional sign.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first()? {
        (b'-', digits) => (true, digits),
        (b'+', digits) => (false, digits),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0i64, |value, digit| {
        let digit = i64::from(digit.is_ascii_digit().then(|| digit - b'0')?);
        let value = value.checked_mul(10)?;
        if negative { value.checked_sub(digit) } else { value.checked_add(digit) }
    })
}

/// Seconds since 1970 with an optional fraction; digits past the nanoseconds are cut off.
pub(super) fn time(text: &[u8]) -> Option<Timestamp> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    if nanoseconds > 0 && whole.starts_with(b"-") {
        // -1.25 s is 0.75 s after -2 s.
        return Some(Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds });
    }
    Some(Timestamp { seconds, nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_record_is_an_error_never_skipped() {
        for text in [
            &b"9 a=b\n"[..],
            b"6 a=b",
            b"7 a=b\n6 a=b\n",
            b"6 =bc\n",
            b"6 abc\n",
            b"-6 a=b\n",
            b"a=b\n",
            b"99999999999999999999 a=b\n",
            b"3 \n",
            b"12 path=a\0bc\n",
            b"8 a\0b=c\n",
            b" 6 a=b\n",
        ] {
            assert_eq!(Records::parse(text).err(), Some(TarProblem::Pax), "{text:?}");
        }
        let good = Records::parse(b"6 a=b\n8 k=a=b\n6 a=c\n").unwrap();
        assert_eq!(good.get(b"a"), Some(&b"c"[..]), "the last of two counts");
        assert_eq!(good.get(b"k"), Some(&b"a=b"[..]));
    }

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1350244992.023960108", Some((1_350_244_992, 23_960_108))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-1", Some((-1, 0))),
            ("-0.5", Some((-1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.x", None),
            (".5", None),
            ("", None),
            ("9223372036854775808", None),
        ] {
            let found = time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(found, expected, "{text}");
        }
    }
}
