-- Every interaction that was new, once, with the place in the log that it came from.
--
-- One insert is one range of one partition of the log and makes one part: log_month (YYYYMM of the range's first record)
-- is the same in all its rows. The deduplication windows make an insert that is repeated under its token have no effect,
-- on the projections neither; a table without them would count such a repetition twice.
--
-- A page of the timeline is a short read in the table's order, a page of a session one in by_session's, which therefore
-- holds whatever a page shows: rows fetched one by one from another order cost a granule each. Both orders end with the
-- place in the log, so that they are total and a cursor names one row. by_place is for what a writer asks when it takes a
-- partition over, and small. Projections take the table's granularity but not its codecs.
CREATE TABLE IF NOT EXISTS {database}.interaction_events
(
    timestamp DateTime64(6, 'UTC') CODEC(T64, LZ4),
    session_id UUID,
    category LowCardinality(String),
    name LowCardinality(String),
    -- The JSON text of an object, every byte as it was sent. The JSON type would sort keys, turn 1.10 into 1.1, and fail
    -- on an integer of 23 digits or a repeated key.
    data String CODEC(ZSTD(1)),
    -- Read from the text when they are asked for, empty where it has none; the cost falls on who asks.
    host String ALIAS JSONExtractString(data, 'host'),
    path String ALIAS JSONExtractString(data, 'path'),
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
    -- For one event by its id: 1 granule in 1,000 is read in vain.
    INDEX event_ids event_id TYPE bloom_filter(0.001) GRANULARITY 1,
    -- For rare types over a long time: granules without one are skipped.
    INDEX types (category, name) TYPE set(100) GRANULARITY 1,
    PROJECTION by_session
    (
        SELECT
            session_id, timestamp, category, name, data, event_id, event_id_origin, accepted_at, stored_at,
            log_generation, log_partition, log_offset, log_position
        ORDER BY session_id, timestamp, log_generation, log_partition, log_offset, log_position
    ),
    PROJECTION by_place
    (
        SELECT log_generation, log_partition, log_offset, log_position, range_last
        ORDER BY log_generation, log_partition, log_offset, log_position
    ),
    -- An enumeration read from Arrow takes any number without a word.
    CONSTRAINT event_id_origin_known CHECK toInt8(event_id_origin) IN (0, 1, 2)
)
ENGINE = {replicated}MergeTree
PARTITION BY log_month
ORDER BY (timestamp, log_generation, log_partition, log_offset, log_position)
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
