//! The command line: `millrace run | serve | write | migrate | check | verify | repair`, a file for each.
//!
//! Exit codes, the same for all: 0 done, 1 failed or found wanting, 2 the command line or the configuration is wrong;
//! 130 or 143 after a second SIGINT or SIGTERM.

mod check;
mod folders;
mod migrate;
pub mod out;
mod paths;
mod repair;
pub mod run;
mod serve;
mod verify;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{ConfigError, Loaded, Sources, load};

/// What failed, or was found wanting.
pub const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub const MISUSED: u8 = 2;

/// Takes events over HTTP, keeps them in a Kafka log and stores each of them exactly once in ClickHouse.
///
/// A first start: `millrace migrate` makes the topic and the tables, `millrace check` says what is missing,
/// `millrace run` accepts, stores and reports.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, max_term_width = 120, after_help = SETTINGS_HELP)]
pub struct Arguments {
    /// Settings.
    #[command(flatten)]
    pub settings: SettingFlags,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const SETTINGS_HELP: &str = "\
Settings come from a file, the environment and flags; flags override the environment, which overrides the file. \
Every setting is section.name: in the file name = value under [section], in the environment MILLRACE_SECTION_NAME, \
as a flag --set section.name=value. The file millrace.toml in the source explains all of them, \
`millrace check --show-config` prints what is in effect and where it came from.";

/// Settings by flags, for every command.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Settings")]
pub struct SettingFlags {
    /// TOML file with settings; without it, the one that MILLRACE_CONFIG names
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Any setting, such as --set writer.range_age_ms=500; may be repeated
    #[arg(long, global = true, value_name = "SECTION.NAME=VALUE")]
    set: Vec<String>,
    /// Where to listen for HTTP, such as 127.0.0.1:8000
    #[arg(long, global = true, value_name = "ADDRESS:PORT")]
    http_listen: Option<String>,
    /// Threads that serve HTTP; 0 for one per core
    #[arg(long, global = true, value_name = "THREADS")]
    http_workers: Option<String>,
    /// Kafka's bootstrap servers, separated by commas
    #[arg(long, global = true, value_name = "HOST:PORT")]
    kafka_brokers: Option<String>,
    /// A kind's topic is PREFIX.KIND
    #[arg(long, global = true, value_name = "PREFIX")]
    kafka_topic_prefix: Option<String>,
    /// ClickHouse's HTTP interface
    #[arg(long, global = true, value_name = "http://HOST:PORT")]
    clickhouse_url: Option<String>,
    /// Database of all tables
    #[arg(long, global = true, value_name = "NAME")]
    clickhouse_database: Option<String>,
    /// User to be in ClickHouse
    #[arg(long, global = true, value_name = "NAME")]
    clickhouse_user: Option<String>,
    /// File that holds this user's password
    #[arg(long, global = true, value_name = "FILE")]
    clickhouse_password_file: Option<String>,
    /// What is logged: error, warn, info, debug, trace, or levels by module
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// How log lines are written: auto, text or json
    #[arg(long, global = true, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl SettingFlags {
    /// Reads the configuration that these flags, the environment and the file make.
    pub fn load(&self) -> Result<Loaded, ConfigError> {
        let named = [
            ("--http-listen", "http.listen", &self.http_listen),
            ("--http-workers", "http.workers", &self.http_workers),
            ("--kafka-brokers", "kafka.brokers", &self.kafka_brokers),
            ("--kafka-topic-prefix", "kafka.topic_prefix", &self.kafka_topic_prefix),
            ("--clickhouse-url", "clickhouse.url", &self.clickhouse_url),
            ("--clickhouse-database", "clickhouse.database", &self.clickhouse_database),
            ("--clickhouse-user", "clickhouse.user", &self.clickhouse_user),
            ("--clickhouse-password-file", "clickhouse.password_file", &self.clickhouse_password_file),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ];
        let named = named.into_iter().filter_map(|(flag, key, value)| {
            value.as_ref().map(|value| (flag.to_owned(), key.to_owned(), value.clone()))
        });
        let generic = self.set.iter().map(|pair| {
            // Without a value the name is looked up all the same, so that the message names the nearest.
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (format!("--set {key}"), key.trim().to_owned(), value.to_owned())
        });
        load(&Sources::of_process(self.config.clone(), named.chain(generic).collect()))
    }
}

/// What to do; each command is described where it is defined, and that is also its help.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Command {
    Run(run::Run),
    Serve(serve::Serve),
    Write(write::Write),
    Migrate(migrate::Migrate),
    Check(check::Check),
    Verify(verify::Verify),
    Repair(repair::Repair),
}

impl Command {
    /// Does it.
    pub fn execute(self, loaded: &Loaded) -> ExitCode {
        match self {
            Command::Run(run) => run.execute(loaded),
            Command::Serve(serve) => serve.execute(loaded),
            Command::Write(write) => write.execute(loaded),
            Command::Migrate(migrate) => migrate.execute(loaded),
            Command::Check(check) => check.execute(loaded),
            Command::Verify(verify) => verify.execute(loaded),
            Command::Repair(repair) => repair.execute(loaded),
        }
    }
}

/// Runs something that waits for Kafka or ClickHouse on this thread.
fn block_on<F: Future>(doing: F) -> std::io::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(doing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn settings_may_stand_before_and_after_the_command() {
        let arguments =
            Arguments::try_parse_from(["millrace", "--http-listen", "127.0.0.1:1", "check", "--set", "http.workers=3"]);
        let loaded = arguments.unwrap().settings.load().unwrap();
        assert_eq!((loaded.config.http.listen.port(), loaded.config.http.workers), (1, 3));
    }

    #[test]
    fn an_unknown_setting_is_refused() {
        let arguments = Arguments::try_parse_from(["millrace", "check", "--set", "http.wrkers"]).unwrap();
        let error = arguments.settings.load().unwrap_err().to_string();
        assert_eq!(error, "--set http.wrkers: http.wrkers: no such setting: the nearest known name is http.workers");
    }
}
