//! What tells one log from another: plain data, which the inspector finds and the writer compares with its records.

/// A topic as Kafka shows it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFacts {
    /// The cluster's id.
    pub cluster_id: String,
    /// The topic's name.
    pub topic: String,
    /// The topic's id, which changes when a topic is deleted and created again (`None` before Kafka 2.8).
    pub topic_id: Option<String>,
    /// The offsets of each partition: the oldest that is still there, and one past the newest.
    pub watermarks: Vec<(i64, i64)>,
}
