//! `millrace check`: is the configuration valid, and is everything it names there?

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{FAILED, block_on, folders, out};
use crate::config::{Config, Loaded, limits, show};
use crate::kinds::{Kind, KindVisitor, MIGRATIONS, visit_all};
use crate::log::topics::{Admin, Topic, TopicError, too_narrow};
use crate::observe::descriptors_max;
use crate::store::migrate::{self, MigrateError};
use crate::store::{Store, StoreError};

/// How long each server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Say whether the configuration is valid and everything it names is reachable.
///
/// Prints a line for each thing that was looked at: OK, WARN (works, but look at it) or FAIL, with what to do. It
/// changes nothing and takes 5 s at most for each server. Under systemd it is ExecStartPre: a service that must start
/// while Kafka or ClickHouse is away (it then waits for them) uses --offline.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  millrace check
  millrace check --offline        the configuration, the address, descriptors, folders
  millrace check --show-config    the settings in effect, where each came from

Exit codes: 0 all is well (warnings included), 1 something failed,
2 wrong command line or configuration")]
pub struct Check {
    /// Look at this machine alone, ask no server
    #[arg(long)]
    offline: bool,
    /// Print the settings in effect as TOML and end
    #[arg(long, conflicts_with = "offline")]
    show_config: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Ok,
    Warn,
    Fail,
}

/// One line of the answer.
#[derive(Debug)]
pub(super) struct Finding {
    state: State,
    what: &'static str,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Ok => "OK",
            State::Warn => "WARN",
            State::Fail => "FAIL",
        };
        write!(f, "{state:<4}  {:<10}  {}", self.what, self.text)
    }
}

impl Check {
    pub(super) fn execute(self, loaded: &Loaded) -> ExitCode {
        if self.show_config {
            out::text(show(loaded));
            return ExitCode::SUCCESS;
        }
        let mut failed = false;
        let mut tell = |finding: Finding| {
            failed |= finding.state == State::Fail;
            out::line(finding);
        };
        let from = loaded.file.as_ref().map_or("no file".into(), |file| file.display().to_string());
        tell(Finding { state: State::Ok, what: "config", text: format!("valid ({from})") });
        tell(listen(loaded.config.http.listen));
        tell(descriptors(&loaded.config));
        let mut kinds = Kinds { config: &loaded.config, found: Vec::new() };
        let Ok(()) = visit_all(&mut kinds);
        kinds.found.into_iter().for_each(&mut tell);
        folders::look(&loaded.config).into_iter().for_each(&mut tell);
        if !self.offline {
            kafka(&loaded.config).into_iter().for_each(&mut tell);
            clickhouse(&loaded.config).into_iter().for_each(&mut tell);
        }
        if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
    }
}

pub(super) fn finding(state: State, what: &'static str, text: impl Into<String>) -> Finding {
    Finding { state, what, text: text.into() }
}

fn listen(address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => finding(State::Ok, "listen", format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && millrace_answers(address) => {
            finding(State::Ok, "listen", format!("{address} is in use by a millrace that is running"))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => finding(
            State::Fail,
            "listen",
            format!("{address} is in use by another program: end it, or set http.listen to another port"),
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => finding(
            State::Fail,
            "listen",
            format!("{address} needs a right that this user lacks: set http.listen to a port above 1023"),
        ),
        Err(error) => finding(
            State::Fail,
            "listen",
            format!("{address} cannot be bound ({error}): set http.listen to an address of this machine"),
        ),
    }
}

fn millrace_answers(address: SocketAddr) -> bool {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.set_write_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        let mut bytes = [0; 1024];
        // One answer of this kind fits into the first bytes that arrive, in two reads at most.
        for _ in 0..4 {
            match stream.read(&mut bytes) {
                Ok(0) | Err(_) => break,
                Ok(read) => answer.extend_from_slice(&bytes[..read]),
            }
            if answer.ends_with(b"}\n") {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    asked().is_ok_and(|answer| answer.contains("{\"status\":\"live\"}"))
}

fn descriptors(config: &Config) -> Finding {
    let needed = 2 * u64::from(config.http.connections_max) + limits::DESCRIPTORS_BESIDE_CONNECTIONS;
    match descriptors_max() {
        Some(most) if most < needed => finding(
            State::Warn,
            "limits",
            format!(
                "{most} descriptors may be open, and http.connections_max = {} needs {needed}: raise it (ulimit -n, LimitNOFILE) or lower the setting",
                config.http.connections_max
            ),
        ),
        Some(most) => finding(State::Ok, "limits", format!("{most} descriptors may be open ({needed} needed)")),
        None => finding(State::Warn, "limits", "the number of descriptors cannot be read from /proc/self/limits"),
    }
}

/// Looks at the settings of each kind, and at the files that they name.
struct Kinds<'c> {
    config: &'c Config,
    found: Vec<Finding>,
}

impl KindVisitor for Kinds<'_> {
    type Error = std::convert::Infallible;

    fn visit<K: Kind>(&mut self) -> Result<(), Self::Error> {
        let found = match K::open(self.config) {
            Ok(kind) => kind.in_force().map(|in_force| finding(State::Ok, K::NAME, in_force)),
            Err(error) => Some(finding(State::Fail, K::NAME, error)),
        };
        self.found.extend(found);
        Ok(())
    }
}

fn kafka(config: &Config) -> Vec<Finding> {
    let away = |error: TopicError| {
        let text = format!("{error}: start it, or set kafka.brokers and kafka.options");
        match &config.spool.dir {
            Some(_) => vec![finding(State::Warn, "kafka", format!("{text}; meanwhile events go to the spool"))],
            None => vec![finding(State::Fail, "kafka", text)],
        }
    };
    let admin = match Admin::new(&config.kafka) {
        Ok(admin) => admin,
        Err(error) => return away(error),
    };
    let message_bytes_max = limits::message_bytes_max(config.http.event_bytes_max);
    let mut found = Vec::new();
    for kind in MIGRATIONS {
        let topic = config.kafka.topic(kind.kind);
        let cluster = match admin.describe(&topic, TIMEOUT) {
            Ok(cluster) => cluster,
            Err(error) => return away(error),
        };
        if found.is_empty() {
            let text = format!("{} answers, {} broker(s)", config.kafka.brokers, cluster.brokers);
            found.push(finding(State::Ok, "kafka", text));
        }
        match &cluster.topic {
            None => {
                let text = format!("{topic} does not exist: run millrace migrate");
                found.push(finding(State::Fail, "topic", text));
            }
            Some(described) => {
                found.push(topic_found(config, &topic, described));
                match block_on(admin.settings(&topic, TIMEOUT)) {
                    Ok(Ok(settings)) => {
                        found.extend(durability(&topic, described, &settings));
                        found.extend(topic_settings(&topic, &settings, message_bytes_max));
                    }
                    Ok(Err(error)) => {
                        found.push(finding(
                            State::Warn,
                            "topic",
                            format!("{topic}: its settings cannot be read: {error}"),
                        ));
                    }
                    Err(error) => found.push(finding(State::Fail, "topic", error.to_string())),
                }
            }
        }
    }
    found
}

fn topic_found(config: &Config, topic: &str, found: &Topic) -> Finding {
    let Topic { partitions, replicas_min, leaderless } = found;
    if *leaderless > 0 {
        let text = format!("{topic}: {leaderless} of {partitions} partitions have no leader: look at the brokers");
        return finding(State::Fail, "topic", text);
    }
    if *partitions != config.kafka.partitions {
        // The number is part of the data; the setting is for creating alone.
        let text = format!(
            "{topic} has {partitions} partitions, which holds; kafka.partitions is {}: set it to {partitions}",
            config.kafka.partitions
        );
        return finding(State::Warn, "topic", text);
    }
    finding(State::Ok, "topic", format!("{topic} exists, {partitions} partitions, {replicas_min} replica(s)"))
}

/// A topic's setting; empty where it is not told.
fn setting<'s>(settings: &'s [(String, String)], name: &str) -> &'s str {
    settings.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str())
}

/// What an acknowledged event does not survive. Kafka answers when the replicas in sync have a record in memory; the
/// operating system writes it to the disk some seconds later.
fn durability(topic: &str, found: &Topic, settings: &[(String, String)]) -> Option<Finding> {
    let text = match found.replicas_min {
        0 | 1 if setting(settings, "flush.messages") == "1" => {
            format!("{topic} has 1 replica, on the disk before it is acknowledged: a lost disk loses data")
        }
        0 | 1 => format!(
            "{topic} has 1 replica: a power cut loses what was acknowledged in the last seconds. Use three brokers \
             (kafka.replication = 3), or set flush.messages=1 on the topic; see \"What survives what\" in the README"
        ),
        _ if setting(settings, "min.insync.replicas") == "1" => format!(
            "{topic} acknowledges what a single replica has (min.insync.replicas=1): with three replicas set it to 2"
        ),
        _ => return None,
    };
    Some(finding(State::Warn, "power", text))
}

/// What of a topic's settings would lose events, or refuse them.
fn topic_settings(topic: &str, settings: &[(String, String)], message_bytes_max: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    let setting = |name: &str| setting(settings, name);
    let policy = setting("cleanup.policy");
    if policy.contains("compact") {
        let text = format!("{topic} has cleanup.policy={policy}, which loses events: set it to delete");
        found.push(finding(State::Fail, "topic", text));
    }
    if let Some(taken) = too_narrow(settings, message_bytes_max) {
        let text = format!(
            "{topic} takes records of {taken} bytes, and one event of http.event_bytes_max needs {message_bytes_max} \
             (max.message.bytes): run millrace migrate, which sets it"
        );
        found.push(finding(State::Fail, "topic", text));
    }
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    if setting("retention.ms").parse::<i64>().is_ok_and(|kept| (0..DAY_MS).contains(&kept)) {
        let text = format!(
            "{topic} keeps records for {} ms: what is not stored by then is lost; set retention.ms to some days",
            setting("retention.ms")
        );
        found.push(finding(State::Warn, "topic", text));
    }
    found
}

fn clickhouse(config: &Config) -> Vec<Finding> {
    let store = Store::new(&config.clickhouse).with_read_timeout(TIMEOUT);
    let asked = block_on(async {
        let version = migrate::version(&store).await.map_err(|error| store_finding("clickhouse", &error))?;
        let answers = finding(State::Ok, "clickhouse", format!("{version} answers at {}", store.url()));
        Ok::<_, Finding>(vec![answers, schema(&store).await])
    });
    match asked {
        Ok(Ok(found)) => found,
        Ok(Err(failed)) => vec![failed],
        Err(error) => vec![finding(State::Fail, "clickhouse", error.to_string())],
    }
}

async fn schema(store: &Store) -> Finding {
    match migrate::pending(store).await {
        Ok(pending) if pending.is_empty() => match migrate::narrow_windows(store).await {
            Ok(narrow) => match narrow.first() {
                None => finding(State::Ok, "schema", format!("database {} is up to date", store.database())),
                Some(narrow) => finding(State::Fail, "schema", narrow.told(store)),
            },
            Err(error) => store_finding("schema", &error),
        },
        Ok(pending) => {
            let files: Vec<String> = pending.iter().map(ToString::to_string).collect();
            let text = format!("database {} lacks {}: run millrace migrate", store.database(), files.join(", "));
            finding(State::Fail, "schema", text)
        }
        Err(error) => store_finding("schema", &error),
    }
}

fn store_finding(what: &'static str, error: &MigrateError) -> Finding {
    let advice = match error {
        MigrateError::Store(StoreError::Unreachable(_) | StoreError::TimedOut(_)) => {
            ": start it, or set clickhouse.url"
        }
        MigrateError::Store(StoreError::Foreign(_)) => ": set clickhouse.url to its HTTP interface",
        MigrateError::Store(error) if error.is_access() => {
            ": set clickhouse.user and clickhouse.password_file (or MILLRACE_CLICKHOUSE_PASSWORD)"
        }
        _ => "",
    };
    finding(State::Fail, what, format!("{error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }

    fn settings(pairs: &[(&str, &str)]) -> Vec<State> {
        topic_settings("t", &owned(pairs), 1_048_588).iter().map(|finding| finding.state).collect()
    }

    #[test]
    fn settings_that_lose_events_are_found() {
        assert_eq!(settings(&[("cleanup.policy", "delete"), ("retention.ms", "604800000")]), []);
        assert_eq!(settings(&[("retention.ms", "-1"), ("max.message.bytes", "1048588")]), []);
        assert_eq!(settings(&[("cleanup.policy", "compact,delete")]), [State::Fail]);
        assert_eq!(settings(&[("max.message.bytes", "1048587")]), [State::Fail]);
        assert_eq!(settings(&[("retention.ms", "1000")]), [State::Warn]);
    }

    #[test]
    fn a_topic_is_judged() {
        let config = Config::default();
        let judge = |partitions, leaderless| {
            let topic = Topic { partitions, replicas_min: 1, leaderless };
            topic_found(&config, "t", &topic).state
        };
        assert_eq!(judge(4, 0), State::Ok);
        assert_eq!(judge(3, 0), State::Warn);
        assert_eq!(judge(4, 1), State::Fail);
    }

    #[test]
    fn what_a_power_cut_would_lose_is_said() {
        let said = |replicas_min, flush: &str, in_sync: &str| {
            let topic = Topic { partitions: 4, replicas_min, leaderless: 0 };
            let settings = owned(&[("flush.messages", flush), ("min.insync.replicas", in_sync)]);
            durability("t", &topic, &settings).map(|finding| finding.text)
        };
        let never = "9223372036854775807";
        assert!(said(1, never, "1").unwrap().contains("a power cut loses"));
        assert!(said(1, "1", "1").unwrap().contains("a lost disk loses"));
        assert!(said(3, never, "1").unwrap().contains("set it to 2"));
        assert_eq!(said(3, never, "2"), None);
    }

    #[test]
    fn an_address_in_use_is_told_from_a_free_one() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        // Nobody accepts, so that nothing answers within the second that is given.
        assert_eq!(listen(address).state, State::Fail);
        drop(other);
        assert_eq!(listen(address).state, State::Ok);
    }
}
