//! `millrace verify`: the stored events against the counters.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{FAILED, block_on, out};
use crate::config::Loaded;
use crate::kinds::Kind;
use crate::kinds::captcha::Captcha;
use crate::store::Store;
use crate::store::recount::Recount;

/// Recount what is stored and compare it with the counters.
///
/// Counts the stored events by site and day, looks for events that are stored twice and for gaps between the stored
/// ranges of the log, and prints each difference. It only reads, and may run while events are stored. Any difference
/// is a defect: please report it with this output.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  millrace verify
  millrace verify --config /etc/millrace/millrace.toml && echo all counted

Exit codes: 0 all agrees, 1 differences were found or it could not be done,
2 wrong command line or configuration")]
pub struct Verify {}

/// Differences printed at most; all are counted.
const DIFFERENCES_SHOWN: usize = 100;
/// How long one query may take: a recount reads all that is stored.
const QUERY_MAX: Duration = Duration::from_secs(3600);

impl Verify {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        let store = Store::new(&loaded.config.clickhouse).with_read_timeout(QUERY_MAX);
        match block_on(store.recount::<Captcha>()) {
            Ok(Ok(found)) => report(Captcha::NAME, &found),
            Ok(Err(error)) => failed(&error),
            Err(error) => failed(&error),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    out::error(error);
    ExitCode::from(FAILED)
}

fn report(kind: &str, found: &Recount) -> ExitCode {
    for difference in found.differences.iter().take(DIFFERENCES_SHOWN) {
        out::line(format!("{kind}: {difference}"));
    }
    let (events, counters, differences) = (found.events, found.counters, found.differences.len());
    out::line(format!("{kind}: {events} events, {counters} counters, {differences} differences"));
    if found.differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
