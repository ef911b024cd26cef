-- The generations of the log: which topic of which cluster the stored events came from, and where each began.
CREATE TABLE IF NOT EXISTS {database}.interaction_logs
(
    generation UInt32,
    cluster_id String,
    topic String,
    topic_id String,
    partitions UInt32,
    start_offsets Array(Int64),
    opened_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = {replicated}MergeTree
ORDER BY generation
SETTINGS non_replicated_deduplication_window = 100000, replicated_deduplication_window = 100000;
