//! DNS messages (RFC 1035): one question out, its answer in.
//!
//! D1  An answer counts only if its ID and its question are those that were asked.
//! D2  Parsing ends: a compressed name may only point backwards, and records, aliases and addresses are limited.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
}

impl RecordType {
    const fn code(self) -> u16 {
        match self {
            RecordType::A => 1,
            RecordType::Aaaa => 28,
        }
    }
}

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The addresses; none if the name exists without any.
    Addresses(Vec<IpAddr>),
    /// The name does not exist.
    NoSuchName,
    /// The answer did not fit; ask again over TCP.
    Truncated,
    /// The server cannot or will not answer.
    Failed,
}

/// Longest message that is read, in bytes: what a UDP answer without extensions may have, and room for servers that
/// send more; also the limit over TCP.
pub(crate) const MESSAGE_BYTES_MAX: usize = 4096;
const RECORDS_MAX: usize = 256;
const ALIASES_MAX: usize = 16;
const ADDRESSES_MAX: usize = 32;
const CLASS_IN: u16 = 1;
const TYPE_CNAME: u16 = 5;

/// The bytes of a question; `None` if `name` is no DNS name.
pub(crate) fn question(id: u16, name: &str, record_type: RecordType) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(64);
    message.extend(id.to_be_bytes());
    // Recursion desired; one question, nothing else.
    message.extend([0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend(label.as_bytes());
    }
    message.push(0);
    if message.len() > 12 + 255 {
        return None;
    }
    message.extend(record_type.code().to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    Some(message)
}

/// What `message` answers to the question `asked`; `None` if it is no answer to it (D1) or malformed.
pub fn parse_answer(message: &[u8], asked: &[u8]) -> Option<Answer> {
    if message.len() < 12 || asked.len() < 17 || message[..2] != asked[..2] {
        return None;
    }
    let mut reader = Reader { message, at: 2 };
    let flags = reader.u16()?;
    let (is_response, opcode, truncated, code) = (flags >> 15 == 1, flags >> 11 & 15, flags >> 9 & 1 == 1, flags & 15);
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.at = 12;
    if !is_response || opcode != 0 || questions != 1 {
        return None;
    }
    let mut own = Reader { message: asked, at: 12 };
    let (own_name, own_type, own_class) = (own.name()?, own.u16()?, own.u16()?);
    if reader.name()? != own_name || reader.u16()? != own_type || reader.u16()? != own_class {
        return None;
    }
    match code {
        0 if truncated => return Some(Answer::Truncated),
        0 => {}
        3 => return Some(Answer::NoSuchName),
        _ => return Some(Answer::Failed),
    }
    let records = records(&mut reader, usize::from(answers))?;
    Some(Answer::Addresses(follow(&records, own_name, own_type)))
}

struct Record<'a> {
    owner: Vec<u8>,
    record_type: u16,
    data: &'a [u8],
    alias: Vec<u8>,
}

fn records<'a>(reader: &mut Reader<'a>, count: usize) -> Option<Vec<Record<'a>>> {
    if count > RECORDS_MAX {
        return None;
    }
    let mut records = Vec::new();
    for _ in 0..count {
        let owner = reader.name()?;
        let (record_type, class) = (reader.u16()?, reader.u16()?);
        reader.take(4)?;
        let length = usize::from(reader.u16()?);
        let start = reader.at;
        let data = reader.take(length)?;
        let alias = match record_type {
            TYPE_CNAME => Reader { message: reader.message, at: start }.name()?,
            _ => Vec::new(),
        };
        if class == CLASS_IN {
            records.push(Record { owner, record_type, data, alias });
        }
    }
    Some(records)
}

/// The addresses of `name`, through its aliases, whatever their order in the message.
fn follow(records: &[Record<'_>], mut name: Vec<u8>, record_type: u16) -> Vec<IpAddr> {
    for _ in 0..ALIASES_MAX {
        let of_name = records.iter().filter(|record| record.owner == name);
        let found: Vec<IpAddr> = of_name
            .clone()
            .filter(|record| record.record_type == record_type)
            .filter_map(address)
            .take(ADDRESSES_MAX)
            .collect();
        if !found.is_empty() {
            return found;
        }
        match of_name.clone().find(|record| record.record_type == TYPE_CNAME) {
            Some(record) => name = record.alias.clone(),
            None => return found,
        }
    }
    Vec::new()
}

fn address(record: &Record<'_>) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(record.data) {
        return (record.record_type == RecordType::A.code()).then(|| Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(record.data).ok()?;
    (record.record_type == RecordType::Aaaa.code()).then(|| Ipv6Addr::from(octets).into())
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.message.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A name in wire form without compression, in lower case: labels with their lengths.
    fn name(&mut self) -> Option<Vec<u8>> {
        let mut name = Vec::new();
        let mut here = Reader { message: self.message, at: self.at };
        let mut end = None;
        // A pointer leads to a lower offset than any before it, so that the walk ends.
        let mut lowest = self.at;
        loop {
            let length = here.take(1)?[0];
            match length {
                0 => break,
                1..=63 => {
                    name.push(length);
                    name.extend(here.take(usize::from(length))?.iter().map(u8::to_ascii_lowercase));
                    if name.len() > 254 {
                        return None;
                    }
                }
                0xc0..=0xff => {
                    let low = here.take(1)?[0];
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    end.get_or_insert(here.at);
                    if target >= lowest {
                        return None;
                    }
                    lowest = target;
                    here.at = target;
                }
                _ => return None,
            }
        }
        self.at = end.unwrap_or(here.at);
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(asked: &[u8], code: u8, records: &[(&[u8], u16, &[u8])]) -> Vec<u8> {
        let mut message = asked.to_vec();
        (message[2], message[3], message[7]) = (0x81, 0x80 | code, records.len() as u8);
        for (owner, record_type, data) in records {
            message.extend_from_slice(owner);
            message.extend(record_type.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend_from_slice(data);
        }
        message
    }

    const TO_QUESTION: &[u8] = &[0xc0, 12];

    #[test]
    fn addresses_are_found_through_aliases_in_any_order() {
        let asked = question(7, "Registry.example", RecordType::A).unwrap();
        let direct = answer(&asked, 0, &[(TO_QUESTION, 1, &[10, 0, 0, 1]), (TO_QUESTION, 1, &[10, 0, 0, 2])]);
        let addresses =
            |list: &[[u8; 4]]| Some(Answer::Addresses(list.iter().map(|octets| IpAddr::from(*octets)).collect()));
        assert_eq!(parse_answer(&direct, &asked), addresses(&[[10, 0, 0, 1], [10, 0, 0, 2]]));
        let aliased = answer(&asked, 0, &[(b"\x03cdn\0", 1, &[10, 0, 0, 3]), (TO_QUESTION, 5, b"\x03CDN\0")]);
        assert_eq!(parse_answer(&aliased, &asked), addresses(&[[10, 0, 0, 3]]));
        let foreign = answer(&asked, 0, &[(b"\x05other\0", 1, &[10, 0, 0, 3])]);
        assert_eq!(parse_answer(&foreign, &asked), addresses(&[]));
        let looping = answer(&asked, 0, &[(TO_QUESTION, 5, TO_QUESTION)]);
        assert_eq!(parse_answer(&looping, &asked), addresses(&[]));
    }

    #[test]
    fn only_the_answer_to_the_question_counts() {
        let asked = question(7, "a.example", RecordType::Aaaa).unwrap();
        for other in [
            question(8, "a.example", RecordType::Aaaa),
            question(7, "b.example", RecordType::Aaaa),
            question(7, "a.example", RecordType::A),
        ] {
            assert_eq!(parse_answer(&answer(&other.unwrap(), 0, &[]), &asked), None);
        }
        assert_eq!(parse_answer(&asked, &asked), None, "a question is no answer");
        assert_eq!(parse_answer(&answer(&asked, 3, &[]), &asked), Some(Answer::NoSuchName));
        assert_eq!(parse_answer(&answer(&asked, 2, &[]), &asked), Some(Answer::Failed));
        let mut cut = answer(&asked, 0, &[]);
        cut[2] |= 2;
        assert_eq!(parse_answer(&cut, &asked), Some(Answer::Truncated));
    }

    #[test]
    fn malformed_messages_end_without_an_answer() {
        let asked = question(7, "a.example", RecordType::A).unwrap();
        let own_offset = u8::try_from(asked.len()).unwrap();
        let to_itself = answer(&asked, 0, &[(&[0xc0, own_offset], 1, &[1, 2, 3, 4])]);
        assert_eq!(parse_answer(&to_itself, &asked), None);
        let good = answer(&asked, 0, &[(TO_QUESTION, 1, &[1, 2, 3, 4])]);
        for length in 0..good.len() {
            assert_eq!(parse_answer(&good[..length], &asked), None, "{length}");
        }
        let mut counted = good.clone();
        counted[6] = 0xff;
        assert_eq!(parse_answer(&counted, &asked), None);
    }

    #[test]
    fn what_is_no_name_is_not_asked_for() {
        for name in ["", ".", "a..b", &"a".repeat(64), &"a.".repeat(128)] {
            assert_eq!(question(1, name, RecordType::A), None, "{name}");
        }
    }
}
