//! The spool on a real folder, with a log that does as it is told.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::*;

const TOPIC: &str = "t.kind";
const PARTITIONS: u32 = 4;
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A folder that is removed with it.
struct Space(PathBuf);

impl Space {
    fn new(name: &str) -> Space {
        let path = std::env::temp_dir().join(format!("millrace-spool-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Space(path)
    }

    fn root(&self, bytes_max: u64) -> Root {
        Root::open(&self.0, bytes_max).expect("nobody else has it")
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.join("kind")).expect("the kind's folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "log")
            .collect();
        names.sort();
        names
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join("kind").join(name)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the log was given, and what it does with it.
#[derive(Default)]
struct Told {
    takes: AtomicBool,
    /// From which record on the log is away, until it was looked for so many times.
    outage: Mutex<Option<(u64, u32)>>,
    given: AtomicU64,
    /// Records that fail whenever they come.
    refused: Mutex<Range<u32>>,
    /// How often a refused one was sent.
    refusals: AtomicU64,
    acknowledged: Mutex<Vec<u32>>,
    damaged: AtomicU64,
    spooled: AtomicU64,
    sent_on: AtomicU64,
}

#[derive(Clone)]
struct Toy(Arc<Told>);

impl Log for Toy {
    fn partitions(&self) -> u32 {
        PARTITIONS
    }
    fn takes(&self) -> bool {
        let mut outage = self.0.outage.lock().unwrap();
        let is_away = outage.is_some_and(|(from, _)| self.0.given.load(Ordering::Acquire) > from);
        if is_away {
            *outage = outage.and_then(|(from, looks)| (looks > 1).then_some((from, looks - 1)));
        }
        self.0.takes.load(Ordering::Acquire) && !is_away
    }
    fn produce(&self, waiting: Waiting) {
        let record = &waiting.record;
        let number = u32::from_le_bytes(record.value[..4].try_into().unwrap());
        assert_eq!((record.partition, record.events, record.schema), (number % PARTITIONS, 1 + number % 3, 7));
        assert!(record.value[4..].iter().all(|byte| *byte == number as u8));
        let given = self.0.given.fetch_add(1, Ordering::AcqRel);
        let is_away = self.0.outage.lock().unwrap().is_some_and(|(from, _)| given >= from);
        let is_refused = self.0.refused.lock().unwrap().contains(&number);
        self.0.refusals.fetch_add(u64::from(is_refused), Ordering::AcqRel);
        let fails = is_away || is_refused;
        if !fails {
            self.0.acknowledged.lock().unwrap().push(number);
        }
        waiting.acks.into_iter().for_each(|ack| ack.settle(!fails));
    }
}

impl SpoolObserver for Toy {
    fn spooled(&self, events: u64) {
        self.0.spooled.fetch_add(events, Ordering::AcqRel);
    }
    fn sent_on(&self, events: u64) {
        self.0.sent_on.fetch_add(events, Ordering::AcqRel);
    }
    fn damaged(&self, bytes: u64) {
        self.0.damaged.fetch_add(bytes, Ordering::AcqRel);
    }
    fn holds(&self, _: u64) {}
}

impl Toy {
    fn new() -> Toy {
        Toy(Arc::default())
    }

    fn set_takes(&self, takes: bool) {
        self.0.takes.store(takes, Ordering::Release);
    }

    fn acknowledged(&self) -> Vec<u32> {
        self.0.acknowledged.lock().unwrap().clone()
    }

    fn start(&self, root: &Root) -> Spool {
        let mut folder = root.folder("kind", TOPIC).expect("the same log as before");
        folder.note(PARTITIONS).expect("the same log as before");
        Spool::start("kind", folder, self.clone(), self.clone()).expect("a thread")
    }
}

/// Puts records with these numbers, each of so many bytes, and says whether all were taken.
fn put(spool: &Spool, numbers: Range<u32>, bytes: usize) -> bool {
    let ack = Ack::new();
    for number in numbers {
        let mut value = number.to_le_bytes().to_vec();
        value.resize(4 + bytes, number as u8);
        let record = Record { partition: number % PARTITIONS, events: 1 + number % 3, schema: 7, value };
        spool.put(Waiting { record, acks: vec![ack.part()], under_way: UnderWay::default() });
    }
    ack.wait(WAIT_MAX)
}

/// Puts so many records of a megabyte, 16 of which fill a segment.
fn put_megabytes(spool: &Spool, count: u32) {
    for first in (0..count).step_by(4) {
        assert!(put(spool, first..first + 4, 1 << 20));
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until a spool's thread has ended, which owns the folder's handle but not its lock.
fn end(spool: Spool) {
    let shared = Arc::downgrade(&spool.shared);
    drop(spool);
    eventually("the thread ends", || shared.strong_count() == 0);
}

#[test]
fn what_is_put_while_the_log_is_away_is_sent_in_order() {
    let (space, log) = (Space::new("order"), Toy::new());
    let spool = log.start(&space.root(1 << 30));
    assert!(put(&spool, 0..100, 1000));
    assert!(spool.bytes() > 100_000 && log.acknowledged().is_empty());
    log.set_takes(true);
    // What comes meanwhile falls in behind.
    assert!(put(&spool, 100..200, 1000));
    eventually("it is empty", || spool.bytes() == 0);
    let spooled = log.0.spooled.load(Ordering::Acquire);
    assert!(spooled > 0 && spooled == log.0.sent_on.load(Ordering::Acquire));
    assert_eq!(space.files(), [""; 0]);
    // The log is proven, so the next ones need no disk.
    assert!(put(&spool, 200..210, 10));
    assert_eq!(log.0.spooled.load(Ordering::Acquire), spooled);
    assert_eq!(log.acknowledged(), (0..210).collect::<Vec<_>>());
    assert!(spool.settle(WAIT_MAX, || true));
}

#[test]
fn a_process_goes_on_with_what_another_left() {
    let (space, log) = (Space::new("left"), Toy::new());
    for part in 0..3 {
        let spool = log.start(&space.root(1 << 30));
        assert!(put(&spool, part * 10..part * 10 + 10, 10));
        end(spool);
    }
    assert_eq!(space.files().len(), 3);
    log.set_takes(true);
    let root = space.root(1 << 30);
    let spool = log.start(&root);
    eventually("it is empty", || spool.bytes() == 0);
    assert_eq!(log.acknowledged(), (0..30).collect::<Vec<_>>());
}

#[test]
fn what_the_log_does_not_take_is_sent_again() {
    let (space, log) = (Space::new("again"), Toy::new());
    let spool = log.start(&space.root(1 << 30));
    // Three segments of 16 records.
    put_megabytes(&spool, 48);
    assert_eq!(space.files().len(), 3);
    // It goes away within the first of the two that it is given at once.
    *log.0.outage.lock().unwrap() = Some((5, 3));
    log.set_takes(true);
    eventually("it is empty", || spool.bytes() == 0);
    assert_eq!(log.acknowledged(), (0..48).collect::<Vec<_>>());
    assert_eq!(log.0.given.load(Ordering::Acquire), 32 + 27 + 16);
}

#[test]
fn a_record_that_the_log_refuses_holds_up_no_other() {
    let (space, log) = (Space::new("refused"), Toy::new());
    let root = space.root(1 << 30);
    let spool = log.start(&root);
    // Several segments, the first of which has the records that are refused.
    put_megabytes(&spool, 48);
    let segments = space.files().len();
    *log.0.refused.lock().unwrap() = 1..3;
    log.set_takes(true);
    eventually("the others are removed", || space.files().len() == 1);
    assert!(segments > 2);
    let others = || (0..100).filter(|number| !(1..3).contains(number));
    assert_eq!(log.acknowledged(), others().take(46).collect::<Vec<_>>());
    // What comes goes by the disk still, and past the refused ones.
    assert!(put(&spool, 48..50, 10));
    eventually("they come to the log", || log.acknowledged().len() == 48);
    assert!(spool.bytes() > 4 << 20 && spool.refusal().is_none());
    eventually("they are tried again", || log.0.refusals.load(Ordering::Acquire) >= 6);

    *log.0.refused.lock().unwrap() = 0..0;
    eventually("it is empty", || spool.bytes() == 0);
    // Nothing that was acknowledged has come twice.
    assert_eq!(log.acknowledged(), others().take(48).chain(1..3).collect::<Vec<_>>());
    assert_eq!(log.0.sent_on.load(Ordering::Acquire), log.0.spooled.load(Ordering::Acquire));
}

#[test]
fn a_segment_that_cannot_be_read_holds_up_no_other() {
    let (space, log) = (Space::new("unreadable"), Toy::new());
    let root = space.root(1 << 30);
    let spool = log.start(&root);
    put_megabytes(&spool, 32);
    let (path, aside) = (space.file(&space.files()[0]), space.0.join("aside"));
    let first = fs::metadata(&path).unwrap().len() >> 20;
    fs::rename(&path, &aside).unwrap();
    log.set_takes(true);
    eventually("the others come to the log", || log.acknowledged().len() as u64 == 32 - first);
    assert!(spool.bytes() > 16 << 20);
    fs::rename(&aside, &path).unwrap();
    eventually("it is empty", || spool.bytes() == 0);
    assert_eq!(log.acknowledged().len(), 32);
}

#[test]
fn a_full_spool_refuses() {
    let (space, log) = (Space::new("full"), Toy::new());
    let spool = log.start(&space.root(100_000));
    assert!(put(&spool, 0..90, 1000) && spool.refusal().is_none());
    assert!(!put(&spool, 90..190, 1000));
    assert!(spool.refusal().is_some());
    log.set_takes(true);
    eventually("it is empty", || spool.bytes() == 0);
    eventually("there is room again", || spool.refusal().is_none());
    assert_eq!(log.acknowledged()[..90], (0..90).collect::<Vec<_>>());
    assert!(put(&spool, 190..191, 1000));
}

#[test]
fn a_torn_write_costs_itself_and_damage_is_told_and_kept() {
    let (space, log) = (Space::new("damage"), Toy::new());
    for part in 0..2 {
        let spool = log.start(&space.root(1 << 30));
        for number in part * 10..part * 10 + 10 {
            assert!(put(&spool, number..number + 1, 100));
        }
        end(spool);
    }
    let change = |name: &str, at: fn(usize) -> usize| {
        let mut bytes = fs::read(space.file(name)).unwrap();
        let at = at(bytes.len());
        bytes[at] ^= 1;
        fs::write(space.file(name), bytes).unwrap();
    };
    let names = space.files();
    // A record in the middle of the first, the last one of the second.
    change(&names[0], |length| length / 2);
    change(&names[1], |length| length - 1);
    log.set_takes(true);
    let root = space.root(1 << 30);
    let spool = log.start(&root);
    eventually("it is empty", || spool.bytes() == 0);
    let acknowledged = log.acknowledged();
    assert_eq!(acknowledged.len(), 18, "{acknowledged:?}");
    assert!(acknowledged.is_sorted() && !acknowledged.contains(&19));
    assert_eq!(log.0.damaged.load(Ordering::Acquire), 144);
    assert_eq!(space.files(), [names[0].replace(".spool", ".damaged")]);
}

#[test]
fn a_folder_is_waited_for_until_its_last_process_has_ended() {
    let space = Space::new("late");
    let root = space.root(1 << 30);
    let (sender, receiver) = channel::bounded(0);
    let path = space.0.clone();
    let next = std::thread::spawn(move || {
        sender.send(()).unwrap();
        Root::open(&path, 1 << 30).map(drop)
    });
    receiver.recv().unwrap();
    // It finds the folder in use; were it slower than this, it would find it free, and the test would prove nothing.
    std::thread::sleep(Duration::from_millis(200));
    drop(root);
    assert!(next.join().unwrap().is_ok());
}

#[test]
fn a_folder_is_for_one_process_and_one_log() {
    let (space, log) = (Space::new("one"), Toy::new());
    let root = space.root(1 << 30);
    assert!(matches!(Root::open(&space.0, 1 << 30), Err(SpoolError::InUse(path)) if path == space.0));
    let spool = log.start(&root);
    assert!(put(&spool, 0..1, 10));
    end(spool);
    assert_eq!(root.folder("kind", TOPIC).unwrap().partitions(), Some(PARTITIONS));
    assert!(matches!(root.folder("kind", "other"), Err(SpoolError::OtherLog { .. })));
    assert!(matches!(root.folder("kind", TOPIC).unwrap().note(5), Err(SpoolError::OtherLog { .. })));
    log.set_takes(true);
    let spool = log.start(&root);
    eventually("it is empty", || spool.bytes() == 0);
    end(spool);
    // Nothing is left that would be lost.
    let mut folder = root.folder("kind", "other").unwrap();
    assert_eq!(folder.partitions(), None);
    folder.note(5).unwrap();
    assert_eq!(root.folder("kind", "other").unwrap().partitions(), Some(5));
    assert!(Root::open(Path::new("/proc/none"), 1 << 30).is_err());
}
