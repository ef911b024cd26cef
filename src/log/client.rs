//! How every client of Kafka begins: its brokers, its name, and the options that are passed through.

use rdkafka::ClientConfig;

use crate::config;

/// Where to connect and how. What a producer, a consumer or an administrator needs beyond it comes afterwards, so that
/// the options passed through cannot override it (those that matter are refused by the configuration besides).
pub fn client_config(config: &config::Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set("client.id", "millrace");
    // A connection that cannot be made is given up in less time than a record may take to be delivered.
    client.set("socket.connection.setup.timeout.ms", "5000");
    for (name, value) in config.options.iter() {
        client.set(name, value);
    }
    client.set("bootstrap.servers", &config.brokers);
    client
}
