//! Compares the keys of stored events as the program makes them with those that it reads from the store.
//!
//! Whether an event is new is decided by [`Kind::key`] while a writer holds a partition, and by [`Kind::KEY_SQL`] once its
//! keys are read again. Where the two differ, events that are sent again after a restart count again, and no sum over the
//! tables shows it. So some stored events are read back as columns, and each is given its key both ways.

use std::sync::LazyLock;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, SchemaRef, UInt8Type};
use arrow::ipc::reader::StreamReader;

use super::stored::events;
use super::{Store, StoreError};
use crate::kinds::record_columns::{ids, numbers};
use crate::kinds::uuid_text::write_uuid;
use crate::kinds::{BadRecord, Columns, Key, KeySql, Kind};

/// Events compared of each lane, and of those without a key.
const EVENTS_PER_LANE: usize = 20;
/// What names an event.
const PLACE: &str = "log_generation, log_partition, log_offset, log_position";

static PRESENT: LazyLock<Field> = LazyLock::new(|| Field::new("sql_present", DataType::UInt8, false));
static LANE: LazyLock<Field> = LazyLock::new(|| Field::new("sql_lane", DataType::UInt8, false));
static ID: LazyLock<Field> = LazyLock::new(|| Field::new("sql_id", DataType::FixedSizeBinary(16), false));

impl Store {
    /// What differs among the events that `covered` takes, for a person; empty when nothing does.
    pub(super) async fn compare_keys<K: Kind>(&self, covered: &str) -> Result<Vec<String>, StoreError> {
        let KeySql { lane, id, present } = K::KEY_SQL;
        let schema = K::Columns::schema();
        let columns: Vec<String> = schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
        // The columns of an event may be long: they are read for the few that are compared.
        let sql = format!(
            "SELECT {columns}, toUInt8({present}) AS sql_present, toUInt8({lane}) AS sql_lane, {id} AS sql_id FROM {table} \
             WHERE ({PLACE}) IN (SELECT {PLACE} FROM (SELECT {PLACE}, toUInt8({present}) AS sql_present, \
             toUInt8({lane}) AS sql_lane FROM {table} WHERE {covered}) LIMIT {EVENTS_PER_LANE} BY sql_present, sql_lane)",
            columns = columns.join(", "),
            table = self.table(&events::<K>()),
        );
        let answer = self.arrow_stream(&sql).await?;
        // The Arrow library panics on some of what is damaged. Nothing of its state outlives the call.
        std::panic::catch_unwind(|| compare::<K>(&answer))
            .unwrap_or_else(|_| Err("an Arrow IPC stream so damaged that its reader gave up".to_owned()))
            .map_err(StoreError::Unreadable)
    }
}

fn compare<K: Kind>(answer: &[u8]) -> Result<Vec<String>, String> {
    let mut differences = Vec::new();
    for batch in StreamReader::try_new(answer, None).map_err(|error| error.to_string())? {
        let batch = batch.map_err(|error| error.to_string())?;
        differences.extend(
            compare_batch::<K>(&batch)
                .unwrap_or_else(|error| vec![format!("what is stored cannot be read back as events: {error}")]),
        );
    }
    Ok(differences)
}

/// The events whose key by the program is not their key by the store.
fn compare_batch<K: Kind>(batch: &RecordBatch) -> Result<Vec<String>, BadRecord> {
    let columns = K::Columns::from_batch(&in_types_of_the_log(batch, &K::Columns::schema())?)?;
    let (present, lanes) = (numbers::<UInt8Type>(batch, &PRESENT)?, numbers::<UInt8Type>(batch, &LANE)?);
    let ids = ids(batch, &ID)?;
    let differs = |row: usize| {
        let by_program = K::key(&columns, row);
        let by_store = (present[row] != 0).then_some(Key { lane: lanes[row], id: ids[row] });
        (by_program != by_store).then(|| {
            let (by_program, by_store) = (shown(by_program), shown(by_store));
            format!("an event's key is {by_program} when it comes and {by_store} when it is stored: it can count twice")
        })
    };
    Ok((0..columns.len()).filter_map(differs).collect())
}

/// The columns of a schema, in its types: the store has one type where Arrow has several (`utf8`, `large_utf8`).
fn in_types_of_the_log(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, BadRecord> {
    let columns = schema.fields().iter().map(|field| {
        let column = batch.column_by_name(field.name());
        let column = column.ok_or_else(|| BadRecord(format!("column {} is missing", field.name())))?;
        cast(column, field.data_type()).map_err(|error| BadRecord(format!("column {}: {error}", field.name())))
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    RecordBatch::try_new(schema.clone(), columns).map_err(|error| BadRecord(error.to_string()))
}

fn shown(key: Option<Key>) -> String {
    let text = |Key { lane, id }| format!("{} in lane {lane}", String::from_utf8_lossy(&write_uuid(&id)));
    key.map_or_else(|| "none".to_owned(), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::hit::{Hit, HitAction, HitColumns, HitEvent, HitId};
    use crate::kinds::record_columns::id_array;
    use arrow::array::UInt8Array;
    use arrow::ipc::writer::StreamWriter;
    use std::sync::Arc;

    /// The store's answer for a hit of each sort, with these keys.
    fn answer(keys: [(u8, u8, u8); 3]) -> Vec<u8> {
        let mut columns = HitColumns::default();
        for id in [HitId::Sent([7; 16]), HitId::Made([8; 16]), HitId::None] {
            columns.push(&HitEvent { timestamp_ms: 1, user: "anna".into(), action: HitAction::Click, id });
        }
        let batch = columns.into_batch();
        let schema = batch.schema();
        let numbers = |take: fn(&(u8, u8, u8)) -> u8| Arc::new(UInt8Array::from_iter_values(keys.iter().map(take)));
        let more: [(&str, arrow::array::ArrayRef); 3] = [
            ("sql_present", numbers(|key| key.0)),
            ("sql_lane", numbers(|key| key.1)),
            ("sql_id", id_array(keys.map(|key| [key.2; 16]).to_vec())),
        ];
        let own =
            schema.fields().iter().zip(batch.columns()).map(|(field, column)| (field.name().as_str(), column.clone()));
        let batch = RecordBatch::try_from_iter(own.chain(more)).unwrap();
        let mut stream = Vec::new();
        let mut writer = StreamWriter::try_new(&mut stream, &batch.schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        stream
    }

    #[test]
    fn finds_every_way_in_which_keys_differ() {
        let same = [(1, 0, 7), (1, 1, 8), (0, 255, 0)];
        assert_eq!(compare::<Hit>(&answer(same)), Ok(vec![]));
        for (row, key, said) in [
            (0, (1, 1, 7), "07070707-0707-0707-0707-070707070707 in lane 1 when it is stored"),
            (0, (1, 0, 9), "09090909-0909-0909-0909-090909090909 in lane 0 when it is stored"),
            (
                1,
                (0, 1, 8),
                "is 08080808-0808-0808-0808-080808080808 in lane 1 when it comes and none when it is stored",
            ),
            (
                2,
                (1, 0, 0),
                "is none when it comes and 00000000-0000-0000-0000-000000000000 in lane 0 when it is stored",
            ),
        ] {
            let mut keys = same;
            keys[row] = key;
            let differences = compare::<Hit>(&answer(keys)).unwrap();
            assert!(differences.len() == 1 && differences[0].contains(said), "{differences:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_told() {
        assert!(compare::<Hit>(b"DB::Exception").is_err());
        let captchas = compare::<crate::kinds::captcha::Captcha>(&answer([(1, 0, 7), (1, 1, 8), (0, 255, 0)])).unwrap();
        assert_eq!(captchas, ["what is stored cannot be read back as events: column time is missing"]);
    }
}
