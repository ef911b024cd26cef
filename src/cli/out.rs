//! What commands say to the person who called them: results on stdout, complaints on stderr.

use std::fmt::Display;
use std::io::Write as _;

/// Writes a line to stdout. A reader that is gone (`millrace check | head -1`) is no error.
pub fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Writes text as it is to stdout.
pub fn text(text: impl Display) {
    let _ = write!(std::io::stdout().lock(), "{text}");
}

/// Writes a complaint to stderr.
pub fn error(text: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "millrace: {text}");
}
