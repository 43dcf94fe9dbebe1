//! Appends a program's output to its log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{LogStream, RECORD_TEXT_BYTES_MAX, rotated_path};
use crate::client::LogConfig;
use crate::clock;

/// How far each step back looks for the last newline.
const SCAN_BYTES: u64 = 64 << 10;

pub(crate) struct LogWriter {
    target: Option<Target>,
    pending: [Vec<u8>; 2],
    lost: u64,
}

struct Target {
    config: LogConfig,
    file: File,
    length: u64,
}

impl LogWriter {
    /// A writer for this log, cut to its last whole record (L1); `None` writes nothing.
    pub(crate) fn open(config: Option<&LogConfig>) -> Result<Self, (PathBuf, io::Error)> {
        let target = match config {
            Some(config) => Some(Target::open(config).map_err(|error| (config.path.clone(), error))?),
            None => None,
        };
        Ok(Self { target, pending: [Vec::new(), Vec::new()], lost: 0 })
    }

    /// Records that could not be written.
    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }

    /// Takes output of the program; whole lines are written at once.
    pub(crate) fn write(&mut self, stream: LogStream, bytes: &[u8]) {
        let Some(target) = &mut self.target else { return };
        let pending = &mut self.pending[stream as usize];
        let now = clock::now();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            pending.extend_from_slice(piece);
            while pending.len() > RECORD_TEXT_BYTES_MAX || pending.last() == Some(&b'\n') {
                let end = if pending.len() > RECORD_TEXT_BYTES_MAX {
                    whole_characters(&pending[..RECORD_TEXT_BYTES_MAX])
                } else {
                    pending.len()
                };
                if target.append(&record(stream, &pending[..end], now)).is_err() {
                    self.lost += 1;
                }
                pending.drain(..end);
            }
        }
    }

    /// Writes what has no newline yet: the program has ended.
    pub(crate) fn finish(&mut self) {
        let Some(target) = &mut self.target else { return };
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            let rest = std::mem::take(&mut self.pending[stream as usize]);
            if !rest.is_empty() && target.append(&record(stream, &rest, clock::now())).is_err() {
                self.lost += 1;
            }
        }
    }
}

impl Target {
    fn open(config: &LogConfig) -> io::Result<Self> {
        let file = open_file(&config.path)?;
        let length = last_record_end(&file)?;
        file.set_len(length)?;
        Ok(Self { config: config.clone(), file, length })
    }

    fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let length = record.len() as u64;
        if self.config.max_bytes.is_some_and(|limit| self.length > 0 && self.length + length > limit) {
            self.rotate()?;
        }
        match self.file.write_all(record) {
            Ok(()) => {
                self.length += length;
                Ok(())
            }
            Err(error) => {
                // Part of it may be there (L2). If this fails too, the next opening cuts it.
                let _ = self.file.set_len(self.length);
                Err(error)
            }
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.config.path;
        let kept = self.config.max_files.max(1);
        if kept == 1 {
            self.file.set_len(0)?;
        } else {
            for number in (0..kept - 1).rev() {
                match fs::rename(rotated_path(path, number), rotated_path(path, number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            self.file = open_file(path)?;
        }
        self.length = 0;
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Where the last record ends: just after the last newline.
fn last_record_end(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut window = vec![0; usize::try_from(SCAN_BYTES).unwrap_or(0)];
    while end > 0 {
        let start = end.saturating_sub(SCAN_BYTES);
        let part = &mut window[..usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(part, start)?;
        if let Some(position) = part.iter().rposition(|&byte| byte == b'\n') {
            return Ok(start + position as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// The length of `bytes` without a UTF-8 character that continues after it.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            0x80..=0xbf => continue,
            _ => 1,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

fn record(stream: LogStream, text: &[u8], now: i128) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let mut record = Vec::with_capacity(text.len() + 96);
    record.extend_from_slice(b"{\"log\":");
    // A string always serialises; it is the writer that could fail, and this one is memory.
    let _ = serde_json::to_writer(&mut record, text.as_ref());
    let _ = writeln!(record, ",\"stream\":\"{}\",\"time\":\"{}\"}}", stream.name(), clock::rfc3339(now));
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("baleen-log-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn lines(path: &Path) -> Vec<serde_json::Value> {
        fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_torn_tail_and_a_run_of_nul_are_cut_when_the_log_is_opened() {
        let dir = Dir::new("torn");
        let path = dir.0.join("log");
        let whole = b"{\"log\":\"a\\n\",\"stream\":\"stdout\",\"time\":\"2026-01-01T00:00:00.000000000Z\"}\n";
        for tail in [b"{\"log\":\"b".to_vec(), vec![0; 200_000], [b"{\"lo".to_vec(), vec![0; 5000]].concat(), vec![]] {
            fs::write(&path, [whole.to_vec(), tail].concat()).unwrap();
            let mut log = LogWriter::open(Some(&LogConfig::new(path.clone()))).unwrap();
            log.write(LogStream::Stderr, b"next\n");
            let read = lines(&path);
            assert_eq!(read.len(), 2);
            assert_eq!((read[1]["log"].as_str(), read[1]["stream"].as_str()), (Some("next\n"), Some("stderr")));
        }
    }

    #[test]
    fn long_lines_are_split_at_characters_and_only_the_last_part_ends_the_line() {
        let dir = Dir::new("long");
        let path = dir.0.join("log");
        let mut log = LogWriter::open(Some(&LogConfig::new(path.clone()))).unwrap();
        let text = "xé".repeat(20_000) + "\n";
        for piece in text.as_bytes().chunks(1000) {
            log.write(LogStream::Stdout, piece);
        }
        log.write(LogStream::Stdout, b"no newline");
        log.finish();
        let read: Vec<String> = lines(&path).iter().map(|line| line["log"].as_str().unwrap().to_owned()).collect();
        assert_eq!(read.concat(), text + "no newline");
        assert!(read.iter().all(|part| part.len() <= RECORD_TEXT_BYTES_MAX));
        assert_eq!(read.iter().filter(|part| part.ends_with('\n')).count(), 1);
    }

    #[test]
    fn rotation_keeps_as_many_files_as_asked() {
        let dir = Dir::new("rotate");
        let path = dir.0.join("log");
        let config = LogConfig { path: path.clone(), max_bytes: Some(300), max_files: 3 };
        let mut log = LogWriter::open(Some(&config)).unwrap();
        for number in 0..20 {
            log.write(LogStream::Stdout, format!("line {number}\n").as_bytes());
        }
        assert!(rotated_path(&path, 2).exists() && !rotated_path(&path, 3).exists());
        assert_eq!(lines(&path).last().unwrap()["log"], "line 19\n");
        for number in 0..3 {
            assert!(fs::metadata(rotated_path(&path, number)).unwrap().len() <= 300);
        }
    }

    #[test]
    fn a_full_disk_loses_records_and_counts_them() {
        let mut log = LogWriter::open(None).unwrap();
        log.target = Some(Target {
            config: LogConfig::new("/dev/full".into()),
            file: OpenOptions::new().write(true).open("/dev/full").unwrap(),
            length: 0,
        });
        log.write(LogStream::Stdout, b"a\nb\n");
        assert_eq!(log.lost(), 2);
    }
}
