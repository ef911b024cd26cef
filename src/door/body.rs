//! Bodies: read to exactly their announced length, into buffers that are bounded and used again.
//!
//! In: a request's `BodyReader`, its length and the connection's own descriptor. Out: the body, whole, or how it
//! ended. What always holds: exactly the announced bytes are taken from the connection, never one of the next request;
//! all bodies together, and unusual numbers of waiting answers, stay below `body_bytes_in_flight_max`.

use std::io::BufRead;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use may_minihttp::BodyReader;

use super::wire::Wire;
use crate::exchange::Fault;
use crate::pause::pause;

/// A body that is not longer than this is kept in the connection's own buffer.
pub(super) const SMALL_BYTES: usize = 16 << 10;
/// From here on the rest of a body is read straight from the descriptor instead of through the server's buffer of
/// 32 KiB, which it would be copied out of.
const DIRECT_BYTES: usize = 32 << 10;
/// How much is read without a pause for the others.
const SLICE_BYTES: usize = 256 << 10;
/// The first step in which room for a body is taken; each further step is four times as large.
const STEP_BYTES: usize = 64 << 10;
/// Room beyond the body's end, so that a parser that wants some padding need not move it.
const PADDING_BYTES: usize = 64;

/// How reading a body ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All of it was read.
    Whole,
    /// The connection ended or was cut before.
    Short,
    /// All bodies together have become too long.
    NoRoom,
}

/// What all bodies together may hold.
pub(super) struct Room {
    taken: AtomicUsize,
    bytes_max: usize,
}

impl Room {
    pub fn new(bytes_max: usize) -> Room {
        Room { taken: AtomicUsize::new(0), bytes_max }
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Would a body of this length fit now?
    pub fn fits(&self, bytes: usize) -> bool {
        self.taken().checked_add(bytes).is_some_and(|sum| sum <= self.bytes_max)
    }

    /// Changes what somebody holds of the room from `held` to `wanted`, unless the room is too small for that.
    pub fn hold(&self, held: &mut usize, wanted: usize) -> bool {
        let held_before = *held;
        let change = |taken: usize| (taken - held_before).checked_add(wanted).filter(|sum| *sum <= self.bytes_max);
        let changed = self.taken.fetch_update(Ordering::AcqRel, Ordering::Relaxed, change).is_ok();
        if changed {
            *held = wanted;
        }
        changed
    }

    /// A share that is given back when dropped.
    pub fn share(&self) -> Share<'_> {
        Share { room: self, bytes: 0 }
    }
}

/// One body's part of the [`Room`].
pub(super) struct Share<'a> {
    room: &'a Room,
    bytes: usize,
}

impl Share<'_> {
    /// Grows the share to `bytes`, unless the room is too small for that.
    pub fn grow(&mut self, bytes: usize) -> bool {
        bytes <= self.bytes || self.room.hold(&mut self.bytes, bytes)
    }

    /// Gives back what is beyond `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        if bytes < self.bytes {
            self.room.hold(&mut self.bytes, bytes);
        }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.room.hold(&mut self.bytes, 0);
    }
}

/// The answer where the room is too small.
pub(super) fn no_room() -> Fault {
    Fault::Unavailable { message: "too many bodies at a time: try again".into(), retry_after_s: 1 }
}

/// Reads a body of `length` bytes into `body`, which is empty, through the server's reader where the server may have read
/// some of it. Room is taken as the body grows, so that a sender that
/// announces much and sends little holds little.
pub(super) fn read(
    reader: Option<BodyReader<'_, '_>>,
    wire: &mut Wire,
    length: usize,
    body: &mut Vec<u8>,
    share: &mut Share<'_>,
) -> End {
    // When dropped, the reader would read on to the announced end, however far that is. It owns nothing.
    let mut reader = reader.map(ManuallyDrop::new);
    let mut emptied = false;
    let mut slice = 0;
    let mut room = 0;
    while body.len() < length {
        if body.len() == room {
            room = length.min((room * 4).max(STEP_BYTES));
            if !share.grow(room) || body.try_reserve_exact(room - body.len() + PADDING_BYTES).is_err() {
                return End::NoRoom;
            }
        }
        // The server's buffer comes first: once a whole chunk of it was consumed and the body is still not complete, it
        // is empty, and the rest of the body comes from the connection, by whichever descriptor.
        let direct = emptied && length - body.len() >= DIRECT_BYTES;
        let n = match reader.as_mut().filter(|_| !direct) {
            None => wire.receive(body, room - body.len()).unwrap_or(0),
            Some(reader) => {
                let Ok(chunk) = reader.fill_buf() else { return End::Short };
                let n = chunk.len().min(room - body.len());
                body.extend_from_slice(&chunk[..n]);
                emptied = n == chunk.len();
                reader.consume(n);
                n
            }
        };
        if n == 0 {
            return End::Short;
        }
        slice += n;
        if slice >= SLICE_BYTES {
            slice = 0;
            pause();
        }
    }
    End::Whole
}

/// Large buffers between two bodies, the last used first: its memory is warm.
pub(super) struct Buffers(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    buffers: Vec<Vec<u8>>,
    /// The capacities of all of them.
    bytes: usize,
}

/// All buffers that are kept, together: those of 16 bodies of 2 MiB, which is more than are read at once on most machines.
const KEPT_BYTES_MAX: usize = 32 << 20;
/// A larger buffer is not kept.
pub(super) const BUFFER_BYTES_MAX: usize = 8 << 20;

impl Buffers {
    pub fn new() -> Buffers {
        Buffers(Mutex::default())
    }

    pub fn take(&self) -> Vec<u8> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let buffer = kept.buffers.pop().unwrap_or_default();
        kept.bytes -= buffer.capacity();
        buffer
    }

    pub fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let bytes = buffer.capacity();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if (SMALL_BYTES..=BUFFER_BYTES_MAX).contains(&bytes) && kept.bytes + bytes <= KEPT_BYTES_MAX {
            kept.bytes += bytes;
            kept.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_never_exceed_the_room_and_are_given_back() {
        let room = Room::new(100);
        let mut a = room.share();
        let mut b = room.share();
        assert!(a.grow(60) && b.grow(40) && !b.grow(41) && a.grow(10));
        assert!(!room.fits(1) && room.fits(0) && !room.fits(usize::MAX));
        a.shrink(50);
        a.shrink(70);
        assert_eq!(room.taken(), 90);
        drop(a);
        assert_eq!(room.taken(), 40);
        assert!(b.grow(100));
        drop(b);
        assert_eq!(room.taken(), 0);
    }

    #[test]
    fn buffers_are_kept_within_bounds() {
        let buffers = Buffers::new();
        buffers.put(Vec::with_capacity(BUFFER_BYTES_MAX + 1));
        buffers.put(Vec::new());
        assert_eq!(buffers.take().capacity(), 0);
        for bytes in [SMALL_BYTES, BUFFER_BYTES_MAX] {
            for _ in 0..KEPT_BYTES_MAX / bytes + 5 {
                buffers.put(Vec::with_capacity(bytes));
            }
            let kept = (0..).take_while(|_| buffers.take().capacity() > 0).count();
            assert_eq!(kept, KEPT_BYTES_MAX / bytes);
        }
    }
}
