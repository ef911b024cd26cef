-- What reports read: hits by UTC hour and user. And the ledger: how far each partition of the log is stored.
--
-- Both stand in one table so that one insert, which is atomic, carries a range's counters and its entry in the ledger. A
-- counter row has log_generation and log_partition 0; a ledger row has its log's generation (1 or more), hour zero and an
-- empty user, which no hit has. Rows of one key add up when parts are merged: counters by hour and user, ledger entries
-- by partition, where range_offsets tells whether the ranges join (it equals range_last - range_first + 1).
CREATE TABLE IF NOT EXISTS {database}.hit_counters
(
    log_generation UInt32,
    log_partition UInt32,
    hour DateTime('UTC'),
    user String,
    clicks SimpleAggregateFunction(sum, UInt64),
    impressions SimpleAggregateFunction(sum, UInt64),
    range_first SimpleAggregateFunction(min, Int64),
    range_last SimpleAggregateFunction(max, Int64),
    range_offsets SimpleAggregateFunction(sum, Int64),
    events SimpleAggregateFunction(sum, UInt64),
    new_events SimpleAggregateFunction(sum, UInt64)
)
ENGINE = {replicated}AggregatingMergeTree
ORDER BY (log_generation, log_partition, hour, user)
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
