//! What each stage costs for an event, without sockets and servers: what the budget in ARCHITECTURE.md is made of.
//!
//! `cargo bench` measures; `cargo test` runs each once, so that they do not rot. The events are captchas as
//! `bench/upload.py` sends them: lines of 160 bytes, 1,000 sites, 30 days, each key once. Each line of the result is for
//! one request, record or range; the elements per second are events.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

use millrace::accept::{AcceptOptions, Acceptor, LogRejects, Way};
use millrace::exchange::{Endpoint, Head};
use millrace::flow::Chunk;
use millrace::kinds::captcha::{Captcha, CaptchaColumns, CaptchaEvent, CaptchaType};
use millrace::kinds::instant::{DAY_US, write_instant_us};
use millrace::kinds::uuid_text::write_uuid;
use millrace::kinds::{Columns, partition_of};
use millrace::log::record;
use millrace::writer::block::BlockBuilder;
use millrace::writer::claim::Range;
use millrace::writer::rows;
use millrace::writer::seen::SeenKeys;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A body as a load balancer sends it.
const BODY_EVENTS: usize = 10_000;
/// A record under load.
const RECORD_EVENTS: usize = 8192;
/// A range under load.
const RANGE_RECORDS: usize = 16;
const PARTITIONS: u32 = 4;

/// Events that differ, the same in each run (SplitMix64).
struct Events(u64);

impl Events {
    fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn next(&mut self) -> CaptchaEvent {
        let (key, site, time) = (self.any(), self.any() % 1000, self.any());
        let day = 18_628 + (time >> 40) as i64 % 30;
        CaptchaEvent {
            time_us: day * DAY_US + time as i64 % DAY_US,
            captcha_type: if key & 1 == 0 { CaptchaType::Serve } else { CaptchaType::Solve },
            correlation_id: (u128::from(key) << 64 | u128::from(self.any())).to_be_bytes(),
            site_id: (u128::from(site.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | 7).to_be_bytes(),
        }
    }

    fn columns(&mut self, events: usize) -> CaptchaColumns {
        let mut columns = CaptchaColumns::default();
        (0..events).for_each(|_| columns.push(&self.next()));
        columns
    }

    fn body(&mut self, events: usize) -> Vec<u8> {
        let mut body = String::new();
        for _ in 0..events {
            let event = self.next();
            let kind = if event.captcha_type == CaptchaType::Serve { "serve" } else { "solve" };
            let id = |id: &[u8; 16]| String::from_utf8_lossy(&write_uuid(id)).into_owned();
            body += &format!(
                "{{\"time\": \"{}\", \"type\": \"{kind}\", \"correlation_id\": \"{}\", \"site_id\": \"{}\"}}\n",
                write_instant_us(event.time_us).trim_end_matches('Z'),
                id(&event.correlation_id),
                id(&event.site_id)
            );
        }
        body.into_bytes()
    }
}

/// A body to columns by partition: split, parse, validate, hash, group.
fn accept(criterion: &mut Criterion) {
    let taken: Arc<Mutex<usize>> = Arc::default();
    let sink = {
        let taken = taken.clone();
        move |_: u32, chunk: Chunk<CaptchaColumns>| {
            *taken.lock().expect("no bench panics") += chunk.columns.len();
            chunk.ack.settle(true);
            Ok(())
        }
    };
    let acceptor = Acceptor::new(
        Arc::new(Captcha),
        AcceptOptions::new(PARTITIONS),
        Box::new(|| Ok(Way::Log)),
        Arc::new(sink),
        Arc::new(LogRejects::default()),
        Arc::new(()),
    );
    let head = Head {
        method: "POST",
        path: "/v1/events",
        query: None,
        content_type: None,
        content_encoding: None,
        content_length: 0,
        idempotency_key: None,
        request_id: "bench",
        peer: ([127, 0, 0, 1], 0).into(),
    };
    let plain = Events(1).body(BODY_EVENTS);
    // A name with an escape is left to the JSON parser.
    let unusual = String::from_utf8_lossy(&plain).replace("\"type\"", "\"typ\\u0065\"").into_bytes();
    let mut group = criterion.benchmark_group("accept");
    group.throughput(Throughput::Elements(BODY_EVENTS as u64));
    for (name, body) in [("plain lines", plain), ("lines for the JSON parser", unusual)] {
        let mut body = body;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let answer = acceptor.answer(&head, &mut body);
                assert_eq!(answer.status, 202);
            });
        });
    }
    group.finish();
    assert!(*taken.lock().expect("no bench panics") >= 2 * BODY_EVENTS);
}

/// Columns to the value of a record, and back.
fn record(criterion: &mut Criterion) {
    let columns = Events(2).columns(RECORD_EVENTS);
    let value = record::encode(columns.clone());
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(RECORD_EVENTS as u64));
    group.bench_function("encode", |bencher| {
        bencher.iter_batched(|| columns.clone(), |columns| black_box(record::encode(columns)), BatchSize::SmallInput);
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| black_box(record::decode::<Captcha>(&[], &value).expect("a good record")).len());
    });
    group.bench_function("partition", |bencher| {
        bencher
            .iter(|| (0..RECORD_EVENTS).map(|row| partition_of(columns.correlation_id(row), PARTITIONS)).sum::<u32>());
    });
    group.finish();
}

/// Records of new events to a range's block (look up, count, gather), and the block to the streams of its inserts.
fn range(criterion: &mut Criterion) {
    let mut events = Events(3);
    let records: Vec<CaptchaColumns> = (0..RANGE_RECORDS).map(|_| events.columns(RECORD_EVENTS)).collect();
    let block = |seen: &mut SeenKeys| {
        let mut builder = BlockBuilder::<Captcha>::new();
        for (offset, record) in (0..).zip(&records) {
            builder.push(offset, 1_700_000_000_000, record, seen);
        }
        builder.finish()
    };
    let mut group = criterion.benchmark_group("range");
    group.throughput(Throughput::Elements((RANGE_RECORDS * RECORD_EVENTS) as u64));
    group.sample_size(20).measurement_time(Duration::from_secs(5));
    group.bench_function("block of new events", |bencher| {
        bencher.iter_batched(
            || SeenKeys::new(2),
            |mut seen| {
                let block = block(&mut seen);
                assert_eq!(block.new_events(), block.events);
                (block, seen)
            },
            BatchSize::PerIteration,
        );
    });
    group.bench_function("block of events seen before", |bencher| {
        let mut seen = SeenKeys::new(2);
        block(&mut seen);
        bencher.iter(|| assert_eq!(block(&mut seen).new_events(), 0));
    });
    let whole = Range { first: 0, last: RANGE_RECORDS as i64 - 1 };
    group.bench_function("streams", |bencher| {
        bencher.iter_batched(
            || block(&mut SeenKeys::new(2)),
            |block| rows::encode(block, 1, 0, whole).expect("a block is encoded").events.rows,
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(stages, accept, record, range);
criterion_main!(stages);
