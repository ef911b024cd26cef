//! The latest values: an exact set in memory that is emptied in order.
//!
//! Open addressing, where a value's place is its leading bits: values are spread evenly, so that needs no hash, and
//! whoever walks the table meets them nearly sorted. There is no wrapping around: what is pushed beyond the end
//! lies behind it.

use super::AHEAD;
use super::permutation::{Value, leading, number};

/// The smallest table, as a power of two.
const BITS_MIN: u32 = 6;

/// The set.
pub struct Recent {
    /// Zero is an empty place.
    slots: Vec<u128>,
    /// The places that values have of themselves, as a power of two.
    bits: u32,
    /// How many places are taken.
    taken: usize,
    /// Whether the value zero is in the set.
    zero: bool,
}

impl Recent {
    /// An empty set.
    pub fn new() -> Recent {
        Recent { slots: vec![0; 1 << BITS_MIN], bits: BITS_MIN, taken: 0, zero: false }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.taken + usize::from(self.zero)
    }

    /// Puts a value in; `true` when it was not there.
    #[inline]
    pub fn insert(&mut self, value: u128) -> bool {
        if value == 0 {
            return !std::mem::replace(&mut self.zero, true);
        }
        let mut place = leading(value, 0, self.bits);
        while let Some(&found) = self.slots.get(place) {
            if found == value {
                return false;
            }
            if found == 0 {
                self.slots[place] = value;
                self.taken += 1;
                return true;
            }
            place += 1;
        }
        self.slots.push(value);
        self.taken += 1;
        true
    }

    /// Whether a value is in the set.
    #[inline]
    fn contains(&self, value: u128) -> bool {
        if value == 0 {
            return self.zero;
        }
        let behind = self.slots[leading(value, 0, self.bits)..].iter().take_while(|found| **found != 0);
        behind.into_iter().any(|found| *found == value)
    }

    /// Removes from `sought` the values that are in the set, and shows what stands beside them; the others keep their
    /// order.
    pub fn remove_found(&self, sought: &mut Vec<(u128, u32)>, mut found: impl FnMut(u32)) {
        let mut kept = 0;
        for index in 0..sought.len() {
            if let Some((ahead, _)) = sought.get(index + AHEAD) {
                self.prefetch(*ahead);
            }
            let item = sought[index];
            if self.contains(item.0) {
                found(item.1);
            } else {
                sought[kept] = item;
                kept += 1;
            }
        }
        sought.truncate(kept);
    }

    /// Has the place of a value brought near.
    #[inline]
    pub fn prefetch(&self, value: u128) {
        super::prefetch(&self.slots[leading(value, 0, self.bits)]);
    }

    /// Makes room for so many more values: at most three of four places are taken.
    pub fn reserve(&mut self, more: usize) {
        let mut bits = self.bits;
        while 4 * (self.taken + more) > 3 << bits {
            bits += 1;
        }
        if bits > self.bits {
            let mut slots = vec![0; 1 << bits];
            std::mem::swap(&mut slots, &mut self.slots);
            (self.bits, self.taken) = (bits, 0);
            for value in slots.into_iter().filter(|value| *value != 0) {
                self.insert(value);
            }
        }
    }

    /// Shows the values from `from` up to, and without, `to` (`None` for all that follow), nearly in order.
    pub fn each(&self, from: u128, to: Option<u128>, mut show: impl FnMut(u128)) {
        if self.zero && from == 0 {
            show(0);
        }
        let last = to.map_or(usize::MAX, |to| leading(to, 0, self.bits));
        for (place, &value) in self.slots.iter().enumerate().skip(leading(from, 0, self.bits)) {
            // A value lies in its own place or behind taken ones.
            if value == 0 && place >= last {
                break;
            }
            if value != 0 && value >= from && to.is_none_or(|to| value < to) {
                show(value);
            }
        }
    }

    /// Takes all values out, in ascending order.
    pub fn drain(&mut self) -> Vec<Value> {
        // Every place is written, and written over where it was empty: a branch would be guessed wrong half the time.
        let mut values = vec![[0; 16]; self.len() + 1];
        let mut count = usize::from(self.zero);
        for &value in &self.slots {
            values[count] = value.to_le_bytes();
            count += usize::from(value != 0);
        }
        values.truncate(count);
        insertion_sort(&mut values);
        self.slots.truncate(1 << self.bits);
        self.slots.fill(0);
        (self.taken, self.zero) = (0, false);
        values
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u128>()
    }
}

/// Sorts values that are nearly in order.
pub fn insertion_sort(values: &mut [Value]) {
    for sorted in 1..values.len() {
        let value = values[sorted];
        let mut place = sorted;
        while place > 0 && number(&values[place - 1]) > number(&value) {
            values[place] = values[place - 1];
            place -= 1;
        }
        values[place] = value;
    }
}
