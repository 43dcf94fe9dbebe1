//! Standard output, whose reader may go away at any time (`baleen logs | head`): that ends the command quietly.

use std::io::{self, Write};

use super::failure::Failure;

/// Writes text.
///
/// # Errors
/// `OutputClosed` if the reader has gone, `Io` if it cannot be written.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    write(&mut io::stdout().lock(), text.as_bytes())
}

/// Writes bytes at once.
///
/// # Errors
/// As [`print()`].
pub(crate) fn write(to: &mut dyn Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::OutputClosed,
        _ => Failure::Io { action: "write the output".to_owned(), source: error },
    })
}

/// A line for people on standard error; nobody minds if it cannot be written.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
