//! zstd (RFC 8878): frames one after the other until the body's end. The framing is read here, so that each block goes
//! to libzstd as a whole and by itself: that gives pauses, and the place of what is wrong.

use crossbeam::queue::ArrayQueue;
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

use super::{Coding, Output, STEP_WORK};
use crate::exchange::Fault;

/// The largest window, as RFC 9659 has it for the content coding: 8 MiB.
const WINDOW_LOG_MAX: u32 = 23;
const WINDOW_BYTES_MAX: u64 = 1 << WINDOW_LOG_MAX;
/// The most that a block holds.
const BLOCK_BYTES_MAX: usize = 128 << 10;
/// What a context holds beside its window: 160 KiB of tables, a block on its way in and one on its way out.
const CONTEXT_BYTES: usize = (160 << 10) + 2 * BLOCK_BYTES_MAX;
/// A context that has grown larger is not kept: 3 MiB have room for the window of 2 MiB that level 3 uses.
pub(super) const KEPT_BYTES_MAX: usize = 3 << 20;

const MAGIC: u32 = 0xfd2f_b528;
/// The sixteen magic numbers of frames that hold no content differ in the last four bits.
const SKIPPABLE_MAGIC: u32 = 0x184d_2a50;

pub(super) fn decode(
    coded: &[u8],
    output: &mut Output<'_, '_>,
    contexts: &ArrayQueue<DCtx<'static>>,
) -> Result<(), Fault> {
    let mut context = match contexts.pop() {
        Some(context) => context,
        None => DCtx::try_create().ok_or_else(super::body::no_room)?,
    };
    // The last body may have ended in the middle.
    let ready = context
        .reset(ResetDirective::SessionOnly)
        .and_then(|_| context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX)));
    if let Err(code) = ready {
        tracing::error!(error = get_error_name(code), "a zstd context cannot be set up");
        return Err(Fault::Internal);
    }
    let decoded = frames(coded, output, &mut context);
    if context.sizeof() <= KEPT_BYTES_MAX {
        // What does not fit the pool is dropped.
        let _ = contexts.push(context);
    }
    decoded
}

fn frames(coded: &[u8], output: &mut Output<'_, '_>, context: &mut DCtx<'_>) -> Result<(), Fault> {
    if coded.is_empty() {
        return broken(0, "there is no frame");
    }
    let mut at = 0;
    while at < coded.len() {
        at = match Frame::read(coded, at)? {
            Frame::Skippable { end } => end,
            Frame::Content(header) => frame(coded, at, &header, output, context)?,
        };
        output.worked(STEP_WORK)?;
    }
    Ok(())
}

/// What a frame's header says.
#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Skippable { end: usize },
    Content(Header),
}

#[derive(Debug, PartialEq, Eq)]
struct Header {
    /// Where the first block begins.
    end: usize,
    window_bytes: u64,
    content_bytes: Option<u64>,
    has_checksum: bool,
}

impl Frame {
    fn read(coded: &[u8], at: usize) -> Result<Frame, Fault> {
        let rest = &coded[at..];
        let Some(magic) = rest.first_chunk().map(|bytes| u32::from_le_bytes(*bytes)) else {
            return if begins_frame(rest) { cut_short(coded) } else { no_frame(at) };
        };
        if magic & !0xf == SKIPPABLE_MAGIC {
            let Some(length) = little_endian(rest, 4, 4) else { return cut_short(coded) };
            let end = usize::try_from(length).ok().and_then(|length| (at + 8).checked_add(length));
            return match end {
                Some(end) if end <= coded.len() => Ok(Frame::Skippable { end }),
                _ => cut_short(coded),
            };
        }
        if magic != MAGIC {
            return no_frame(at);
        }
        let Some(&descriptor) = rest.get(4) else { return cut_short(coded) };
        let is_single = descriptor & 0x20 != 0;
        let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let content_size_bytes = [usize::from(is_single), 2, 4, 8][usize::from(descriptor >> 6)];
        let dictionary_at = 5 + usize::from(!is_single);
        let content_size_at = dictionary_at + dictionary_bytes;
        let end = content_size_at + content_size_bytes;
        if rest.len() < end {
            return cut_short(coded);
        }
        if descriptor & 0x08 != 0 {
            return broken(at + 4, "the frame's header has flags that are not defined");
        }
        if little_endian(rest, dictionary_at, dictionary_bytes).unwrap_or(0) != 0 {
            return broken(at + dictionary_at, "the frame needs a dictionary, and none is known here");
        }
        let content_bytes = match content_size_bytes {
            0 => None,
            // Two bytes begin where one ends.
            2 => little_endian(rest, content_size_at, 2).map(|length| length + 256),
            n => little_endian(rest, content_size_at, n),
        };
        let window_bytes = match content_bytes {
            Some(length) if is_single => length,
            _ => window_bytes(rest[5]),
        };
        let has_checksum = descriptor & 0x04 != 0;
        Ok(Frame::Content(Header { end: at + end, window_bytes, content_bytes, has_checksum }))
    }
}

/// Decodes one frame; returns where it ends.
fn frame(
    coded: &[u8],
    start: usize,
    header: &Header,
    output: &mut Output<'_, '_>,
    context: &mut DCtx<'_>,
) -> Result<usize, Fault> {
    if let Some(bytes) = header.content_bytes {
        output.announce(bytes)?;
    }
    if header.window_bytes > WINDOW_BYTES_MAX {
        let what = format!(
            "the frame needs a window of {} bytes, and it may be 8 MiB at most (RFC 9659): compress at level 19 or below, without --long or --ultra",
            header.window_bytes
        );
        return broken(start, &what);
    }
    if start == 0 {
        output.expect(coded.len(), header.content_bytes.and_then(|bytes| usize::try_from(bytes).ok()));
    }
    // At most 8 MiB, so it is a number of bytes here.
    output.beside(CONTEXT_BYTES + header.window_bytes.min(header.content_bytes.unwrap_or(u64::MAX)) as usize);
    feed(coded, start, header.end, output, context)?;
    let mut at = header.end;
    loop {
        let Some(block) = little_endian(&coded[at..], 0, 3) else { return cut_short(coded) };
        let is_last = block & 1 != 0;
        // A block of one byte repeated says how often; all others say how long they are.
        let length = if block >> 1 & 3 == 1 { 1 } else { (block >> 3) as usize };
        let checksum = if is_last && header.has_checksum { 4 } else { 0 };
        let end = at + 3 + length + checksum;
        if end > coded.len() {
            return cut_short(coded);
        }
        let is_done = feed(coded, at, end, output, context)?;
        if is_done != is_last {
            return broken(at, "the frame does not end with its last block");
        }
        if is_last {
            return Ok(end);
        }
        at = end;
    }
}

/// Hands bytes to libzstd and takes all that it makes of them; returns whether the frame is complete.
fn feed(
    coded: &[u8],
    start: usize,
    end: usize,
    output: &mut Output<'_, '_>,
    context: &mut DCtx<'_>,
) -> Result<bool, Fault> {
    let mut input = InBuffer::around(&coded[start..end]);
    loop {
        output.room(BLOCK_BYTES_MAX)?;
        let (taken_before, length) = (input.pos(), output.bytes.len());
        // It can use all the memory that the output has, but has one block to put there.
        let mut buffer = OutBuffer::around_pos(&mut *output.bytes, length);
        let missing = context
            .decompress_stream(&mut buffer, &mut input)
            .map_err(|code| Coding::Zstd.broken(start, get_error_name(code)))?;
        let (taken, put) = (input.pos() - taken_before, buffer.pos() - length);
        let is_full = buffer.pos() == buffer.capacity();
        output.worked(taken + put + STEP_WORK)?;
        // Complete and put out: to ask again would be to begin the next frame.
        if missing == 0 {
            return if input.pos() == end - start { Ok(true) } else { broken(start, "the frame ends within a block") };
        }
        if input.pos() == end - start && !is_full {
            return Ok(false);
        }
        if taken == 0 && put == 0 {
            return broken(start, "the block is not taken");
        }
    }
}

/// `Window_Size` of a window descriptor.
fn window_bytes(descriptor: u8) -> u64 {
    let base = 1u64 << (10 + (descriptor >> 3));
    base + (base >> 3) * u64::from(descriptor & 7)
}

/// A number of up to 8 bytes at a place, where it is there.
fn little_endian(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + length)?;
    Some(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

/// Whether so few bytes can be the beginning of a magic number.
fn begins_frame(bytes: &[u8]) -> bool {
    let skippable = SKIPPABLE_MAGIC.to_le_bytes();
    let begins_skippable = bytes.first().is_some_and(|first| first & !0xf == skippable[0]);
    MAGIC.to_le_bytes().starts_with(bytes) || begins_skippable && skippable[1..].starts_with(&bytes[1..])
}

fn no_frame<T>(at: usize) -> Result<T, Fault> {
    broken(at, "a frame should begin here, with the bytes 28 b5 2f fd")
}

fn broken<T>(at: usize, what: &str) -> Result<T, Fault> {
    Err(Coding::Zstd.broken(at, what))
}

fn cut_short<T>(coded: &[u8]) -> Result<T, Fault> {
    Err(Coding::Zstd.broken(coded.len(), "it is cut short within a frame"))
}
