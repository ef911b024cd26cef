//! `millrace repair`: what ClickHouse has lost, out of the log.

use std::process::ExitCode;

use clap::Args;

use super::{FAILED, out};
use crate::config::{Config, Loaded};
use crate::kinds::{Kind, KindVisitor, visit_all};

/// Read again from the log what ClickHouse has lost, and count everything anew.
///
/// For a ClickHouse that lost its newest rows (a power cut) or came back from an older backup. Stop every `millrace run` and
/// `millrace write` first: it makes sure that none is at work. Of each kind it finds the offsets that were stored once and
/// are not any more, stores their missing events (none that is there), counts all events into a new table, and puts that
/// in the place of the counters in one step. It may be killed at any time and run again. What is not in the log any
/// more is named: generation, partition, offsets. Afterwards the writers go on where they were.
///
/// It takes as much memory as a writer without writer.cache_dir, for one partition at a time, and waits until no insert of a
/// writer can be under way (writer.claim_age_ms_max and clickhouse.insert_ms_max).
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  systemctl stop millrace && millrace repair --dry-run
  millrace repair && millrace verify && systemctl start millrace

Exit codes: 0 nothing is missing any more, 1 something could not be recovered (it is named) or it could not be done,
2 wrong command line or configuration")]
pub struct Repair {
    /// Print what is missing and what can be read again, change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Repair {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        let mut repairer = Repairer { config: &loaded.config, dry_run: self.dry_run, well: true };
        match visit_all(&mut repairer) {
            Ok(()) if repairer.well => ExitCode::SUCCESS,
            Ok(()) => ExitCode::from(FAILED),
            Err(never) => match never {},
        }
    }
}

/// Repairs one kind after the other; what fails of one does not keep the others from being repaired.
struct Repairer<'l> {
    config: &'l Config,
    dry_run: bool,
    well: bool,
}

impl KindVisitor for Repairer<'_> {
    type Error = std::convert::Infallible;

    fn visit<K: Kind>(&mut self) -> Result<(), Self::Error> {
        let mut say = |line: String| out::line(format!("{}: {line}", K::NAME));
        match crate::run::repair::repair::<K>(self.config, self.dry_run, &mut say) {
            Ok(outcome) => self.well &= !outcome.wanting,
            Err(error) => {
                out::error(format!("{}: {error}", K::NAME));
                self.well = false;
            }
        }
        Ok(())
    }
}
