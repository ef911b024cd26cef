//! `millrace serve`: the accepting side alone.

use std::process::ExitCode;

use clap::Args;

use super::run::execute;
use crate::config::Loaded;
use crate::run::Roles;

/// Accept and report only: events go to the log, other processes store them.
///
/// Any number of these may run behind a load balancer; they share nothing but Kafka and ClickHouse. ClickHouse being
/// away stops reports (503), not accepting. See `millrace run --help` for signals and the end.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  millrace serve --http-listen 0.0.0.0:8000
  curl -s http://127.0.0.1:8000/health/ready

Exit codes: 0 ended in order, 1 failed, 2 wrong command line or configuration,
130 or 143 ended by a second signal")]
pub struct Serve {}

impl Serve {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        execute(loaded, Roles { accept: true, store: false })
    }
}
