//! Standard output and standard error. A closed pipe is nobody's fault, so failures to write are not told.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// A line of the result.
pub fn line(text: impl Display) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What is wrong.
pub fn error(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "millrace-load: {text}");
}

/// Progress: a line a time, or on a terminal one line that is written over.
pub struct Progress {
    quiet: bool,
    terminal: bool,
    /// Whether a line stands there that is to be written over.
    open: bool,
}

impl Progress {
    pub fn new(quiet: bool) -> Progress {
        Progress { quiet, terminal: std::io::stderr().is_terminal(), open: false }
    }

    pub fn say(&mut self, text: impl Display) {
        if self.quiet {
            return;
        }
        let _ = if self.terminal {
            self.open = true;
            write!(std::io::stderr(), "\r\x1b[K{text}")
        } else {
            writeln!(std::io::stderr(), "{text}")
        };
    }

    /// Leaves the last line standing.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(std::io::stderr());
        }
    }
}
