//! Keys for events that have none of their own, made from a request's `Idempotency-Key`.
//!
//! In: the header's value, and for each event its position in the body and its bytes. Out: 128 bits. The same body under
//! the same header gives the same keys, so that it can be sent again as a whole; a header that is used again for another
//! body gives others, so that nothing of that body is dropped.

use sha2::{Digest, Sha256};

/// Makes the keys of one request.
#[derive(Clone)]
pub struct KeyMaker(Sha256);

impl KeyMaker {
    /// For the value of an `Idempotency-Key` header.
    pub fn new(header: &str) -> KeyMaker {
        let mut state = Sha256::new();
        // Its length keeps the header apart from what follows.
        state.update((header.len() as u64).to_be_bytes());
        state.update(header);
        KeyMaker(state)
    }

    /// The key of the event at this position (from 0): the first half of a SHA-256.
    pub fn key(&self, position: u64, raw: &[u8]) -> [u8; 16] {
        let mut state = self.0.clone();
        state.update(position.to_be_bytes());
        state.update(raw);
        let hash = state.finalize();
        std::array::from_fn(|index| hash[index])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn header_position_and_event_all_count() {
        let mut keys = HashSet::new();
        for header in ["a", "ab", "b"] {
            for position in [0, 1, u64::MAX] {
                for raw in [&b""[..], b"a", b"b", b"{}"] {
                    let key = KeyMaker::new(header).key(position, raw);
                    assert_eq!(key, KeyMaker::new(header).key(position, raw));
                    assert!(keys.insert(key), "{header} {position} {raw:?}");
                }
            }
        }
    }

    /// They are stored: a change would count what is sent again after an upgrade twice.
    #[test]
    fn keys_never_change() {
        let key = KeyMaker::new("upload-1").key(7, br#"{"a":1}"#);
        // sha256(0x0000000000000008 "upload-1" 0x0000000000000007 "{\"a\":1}"), by another implementation.
        assert_eq!(u128::from_be_bytes(key), 0x695946e8b1ff8112651027edeb34663c);
    }
}
