//! Values in ascending order that never change: in memory, or in a file of their own that is mapped into it.
//!
//! A directory in memory says where the values with each leading bits begin, about 24 of them; among those the
//! value's own next bits say where it must lie, give or take a few. So a look-up reads the directory and mostly one
//! or two cache lines of the values. It is done for many values at once, so that the reads of one do not wait for
//! those of another.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;

use super::manifest::RunFile;
use super::permutation::{Value, leading, number};

/// Values for each entry of the directory, at least: 4 bytes for 16 to 32 values.
const ENTRY_VALUES: u64 = 16;
/// The values around a guessed place that are looked at: two cache lines, in four of five cases enough.
const AROUND: usize = 8;
/// Values that are looked for together: their reads overlap.
const TOGETHER: usize = 32;

/// Where values lie.
pub enum Place {
    /// In memory of this process.
    Memory(Vec<Value>),
    /// In a file.
    File(FilePlace),
}

/// A file of values.
pub struct FilePlace {
    /// Mapped, for looking up.
    map: Mmap,
    /// For reading it through.
    file: File,
    entry: RunFile,
    on_disk: AtomicBool,
}

impl FilePlace {
    /// A file that is mapped, what a manifest says of it, and whether it is known to be on disk.
    pub fn new(map: Mmap, file: File, entry: RunFile, on_disk: bool) -> FilePlace {
        FilePlace { map, file, entry, on_disk: on_disk.into() }
    }

    /// What a manifest says of it.
    pub fn entry(&self) -> &RunFile {
        &self.entry
    }

    /// Returns once the file is on disk.
    pub fn sync(&self) -> io::Result<()> {
        if !self.on_disk.load(Ordering::Relaxed) {
            self.file.sync_all()?;
            self.on_disk.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Values in ascending order.
pub struct Run {
    place: Place,
    directory: Directory,
    len: usize,
}

/// Where the values with each leading bits begin.
pub struct Directory {
    bits: u32,
    /// One for each combination of the leading bits, and one for the end.
    starts: Vec<u32>,
}

/// Makes the directory while the values pass by.
pub struct DirectoryBuilder {
    directory: Directory,
    values: u32,
}

impl DirectoryBuilder {
    /// For at most so many values, below 2^32.
    pub fn new(values: usize) -> DirectoryBuilder {
        let bits = (values as u64 / ENTRY_VALUES).max(1).ilog2();
        let starts = Vec::with_capacity((1 << bits) + 1);
        DirectoryBuilder { directory: Directory { bits, starts }, values: 0 }
    }

    /// The next value.
    #[inline]
    pub fn push(&mut self, value: u128) {
        let entry = leading(value, 0, self.directory.bits);
        while self.directory.starts.len() <= entry {
            self.directory.starts.push(self.values);
        }
        self.values += 1;
    }

    /// The directory of all values pushed.
    pub fn finish(mut self) -> Directory {
        self.directory.starts.resize((1 << self.directory.bits) + 1, self.values);
        self.directory
    }
}

impl Directory {
    /// The places of the values that share this one's leading bits.
    #[inline]
    fn places(&self, value: u128) -> Range<usize> {
        let entry = leading(value, 0, self.bits);
        self.starts[entry] as usize..self.starts[entry + 1] as usize
    }

    /// About where a value lies among them.
    #[inline]
    fn guess(&self, value: u128, places: &Range<usize>) -> usize {
        let within = u128::from(((value >> 64) as u64) << self.bits);
        places.start + ((within * places.len() as u128) >> 64) as usize
    }
}

impl Run {
    /// A run of values that are in memory, in ascending order.
    pub fn in_memory(values: Vec<Value>) -> Run {
        let mut directory = DirectoryBuilder::new(values.len());
        values.iter().for_each(|value| directory.push(number(value)));
        Run { len: values.len(), directory: directory.finish(), place: Place::Memory(values) }
    }

    /// A run of `len` values that lie in a place, and their directory.
    pub fn of(place: Place, directory: Directory, len: usize) -> Run {
        Run { place, directory, len }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The file, for values that lie in one.
    pub fn file(&self) -> Option<&FilePlace> {
        match &self.place {
            Place::Memory(_) => None,
            Place::File(file) => Some(file),
        }
    }

    /// The memory it takes; a file's pages are the operating system's, which drops them when it wants.
    pub fn bytes(&self) -> usize {
        let values = match &self.place {
            Place::Memory(values) => values.capacity() * size_of::<Value>(),
            Place::File(_) => 0,
        };
        values + self.directory.starts.capacity() * size_of::<u32>()
    }

    /// The values.
    #[inline]
    fn values(&self) -> &[Value] {
        match &self.place {
            Place::Memory(values) => values,
            Place::File(file) => file.map.as_chunks().0,
        }
    }

    /// The values from `from` up to, and without, `to` (`None` for all that follow).
    pub fn between(&self, from: u128, to: Option<u128>) -> &[Value] {
        &self.values()[self.lower_bound(from)..to.map_or(self.len, |to| self.lower_bound(to))]
    }

    /// The place of the first value that is not below this one.
    pub fn lower_bound(&self, value: u128) -> usize {
        let places = self.directory.places(value);
        places.start + self.values()[places].partition_point(|found| number(found) < value)
    }

    /// Copies the values at some places behind those in `into`; those of a file are read, so that a disk that
    /// fails is an error.
    pub fn read(&self, places: Range<usize>, into: &mut Vec<Value>) -> io::Result<()> {
        match &self.place {
            Place::Memory(values) => into.extend_from_slice(&values[places]),
            Place::File(file) => {
                let begin = into.len();
                into.resize(begin + places.len(), [0; 16]);
                let bytes = into[begin..].as_flattened_mut();
                file.file.read_exact_at(bytes, (places.start * size_of::<Value>()) as u64)?;
            }
        }
        Ok(())
    }

    /// Removes from `sought` the values that are in the run, and shows what stands beside them; the others keep their
    /// order.
    pub fn remove_found(&self, sought: &mut Vec<(u128, u32)>, mut found: impl FnMut(u32)) {
        let values = self.values();
        let mut arounds = [0; TOGETHER];
        let mut kept = 0;
        for begin in (0..sought.len()).step_by(TOGETHER) {
            let end = sought.len().min(begin + TOGETHER);
            for (value, _) in &sought[begin..end] {
                super::prefetch(&self.directory.starts[leading(*value, 0, self.directory.bits)]);
            }
            for (around, (value, _)) in arounds.iter_mut().zip(&sought[begin..end]) {
                let places = self.directory.places(*value);
                *around = around_of(self.directory.guess(*value, &places), self.len);
                super::prefetch(&values[*around]);
                super::prefetch(&values[*around + AROUND.min(self.len) - 1]);
            }
            for (around, index) in arounds.iter().zip(begin..end) {
                let item = sought[index];
                if holds(values, *around, item.0) {
                    found(item.1);
                } else {
                    sought[kept] = item;
                    kept += 1;
                }
            }
        }
        sought.truncate(kept);
    }
}

/// The first of the values that are looked at around a place: at the begin of a cache line, where values begin at one.
#[inline]
fn around_of(place: usize, len: usize) -> usize {
    (place.saturating_sub(AROUND / 2 - 2) & !3).min(len.saturating_sub(AROUND))
}

/// Whether a value is among values in ascending order; it is looked for from its guessed place on.
///
/// How many values around that place are below it is counted without a branch, since none of those comparisons can be
/// foreseen; only where all or none are it is looked for further on.
#[inline]
fn holds(values: &[Value], around: usize, sought: u128) -> bool {
    let place = match values.get(around..around + AROUND) {
        Some(window) => {
            let below = window.iter().map(|value| usize::from(number(value) < sought)).sum::<usize>();
            if below > 0 && below < AROUND {
                return number(&window[below]) == sought;
            }
            around + below
        }
        None => around,
    };
    let below = values[..place].iter().rev().take_while(|value| number(value) >= sought).count();
    let begin = place - below;
    values[begin..].iter().map(number).find(|found| *found >= sought) == Some(sought)
}
