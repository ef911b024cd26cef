//! One record of the log: a self-contained Arrow IPC stream with one batch of events.
//!
//! The value can be read by any Arrow implementation as it lies in the topic. The headers say what it is: `kind` (text)
//! and `schema` (the version in decimal).

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use rdkafka::message::{Header, OwnedHeaders};

use crate::kinds::{BadRecord, Columns, Kind};

/// The bytes around the columns of a record, at most: schema, batch header, end mark and padding.
const FRAMING_BYTES: usize = 2048;

/// The headers of a record of a kind, of this version of its schema.
pub fn headers<K: Kind>(schema: u16) -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: "kind", value: Some(K::NAME) })
        .insert(Header { key: "schema", value: Some(&schema.to_string()) })
}

/// The value of a record that carries these events.
pub fn encode<C: Columns>(columns: C) -> Vec<u8> {
    let mut value = Vec::with_capacity(columns.bytes() + FRAMING_BYTES);
    let batch = columns.into_batch();
    // Writing to memory cannot fail, and the batch has the schema that the writer was given.
    StreamWriter::try_new(&mut value, &batch.schema())
        .and_then(|mut writer| {
            writer.write(&batch)?;
            writer.finish()
        })
        .expect("an Arrow stream in memory can be written");
    value
}

/// Why a record is not read.
#[derive(Debug)]
pub enum Unread {
    /// No version of the program can read it.
    Bad(BadRecord),
    /// A later version wrote it, and can read it; the text says what was found.
    Newer(String),
}

impl From<BadRecord> for Unread {
    fn from(bad: BadRecord) -> Unread {
        Unread::Bad(bad)
    }
}

/// Reads the events of a record. Any defect is a [`BadRecord`]: bytes from the log never panic.
pub fn decode<K: Kind>(headers: &[(String, Vec<u8>)], value: &[u8]) -> Result<K::Columns, Unread> {
    check_headers::<K>(headers)?;
    // The Arrow library refuses most of what is damaged, and panics on some of it. Nothing of its state outlives the call.
    let read = std::panic::catch_unwind(|| read::<K>(value))
        .unwrap_or_else(|_| Err(BadRecord("an Arrow IPC stream so damaged that its reader gave up".to_owned())));
    Ok(read?)
}

fn read<K: Kind>(value: &[u8]) -> Result<K::Columns, BadRecord> {
    let mut buffer = Buffer::from(value);
    let mut decoder = StreamDecoder::new();
    let mut columns: Option<K::Columns> = None;
    while !buffer.is_empty() {
        match decoder.decode(&mut buffer) {
            Ok(Some(batch)) => append::<K>(&mut columns, &batch)?,
            Ok(None) => break,
            Err(error) => return Err(BadRecord(format!("not an Arrow IPC stream: {error}"))),
        }
    }
    columns.ok_or_else(|| BadRecord("an Arrow IPC stream without a batch".to_owned()))
}

fn append<K: Kind>(columns: &mut Option<K::Columns>, batch: &RecordBatch) -> Result<(), BadRecord> {
    let read = K::Columns::from_batch(batch)?;
    match columns {
        None => *columns = Some(read),
        Some(columns) => columns.append(&read, 0..read.len()),
    }
    Ok(())
}

/// A record of another kind is bad. One of a newer schema is not, however its columns look: its events were acknowledged.
/// One without headers is judged by its columns alone, so that other producers can write to the topic too.
fn check_headers<K: Kind>(headers: &[(String, Vec<u8>)]) -> Result<(), Unread> {
    let named = |name: &'static str| headers.iter().filter(move |header| header.0 == name).map(|header| &header.1[..]);
    if let Some(found) = named("kind").find(|found| *found != K::NAME.as_bytes()) {
        let found = shown(found);
        return Err(BadRecord(format!("expected a record of kind {}, found {found}", K::NAME)).into());
    }
    for found in named("schema") {
        let known = K::SCHEMA_VERSION;
        match version(found) {
            Some(version) if version <= u64::from(known) => {}
            Some(version) => {
                return Err(Unread::Newer(format!(
                    "its schema version is {version}, and this program reads versions up to {known}"
                )));
            }
            None => {
                let found = shown(found);
                return Err(BadRecord(format!("expected schema version {known} or older, found {found}")).into());
            }
        }
    }
    Ok(())
}

/// A schema's version, which is written in decimal digits alone.
fn version(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| digits)?.parse().ok()
}

/// A header's value for a message: quoted and cut.
fn shown(value: &[u8]) -> String {
    const CHARS_MAX: usize = 40;
    let text = String::from_utf8_lossy(value);
    let cut: String = text.chars().take(CHARS_MAX).collect();
    let more = if cut.len() < text.len() { ", cut" } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use crate::kinds::captcha::Captcha;
    use crate::kinds::captcha::columns::CaptchaColumns;
    use crate::kinds::captcha::parse::{CaptchaEvent, CaptchaType};

    /// Whoever can write to the topic can write anything: it is refused or read, and never ends the process.
    #[test]
    fn damaged_records_never_panic() {
        let mut dice = Dice::new("records");
        let mut columns = CaptchaColumns::default();
        for _ in 0..20 {
            let (correlation_id, site_id) = (dice.id(), dice.id());
            columns.push(&CaptchaEvent { time_us: 0, captcha_type: CaptchaType::Serve, correlation_id, site_id });
        }
        let whole = encode(columns.clone());
        assert_eq!(decode::<Captcha>(&[], &whole).unwrap(), columns);
        let mut refused = 0;
        for _ in 0..50_000 {
            let mut value = whole.clone();
            for _ in 0..=dice.below(3) {
                let at = dice.below(value.len());
                match dice.below(4) {
                    0 => value[at] = dice.below(256) as u8,
                    1 => value[at] ^= 1 << dice.below(8),
                    2 => value.truncate(at.max(1)),
                    _ => {
                        let bytes = [0, 1, 0x7f, 0x80, 0xff];
                        let with = *dice.pick(&bytes);
                        let end = (at + 1 + dice.below(8)).min(value.len());
                        value[at..end].fill(with);
                    }
                }
            }
            refused += usize::from(decode::<Captcha>(&[], &value).is_err());
        }
        assert!(refused > 10_000, "{refused} of 50000 damaged records were refused");
    }

    #[test]
    fn a_newer_schema_is_told_from_a_bad_record() {
        let value = encode(CaptchaColumns::default());
        let read = |kind: &str, schema: &str| {
            let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
            decode::<Captcha>(&[header("kind", kind), header("schema", schema)], &value)
        };
        for version in ["1", "0", "01"] {
            assert!(read("captcha", version).is_ok(), "{version}");
        }
        for version in ["2", "9999", "70000", "18446744073709551615"] {
            assert!(matches!(read("captcha", version), Err(Unread::Newer(_))), "{version}");
        }
        for version in ["", "+2", "2.0", "x", "99999999999999999999"] {
            assert!(matches!(read("captcha", version), Err(Unread::Bad(_))), "{version}");
        }
        // Another kind's versions say nothing here.
        assert!(matches!(read("hit", "9"), Err(Unread::Bad(_))));
    }
}
