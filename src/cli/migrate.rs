//! `millrace migrate`: the topic and the tables.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{FAILED, block_on, out};
use crate::config::{Loaded, limits};
use crate::kinds::{Kind, KindVisitor, MIGRATIONS, visit_all};
use crate::log::topics::{Admin, Cluster, Made, TopicError, too_narrow};
use crate::store::Store;
use crate::store::migrate;

/// How long Kafka may take to answer.
const KAFKA_ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long Kafka may take to make a topic.
const KAFKA_MAKE_MAX: Duration = Duration::from_secs(15);

/// Make the topic and the tables, or bring them up to date.
///
/// Creates the database, applies the migrations that are missing and records each with its checksum, and creates the
/// Kafka topic of each kind (kafka.partitions, kafka.replication; records are kept for 7 days). What is there is left
/// as it is (but a topic that cannot take an event of http.event_bytes_max is made to), so it may be run any number of times, and by two at once. An edited migration, a database that a newer
/// program has migrated, and a server older than ClickHouse 25.8 are refused.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  millrace migrate --dry-run
  millrace migrate --set kafka.partitions=8    (the number cannot be changed afterwards)

Exit codes: 0 up to date, 1 failed, 2 wrong command line or configuration")]
pub struct Migrate {
    /// Print what would be done, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Begin a new generation of every kind's log, after a topic was deleted and created again or the cluster was
    /// replaced; a log that is well goes on where it is
    #[arg(long, conflicts_with = "dry_run")]
    new_generation: bool,
    /// Begin it for this kind only (may be repeated)
    #[arg(long, value_name = "KIND", requires = "new_generation", value_parser = kind_names())]
    kind: Vec<String>,
}

fn kind_names() -> clap::builder::PossibleValuesParser {
    MIGRATIONS.iter().map(|kind| kind.kind).collect::<Vec<_>>().into()
}

impl Migrate {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        match block_on(self.migrate(loaded)) {
            Ok(Ok(())) if self.new_generation => self.open_generations(loaded),
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(error)) => {
                out::error(error);
                ExitCode::from(FAILED)
            }
            Err(error) => {
                out::error(error);
                ExitCode::from(FAILED)
            }
        }
    }

    /// Opens new generations; what keeps one kind's from being opened does not keep the others'.
    fn open_generations(&self, loaded: &Loaded) -> ExitCode {
        let mut opener = Opener { loaded, kinds: &self.kind, failed: false };
        match visit_all(&mut opener) {
            Ok(()) if !opener.failed => ExitCode::SUCCESS,
            Ok(()) => ExitCode::from(FAILED),
            Err(never) => match never {},
        }
    }

    async fn migrate(&self, loaded: &Loaded) -> Result<(), Box<dyn std::error::Error>> {
        let store = Store::new(&loaded.config.clickhouse);
        let admin = Admin::new(&loaded.config.kafka)?;
        let version = migrate::version(&store).await?;
        let pending = migrate::pending(&store).await?;
        out::line(format!("clickhouse {version} at {}, database {}", store.url(), store.database()));
        if pending.is_empty() {
            out::line("all migrations are applied");
        } else if self.dry_run {
            for pending in &pending {
                out::line(format!("would apply {pending}:"));
                for statement in &pending.statements {
                    out::line(format!("\n{statement};\n"));
                }
            }
        } else {
            migrate::apply(&store, |step| out::line(step)).await?;
        }
        let message_bytes_max = limits::message_bytes_max(loaded.config.http.event_bytes_max);
        for kind in MIGRATIONS {
            let topic = loaded.config.kafka.topic(kind.kind);
            let before = admin.describe(&topic, KAFKA_ANSWER_MAX)?;
            if self.dry_run || before.topic.is_some() {
                out::line(describe(&topic, &before, loaded));
            }
            if before.topic.is_some() {
                self.widen(&admin, &topic, message_bytes_max).await?;
            }
            if self.dry_run || before.topic.is_some() {
                continue;
            }
            let made = admin.make(&topic, message_bytes_max, KAFKA_MAKE_MAX).await?;
            let partitions = loaded.config.kafka.partitions;
            out::line(match made {
                Made::Created => format!("created the topic {topic} with {partitions} partitions"),
                Made::Existed => format!("the topic {topic} was created meanwhile"),
            });
        }
        Ok(())
    }

    /// Lets a topic that was made for smaller events take the largest one that is accepted now.
    async fn widen(&self, admin: &Admin<'_>, topic: &str, message_bytes_max: u64) -> Result<(), TopicError> {
        let settings = admin.settings(topic, KAFKA_ANSWER_MAX).await?;
        let Some(taken) = too_narrow(&settings, message_bytes_max) else { return Ok(()) };
        if self.dry_run {
            out::line(format!(
                "would raise max.message.bytes of the topic {topic} from {taken} to {message_bytes_max}"
            ));
            return Ok(());
        }
        admin.widen(topic, message_bytes_max, KAFKA_ANSWER_MAX)?;
        out::line(format!("raised max.message.bytes of the topic {topic} from {taken} to {message_bytes_max}"));
        Ok(())
    }
}

fn describe(topic: &str, cluster: &Cluster, loaded: &Loaded) -> String {
    let partitions = loaded.config.kafka.partitions;
    match &cluster.topic {
        None => format!("would create the topic {topic} with {partitions} partitions"),
        Some(found) if found.partitions != partitions => format!(
            "the topic {topic} has {} partitions and is left as it is (kafka.partitions is {partitions})",
            found.partitions
        ),
        Some(found) => format!("the topic {topic} exists with {} partitions", found.partitions),
    }
}

/// Opens a new generation of one kind after the other and says where it starts.
struct Opener<'l> {
    loaded: &'l Loaded,
    /// Empty for all.
    kinds: &'l [String],
    failed: bool,
}

impl KindVisitor for Opener<'_> {
    type Error = Infallible;

    fn visit<K: Kind>(&mut self) -> Result<(), Infallible> {
        if !self.kinds.is_empty() && !self.kinds.iter().any(|kind| kind == K::NAME) {
            return Ok(());
        }
        let topic = self.loaded.config.kafka.topic(K::NAME);
        match crate::run::recognise::open_generation::<K>(&self.loaded.config, &topic) {
            Ok(opened) => {
                let (number, starts) = (opened.number, opened.start_offsets);
                out::line(format!("opened generation {number} of {topic}, which starts at offsets {starts:?}"));
            }
            Err(error) => {
                out::error(format!("{topic}: {error}"));
                self.failed = true;
            }
        }
        Ok(())
    }
}
