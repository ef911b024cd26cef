//! The keys of a partition that are stored already.
//!
//! Exact and in memory: about 20 to 37 bytes for each key, by how full the tables are. This interface is all that the rest
//! knows of it, so that a store on local disk or a filter in front of ClickHouse can take its place.

use hashbrown::HashSet;

use crate::kinds::Key;

/// A set of keys. Its hashes are seeded at random, so that a sender cannot choose keys that collide.
#[derive(Debug)]
pub struct SeenKeys {
    lanes: Vec<HashSet<[u8; 16]>>,
}

impl SeenKeys {
    /// An empty set for keys of `lanes` lanes.
    pub fn new(lanes: u8) -> SeenKeys {
        SeenKeys { lanes: (0..lanes).map(|_| HashSet::default()).collect() }
    }

    /// Makes room for so many more keys in a lane, when their number is known before they are loaded.
    pub fn reserve(&mut self, lane: u8, keys: usize) {
        self.lanes[usize::from(lane)].reserve(keys);
    }

    /// Adds a key; `true` when it was not there.
    ///
    /// # Panics
    ///
    /// When the key's lane is not below the number of lanes, which is a mistake of its kind.
    #[inline]
    pub fn insert(&mut self, key: Key) -> bool {
        self.lanes[usize::from(key.lane)].insert(key.id)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.lanes.iter().map(HashSet::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The memory they take.
    pub fn bytes(&self) -> usize {
        self.lanes.iter().map(HashSet::allocation_size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_new_once_in_each_lane() {
        let mut seen = SeenKeys::new(2);
        for lane in [0, 1] {
            let key = Key { lane, id: [7; 16] };
            assert!(seen.insert(key));
            assert!(!seen.insert(key));
        }
        assert_eq!(seen.len(), 2);
        assert!(!seen.is_empty());
    }

    #[test]
    fn a_key_takes_less_than_40_bytes() {
        let mut seen = SeenKeys::new(1);
        for n in 0..100_000_u128 {
            seen.insert(Key { lane: 0, id: n.to_be_bytes() });
        }
        let bytes = seen.bytes() / seen.len();
        assert!((17..40).contains(&bytes), "{bytes} bytes a key");
    }
}
