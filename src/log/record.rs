//! One record of the log: a self-contained Arrow IPC stream with one batch of events.
//!
//! The value can be read by any Arrow implementation as it lies in the topic. The headers say what it is: `kind` (text)
//! and `schema` (the version in decimal).

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::StreamWriter;
use rdkafka::message::{BorrowedHeaders, Header, Headers, OwnedHeaders};

use crate::kinds::{BadRecord, Columns, Kind};

/// The bytes around the columns of a record, at most: schema, batch header, end mark and padding.
const FRAMING_BYTES: usize = 2048;

/// The headers of every record of a kind.
pub fn headers<K: Kind>() -> OwnedHeaders {
    OwnedHeaders::new_with_capacity(2)
        .insert(Header { key: "kind", value: Some(K::NAME) })
        .insert(Header { key: "schema", value: Some(&K::SCHEMA_VERSION.to_string()) })
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

/// Reads the events of a record. Any defect is a [`BadRecord`]: bytes from the log never panic.
pub fn decode<K: Kind>(headers: Option<&BorrowedHeaders>, value: &[u8]) -> Result<K::Columns, BadRecord> {
    check_headers::<K>(headers)?;
    // The Arrow library refuses most of what is damaged, and panics on some of it. Nothing of its state outlives the call.
    std::panic::catch_unwind(|| read::<K>(value))
        .unwrap_or_else(|_| Err(BadRecord("an Arrow IPC stream so damaged that its reader gave up".to_owned())))
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

/// A record of another kind or of a newer schema is refused; one without headers is judged by its columns alone, so that
/// other producers can write to the topic too.
fn check_headers<K: Kind>(headers: Option<&BorrowedHeaders>) -> Result<(), BadRecord> {
    let Some(headers) = headers else { return Ok(()) };
    for header in headers.iter() {
        let value = header.value.map(String::from_utf8_lossy).unwrap_or_default();
        match header.key {
            "kind" if value != K::NAME => {
                return Err(BadRecord(format!("expected a record of kind {}, found {value}", K::NAME)));
            }
            "schema" if value.parse::<u16>().map_or(true, |version| version > K::SCHEMA_VERSION) => {
                let known = K::SCHEMA_VERSION;
                return Err(BadRecord(format!("expected schema version {known} or older, found {value}")));
            }
            _ => {}
        }
    }
    Ok(())
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
        assert_eq!(decode::<Captcha>(None, &whole).unwrap(), columns);
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
            refused += usize::from(decode::<Captcha>(None, &value).is_err());
        }
        assert!(refused > 10_000, "{refused} of 50000 damaged records were refused");
    }
}
