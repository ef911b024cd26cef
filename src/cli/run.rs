//! `millrace run`, and what it shares with `serve` and `write`: signals, systemd, and the end.

use std::process::ExitCode;

use clap::Args;

use super::{FAILED, out, paths};
use crate::config::Loaded;
use crate::observe::logs;
use crate::run::Roles;
use crate::shutdown::Shutdown;

/// Accept, store and report in one process: the usual way.
///
/// Listens for HTTP, writes what is accepted to Kafka, stores it in ClickHouse and answers reports, until SIGTERM or
/// SIGINT. Then it stops accepting, answers what is in flight, and ends within http.shutdown_ms_max; a second signal
/// ends it at once. Kafka or ClickHouse being away does not end it: requests are answered 503 meanwhile, or wait in the
/// log to be stored. It needs the topics and the tables that `millrace migrate` makes. SIGHUP reads the schemas of
/// interaction.schemas again; the rest of the configuration is read at the start alone.
#[derive(Debug, Args)]
#[command(after_long_help = help())]
pub struct Run {}

fn help() -> String {
    let paths = paths::of_all_kinds();
    format!(
        "\
Examples:
  millrace run
  millrace run --config /etc/millrace/millrace.toml
  millrace run --http-listen 0.0.0.0:8000 --kafka-brokers kafka1:9092,kafka2:9092
  MILLRACE_LOG_LEVEL=debug millrace run

Paths:
{paths}  all          GET  /health/live /health/ready /metrics /v1/ (lists all)

Exit codes: 0 ended in order, 1 failed, 2 wrong command line or configuration,
130 or 143 ended by a second signal"
    )
}

impl Run {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        execute(loaded, Roles { accept: true, store: true })
    }
}

/// Runs the program until it is told to end.
pub fn execute(loaded: &Loaded, roles: Roles) -> ExitCode {
    if let Err(error) = logs::capture_stderr() {
        tracing::warn!(%error, "what libraries write to stderr stays out of the log");
    }
    let shutdown = Shutdown::new();
    if let Err(error) = shutdown.on_signals() {
        out::error(format!("signals cannot be taken: {error}"));
        return ExitCode::from(FAILED);
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        config = loaded.file.as_ref().map(|file| file.display().to_string()),
        accept = roles.accept,
        store = roles.store,
        "starting"
    );
    match crate::run::run(&loaded.config, roles, shutdown) {
        Ok(()) => {
            tracing::info!("ended");
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!(%error, "failed");
            ExitCode::from(FAILED)
        }
    }
}
