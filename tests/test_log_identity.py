"""The log that is not the one that was recorded, or no longer whole: refused or halted, never read on in silence."""

import confluent_kafka
import pytest
from harness import eventually
from once import SMALL_RANGES, Sent, check_counts, make_events, read_report, reckon, run_command, wait_stored

PARTITIONS = 4


@pytest.fixture
def sent():
    return Sent()


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
    """Bytes that no part of this program wrote: passed over with a message and counted, and the rest goes on."""
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
        (good.value, [("kind", b"captcha"), ("schema", b"9999")]),
        (good.value, [("kind", b"captcha"), ("schema", b"\xff\xfe")]),
    ]
    producer = confluent_kafka.Producer({"bootstrap.servers": space.servers.kafka_brokers})
    for partition in range(PARTITIONS):
        for value, carried in poison:
            producer.produce(space.topic, value, partition=partition, headers=carried)
    producer.flush(20)
    sent.post_until_taken(started, make_events(200))
    reckon(space, sent, started)
    assert started.is_running()
    bad = started.metric("millrace_events_rejected_total", code="bad_record")
    assert bad == PARTITIONS * len(poison)
    assert started.log_text().count("cannot be read and is passed over") == bad
    # A later writer passes them over as well.
    started.stop()
    started = program()
    sent.post_until_taken(started, make_events(50))
    reckon(space, sent, started)
    check_counts(space, sent, started)
