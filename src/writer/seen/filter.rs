//! A filter in front of the exact sets: says of most values that they were never put in, at the price of one cache
//! line.
//!
//! A blocked Bloom filter. A value's line follows from its leading bits, in their order, so that values in ascending
//! order fill it in one pass; in that line its last 48 bits name one bit in each of eight words. Of other values 1 in
//! 1,000 is taken for one that was put in.
//!
//! It grows in steps that nobody has to wait for: the leading bits also divide it into [`SEGMENTS`], and the one
//! whose turn it is is made anew at twice its size while the others stay, so that its memory follows the number of
//! values without jumps. Whoever owns it puts the segment's values in again.

use super::AHEAD;
use super::permutation::{Value, leading, number};

/// How many segments there are, as a power of two: with 200 million values a segment has 12 million, which are put in
/// again in 0.1 s.
const SEGMENT_BITS: u32 = 4;
/// How many segments there are.
pub const SEGMENTS: usize = 1 << SEGMENT_BITS;
/// The bits for each value that are kept to on average. A segment whose turn is about to come may have half of that.
const BITS_A_VALUE: u64 = 20;
/// The bits of a line: a cache line.
const LINE_BITS: u64 = 512;
/// The least lines of a segment that are asked to lie in huge pages (of 2 MiB): a probe then rarely misses the TLB.
const HUGE_LINES: usize = (2 << 20) / (LINE_BITS as usize / 8);

/// Eight words, in each of which a value has one bit.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

impl Line {
    /// Sets a value's bits; `true` when all were set.
    #[inline(always)]
    fn insert(&mut self, value: u128) -> bool {
        let bits: [u64; 8] = std::array::from_fn(|index| 1 << ((value as u64 >> (6 * index)) & 63));
        let missing = self.0.iter().zip(bits).fold(0, |missing, (word, bit)| missing | (!word & bit));
        self.0.iter_mut().zip(bits).for_each(|(word, bit)| *word |= bit);
        missing == 0
    }
}

/// The filter.
pub struct Filter {
    segments: [Vec<Line>; SEGMENTS],
    /// The segment that grows next.
    turn: usize,
    /// The lines of all segments.
    lines: u64,
}

impl Filter {
    /// An empty filter with room for so many values.
    pub fn new(values: u64) -> Filter {
        let lines = (values * BITS_A_VALUE).div_ceil(LINE_BITS).div_ceil(SEGMENTS as u64).max(1);
        let segments = std::array::from_fn(|_| empty(lines as usize));
        Filter { segments, turn: 0, lines: lines * SEGMENTS as u64 }
    }

    /// Puts values in, in order, and says of each one whether it may have been there: `each` is shown its index, the
    /// value, and `false` when it surely was not.
    pub fn insert_all(&mut self, values: &[Value], each: impl FnMut(usize, u128, bool)) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            return unsafe { self.insert_all_avx2(values, each) };
        }
        self.insert_all_plain(values, each);
    }

    /// The same code with shifts of four words at once: half the time.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn insert_all_avx2(&mut self, values: &[Value], each: impl FnMut(usize, u128, bool)) {
        self.insert_all_plain(values, each);
    }

    #[inline(always)]
    fn insert_all_plain(&mut self, values: &[Value], mut each: impl FnMut(usize, u128, bool)) {
        values.iter().take(AHEAD).for_each(|value| self.prefetch(number(value)));
        for (index, value) in values.iter().enumerate() {
            if let Some(ahead) = values.get(index + AHEAD) {
                self.prefetch(number(ahead));
            }
            let value = number(value);
            each(index, value, self.insert(value));
        }
    }

    /// Puts a value in; `false` when it surely was not there.
    #[inline(always)]
    pub fn insert(&mut self, value: u128) -> bool {
        let segment = &mut self.segments[leading(value, 0, SEGMENT_BITS)];
        let line = line_of(value, segment.len());
        segment[line].insert(value)
    }

    #[inline(always)]
    fn prefetch(&self, value: u128) {
        let segment = &self.segments[leading(value, 0, SEGMENT_BITS)];
        super::prefetch(&segment[line_of(value, segment.len())]);
    }

    /// The segment to be made anew before so many values are in, with [`Filter::renew`].
    pub fn outgrown(&self, values: u64) -> Option<usize> {
        (self.lines * LINE_BITS < values * BITS_A_VALUE).then_some(self.turn)
    }

    /// Empties the segment whose turn it is, at twice its size. Its values are to be put in again before anything is
    /// asked.
    pub fn renew(&mut self) {
        let segment = &mut self.segments[self.turn];
        let lines = segment.len();
        // Given back before the larger one is taken.
        *segment = Vec::new();
        *segment = empty(2 * lines);
        self.lines += lines as u64;
        self.turn = (self.turn + 1) % SEGMENTS;
    }

    /// The memory it takes.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| segment.capacity() * size_of::<Line>()).sum()
    }
}

/// The values of a segment: from the first one up to, and without, the second; `None` is the end of all values.
pub fn values_of(segment: usize) -> (u128, Option<u128>) {
    let from = |segment: usize| (segment as u128) << (128 - SEGMENT_BITS);
    (from(segment), (segment + 1 < SEGMENTS).then(|| from(segment + 1)))
}

/// The place of a value's line in its segment.
#[inline(always)]
fn line_of(value: u128, lines: usize) -> usize {
    let within = ((value >> 64) as u64) << SEGMENT_BITS;
    ((u128::from(within) * lines as u128) >> 64) as usize
}

fn empty(lines: usize) -> Vec<Line> {
    let mut segment = Vec::with_capacity(lines);
    if lines >= HUGE_LINES {
        super::advise_huge(segment.spare_capacity_mut());
    }
    segment.resize(lines, Line([0; 8]));
    segment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    #[test]
    fn it_knows_what_was_put_in_and_little_else_while_it_grows() {
        let mut dice = Dice::new("it_knows_what_was_put_in_and_little_else_while_it_grows");
        let mut filter = Filter::new(0);
        let mut values: Vec<Value> = Vec::new();
        let (mut mistaken, mut others) = (0, 0);
        for _ in 0..150 {
            let new: Vec<Value> = (0..1_000).map(|_| dice.id()).collect();
            filter.insert_all(&new, |_, _, maybe| mistaken += u32::from(maybe));
            others += 1_000;
            values.extend(new);
            while let Some(segment) = filter.outgrown(values.len() as u64) {
                filter.renew();
                let (from, to) = values_of(segment);
                let again = |value: &&Value| number(value) >= from && to.is_none_or(|to| number(value) < to);
                let again: Vec<Value> = values.iter().filter(again).copied().collect();
                filter.insert_all(&again, |_, _, _| {});
            }
        }
        filter.insert_all(&values, |index, _, maybe| assert!(maybe, "value {index} is not known"));
        assert!(mistaken * 300 < others, "{mistaken} of {others} were taken for others");
        let bits = 8 * filter.bytes() / values.len();
        assert!((20..23).contains(&bits), "{bits} bits a value");
    }
}
