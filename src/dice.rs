//! Randomness for tests: a small generator whose seed is printed, so that a failure can be had again.
//!
//! The seed comes from `MILLRACE_TEST_SEED` where it is set, else from the clock.

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, and good enough to shake inputs.
pub struct Dice(u64);

impl Dice {
    /// A generator with a fresh seed, which is printed.
    pub fn new(test: &str) -> Dice {
        let seed = match std::env::var("MILLRACE_TEST_SEED") {
            Ok(seed) => seed.parse().expect("MILLRACE_TEST_SEED is a number"),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("{test}: MILLRACE_TEST_SEED={seed}");
        Dice(seed)
    }

    /// Any 64 bits.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// From 0 up to, and without, `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.any() % bound as u64) as usize
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of `choices`.
    pub fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.below(choices.len())]
    }

    /// Changes, adds or removes up to two bytes of a text; what comes in is one of `pool`.
    pub fn damage(&mut self, text: &mut Vec<u8>, pool: &[u8]) {
        for _ in 0..self.below(3) {
            let at = self.below(text.len());
            match self.below(3) {
                0 => text[at] = *self.pick(pool),
                1 => text.insert(at, *self.pick(pool)),
                _ => drop(text.remove(at)),
            }
        }
    }

    /// 16 random bytes.
    pub fn id(&mut self) -> [u8; 16] {
        (u128::from(self.any()) << 64 | u128::from(self.any())).to_be_bytes()
    }
}
