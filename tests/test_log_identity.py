"""The log that is not the one that was recorded, or no longer whole: refused or halted, never read on in silence."""

import random

import confluent_kafka
import pytest
from harness import eventually
from once import SMALL_RANGES, Sent, check_counts, make_events, read_report, reckon, run_command, wait_stored

PARTITIONS = 4


@pytest.fixture
def program(millrace):
    """Starts a `run`."""

    def start(subcommand="run", **options):
        return millrace(subcommand, settings=SMALL_RANGES, **options)

    return start


def create_again(space, partitions=PARTITIONS):
    """Deletes the topic and creates it again."""
    log = space.log
    log.delete_topics([space.topic])

    def created():
        try:
            log.create_topic(space.topic, partitions)
        except confluent_kafka.KafkaException as error:  # The deletion is still under way.
            raise AssertionError(str(error)) from error
        return True

    eventually(created, 20, what="the topic to be created again")


def assert_refused(ended, *words):
    """The program ended by itself, with a message that holds the words."""
    assert ended.wait_end(20) == 1
    text = ended.log_text()
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} is not in\n{ended.log_tail()}"


@pytest.mark.parametrize("subcommand", ["run", "write", "serve"])
def test_topic_created_again(subcommand, program, space, sent):
    """Refused until the operator opens a new generation; what was stored before still counts as seen."""
    first = program()
    events = make_events(400)
    sent.post_until_taken(first, events)
    reckon(space, sent, first)
    first.stop()

    create_again(space)
    assert_refused(program(subcommand, wait=False), "was deleted and created again", "migrate --new-generation")
    told = run_command(space, "migrate", "--new-generation")
    assert told.returncode == 0, told.stderr
    assert "generation 2" in told.stdout

    again = program()
    sent.post_until_taken(again, events + make_events(100))
    reckon(space, sent, again, generation=2)
    assert sum(read_report(again).values()) == 500


def test_topic_created_again_under_a_running_writer(program, space, sent):
    """A writer that is at work must not take the new topic's records for those that follow what it has stored."""
    first = program()
    sent.post_until_taken(first, make_events(50))
    reckon(space, sent, first)
    create_again(space)
    # More records than before, so that the offsets alone do not tell.
    producer = confluent_kafka.Producer({"bootstrap.servers": space.servers.kafka_brokers})
    for partition in range(PARTITIONS):
        for _ in range(20):
            producer.produce(space.topic, b"garbage", partition=partition)
    producer.flush(20)
    assert_refused(first, "was deleted and created again", "migrate --new-generation")


def test_new_generation_under_a_running_writer(program, space, sent):
    """It was to be stopped first: it ends, rather than go on under a generation that is over."""
    first = program()
    events = make_events(100)
    sent.post_until_taken(first, events)
    reckon(space, sent, first)
    assert run_command(space, "migrate", "--new-generation").returncode == 0
    assert_refused(first, "generation 2 of the log was opened while this writer stored generation 1")
    ends = [high for _, high in space.log.watermarks(space.topic)]
    again = program()
    sent.post_until_taken(again, events)
    reckon(space, sent, again, generation=2, starts=ends)
    assert sum(read_report(again).values()) == 100


@pytest.mark.parametrize("running", [False, True])
def test_partitions_added(running, program, space, sent):
    """Copies of an event would no longer share a partition."""
    first = program()
    sent.post_until_taken(first, make_events(100))
    reckon(space, sent, first)
    if not running:
        first.stop()
    more = confluent_kafka.admin.NewPartitions(space.topic, PARTITIONS + 1)
    log = space.log
    log.admin.create_partitions([more])[space.topic].result(20)
    assert_refused(first if running else program(wait=False), "has 5 partitions, but generation 1 of the log has 4")


def test_records_deleted_before_they_were_stored(program, space, sent):
    """The partition stands still and says so; the others go on. A new generation accepts the loss."""
    first = program()
    sent.post_until_taken(first, make_events(400))
    reckon(space, sent, first)
    first.stop()

    door = program("serve")
    lost = Sent()
    lost.post_until_taken(door, make_events(400))
    log = space.log
    high = log.watermarks(space.topic)[1][1]
    place = confluent_kafka.TopicPartition(space.topic, 1, high)
    log.admin.delete_records([place])[place].result(20)

    writer = program("write", wait=False)
    eventually(lambda: halted(writer) == 1, 20, what="a halted partition")
    answer = writer.get("/health/ready")
    assert answer.status == 503
    (missing,) = answer.json()["missing"]
    assert missing["name"] == "captcha partition 1"
    assert "never stored" in missing["reason"] and "retention" in missing["reason"]

    # What lay in the other partitions is stored, and what is accepted from now on as well.
    assert "a partition stands still" in writer.log_text()
    eventually(lambda: sum(read_report(door).values()) > 600, 20, what="the events of the other partitions")
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout
    writer.stop()

    told = run_command(space, "migrate", "--new-generation")
    assert told.returncode == 0, told.stderr
    writer = program("write")
    fresh = make_events(400)
    sent.post_until_taken(door, fresh)
    # What was deleted is lost: of what was acknowledged meanwhile only a part can be there.
    sent.unsure |= lost.acknowledged
    began = space.store.value(f"SELECT start_offsets FROM {space.database}.captcha_logs WHERE generation = 2")
    reckon(space, sent, door, generation=2, starts=began)
    assert halted(writer) == 0


def halted(program):
    """How many partitions stand still at this writer; none while it is starting."""
    try:
        return program.metric("millrace_partition_halted")
    except OSError:
        return 0


def test_clickhouse_lost_what_was_committed(program, space, sent):
    """ClickHouse comes back from an older backup: the writer stands still, and a new generation reads the log again."""
    first = program()
    sent.post_until_taken(first, make_events(400))
    reckon(space, sent, first)
    first.stop()
    for table in ("captcha_counters", "captcha_events"):
        space.store.query(f"TRUNCATE TABLE {space.database}.{table}")

    writer = program("write", wait=False)
    eventually(lambda: halted(writer) == PARTITIONS, 20, what="halted partitions")
    assert "clickhouse has lost its newest rows" in writer.get("/health/ready").text
    writer.stop()

    told = run_command(space, "migrate", "--new-generation")
    assert told.returncode == 0, told.stderr
    again = program()
    sent.post_until_taken(again, make_events(100))
    reckon(space, sent, again, generation=2)


def test_commit_of_another_program(program, space, sent):
    """A group that is shared with something else, or whose offsets were moved by a tool."""
    first = program()
    sent.post_until_taken(first, make_events(400))
    reckon(space, sent, first)
    first.stop()
    consumer = space.log.consumer(space.group)
    places = [confluent_kafka.TopicPartition(space.topic, partition, 1) for partition in range(PARTITIONS)]
    consumer.commit(offsets=places, asynchronous=False)
    consumer.close()
    writer = program("write", wait=False)
    eventually(lambda: halted(writer) == PARTITIONS, 20, what="halted partitions")
    assert "was not made by this program" in writer.get("/health/ready").text
    writer.stop()


def test_records_that_cannot_be_read(program, space, sent):
    """Bytes that no part of this program wrote: kept as they are, passed over with a message and counted, and the rest goes
    on."""
    started = program()
    sent.post_until_taken(started, make_events(200))
    wait_stored(space)
    good = space.log.records(space.topic)[0]
    headers = list(good.headers.items())
    poison = [
        (b"garbage", headers),
        (b"", headers),
        (None, headers),
        (good.value[:40], headers),
        (good.value[: len(good.value) // 2], headers),
        (b"\xff" * 4096, headers),
        (b"\x00" * 4096, None),
        (good.value, [("kind", b"hit"), ("schema", b"1")]),
        (good.value, [("kind", b"captcha"), ("schema", b"1"), ("schema", b"\xff\xfe"), ("\u00e9", None)]),
        (random.randbytes(900_000), headers),
    ]
    put_into_every_partition(space, poison)
    sent.post_until_taken(started, make_events(200))
    reckon(space, sent, started)
    assert started.is_running()
    bad = started.metric("millrace_events_rejected_total", code="bad_record")
    assert bad == PARTITIONS * len(poison)
    assert started.log_text().count("cannot be read and is passed over") == bad
    kept = kept_aside(space)
    assert len(kept) == bad
    for record in space.log.records(space.topic):
        found = kept.pop((record.partition, record.offset), None)
        if found:
            assert found["value"] == (record.value if record.value is None else record.value.hex().upper())
            assert dict(zip(found["header_names"], found["header_values"], strict=True)) == {
                name: (value or b"").hex().upper() for name, value in record.headers.items()
            }
            assert found["reason"]
            assert found["at_ms"] == record.timestamp_ms
    assert not kept, f"rows of records that are not in the log: {list(kept)[:3]}"
    # A later writer passes them over as well.
    started.stop()
    started = program()
    sent.post_until_taken(started, make_events(50))
    reckon(space, sent, started)
    check_counts(space, sent, started)


def test_records_that_cannot_be_read_are_kept_before_they_are_passed_over(program, space, sent):
    """A writer that dies before its range is counted has kept them, or its successor does; each is shown once."""
    door = program("serve")
    headers = [("kind", b"captcha"), ("schema", b"1")]
    for point in ("before_claim", "after_events", "after_counters", "before_commit"):
        victim = program("write", failpoints=f"writer::{point}=1*return", wait=False)
        put_into_every_partition(space, [(f"garbage {point}".encode(), headers)])
        sent.post_until_taken(door, make_events(100))
        assert victim.wait_end(30) == -9
    program("write")
    reckon(space, sent, door)
    assert len(kept_aside(space)) == 4 * PARTITIONS


def test_many_records_that_cannot_be_read(program, space, sent):
    """However many come at once: they end a range like events do, and memory stays bounded."""
    door = program("serve")
    headers = [("kind", b"captcha"), ("schema", b"1")]
    put_into_every_partition(space, [(b"x" * 10, headers)] * 3000 + [(b"x" * 900_000, headers)] * 12)
    sent.post_until_taken(door, make_events(100))
    program("write")
    reckon(space, sent, door)
    assert len(kept_aside(space)) == 3012 * PARTITIONS


def put_into_every_partition(space, records):
    producer = confluent_kafka.Producer({"bootstrap.servers": space.servers.kafka_brokers})
    for partition in range(PARTITIONS):
        for value, carried in records:
            producer.produce(space.topic, value, partition=partition, headers=carried)
            producer.poll(0)
    assert producer.flush(20) == 0


def kept_aside(space):
    """What `rejected_records` shows, by place."""
    rows = space.store.rows(
        "SELECT log_partition, log_offset, reason, hex(value) AS value, header_names,"
        " arrayMap(value -> hex(value), header_values) AS header_values, toUnixTimestamp64Milli(accepted_at) AS at_ms"
        f" FROM {space.database}.rejected_records FINAL WHERE kind = 'captcha' AND log_generation = 1"
    )
    found = {(row["log_partition"], row["log_offset"]): row for row in rows}
    assert len(found) == len(rows), "a place is shown twice"
    return found


def test_a_record_of_a_newer_version(program, space, sent):
    """Its events were acknowledged: what lies before it is stored, it is not passed over, and the others go on."""
    started = program()
    sent.post_until_taken(started, make_events(400))
    wait_stored(space)
    good = next(record for record in space.log.records(space.topic) if record.partition == 1)
    _, place = space.log.watermarks(space.topic)[1]
    producer = confluent_kafka.Producer({"bootstrap.servers": space.servers.kafka_brokers})
    # A copy that this version can read, so that the range has something before the newer record.
    for schema in (b"1", b"2", b"1"):
        producer.produce(space.topic, good.value, partition=1, headers=[("kind", b"captcha"), ("schema", schema)])
    assert producer.flush(20) == 0
    for writer in (started, None):
        writer = writer or program(wait=False)
        eventually(lambda writer=writer: halted(writer) == 1, 30, what="a halted partition")
        text = writer.get("/health/ready").text
        assert f"the record at offset {place + 1} was written by a later version of the program" in text
        assert "its schema version is 2, and this program reads versions up to 1" in text
        assert "upgrade this writer" in text
        assert space.log.committed(space.group, space.topic)[1][0] == place + 1
        before = sum(read_report(writer).values())
        events = make_events(400)
        sent.post_until_taken(writer, events)
        eventually(
            lambda before=before, writer=writer: sum(read_report(writer).values()) > before + 250,
            20,
            what="the events of the other partitions",
        )
        assert writer.metric("millrace_events_rejected_total", code="bad_record") == 0
        writer.stop()
    assert not kept_aside(space)
