//! Decoding without a socket: every form that is taken, and what damage, lies and bombs come to.

use std::io::Write;

use flate2::{Compression, GzBuilder, write::GzEncoder};
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::*;
use crate::door::body::Room;
use crate::door::tests::random;

const MIB: usize = 1 << 20;

pub(in crate::door) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    encoder.write_all(plain).expect("to memory");
    encoder.finish().expect("to memory")
}

pub(in crate::door) fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd_with(plain, &[CParameter::ChecksumFlag(true)])
}

fn zstd_with(plain: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    for parameter in parameters {
        context.set_parameter(*parameter).expect("a parameter");
    }
    let mut coded = vec![0; zstd_safe::compress_bound(plain.len())];
    let length = context.compress2(&mut coded[..], plain).expect("compressed");
    coded.truncate(length);
    coded
}

/// As a streaming compressor writes it: the header does not say how long the content is.
fn zstd_stream(plain: &[u8], parameters: &[CParameter]) -> Vec<u8> {
    let mut context = CCtx::create();
    context.set_parameter(CParameter::ContentSizeFlag(false)).expect("a parameter");
    for parameter in parameters {
        context.set_parameter(*parameter).expect("a parameter");
    }
    let mut coded = Vec::with_capacity(zstd_safe::compress_bound(plain.len()));
    let mut input = InBuffer::around(plain);
    context.compress_stream(&mut OutBuffer::around(&mut coded), &mut input).expect("compressed");
    let length = coded.len();
    assert_eq!(context.end_stream(&mut OutBuffer::around_pos(&mut coded, length)), Ok(0));
    coded
}

fn skippable(content: &[u8]) -> Vec<u8> {
    let mut frame = 0x184d_2a57u32.to_le_bytes().to_vec();
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(content);
    frame
}

/// Text of which no two lines are alike, but which compresses.
fn lines(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 64);
    for n in 0u64.. {
        if text.len() >= bytes {
            break;
        }
        writeln!(text, "{{\"n\":{n},\"square\":\"{:x}\"}}", n.wrapping_mul(n).wrapping_mul(0x9e37_79b9))
            .expect("to memory");
    }
    text.truncate(bytes);
    text
}

/// Decodes; also gives the most that was held of the room.
fn decode_within(
    coding: Coding,
    coded: &[u8],
    bytes_max: usize,
    room_bytes: usize,
) -> (Result<Vec<u8>, Fault>, usize, usize) {
    let room = Room::new(room_bytes);
    let decoders = Decoders::new();
    let mut decoded = Vec::new();
    let mut share = room.share();
    let result = decoders.decode(coding, coded, &mut decoded, bytes_max, &mut share);
    let (held, capacity) = (room.taken(), decoded.capacity());
    drop(share);
    assert_eq!(room.taken(), 0);
    (result.map(|()| decoded), held, capacity)
}

fn decode(coding: Coding, coded: &[u8]) -> Result<Vec<u8>, Fault> {
    decode_within(coding, coded, 256 * MIB, 512 * MIB).0
}

fn message(found: Result<Vec<u8>, Fault>) -> String {
    match found {
        Err(Fault::InvalidEncoding(message)) => message,
        other => panic!("expected a broken body, found {:?}", other.map(|decoded| decoded.len())),
    }
}

/// Fails with a message that has both parts.
#[track_caller]
fn breaks(coding: Coding, coded: &[u8], at: usize, what: &str) {
    let message = message(decode(coding, coded));
    assert!(message.contains(&format!("at byte {at}: ")) && message.contains(what), "{message}, not at {at}: {what}");
}

#[test]
fn codings_are_named() {
    for (value, coding) in [
        (None, None),
        (Some("identity"), None),
        (Some("gzip"), Some(Coding::Gzip)),
        (Some("GZip"), Some(Coding::Gzip)),
        (Some("x-gzip"), Some(Coding::Gzip)),
        (Some("ZSTD"), Some(Coding::Zstd)),
    ] {
        assert_eq!(Coding::of(value), Ok(coding));
    }
    for value in ["gzip, zstd", "gzip,", "deflate", "br", "x", "gzip;q=1", "(several)", "identity, gzip"] {
        let fault = Coding::of(Some(value)).expect_err(value);
        let (status, code, message) = fault.describe();
        assert_eq!((status, code), (415, "unsupported_content_encoding"));
        assert!(message.contains(value) && message.contains("gzip, zstd"), "{message}");
    }
}

#[test]
fn bodies_of_every_size_come_back() {
    for bytes in [0, 1, 2, 100, 16_383, 16_384, 65_536, 131_072, 131_073, 262_144, 1_000_000, 9 * MIB + 1] {
        let plain = lines(bytes);
        for (coding, coded) in [
            (Coding::Gzip, gzip(&plain)),
            (Coding::Zstd, zstd(&plain)),
            (Coding::Zstd, zstd_with(&plain, &[])),
            (Coding::Zstd, zstd_stream(&plain, &[])),
            (Coding::Zstd, zstd_stream(&plain, &[CParameter::WindowLog(23), CParameter::ChecksumFlag(true)])),
        ] {
            let (decoded, held, _) = decode_within(coding, &coded, 256 * MIB, 512 * MIB);
            assert!(decoded == Ok(plain.clone()), "{coding:?} {bytes}");
            assert_eq!(held, bytes, "what is held afterwards is what was decoded");
        }
    }
}

#[test]
fn what_does_not_compress_and_what_compresses_best_come_back() {
    let mut random = random();
    let noise: Vec<u8> = (0..3 * MIB / 8).flat_map(|_| random().to_le_bytes()).collect();
    for plain in [noise, vec![b' '; 20 * MIB]] {
        for (coding, coded) in [(Coding::Gzip, gzip(&plain)), (Coding::Zstd, zstd(&plain))] {
            assert!(decode(coding, &coded) == Ok(plain.clone()));
        }
    }
}

#[test]
fn all_members_and_frames_are_read() {
    let (a, b) = (lines(70_000), lines(300));
    let both = [a.as_slice(), &b].concat();
    let coded = [gzip(&a), gzip(b""), gzip(&b), gzip(b"")].concat();
    assert!(decode(Coding::Gzip, &coded) == Ok(both.clone()));
    let coded = [skippable(b"x"), zstd(&a), skippable(b""), zstd(b""), zstd_with(&b, &[]), skippable(&a)].concat();
    assert!(decode(Coding::Zstd, &coded) == Ok(both));
    assert_eq!(decode(Coding::Zstd, &skippable(b"only")), Ok(Vec::new()));
}

#[test]
fn a_gzip_header_may_have_all_its_fields() {
    let plain = lines(500);
    let mut encoder = GzBuilder::new()
        .filename("events.ndjson")
        .comment("a comment")
        .extra(vec![7; 300])
        .mtime(1)
        .write(Vec::new(), Compression::best());
    encoder.write_all(&plain).expect("to memory");
    let coded = encoder.finish().expect("to memory");
    assert!(decode(Coding::Gzip, &coded) == Ok(plain.clone()));
    // With a checksum of the header, which no encoder here writes.
    let bare = gzip(&plain);
    let mut head = bare[..10].to_vec();
    head[3] = HAS_HEADER_CHECKSUM;
    let mut checksum = flate2::Crc::new();
    checksum.update(&head);
    let told = (checksum.sum() & 0xffff) as u16;
    let coded = [&head, &told.to_le_bytes()[..], &bare[10..]].concat();
    assert!(decode(Coding::Gzip, &coded) == Ok(plain));
    let coded = [&head, &(told ^ 1).to_le_bytes()[..], &bare[10..]].concat();
    breaks(Coding::Gzip, &coded, 10, "checksum of the member's header");
}

const HAS_HEADER_CHECKSUM: u8 = 2;

#[test]
fn what_is_wrong_is_named_with_its_place() {
    let plain = lines(5_000);
    let good = gzip(&plain);
    let end = good.len();
    let changed = |at: usize, byte: u8| {
        let mut bad = good.clone();
        bad[at] = byte;
        bad
    };
    breaks(Coding::Gzip, b"", 0, "there is no member");
    breaks(Coding::Gzip, b"{\"time\":1}", 0, "1f 8b");
    breaks(Coding::Gzip, &zstd(&plain), 0, "1f 8b");
    breaks(Coding::Gzip, &changed(2, 7), 2, "not deflate");
    breaks(Coding::Gzip, &changed(3, 0x20), 3, "not defined");
    breaks(Coding::Gzip, &changed(10, 0xff), 11, "invalid");
    breaks(Coding::Gzip, &changed(end - 8, !good[end - 8]), end - 8, "checksum");
    breaks(Coding::Gzip, &changed(end - 1, 1), end - 4, "length");
    for garbage in [&b"\0"[..], b"\0\0\0\0\0\0\0\0\0\0\0\0", b"\n", b"\x1f\x8c", b"PK", b"{}"] {
        breaks(Coding::Gzip, &[&good, garbage].concat(), end, "a member should begin here");
        breaks(Coding::Gzip, &[&good, &good, garbage].concat(), 2 * end, "a member should begin here");
    }
    breaks(Coding::Gzip, &[&good[..], b"\x1f"].concat(), end + 1, "cut short within a member's header");

    let good = zstd(&plain);
    let end = good.len();
    breaks(Coding::Zstd, b"", 0, "there is no frame");
    breaks(Coding::Zstd, b"{}", 0, "28 b5 2f fd");
    breaks(Coding::Zstd, &gzip(&plain), 0, "28 b5 2f fd");
    let mut bad = good.clone();
    bad[end - 1] ^= 1;
    assert!(message(decode(Coding::Zstd, &bad)).contains("checksum"));
    for garbage in [&b"\0"[..], b"\0\0\0\0\0\0\0\0", b"\n", b"{}"] {
        breaks(Coding::Zstd, &[&good, garbage].concat(), end, "a frame should begin here");
    }
    breaks(Coding::Zstd, &[&good[..], &skippable(b"abc")[..9]].concat(), end + 9, "cut short");
    bad = good.clone();
    bad[4] |= 8;
    breaks(Coding::Zstd, &bad, 4, "not defined");
    // A dictionary's id of one byte behind the descriptor, which says so.
    let small = zstd_with(b"hello", &[]);
    let needing = [&small[..4], &[small[4] | 1, 9], &small[5..]].concat();
    breaks(Coding::Zstd, &needing, 5, "dictionary");
    let with_none = [&small[..4], &[small[4] | 1, 0], &small[5..]].concat();
    assert_eq!(decode(Coding::Zstd, &with_none), Ok(b"hello".to_vec()));
}

#[test]
fn a_window_beyond_8_mib_is_refused() {
    let plain = lines(1000);
    for (log, taken) in [(22, true), (23, true), (24, false), (27, false)] {
        let coded = zstd_stream(&plain, &[CParameter::WindowLog(log)]);
        let (decoded, _, _) = decode_within(Coding::Zstd, &coded, 256 * MIB, 32 * MIB);
        match decoded {
            Ok(decoded) => assert!(taken && decoded == plain),
            Err(fault) => {
                let (status, code, message) = fault.describe();
                assert_eq!((status, code, taken), (400, "bad_encoding", false));
                assert!(message.contains("8 MiB") && message.contains(&(1u64 << log).to_string()), "{message}");
            }
        }
    }
}

#[test]
fn a_body_cut_at_any_byte_is_broken_there() {
    let plain = lines(700);
    for (coding, coded) in [
        (Coding::Gzip, gzip(&plain)),
        (Coding::Gzip, [gzip(&plain), gzip(&plain)].concat()),
        (Coding::Zstd, zstd(&plain)),
        (Coding::Zstd, [skippable(b"12345"), zstd_stream(&plain, &[])].concat()),
    ] {
        let boundary = if coding == Coding::Gzip { gzip(&plain).len() } else { skippable(b"12345").len() };
        for cut in 0..coded.len() {
            let found = decode(coding, &coded[..cut]);
            if found.is_ok() {
                assert_eq!(cut, boundary, "only whole members or frames are taken");
                continue;
            }
            let message = message(found);
            assert!(cut == 0 || message.contains("cut short"), "{cut}: {message}");
            assert!(message.contains(&format!("at byte {cut}: ")), "{message}");
        }
    }
}

#[test]
fn random_damage_is_found_or_harmless_and_never_more() {
    let mut random = random();
    let plain = lines(3_000);
    let codeds = [
        (Coding::Gzip, gzip(&plain)),
        (Coding::Gzip, [gzip(&plain[..1000]), gzip(&plain[1000..])].concat()),
        (Coding::Zstd, zstd(&plain)),
        (Coding::Zstd, [zstd(&plain[..1000]), skippable(b"abc"), zstd(&plain[1000..])].concat()),
    ];
    let decoders = Decoders::new();
    let room = Room::new(512 * MIB);
    let mut harmless = 0;
    for round in 0..20_000 {
        let (coding, coded) = &codeds[round % codeds.len()];
        let mut damaged = coded.clone();
        for _ in 0..1 + random() % 3 {
            let at = (random() % damaged.len() as u64) as usize;
            match random() % 4 {
                0 => damaged[at] ^= 1 << (random() % 8),
                1 => damaged[at] = random() as u8,
                2 => drop(damaged.remove(at)),
                _ => damaged.insert(at, random() as u8),
            }
        }
        // The same decoders throughout: what one body leaves behind must not reach the next.
        let (mut decoded, mut share) = (Vec::new(), room.share());
        match decoders.decode(*coding, &damaged, &mut decoded, MIB, &mut share) {
            Ok(()) => {
                assert!(decoded == plain || (*coding == Coding::Zstd && decoded.len() < plain.len()));
                harmless += 1;
            }
            Err(Fault::InvalidEncoding(_) | Fault::DecodedTooLarge(_)) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(harmless < 10_000);
    for (coding, coded) in &codeds {
        let mut decoded = Vec::new();
        assert_eq!(decoders.decode(*coding, coded, &mut decoded, MIB, &mut room.share()), Ok(()));
        assert!(decoded == plain);
    }
}

/// Zeros: 1,000 to 1 and more.
fn bombs(bytes: usize) -> Vec<(Coding, Vec<u8>)> {
    let zeros = vec![0; bytes];
    vec![(Coding::Gzip, gzip(&zeros)), (Coding::Zstd, zstd_with(&zeros, &[])), (Coding::Zstd, zstd_stream(&zeros, &[]))]
}

#[test]
fn the_limit_is_exact_and_what_is_beyond_is_413_wherever_it_lies() {
    let limit = 3 * MIB + 17;
    for (coding, coded) in bombs(limit) {
        assert_eq!(decode_within(coding, &coded, limit, 64 * MIB).0.map(|decoded| decoded.len()), Ok(limit));
        let (found, held, _) = decode_within(coding, &coded, limit - 1, 64 * MIB);
        assert_eq!(found, Err(Fault::DecodedTooLarge(limit - 1)));
        assert!(held <= limit + 3 * MIB, "{held}");
    }
    let small = lines(1000);
    for (coding, bomb) in bombs(64 * MIB) {
        let one = if coding == Coding::Gzip { gzip(&small) } else { zstd(&small) };
        for coded in [bomb.clone(), [one.repeat(50), bomb].concat()] {
            let (found, held, capacity) = decode_within(coding, &coded, 4 * MIB, 512 * MIB);
            assert_eq!(found, Err(Fault::DecodedTooLarge(4 * MIB)));
            assert!(held <= 7 * MIB && capacity <= 5 * MIB, "{held} {capacity}");
        }
    }
    // Many members that are bombs together only.
    let coded = gzip(&vec![0; 100_000]).repeat(1000);
    assert_eq!(decode_within(Coding::Gzip, &coded, 4 * MIB, 64 * MIB).0, Err(Fault::DecodedTooLarge(4 * MIB)));
}

#[test]
fn what_is_announced_takes_no_memory() {
    // A trailer and a frame's header that promise 3 GiB, for 100 bytes.
    let mut coded = gzip(&lines(100));
    let end = coded.len();
    coded[end - 4..].copy_from_slice(&0xc000_0000u32.to_le_bytes());
    let (found, held, capacity) = decode_within(Coding::Gzip, &coded, 4096 * MIB, 512 * MIB);
    assert!(message(found).contains("length"));
    assert!(held < 100_000 && capacity < 100_000, "{held} {capacity}");
    let header = [&0xfd2f_b528u32.to_le_bytes()[..], &[0x80, 0x58], &0xc000_0000u32.to_le_bytes()].concat();
    let coded = [&header[..], &[0x19, 0, 0], b"abc"].concat();
    let (found, held, capacity) = decode_within(Coding::Zstd, &coded, 4096 * MIB, 512 * MIB);
    assert!(message(found).contains("orruption"), "its content is shorter");
    assert!(held < 4 * MIB && capacity < 100_000, "{held} {capacity}");
    // Where the promise is beyond the limit, nothing is decoded.
    assert_eq!(decode(Coding::Zstd, &coded), Err(Fault::DecodedTooLarge(256 * MIB)));
}

#[test]
fn a_room_that_is_too_small_is_503_and_given_back() {
    for (coding, coded) in bombs(8 * MIB) {
        let (found, held, _) = decode_within(coding, &coded, 64 * MIB, 5 * MIB);
        assert!(matches!(found, Err(Fault::Unavailable { .. })), "{coding:?}");
        assert!(held <= 5 * MIB);
    }
}

#[test]
fn endless_empty_members_frames_and_blocks_are_read_through() {
    assert_eq!(decode(Coding::Gzip, &gzip(b"").repeat(100_000)), Ok(Vec::new()));
    assert_eq!(decode(Coding::Zstd, &zstd(b"").repeat(100_000)), Ok(Vec::new()));
    assert_eq!(decode(Coding::Zstd, &skippable(b"").repeat(100_000)), Ok(Vec::new()));
    // Empty raw blocks, of which the last says so.
    let frame = [&0xfd2f_b528u32.to_le_bytes()[..], &[0, 0x58], &[0; 3].repeat(500_000), &[1, 0, 0]].concat();
    assert_eq!(decode(Coding::Zstd, &frame), Ok(Vec::new()));
    breaks(Coding::Zstd, &[&frame[..], &[1, 0, 0, 0]].concat(), frame.len(), "a frame should begin here");
    let stored = [0, 0, 0, 0xff, 0xff].repeat(200_000);
    let member = [&gzip(b"")[..10], &stored, &[1, 0, 0, 0xff, 0xff], &[0; 8]].concat();
    assert_eq!(decode(Coding::Gzip, &member), Ok(Vec::new()));
}

/// Prints how fast a usual body is decoded: `cargo test --release --lib decoding_speed -- --ignored --nocapture`.
#[test]
#[ignore = "measures, and proves nothing"]
fn decoding_speed() {
    let mut random = random();
    let mut plain = Vec::new();
    let sites: Vec<u128> = (0..1000).map(|_| u128::from(random()) << 64 | u128::from(random())).collect();
    for n in 0..10_000 {
        let (a, b) = (u128::from(random()), u128::from(random()));
        let (id, site) = (uuid::Uuid::from_u128(a << 64 | b), uuid::Uuid::from_u128(sites[(a % 1000) as usize]));
        let (kind, day, micros) = (["serve", "solve"][n % 2], 1 + b % 28, b % 1_000_000);
        writeln!(
            plain,
            "{{\"time\":\"2021-01-{day:02}T18:20:42.{micros:06}\",\"type\":\"{kind}\",\"correlation_id\":\"{id}\",\"site_id\":\"{site}\"}}"
        )
        .expect("to memory");
    }
    let (room, decoders) = (Room::new(512 * MIB), Decoders::new());
    for (coding, coded) in [(Coding::Gzip, gzip(&plain)), (Coding::Zstd, zstd_with(&plain, &[]))] {
        let mut decoded = Vec::new();
        let mut best = f64::MAX;
        for _ in 0..50 {
            decoded.clear();
            let began = std::time::Instant::now();
            decoders.decode(coding, &coded, &mut decoded, 256 * MIB, &mut room.share()).expect("decoded");
            best = best.min(began.elapsed().as_secs_f64());
        }
        assert!(decoded == plain);
        println!(
            "{coding:?}: {} bytes from {}, {:.0} MB/s, {:.1} ns an event",
            plain.len(),
            coded.len(),
            plain.len() as f64 / best / 1e6,
            best / 10_000.0 * 1e9
        );
    }
}
