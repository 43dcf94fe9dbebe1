//! Reads a log back: from its oldest rotated file to its newest record.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{LINE_BYTES_MAX, LogStream, rotated_path};
use crate::clock;

/// One read.
const BUFFER_BYTES: usize = 16 << 10;
/// Rotated files that are looked for.
const FILES_MAX: u32 = 1000;

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where the program wrote it.
    pub stream: LogStream,
    /// What it wrote; without a newline at its end the line goes on in the next record.
    pub text: String,
    /// When, as in the file.
    pub time: String,
    /// When, nanoseconds since the epoch.
    pub time_nanoseconds: i128,
}

impl LogEntry {
    /// The time as `docker logs --timestamps` shows it: 30 characters.
    #[must_use]
    pub fn timestamp(&self) -> String {
        clock::rfc3339(self.time_nanoseconds)
    }
}

/// Which records are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Only the last so many; `None`: all.
    pub tail: Option<usize>,
    /// Not before this time, nanoseconds since the epoch.
    pub since_nanoseconds: Option<i128>,
    /// Not after this time, nanoseconds since the epoch.
    pub until_nanoseconds: Option<i128>,
    /// Standard output too.
    pub stdout: bool,
    /// Standard error too.
    pub stderr: bool,
}

impl LogQuery {
    /// Whether a record is wanted (`tail` aside).
    #[must_use]
    pub fn wants(&self, entry: &LogEntry) -> bool {
        let stream = match entry.stream {
            LogStream::Stdout => self.stdout,
            LogStream::Stderr => self.stderr,
        };
        let time = entry.time_nanoseconds;
        stream
            && self.since_nanoseconds.is_none_or(|since| time >= since)
            && self.until_nanoseconds.is_none_or(|until| time <= until)
    }
}

/// The wanted records of a log and its rotated files, and a reader that stands at the end, to follow it. Memory does not grow
/// with the log, nor with `tail`.
/// # Errors
/// `NotFound` if there is no log; what the file system reports. A damaged record is no error (L3).
pub fn read_logs(
    path: &Path,
    max_files: u32,
    query: &LogQuery,
    mut each: impl FnMut(LogEntry) -> io::Result<()>,
) -> io::Result<LogReader> {
    let mut reader = LogReader::open(path, max_files)?;
    let mut to_skip = 0;
    match query.tail {
        None => {}
        // Every record counts: their number is that of the newlines, which are found from the end.
        Some(tail)
            if query.stdout
                && query.stderr
                && query.since_nanoseconds.is_none()
                && query.until_nanoseconds.is_none() =>
        {
            reader.seek_to_last(tail)?;
        }
        // Counted in a first pass over the same files, rather than kept.
        Some(tail) => {
            let mut counting = reader.reopened()?;
            let mut wanted = 0;
            while let Some(entry) = counting.next_entry()? {
                wanted += usize::from(query.wants(&entry));
            }
            to_skip = wanted.saturating_sub(tail);
        }
    }
    while let Some(entry) = reader.next_entry()? {
        if !query.wants(&entry) {
            continue;
        }
        match to_skip.checked_sub(1) {
            Some(left) => to_skip = left,
            None => each(entry)?,
        }
    }
    Ok(reader)
}

/// Reads records one after the other, through rotated files, and past the present end when more have come.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    /// Files that come after the one being read, the next one last.
    later: Vec<File>,
    file: BufReader<File>,
    line: Vec<u8>,
    /// The line is longer than any record: skip to its end.
    overlong: bool,
    skipped: u64,
}

impl LogReader {
    /// A reader that stands before the oldest record.
    /// # Errors
    /// `NotFound` if there is no log.
    pub fn open(path: &Path, max_files: u32) -> io::Result<Self> {
        // Newest first, and by descriptor: a rotation in between makes a file appear twice at worst, never vanish.
        let mut files = vec![File::open(path)?];
        for number in 1..max_files.clamp(1, FILES_MAX) {
            match File::open(rotated_path(path, number)) {
                Ok(file) => files.push(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        Self::over(path, files)
    }

    /// A reader of these files, given newest first.
    fn over(path: &Path, mut later: Vec<File>) -> io::Result<Self> {
        let first = later.pop().ok_or(io::ErrorKind::NotFound)?;
        let file = BufReader::with_capacity(BUFFER_BYTES, first);
        Ok(Self { path: path.to_owned(), later, file, line: Vec::new(), overlong: false, skipped: 0 })
    }

    /// Another reader of the very same files, at their beginning.
    fn reopened(&self) -> io::Result<Self> {
        let again = |file: &File| File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let files = self.later.iter().chain([self.file.get_ref()]).map(again).collect::<io::Result<Vec<_>>>()?;
        Self::over(&self.path, files)
    }

    /// Goes to the first of the last `count` lines. Only for a reader that has read nothing yet.
    fn seek_to_last(&mut self, count: usize) -> io::Result<()> {
        let mut missing = count;
        let mut newest_first = std::mem::take(&mut self.later);
        newest_first.push(self.file.get_ref().try_clone()?);
        for (index, file) in newest_first.iter().enumerate() {
            let (start, found) = last_lines(file, missing)?;
            missing -= found;
            if missing == 0 || index + 1 == newest_first.len() {
                let mut file = newest_first.swap_remove(index);
                newest_first.truncate(index);
                io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
                self.file = BufReader::with_capacity(BUFFER_BYTES, file);
                break;
            }
        }
        self.later = newest_first;
        Ok(())
    }

    /// Lines so far that were no records.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next record, or `None` at the present end: ask again when the file has grown or been rotated.
    /// # Errors
    /// What the file system reports.
    pub fn next_entry(&mut self) -> io::Result<Option<LogEntry>> {
        loop {
            if self.read_line()? {
                let line = std::mem::take(&mut self.line);
                let whole = !std::mem::take(&mut self.overlong);
                match Some(&line).filter(|_| whole).and_then(|line| parse(line)) {
                    Some(entry) => return Ok(Some(entry)),
                    None => self.skipped += u64::from(line != b"\n"),
                }
            } else if !self.next_file()? {
                return Ok(None);
            }
        }
    }

    /// Reads up to the next newline; `false` at the end of the file, with the unfinished line kept for the next call.
    fn read_line(&mut self) -> io::Result<bool> {
        loop {
            let available = match self.file.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                return Ok(false);
            }
            let newline = available.iter().position(|&byte| byte == b'\n');
            let length = newline.map_or(available.len(), |position| position + 1);
            if self.line.len() + length > LINE_BYTES_MAX {
                self.overlong = true;
                self.line.clear();
            }
            if !self.overlong {
                self.line.extend_from_slice(&available[..length]);
            }
            self.file.consume(length);
            if newline.is_some() {
                return Ok(true);
            }
        }
    }

    /// Goes on to the file that follows; `false` if there is none yet.
    fn next_file(&mut self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        if let Some(next) = self.later.pop() {
            self.switch(next);
            return Ok(true);
        }
        // The current file: it may have been rotated away, or emptied in place.
        let read = self.file.get_ref().metadata()?;
        let position = io::Seek::stream_position(&mut self.file)?;
        if read.len() < position {
            io::Seek::seek(&mut self.file, io::SeekFrom::Start(0))?;
            self.line.clear();
            return Ok(read.len() > 0);
        }
        match std::fs::metadata(&self.path) {
            Ok(now) if (now.dev(), now.ino()) != (read.dev(), read.ino()) => {
                // The writer renames a file before it begins the next: once there is a next, this one is complete. It may have
                // grown between our last read and the renaming.
                if read.len() > position {
                    return Ok(true);
                }
                let next = File::open(&self.path)?;
                self.switch(next);
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn switch(&mut self, next: File) {
        if !self.line.is_empty() || self.overlong {
            // A file that ends without a newline: its last line was torn.
            self.skipped += 1;
            self.line.clear();
            self.overlong = false;
        }
        self.file = BufReader::with_capacity(BUFFER_BYTES, next);
    }
}

/// Where the last `count` lines of a file begin, and how many lines there are from there to its end.
fn last_lines(file: &File, count: usize) -> io::Result<(u64, usize)> {
    let mut end = file.metadata()?.len();
    let mut window = vec![0; BUFFER_BYTES];
    let mut found = 0;
    // A newline ends a line; the line after the one before the first wanted is where to begin.
    while end > 0 {
        let length = end.min(BUFFER_BYTES as u64);
        let start = end - length;
        let part = &mut window[..usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(part, start)?;
        for (position, _) in part.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            if found == count {
                return Ok((start + position as u64 + 1, count));
            }
            found += 1;
        }
        end = start;
    }
    Ok((0, found))
}

/// The record that a line holds, if it is one.
pub(crate) fn parse(line: &[u8]) -> Option<LogEntry> {
    #[derive(Deserialize)]
    struct Record {
        log: String,
        stream: String,
        time: String,
    }
    // A run of NUL at the head of a line is what a power cut left before the record that follows it.
    let start = line.iter().position(|&byte| byte != 0)?;
    let record: Record = serde_json::from_slice(&line[start..]).ok()?;
    let stream = match record.stream.as_str() {
        "stdout" => LogStream::Stdout,
        "stderr" => LogStream::Stderr,
        _ => return None,
    };
    let time_nanoseconds = clock::parse_rfc3339(&record.time)?;
    Some(LogEntry { stream, text: record.log, time: record.time, time_nanoseconds })
}

#[cfg(test)]
mod tests {
    use super::super::LogWriter;
    use super::*;
    use crate::client::LogConfig;
    use std::fs;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("baleen-logread-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn all() -> LogQuery {
        LogQuery { stdout: true, stderr: true, ..LogQuery::default() }
    }

    fn texts(path: &Path, files: u32, query: &LogQuery) -> (Vec<String>, u64) {
        let mut texts = Vec::new();
        let reader = read_logs(path, files, query, |entry| {
            texts.push(entry.text);
            Ok(())
        })
        .unwrap();
        (texts, reader.skipped())
    }

    fn line(text: &str, stream: &str, second: u32) -> String {
        format!("{{\"log\":\"{text}\\n\",\"stream\":\"{stream}\",\"time\":\"2026-01-01T00:00:{second:02}.5Z\"}}\n")
    }

    #[test]
    fn damage_is_skipped_and_counted_and_never_ends_the_reading() {
        let dir = Dir::new("damage");
        let path = dir.0.join("log");
        let parts: Vec<Vec<u8>> = vec![
            line("a", "stdout", 1).into(),
            b"not json\n".to_vec(),
            vec![0; 70_000],
            line("b", "stderr", 2).into(),
            vec![b'x'; 300_000],
            b"\n".to_vec(),
            b"{\"log\":\"c\"}\n".to_vec(),
            line("d", "stdout", 3).into(),
            b"{\"log\":\"torn".to_vec(),
        ];
        fs::write(&path, parts.concat()).unwrap();
        let (texts, skipped) = texts(&path, 1, &all());
        assert_eq!(texts, ["a\n", "b\n", "d\n"]);
        assert_eq!(skipped, 3);
    }

    #[test]
    fn tail_since_until_and_streams_choose() {
        let dir = Dir::new("choose");
        let path = dir.0.join("log");
        let content: String = (0..10)
            .map(|second| line(&second.to_string(), if second % 2 == 0 { "stdout" } else { "stderr" }, second))
            .collect();
        fs::write(&path, content).unwrap();
        assert_eq!(texts(&path, 1, &LogQuery { tail: Some(2), ..all() }).0, ["8\n", "9\n"]);
        assert_eq!(texts(&path, 1, &LogQuery { tail: Some(0), ..all() }).0, [""; 0]);
        assert_eq!(texts(&path, 1, &LogQuery { stderr: false, tail: Some(1), ..all() }).0, ["8\n"]);
        let at = |second: u32| clock::parse_rfc3339(&format!("2026-01-01T00:00:{second:02}.5Z"));
        let middle = LogQuery { since_nanoseconds: at(4), until_nanoseconds: at(6), ..all() };
        assert_eq!(texts(&path, 1, &middle).0, ["4\n", "5\n", "6\n"]);
    }

    #[test]
    fn the_last_lines_are_found_from_the_end_through_all_files_and_followed_from_there() {
        let dir = Dir::new("tail");
        let path = dir.0.join("log");
        let content = |range: std::ops::Range<u32>| {
            range.map(|n| line(&format!("{n}{}", "x".repeat(3_000)), "stdout", n % 60)).collect::<String>()
        };
        fs::write(rotated_path(&path, 2), content(0..10)).unwrap();
        fs::write(rotated_path(&path, 1), content(10..20)).unwrap();
        fs::write(&path, content(20..30)).unwrap();
        for tail in 0..=35 {
            let numbers: Vec<u32> = texts(&path, 3, &LogQuery { tail: Some(tail), ..all() })
                .0
                .iter()
                .map(|text| text.trim_end().trim_end_matches('x').parse().unwrap())
                .collect();
            let first = 30_u32.saturating_sub(u32::try_from(tail).unwrap());
            assert_eq!(numbers, (first..30).collect::<Vec<_>>(), "tail {tail}");
        }
        let mut reader = read_logs(&path, 3, &LogQuery { tail: Some(0), ..all() }, |_| Ok(())).unwrap();
        assert_eq!(reader.next_entry().unwrap(), None);
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, line("new", "stderr", 1).as_bytes()).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().text, "new\n");
    }

    #[test]
    fn a_follower_sees_every_line_through_rotations() {
        let dir = Dir::new("follow");
        let path = dir.0.join("log");
        let config = LogConfig { path: path.clone(), max_bytes: Some(400), max_files: 2 };
        let mut writer = LogWriter::open(Some(&config)).unwrap();
        writer.write(LogStream::Stdout, b"0\n");
        let mut reader = LogReader::open(&path, 2).unwrap();
        let mut seen = Vec::new();
        for number in 1..=60 {
            while let Some(entry) = reader.next_entry().unwrap() {
                seen.push(entry.text);
            }
            writer.write(LogStream::Stdout, format!("{number}\n").as_bytes());
        }
        while let Some(entry) = reader.next_entry().unwrap() {
            seen.push(entry.text);
        }
        let wanted: Vec<String> = (0..=60).map(|number| format!("{number}\n")).collect();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn rotated_files_are_read_oldest_first() {
        let dir = Dir::new("order");
        let path = dir.0.join("log");
        fs::write(rotated_path(&path, 2), line("a", "stdout", 1)).unwrap();
        fs::write(rotated_path(&path, 1), line("b", "stdout", 2)).unwrap();
        fs::write(&path, line("c", "stdout", 3)).unwrap();
        assert_eq!(texts(&path, 3, &all()).0, ["a\n", "b\n", "c\n"]);
        assert_eq!(texts(&path, 1, &all()).0, ["c\n"]);
    }
}
