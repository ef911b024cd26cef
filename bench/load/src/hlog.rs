//! HdrHistogram's interval log: for each second and kind of request one histogram, in nanoseconds.
//!
//! Written as it happens, by a thread of its own, so that a run that ends hard leaves what it had.

use std::fs::File;
use std::io::{self, LineWriter};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

/// Readers show the largest value in milliseconds, as is usual.
const NS_PER_MS: f64 = 1e6;

struct Entry {
    tag: String,
    start: Duration,
    length: Duration,
    histogram: Histogram<u64>,
}

/// A log that is being written.
pub struct Hlog {
    entries: Sender<Entry>,
    thread: JoinHandle<io::Result<()>>,
}

impl Hlog {
    /// `title` becomes a comment.
    pub fn create(path: &Path, started: SystemTime, title: String) -> io::Result<Hlog> {
        let file = LineWriter::new(File::create(path)?);
        let (entries, incoming) = channel();
        let thread = std::thread::Builder::new()
            .name("hlog".to_owned())
            .spawn(move || write(file, started, &title, &incoming))?;
        Ok(Hlog { entries, thread })
    }

    /// `start` counts from the start of the log.
    pub fn add(&self, tag: String, start: Duration, length: Duration, histogram: Histogram<u64>) {
        // Should the thread have failed, `finish` tells why.
        let _ = self.entries.send(Entry { tag, start, length, histogram });
    }

    pub fn finish(self) -> io::Result<()> {
        drop(self.entries);
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the writer of the log ended in a defect")))
    }
}

fn write(mut file: LineWriter<File>, started: SystemTime, title: &str, incoming: &Receiver<Entry>) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Histogram log format version 1.3]")
        .add_comment(title)
        .with_start_time(started)
        .with_base_time(started)
        .with_max_value_divisor(NS_PER_MS)
        .begin_log_with(&mut file, &mut serializer)?;
    for entry in incoming {
        log.write_histogram(&entry.histogram, entry.start, entry.length, Tag::new(&entry.tag))
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn what_is_written_can_be_read() {
        let path = std::env::temp_dir().join(format!("millrace-load-{}.hlog", std::process::id()));
        let log = Hlog::create(&path, SystemTime::now(), "a title".to_owned()).unwrap();
        let mut histogram = crate::tally::histogram();
        for value in [1_000_000, 2_000_000, 50_000_000] {
            histogram.record(value).unwrap();
        }
        let second = Duration::from_secs(1);
        log.add("single".to_owned(), second, second, histogram.clone());
        log.add("bulk".to_owned(), second * 2, second, crate::tally::histogram());
        log.finish().unwrap();
        let text = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let found: Vec<_> = IntervalLogIterator::new(&text)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].tag().unwrap().as_str(), "single");
        assert!((found[0].max() - 50.0).abs() < 0.1);
        let packed = flate_and_base64(found[0].encoded_histogram());
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut packed.as_slice()).unwrap();
        assert_eq!((read.len(), read.max()), (3, histogram.max()));
    }

    /// The bytes of base64's text.
    fn flate_and_base64(text: &str) -> Vec<u8> {
        let digit = |byte: u8| {
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
                .iter()
                .position(|known| *known == byte)
                .unwrap() as u32
        };
        let mut bytes = Vec::new();
        for four in text.trim_end_matches('=').as_bytes().chunks(4) {
            let bits = four.iter().fold(0, |bits, byte| bits << 6 | digit(*byte)) << (6 * (4 - four.len()));
            bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
        }
        bytes
    }
}
