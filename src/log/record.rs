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
