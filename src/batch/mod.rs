//! Groups the events of many requests into records, in one batcher thread for all partitions of a kind.
//!
//! In: [`Chunk`]s over a bounded channel, never waiting (a full channel is overload, and the request is refused). Out:
//! [`Batch`]es, closed by size or by age, in the order in which the chunks came. A chunk larger than a record is cut.
//!
//! Small batches follow each other at the pace of their acknowledgements: while some are under way, those that are open
//! wait for a little longer. Each record costs Kafka the same, however few events it holds, and a machine that is busy
//! with many small ones answers each of them late.

use std::ops::Range;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender, TrySendError};

use crate::flow::{AckPart, Chunk, Sink, UnderWay};
use crate::kinds::Columns;

/// Chunks that may wait for the batcher. A request has at most one chunk for each partition, and the door bounds the
/// bodies that are in flight, so this bounds only their number.
const CHUNKS_MAX: usize = 64 * 1024;

/// A batch with less than one in so many of the events that it can have waits for company without looking up.
const SMALL_SHARE: usize = 16;

/// How many times longer a small batch waits while earlier ones are under way, and how often it looks in that time.
const PATIENCE: u32 = 5;
const LOOKS: u32 = 4;

/// Chunks taken between two looks at the clock.
const TAKEN_MAX: usize = 256;

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
    /// To be dropped once the record is settled.
    pub under_way: UnderWay,
}

/// The way into the batcher of one kind.
pub struct Inlet<C>(Sender<(u32, Chunk<C>)>);

/// Starts the batcher of `partitions`; `produce` is called in its thread and may block. The batcher ends when the inlet is
/// dropped, after it has produced what is left.
pub fn start<C, P>(name: &str, partitions: u32, options: Options, produce: P) -> std::io::Result<Inlet<C>>
where
    C: Columns,
    P: Fn(Batch<C>) + Send + 'static,
{
    let (sender, receiver) = channel::bounded(CHUNKS_MAX);
    let open = (0..partitions).map(|_| Open::default()).collect();
    let batcher = Batcher { options, receiver, produce, open, under_way: UnderWay::default() };
    std::thread::Builder::new().name(format!("batch-{name}")).spawn(move || batcher.run())?;
    Ok(Inlet(sender))
}

impl<C: Columns> Sink<C> for Inlet<C> {
    fn put(&self, partition: u32, chunk: Chunk<C>) -> Result<(), Chunk<C>> {
        self.0.try_send((partition, chunk)).map_err(|error| match error {
            TrySendError::Full((_, chunk)) | TrySendError::Disconnected((_, chunk)) => chunk,
        })
    }
}

/// One thread for all partitions: it does little for each event, and each thread that is woken for one costs more.
struct Batcher<C, P> {
    options: Options,
    receiver: Receiver<(u32, Chunk<C>)>,
    produce: P,
    /// One for each partition.
    open: Vec<Open<C>>,
    /// Of which each record that is not settled yet has a clone.
    under_way: UnderWay,
}

impl<C: Columns, P: Fn(Batch<C>)> Batcher<C, P> {
    fn run(mut self) {
        while let Ok((partition, chunk)) = self.receiver.recv() {
            let since = Instant::now();
            self.take(partition, chunk);
            self.fill(since);
            (0..self.open.len()).for_each(|partition| self.close(partition as u32));
        }
    }

    /// Takes chunks until the batch that has been open since then is old enough, or no more can come.
    fn fill(&mut self, since: Instant) {
        let linger = self.options.linger;
        while self.open.iter().any(|open| !open.columns.is_empty()) {
            let mut taken = 0;
            while taken < TAKEN_MAX
                && let Ok((partition, chunk)) = self.receiver.try_recv()
            {
                self.take(partition, chunk);
                taken += 1;
            }
            let age = since.elapsed();
            let small = self.open.iter().all(|open| open.columns.len() < self.options.events_max / SMALL_SHARE);
            let may_wait = small && age < linger * PATIENCE && self.under_way.others() > 0;
            if age >= linger && !may_wait {
                return;
            }
            // Single events come one by one, and each would wake this thread: it sleeps until they are due together.
            if small {
                std::thread::sleep(linger.saturating_sub(age).max(linger / LOOKS));
                continue;
            }
            match self.receiver.recv_timeout(linger - age) {
                Ok((partition, chunk)) => self.take(partition, chunk),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Adds a chunk, cutting it where a batch is full. The chunk's part is settled by the last batch that carries some of
    /// it: a partition's records are acknowledged in order, and each cut adds a part of its own for what comes before.
    fn take(&mut self, partition: u32, chunk: Chunk<C>) {
        let Chunk { columns, ack } = chunk;
        if ack.is_abandoned() {
            return;
        }
        let mut rest = 0..columns.len();
        while !rest.is_empty() {
            let open = &mut self.open[partition as usize];
            let rows = rows_that_fit(&self.options, &columns, &rest, &open.columns);
            rest.start = rows.end;
            let carries_some = !rows.is_empty();
            open.columns.append(&columns, rows);
            if rest.is_empty() {
                break;
            }
            if carries_some {
                open.acks.push(ack.split());
            }
            self.close(partition);
        }
        let open = &mut self.open[partition as usize];
        open.acks.push(ack);
        if open.columns.len() >= self.options.events_max || open.columns.bytes() >= self.options.bytes_max {
            self.close(partition);
        }
    }

    fn close(&mut self, partition: u32) {
        let Open { columns, acks } = std::mem::take(&mut self.open[partition as usize]);
        if !columns.is_empty() {
            (self.produce)(Batch { partition, columns, acks, under_way: self.under_way.clone() });
        }
    }
}

/// The first rows of `rest` that still go into the open batch. Events can differ much in length, so the cut is found
/// by halving. An event that is larger than a batch may be goes alone.
fn rows_that_fit<C: Columns>(options: &Options, columns: &C, rest: &Range<usize>, open: &C) -> Range<usize> {
    let room = options.bytes_max.saturating_sub(open.bytes());
    let most = options.events_max.saturating_sub(open.len()).min(rest.len());
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
    use std::sync::{Arc, Mutex};

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
    fn small_batches_wait_for_those_under_way() {
        let linger = Duration::from_millis(400);
        let (batches, received) = channel::unbounded();
        let options = Options { linger, ..options(1000) };
        let inlet =
            start("test", 1, options, move |batch: Batch<CaptchaColumns>| batches.send(batch).unwrap()).unwrap();
        let ack = Ack::new();
        let put = |ids: std::ops::Range<u8>| {
            assert!(inlet.put(0, Chunk { columns: columns(ids), ack: ack.part() }).is_ok());
        };
        put(0..3);
        let first: Batch<CaptchaColumns> = received.recv().unwrap();
        put(3..4);
        // Alone it would be sent by now.
        std::thread::sleep(linger + linger / 2);
        assert!(received.is_empty());
        put(4..6);
        drop(first);
        assert_eq!(received.recv().unwrap().columns.len(), 3);
        // Not for ever.
        put(6..7);
        let held: Batch<CaptchaColumns> = received.recv().unwrap();
        put(7..8);
        assert_eq!(received.recv().unwrap().columns.len(), 1);
        drop(held);
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
