//! Makes one run of several.
//!
//! In slices of the values' range that stay in the processor's cache: the slices of all runs are gathered and sorted by
//! their next bits, which takes the same few nanoseconds for each value however many runs there are.

use std::io;
use std::sync::Arc;

use super::permutation::{Value, leading, number};
use super::recent::insertion_sort;
use super::run::Run;

/// About how many values a slice has, as a power of two: 256 KiB in, as much out.
const SLICE_BITS: u32 = 14;

/// Shows the values of all runs in ascending order to `each`, a slice at a time. An error ends it: of a file that
/// cannot be read, of `each`, or [`io::ErrorKind::InvalidData`] for a value that comes twice, which no two runs of
/// one set have.
pub fn merge(runs: &[Arc<Run>], mut each: impl FnMut(&[Value]) -> io::Result<()>) -> io::Result<()> {
    let total: usize = runs.iter().map(|run| run.len()).sum();
    let slice_bits = total.max(1).ilog2().saturating_sub(SLICE_BITS);
    let mut at = vec![0; runs.len()];
    let mut gathered: Vec<Value> = Vec::new();
    let mut sorter = Sorter::default();
    let mut last = None;
    for slice in 1..=1_usize << slice_bits {
        gathered.clear();
        for (run, at) in runs.iter().zip(&mut at) {
            let all = slice == 1 << slice_bits;
            let end = if all { run.len() } else { run.lower_bound((slice as u128) << (128 - slice_bits)) };
            run.read(*at..end, &mut gathered)?;
            *at = end;
        }
        let sorted = sorter.sort(&gathered, slice_bits);
        let Some(first) = sorted.first() else { continue };
        if last.is_some_and(|last| number(&last) >= number(first)) || !sorted.is_sorted_by(|a, b| number(a) < number(b))
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a key is stored in two runs"));
        }
        last = sorted.last().copied();
        each(sorted)?;
    }
    Ok(())
}

/// One run of several, in memory.
pub fn in_memory(runs: &[Arc<Run>]) -> io::Result<Run> {
    let mut values: Vec<Value> = Vec::with_capacity(runs.iter().map(|run| run.len()).sum());
    merge(runs, |slice| {
        values.extend_from_slice(slice);
        Ok(())
    })?;
    Ok(Run::in_memory(values))
}

/// Sorts values that are spread evenly behind their common leading bits.
#[derive(Default)]
struct Sorter {
    places: Vec<u32>,
    sorted: Vec<Value>,
}

impl Sorter {
    fn sort(&mut self, values: &[Value], skip: u32) -> &[Value] {
        let bits = values.len().max(1).ilog2();
        self.places.clear();
        self.places.resize((1 << bits) + 1, 0);
        for value in values {
            self.places[leading(number(value), skip, bits) + 1] += 1;
        }
        let mut before = 0;
        for place in &mut self.places {
            before += *place;
            *place = before;
        }
        self.sorted.resize(values.len(), [0; 16]);
        for value in values {
            let place = &mut self.places[leading(number(value), skip, bits)];
            self.sorted[*place as usize] = *value;
            *place += 1;
        }
        insertion_sort(&mut self.sorted);
        &self.sorted
    }
}
