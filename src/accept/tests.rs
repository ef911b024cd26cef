//! The endpoint as the door uses it, with a sink in place of the batchers.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::dice::Dice;
use crate::flow::AckPart;
use crate::kinds::captcha::{Captcha, CaptchaColumns, CaptchaType};
use crate::kinds::uuid_text::write_uuid;

type Stored = Arc<Mutex<BTreeMap<u32, CaptchaColumns>>>;

#[derive(Default)]
struct Counts {
    accepted: Mutex<u64>,
    rejected: Mutex<BTreeMap<&'static str, u64>>,
    unavailable: AtomicUsize,
    rejects: Mutex<Vec<(u64, Vec<u8>, &'static str)>>,
}

impl AcceptObserver for Counts {
    fn accepted(&self, events: u64) {
        *self.accepted.lock().unwrap() += events;
    }
    fn rejected(&self, code: &'static str, events: u64) {
        *self.rejected.lock().unwrap().entry(code).or_default() += events;
    }
    fn unavailable(&self) {
        self.unavailable.fetch_add(1, Ordering::Relaxed);
    }
}

impl RejectSink for Counts {
    fn reject(&self, rejected: &Rejected<'_>) {
        assert_eq!((rejected.kind, rejected.peer), ("captcha", PEER));
        self.rejects.lock().unwrap().push((rejected.line, rejected.raw.to_vec(), rejected.reason.code));
    }
}

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 4711);
const PARTITIONS: u32 = 4;

fn head() -> Head<'static> {
    Head {
        method: "POST",
        path: "/v1/events",
        query: None,
        content_type: None,
        content_encoding: None,
        content_length: 0,
        idempotency_key: None,
        request_id: "test",
        peer: PEER,
    }
}

struct Bench {
    acceptor: Acceptor<Captcha>,
    counts: Arc<Counts>,
}

fn with_sink(sink: impl Sink<CaptchaColumns>) -> Bench {
    let counts = Arc::new(Counts::default());
    let options = AcceptOptions { ack_timeout: Duration::from_millis(300), ..AcceptOptions::new(PARTITIONS) };
    let acceptor = Acceptor::new(
        Arc::new(Captcha),
        options,
        Box::new(|| Ok(Way::Log)),
        Arc::new(sink),
        counts.clone(),
        counts.clone(),
    );
    Bench { acceptor, counts }
}

/// Stores what comes and acknowledges it at once.
fn storing() -> (Bench, Stored) {
    let stored = Stored::default();
    let into = stored.clone();
    let bench = with_sink(move |partition, Chunk { columns, ack }: Chunk<CaptchaColumns>| {
        into.lock().unwrap().entry(partition).or_default().append(&columns, 0..columns.len());
        ack.settle(true);
        Ok(())
    });
    (bench, stored)
}

impl Bench {
    fn post(&self, body: &str) -> (u16, serde_json::Value) {
        let answer = self.acceptor.answer(&head(), &mut body.as_bytes().to_vec());
        assert_eq!(answer.content_type, "application/json");
        assert_eq!(answer.retry_after_s.is_some(), answer.status == 503);
        (answer.status, serde_json::from_slice(&answer.body).unwrap())
    }
}

fn event(id: u128) -> String {
    let id = String::from_utf8(write_uuid(&id.to_be_bytes()).to_vec()).unwrap();
    format!(r#"{{"time":"2021-01-22T18:20:42.159246","type":"serve","correlation_id":"{id}","site_id":"{id}"}}"#)
}

fn counts(answer: &serde_json::Value) -> (u64, u64) {
    (answer["accepted"].as_u64().unwrap(), answer["rejected"].as_u64().unwrap())
}

#[test]
fn one_event_lies_in_its_partition() {
    let (bench, stored) = storing();
    let (status, answer) = bench.post(&event(7));
    assert_eq!(status, 202);
    assert_eq!(answer, serde_json::json!({"accepted": 1, "rejected": 0, "errors": []}));
    let stored = stored.lock().unwrap();
    let partition = partition_of(&7u128.to_be_bytes(), PARTITIONS);
    assert_eq!(stored.keys().collect::<Vec<_>>(), [&partition]);
    let columns = &stored[&partition];
    assert_eq!((columns.len(), columns.time_us(0)), (1, 1_611_339_642_159_246));
    assert_eq!((columns.captcha_type(0), columns.correlation_id(0)), (CaptchaType::Serve, &7u128.to_be_bytes()));
    assert_eq!(*bench.counts.accepted.lock().unwrap(), 1);
}

#[test]
fn good_lines_are_taken_and_bad_ones_named() {
    let (bench, stored) = storing();
    let bad_site = event(3).replace(r#""site_id":"0000"#, r#""site_id":"x000"#);
    let body = format!("{}\r\n\n{bad_site}\ngarbage\n{}{}\n5\n", event(1), event(2), event(4));
    let (status, answer) = bench.post(&body);
    assert_eq!((status, counts(&answer)), (202, (3, 3)));
    let errors: Vec<_> =
        answer["errors"].as_array().unwrap().iter().map(|e| (&e["line"], &e["code"], &e["field"])).collect();
    let expected = serde_json::json!([[3, "bad_uuid", "site_id"], [4, "bad_json", null], [6, "not_an_object", null]]);
    assert_eq!(serde_json::json!(errors), expected);
    assert_eq!(stored.lock().unwrap().values().map(Columns::len).sum::<usize>(), 3);
    let rejects = bench.counts.rejects.lock().unwrap();
    let expected = [
        (3, bad_site.into_bytes(), "bad_uuid"),
        (4, b"garbage".to_vec(), "bad_json"),
        (6, b"5".to_vec(), "not_an_object"),
    ];
    assert_eq!(*rejects, expected);
    let by_code = bench.counts.rejected.lock().unwrap();
    assert_eq!(*by_code, BTreeMap::from([("bad_uuid", 1), ("bad_json", 1), ("not_an_object", 1)]));
}

#[test]
fn array_elements_are_named_by_index() {
    let (bench, _) = storing();
    let (status, answer) = bench.post(&format!("\n\n[{},\n{{}},\n{}]\n", event(1), event(2)));
    assert_eq!((status, counts(&answer)), (202, (2, 1)));
    assert_eq!((&answer["errors"][0]["line"], &answer["errors"][0]["code"]), (&2.into(), &"missing_field".into()));
}

#[test]
fn each_status() {
    let (bench, stored) = storing();
    let good = event(1);
    for (body, status, expected) in [
        (String::new(), 400, (0, 0)),
        (" \r\n".into(), 400, (0, 0)),
        ("[]".into(), 400, (0, 0)),
        ("garbage".into(), 400, (0, 1)),
        ("{\n{\n{".into(), 400, (0, 3)),
        (format!("[{good},{good}"), 400, (0, 1)),
        (format!("[{good}{good}]"), 400, (0, 1)),
        ("{}".into(), 422, (0, 1)),
        ("5".into(), 422, (0, 1)),
        ("null\ngarbage".into(), 422, (0, 2)),
        ("[1,2]".into(), 422, (0, 2)),
        (format!("[{good}]\ngarbage"), 422, (0, 2)),
        (format!("\"{}\"", "x".repeat(1 << 20)), 422, (0, 1)),
        (format!("[{good}]\n{good}"), 202, (1, 1)),
        (format!("[{good}]"), 202, (1, 0)),
        (format!("\u{feff}{good}"), 202, (1, 0)),
        (format!("{good}{good}"), 202, (2, 0)),
        (good.replace("\"time\"", "\"x\":1e999,\"time\""), 202, (1, 0)),
        (good.replace("\"time\"", "\"x\":\"\\ud800\",\"time\""), 202, (1, 0)),
        (good.replace("\"time\"", &format!("\"x\":{}{},\"time\"", "[".repeat(5000), "]".repeat(5000))), 202, (1, 0)),
    ] {
        stored.lock().unwrap().clear();
        let (found, answer) = bench.post(&body);
        assert_eq!((found, counts(&answer)), (status, expected), "{body:.100}");
        assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["accepted", "errors", "rejected"]);
        assert_eq!(stored.lock().unwrap().values().map(Columns::len).sum::<usize>() as u64, expected.0);
    }
}

#[test]
fn lists_a_hundred_errors_and_counts_all() {
    let (bench, _) = storing();
    let (status, answer) = bench.post(&"{}\n".repeat(1000));
    assert_eq!((status, counts(&answer)), (422, (0, 1000)));
    let errors = answer["errors"].as_array().unwrap();
    assert_eq!((errors.len(), &errors[99]["line"]), (100, &100.into()));
    assert_eq!(bench.counts.rejected.lock().unwrap()["missing_field"], 1000);
}

#[test]
fn keeps_the_order_of_the_body_in_each_partition() {
    let mut dice = Dice::new("keeps_the_order_of_the_body_in_each_partition");
    let (bench, stored) = storing();
    let ids: Vec<u128> = (0..5000).map(|_| dice.below(500) as u128).collect();
    let body: String = ids.iter().map(|id| event(*id) + "\n").collect();
    assert_eq!(bench.post(&body).0, 202);
    let mut expected: BTreeMap<u32, Vec<u128>> = BTreeMap::new();
    for id in ids {
        expected.entry(partition_of(&id.to_be_bytes(), PARTITIONS)).or_default().push(id);
    }
    assert_eq!(expected.len(), PARTITIONS as usize);
    let stored = stored.lock().unwrap();
    for (partition, ids) in expected {
        let columns = &stored[&partition];
        let found: Vec<u128> =
            (0..columns.len()).map(|row| u128::from_be_bytes(*columns.correlation_id(row))).collect();
        assert_eq!(found, ids);
    }
}

#[test]
fn no_room_is_unavailable() {
    let bench = with_sink(|_, chunk| Err(chunk));
    let (status, answer) = bench.post(&event(1));
    assert_eq!((status, &answer["error"]["code"]), (503, &"unavailable".into()));
    // What needs no room is answered all the same.
    assert_eq!(bench.post("garbage").0, 400);
    assert_eq!(bench.counts.unavailable.load(Ordering::Relaxed), 1);
    assert_eq!(*bench.counts.accepted.lock().unwrap(), 0);
}

#[test]
fn a_failed_record_is_unavailable() {
    // One partition of several fails: by saying so, or by forgetting the request.
    for forget in [false, true] {
        let count = AtomicUsize::new(0);
        let bench = with_sink(move |_, chunk: Chunk<CaptchaColumns>| {
            let first = count.fetch_add(1, Ordering::Relaxed) == 0;
            if first && forget {
                drop(chunk)
            } else {
                chunk.ack.settle(!first)
            }
            Ok(())
        });
        let body: String = (0..50).map(event).collect();
        assert_eq!(bench.post(&body).0, 503);
    }
}

#[test]
fn a_log_that_does_not_answer_is_unavailable_in_time() {
    let kept: Arc<Mutex<Vec<AckPart>>> = Arc::default();
    let keep = kept.clone();
    let bench = with_sink(move |_, chunk: Chunk<CaptchaColumns>| {
        keep.lock().unwrap().push(chunk.ack);
        Ok(())
    });
    let asked = std::time::Instant::now();
    assert_eq!(bench.post(&event(1)).0, 503);
    assert!(asked.elapsed() >= Duration::from_millis(300));
    // A late acknowledgement harms nobody.
    kept.lock().unwrap().drain(..).for_each(|ack| ack.settle(true));
    assert_eq!(*bench.counts.accepted.lock().unwrap(), 0);
}

#[test]
fn waits_for_every_partition() {
    let settled = Arc::new(AtomicUsize::new(0));
    let seen = settled.clone();
    let (sender, receiver) = std::sync::mpsc::channel::<AckPart>();
    let thread = std::thread::spawn(move || {
        for ack in receiver {
            std::thread::yield_now();
            settled.fetch_add(1, Ordering::SeqCst);
            ack.settle(true);
        }
    });
    let bench = with_sink(move |_, chunk: Chunk<CaptchaColumns>| {
        sender.send(chunk.ack).unwrap();
        Ok(())
    });
    let body: String = (0..50).map(event).collect();
    assert_eq!(bench.post(&body).0, 202);
    assert_eq!(seen.load(Ordering::SeqCst), PARTITIONS as usize);
    drop(bench);
    thread.join().unwrap();
}

#[test]
fn is_asked_before_the_body() {
    let (mut bench, _) = storing();
    assert_eq!(bench.acceptor.admit(&head()), Ok(()));
    assert_eq!(bench.acceptor.admit(&Head { query: Some(""), ..head() }), Ok(()));
    let status = |fault: Result<(), Fault>| fault.unwrap_err().answer().status;
    assert_eq!(status(bench.acceptor.admit(&Head { content_type: Some("text/plain"), ..head() })), 415);
    assert!(bench.acceptor.takes_coded_bodies());
    assert_eq!(status(bench.acceptor.admit(&Head { query: Some("x=1"), ..head() })), 400);
    bench.acceptor.room = Box::new(|| Err(Fault::Unavailable { message: "full".into(), retry_after_s: 2 }));
    assert_eq!(status(bench.acceptor.admit(&head())), 503);
}

#[test]
fn works_in_a_coroutine_and_yields() {
    let (bench, stored) = storing();
    let acceptor = Arc::new(bench.acceptor);
    let body: Arc<String> = Arc::new((0..20_000).map(|id| event(id) + "\n").collect());
    let turns = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (acceptor, body, turns) = (acceptor.clone(), body.clone(), turns.clone());
            // SAFETY: the coroutine keeps no thread-local state across a yield.
            unsafe {
                may::coroutine::Builder::new()
                    .stack_size(0x2000)
                    .spawn(move || {
                        let answer = acceptor.answer(&head(), &mut body.as_bytes().to_vec());
                        turns.fetch_add(1, Ordering::Relaxed);
                        answer.status
                    })
                    .unwrap()
            }
        })
        .collect();
    for worker in workers {
        assert_eq!(worker.join().unwrap(), 202);
    }
    assert_eq!(stored.lock().unwrap().values().map(Columns::len).sum::<usize>(), 80_000);
}

/// What is spooled can come to the log twice, so it needs something to be recognised by.
#[test]
#[expect(clippy::result_large_err, reason = "a sink gives back the chunk that it does not take")]
fn what_goes_to_the_spool_has_a_key() {
    use crate::kinds::hit::{Hit, HitColumns};
    type Found = Vec<(Way, Option<[u8; 16]>)>;
    let found: Arc<Mutex<Found>> = Arc::default();
    let sink = |way: Way| {
        let found = found.clone();
        Arc::new(move |_: u32, Chunk { columns, ack }: Chunk<HitColumns>| {
            let keys = (0..columns.len()).map(|row| (way, Hit::key(&columns, row).map(|key| key.id)));
            found.lock().unwrap().extend(keys);
            ack.settle(true);
            Ok(())
        })
    };
    let counts = Arc::new(Counts::default());
    let take = |way: Way, idempotency_key: Option<&'static str>| {
        let room = Box::new(move || Ok(way));
        let options = AcceptOptions::new(PARTITIONS);
        let acceptor = Acceptor::new(Arc::new(Hit), options, room, sink(Way::Log), counts.clone(), counts.clone());
        let mut body = br#"{"user":"u","timestamp":1,"action":"click"}"#.repeat(2);
        let head = Head { idempotency_key, ..head() };
        let answer = acceptor.with_spool(sink(Way::Spool)).answer(&head, &mut body);
        assert_eq!(answer.status, 202, "{}", String::from_utf8_lossy(&answer.body));
        std::mem::take(&mut *found.lock().unwrap())
    };
    assert_eq!(take(Way::Log, None), [(Way::Log, None); 2]);
    let mut spooled = [take(Way::Spool, None), take(Way::Spool, None)].concat();
    assert!(spooled.iter().all(|(way, key)| *way == Way::Spool && key.is_some()));
    spooled.sort_by_key(|(_, key)| *key);
    spooled.dedup();
    assert_eq!(spooled.len(), 4);
    // A key of the client's own is the same by both ways.
    let keys = |found: Found| found.into_iter().map(|(_, key)| key).collect::<Vec<_>>();
    assert_eq!(keys(take(Way::Log, Some("a"))), keys(take(Way::Spool, Some("a"))));
}
