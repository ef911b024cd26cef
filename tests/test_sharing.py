"""Several writers share the partitions: they come, go, and fall silent without knowing that others took over."""

import pytest
from harness import eventually
from once import SMALL_RANGES, Load, reckon

PARTITIONS = 4
PROTOCOLS = ["consumer", "classic"]


@pytest.fixture
def door(millrace):
    return millrace("serve", settings=SMALL_RANGES)


@pytest.fixture
def writer(millrace):
    """Starts a `write` of a protocol."""

    def start(protocol="consumer", **options):
        settings = {
            **SMALL_RANGES,
            "MILLRACE_KAFKA_GROUP_PROTOCOL": protocol,
            "MILLRACE_WRITER_SESSION_MS": "6000",
            **options.pop("settings", {}),
        }
        return millrace("write", settings=settings, **options)

    return start


def served(program):
    """The partitions that a writer stores."""
    text = program.get("/metrics").text
    return {line.split("}")[0] for line in text.splitlines() if line.startswith('millrace_seen_keys{kind="captcha"')}


def wait_served(program, count, deadline_s=30):
    eventually(lambda: len(served(program)) == count, deadline_s, what=f"{count} partitions at one writer")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stopped_past_its_membership(protocol, door, writer, space, sent):
    """SIGSTOP until another one has taken over, then SIGCONT; and the same with the roles changed."""
    one, other = writer(protocol), writer(protocol)
    with Load(sent, [door]) as load:
        wait_served(one, PARTITIONS // 2)
        wait_served(other, PARTITIONS // 2)
        for silent, awake in ((one, other), (other, one)):
            silent.pause()
            wait_served(awake, PARTITIONS)
            load.wait_taken(10)
            silent.resume()
            # It learns that it was left out, and is given its share again.
            wait_served(silent, PARTITIONS // 2)
            wait_served(awake, PARTITIONS // 2)
            load.wait_taken(10)
    reckon(space, sent, door)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_stopped_between_claim_and_insert(protocol, door, writer, space, sent):
    """What the silent one had claimed is stored by its successor; its own insert comes late and must count for nothing."""
    # Longer than others need to take over, so that the insert follows at once when it goes on.
    silent = writer(
        protocol,
        failpoints="writer::after_claim=8*off->4*sleep(6000)",
        settings={"MILLRACE_WRITER_CLAIM_AGE_MS_MAX": "40000", "MILLRACE_WRITER_RANGE_EVENTS_MAX": "20000"},
    )
    with Load(sent, [door]) as load:

        def asleep():
            first, second = space.log.committed(space.group, space.topic), space.log.committed(space.group, space.topic)
            return [place for place in first if place and "pending" in place[1] and place in second]

        wait_served(silent, PARTITIONS)
        eventually(lambda: len(asleep()) >= 2, 20, what="claims whose insert is held up")
        silent.pause()
        claimed = asleep()
        assert claimed
        successor = writer(protocol)
        wait_served(successor, PARTITIONS)
        load.wait_taken(10)
        silent.resume()
        wait_served(silent, PARTITIONS // 2)
        load.wait_taken(10)
    reckon(space, sent, door)
    # It did send what it had claimed.
    assert "took a partition over" in silent.log_text()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_join_and_leave(protocol, door, writer, space, sent):
    """Writers come and go in order (SIGTERM) under load."""
    with Load(sent, [door]) as load:
        writers = [writer(protocol)]
        wait_served(writers[0], PARTITIONS)
        for _ in range(2):
            writers.append(writer(protocol))
            wait_served(writers[-1], PARTITIONS // 2)
            writers.append(writer(protocol))
            eventually(lambda: served(writers[-1]), 30, what="a share for the third writer")
            load.wait_taken(5)
            writers.pop(0).stop()
            writers.pop(0).stop()
            wait_served(writers[0], PARTITIONS)
            load.wait_taken(5)
    reckon(space, sent, door)
