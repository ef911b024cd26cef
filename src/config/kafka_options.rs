//! The free table `[kafka.options]`: settings of librdkafka that are passed through (TLS, SASL, buffer sizes), except
//! those on which exactly-once rests, which are refused.

use std::collections::BTreeMap;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

use super::Secret;
use super::value::{Raw, Show};

/// Options of librdkafka by name. Every value is held as a secret; [`KafkaOptions::show`] shows those that are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KafkaOptions(BTreeMap<String, Secret>);

/// What librdkafka may not be told, and where it is decided instead.
const PINNED: [(&str, &str); 35] = [
    ("acks", "every record is acknowledged by all in-sync replicas"),
    ("request.required.acks", "every record is acknowledged by all in-sync replicas"),
    ("enable.idempotence", "the producer is always idempotent"),
    ("enable.gapless.guarantee", "the producer is always idempotent"),
    ("transactional.id", "no transactions are used"),
    ("max.in.flight", "the idempotent producer decides it"),
    ("max.in.flight.requests.per.connection", "the idempotent producer decides it"),
    ("partitioner", "each record names its partition"),
    ("enable.auto.commit", "offsets are committed with the claims"),
    ("auto.commit.enable", "offsets are committed with the claims"),
    ("auto.commit.interval.ms", "offsets are committed with the claims"),
    ("enable.auto.offset.store", "offsets are committed with the claims"),
    ("auto.offset.reset", "where to go on is decided by what is stored"),
    ("isolation.level", "what is read is decided by the writer"),
    ("enable.partition.eof", "the writer decides it"),
    ("partition.assignment.strategy", "the writer decides it"),
    ("group.remote.assignor", "the writer decides it"),
    ("group.instance.id", "the writer decides it"),
    ("group.protocol.type", "the writer decides it"),
    ("bootstrap.servers", "set kafka.brokers"),
    ("metadata.broker.list", "set kafka.brokers"),
    ("group.id", "set kafka.group"),
    ("group.protocol", "set kafka.group_protocol"),
    ("linger.ms", "set kafka.linger_ms"),
    ("queue.buffering.max.ms", "set kafka.linger_ms"),
    ("compression.type", "set kafka.compression"),
    ("compression.codec", "set kafka.compression"),
    ("delivery.timeout.ms", "set kafka.delivery_ms_max"),
    ("message.timeout.ms", "set kafka.delivery_ms_max"),
    ("message.max.bytes", "it follows from http.event_bytes_max"),
    ("fetch.message.max.bytes", "it follows from http.event_bytes_max"),
    ("max.partition.fetch.bytes", "it follows from http.event_bytes_max"),
    ("statistics.interval.ms", "the program reads them to keep its connections"),
    ("session.timeout.ms", "set writer.session_ms"),
    ("max.poll.interval.ms", "set writer.poll_ms_max"),
];

/// Options that people set: for naming the nearest of an unknown one.
const COMMON: [&str; 35] = [
    "client.id",
    "client.rack",
    "security.protocol",
    "ssl.ca.location",
    "ssl.ca.pem",
    "ssl.certificate.location",
    "ssl.certificate.pem",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.keystore.location",
    "ssl.keystore.password",
    "ssl.cipher.suites",
    "ssl.endpoint.identification.algorithm",
    "enable.ssl.certificate.verification",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "queue.buffering.max.messages",
    "queue.buffering.max.kbytes",
    "batch.num.messages",
    "batch.size",
    "request.timeout.ms",
    "socket.timeout.ms",
    "socket.keepalive.enable",
    "socket.connection.setup.timeout.ms",
    "reconnect.backoff.ms",
    "reconnect.backoff.max.ms",
    "retry.backoff.ms",
    "metadata.max.age.ms",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.wait.max.ms",
    "queued.max.messages.kbytes",
];

impl KafkaOptions {
    /// Takes one option, or says why not.
    pub fn set(&mut self, name: &str, raw: &Raw) -> Result<(), String> {
        if let Some((_, instead)) = PINNED.iter().find(|(pinned, _)| *pinned == name) {
            return Err(format!("this option of librdkafka cannot be changed here: {instead}"));
        }
        let value = match raw {
            Raw::Text(text) | Raw::String(text) => text.clone(),
            Raw::Integer(number) => number.to_string(),
            Raw::Boolean(value) => value.to_string(),
            other => return Err(format!("expected text, a whole number, true or false, found {}", other.found())),
        };
        let mut probe = ClientConfig::new();
        // A probe says nothing itself: what is wrong is told here.
        probe.set_log_level(RDKafkaLogLevel::Emerg).set(name, &value);
        match probe.create_native_config() {
            Ok(_) => {}
            Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
                let known = COMMON.into_iter().chain(PINNED.iter().map(|(pinned, _)| *pinned));
                let nearest = super::nearest(name, known).unwrap_or_default();
                return Err(format!("librdkafka knows no such option: the nearest known name is {nearest:?}"));
            }
            Err(KafkaError::ClientConfig(_, why, ..)) if !sensitive(name) => {
                return Err(format!("librdkafka refuses it: {why}"));
            }
            Err(_) => return Err("librdkafka refuses this value".into()),
        }
        self.0.insert(name.to_owned(), Secret::new(value));
        Ok(())
    }

    /// Every option with its value, for librdkafka alone.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.expose()))
    }

    /// Every option with its value as TOML; what may be a secret is masked.
    pub fn show(&self) -> impl Iterator<Item = (&str, String)> {
        self.0.iter().map(|(name, value)| {
            (name.as_str(), if sensitive(name) { value.show() } else { value.expose().to_owned().show() })
        })
    }
}

/// Whether an option may hold a secret, judged by its name.
pub fn sensitive(name: &str) -> bool {
    ["password", "secret", "token", "pem", "jaas", "oauthbearer.config", "passphrase", "assertion", "credential"]
        .iter()
        .any(|part| name.contains(part))
        || name == "ssl_key"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<KafkaOptions, String> {
        let mut options = KafkaOptions::default();
        options.set(name, &Raw::Text(value.into())).map(|()| options)
    }

    #[test]
    fn passes_through_hides_and_refuses() {
        let options = set("security.protocol", "ssl").unwrap();
        assert_eq!(options.iter().collect::<Vec<_>>(), [("security.protocol", "ssl")]);
        let options = set("ssl.key.password", "hunter2").unwrap();
        assert_eq!(options.show().collect::<Vec<_>>(), [("ssl.key.password", "\"[secret]\"".into())]);
        assert!(!format!("{options:?}").contains("hunter2"));
        assert_eq!(
            set("acks", "1").unwrap_err(),
            "this option of librdkafka cannot be changed here: every record is acknowledged by all in-sync replicas"
        );
        assert_eq!(
            set("security.protocl", "ssl").unwrap_err(),
            "librdkafka knows no such option: the nearest known name is \"security.protocol\""
        );
        assert!(set("security.protocol", "nonsense").unwrap_err().contains("refuses it"));
    }

    #[test]
    fn every_pinned_and_common_name_is_known_to_librdkafka() {
        for name in COMMON.into_iter().chain(PINNED.iter().map(|(name, _)| *name)) {
            let mut probe = ClientConfig::new();
            probe.set(name, "");
            if let Err(KafkaError::ClientConfig(res, ..)) = probe.create_native_config() {
                assert_ne!(res, RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, "{name}");
            }
        }
    }
}
