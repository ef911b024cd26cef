//! `millrace write`: the storing side alone.

use std::process::ExitCode;

use clap::Args;

use super::run::execute;
use crate::config::Loaded;
use crate::run::Roles;

/// Store only: move events from the log to ClickHouse.
///
/// Several of these share the partitions of the log, and one takes over what another leaves. It listens on http.listen
/// for /health and /metrics alone. At SIGTERM it finishes or leaves the range it is storing; whoever goes on stores it
/// exactly once either way. See `millrace run --help` for signals and the end.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  millrace write --http-listen 127.0.0.1:8001
  millrace write --set writer.range_age_ms=1000

Exit codes: 0 ended in order, 1 failed, 2 wrong command line or configuration,
130 or 143 ended by a second signal")]
pub struct Write {}

impl Write {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        execute(loaded, Roles { accept: false, store: true })
    }
}
