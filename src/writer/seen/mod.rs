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
//! - [`cache`]: runs in files, so that the next tenure finds them: [`folder`], [`manifest`] and [`file`] are what
//!   lies there, [`keeper`] writes it.
//!
//! Without a cache the runs lie in memory, 16 bytes a key; with one they are mapped, and 2.5 to 3 bytes a key stay in
//! memory.

mod cache;
mod file;
mod filter;
pub mod folder;
mod keeper;
mod lane;
pub mod manifest;
mod merge;
mod permutation;
mod recent;
mod run;

use std::io;
use std::mem::MaybeUninit;

use crate::kinds::Key;
use cache::Cache;
pub use cache::Covered;
use folder::Folder;
use lane::Lane;
use manifest::{Identity, Manifest};
use permutation::{Permutation, Value};

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
    /// After so many new keys the cache's manifest is written: at most about as many are to be read after a crash.
    pub record_keys: u64,
}

impl Sizes {
    /// For millions of keys: a table of 8 MiB, each key sorted twice, about 15 runs for 50 million keys.
    pub const LARGE: Sizes = Sizes { flush_keys: 1 << 18, fan_in: 16, memory_run_keys: 8 << 20, record_keys: 1 << 20 };
}

/// A set of keys.
///
/// With a cache it goes through: loading, until [`SeenKeys::loaded`]; then [`SeenKeys::reached`] and
/// [`SeenKeys::finished`] for each range, which tell what the keys are the keys of; [`SeenKeys::close`] at the end.
pub struct SeenKeys {
    permutation: Permutation,
    lanes: Vec<Lane>,
    sizes: Sizes,
    /// For each lane, the keys of the record at hand and their rows; kept for their memory.
    asked: Vec<Asked>,
    new: Vec<bool>,
    cache: Option<Cache>,
    /// What the keys are the keys of, those of an unfinished range aside; `None` while they are loaded.
    covered: Option<Covered>,
    /// How many keys those are.
    covered_keys: usize,
    /// The range that was read last, whose keys are among the recent ones.
    reached: Option<Reached>,
}

/// A range whose keys were added.
#[derive(Debug, PartialEq, Eq)]
struct Reached {
    from: i64,
    next: i64,
    /// How many keys there were with them.
    keys: usize,
}

/// The keys of one lane in a record.
#[derive(Default)]
struct Asked {
    keys: Vec<Value>,
    rows: Vec<u32>,
}

impl SeenKeys {
    /// An empty set in memory, for keys of `lanes` lanes.
    pub fn new(lanes: u8) -> SeenKeys {
        SeenKeys::with_sizes(lanes, Sizes::LARGE)
    }

    /// An empty set in memory whose keys move on by these sizes.
    pub fn with_sizes(lanes: u8, sizes: Sizes) -> SeenKeys {
        SeenKeys::of((0..lanes).map(|_| Lane::new(0)).collect(), Permutation::random(), None, sizes)
    }

    /// An empty set with a cache, which is empty too: whatever lies in the folder is removed.
    pub fn cached(folder: Folder, identity: Identity, sizes: Sizes) -> io::Result<SeenKeys> {
        let permutation = Permutation::random();
        let lanes = (0..identity.lanes).map(|_| Lane::new(0)).collect();
        let cache = Cache::create(folder, identity, u128::from_le_bytes(permutation.secret()))?;
        Ok(SeenKeys::of(lanes, permutation, Some(cache), sizes))
    }

    /// The keys of a cache whose manifest was found to be the right one, and what they are the keys of. The files are
    /// checked in full; an error says that they cannot be used.
    pub fn open(folder: Folder, manifest: Manifest, sizes: Sizes) -> io::Result<(SeenKeys, Covered)> {
        let permutation = Permutation::of(manifest.secret.to_le_bytes());
        let opened = Cache::open(folder, manifest)?;
        Ok((SeenKeys::of(opened.lanes, permutation, Some(opened.cache), sizes), opened.covered))
    }

    fn of(lanes: Vec<Lane>, permutation: Permutation, cache: Option<Cache>, sizes: Sizes) -> SeenKeys {
        SeenKeys {
            asked: lanes.iter().map(|_| Asked::default()).collect(),
            permutation,
            lanes,
            sizes,
            new: Vec::new(),
            cache,
            covered: None,
            covered_keys: 0,
            reached: None,
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

    /// All keys are in that are stored below an offset, and no others: those of so many events.
    pub fn loaded(&mut self, covered: Covered) {
        (self.covered, self.covered_keys) = (Some(covered), self.len());
        self.advance();
    }

    /// The keys of a range were added: of all events from its first offset to before `next`.
    pub fn reached(&mut self, from: i64, next: i64) {
        self.reached = Some(Reached { from, next, keys: self.len() });
    }

    /// Whether the keys are kept in a cache.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// The range that was read last is stored, counted and committed, with so many new events: everything below
    /// `next` is.
    pub fn finished(&mut self, next: i64, new_events: u64) {
        let Some(Covered { below, mut rows }) = self.covered else { return };
        let reached = self.reached.take();
        if reached == Some(Reached { from: below, next, keys: self.len() }) {
            rows.own += new_events;
            (self.covered, self.covered_keys) = (Some(Covered { below: next, rows }), self.len());
            self.advance();
        } else {
            // The keys may be those of events that are not stored: they must not be taken for such.
            let what = format!("a range ends before {next}, and all is known below {below} and of {reached:?}");
            self.give_up_cache(&io::Error::other(what));
        }
    }

    /// What may be recorded of the keys.
    #[cfg(test)]
    pub fn recordable(&self) -> Option<Covered> {
        self.covered.filter(|_| self.len() == self.covered_keys)
    }

    /// Ends in good order: what is stored is found in the cache by the next tenure. Without the call it finds less.
    pub fn close(mut self) {
        let (Some(cache), Some(covered)) = (self.cache.take(), self.covered) else { return };
        // Keys of an unfinished range lie among the recent ones, which then cannot become a run.
        if self.len() == self.covered_keys
            && let Err(error) = cache.close(&mut self.lanes, self.sizes, covered)
        {
            tracing::warn!(%error, "the latest seen keys are not in the cache, and will be read from ClickHouse");
        }
    }

    fn advance(&mut self) {
        if let (Some(cache), Some(covered)) = (&mut self.cache, self.covered)
            && let Err(error) = cache.advance(&mut self.lanes, self.sizes, covered, false)
        {
            self.give_up_cache(&error);
        }
    }

    /// Goes on in memory. What the cache holds by now stays right, and is found by the next tenure.
    fn give_up_cache(&mut self, error: &io::Error) {
        if self.cache.take().is_some() {
            tracing::warn!(%error, "the cache of seen keys is not kept up any more, going on in memory");
        }
    }

    /// Makes runs of what there is enough of.
    fn settle(&mut self) {
        match (&mut self.cache, self.covered) {
            (None, _) => self.settle_in_memory(),
            // Among the recent keys may be some that are not stored yet.
            (Some(_), Some(_)) => {}
            (Some(cache), None) => {
                if let Err(error) = cache.load(&mut self.lanes, self.sizes) {
                    self.give_up_cache(&error);
                }
            }
        }
    }

    fn settle_in_memory(&mut self) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.recent() >= self.sizes.flush_keys) {
            lane.flush();
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
mod cache_tests;
#[cfg(test)]
mod tests;
