//! The 512-byte header, in each of its dialects.

use std::collections::BTreeMap;

use baleen_store::Timestamp;

use super::pax::Records;
use super::{BLOCK_BYTES, Entry, EntryKind, TarProblem};
use crate::limits::XATTR_BYTES_MAX;

type Block = [u8; BLOCK_BYTES];

/// A header, and what PAX records changed in it.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) flag: u8,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size_bytes: u64,
    pub(super) is_gnu: bool,
    mode: i64,
    uid: i64,
    gid: i64,
    modified: Timestamp,
    device: (i64, i64),
}

impl Header {
    pub(super) fn read(block: &Block) -> Result<Self, TarProblem> {
        verify_checksum(block)?;
        let is_ustar = &block[257..263] == b"ustar\0";
        let is_star = is_ustar && &block[508..512] == b"tar\0";
        let is_gnu = &block[257..265] == b"ustar  \0";
        let mut path = text(&block[0..100]).to_vec();
        let mut device = (0, 0);
        if is_ustar || is_gnu {
            device = (integer(&block[329..337], "devmajor")?, integer(&block[337..345], "devminor")?);
            let prefix = match (is_star, is_gnu) {
                (true, _) => text(&block[345..476]),
                (_, false) => text(&block[345..500]),
                // Early archives of Go have a ustar prefix under GNU's magic, where GNU has two times.
                (_, true) if gnu_times_are_a_prefix(block) => text(&block[345..500]),
                (_, true) => &[],
            };
            if !prefix.is_empty() {
                path = [prefix, b"/", &path].concat();
            }
        }
        Ok(Self {
            flag: block[156],
            path,
            link: text(&block[157..257]).to_vec(),
            size_bytes: number(&block[124..136], "size")?,
            is_gnu,
            mode: integer(&block[100..108], "mode")?,
            uid: integer(&block[108..116], "uid")?,
            gid: integer(&block[116..124], "gid")?,
            modified: Timestamp { seconds: integer(&block[136..148], "mtime")?, nanoseconds: 0 },
            device,
        })
    }

    /// Lets PAX records take the place of what the header says (T2).
    pub(super) fn merge(
        &mut self,
        records: &Records,
        xattrs: &mut BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<(), TarProblem> {
        let mut xattr_bytes = 0;
        for (key, value) in records.iter() {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                xattr_bytes += name.len() + value.len();
                if xattr_bytes > XATTR_BYTES_MAX {
                    return Err(TarProblem::ExtensionTooLong);
                }
                xattrs.insert(name.to_vec(), value.to_vec());
                continue;
            }
            // An empty value takes a record back: the header counts.
            if value.is_empty() {
                continue;
            }
            match key {
                b"path" => self.path = value.to_vec(),
                b"linkpath" => self.link = value.to_vec(),
                b"size" => {
                    let size = super::pax::decimal(value).ok_or(TarProblem::Number("PAX size"))?;
                    self.size_bytes = u64::try_from(size).map_err(|_| TarProblem::Number("PAX size"))?;
                }
                b"uid" => self.uid = super::pax::decimal(value).ok_or(TarProblem::Number("PAX uid"))?,
                b"gid" => self.gid = super::pax::decimal(value).ok_or(TarProblem::Number("PAX gid"))?,
                b"mtime" => self.modified = super::pax::time(value).ok_or(TarProblem::Number("PAX mtime"))?,
                b"atime" | b"ctime" => {
                    super::pax::time(value).ok_or(TarProblem::Number("PAX atime or ctime"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether data follow: types 1 to 6 have none, whatever their size says (T2).
    pub(super) fn has_data(&self) -> bool {
        !(b'1'..=b'6').contains(&self.flag)
    }

    pub(super) fn kind(&self) -> EntryKind {
        match self.flag {
            // The oldest archives mark a directory by its name alone.
            0 if self.path.ends_with(b"/") => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'D' => EntryKind::DumpDirectory,
            b'V' => EntryKind::VolumeLabel,
            other => EntryKind::Other(other),
        }
    }

    pub(super) fn entry(
        &self,
        kind: EntryKind,
        data_bytes: u64,
        xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Entry, TarProblem> {
        let id = |value: i64, field| match u32::try_from(value) {
            // The last number means "unchanged" to chown(2).
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(TarProblem::Number(field)),
        };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => {
                // What dev_t of Linux can hold.
                let in_range = (0..1 << 12).contains(&self.device.0) && (0..1 << 20).contains(&self.device.1);
                if !in_range {
                    return Err(TarProblem::Number("device number"));
                }
                (self.device.0 as u32, self.device.1 as u32)
            }
            _ => (0, 0),
        };
        Ok(Entry {
            path: self.path.clone(),
            kind,
            link: self.link.clone(),
            mode: (self.mode & 0o7777) as u32,
            uid: id(self.uid, "uid")?,
            gid: id(self.gid, "gid")?,
            modified: self.modified,
            device,
            size_bytes: data_bytes,
            data_bytes,
            segments: None,
            xattrs: xattrs.into_iter().collect(),
        })
    }
}

/// A text field: up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A number that cannot be negative.
pub(super) fn number(field: &[u8], name: &'static str) -> Result<u64, TarProblem> {
    integer(field, name).and_then(|value| u64::try_from(value).map_err(|_| TarProblem::Number(name)))
}

/// A numeric field: octal digits between blanks and NULs, or base-256 if its first bit is set. Blank is 0.
pub(super) fn integer(field: &[u8], name: &'static str) -> Result<i64, TarProblem> {
    let wrong = TarProblem::Number(name);
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field).ok_or(wrong),
        _ => octal(field).and_then(|value| i64::try_from(value).ok()).ok_or(wrong),
    }
}

fn octal(field: &[u8]) -> Option<u64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let digits = text(field.get(start..end)?);
    digits.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big-endian, without the first bit; the second is the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let flip = if negative { 0xff } else { 0 };
    let start = u64::from((first ^ flip) & 0x7f);
    let magnitude = rest.iter().try_fold(start, |value, byte| match value >> 56 {
        0 => Some(value << 8 | u64::from(byte ^ flip)),
        _ => None,
    })?;
    let magnitude = i64::try_from(magnitude).ok()?;
    Some(if negative { !magnitude } else { magnitude })
}

/// The sum of all bytes, those of the checksum itself as blanks; some old writers added signed bytes.
fn verify_checksum(block: &Block) -> Result<(), TarProblem> {
    let stored = octal(&block[148..156]).and_then(|value| i64::try_from(value).ok()).ok_or(TarProblem::Checksum)?;
    let (mut unsigned, mut signed) = (0i64, 0i64);
    for (at, byte) in block.iter().enumerate() {
        let byte = if (148..156).contains(&at) { b' ' } else { *byte };
        unsigned += i64::from(byte);
        signed += i64::from(byte as i8);
    }
    if stored == unsigned || stored == signed { Ok(()) } else { Err(TarProblem::Checksum) }
}

fn gnu_times_are_a_prefix(block: &Block) -> bool {
    let unreadable = |field: &[u8]| field.first().is_some_and(|first| *first != 0) && integer(field, "").is_err();
    (unreadable(&block[345..357]) || unreadable(&block[357..369])) && text(&block[345..500]).is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"12\x0034567", Some(0o12)),
            (b"00000008", None),
            (b"-0000001", None),
            (b"\x80\0\0\0\0\0\0\x2a", Some(42)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x81\0\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(integer(field, "f").ok(), value, "{field:?}");
        }
    }
}
