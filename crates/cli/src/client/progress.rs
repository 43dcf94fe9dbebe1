//! Streams of progress: pull, push, load, import. On a terminal each layer has a line that moves, elsewhere each change is a line.

use std::io::{self, IsTerminal, Write};

use super::Client;
use super::failure::Failure;
use super::http::{Answer, Request};
use super::output;
use super::terminal;
use super::text::format::harmless;
use super::text::units;
use super::text::value::Value;

/// Characters of a full bar.
const BAR: i64 = 50;
/// Lines that move at once; a stream with more begins anew.
const LINES_MAX: usize = 1000;
/// Terminals below this width get numbers without a bar.
const COLUMNS_FOR_BAR: u16 = 110;

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum To {
    Stdout,
    Stderr,
    Nowhere,
}

/// Asks for something that reports progress, and shows it; gives each message to `look` as well.
///
/// # Errors
/// What the request fails with; `Refused` with the reason that the stream ends with.
pub(crate) fn follow(
    client: &Client,
    request: Request<'_>,
    to: To,
    mut look: impl FnMut(&Value),
) -> Result<(), Failure> {
    let mut messages = client.messages(request)?;
    let columns = match to {
        To::Stdout if io::stdout().is_terminal() => terminal::size().map(|(_, columns)| columns),
        To::Stderr => terminal::error_columns(),
        _ => None,
    };
    let mut display = Display { columns, lines: Vec::new() };
    while let Some(message) = Answer::message(&mut messages)? {
        look(&message);
        let reason = match message.text_at(&["errorDetail", "message"]) {
            "" => message.text_at(&["error"]),
            reason => reason,
        };
        if !reason.is_empty() {
            return Err(Failure::refused(harmless(reason)));
        }
        let text = display.show(&message);
        match to {
            To::Stdout => output::print(&text)?,
            To::Stderr => drop(io::stderr().lock().write_all(text.as_bytes())),
            To::Nowhere => {}
        }
    }
    Ok(())
}

struct Display {
    /// Of the terminal, if it is one.
    columns: Option<u16>,
    /// The ids that have a line, from above.
    lines: Vec<String>,
}

impl Display {
    /// What to write for a message.
    fn show(&mut self, message: &Value) -> String {
        if let Value::Text(text) = message.at(&["stream"]) {
            // The text brings its own line ends, and nothing else that a terminal would obey.
            return text
                .split_inclusive('\n')
                .map(|line| harmless(line.trim_end_matches('\n')) + if line.ends_with('\n') { "\n" } else { "" })
                .collect();
        }
        let status = harmless(message.text_at(&["status"]));
        let id = harmless(message.text_at(&["id"]));
        let detail = message.at(&["progressDetail"]);
        let bar = self.bar(detail, message.text_at(&["progress"]));
        if status.is_empty() {
            return String::new();
        }
        let head = if id.is_empty() { String::new() } else { format!("{id}: ") };
        if self.columns.is_none() {
            // A log of ever growing numbers helps nobody.
            return if bar.is_empty() { format!("{head}{status}\n") } else { String::new() };
        }
        if id.is_empty() || *detail == Value::Null {
            self.lines.clear();
            return format!("{head}{status}\n");
        }
        if self.lines.len() >= LINES_MAX {
            self.lines.clear();
        }
        let mut text = String::new();
        let line = self.lines.iter().position(|known| *known == id).unwrap_or_else(|| {
            text.push('\n');
            self.lines.push(id.clone());
            self.lines.len() - 1
        });
        let up = self.lines.len() - line;
        let shown = if bar.is_empty() { format!("{head}{status}") } else { format!("{head}{status} {bar}") };
        text.push_str(&format!("\x1b[{up}A\r\x1b[2K{shown}\r\x1b[{up}B"));
        text
    }

    fn bar(&self, detail: &Value, ready_made: &str) -> String {
        let (current, total) = (detail.at(&["current"]).number(), detail.at(&["total"]).number());
        if current <= 0 && total <= 0 {
            return harmless(ready_made);
        }
        let shown = units::size_of_four_digits(current);
        if total <= 0 {
            return format!("{shown:>8}");
        }
        let numbers = if current > total {
            format!("{shown:>8}")
        } else {
            format!("{shown:>8}/{}", units::size_of_four_digits(total))
        };
        if self.columns.is_none_or(|columns| columns <= COLUMNS_FOR_BAR) {
            return numbers;
        }
        let filled = (current.saturating_mul(BAR) / total).clamp(0, BAR) as usize;
        format!("[{}>{}] {numbers}", "=".repeat(filled), " ".repeat(BAR as usize - filled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(display: &mut Display, message: &str) -> String {
        display.show(&serde_json::from_str(message).expect("JSON"))
    }

    #[test]
    fn without_a_terminal_only_what_changes_is_a_line() {
        let mut display = Display { columns: None, lines: Vec::new() };
        assert_eq!(
            show(&mut display, r#"{"status":"Pulling fs layer","progressDetail":{},"id":"abc"}"#),
            "abc: Pulling fs layer\n"
        );
        assert_eq!(
            show(&mut display, r#"{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"abc"}"#),
            ""
        );
        assert_eq!(show(&mut display, r#"{"status":"Digest: sha256:x"}"#), "Digest: sha256:x\n");
        assert_eq!(show(&mut display, r#"{"stream":"Loaded image: a\u001b[2J:1\n"}"#), "Loaded image: a [2J:1\n");
    }

    #[test]
    fn on_a_terminal_each_layer_has_a_line_that_moves() {
        let mut display = Display { columns: Some(120), lines: Vec::new() };
        assert_eq!(
            show(&mut display, r#"{"status":"Wait","progressDetail":{},"id":"a"}"#),
            "\n\x1b[1A\r\x1b[2Ka: Wait\r\x1b[1B"
        );
        assert_eq!(
            show(&mut display, r#"{"status":"Wait","progressDetail":{},"id":"b"}"#),
            "\n\x1b[1A\r\x1b[2Kb: Wait\r\x1b[1B"
        );
        let moved = show(
            &mut display,
            r#"{"status":"Extracting","progressDetail":{"current":500000,"total":1000000},"id":"a"}"#,
        );
        let bar = format!("[{}>{}]    500kB/1MB", "=".repeat(25), " ".repeat(25));
        assert_eq!(moved, format!("\x1b[2A\r\x1b[2Ka: Extracting {bar}\r\x1b[2B"));
        let mut narrow = Display { columns: Some(80), lines: Vec::new() };
        assert!(
            show(&mut narrow, r#"{"status":"E","progressDetail":{"current":5,"total":10},"id":"a"}"#)
                .contains("a: E       5B/10B")
        );
    }
}
