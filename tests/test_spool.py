"""The spool: what the door takes while Kafka is away, on disk, and sends on when it is back.

Every test has a Kafka of its own to stop, and ends with every acknowledged event counted once.
"""

import contextlib
import subprocess

import hit
import interaction
import pytest
from harness import Space, environment_without_settings, eventually, millrace_binary
from once import SMALL_RANGES, Load, key_of, make_events, reckon, wait_stored

# The smallest spool that may be configured.
SPOOL_BYTES_MIN = 64 << 20


@pytest.fixture
def own_kafka(lent_kafka):
    """The module's, in place of one for each test."""
    return lent_kafka


@pytest.fixture
def spool(tmp_path):
    """The spool's folder, not made yet."""
    return tmp_path / "spool"


def settings(spool, **others):
    return {**SMALL_RANGES, "MILLRACE_SPOOL_DIR": str(spool), **others}


def segments(spool, kind="captcha"):
    return sorted((spool / kind).glob("*.spool"))


def takes_without_kafka(program, sent, events=1):
    """Waits until an event is acknowledged, at once, although Kafka is away."""
    eventually(lambda: sent.post(program, make_events(events), timeout_s=3) == 202, 30, what="an event in the spool")


def is_empty(program, spool):
    eventually(lambda: program.metric("millrace_spool_bytes") == 0, 30, what="an empty spool")
    assert not list(spool.glob("*/*.spool"))


def ready(program):
    answer = program.get("/health/ready")
    assert answer.status == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_kafka_away(how, own_kafka, own_kafka_space, millrace, sent, spool):
    """Kafka goes away under load and the program is ended meanwhile: events are taken all the same."""
    space = own_kafka_space
    doors = [millrace("run", space=space, settings=settings(spool))]
    with Load(sent, doors, clients=3) as load:
        load.wait_taken(20)
        assert not segments(spool)
        own_kafka.kill() if how == "killed" else own_kafka.pause()
        takes_without_kafka(doors[0], sent)
        load.wait_taken(30)
        eventually(lambda: ready(doors[0])["status"] == "degraded", 15, what="a degraded state")
        assert "bytes of events wait on disk" in doors[0].get("/health/ready").text
        # A process that starts while Kafka is away goes on where the one before it was cut off.
        doors[0].kill() if how == "killed" else doors[0].stop()
        assert segments(spool)
        doors[0] = millrace("run", space=space, settings=settings(spool), migrated=False)
        load.wait_taken(30)
        assert segments(spool) and doors[0].metric("millrace_spool_bytes", kind="captcha") > 0
        own_kafka.start() if how == "killed" else own_kafka.resume()
        load.wait_taken(30)
        is_empty(doors[0], spool)
        eventually(lambda: ready(doors[0])["status"] == "ready", 15, what="a ready state")
        load.wait_taken(20)
        # What comes now goes straight to Kafka.
        written = doors[0].metric("millrace_spool_events_written_total")
        load.wait_taken(20)
        assert doors[0].metric("millrace_spool_events_written_total") == written > 0
    reckon(space, sent, doors[0])


def test_events_without_a_key(own_kafka, own_kafka_space, millrace, sent, spool):
    """The process is killed between Kafka's acknowledgement and the removal of what it acknowledged, so that the same
    records are sent again: events that have no key of their own are counted once."""
    space = own_kafka_space
    program = millrace("run", space=space, settings=settings(spool), failpoints="spool::before_remove=return")
    own_kafka.pause()
    takes_without_kafka(program, sent)
    body = hit.ndjson([hit.event()])
    eventually(lambda: program.post("/hits", body).status == 202, 20, what="the spool of the hits")
    # The same again and again, in bodies and as queries, from one user: all of them are events of their own.
    one = hit.event(user="somebody", timestamp=hit.HOUR + hit.HOUR_MS)
    for _ in range(20):
        hit.post(program, [one] * 10)
    for _ in range(10):
        hit.hit(program, one)
    own_kafka.resume()
    assert program.wait_end(30) == -9
    assert segments(spool, "hit")
    before = sum(high for _, high in space.log.watermarks(space.topic_of("hit")))
    own_kafka.pause()
    program = millrace("run", space=space, settings=settings(spool), migrated=False)
    # What waits is told from the first answer on: who sees 0 may take the machine away.
    for kind in ("captcha", "hit"):
        lies = sum(segment.stat().st_size for segment in segments(spool, kind))
        assert program.metric("millrace_spool_bytes", kind=kind) == lies > 0
    own_kafka.resume()
    is_empty(program, spool)
    assert sum(high for _, high in space.log.watermarks(space.topic_of("hit"))) > before
    wait_stored(space, kind="hit")
    hit.becomes(program, hit.HOUR + hit.HOUR_MS, (1, 210, 0))
    reckon(space, sent, program)


def test_a_torn_last_write(own_kafka, own_kafka_space, millrace, sent, spool):
    """What a crash left half-written is passed over and told; all that was acknowledged is there."""
    space = own_kafka_space
    program = millrace("run", space=space, settings=settings(spool))
    own_kafka.pause()
    takes_without_kafka(program, sent)
    for _ in range(5):
        assert sent.post(program, make_events(100)) == 202
    program.kill()
    # The first half of a record, as a write that was cut short leaves it, with a length that is beyond the file.
    last = segments(spool)[-1]
    whole = last.read_bytes()
    with open(last, "ab") as file:
        file.write(whole[: len(whole) // 3])
        file.write(whole[:60])
    # A segment that was made and never written to, and one of which the disk has the size but not the bytes.
    (last.parent / "0000000000000900.spool").write_bytes(b"")
    (last.parent / "0000000000000901.spool").write_bytes(bytes(5000))
    program = millrace("run", space=space, settings=settings(spool), migrated=False)
    takes_without_kafka(program, sent)
    assert (last.parent / "0000000000000902.spool").exists()
    own_kafka.resume()
    is_empty(program, spool)
    assert "cut short" in program.log_text() and "LOST" not in program.log_text()
    assert program.metric("millrace_spool_damaged_bytes_total") == 0
    reckon(space, sent, program)


def test_records_that_kafka_refuses(own_kafka, own_kafka_space, millrace, sent, spool):
    """They wait, told by name, until Kafka takes them; what lies behind them and what comes does not wait with them."""
    space = own_kafka_space
    program = millrace("run", space=space, settings=settings(spool))
    usual = space.log.topic_settings(space.topic)["max.message.bytes"]
    space.log.set_topic(space.topic, **{"max.message.bytes": "5000"})
    own_kafka.pause()
    takes_without_kafka(program, sent)
    # A segment of large records, between two of small ones.
    large = make_events(5000)
    for events in (large, make_events(1)):
        program.kill()
        program = millrace("run", space=space, settings=settings(spool), migrated=False)
        assert sent.post(program, events) == 202
    program.kill()
    own_kafka.resume()
    program = millrace("run", space=space, settings=settings(spool), migrated=False)
    large_keys = {key_of(event) for event in large}

    def others_are_stored():
        rows = space.store.rows(f"SELECT type, toString(correlation_id) AS id FROM {space.database}.captcha_events")
        stored = {(row["type"], row["id"]) for row in rows}
        assert sent.acknowledged.keys() - stored == large_keys
        return True

    eventually(others_are_stored, 30, what="all but the large ones in the store")
    for _ in range(3):
        takes_without_kafka(program, sent)
    eventually(others_are_stored, 30, what="what came meanwhile in the store")
    assert "the log is there and does not take records of the spool" in program.log_text()
    eventually(lambda: "some of which cannot be sent" in program.get("/health/ready").text, 5, what="a reason")
    space.log.set_topic(space.topic, **{"max.message.bytes": usual})
    is_empty(program, spool)
    reckon(space, sent, program)


def test_a_full_spool(own_kafka, own_kafka_space, millrace, sent, spool):
    """It is bounded: then events are refused, early, until Kafka has taken some."""
    space = own_kafka_space
    limits = {"MILLRACE_SPOOL_BYTES_MAX": str(SPOOL_BYTES_MIN), "MILLRACE_INTERACTION_UNKNOWN_TYPES": "accept"}
    program = millrace("run", space=space, settings=settings(spool, **limits))
    own_kafka.pause()
    takes_without_kafka(program, sent)
    body = interaction.ndjson([interaction.event(name="large", data={"text": "x" * 500_000}) for _ in range(4)])
    taken = tried = 0

    def is_full():
        nonlocal taken, tried
        tried += 4
        # Refused before its body is read, which may show as a connection that was closed.
        with contextlib.suppress(ConnectionError):
            if program.post("/v2/events", body).status == 202:
                taken += 4
        answer = program.post("/v2/events", "")
        return answer if "the spool is full" in answer.text else None

    answer = eventually(is_full, 60, what="a full spool")
    assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
    held = sum(segment.stat().st_size for segment in spool.glob("*/*.spool"))
    assert SPOOL_BYTES_MIN * 0.9 < held <= SPOOL_BYTES_MIN * 1.01
    own_kafka.resume()
    is_empty(program, spool)
    assert program.post("/v2/events", body).status == 202
    wait_stored(space, kind="interaction")
    count = program.get("/v2/report?name=large").json()["counters"][0]["count"]
    # Some of a refused body may have found room.
    assert taken + 4 <= count <= tried + 4
    reckon(space, sent, program)


def test_a_folder_that_cannot_be_used(space, millrace, tmp_path, spool):
    """Another process has it, or it cannot be written: the program says so and does not start."""
    program = millrace("run", settings=settings(spool))

    def tried(folder, *arguments):
        return subprocess.run(
            [millrace_binary(), *arguments],
            env={
                **environment_without_settings(),
                **space.settings(),
                "MILLRACE_HTTP_LISTEN": "127.0.0.1:0",
                "MILLRACE_SPOOL_DIR": str(folder),
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    second = tried(spool, "serve")
    assert second.returncode == 1 and "in use by another millrace" in second.stderr, second
    # A process that only stores has no use for it.
    told = tried(spool, "check", "--offline")
    assert told.returncode == 0 and "is in use by a millrace" in told.stdout, told
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "below"):
        third = tried(folder, "serve")
        assert third.returncode == 1 and "spool.dir" in third.stderr and str(folder) in third.stderr, third
        told = tried(folder, "check", "--offline")
        assert told.returncode == 1 and str(folder) in told.stdout, told
    program.stop()
    told = tried(spool, "check", "--offline")
    assert told.returncode == 0 and "spool" in told.stdout, told


def test_events_for_another_log(own_kafka, own_kafka_space, millrace, sent, spool):
    """What waits for one topic is not sent to another."""
    space = own_kafka_space
    program = millrace("run", space=space, settings=settings(spool))
    own_kafka.pause()
    takes_without_kafka(program, sent)
    program.stop()
    own_kafka.resume()
    other = Space(space.servers)
    program = millrace("run", space=other, settings=settings(spool), wait=False)
    assert program.wait_end(20) == 1
    assert space.topic in program.log_text() and other.topic in program.log_text()
    other.remove_database()
    program = millrace("run", space=space, settings=settings(spool))
    is_empty(program, spool)
    reckon(space, sent, program)
