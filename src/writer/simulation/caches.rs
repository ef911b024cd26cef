//! The model of the caches of seen keys, one for each process and partition, which outlive their process: what a
//! worker records when a range is finished, and what the next tenure makes of it.

use super::perform::{Doing, Tenure};
use super::rules::Rule;
use super::toy::{Toy, toy_key};
use super::world::World;
use crate::kinds::Kind;
use crate::writer::machine::Outcome;
use crate::writer::seen::manifest::StoredRows;
use crate::writer::seen::{Covered, SeenKeys, Sizes};

/// So small that keys become runs, and runs are merged.
const SIZES: Sizes = Sizes { flush_keys: 5, fan_in: 2, memory_run_keys: 1_000, record_keys: 1 };

/// A cache.
pub struct Cache {
    generation: u32,
    covered: Covered,
    keys: Vec<u8>,
}

/// An empty set of seen keys.
pub fn no_keys() -> SeenKeys {
    SeenKeys::with_sizes(Toy::KEY_LANES, SIZES)
}

impl World {
    /// The seen keys of a tenure: out of the process's cache, where it may be used, and the rest out of the store.
    pub fn load_seen(&mut self, w: usize, p: usize, t: &mut Tenure, generation: u32, below: i64) -> Doing {
        if self.now < self.store_back_at {
            return Doing::Telling(Outcome::Unknown);
        }
        t.forget_blocks();
        t.seen = no_keys();
        let mut from = None;
        if let Some(cache) = self.caches.get(&(w, p)) {
            let Covered { below: cached, rows } = cache.covered;
            let right = cached <= below && rows == self.stored_rows(p, generation, cached);
            if cache.generation == generation && (right || !self.obeys(Rule::CacheNotAhead)) {
                from = Some((generation, cached));
                for key in &cache.keys {
                    t.seen.insert(toy_key(*key));
                }
            }
        }
        let keys: Vec<u8> = self.store.keys(p, from, (generation, below)).collect();
        let known = keys.into_iter().filter(|key| !t.seen.insert(toy_key(*key))).count();
        if from.is_some() {
            self.cover("seen keys come from a cache");
            if known > 0 && self.obeys(Rule::CacheNotAhead) {
                self.violate("a cache has keys that are stored behind what it should have".to_owned());
            }
        }
        t.seen.loaded(Covered { below, rows: self.stored_rows(p, generation, below) });
        Doing::Telling(Outcome::Done)
    }

    /// A range is finished: what a worker records then must be exactly what is stored.
    pub fn record_seen(&mut self, w: usize, p: usize, t: &mut Tenure, generation: u32, next: i64) {
        let Some(new_events) = t.block_events() else { return };
        t.seen.finished(next, new_events);
        let Some(covered) = t.seen.recordable() else { return };
        let mut keys: Vec<u8> = self.store.keys(p, None, (generation, covered.below)).collect();
        keys.sort_unstable();
        keys.dedup();
        let rows = self.stored_rows(p, generation, covered.below);
        if keys.len() != t.seen.len() || covered.rows != rows {
            let found = t.seen.len();
            self.violate(format!(
                "{found} keys of {covered:?} are recorded, and stored are {} of {rows:?}",
                keys.len()
            ));
        }
        self.cover("seen keys are recorded");
        self.caches.insert((w, p), Cache { generation, covered, keys });
    }

    /// A range is read, and nothing of it stored: what a worker must not record.
    pub fn record_too_early(&mut self, w: usize, p: usize, t: &Tenure, generation: u32, next: i64) {
        if self.obeys(Rule::CacheNotAhead) {
            return;
        }
        let stored = self.store.keys(p, None, (generation, next));
        let keys = stored.chain(t.block_keys()).collect();
        let covered = Covered { below: next, rows: StoredRows::default() };
        self.caches.insert((w, p), Cache { generation, covered, keys });
    }

    fn stored_rows(&self, p: usize, generation: u32, below: i64) -> StoredRows {
        let older = self.store.rows(p, (0, 0), (generation, i64::MIN));
        StoredRows { older, own: self.store.rows(p, (generation, i64::MIN), (generation, below)) }
    }
}
