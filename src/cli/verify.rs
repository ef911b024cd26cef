//! `millrace verify`: the stored events against the counters.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{FAILED, block_on, out};
use crate::config::Loaded;
use crate::kinds::{Kind, KindVisitor, visit_all};
use crate::store::Store;
use crate::store::recount::Recount;

/// Recount what is stored and compare it with the counters.
///
/// Counts the stored events of every kind as its report does, looks for events that are stored twice, for gaps between the
/// stored ranges of the log, and for keys that would not be recognised after a restart, and prints each difference. It only
/// reads, and may run while events are stored. Any difference is a defect: please report it with this output.
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
        let mut verifier = Verifier { store, agrees: true };
        match visit_all(&mut verifier) {
            Ok(()) if verifier.agrees => ExitCode::SUCCESS,
            Ok(()) => ExitCode::from(FAILED),
            Err(error) => {
                out::error(error);
                ExitCode::from(FAILED)
            }
        }
    }
}

/// Recounts one kind after the other.
struct Verifier {
    store: Store,
    /// Whether no kind had a difference so far.
    agrees: bool,
}

impl KindVisitor for Verifier {
    type Error = Box<dyn std::error::Error>;

    fn visit<K: Kind>(&mut self) -> Result<(), Self::Error> {
        let found = block_on(self.store.recount::<K>())??;
        report(K::NAME, &found);
        self.agrees &= found.differences.is_empty();
        Ok(())
    }
}

fn report(kind: &str, found: &Recount) {
    for difference in found.differences.iter().take(DIFFERENCES_SHOWN) {
        out::line(format!("{kind}: {difference}"));
    }
    let (events, counters, differences) = (found.events, found.counters, found.differences.len());
    out::line(format!("{kind}: {events} events, {counters} counters, {differences} differences"));
}
