"""Every event is counted once, whatever happens to the writer.

The tests send through a door of its own (`serve`) and let something happen to the processes that store (`write`). At the
end everything in the log must be stored, and the report must be what the test itself has counted.
"""

import random
import signal

import confluent_kafka
import pytest
from harness import eventually
from once import SMALL_RANGES, Load, Proxy, check_counts, forget_offsets, make_events, reckon, wait_stored

POINTS = ["before_claim", "after_claim", "after_events", "after_counters", "before_commit"]


@pytest.fixture
def door(millrace):
    return millrace("serve", settings=SMALL_RANGES)


@pytest.fixture
def writer(millrace):
    """Starts a `write`."""

    def start(**options):
        options["settings"] = {**SMALL_RANGES, **options.get("settings", {})}
        return millrace("write", **options)

    return start


def wait_killed(program, deadline_s=30):
    """Waits until the process has ended itself with SIGKILL, which is what the named places do."""
    status = program.wait_end(deadline_s)
    assert status == -signal.SIGKILL, f"it ended with {status}:\n{program.log_tail()}"


def test_duplicates(millrace, space, sent):
    """Copies inside one request, in later requests, and after the writer was restarted."""
    program = millrace("run", settings=SMALL_RANGES)
    events = make_events(300)
    assert sent.post(program, [*events, *events[:100], *events[50:150]]) == 202
    assert sent.post(program, random.sample(events, 200)) == 202
    reckon(space, sent, program)
    assert program.metric("millrace_events_stored_total") == 300
    assert program.metric("millrace_events_duplicate_total") == 400
    program.stop()

    program = millrace("run", settings=SMALL_RANGES)
    assert sent.post(program, events + make_events(50)) == 202
    reckon(space, sent, program)
    assert program.metric("millrace_events_stored_total") == 50
    program.kill()

    program = millrace("run", settings=SMALL_RANGES)
    for event in random.sample(events, 20):
        assert sent.post(program, [event]) == 202
    reckon(space, sent, program)
    eventually(lambda: program.metric("millrace_lag_records") == 0, what="a lag of 0")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point, door, writer, space, sent):
    """kill -9 at a named place, then another writer takes over."""
    victim = writer(failpoints=f"writer::{point}=6*off->1*return")
    with Load(sent, [door]) as load:
        wait_killed(victim)
        load.wait_taken(10)
        writer()
        load.wait_taken(10)
    reckon(space, sent, door)


def test_killed_again_and_again(door, writer, space, sent):
    """Each writer dies at the first passage of its place, the replay of what it took over included."""
    with Load(sent, [door], pause_s=0.1):
        for point in random.sample(POINTS, 3):
            wait_killed(writer(failpoints=f"writer::{point}=1*return", wait=False))
        writer()
    reckon(space, sent, door)


def test_killed_at_random(millrace, writer, space, sent):
    """Two programs do everything, and die at any moment."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    doors = [millrace("run", settings=SMALL_RANGES) for _ in range(2)]
    with Load(sent, doors, clients=3) as load:
        for _ in range(6):
            load.wait_taken(dice.randint(2, 25))
            which = dice.randrange(2)
            doors[which].kill()
            doors[which] = millrace("run", settings=SMALL_RANGES, wait=False)
        doors[0].wait_ready()
        doors[1].wait_ready()
        load.wait_taken(5)
    reckon(space, sent, doors[0])


@pytest.mark.parametrize("table", ["captcha_events", "captcha_counters"])
def test_lost_answer_of_an_insert(table, door, writer, space, sent):
    """ClickHouse has done the insert, and the writer does not hear of it."""
    proxy = Proxy(space.servers.clickhouse_url.removeprefix("http://"))
    program = writer(settings={"MILLRACE_CLICKHOUSE_URL": f"http://{proxy.address}"})
    with Load(sent, [door]) as load:
        load.wait_taken(3)
        proxy.swallow(f"{table}%60+FORMAT".encode(), 8)
        eventually(lambda: proxy.swallowed == 8, 30, what="8 answers to be lost")
        load.wait_taken(5)
    reckon(space, sent, door)
    assert program.metric("millrace_insert_failures_total") >= 8
    proxy.close()


def test_lost_answer_and_killed(door, writer, space, sent):
    """The answer is lost, and so is the writer before it can ask again."""
    proxy = Proxy(space.servers.clickhouse_url.removeprefix("http://"))
    through_proxy = {"MILLRACE_CLICKHOUSE_URL": f"http://{proxy.address}"}
    with Load(sent, [door]) as load:
        for table, point in (("captcha_events", "after_events"), ("captcha_counters", "after_counters")):
            victim = writer(settings=through_proxy, failpoints=f"writer::{point}=9*off->1*return", wait=False)
            proxy.swallow(f"{table}%60+FORMAT".encode(), 1000)
            wait_killed(victim)
            proxy.swallow(b"", 0)
        writer()
        load.wait_taken(5)
    reckon(space, sent, door)
    proxy.close()


def test_stopped_with_a_claim_and_offsets_forgotten(door, writer, space, sent):
    """The claim is gone with the group's offsets; the events that were stored under it tell which range it was."""
    victim = writer(failpoints="writer::after_events=2*off->1*return")
    with Load(sent, [door]):
        wait_killed(victim)
    forget_offsets(space)
    writer()
    sent.post_until_taken(door, make_events(100))
    reckon(space, sent, door)


def test_offsets_forgotten(door, writer, space, sent):
    """Kafka forgets the offsets of an idle group: the writer goes on after what is stored, and repeats nothing."""
    program = writer()
    sent.post_until_taken(door, make_events(500))
    wait_stored(space)
    program.stop()
    sent.post_until_taken(door, make_events(500))
    forget_offsets(space)
    program = writer()
    reckon(space, sent, door)
    # What was stored before was not even read again.
    assert program.metric("millrace_events_duplicate_total") == 0
    check_counts(space, sent, door)


def test_other_producer_and_wrong_partition(door, writer, space, sent):
    """A record that another producer put into another partition than its keys': a writer that takes over still knows them."""
    events = make_events(50)
    program = writer()
    sent.post_until_taken(door, events)
    wait_stored(space)
    records = space.log.records(space.topic)
    misplaced = next(record for record in records if record.partition == 0)
    producer = confluent_kafka.Producer({"bootstrap.servers": space.servers.kafka_brokers})

    def put_into_partition_1():
        producer.produce(space.topic, misplaced.value, partition=1, headers=list(misplaced.headers.items()))
        producer.flush(10)
        wait_stored(space)

    put_into_partition_1()
    stored = f"SELECT count() FROM {space.database}.captcha_events"
    with_copies = space.store.value(stored)
    assert with_copies > 50
    program.stop()
    writer()
    put_into_partition_1()
    assert space.store.value(stored) == with_copies
