//! Groups the events of many requests into records, one batcher thread for each partition.
//!
//! In: [`Chunk`]s over a bounded channel for each partition, never waiting (a full channel is overload, and the request
//! is refused). Out: [`Batch`]es, closed by size or by age, in the order in which the chunks came. A chunk larger than a
//! record is cut.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender, TrySendError};

use crate::flow::{AckPart, Chunk, Sink};
use crate::kinds::Columns;

/// Chunks that may wait for one batcher. A request has at most one chunk for each partition, and the door bounds the
/// bodies that are in flight, so this bounds only their number.
const CHUNKS_MAX: usize = 16 * 1024;

/// When a batch is closed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Events in one batch, at most.
    pub events_max: usize,
    /// Bytes in one batch, at most (an event that has more goes alone).
    pub bytes_max: usize,
    /// How long the first event of a batch waits for company.
    pub linger: Duration,
}

/// Events of one partition that go into one record.
pub struct Batch<C> {
    /// Which partition.
    pub partition: u32,
    /// The events.
    pub columns: C,
    /// Who waits for them.
    pub acks: Vec<AckPart>,
}

/// The way into the batchers of one kind.
pub struct Inlet<C>(Vec<Sender<Chunk<C>>>);

/// Starts a batcher for each of `partitions`; `produce` is called in its thread and may block. The batchers end when the
/// inlet is dropped, after they have produced what is left.
pub fn start<C, P>(name: &str, partitions: u32, options: Options, produce: P) -> std::io::Result<Inlet<C>>
where
    C: Columns,
    P: Fn(Batch<C>) + Send + Sync + 'static,
{
    let produce = Arc::new(produce);
    let senders = (0..partitions).map(|partition| {
        let (sender, receiver) = channel::bounded(CHUNKS_MAX);
        let produce = produce.clone();
        let batcher = Batcher { partition, options, receiver };
        let thread = std::thread::Builder::new().name(format!("batch-{name}-{partition}"));
        thread.spawn(move || batcher.run(&*produce))?;
        Ok(sender)
    });
    Ok(Inlet(senders.collect::<std::io::Result<_>>()?))
}

impl<C: Columns> Sink<C> for Inlet<C> {
    fn put(&self, partition: u32, chunk: Chunk<C>) -> Result<(), Chunk<C>> {
        self.0[partition as usize].try_send(chunk).map_err(|error| match error {
            TrySendError::Full(chunk) | TrySendError::Disconnected(chunk) => chunk,
        })
    }
}

struct Batcher<C> {
    partition: u32,
    options: Options,
    receiver: Receiver<Chunk<C>>,
}

impl<C: Columns> Batcher<C> {
    fn run(self, produce: &impl Fn(Batch<C>)) {
        while let Ok(chunk) = self.receiver.recv() {
            let mut open = Open::default();
            self.take(chunk, &mut open, produce);
            self.fill(&mut open, produce);
            self.close(&mut open, produce);
        }
    }

    /// Takes chunks until the batch that is open is old or full, or no more can come.
    fn fill(&self, open: &mut Open<C>, produce: &impl Fn(Batch<C>)) {
        let deadline = Instant::now() + self.options.linger;
        while !open.columns.is_empty() {
            match self.receiver.recv_deadline(deadline) {
                Ok(chunk) => self.take(chunk, open, produce),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Adds a chunk, cutting it where a batch is full. The chunk's part is settled by the last batch that carries some of
    /// it: a partition's records are acknowledged in order, and each cut adds a part of its own for what comes before.
    fn take(&self, chunk: Chunk<C>, open: &mut Open<C>, produce: &impl Fn(Batch<C>)) {
        let Chunk { columns, ack } = chunk;
        if ack.is_abandoned() {
            return;
        }
        let mut rest = 0..columns.len();
        while !rest.is_empty() {
            let rows = self.rows_that_fit(&columns, &rest, &open.columns);
            rest.start = rows.end;
            let carries_some = !rows.is_empty();
            open.columns.append(&columns, rows);
            if rest.is_empty() {
                break;
            }
            if carries_some {
                open.acks.push(ack.split());
            }
            self.close(open, produce);
        }
        open.acks.push(ack);
        if open.columns.len() >= self.options.events_max || open.columns.bytes() >= self.options.bytes_max {
            self.close(open, produce);
        }
    }

    /// The first rows of `rest` that still go into the open batch. Events can differ much in length, so the cut is found
    /// by halving. An event that is larger than a batch may be goes alone.
    fn rows_that_fit(&self, columns: &C, rest: &Range<usize>, open: &C) -> Range<usize> {
        let room = self.options.bytes_max.saturating_sub(open.bytes());
        let most = self.options.events_max.saturating_sub(open.len()).min(rest.len());
        let fits = |rows: usize| columns.bytes_of(rest.start..rest.start + rows) <= room;
        let mut fitting = most;
        if !fits(most) {
            let mut beyond = most;
            fitting = 0;
            while beyond - fitting > 1 {
                let middle = fitting + (beyond - fitting) / 2;
                if fits(middle) { fitting = middle } else { beyond = middle }
            }
        }
        let rows = if open.is_empty() { fitting.max(1) } else { fitting };
        rest.start..rest.start + rows
    }

    fn close(&self, open: &mut Open<C>, produce: &impl Fn(Batch<C>)) {
        let Open { columns, acks } = std::mem::take(open);
        if !columns.is_empty() {
            produce(Batch { partition: self.partition, columns, acks });
        }
    }
}

struct Open<C> {
    columns: C,
    acks: Vec<AckPart>,
}

impl<C: Default> Default for Open<C> {
    fn default() -> Open<C> {
        Open { columns: C::default(), acks: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow::array::{AsArray, RecordBatch, StringArray};
    use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

    use super::*;
    use crate::dice::Dice;
    use crate::flow::Ack;
    use crate::kinds::BadRecord;
    use crate::kinds::captcha::{CaptchaColumns, CaptchaEvent, CaptchaType};

    fn columns(ids: std::ops::Range<u8>) -> CaptchaColumns {
        let mut columns = CaptchaColumns::default();
        for id in ids {
            let (time_us, captcha_type) = (i64::from(id), CaptchaType::Serve);
            columns.push(&CaptchaEvent { time_us, captcha_type, correlation_id: [id; 16], site_id: [0; 16] });
        }
        columns
    }

    fn options(events_max: usize) -> Options {
        Options { events_max, bytes_max: 1 << 20, linger: Duration::from_millis(5) }
    }

    /// Sends chunks to one batcher and returns the batches' lengths, and whether the request was acknowledged.
    fn batches(options: Options, chunks: &[(u8, u8)], acknowledge: fn(usize) -> bool) -> (Vec<usize>, bool) {
        let lengths = Arc::new(Mutex::new(Vec::new()));
        let seen = lengths.clone();
        let inlet = start("test", 1, options, move |batch: Batch<CaptchaColumns>| {
            let mut seen = seen.lock().unwrap();
            seen.push(batch.columns.len());
            let acknowledged = acknowledge(seen.len());
            batch.acks.into_iter().for_each(|ack| ack.settle(acknowledged));
        })
        .unwrap();
        let ack = Ack::new();
        for &(first, end) in chunks {
            assert!(inlet.put(0, Chunk { columns: columns(first..end), ack: ack.part() }).is_ok());
        }
        let acknowledged = ack.wait(Duration::from_secs(20));
        drop(inlet);
        let lengths = lengths.lock().unwrap().clone();
        (lengths, acknowledged)
    }

    #[test]
    fn small_chunks_share_a_batch_and_large_ones_are_cut() {
        let (lengths, acknowledged) = batches(options(10), &[(0, 3), (3, 6)], |_| true);
        assert_eq!(lengths.iter().sum::<usize>(), 6);
        assert!(lengths.len() <= 2 && acknowledged);
        let (lengths, acknowledged) = batches(options(10), &[(0, 25)], |_| true);
        assert_eq!(lengths, [10, 10, 5]);
        assert!(acknowledged);
    }

    #[test]
    fn a_request_fails_with_any_of_its_batches() {
        let (_, acknowledged) = batches(options(10), &[(0, 25)], |batch| batch != 2);
        assert!(!acknowledged);
    }

    #[test]
    fn a_batch_is_bounded_in_bytes() {
        let bytes_per_event = columns(0..100).bytes() / 100;
        let (lengths, _) = batches(Options { bytes_max: bytes_per_event * 20, ..options(1000) }, &[(0, 100)], |_| true);
        assert_eq!(lengths.iter().sum::<usize>(), 100);
        assert!(lengths.iter().all(|length| *length <= 20), "{lengths:?}");
    }

    /// Events of very different lengths, as lines of text.
    #[derive(Default)]
    struct Texts(Vec<String>);

    impl Columns for Texts {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn bytes_of(&self, rows: Range<usize>) -> usize {
            self.0[rows].iter().map(String::len).sum()
        }
        fn append(&mut self, from: &Self, rows: Range<usize>) {
            self.0.extend_from_slice(&from.0[rows]);
        }
        fn schema() -> SchemaRef {
            Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, false)]))
        }
        fn into_batch(self) -> RecordBatch {
            RecordBatch::try_new(Self::schema(), vec![Arc::new(StringArray::from(self.0))]).unwrap()
        }
        fn from_batch(batch: &RecordBatch) -> Result<Self, BadRecord> {
            let texts = batch.column(0).as_string::<i32>();
            Ok(Texts(texts.iter().flatten().map(str::to_owned).collect()))
        }
    }

    #[test]
    fn uneven_events_make_no_record_larger_than_meant() {
        const BYTES_MAX: usize = 10_000;
        let mut dice = Dice::new("uneven events");
        let records: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
        let seen = records.clone();
        let options = Options { events_max: 100, bytes_max: BYTES_MAX, linger: Duration::from_millis(5) };
        let inlet = start("uneven", 1, options, move |batch: Batch<Texts>| {
            assert!(!batch.acks.is_empty());
            // Before anybody is told, since who waits for all of them looks at the records next.
            seen.lock().unwrap().push(batch.columns.0);
            batch.acks.into_iter().for_each(|ack| ack.settle(true));
        })
        .unwrap();
        let mut sent = Vec::new();
        let mut acks = Vec::new();
        for _ in 0..200 {
            let texts: Vec<String> = (0..1 + dice.below(40))
                .map(|_| "x".repeat(*dice.pick(&[1, 10, 900, BYTES_MAX - 1, BYTES_MAX, BYTES_MAX + 1, 3 * BYTES_MAX])))
                .collect();
            sent.extend(texts.clone());
            let ack = Ack::new();
            assert!(inlet.put(0, Chunk { columns: Texts(texts), ack: ack.part() }).is_ok());
            acks.push(ack);
        }
        assert!(acks.iter().all(|ack| ack.wait(Duration::from_secs(20))));
        drop(inlet);
        let records = records.lock().unwrap();
        for record in records.iter() {
            let bytes: usize = record.iter().map(String::len).sum();
            assert!(record.len() <= 100 && (bytes <= BYTES_MAX || record.len() == 1), "{} in {bytes}", record.len());
        }
        assert_eq!(records.concat(), sent);
    }

    #[test]
    fn nobody_waits_for_a_part_that_was_dropped() {
        let ack = Ack::new();
        drop(ack.part());
        assert!(!ack.wait(Duration::from_secs(20)));
    }

    #[test]
    fn the_work_of_a_request_that_has_given_up_is_saved() {
        let ack = Ack::new();
        let part = ack.part();
        assert!(!ack.wait(Duration::ZERO));
        assert!(part.is_abandoned());
    }
}
