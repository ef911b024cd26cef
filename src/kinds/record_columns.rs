//! Columns out of a record of the log: found by name, and refused unless they have the type that a kind's schema gives them.
//! And identities on their way into one.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, PrimitiveArray, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::{ArrowPrimitiveType, Field};

use super::BadRecord;

/// The column that has the name and the type of a field, without nulls.
pub fn column<'b, A: Array + 'static>(batch: &'b RecordBatch, field: &Field) -> Result<&'b A, BadRecord> {
    let name = field.name();
    let Some(column) = batch.column_by_name(name) else {
        return Err(BadRecord(format!("column {name} is missing")));
    };
    if column.data_type() != field.data_type() {
        let (expected, found) = (field.data_type(), column.data_type());
        return Err(BadRecord(format!("column {name}: expected {expected}, found {found}")));
    }
    if column.null_count() > 0 {
        return Err(BadRecord(format!("column {name} holds {} nulls", column.null_count())));
    }
    column.as_any().downcast_ref().ok_or_else(|| BadRecord(format!("column {name} has an unknown layout")))
}

/// A column of numbers.
pub fn numbers<T: ArrowPrimitiveType>(batch: &RecordBatch, field: &Field) -> Result<Vec<T::Native>, BadRecord> {
    Ok(column::<PrimitiveArray<T>>(batch, field)?.values().to_vec())
}

/// A column of identities of 16 bytes.
pub fn ids(batch: &RecordBatch, field: &Field) -> Result<Vec<[u8; 16]>, BadRecord> {
    let array: &FixedSizeBinaryArray = column(batch, field)?;
    Ok(array.value_data().as_chunks::<16>().0.to_vec())
}

/// Identities of 16 bytes as a column, without a copy.
pub fn id_array(ids: Vec<[u8; 16]>) -> ArrayRef {
    Arc::new(FixedSizeBinaryArray::new(16, Buffer::from_vec(ids.into_flattened()), None))
}
