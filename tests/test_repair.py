"""A ClickHouse that lost its newest parts: the writer stands still, and `millrace repair` reads them again from the log.

The parts are taken away as a power cut does it: from the disk, while ClickHouse is stopped. It goes on remembering the
tokens of their inserts.
"""

import collections
import json
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import confluent_kafka
import pytest
from harness import environment_without_settings, eventually, millrace_binary
from once import SMALL_RANGES, check_stored, count, forget_offsets, make_events, read_report, reckon, wait_stored

# A claim lives 3 s and an insert 2 s, so that a repair waits for 5 s.
SETTINGS = {
    **SMALL_RANGES,
    "MILLRACE_WRITER_CLAIM_AGE_MS_MAX": "3000",
    "MILLRACE_CLICKHOUSE_INSERT_MS_MAX": "2000",
}
PARTITIONS = 4
POINTS = ["read", "events_added", "counted", "swapped"]


@pytest.fixture
def space(own_clickhouse_space):
    return own_clickhouse_space


@pytest.fixture
def program(millrace, space):
    """Starts a `run` on the test's own ClickHouse."""

    def start(subcommand="run", **options):
        return millrace(subcommand, settings=SETTINGS, space=space, **options)

    return start


def environment(space, failpoints=None):
    found = {**environment_without_settings(), **space.settings(), **SETTINGS}
    return {**found, "FAILPOINTS": failpoints} if failpoints else found


def tell(space, *arguments, failpoints=None):
    return subprocess.run(
        [millrace_binary(), *arguments],
        env=environment(space, failpoints),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def repair(space, *arguments, **options):
    """`millrace repair`, as soon as Kafka has given up writers that were killed."""
    told = []

    def done():
        told[:] = [tell(space, "repair", *arguments, **options)]
        return "writers are at work" not in told[0].stderr

    eventually(done, 60, what="a group without members")
    return told[0]


def stop_merges(space, kind="captcha"):
    """Each insert stays a part."""
    for table in ("events", "counters"):
        space.store.query(f"SYSTEM STOP MERGES {space.database}.{kind}_{table}")


def fill(program, space, sent, batches=6):
    """A program that has stored several ranges of every partition, each a part, and is stopped."""
    started = program()
    stop_merges(space)
    for _ in range(batches):
        sent.post_until_taken(started, make_events(100))
        wait_stored(space)
    started.stop()


def parts_of(space, table, partition):
    """The paths of a partition's parts, oldest first. The counters' hold ranges of one partition each as well."""
    found = space.store.rows(
        f"SELECT path FROM system.parts WHERE active AND database = '{space.database}' AND table = '{table}' AND name IN"
        f" (SELECT _part FROM {space.database}.{table} WHERE log_generation > 0 AND log_partition = {partition})"
        " ORDER BY min_block_number"
    )
    return [Path(row["path"]) for row in found]


def lose(own_clickhouse, space, lost):
    """Takes the newest parts away while ClickHouse is stopped: `lost` says of table and partition how many."""
    paths = []
    for (table, partition), parts in lost.items():
        found = parts_of(space, table, partition)
        assert len(found) > parts, f"{table} has {len(found)} parts of partition {partition}"
        paths += found[-parts:]
    own_clickhouse.stop()
    for path in paths:
        assert path.is_dir(), path
        shutil.rmtree(path)
    own_clickhouse.start()


def halted(program):
    """The reasons of the partitions that stand still."""
    try:
        missing = program.get("/health/ready").json().get("missing", [])
    except OSError:
        return {}
    return {one["name"]: one["reason"] for one in missing if "partition" in one["name"]}


def halts(program, partitions):
    """Exactly these partitions stand still, and say what to do; the others go on."""
    names = {f"captcha partition {partition}" for partition in partitions}
    reasons = eventually(lambda: halted(program).keys() == names and halted(program), 30, what=f"{names} to stand still")
    for reason in reasons.values():
        assert "`millrace repair`" in reason, reason


def tables(space):
    return {
        table: space.store.value(f"SELECT count() FROM {space.database}.{table}")
        for table in ("captcha_events", "captcha_counters")
    }


def left_behind(space):
    """Tables of repairs."""
    return space.store.rows(f"SELECT name FROM system.tables WHERE database = '{space.database}' AND name LIKE '%_repair_%'")


EVENTS, COUNTERS = "captcha_events", "captcha_counters"


@pytest.mark.parametrize(
    ("lost", "partitions"),
    [
        ({(EVENTS, 0): 2}, {0}),
        ({(COUNTERS, 1): 2}, {1}),
        ({(EVENTS, 0): 1, (COUNTERS, 0): 3, (EVENTS, 2): 3, (COUNTERS, 2): 1, (EVENTS, 3): 2}, {0, 2, 3}),
    ],
    ids=["events", "counters", "both unevenly"],
)
def test_lost_tail(lost, partitions, program, own_clickhouse, space, sent):
    fill(program, space, sent)
    before = count(check_stored(space, sent))
    lose(own_clickhouse, space, lost)

    # The partitions that lost something stand still, the others go on.
    door = program("serve")
    writer = program("write", wait=False)
    halts(writer, partitions)
    sent.post_until_taken(door, make_events(100))
    well = [partition for partition in range(PARTITIONS) if partition not in partitions]
    ends = space.log.watermarks(space.topic)

    def stored():
        committed = space.log.committed(space.group, space.topic)
        return all(committed[partition][0] == ends[partition][1] for partition in well)

    eventually(stored, 20, what="the other partitions to go on")
    refused = tell(space, "repair")
    assert refused.returncode == 1
    assert "captcha: writers are at work" in refused.stderr
    writer.stop()

    found = tables(space)
    told = repair(space, "--dry-run")
    assert told.returncode == 0, told.stdout + told.stderr
    if any(table == EVENTS for table, _ in lost):
        assert "would be read again" in told.stdout
    assert tables(space) == found
    assert not left_behind(space)

    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    assert not left_behind(space)
    verified = tell(space, "verify")
    assert verified.returncode == 0, verified.stdout
    assert all(read_report(door)[name] >= counted for name, counted in before.items())

    # Writers go on without complaint, and know every key.
    writer = program("write")
    sent.post_until_taken(door, sent.some(200) + make_events(100))
    reckon(space, sent, door)
    assert not halted(writer)
    assert "stands still" not in writer.log_text()
    writer.stop()
    again = repair(space)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "captcha: nothing is missing" in again.stdout


def test_a_hole_in_the_middle(program, own_clickhouse, space, sent):
    """Parts that are not the newest: an older range is gone, a later one is there."""
    fill(program, space, sent)
    events = parts_of(space, EVENTS, 1)
    own_clickhouse.stop()
    for path in (events[1], events[3]):
        shutil.rmtree(path)
    own_clickhouse.start()
    writer = program("write", wait=False)
    halts(writer, {1})
    writer.stop()
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("partition 1: offsets") == 2
    door = program()
    sent.post_until_taken(door, make_events(50))
    reckon(space, sent, door)


def test_retention_beyond_the_hole(program, own_clickhouse, space, sent):
    """What the log does not hold any more is named: offsets, and how many events; the rest is read again."""
    fill(program, space, sent)
    lost = {(EVENTS, 0): 3, (COUNTERS, 0): 1, (EVENTS, 1): 1}
    events = parts_of(space, EVENTS, 0)[-3:]
    places = [place_of(space, path.name) for path in events]
    lose(own_clickhouse, space, lost)
    # Of the three ranges that partition 0 has lost the first one is in the log no more.
    first, low, gone = places[0]["first"], places[1]["first"], places[0]["events"]
    log = space.log
    place = confluent_kafka.TopicPartition(space.topic, 0, low)
    log.admin.delete_records([place])[place].result(20)

    for arguments, words in ((["--dry-run"], "cannot be recovered"), ([], "could not be recovered")):
        told = repair(space, *arguments)
        assert told.returncode == 1, told.stdout + told.stderr
        assert (
            f"captcha: generation 1, partition 0: offsets {first} to {low - 1} {words}: they are not in the log,"
            f" {low - first} records at most\n" in told.stdout
        ), told.stdout
        assert "partition 1: offsets" in told.stdout
    assert tell(space, "verify").returncode == 0
    assert space.store.value(f"SELECT count() FROM {space.database}.captcha_events") == 600 - gone

    # The operator knows; a writer goes on.
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    door = program()
    sent.unsure, sent.acknowledged = sent.acknowledged, {}
    sent.post_until_taken(door, make_events(100))
    reckon(space, sent, door, starts=[0] * PARTITIONS)
    assert not halted(door)


def test_retention_and_an_intact_ledger(program, own_clickhouse, space, sent):
    """The ledger tells how many events are lost, also where they lie in the log no more."""
    fill(program, space, sent)
    path = parts_of(space, EVENTS, 2)[-1]
    place = place_of(space, path.name)
    lose(own_clickhouse, space, {(EVENTS, 2): 1})
    log = space.log
    end = confluent_kafka.TopicPartition(space.topic, 2, place["last"] + 1)
    log.admin.delete_records([end])[end].result(20)
    told = repair(space)
    assert told.returncode == 1
    assert f"partition 2: {place['events']} events before offset {place['last'] + 1} are lost with them" in told.stdout


def place_of(space, part):
    (row,) = space.store.rows(
        "SELECT min(log_offset) AS first, max(log_offset) AS last, count() AS events"
        f" FROM {space.database}.captcha_events WHERE _part = '{part}'"
    )
    return row


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_run_again(point, program, own_clickhouse, space, sent):
    fill(program, space, sent)
    lose(own_clickhouse, space, {(EVENTS, 0): 2, (COUNTERS, 0): 1, (EVENTS, 1): 1, (COUNTERS, 2): 2})
    killed = repair(space, failpoints=f"repair::{point}=1*return")
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert left_behind(space)
    # A writer that is started in between does no harm: it stands still, or what it needs is there by now.
    writer = program("write", wait=False)
    eventually(lambda: not left_behind(space), 20, what="the tables of the repair to be dropped")
    writer.stop()
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    door = program()
    sent.post_until_taken(door, sent.some(100) + make_events(50))
    reckon(space, sent, door)


def test_killed_at_any_moment(program, own_clickhouse, space, sent):
    fill(program, space, sent)
    lose(own_clickhouse, space, {(EVENTS, 0): 2, (COUNTERS, 0): 1, (EVENTS, 1): 1, (COUNTERS, 2): 2})
    # Its wait takes 5 s, and what follows some tenths of a second.
    for after_s in (5.0, 5.2, 5.4, 5.6):
        process = subprocess.Popen(
            [millrace_binary(), "repair"], env=environment(space), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    reckon(space, sent, program())


def test_a_writer_starts_during_a_repair(program, own_clickhouse, space, sent):
    """It drops the tables of the repair, which then changes nothing more."""
    fill(program, space, sent)
    lose(own_clickhouse, space, {(EVENTS, 0): 2, (COUNTERS, 0): 1, (COUNTERS, 2): 2})
    process = subprocess.Popen(
        [millrace_binary(), "repair"],
        env=environment(space, "repair::counted=sleep(10000)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: left_behind(space), 30, what="the repair to begin")
    # It is past the look at the group when the events are there.
    eventually(lambda: tables(space)[EVENTS] == 600, 20, what="the events to be added")
    writer = program("write", wait=False)
    eventually(lambda: not left_behind(space), 30, what="the writer to drop the tables")
    writer.kill()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, out + err
    assert "meanwhile" in err or "writers are at work" in err, err
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    reckon(space, sent, program())


@pytest.mark.parametrize("tables_lost", [(EVENTS, COUNTERS), (COUNTERS,)], ids=["both", "counters"])
def test_a_range_that_clickhouse_only_remembers(tables_lost, program, own_clickhouse, space, sent):
    """Nothing tells that it was stored but the token of its insert, for which ClickHouse drops it: the writer looks whether
    it is there, and goes on to another token."""
    fill(program, space, sent)
    lose(own_clickhouse, space, {(table, 3): 1 for table in tables_lost})
    forget_offsets(space, 30)
    started = program()
    reckon(space, sent, started)
    assert "inserting again" in started.log_text()


def test_killed_writer_and_lost_events(program, own_clickhouse, space, sent):
    """A claim whose events were stored and are lost: nothing is left of them but the token. A ClickHouse that is killed between
    noting the token and keeping the rows leaves the same."""
    door = program("serve")
    fill(program, space, sent, batches=2)
    victim = program("write", failpoints="writer::after_events=1*return", wait=False)
    before = {partition: len(parts_of(space, EVENTS, partition)) for partition in range(PARTITIONS)}
    sent.post_until_taken(door, make_events(100))
    assert victim.wait_end(30) == -signal.SIGKILL
    after = {partition: len(parts_of(space, EVENTS, partition)) for partition in range(PARTITIONS)}
    grown = [partition for partition in range(PARTITIONS) if after[partition] > before[partition]]
    assert grown
    lose(own_clickhouse, space, {(EVENTS, grown[0]): 1})
    started = program()
    reckon(space, sent, started)
    assert "inserting again" in started.log_text()


def test_events_without_keys_and_copies(program, own_clickhouse, space):
    """Hits without an identity are told by their place alone; a copy of a stored event is not stored again."""
    started = program()
    stop_merges(space, "hit")
    ids = [str(uuid.uuid4()) for _ in range(50)]
    now_ms = int(time.time() * 1000)
    expected = collections.Counter()
    for batch in range(6):
        hits = [{"timestamp": now_ms, "user": f"user {number % 7}", "action": "click"} for number in range(80)]
        hits += [{"timestamp": now_ms, "user": "copied", "action": "impression", "event_id": one} for one in ids]
        body = "".join(json.dumps(hit) + "\n" for hit in hits)
        assert started.post("/hits", body).status == 202
        wait_stored(space, kind="hit")
        expected["click"] += 80
    expected["impression"] = 50
    started.stop()
    # The first parts as well: the only ones with the events of which there are copies.
    paths = [parts_of(space, "hit_events", partition) for partition in range(PARTITIONS)]
    own_clickhouse.stop()
    # A partition may have one alone.
    for path in {paths[0][0], paths[0][-1], paths[1][0], paths[2][-1]}:
        shutil.rmtree(path)
    own_clickhouse.start()

    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    stored = space.store.rows(f"SELECT action, count() AS n FROM {space.database}.hit_events GROUP BY action")
    assert {row["action"]: row["n"] for row in stored} == expected
    counted = space.store.rows(
        f"SELECT sum(clicks) AS click, sum(impressions) AS impression FROM {space.database}.hit_counters"
    )
    assert counted == [dict(expected)]
    assert tell(space, "verify").returncode == 0
    again = program()
    check = again.get(f"/analytics?timestamp={now_ms}").text
    assert "clicks,480\nimpressions,50" in check


def test_interactions(program, own_clickhouse, space):
    """A kind whose table has another order, and projections that must be there for the events that are added too."""
    started = program()
    stop_merges(space, "interaction")
    session = str(uuid.uuid4())
    for batch in range(6):
        events = [
            {
                "session_id": session if number % 2 else str(uuid.uuid4()),
                "category": "page_interaction",
                "name": "pageview",
                "data": {"host": "www.example.org", "path": f"/{batch}/{number}"},
                "timestamp": "2021-01-25T18:20:42Z",
            }
            for number in range(10)
        ]
        assert started.post("/v2/events", "".join(json.dumps(one) + "\n" for one in events)).status == 202
        wait_stored(space, kind="interaction")
    pages = started.get(f"/v2/events?session_id={session}").json()["events"]
    assert len(pages) == 30
    started.stop()
    partition = pages[0]["partition"]
    lose(own_clickhouse, space, {("interaction_events", partition): 1, ("interaction_counters", partition): 2})
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "interaction: generation 1" in told.stdout
    assert tell(space, "verify").returncode == 0
    again = program()

    def shown():
        found = again.get(f"/v2/events?session_id={session}").json()["events"]
        places = [[{**one, "stored_at": None} for one in events] for events in (found, pages)]
        return places[0] == places[1]

    assert shown()
    counters = again.get("/v2/report").json()["counters"]
    assert [row["count"] for row in counters] == [60]


def test_another_program_in_the_group_is_refused(program, space, sent):
    fill(program, space, sent, batches=1)
    consumer = space.log.consumer(space.group)
    consumer.commit(offsets=[confluent_kafka.TopicPartition(space.topic, 0, 1)], asynchronous=False)
    consumer.close()
    told = repair(space)
    assert told.returncode == 1
    assert "was not made by this program" in told.stderr


def test_repair_of_nothing(program, space, sent):
    """A new installation, and one whose writer was killed at work."""
    door = program("serve")
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.count("nothing is missing") == 3
    victim = program("write", failpoints="writer::after_events=3*off->1*return")
    for _ in range(4):
        sent.post_until_taken(door, make_events(100))
    assert victim.wait_end(30) == -signal.SIGKILL
    told = repair(space)
    assert told.returncode == 0, told.stdout + told.stderr
    program("write")
    reckon(space, sent, door)
