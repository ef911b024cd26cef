//! Text of SQL: a file cut into its statements.

/// Cuts `text` at each `;` that stands outside of strings, quoted names and comments. What holds nothing but blanks and
/// comments is left out; comments within a statement stay.
pub fn statements(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let (mut begin, mut at, mut said) = (0, 0, false);
    while at < bytes.len() {
        let rest = &text[at..];
        if rest.starts_with("--") {
            at += rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("/*") {
            at += rest.find("*/").map_or(rest.len(), |end| end + 2);
        } else if matches!(bytes[at], b'\'' | b'"' | b'`') {
            said = true;
            at += quoted(&bytes[at..]);
        } else if bytes[at] == b';' {
            if said {
                found.push(text[begin..at].trim());
            }
            at += 1;
            (begin, said) = (at, false);
        } else {
            said |= !bytes[at].is_ascii_whitespace();
            // Only whole characters are skipped, so that the next slice begins at one.
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    if said {
        found.push(text[begin..].trim());
    }
    found
}

/// The length of the quoted text at the beginning of `bytes`, its quotes included. A doubled quote reads as two quoted
/// texts side by side, which comes to the same.
fn quoted(bytes: &[u8]) -> usize {
    let mut at = 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == bytes[0] => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_at_semicolons_alone() {
        assert_eq!(statements("a; b;\nc"), ["a", "b", "c"]);
        assert_eq!(statements(" ;; \n; -- nothing; here\n /* nor; here */ ;"), Vec::<&str>::new());
        assert_eq!(statements("a ';' \";\" `;` 'it''s; \\'; ' b; c"), ["a ';' \";\" `;` 'it''s; \\'; ' b", "c"]);
        assert_eq!(statements("-- first;\na -- then; \nb; -- last"), ["-- first;\na -- then; \nb"]);
        assert_eq!(statements("a /* ; */ b; ä 'ö;' /* never ended ; "), ["a /* ; */ b", "ä 'ö;' /* never ended ;"]);
        assert_eq!(statements("a 'never ended ; "), ["a 'never ended ;"]);
        assert_eq!(statements("a 'ends in a backslash\\"), ["a 'ends in a backslash\\"]);
    }
}
