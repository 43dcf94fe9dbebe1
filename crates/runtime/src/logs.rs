//! json-file logs: one JSON object a line, `{"log":"text\n","stream":"stdout","time":"RFC 3339"}`, as Docker writes and collectors read.
//!
//! L1  Opening for append cuts what a power cut has torn: everything after the last newline, NUL runs included.
//! L2  A record that could not be written whole is taken back, so that the next one is readable; lost records are counted.
//! L3  A reader skips what is not a record, counts it, and goes on to the end.
//! L4  A line of the program longer than 16 KiB becomes several records, of which only the last ends in a newline.
//!
//! Touches: the log file and its rotated predecessors.

mod reader;
mod writer;

pub(crate) use reader::parse;
pub use reader::{LogEntry, LogQuery, LogReader, read_logs};
pub(crate) use writer::LogWriter;

/// The longest text of one record.
pub const RECORD_TEXT_BYTES_MAX: usize = 16 << 10;
/// The longest line of a log: every byte of a text may take six (`\u00XX`), and the rest is short.
pub const LINE_BYTES_MAX: usize = RECORD_TEXT_BYTES_MAX * 6 + 256;

/// Which of its two outputs a program wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The name in a record.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The path of a rotated log; 0 is the current one.
#[must_use]
pub fn rotated_path(path: &std::path::Path, number: u32) -> std::path::PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}
