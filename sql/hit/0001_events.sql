-- Every hit that was new, once, with the place in the log that it came from.
--
-- One insert is one range of one partition of the log and makes one part: log_month (YYYYMM of the range's first record)
-- is the same in all its rows. The deduplication windows make an insert that is repeated under its token have no effect;
-- a table without them would count such a repetition twice.
CREATE TABLE IF NOT EXISTS {database}.hit_events
(
    timestamp DateTime64(3, 'UTC') CODEC(T64, LZ4),
    user String,
    action Enum8('click' = 1, 'impression' = 2),
    -- Zero where the origin is none. The nil UUID is one that can be sent.
    event_id UUID,
    event_id_origin Enum8('none' = 0, 'sent' = 1, 'made' = 2),
    accepted_at DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, LZ4),
    log_generation UInt32 CODEC(DoubleDelta, LZ4),
    log_partition UInt32 CODEC(DoubleDelta, LZ4),
    log_offset Int64 CODEC(DoubleDelta, LZ4),
    log_position UInt32 CODEC(DoubleDelta, LZ4),
    range_last Int64 CODEC(DoubleDelta, LZ4),
    log_month UInt32 CODEC(DoubleDelta, LZ4),
    -- An enumeration read from Arrow takes any number without a word.
    CONSTRAINT action_known CHECK toInt8(action) IN (1, 2),
    CONSTRAINT event_id_origin_known CHECK toInt8(event_id_origin) IN (0, 1, 2)
)
ENGINE = {replicated}MergeTree
PARTITION BY log_month
ORDER BY (log_generation, log_partition, log_offset, log_position)
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
