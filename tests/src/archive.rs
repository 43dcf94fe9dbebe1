//! Writes tar archives byte by byte: ordinary ones, and those that no ordinary program writes.
//!
//! POSIX ustar headers, PAX records where a value does not fit or cannot be said otherwise.

/// The kind of an entry, by its type flag (POSIX pax, ustar Interchange Format).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An ordinary file.
    File = b'0',
    /// Another name of an earlier file.
    HardLink = b'1',
    /// A symbolic link.
    SymbolicLink = b'2',
    /// A character device.
    CharacterDevice = b'3',
    /// A block device.
    BlockDevice = b'4',
    /// A folder.
    Folder = b'5',
    /// A named pipe.
    Pipe = b'6',
}

/// One entry. Public fields: a test says exactly what it wants, sensible or not.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its name, as it will stand in the archive.
    pub name: String,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970; a fraction makes a PAX record.
    pub mtime_seconds: u64,
    /// Nanoseconds of the modification time.
    pub mtime_nanoseconds: u32,
    /// Target of a link.
    pub link: String,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Content of a file.
    pub content: Vec<u8>,
    /// Extended attributes, written as `SCHILY.xattr.` records.
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Further PAX records.
    pub pax: Vec<(String, Vec<u8>)>,
    /// Size in the header if it is to differ from the content's.
    pub header_size_bytes: Option<u64>,
}

impl Entry {
    fn new(kind: Kind, name: &str, mode: u32) -> Self {
        Self {
            kind,
            name: name.to_owned(),
            mode,
            uid: 0,
            gid: 0,
            mtime_seconds: 1_700_000_000,
            mtime_nanoseconds: 0,
            link: String::new(),
            device: (0, 0),
            content: Vec::new(),
            xattrs: Vec::new(),
            pax: Vec::new(),
            header_size_bytes: None,
        }
    }

    /// A folder with mode 0755.
    pub fn folder(name: &str) -> Self {
        Self::new(Kind::Folder, &format!("{}/", name.trim_end_matches('/')), 0o755)
    }

    /// A file with mode 0644.
    pub fn file(name: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into(), ..Self::new(Kind::File, name, 0o644) }
    }

    /// A symbolic link.
    pub fn symlink(name: &str, target: &str) -> Self {
        Self { link: target.to_owned(), ..Self::new(Kind::SymbolicLink, name, 0o777) }
    }

    /// A hard link.
    pub fn hardlink(name: &str, target: &str) -> Self {
        Self { link: target.to_owned(), ..Self::new(Kind::HardLink, name, 0o644) }
    }

    /// A character device.
    pub fn device(name: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(Kind::CharacterDevice, name, 0o600) }
    }

    /// A named pipe.
    pub fn pipe(name: &str) -> Self {
        Self::new(Kind::Pipe, name, 0o600)
    }

    /// A whiteout of `name` in its folder (OCI image-spec, Whiteouts).
    pub fn whiteout(name: &str) -> Self {
        let (folder, file) = name.rsplit_once('/').map_or((String::new(), name), |(a, b)| (format!("{a}/"), b));
        Self::file(&format!("{folder}.wh.{file}"), "")
    }

    /// The marker that hides what lower layers have in `folder`.
    pub fn opaque(folder: &str) -> Self {
        Self::file(&format!("{folder}/.wh..wh..opq"), "")
    }

    /// This with other permission bits.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// This with another owner.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// This with another modification time.
    pub fn mtime(mut self, seconds: u64, nanoseconds: u32) -> Self {
        (self.mtime_seconds, self.mtime_nanoseconds) = (seconds, nanoseconds);
        self
    }

    /// This with one more extended attribute.
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }

    /// This with one more PAX record.
    pub fn pax(mut self, key: &str, value: impl Into<Vec<u8>>) -> Self {
        self.pax.push((key.to_owned(), value.into()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut records = self.pax.clone();
        let size_bytes = self.header_size_bytes.unwrap_or(self.content.len() as u64);
        if self.name.len() > 100 {
            records.push(("path".to_owned(), self.name.clone().into_bytes()));
        }
        if self.link.len() > 100 {
            records.push(("linkpath".to_owned(), self.link.clone().into_bytes()));
        }
        if self.mtime_nanoseconds != 0 {
            let text = format!("{}.{:09}", self.mtime_seconds, self.mtime_nanoseconds);
            records.push(("mtime".to_owned(), text.into_bytes()));
        }
        for (name, value) in [("uid", self.uid), ("gid", self.gid)] {
            if value > 0o7_777_777 {
                records.push((name.to_owned(), value.to_string().into_bytes()));
            }
        }
        if size_bytes > 0o77_777_777_777 {
            records.push(("size".to_owned(), size_bytes.to_string().into_bytes()));
        }
        for (name, value) in &self.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if !records.is_empty() {
            let mut body = Vec::new();
            for (key, value) in &records {
                push_record(&mut body, key, value);
            }
            let header = header(&Entry::new(Kind::File, "PaxHeaders/entry", 0o644), b'x', body.len() as u64);
            out.extend_from_slice(&header);
            out.extend_from_slice(&body);
            pad(out);
        }
        out.extend_from_slice(&header(self, self.kind as u8, size_bytes));
        out.extend_from_slice(&self.content);
        pad(out);
    }
}

/// The archive of these entries, with the two zero blocks at its end.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write(&mut out);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// `security.capability` as Linux stores it (version 2): the permitted and effective capabilities of a program.
pub fn file_capability(permitted: u32) -> Vec<u8> {
    // linux/capability.h: VFS_CAP_REVISION_2 with the effective flag, then {permitted, inheritable} for each half.
    let mut value = Vec::new();
    for word in [0x0200_0001, permitted, 0, 0, 0] {
        value.extend_from_slice(&u32::to_le_bytes(word));
    }
    value
}

fn push_record(body: &mut Vec<u8>, key: &str, value: &[u8]) {
    // A record's length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    body.extend_from_slice(format!("{length} {key}=").as_bytes());
    body.extend_from_slice(value);
    body.push(b'\n');
}

fn header(entry: &Entry, type_flag: u8, size_bytes: u64) -> [u8; 512] {
    let mut block = [0_u8; 512];
    put(&mut block[0..100], entry.name.as_bytes());
    octal(&mut block[100..108], u64::from(entry.mode));
    octal(&mut block[108..116], u64::from(if entry.uid > 0o7_777_777 { 0 } else { entry.uid }));
    octal(&mut block[116..124], u64::from(if entry.gid > 0o7_777_777 { 0 } else { entry.gid }));
    octal(&mut block[124..136], if size_bytes > 0o77_777_777_777 { 0 } else { size_bytes });
    octal(&mut block[136..148], entry.mtime_seconds);
    block[156] = type_flag;
    put(&mut block[157..257], entry.link.as_bytes());
    put(&mut block[257..265], b"ustar\x0000");
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    put(&mut block[148..156], format!("{sum:06o}\0 ").as_bytes());
    block
}

fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn octal(field: &mut [u8], value: u64) {
    let text = format!("{value:0width$o}", width = field.len() - 1);
    put(field, text.as_bytes());
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(512), 0);
}
