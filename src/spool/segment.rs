//! The file format of the spool: records one after the other, each with a frame that tells whether it is whole.
//!
//! A frame is 40 bytes, all numbers little-endian, then the record's value:
//!
//! ```text
//! mark "MRec" | value's length u32 | partition u32 | events u32 | schema u32 | partitions u32 | synced u64 | checksum u64
//! ```
//!
//! `synced` says how many bytes of this file were surely on the disk when the frame was written, which is what tells
//! damage to acknowledged events from a last write that was cut short. The checksum is XXH3 over the frame before it and
//! the value. Bytes that are no whole record are passed over up to the next mark that begins one: nothing read from a
//! disk panics, and one bad record costs no other.

use std::ops::Range;

use memchr::memmem;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MARK: [u8; 4] = *b"MRec";
/// What comes before a record's value.
pub const FRAME_BYTES: usize = 40;
const CHECKSUM_AT: usize = FRAME_BYTES - 8;

/// What a record is beside its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The partition that it goes to.
    pub partition: u32,
    /// How many partitions the log had.
    pub partitions: u32,
    /// The version of its schema.
    pub schema: u16,
    /// How many events it holds.
    pub events: u32,
}

/// Adds a record to the bytes of a segment of which `synced` bytes are on the disk.
pub fn push(bytes: &mut Vec<u8>, label: Label, synced: u64, value: &[u8]) {
    let start = bytes.len();
    bytes.extend_from_slice(&MARK);
    for number in [value.len() as u32, label.partition, label.events, u32::from(label.schema), label.partitions] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&synced.to_le_bytes());
    let checksum = checksum(&bytes[start..], value);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(value);
}

/// Adds the end of a segment, a frame of no events, so that damage to the records before it is told from a cut.
pub fn push_end(bytes: &mut Vec<u8>, synced: u64) {
    push(bytes, Label { partition: 0, partitions: 0, schema: 0, events: 0 }, synced, &[]);
}

fn checksum(frame: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(frame))
}

/// What a segment holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// The records, in order, and where in the file their values lie.
    pub records: Vec<(Label, Range<usize>)>,
    /// Bytes that are no record where all had been acknowledged: the disk has lost them.
    pub damaged_bytes: u64,
    /// Bytes of writes that were cut short: nobody was told that they are safe.
    pub torn_bytes: u64,
}

impl Contents {
    /// How many events its records hold.
    pub fn events(&self) -> u64 {
        self.records.iter().map(|(label, _)| u64::from(label.events)).sum()
    }
}

/// Reads a segment's bytes. They may be anything.
pub fn read(bytes: &[u8]) -> Contents {
    let mut contents = Contents::default();
    let mut gaps: Vec<Range<usize>> = Vec::new();
    let (mut at, mut synced) = (0, 0);
    while at < bytes.len() {
        if let Some(frame) = frame_at(bytes, at) {
            at = frame.value.end;
            synced = synced.max(frame.synced);
            if frame.label.events > 0 {
                contents.records.push((frame.label, frame.value));
            }
            continue;
        }
        let next = marks_from(bytes, at + 1).find(|mark| frame_at(bytes, *mark).is_some()).unwrap_or(bytes.len());
        gaps.push(at..next);
        at = next;
    }
    for gap in gaps {
        let lost = if (gap.start as u64) < synced { &mut contents.damaged_bytes } else { &mut contents.torn_bytes };
        *lost += gap.len() as u64;
    }
    contents
}

fn marks_from(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> {
    memmem::find_iter(bytes.get(from..).unwrap_or_default(), &MARK).map(move |at| from + at)
}

struct Frame {
    label: Label,
    synced: u64,
    value: Range<usize>,
}

fn frame_at(bytes: &[u8], at: usize) -> Option<Frame> {
    let (frame, rest) = bytes.get(at..)?.split_at_checked(FRAME_BYTES)?;
    if frame[..4] != MARK {
        return None;
    }
    let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| frame[at + index]));
    let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| frame[at + index]));
    let value = rest.get(..u32_at(4) as usize)?;
    if u64_at(CHECKSUM_AT) != checksum(&frame[..CHECKSUM_AT], value) {
        return None;
    }
    let label = Label { partition: u32_at(8), events: u32_at(12), schema: u32_at(16) as u16, partitions: u32_at(20) };
    let start = at + FRAME_BYTES;
    Some(Frame { label, synced: u64_at(24), value: start..start + value.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    fn label(partition: u32) -> Label {
        Label { partition, partitions: 4, schema: 1, events: partition + 1 }
    }

    type Records = Vec<(Label, Vec<u8>)>;

    /// A segment of groups of three records, each group synced before the next was written, and the records' ends.
    fn segment(dice: &mut Dice, groups: u32) -> (Vec<u8>, Records, Vec<usize>) {
        let (mut bytes, mut records, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for group in 0..groups {
            let synced = bytes.len() as u64;
            for part in 0..3 {
                // Values may hold what looks like a frame.
                let mut value: Vec<u8> = (0..dice.below(300)).map(|_| dice.below(256) as u8).collect();
                value.extend_from_slice(&MARK);
                push(&mut bytes, label(group * 3 + part), synced, &value);
                records.push((label(group * 3 + part), value));
                ends.push(bytes.len());
            }
        }
        (bytes, records, ends)
    }

    fn found(bytes: &[u8]) -> (Records, Contents) {
        let contents = read(bytes);
        let records = contents.records.iter().map(|(label, at)| (*label, bytes[at.clone()].to_vec())).collect();
        (records, contents)
    }

    #[test]
    fn what_was_pushed_is_read() {
        let mut dice = Dice::new("segments");
        let (mut bytes, records, _) = segment(&mut dice, 5);
        let end = bytes.len() as u64;
        push_end(&mut bytes, end);
        let (read, contents) = found(&bytes);
        assert_eq!(read, records);
        assert_eq!((contents.damaged_bytes, contents.torn_bytes), (0, 0));
        assert_eq!(contents.events(), (1..=15).sum::<u64>());
        assert!(found(&[]).0.is_empty());
    }

    #[test]
    fn a_cut_at_any_byte_costs_what_it_cuts_alone() {
        let mut dice = Dice::new("torn segments");
        let (bytes, records, ends) = segment(&mut dice, 3);
        for cut in 0..bytes.len() {
            let whole = ends.iter().filter(|end| **end <= cut).count();
            let (read, contents) = found(&bytes[..cut]);
            assert_eq!(read, records[..whole], "cut at {cut}");
            let torn = cut - whole.checked_sub(1).map_or(0, |last| ends[last]);
            assert_eq!((contents.damaged_bytes, contents.torn_bytes), (0, torn as u64), "cut at {cut}");
        }
    }

    /// Pages of the last write may reach the disk in any order.
    #[test]
    fn a_hole_in_the_last_group_is_a_cut_and_one_before_it_is_damage() {
        let mut dice = Dice::new("holes");
        for _ in 0..200 {
            let (mut bytes, records, ends) = segment(&mut dice, 4);
            let hit = dice.below(records.len());
            let start = hit.checked_sub(1).map_or(0, |before| ends[before]);
            let at = start + dice.below(ends[hit] - start);
            bytes[at] ^= 1 << dice.below(8);
            let (read, contents) = found(&bytes);
            let mut rest = records.clone();
            rest.remove(hit);
            assert_eq!(read, rest);
            let lost = (ends[hit] - start) as u64;
            let expected = if hit < 9 { (lost, 0) } else { (0, lost) };
            assert_eq!((contents.damaged_bytes, contents.torn_bytes), expected, "record {hit}");
        }
    }

    #[test]
    fn any_bytes_can_be_read() {
        let mut dice = Dice::new("noise");
        let (whole, ..) = segment(&mut dice, 3);
        for _ in 0..5_000 {
            let mut bytes = whole.clone();
            for _ in 0..=dice.below(4) {
                let at = dice.below(bytes.len());
                match dice.below(3) {
                    0 => bytes[at] = dice.below(256) as u8,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.splice(at..at, MARK).for_each(drop),
                }
            }
            let contents = read(&bytes);
            let held: usize = contents.records.iter().map(|(_, at)| at.len() + FRAME_BYTES).sum();
            assert_eq!(held as u64 + contents.damaged_bytes + contents.torn_bytes, bytes.len() as u64);
        }
    }
}
