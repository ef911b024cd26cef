//! What every key goes through first: a permutation of all 128-bit values that nobody outside can predict.
//!
//! AES-128 under a random key. Different keys stay different, so that an answer about the permuted value is the
//! answer about the key; and the permuted values are spread evenly, however a sender chose the keys. All that follows
//! (the filter's lines, the places in tables and runs) relies on that for its speed, and nothing relies on it for its
//! answers.

use std::hash::{BuildHasher, RandomState};

use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Block};

/// A permuted key as it lies in memory and in files: a number, lowest byte first.
pub type Value = [u8; 16];

/// The permuted key as the number by which values are ordered.
#[inline]
pub fn number(value: &Value) -> u128 {
    u128::from_le_bytes(*value)
}

/// The first `bits` of a value behind its first `skip`: values are spread evenly over them. Few enough for a place in
/// memory.
#[inline]
pub fn leading(value: u128, skip: u32, bits: u32) -> usize {
    // Shifted in two steps, since a shift by all 64 bits is none.
    (((value >> 64) as u64) << skip >> 1 >> (63 - bits)) as usize
}

/// A permutation of all 128-bit values.
pub struct Permutation {
    secret: [u8; 16],
    cipher: Aes128,
}

impl Permutation {
    /// One that nobody can predict: its secret follows from what the operating system seeds this program's hash maps
    /// with.
    pub fn random() -> Permutation {
        let halves = [RandomState::new().hash_one(0_u8), RandomState::new().hash_one(1_u8)];
        Permutation::of((u128::from(halves[0]) << 64 | u128::from(halves[1])).to_le_bytes())
    }

    /// That of a secret.
    pub fn of(secret: [u8; 16]) -> Permutation {
        Permutation { secret, cipher: Aes128::new(&Array(secret)) }
    }

    /// What it follows from.
    pub fn secret(&self) -> [u8; 16] {
        self.secret
    }

    /// Permutes keys in place.
    pub fn apply(&self, keys: &mut [Value]) {
        self.cipher.encrypt_blocks(Block::cast_slice_from_core_mut(keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_of_its_secret() {
        // FIPS 197, appendix B.
        let text = 0x3243_f6a8_885a_308d_3131_98a2_e037_0734_u128.to_be_bytes();
        let permutation = Permutation::of(0x2b7e_1516_28ae_d2a6_abf7_1588_09cf_4f3c_u128.to_be_bytes());
        let mut keys = [text; 19];
        permutation.apply(&mut keys);
        assert_eq!(keys, [0x3925_841d_02dc_09fb_dc11_8597_196a_0b32_u128.to_be_bytes(); 19]);
        assert_ne!(Permutation::random().secret(), Permutation::random().secret());
    }

    #[test]
    fn leading_bits_are_taken_from_the_top() {
        let value = 0x1234_5678_9abc_def0_u128 << 64;
        assert_eq!(leading(value, 0, 0), 0);
        assert_eq!(leading(value, 0, 16), 0x1234);
        assert_eq!(leading(value, 8, 12), 0x345);
        assert_eq!(leading(value, 4, 60), 0x234_5678_9abc_def0);
    }
}
