//! Content codings: what a client has compressed is what the endpoint reads.
//!
//! In: a body as it was received, whole, and the value of its `Content-Encoding`. Out: the decoded body, in a buffer from
//! the same pool as other bodies, or a fault that says what is wrong at which byte. `gzip` reads members, `zstd` reads
//! frames; both are strict, since a body that is not wholly understood must not be counted in part.
//!
//! What always holds: output is bounded, and memory follows what is really put out, not what is announced; all that
//! is held (output, the decoder's window) is taken from the room for bodies in flight before it is touched; the
//! coroutine pauses after each [`SLICE_BYTES`] of work.

mod gzip;
#[cfg(test)]
pub(super) mod tests;
mod zstd;

use std::mem::MaybeUninit;

use crossbeam::queue::ArrayQueue;
use flate2::Decompress;
use zstd_safe::DCtx;

use super::body::{self, Share};
use crate::exchange::Fault;
use crate::kinds::excerpt;
use crate::pause::pause;

/// How far a body is decoded without a pause for the others: 256 KiB, which take less than a millisecond.
const SLICE_BYTES: usize = 256 << 10;
/// What a member, a frame or a block costs beside its bytes, in bytes of work: many empty ones must not go without pauses.
const STEP_WORK: usize = 1 << 10;
/// A hint at the decoded length (which its sender can make up) is believed up to so many times the coded length. Events
/// in JSON are compressed to a fifth or a tenth.
const PLAUSIBLE_RATIO: usize = 16;
/// Room beyond the expected end, so that the decoder need not be given more to find that it has come to it.
const PADDING_BYTES: usize = 64;
/// Decoders kept for the next body: inflaters have 48 KiB, zstd's contexts 3 MiB at most ([`zstd::KEPT_BYTES_MAX`]).
const POOLED_MAX: usize = 8;

/// A coding that is undone here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878, with the window of RFC 9659.
    Zstd,
}

impl Coding {
    /// Reads the value of `Content-Encoding`.
    pub fn of(value: Option<&str>) -> Result<Option<Coding>, Fault> {
        let Some(value) = value else { return Ok(None) };
        let is = |name: &str| value.eq_ignore_ascii_case(name);
        match () {
            () if is("gzip") || is("x-gzip") => Ok(Some(Coding::Gzip)),
            () if is("zstd") => Ok(Some(Coding::Zstd)),
            () if is("identity") => Ok(None),
            () => Err(Fault::UnsupportedContentEncoding(excerpt::quote(value))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }

    /// What is wrong at which byte of the body as it was sent, counted from 0.
    fn broken(self, at: usize, what: impl std::fmt::Display) -> Fault {
        Fault::InvalidEncoding(format!("the {} body is broken at byte {at}: {what}", self.name()))
    }
}

/// Decoders between two bodies.
pub(super) struct Decoders {
    inflaters: ArrayQueue<Decompress>,
    contexts: ArrayQueue<DCtx<'static>>,
}

impl Decoders {
    pub fn new() -> Decoders {
        Decoders { inflaters: ArrayQueue::new(POOLED_MAX), contexts: ArrayQueue::new(POOLED_MAX) }
    }

    /// Decodes `coded` into `decoded`, which is empty and may have memory already. On success `share` holds as much of
    /// the room as the decoded body takes.
    ///
    /// # Errors
    ///
    /// [`Fault::InvalidEncoding`], [`Fault::DecodedTooLarge`] past `bytes_max`, and a 503 when there is no room.
    pub fn decode(
        &self,
        coding: Coding,
        coded: &[u8],
        decoded: &mut Vec<u8>,
        bytes_max: usize,
        share: &mut Share<'_>,
    ) -> Result<(), Fault> {
        let mut output = Output { bytes: decoded, bytes_max, share, expected: 0, beside: 0, since_pause: 0 };
        match coding {
            Coding::Gzip => gzip::decode(coded, &mut output, &self.inflaters)?,
            Coding::Zstd => zstd::decode(coded, &mut output, &self.contexts)?,
        }
        output.settle();
        Ok(())
    }
}

/// What has been put out so far, and what bounds it.
struct Output<'a, 'room> {
    bytes: &'a mut Vec<u8>,
    bytes_max: usize,
    share: &'a mut Share<'room>,
    /// How much memory to begin with.
    expected: usize,
    /// Bytes that the decoder itself holds.
    beside: usize,
    since_pause: usize,
}

impl Output<'_, '_> {
    /// Says how long the output is likely to become. `hint` is what the sender says.
    fn expect(&mut self, coded: usize, hint: Option<usize>) {
        let plausible = coded.saturating_mul(PLAUSIBLE_RATIO);
        self.expected = hint.unwrap_or(coded.saturating_mul(4)).min(plausible).saturating_add(PADDING_BYTES);
    }

    /// Says that the decoder holds so many bytes of its own, at most.
    fn beside(&mut self, bytes: usize) {
        self.beside = self.beside.max(bytes);
    }

    /// Says that so many more bytes are sure to come.
    fn announce(&self, bytes: u64) -> Result<(), Fault> {
        let left = self.bytes_max.saturating_sub(self.bytes.len());
        if bytes > left as u64 { Err(self.too_large()) } else { Ok(()) }
    }

    /// Makes room for at least one byte and at most `wanted`, and returns for how many.
    fn room(&mut self, wanted: usize) -> Result<usize, Fault> {
        let length = self.bytes.len();
        if self.bytes.capacity() == length {
            self.grow()?;
        }
        // One byte past the limit is room enough to see that there are too many.
        let n = wanted.min(self.bytes.capacity() - length).min(self.bytes_max + 1 - length);
        let held = self.beside.saturating_add(length + n);
        if self.share.grow(held) { Ok(n) } else { Err(body::no_room()) }
    }

    /// Doubles the memory while it is small. Past what is kept for other bodies anyway, one step leads to the limit:
    /// memory that is not touched is not there, whereas moving a large body takes time, and twice the memory.
    fn grow(&mut self) -> Result<(), Fault> {
        let length = self.bytes.len();
        let wanted = (length * 2).max(self.expected).max(body::SMALL_BYTES);
        let limit = self.bytes_max + 1;
        let capacity = if wanted > body::BUFFER_BYTES_MAX && length > 0 { limit } else { wanted.min(limit) };
        self.bytes.try_reserve_exact(capacity - length).map_err(|_| body::no_room())
    }

    /// Where the next bytes go; as long as [`Output::room`] said.
    fn spare(&mut self, bytes: usize) -> &mut [MaybeUninit<u8>] {
        &mut self.bytes.spare_capacity_mut()[..bytes]
    }

    /// Counts work, checks the limit and pauses when it is time.
    fn worked(&mut self, bytes: usize) -> Result<(), Fault> {
        if self.bytes.len() > self.bytes_max {
            return Err(self.too_large());
        }
        self.since_pause += bytes;
        if self.since_pause >= SLICE_BYTES {
            self.since_pause = 0;
            pause();
        }
        Ok(())
    }

    /// The decoder is done: only the output is held any longer.
    fn settle(&mut self) {
        self.share.shrink(self.bytes.len());
    }

    fn too_large(&self) -> Fault {
        Fault::DecodedTooLarge(self.bytes_max)
    }
}
