//! Numbers that a seed decides: draws, the keys of events, and their text.
//!
//! A key is a function of the seed, the run's id and the event's number, so it can be written into a body that was
//! built before, and recomputed when the report is compared. Two numbers of a run never have the same key.

/// A bijection of 64 bits that spreads neighbours: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
pub fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// A sequence of draws.
#[derive(Debug, Clone)]
pub struct Dice {
    state: u64,
}

impl Dice {
    pub fn new(seed: u64, purpose: u64) -> Dice {
        Dice { state: mix(seed ^ mix(purpose)) }
    }

    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(end)) >> 64) as u64
    }

    /// Whether something of this probability happens.
    pub fn chance(&mut self, share: f64) -> bool {
        ((self.draw() >> 11) as f64) < share * (1u64 << 53) as f64
    }
}

/// The keys of one run.
#[derive(Debug, Clone, Copy)]
pub struct Keys {
    first: u64,
    second: u64,
}

/// Numbers of sites lie beyond those of events.
pub const SITES: u64 = 1 << 63;

impl Keys {
    pub fn new(seed: u64, run_id: u64) -> Keys {
        Keys { first: mix(seed ^ mix(run_id)), second: mix(run_id.wrapping_add(mix(!seed))) }
    }

    /// The 128 bits of a key. The upper half alone tells numbers of one run apart, both together runs.
    pub fn key(&self, number: u64) -> u128 {
        let upper = mix(number ^ self.first);
        u128::from(upper) << 64 | u128::from(mix(upper ^ self.second))
    }

    /// A draw that belongs to an event.
    pub fn draw(&self, number: u64) -> u64 {
        mix(number.wrapping_add(self.second))
    }
}

/// Bytes of a UUID's text.
pub const UUID_BYTES: usize = 36;

/// Writes a UUID's text, which is `UUID_BYTES` long.
pub fn write_uuid(into: &mut [u8], value: u128) {
    let [a, b, c, d] = [96, 64, 32, 0].map(|shift| hex((value >> shift) as u32));
    let text: &mut [u8; UUID_BYTES] = match into.try_into() {
        Ok(text) => text,
        Err(_) => unreachable!("the place of a UUID has its length"),
    };
    text[..8].copy_from_slice(&a);
    text[9..13].copy_from_slice(&b[..4]);
    text[14..18].copy_from_slice(&b[4..]);
    text[19..23].copy_from_slice(&c[..4]);
    text[24..28].copy_from_slice(&c[4..]);
    text[28..].copy_from_slice(&d);
    (text[8], text[13], text[18], text[23]) = (b'-', b'-', b'-', b'-');
}

/// Eight hexadecimal digits, computed side by side in one word.
pub fn hex(value: u32) -> [u8; 8] {
    let mut nibbles = u64::from(value);
    nibbles = (nibbles | nibbles << 16) & 0x0000_ffff_0000_ffff;
    nibbles = (nibbles | nibbles << 8) & 0x00ff_00ff_00ff_00ff;
    nibbles = (nibbles | nibbles << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((nibbles + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
    (nibbles + 0x3030_3030_3030_3030 + letters * 0x27).to_be_bytes()
}

/// A number that no other run has, for a seed or a run's id that was not given.
pub fn fresh() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id()) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn hexadecimal_digits() {
        for value in [0, 1, 0x1234_5678, 0x9abc_def0, 0xdead_beef, u32::MAX, 0x0a0b_0c0d] {
            assert_eq!(hex(value), *format!("{value:08x}").as_bytes(), "{value:x}");
        }
        let mut text = [0; UUID_BYTES];
        write_uuid(&mut text, 0x2d5e8a40_4c1f_4b6a_9d0e_6f5a3c2b1a00);
        assert_eq!(&text, b"2d5e8a40-4c1f-4b6a-9d0e-6f5a3c2b1a00");
    }

    #[test]
    fn keys_are_distinct_within_a_run_and_between_runs() {
        let mut seen = HashSet::new();
        for (seed, run_id) in [(1, 1), (1, 2), (2, 1), (0, 0)] {
            let keys = Keys::new(seed, run_id);
            for number in (0..5_000).chain(1 << 40..(1 << 40) + 5_000).chain(SITES..SITES + 100) {
                assert!(seen.insert(keys.key(number)), "{seed} {run_id} {number}");
            }
        }
        assert_eq!(Keys::new(7, 9).key(3), Keys::new(7, 9).key(3));
    }

    #[test]
    fn draws_follow_the_seed_and_their_shares() {
        let draw = |seed| (0..1000).scan(Dice::new(seed, 1), |dice, _| Some(dice.below(10))).collect::<Vec<_>>();
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
        assert!(draw(5).iter().all(|&drawn| drawn < 10));
        let mut dice = Dice::new(1, 1);
        let hits = (0..100_000).filter(|_| dice.chance(0.05)).count();
        assert!((4_500..5_500).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| !dice.chance(0.0)) && (0..1000).all(|_| dice.chance(1.0)));
    }
}
