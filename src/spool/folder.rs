//! Where a spool lies: `ROOT/KIND/NUMBER.spool`, for one process at a time.
//!
//! Beside the segments a kind's folder holds `log`, which says what its events are for: the topic and how many partitions
//! it has. So a process can go on spooling that starts while Kafka is away. The folders and files are this user's alone.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;

use crate::folder_lock::{self, LOCK};

const NOTE: &str = "log";
const NEW_NOTE: &str = "log-new";
const ENDING: &str = ".spool";
const DAMAGED: &str = ".damaged";
/// No segment is larger: [`SEGMENT_BYTES`](super::SEGMENT_BYTES) and one group more. What is, was not written by us.
const READ_BYTES_MAX: u64 = 256 << 20;

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Another process has it.
    #[error(
        "spool.dir {0} is in use by another millrace: give each process that accepts events a folder of its own (spool.dir, MILLRACE_SPOOL_DIR)"
    )]
    InUse(PathBuf),
    /// The system refuses.
    #[error("spool.dir {path} cannot be used ({cause}): make the folder writable for the user that millrace runs as")]
    Refused {
        /// What was asked for.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// What lies there is for another log.
    #[error(
        "{path} holds events for {held}, and this is {found}: let a millrace with the settings of before send them on, or move the folder away, with its events"
    )]
    OtherLog {
        /// The kind's folder.
        path: PathBuf,
        /// What the events are for.
        held: String,
        /// What is there now.
        found: String,
    },
}

/// What lies in a spool's folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// A process works on it now.
    pub in_use: bool,
    /// Bytes of all segments of all kinds.
    pub bytes: u64,
}

/// Looks at a folder and changes nothing. One that is missing holds nothing.
pub fn look(root: &Path) -> io::Result<Found> {
    let lock = match File::open(root.join(LOCK)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::default()),
        lock => lock?,
    };
    let in_use = matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock));
    let mut bytes = 0;
    for kind in fs::read_dir(root)? {
        let kind = kind?;
        if kind.file_type()?.is_dir() {
            bytes += total(&segments(&kind.path())?);
        }
    }
    Ok(Found { in_use, bytes })
}

/// The folder of all kinds, locked, and how many bytes may lie in it.
pub struct Root {
    path: PathBuf,
    room: Arc<Room>,
    _lock: File,
}

/// The bytes that all kinds may take together. Safe to use from several threads.
pub struct Room {
    bytes_max: u64,
    used: AtomicU64,
}

impl Room {
    pub(super) fn new(bytes_max: u64) -> Arc<Room> {
        Arc::new(Room { bytes_max, used: AtomicU64::new(0) })
    }

    /// Whether there is room for so many bytes more, which are taken.
    pub(super) fn take(&self, bytes: u64) -> bool {
        let more = |used: u64| used.checked_add(bytes).filter(|used| *used <= self.bytes_max);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
    }

    /// Counts what lies there, whether there is room for it or not.
    pub(super) fn hold(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    pub(super) fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    pub(super) fn is_full(&self) -> bool {
        self.used.load(Ordering::Acquire) >= self.bytes_max
    }
}

impl Root {
    /// Takes a folder, which is made where it is missing.
    pub fn open(path: &Path, bytes_max: u64) -> Result<Root, SpoolError> {
        let refused = |cause| SpoolError::Refused { path: path.to_owned(), cause };
        let lock = folder_lock::wait(|| true, || folder_lock::take(path)).map_err(refused)?;
        let lock = lock.ok_or_else(|| SpoolError::InUse(path.to_owned()))?;
        Ok(Root { path: path.to_owned(), room: Room::new(bytes_max), _lock: lock })
    }

    /// The folder of a kind whose events go to `topic`.
    pub fn folder(&self, kind: &str, topic: &str) -> Result<Folder, SpoolError> {
        Folder::open(self.path.join(kind), topic, self.room.clone())
    }
}

/// What the events in a folder are for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    topic: String,
    partitions: u32,
}

/// The folder of one kind.
pub struct Folder {
    path: PathBuf,
    topic: String,
    /// As noted; `None` before the log was ever seen.
    partitions: Option<u32>,
    pub(super) room: Arc<Room>,
    /// The number of the next segment.
    next: u64,
    /// What it held when it was opened.
    bytes: u64,
}

/// A file of records, none of which is added any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Where in the file those of its records lie that the log has acknowledged already.
    pub(super) sent: BTreeSet<usize>,
    /// It could not be sent although others could.
    pub(super) is_refused: bool,
}

impl Segment {
    pub(super) fn new(path: PathBuf, bytes: u64) -> Segment {
        Segment { path, bytes, sent: BTreeSet::new(), is_refused: false }
    }
}

impl Folder {
    fn open(path: PathBuf, topic: &str, room: Arc<Room>) -> Result<Folder, SpoolError> {
        let refused = |cause| SpoolError::Refused { path: path.clone(), cause };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(refused)?;
        let note = read_note(&path).map_err(refused)?;
        let mut folder =
            Folder { path: path.clone(), topic: topic.to_owned(), partitions: None, room, next: 1, bytes: 0 };
        let segments = folder.segments().map_err(refused)?;
        folder.next = segments.iter().filter_map(|segment| number(&segment.path)).max().map_or(1, |last| last + 1);
        folder.bytes = total(&segments);
        match note {
            Some(note) if note.topic == topic => folder.partitions = Some(note.partitions),
            Some(note) if folder.bytes > 0 => return Err(folder.other_log(&note.topic, topic)),
            _ => {}
        }
        Ok(folder)
    }

    fn other_log(&self, held: &str, found: &str) -> SpoolError {
        SpoolError::OtherLog { path: self.path.clone(), held: held.to_owned(), found: found.to_owned() }
    }

    /// How many partitions the log had when it was last seen.
    pub fn partitions(&self) -> Option<u32> {
        self.partitions
    }

    /// How many bytes of events it held when it was opened.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Notes how many partitions the log has.
    pub fn note(&mut self, partitions: u32) -> Result<(), SpoolError> {
        let refused = |cause| SpoolError::Refused { path: self.path.clone(), cause };
        match self.partitions {
            Some(noted) if noted == partitions => return Ok(()),
            Some(noted) if !self.segments().map_err(refused)?.is_empty() => {
                let log = |partitions: u32| format!("{} with {partitions} partitions", self.topic);
                return Err(self.other_log(&log(noted), &log(partitions)));
            }
            _ => {}
        }
        let text = format!("topic = {:?}\npartitions = {partitions}\n", self.topic);
        let new = self.path.join(NEW_NOTE);
        let written = private().write(true).create(true).truncate(true).open(&new).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, self.path.join(NOTE))?;
            self.sync()
        });
        written.map_err(refused)?;
        self.partitions = Some(partitions);
        Ok(())
    }

    /// The segments, oldest first.
    pub(super) fn segments(&self) -> io::Result<Vec<Segment>> {
        segments(&self.path)
    }

    /// Makes the next segment. It is known to the disk when this returns.
    pub(super) fn create(&mut self) -> io::Result<(PathBuf, File)> {
        let path = self.path.join(format!("{:016}{ENDING}", self.next));
        self.next += 1;
        let file = private().write(true).create_new(true).open(&path)?;
        self.sync()?;
        Ok((path, file))
    }

    /// Makes the disk know which files there are.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

fn segments(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if number(&path).is_some() {
            segments.push(Segment::new(path, entry.metadata()?.len()));
        }
    }
    segments.sort_by_key(|segment| number(&segment.path));
    Ok(segments)
}

/// How many bytes they take.
pub(super) fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.bytes).sum()
}

/// The bytes of a segment.
pub(super) fn read(segment: &Segment) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(segment.bytes.min(READ_BYTES_MAX) as usize);
    File::open(&segment.path)?.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Keeps a segment under another name, for somebody to look at.
pub(super) fn set_aside(segment: &Segment) -> io::Result<PathBuf> {
    let aside = segment.path.with_extension(DAMAGED.trim_start_matches('.'));
    fs::rename(&segment.path, &aside)?;
    Ok(aside)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(ENDING)?.parse().ok()
}

/// A note that cannot be read says nothing, as one that is missing.
fn read_note(path: &Path) -> io::Result<Option<Note>> {
    match fs::read_to_string(path.join(NOTE)) {
        Ok(text) => Ok(toml::from_str(&text).ok()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}
