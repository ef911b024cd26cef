//! Whether the log is still the one that was recorded.
//!
//! A generation is one life of the log: a topic of a cluster with its partitions. Offsets mean nothing across
//! generations, so the rows, the commits and the tokens carry its number. A log that is not the recorded one is
//! refused until the operator opens a new generation, since reading on would take new records for stored ones.

use crate::log::facts::LogFacts;

/// A generation as ClickHouse records it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Counted from 1.
    pub number: u32,
    /// The id of the Kafka cluster.
    pub cluster_id: String,
    /// The topic's name.
    pub topic: String,
    /// The topic's id, which a topic that is deleted and created again does not keep; `None` from brokers that do not
    /// tell (before 2.8).
    pub topic_id: Option<String>,
    /// The first offset of each partition that belongs to this generation; their number is the partition count.
    pub start_offsets: Vec<i64>,
}

impl Generation {
    /// How many partitions the log has.
    pub fn partitions(&self) -> usize {
        self.start_offsets.len()
    }

    /// The log's name in tokens: cluster, topic and topic id as recorded (never as found later, since brokers may begin
    /// to tell ids and the tokens of an unfinished range must not change).
    pub fn identity(&self) -> String {
        format!("{}/{}/{}", self.cluster_id, self.topic, self.topic_id.as_deref().unwrap_or("-"))
    }

    /// Whether events with equal keys lie in equal partitions of both generations. Where they do not, the keys of
    /// every partition of the earlier one count as seen in each partition of the later one.
    pub fn same_layout(&self, other: &Generation) -> bool {
        self.partitions() == other.partitions()
    }

    fn describes(&self, log: &LogFacts) -> bool {
        self.same_topic(log) && self.partitions() == log.watermarks.len()
    }

    fn same_topic(&self, log: &LogFacts) -> bool {
        self.cluster_id == log.cluster_id && self.topic == log.topic && self.same_topic_id(log)
    }

    /// Unknown ids are taken for equal: the log's extent still tells most re-created topics apart.
    fn same_topic_id(&self, log: &LogFacts) -> bool {
        match (&self.topic_id, &log.topic_id) {
            (Some(recorded), Some(found)) => recorded == found,
            _ => true,
        }
    }
}

/// What follows from comparing the log with the recorded generations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is the newest generation, which has this number.
    Known(u32),
    /// Nothing is recorded: this is the generation to record.
    First(Generation),
    /// It is another log; the message is for the operator.
    Refuse(String),
}

/// Compares the log with the recorded generations, in any order.
pub fn decide(recorded: &[Generation], log: &LogFacts) -> Decision {
    let Some(newest) = recorded.iter().max_by_key(|generation| generation.number) else {
        return Decision::First(generation(1, log, lows(log)));
    };
    if newest.describes(log) {
        return Decision::Known(newest.number);
    }
    Decision::Refuse(refusal(recorded, newest, log))
}

/// What keeps a new generation from being opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The newest generation has events that are stored and not yet counted.
    #[error(
        "partitions {0:?} hold events that are stored but not counted yet: start `millrace write` on the old log once more so \
         that it finishes them, then open the new generation"
    )]
    Uncounted(Vec<usize>),
    /// Fewer or more partitions were described than the newest generation has.
    #[error("the store tells of {found} partitions, the newest generation has {recorded}")]
    Partitions {
        /// How many the store told of.
        found: usize,
        /// How many are recorded.
        recorded: usize,
    },
}

/// What is stored of a partition in the newest generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// One past the last offset that is stored and counted; `None` when nothing is.
    pub next: Option<i64>,
    /// Whether there are events at or after `next`.
    pub uncounted: bool,
}

/// The generation to record when the operator opens a new one for `log`, with every writer stopped.
///
/// The same topic goes on after what is stored. Where that lies outside of the log now, it goes on at the log's start:
/// after retention nothing else is left, and after a lost tail the records before it may be new ones (events
/// with a key are still counted once, since the keys of all generations count as seen; those without a key are
/// counted again). Another topic is read from its start.
pub fn open(recorded: &[Generation], log: &LogFacts, stored: &[Stored]) -> Result<Generation, OpenError> {
    let Some(newest) = recorded.iter().max_by_key(|generation| generation.number) else {
        return Ok(generation(1, log, lows(log)));
    };
    if stored.len() != newest.partitions() {
        return Err(OpenError::Partitions { found: stored.len(), recorded: newest.partitions() });
    }
    let uncounted: Vec<usize> = (0..stored.len()).filter(|&partition| stored[partition].uncounted).collect();
    if !uncounted.is_empty() {
        return Err(OpenError::Uncounted(uncounted));
    }
    let mut start_offsets = lows(log);
    if newest.same_topic(log) {
        for (partition, start) in start_offsets.iter_mut().enumerate().take(stored.len()) {
            let next = stored[partition].next.unwrap_or(newest.start_offsets[partition]);
            let (low, high) = log.watermarks[partition];
            if (low..=high).contains(&next) {
                *start = next;
            }
        }
    }
    Ok(generation(newest.number + 1, log, start_offsets))
}

fn generation(number: u32, log: &LogFacts, start_offsets: Vec<i64>) -> Generation {
    Generation {
        number,
        cluster_id: log.cluster_id.clone(),
        topic: log.topic.clone(),
        topic_id: log.topic_id.clone(),
        start_offsets,
    }
}

fn lows(log: &LogFacts) -> Vec<i64> {
    log.watermarks.iter().map(|(low, _)| *low).collect()
}

fn refusal(recorded: &[Generation], newest: &Generation, log: &LogFacts) -> String {
    let found = if newest.cluster_id != log.cluster_id {
        format!(
            "topic {} is now in kafka cluster {}, but generation {} of the log is in cluster {}",
            log.topic, log.cluster_id, newest.number, newest.cluster_id
        )
    } else if newest.topic != log.topic {
        format!("the topic is now {}, but generation {} of the log is topic {}", log.topic, newest.number, newest.topic)
    } else if !newest.same_topic_id(log) {
        format!(
            "topic {} was deleted and created again since generation {} of the log was recorded (its id was {}, and \
             now is {})",
            log.topic,
            newest.number,
            newest.topic_id.as_deref().unwrap_or("unknown"),
            log.topic_id.as_deref().unwrap_or("unknown")
        )
    } else {
        return format!(
            "topic {} has {} partitions, but generation {} of the log has {}: copies of one event share a partition \
             only while the count stays the same; create a new topic with the count you want, let the program store what \
             the old one holds, set the new one in the configuration and run `millrace migrate \
             --new-generation` (on this topic that command goes on too, but copies of an event that lie on both \
             sides of the change and were not stored yet may be counted twice)",
            log.topic,
            log.watermarks.len(),
            newest.number,
            newest.partitions()
        );
    };
    let earlier = recorded.iter().find(|generation| generation.number != newest.number && generation.describes(log));
    let earlier =
        earlier.map_or(String::new(), |generation| format!(" (it is the log of generation {})", generation.number));
    format!(
        "{found}{earlier}; if that is a mistake, correct the configuration; if the log was replaced on purpose, stop all \
         writers and run `millrace migrate --new-generation`: it reads this log from its start, and events that are stored \
         already stay counted once"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> LogFacts {
        LogFacts {
            cluster_id: "c1".into(),
            topic: "captcha".into(),
            topic_id: Some("t1".into()),
            watermarks: vec![(0, 100), (5, 50)],
        }
    }

    fn first() -> Generation {
        match decide(&[], &log()) {
            Decision::First(generation) => generation,
            other => panic!("{other:?}"),
        }
    }

    fn refused(recorded: &[Generation], log: &LogFacts) -> String {
        match decide(recorded, log) {
            Decision::Refuse(message) => message,
            other => panic!("{other:?}"),
        }
    }

    fn stored(next: &[Option<i64>]) -> Vec<Stored> {
        next.iter().map(|next| Stored { next: *next, uncounted: false }).collect()
    }

    #[test]
    fn an_unknown_log_becomes_the_first_generation() {
        let first = first();
        assert_eq!((first.number, &first.start_offsets[..]), (1, &[0, 5][..]));
        assert_eq!(first.identity(), "c1/captcha/t1");
        assert_eq!(decide(&[first], &log()), Decision::Known(1));
    }

    #[test]
    fn only_the_newest_generation_is_known() {
        let newer = LogFacts { topic: "captcha2".into(), topic_id: Some("t2".into()), ..log() };
        let second = open(&[first()], &newer, &stored(&[Some(100), Some(50)]));
        let recorded = [second.expect("opens"), first()];
        assert_eq!(decide(&recorded, &newer), Decision::Known(2));
        let message = refused(&recorded, &log());
        assert!(message.contains("the topic is now captcha, but generation 2 of the log is topic captcha2"));
        assert!(message.contains("it is the log of generation 1"), "{message}");
    }

    #[test]
    fn another_log_is_refused() {
        let recorded = [first()];
        let recreated = LogFacts { topic_id: Some("t9".into()), ..log() };
        assert!(refused(&recorded, &recreated).starts_with("topic captcha was deleted and created again"));
        let cluster = LogFacts { cluster_id: "c2".into(), ..log() };
        assert!(refused(&recorded, &cluster).starts_with("topic captcha is now in kafka cluster c2"));
        let grown = LogFacts { watermarks: vec![(0, 1); 3], ..log() };
        assert!(refused(&recorded, &grown).starts_with("topic captcha has 3 partitions, but generation 1"));
        for message in [refused(&recorded, &recreated), refused(&recorded, &cluster), refused(&recorded, &grown)] {
            assert!(message.contains("`millrace migrate --new-generation`"));
        }
    }

    #[test]
    fn an_id_that_is_not_told_is_not_another() {
        let untold = LogFacts { topic_id: None, ..log() };
        assert_eq!(decide(&[first()], &untold), Decision::Known(1));
        let recorded = Generation { topic_id: None, ..first() };
        assert_eq!(recorded.identity(), "c1/captcha/-");
        assert_eq!(decide(&[recorded], &log()), Decision::Known(1));
    }

    #[test]
    fn the_same_topic_goes_on_after_what_is_stored() {
        let opened =
            |log: &LogFacts, next: &[Option<i64>]| open(&[first()], log, &stored(next)).map(|it| it.start_offsets);
        assert_eq!(opened(&log(), &[Some(40), None]), Ok(vec![40, 5]));
        // Retention has removed what was next, or the tail is lost.
        let lost = LogFacts { watermarks: vec![(60, 100), (5, 20)], ..log() };
        assert_eq!(opened(&lost, &[Some(40), Some(30)]), Ok(vec![60, 5]));
        // Further partitions, and another topic.
        let grown = LogFacts { watermarks: vec![(0, 100), (5, 50), (0, 9)], ..log() };
        assert_eq!(opened(&grown, &[Some(40), Some(30)]), Ok(vec![40, 30, 0]));
        let other = LogFacts { topic: "other".into(), ..log() };
        assert_eq!(opened(&other, &[Some(40), Some(30)]), Ok(vec![0, 5]));
    }

    #[test]
    fn a_generation_with_uncounted_events_is_not_left() {
        let mut partitions = stored(&[Some(40), Some(30)]);
        partitions[1].uncounted = true;
        assert_eq!(open(&[first()], &log(), &partitions), Err(OpenError::Uncounted(vec![1])));
        let short = stored(&[Some(40)]);
        assert_eq!(open(&[first()], &log(), &short), Err(OpenError::Partitions { found: 1, recorded: 2 }));
    }

    #[test]
    fn layouts_are_the_same_when_the_partition_counts_are() {
        let other = Generation { start_offsets: vec![0; 3], ..first() };
        assert!(first().same_layout(&first()) && !first().same_layout(&other));
    }
}
