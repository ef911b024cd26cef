"""The log as others read it: pyarrow takes every record of the topic as it lies there."""

import random
import time
import uuid
from datetime import UTC, datetime

import pyarrow as pa
import pytest
import xxhash
from captcha import event, ndjson, new_id
from harness import eventually

SCHEMA = pa.schema(
    [
        pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("type", pa.int8(), nullable=False),
        pa.field("correlation_id", pa.binary(16), nullable=False),
        pa.field("site_id", pa.binary(16), nullable=False),
    ]
)
NUMBERS = {"serve": 1, "solve": 2}


def read(record):
    """The events of a record."""
    with pa.ipc.open_stream(record.value) as stream:
        assert stream.schema.equals(SCHEMA), stream.schema
        table = stream.read_all()
    table.validate(full=True)
    assert all(column.null_count == 0 for column in table.columns)
    return table.to_pylist()


def as_read(one):
    return {
        "time": datetime.fromisoformat(one["time"]).replace(tzinfo=UTC),
        "type": NUMBERS[one["type"]],
        "correlation_id": uuid.UUID(one["correlation_id"]).bytes,
        "site_id": uuid.UUID(one["site_id"]).bytes,
    }


def by_key(events):
    return sorted(events, key=lambda one: (one["correlation_id"], one["type"]))


@pytest.mark.parametrize("partitions", [1, 4, 7])
def test_every_record_is_readable_and_lies_where_its_key_says(millrace, space, partitions):
    # `millrace migrate` leaves a topic that is there as it is.
    space.log.create_topic(space.topic, partitions)
    program = millrace("serve")
    sent = [event(type=kind, correlation_id=new_id().upper()) for kind in ("serve", "solve") for _ in range(2500)]
    before_ms = time.time_ns() // 1_000_000
    answer = program.post("/v1/events", ndjson(sent))
    assert (answer.status, answer.json()["accepted"]) == (202, 5000)
    assert program.post("/v1/events", sent[0]).status == 202
    after_ms = time.time_ns() // 1_000_000

    assert space.log.partitions(space.topic) == partitions
    records = space.log.records(space.topic)
    found = []
    for record in records:
        assert record.headers == {"kind": b"captcha", "schema": b"1"}
        assert before_ms <= record.timestamp_ms <= after_ms
        events = read(record)
        assert events
        for one in events:
            assert xxhash.xxh3_64_intdigest(one["correlation_id"]) % partitions == record.partition
        found += events
    # A copy is a record like any other: only the writer knows.
    assert by_key(found) == by_key([as_read(one) for one in [*sent, sent[0]]])
    # Bulk makes few records: one for each partition, here and there one more, and one for the copy.
    assert len(records) <= 2 * partitions + 1
    # Within a partition the order is the body's.
    order = {(as_read(one)["correlation_id"], NUMBERS[one["type"]]): place for place, one in enumerate(sent)}
    for partition in range(partitions):
        of_partition = [one for record in records if record.partition == partition for one in read(record)]
        places = [order[one["correlation_id"], one["type"]] for one in of_partition]
        assert [place for place in places if place] == sorted(place for place in places if place)


def test_a_lone_event_is_acknowledged_soon(millrace, space):
    program = millrace("serve")
    assert program.post("/v1/events", event()).status == 202
    took = []
    for _ in range(20):
        start = time.monotonic()
        assert program.post("/v1/events", event()).status == 202
        took.append(time.monotonic() - start)
    # It waits at most 5 ms for company; the bound leaves room for a machine that does much else.
    assert min(took) < 0.1, took
    assert len(space.log.records(space.topic)) == 21


def test_records_stay_below_what_kafka_takes(millrace, space):
    program = millrace("serve")
    body = ndjson([event() for _ in range(50_000)])
    assert program.post("/v1/events", body).status == 202
    records = space.log.records(space.topic)
    assert sum(len(read(record)) for record in records) == 50_000
    assert max(len(record.value) for record in records) < 1_000_000
    assert len(records) <= 16


def test_what_others_write_into_the_topic_does_no_harm(millrace, space):
    """Garbage in the log is passed over and told; what stands behind it is stored."""
    program = millrace("run")
    producer = space.log.producer()
    good_headers = [("kind", b"captcha"), ("schema", b"1")]
    garbage = [
        (b"garbage", good_headers),
        (b"", good_headers),
        (None, good_headers),
        (b"\xff" * 100_000, []),
        (read_bytes(pa.table({"x": [1]})), good_headers),
        (read_bytes(table_of([event()])), [("kind", b"other"), ("schema", b"1")]),
        (read_bytes(table_of([event()])), [("kind", b"captcha"), ("schema", b"x")]),
        (read_bytes(table_of([event()]))[:-100], good_headers),
    ]
    for value, headers in garbage:
        for partition in range(4):
            producer.produce(space.topic, value=value, headers=headers, partition=partition)
    assert producer.flush(10) == 0
    site = new_id()
    assert program.post("/v1/events", ndjson([event(site_id=site) for _ in range(100)])).status == 202

    def stored():
        rows = program.get(f"/v1/report?site_id={site}").json()["counters"]
        return sum(row["served"] for row in rows) == 100

    eventually(stored, 20, what="what stands behind the garbage")
    refused = program.metric("millrace_events_rejected_total", kind="captcha", code="bad_record")
    # Whether a stream that was cut behind its batch is taken is the reader's affair.
    assert 4 * (len(garbage) - 1) <= refused <= 4 * len(garbage)


def test_one_event_of_the_largest_size_makes_a_record(millrace, space):
    """1 MiB in one event, which no kind of column makes smaller: the topic takes the record, and the writer reads it."""
    program = millrace("run")
    one = event()
    text = random.Random(7).randbytes(1 << 20).hex()[: 1 << 20]
    table = table_of([one]).append_column("text", pa.array([text]))
    producer = space.log.producer(**{"message.max.bytes": 2_000_000, "batch.size": 2_000_000})
    producer.produce(space.topic, value=read_bytes(table), headers=[("kind", b"captcha"), ("schema", b"1")], partition=0)
    assert producer.flush(10) == 0
    (record,) = space.log.records(space.topic)
    assert len(record.value) > 1 << 20
    eventually(
        lambda: [row["served"] + row["solved"] for row in program.get("/v1/report").json()["counters"]] == [1],
        20,
        what="the large event stored",
    )


def table_of(events):
    return pa.Table.from_pylist([as_read(one) for one in events], schema=SCHEMA)


def read_bytes(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()
