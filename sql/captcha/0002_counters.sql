-- What reports read: events by site and UTC day. And the ledger: which ranges of the log have been stored.
--
-- Both stand in one table so that one insert, which is atomic, carries a range's counters and its ledger row. A counter
-- row has log_generation 0 (and log_partition, range_first 0), so that rows of one site and day add up; a ledger row has
-- its log's generation (1 or more), day 1970-01-01, the nil site_id, and its range's own key, so that it is never added
-- to another. Whoever reads counters asks for log_generation = 0, whoever reads the ledger for log_generation > 0.
CREATE TABLE IF NOT EXISTS {database}.captcha_counters
(
    day Date32,
    site_id UUID,
    log_generation UInt32,
    log_partition UInt32,
    range_first Int64,
    range_last SimpleAggregateFunction(max, Int64),
    served SimpleAggregateFunction(sum, UInt64),
    solved SimpleAggregateFunction(sum, UInt64),
    events SimpleAggregateFunction(max, UInt64),
    new_events SimpleAggregateFunction(max, UInt64)
)
ENGINE = {replicated}AggregatingMergeTree
ORDER BY (day, site_id, log_generation, log_partition, range_first)
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
