//! gzip (RFC 1952): members one after the other until the body's end, each with its header, a deflate stream, a checksum
//! and a length. The framing is read here and the stream by flate2, which so can be used again for the next member.

use crossbeam::queue::ArrayQueue;
use flate2::{Crc, Decompress, FlushDecompress, Status};

use super::{Coding, Output, SLICE_BYTES, STEP_WORK};
use crate::exchange::Fault;

/// How much of the input the inflater gets at once: a block's header is dear and can be short, so 64 KiB of nothing else
/// take some milliseconds.
const INPUT_BYTES: usize = 64 << 10;
/// An inflater's window and tables.
const INFLATER_BYTES: usize = 48 << 10;

/// The shortest header.
const HEADER_BYTES: usize = 10;
/// CRC-32 and the length modulo 2^32.
const TRAILER_BYTES: usize = 8;

/// Flags of a header.
const HAS_CHECKSUM: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0b1110_0000;

pub(super) fn decode(
    coded: &[u8],
    output: &mut Output<'_, '_>,
    inflaters: &ArrayQueue<Decompress>,
) -> Result<(), Fault> {
    // Where there is one member, which is usual, its last bytes tell its length.
    let hint = coded.last_chunk().map(|length| u32::from_le_bytes(*length) as usize);
    output.expect(coded.len(), hint);
    output.beside(INFLATER_BYTES);
    let mut inflater = inflaters.pop().unwrap_or_else(|| Decompress::new(false));
    let decoded = members(coded, output, &mut inflater);
    // What does not fit the pool is dropped.
    let _ = inflaters.push(inflater);
    decoded
}

fn members(coded: &[u8], output: &mut Output<'_, '_>, inflater: &mut Decompress) -> Result<(), Fault> {
    let mut at = 0;
    loop {
        let start = header(coded, at)?;
        inflater.reset(false);
        let (end, checksum, length) = inflate(coded, start, output, inflater)?;
        let Some(trailer) = coded[end..].first_chunk::<TRAILER_BYTES>() else {
            return cut_short(coded, "within a member's checksum and length");
        };
        let [a, b, c, d, e, f, g, h] = *trailer;
        if u32::from_le_bytes([a, b, c, d]) != checksum {
            return broken(end, "the checksum of the member that ends here does not match");
        }
        if u32::from_le_bytes([e, f, g, h]) != length {
            return broken(end + 4, "the length of the member that ends here does not match");
        }
        at = end + TRAILER_BYTES;
        output.worked(STEP_WORK)?;
        if at == coded.len() {
            return Ok(());
        }
    }
}

/// Reads the header of the member that begins at `at`; returns where its deflate stream begins.
fn header(coded: &[u8], at: usize) -> Result<usize, Fault> {
    let rest = &coded[at..];
    if rest.is_empty() {
        return broken(at, "there is no member");
    }
    // As far as it is there: garbage is garbage, however short.
    if !rest.starts_with(&[0x1f, 0x8b]) && rest != [0x1f] {
        return broken(at, "a member should begin here, with the bytes 1f 8b");
    }
    let Some(fixed) = rest.first_chunk::<HEADER_BYTES>() else { return cut_short(coded, "within a member's header") };
    let (method, flags) = (fixed[2], fixed[3]);
    if method != 8 {
        return broken(at + 2, "the member's compression method is not deflate");
    }
    if flags & RESERVED != 0 {
        return broken(at + 3, "the member's header has flags that are not defined");
    }
    let mut end = at + HEADER_BYTES;
    if flags & HAS_EXTRA != 0 {
        let Some(length) = coded[end..].first_chunk::<2>() else {
            return cut_short(coded, "within a member's header");
        };
        end += 2 + usize::from(u16::from_le_bytes(*length));
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        if flags & text != 0 {
            let length = coded.get(end..).and_then(|rest| memchr::memchr(0, rest));
            let Some(length) = length else { return cut_short(coded, "within a member's header") };
            end += length + 1;
        }
    }
    if flags & HAS_CHECKSUM != 0 {
        let Some(told) = coded.get(end..).and_then(<[u8]>::first_chunk::<2>) else {
            return cut_short(coded, "within a member's header");
        };
        let mut checksum = Crc::new();
        checksum.update(&coded[at..end]);
        if checksum.sum() & 0xffff != u32::from(u16::from_le_bytes(*told)) {
            return broken(end, "the checksum of the member's header does not match");
        }
        end += 2;
    }
    if end > coded.len() { cut_short(coded, "within a member's header") } else { Ok(end) }
}

/// Undoes one deflate stream; returns where it ends, and the checksum and length (modulo 2^32) of what it held.
fn inflate(
    coded: &[u8],
    start: usize,
    output: &mut Output<'_, '_>,
    inflater: &mut Decompress,
) -> Result<(usize, u32, u32), Fault> {
    let mut at = start;
    let mut checksum = Crc::new();
    loop {
        let input = &coded[at..coded.len().min(at + INPUT_BYTES)];
        let room = output.room(SLICE_BYTES)?;
        let (taken_before, put_before) = (inflater.total_in(), inflater.total_out());
        let status = inflater.decompress_uninit(input, output.spare(room), FlushDecompress::None);
        // Both are at most as long as the slices just handed over.
        let taken = (inflater.total_in() - taken_before) as usize;
        let put = (inflater.total_out() - put_before) as usize;
        assert!(taken <= input.len() && put <= room, "an inflater takes and puts what it was given");
        at += taken;
        let length = output.bytes.len();
        // SAFETY: the inflater has just initialised `put` bytes of the spare capacity, which has at least `room` of them.
        unsafe { output.bytes.set_len(length + put) };
        checksum.update(&output.bytes[length..]);
        match status {
            Err(error) => return broken(at, error.message().unwrap_or("this is no deflate stream")),
            Ok(Status::StreamEnd) => {
                output.worked(taken + put)?;
                return Ok((at, checksum.sum(), checksum.amount()));
            }
            Ok(_) if taken == 0 && put == 0 => return cut_short(coded, "within a member's deflate stream"),
            Ok(_) => output.worked(taken + put)?,
        }
    }
}

fn broken<T>(at: usize, what: &str) -> Result<T, Fault> {
    Err(Coding::Gzip.broken(at, what))
}

fn cut_short<T>(coded: &[u8], within: &str) -> Result<T, Fault> {
    Err(Coding::Gzip.broken(coded.len(), format_args!("it is cut short {within}")))
}
