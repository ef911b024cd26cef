//! The keys of a partition that are stored already: exact, in little memory, asked for a record at a time.
//!
//! ```text
//! keys ─▶ permutation ─▶ lane: filter ─▶ runs, recent keys ─▶ which are new
//!                                          ▲        │
//!                                          └─ merge ┘
//! ```
//!
//! - [`permutation`]: what makes values of keys that are spread evenly, whatever a sender chose.
//! - [`filter`]: says of most new keys that they are new, at the price of one cache line.
//! - [`recent`]: the latest keys, in a table.
//! - [`run`]: older keys, sorted, and never changed; [`merge`] makes one run of several.
//! - [`lane`]: the keys of one lane, in all of these.

mod filter;
mod lane;
mod merge;
mod permutation;
mod recent;
mod run;

use std::mem::MaybeUninit;

use crate::kinds::Key;
use lane::Lane;
use permutation::{Permutation, Value};
#[cfg(test)]
use run::Run;

/// How far ahead memory is asked for: as many reads are under way at once as a core can have.
const AHEAD: usize = 16;

/// When keys move on.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A lane's recent keys become a run from so many on.
    pub flush_keys: usize,
    /// So many runs of about one size become one.
    pub fan_in: usize,
    /// The largest run that is made in memory, where those that it is made of lie beside it for a while.
    pub memory_run_keys: usize,
}

impl Sizes {
    /// For millions of keys: a table of 8 MiB, each key sorted twice, about 15 runs for 50 million keys.
    pub const LARGE: Sizes = Sizes { flush_keys: 1 << 18, fan_in: 16, memory_run_keys: 8 << 20 };
}

/// A set of keys.
pub struct SeenKeys {
    permutation: Permutation,
    lanes: Vec<Lane>,
    sizes: Sizes,
    /// For each lane, the keys of the record at hand and their rows; kept for their memory.
    asked: Vec<Asked>,
    new: Vec<bool>,
}

/// The keys of one lane in a record.
#[derive(Default)]
struct Asked {
    keys: Vec<Value>,
    rows: Vec<u32>,
}

impl SeenKeys {
    /// An empty set for keys of `lanes` lanes.
    pub fn new(lanes: u8) -> SeenKeys {
        SeenKeys::with_sizes(lanes, Sizes::LARGE)
    }

    /// An empty set whose keys move on by these sizes.
    pub fn with_sizes(lanes: u8, sizes: Sizes) -> SeenKeys {
        SeenKeys {
            permutation: Permutation::random(),
            lanes: (0..lanes).map(|_| Lane::new(0)).collect(),
            sizes,
            asked: (0..lanes).map(|_| Asked::default()).collect(),
            new: Vec::new(),
        }
    }

    /// Adds the keys of `rows` rows; tells for each row whether it is new: it has no key, or one that was not there and
    /// that no earlier row has.
    ///
    /// # Panics
    ///
    /// When a key's lane is not below the number of lanes, which is a mistake of its kind.
    pub fn insert_all(&mut self, rows: usize, key: impl Fn(usize) -> Option<Key>) -> &[bool] {
        for row in 0..rows {
            if let Some(Key { lane, id }) = key(row) {
                let asked = &mut self.asked[usize::from(lane)];
                asked.keys.push(id);
                asked.rows.push(row as u32);
            }
        }
        self.new.clear();
        self.new.resize(rows, true);
        for (lane, asked) in self.lanes.iter_mut().zip(&mut self.asked) {
            self.permutation.apply(&mut asked.keys);
            lane.insert_all(&asked.keys, |index| self.new[asked.rows[index as usize] as usize] = false);
            asked.keys.clear();
            asked.rows.clear();
        }
        self.settle();
        &self.new
    }

    /// Adds a key; `true` when it was not there.
    pub fn insert(&mut self, key: Key) -> bool {
        self.insert_all(1, |_| Some(key))[0]
    }

    /// Makes runs of what there is enough of.
    fn settle(&mut self) {
        for lane in &mut self.lanes {
            if lane.recent() >= self.sizes.flush_keys {
                lane.flush();
            }
            while let Some(runs) = lane.to_merge(self.sizes, self.sizes.memory_run_keys) {
                match merge::in_memory(&runs) {
                    Ok(run) => lane.replace(&runs, run.into()),
                    Err(error) => {
                        tracing::error!(%error, "runs of seen keys stay as they are");
                        break;
                    }
                }
            }
        }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.len() as usize).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory they take.
    pub fn bytes(&self) -> usize {
        self.lanes.iter().map(Lane::bytes).sum()
    }
}

/// Has memory brought near that is about to be read.
#[inline]
fn prefetch<T>(place: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing that the program can see, and SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(place).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// Asks for huge pages for memory that is not used yet; without them it works as well, only slower.
fn advise_huge<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(target_os = "linux")]
    {
        let page = 4096;
        let begin = (memory.as_mut_ptr() as usize).next_multiple_of(page);
        let end = memory.as_mut_ptr_range().end as usize / page * page;
        if begin < end {
            // SAFETY: the pages lie within `memory`, and the advice changes what backs them, never what they hold.
            unsafe { libc::madvise(begin as *mut libc::c_void, end - begin, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

#[cfg(test)]
mod tests;
