-- Every captcha event that was new, once, with the place in the log that it came from.
--
-- One insert is one range of one partition of the log and makes one part: log_month (YYYYMM of the range's first record)
-- is the same in all its rows. The deduplication windows make an insert that is repeated under its token have no effect;
-- a table without them would count such a repetition twice.
CREATE TABLE IF NOT EXISTS {database}.captcha_events
(
    time DateTime64(6, 'UTC') CODEC(T64, LZ4),
    type Enum8('serve' = 1, 'solve' = 2),
    correlation_id UUID CODEC(NONE),
    site_id UUID,
    accepted_at DateTime64(3, 'UTC') CODEC(DoubleDelta, LZ4),
    stored_at DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(DoubleDelta, LZ4),
    log_generation UInt32 CODEC(DoubleDelta, LZ4),
    log_partition UInt32 CODEC(DoubleDelta, LZ4),
    log_offset Int64 CODEC(DoubleDelta, LZ4),
    log_position UInt32 CODEC(DoubleDelta, LZ4),
    range_last Int64 CODEC(DoubleDelta, LZ4),
    log_month UInt32 CODEC(DoubleDelta, LZ4),
    -- An enumeration read from Arrow takes any number without a word.
    CONSTRAINT type_known CHECK toInt8(type) IN (1, 2)
)
ENGINE = {replicated}MergeTree
PARTITION BY log_month
ORDER BY (log_generation, log_partition, log_offset, log_position)
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
