"""The cache of stored keys: a writer that starts again reads it in place of ClickHouse, and never counts by it what is not so."""

import json
import random

import pytest
from harness import eventually
from once import SMALL_RANGES, Load, check_counts, make_events, reckon, run_command, wait_stored

EVENTS = 3_000
LOADED = "read the stored keys"
REFUSED = "the cache of seen keys cannot be used"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def program(millrace, cache):
    """Starts a `run` with the cache, which has loaded the keys of all partitions."""

    def start():
        started = millrace("run", settings={**SMALL_RANGES, "MILLRACE_WRITER_CACHE_DIR": str(cache)})
        eventually(lambda: len(said(started, LOADED)) >= 4, 30, what="the keys of 4 partitions to be loaded")
        return started

    return start


def said(program, message):
    """The log lines with this message, of the writer of captcha events."""
    lines = [json.loads(line) for line in program.log_text().splitlines() if message in line]
    return [line for line in lines if line["kind"] == "captcha"]


def loaded(program):
    """How many keys the program has at its start, and how many of them the cache had."""
    told = said(program, LOADED)
    return sum(line["keys"] for line in told), sum(line["cached"] for line in told)


def runs(cache):
    """The files of keys."""
    return [path for path in cache.rglob("*") if path.is_file() and path.name not in ("manifest", "lock")]


def test_a_restart_reads_the_cache(program, cache, space, sent):
    first = program()
    events = make_events(EVENTS)
    sent.post_until_taken(first, events)
    wait_stored(space)
    first.stop()
    assert sum(path.stat().st_size for path in runs(cache)) == 16 * EVENTS

    second = program()
    assert loaded(second) == (EVENTS, EVENTS)
    sent.post_until_taken(second, random.sample(events, 1_000) + make_events(100))
    reckon(space, sent, second)
    assert second.metric("millrace_events_stored_total") == 100
    # What lies behind the cache is read from ClickHouse.
    second.kill()
    third = program()
    assert loaded(third) == (EVENTS + 100, EVENTS)
    sent.post_until_taken(third, events)
    reckon(space, sent, third)
    assert third.metric("millrace_events_stored_total") == 0
    assert not said(third, REFUSED)


@pytest.mark.parametrize("damage", ["overwritten", "cut", "gone", "manifest"])
def test_a_damaged_cache_is_thrown_away(damage, program, cache, space, sent):
    first = program()
    events = make_events(EVENTS)
    sent.post_until_taken(first, events)
    wait_stored(space)
    first.stop()
    for path in cache.rglob("manifest") if damage == "manifest" else runs(cache):
        content = bytearray(path.read_bytes())
        if damage == "gone":
            path.unlink()
            continue
        content[random.randrange(len(content))] ^= 0x10
        path.write_bytes(content[:-1] if damage == "cut" else content)

    second = program()
    assert loaded(second) == (EVENTS, 0)
    assert len(said(second, REFUSED)) == 4
    sent.post_until_taken(second, events + make_events(100))
    reckon(space, sent, second)
    assert second.metric("millrace_events_stored_total") == 100
    second.stop()
    assert loaded(program()) == (EVENTS + 100, EVENTS + 100)


def test_events_that_were_deleted_are_new_again(program, space, sent):
    """Once the operator has said that they are gone: until then the writer stands still."""
    first = program()
    events = make_events(EVENTS)
    sent.post_until_taken(first, events)
    wait_stored(space)
    first.stop()
    table = f"{space.database}.captcha_events"
    space.store.query(f"ALTER TABLE {table} DELETE WHERE log_position % 10 = 0 SETTINGS mutations_sync = 2")
    left = space.store.value(f"SELECT count() FROM {table}")
    assert 0 < left < EVENTS

    short = {"MILLRACE_WRITER_CLAIM_AGE_MS_MAX": "3000", "MILLRACE_CLICKHOUSE_INSERT_MS_MAX": "2000"}
    told = run_command(space, "repair", settings=short)
    assert told.returncode == 1, told.stdout + told.stderr
    assert told.stdout.count("were deleted from among others") == 4, told.stdout

    second = program()
    assert loaded(second) == (left, 0)
    sent.post_until_taken(second, events)
    wait_stored(space)
    assert second.metric("millrace_events_stored_total") == EVENTS - left


def test_killed_at_random_with_a_cache(program, cache, space, sent):
    """Whatever a killed program leaves in its cache, and whatever becomes of that."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    doors = [program()]
    with Load(sent, doors, clients=3) as load:
        for round_ in range(5):
            load.wait_taken(dice.randint(5, 25))
            if round_ % 2:
                doors[0].stop()
            else:
                doors[0].kill()
            for path in runs(cache):
                if dice.random() < 0.1:
                    path.unlink()
            doors[0] = program()
        load.wait_taken(5)
    reckon(space, sent, doors[0])
    check_counts(space, sent, doors[0])
