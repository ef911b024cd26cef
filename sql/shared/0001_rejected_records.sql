-- Records of the logs of all kinds that could not be read as events, as they were found: each place of a log is shown
-- once by SELECT ... FROM rejected_records FINAL. A writer inserts them before it passes over them, and once more
-- when it does a range again.
--
-- Not partitioned: copies of a row are merged within one partition alone, and accepted_at is whatever the record says.
CREATE TABLE IF NOT EXISTS {database}.rejected_records
(
    kind LowCardinality(String),
    log_generation UInt32,
    log_partition UInt32,
    log_offset Int64,
    -- What was expected and what was found.
    reason String,
    -- The record's value to the byte; NULL for a record without one.
    value Nullable(String) CODEC(ZSTD(1)),
    -- The record's headers, in order.
    header_names Array(String),
    header_values Array(String),
    -- The record's timestamp.
    accepted_at DateTime64(3, 'UTC'),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replicated}ReplacingMergeTree
ORDER BY (kind, log_generation, log_partition, log_offset)
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
