//! Reads ClickHouse's `RowBinary`: values one behind the other, numbers in little-endian. An answer that was cut, or is
//! something else, is an error and never a panic.

/// What is left of an answer.
#[derive(Debug, Clone, Copy)]
pub struct RowBinary<'r>(pub &'r [u8]);

impl<'r> RowBinary<'r> {
    /// Whether all rows were read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes: a number, a FixedString.
    pub fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(cut)?;
        self.0 = rest;
        Ok(*head)
    }

    /// A UInt32.
    pub fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    /// An Int32.
    pub fn i32(&mut self) -> Result<i32, String> {
        self.bytes().map(i32::from_le_bytes)
    }

    /// An Int64.
    pub fn i64(&mut self) -> Result<i64, String> {
        self.bytes().map(i64::from_le_bytes)
    }

    /// A UInt64.
    pub fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    /// A UInt8.
    pub fn u8(&mut self) -> Result<u8, String> {
        self.bytes::<1>().map(|[byte]| byte)
    }

    /// A String, whatever its bytes are.
    pub fn string(&mut self) -> Result<&'r [u8], String> {
        let (mut length, mut shift) = (0u64, 0);
        loop {
            let byte = self.u8()?;
            length |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
            if shift > 35 {
                return Err("a text longer than any".to_owned());
            }
        }
        let (string, rest) = self.0.split_at_checked(length as usize).ok_or_else(cut)?;
        self.0 = rest;
        Ok(string)
    }

    /// A String that is UTF-8.
    pub fn text(&mut self) -> Result<&'r str, String> {
        std::str::from_utf8(self.string()?).map_err(|error| format!("a text that is not UTF-8: {error}"))
    }
}

fn cut() -> String {
    "the answer ends within a row".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_values_in_order() {
        let mut bytes = vec![7, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        bytes.extend(u64::MAX.to_le_bytes());
        bytes.extend(i64::MIN.to_le_bytes());
        bytes.extend([3, b'a', 0xc3, 0xa9, 0x80, 1]);
        bytes.extend([b'x'; 128]);
        let mut rows = RowBinary(&bytes);
        assert_eq!((rows.u8(), rows.u32(), rows.i32()), (Ok(7), Ok(1), Ok(-1)));
        assert_eq!((rows.u64(), rows.i64()), (Ok(u64::MAX), Ok(i64::MIN)));
        assert_eq!(rows.text(), Ok("aé"));
        assert_eq!(rows.text().map(str::len), Ok(128));
        assert!(rows.is_empty());
        assert!(rows.u8().is_err() && rows.text().is_err());
    }

    #[test]
    fn refuses_what_is_cut_or_no_text() {
        for bytes in [&[5, b'a'][..], &[0x80], &[0xff; 9], &[1, 0xff], &[2, 0xc3, b'a']] {
            assert!(RowBinary(bytes).text().is_err(), "{bytes:?}");
        }
        assert!(RowBinary(&[0; 7]).u64().is_err());
    }
}
