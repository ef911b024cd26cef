//! The segments of one spool: what is written, in which order it is taken out again, and how many bytes that is.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::folder::{self, Folder, Segment};
use super::segment::{self, FRAME_BYTES, Label};
use super::{Record, SEGMENT_BYTES};

/// Segments in the order of their records. What is taken out by [`Disk::next`] stays on the disk until it is removed.
pub struct Disk {
    folder: Folder,
    /// Oldest first; none of them is added to.
    waiting: VecDeque<Segment>,
    open: Option<Open>,
    bytes: u64,
}

/// The segment that is being written.
struct Open {
    file: File,
    path: PathBuf,
    /// All of its bytes, which are on the disk.
    synced: u64,
}

impl Disk {
    /// With what lies in the folder.
    pub fn open(folder: Folder) -> io::Result<Disk> {
        let waiting = folder.segments()?;
        let bytes = folder::total(&waiting);
        folder.room.hold(bytes);
        Ok(Disk { folder, waiting: waiting.into(), open: None, bytes })
    }

    /// Bytes of all segments that were not removed.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether every segment has been taken out.
    pub fn is_all_handed(&self) -> bool {
        self.waiting.is_empty() && self.open.is_none()
    }

    /// Adds records. They are on the disk when this returns; after an error none of them counts, although some may be
    /// read later.
    pub fn write<'r>(&mut self, partitions: u32, records: impl Iterator<Item = &'r Record>) -> io::Result<()> {
        let synced = self.open.as_ref().map_or(0, |open| open.synced);
        let mut bytes = Vec::new();
        for record in records {
            let Record { partition, events, schema, ref value } = *record;
            bytes.reserve(FRAME_BYTES + value.len());
            segment::push(&mut bytes, Label { partition, partitions, schema, events }, synced, value);
        }
        let length = bytes.len() as u64;
        if !self.folder.room.take(length) {
            return Err(io::Error::new(ErrorKind::StorageFull, "it would grow beyond spool.bytes_max"));
        }
        match self.append(&bytes) {
            Ok(()) => self.bytes += length,
            Err(error) => {
                self.folder.room.give(length);
                self.close_failed();
                return Err(error);
            }
        }
        if self.open.as_ref().is_some_and(|open| open.synced >= SEGMENT_BYTES) {
            self.seal();
        }
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let (path, file) = self.folder.create()?;
                self.open.insert(Open { file, path, synced: 0 })
            }
        };
        open.file.write_all(bytes)?;
        open.file.sync_data()?;
        open.synced += bytes.len() as u64;
        Ok(())
    }

    /// Ends a segment of which the disk did not take all: what it may hold of the failed write is cut off if it can be,
    /// and else goes to the log with the rest, or is passed over.
    fn close_failed(&mut self) {
        let Some(Open { file, path, synced }) = self.open.take() else { return };
        if let Err(error) = file.set_len(synced) {
            tracing::warn!(path = %path.display(), %error, "a failed write of the spool cannot be taken back");
        }
        self.keep(path, synced);
    }

    /// Ends the segment that is being written. Its last bytes, which say so, may miss the disk: then damage to the last
    /// group alone would look like a cut.
    fn seal(&mut self) {
        let Some(Open { mut file, path, synced }) = self.open.take() else { return };
        let mut end = Vec::with_capacity(FRAME_BYTES);
        segment::push_end(&mut end, synced);
        if let Err(error) = file.write_all(&end) {
            tracing::warn!(path = %path.display(), %error, "a segment of the spool has no end mark");
        }
        self.keep(path, synced);
    }

    fn keep(&mut self, path: PathBuf, bytes: u64) {
        if bytes == 0 {
            remove_file(&path);
        } else {
            self.waiting.push_back(Segment::new(path, bytes));
        }
    }

    /// Takes out the oldest segment; the one that is being written when there is no other.
    pub fn next(&mut self) -> Option<Segment> {
        if self.waiting.is_empty() {
            self.seal();
        }
        self.waiting.pop_front()
    }

    /// Puts a segment that was taken out where it was among the others.
    pub fn put_back(&mut self, segment: Segment) {
        let at = self.waiting.partition_point(|other| other.path < segment.path);
        self.waiting.insert(at, segment);
    }

    /// Removes a segment that was taken out.
    pub fn remove(&mut self, segment: &Segment) {
        remove_file(&segment.path);
        self.forget(segment);
    }

    /// Keeps a segment that was taken out for somebody to look at.
    pub fn set_aside(&mut self, segment: &Segment) -> io::Result<PathBuf> {
        self.forget(segment);
        folder::set_aside(segment)
    }

    fn forget(&mut self, segment: &Segment) {
        self.bytes -= segment.bytes;
        self.folder.room.give(segment.bytes);
    }
}

/// What cannot be removed is sent again after the next start, and counts nothing twice.
fn remove_file(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a segment of the spool cannot be removed");
    }
}
