"""What loses or doubles events in silence elsewhere: found, told, and stopped before it does.

Beside these: a topic created again, partitions added, records deleted before they were stored, a ClickHouse that lost its
tail and records that cannot be read (test_log_identity.py), and forgotten offsets (test_exactly_once.py).
"""

import pytest
from harness import OwnKafka, Servers, Space, eventually
from once import SMALL_RANGES, Load, Proxy, make_events, reckon, run_command, stored_to, wait_stored
from test_log_identity import PARTITIONS, assert_refused, halted


@pytest.fixture
def other_kafka(tmp_path):
    """A second Kafka, started."""
    own = OwnKafka(tmp_path / "other-kafka")
    yield own.start()
    own.stop()


@pytest.fixture
def own_space(servers, own_kafka):
    """A space on a Kafka of the test's own and the run's ClickHouse."""
    own = Space(Servers(own_kafka.brokers, servers.clickhouse_url, servers.clickhouse_user, servers.clickhouse_password))
    yield own
    own.remove_database()


def test_another_cluster_under_the_same_name(millrace, own_space, other_kafka, sent):
    """The address leads to another cluster, whose topic has the same name: its offsets mean nothing here."""
    first = millrace("run", settings=SMALL_RANGES, space=own_space)
    sent.post_until_taken(first, make_events(400))
    reckon(own_space, sent, first)
    first.stop()
    moved = Space(Servers(other_kafka.brokers, *list(vars(own_space.servers).values())[1:]), own_space.name, migrated=True)
    for kind in ("captcha", "hit", "interaction"):
        moved.log.create_topic(moved.topic_of(kind), PARTITIONS)
    for subcommand in ("run", "write", "serve"):
        ended = millrace(subcommand, settings=SMALL_RANGES, space=moved, wait=False)
        assert_refused(ended, "is now in kafka cluster", "migrate --new-generation")


def test_the_log_lost_its_tail(millrace, own_space, own_kafka, sent):
    """The log's end lies before what is stored: the partition stands still, rather than take new records for stored ones."""
    space = own_space
    first = millrace("run", settings=SMALL_RANGES, space=space)
    for _ in range(5):
        sent.post_until_taken(first, make_events(400))
    reckon(space, sent, first)
    first.stop()
    high = space.log.watermarks(space.topic)[0][1]
    own_kafka.kill()
    folder = own_kafka.server.home / "kafka" / "data" / f"{space.topic}-0"
    (segment,) = folder.glob("*.log")
    with open(segment, "r+b") as log:
        log.truncate(segment.stat().st_size // 2)
    # What was derived from the whole segment is made anew.
    for derived in (*folder.glob("*.index"), *folder.glob("*.timeindex"), *folder.glob("*.snapshot")):
        derived.unlink()
    own_kafka.start()
    assert space.log.watermarks(space.topic)[0][1] < high

    writer = millrace("write", settings=SMALL_RANGES, space=space, wait=False)
    eventually(lambda: halted(writer) == 1, 30, what="a halted partition")
    (missing,) = writer.get("/health/ready").json()["missing"]
    assert missing["name"] == "captcha partition 0" and "lost its tail" in missing["reason"], missing
    # New records come to lie at offsets that are stored already; none of them is passed over in silence.
    door = millrace("serve", settings=SMALL_RANGES, space=space)
    sent.post_until_taken(door, make_events(2000))
    assert space.log.watermarks(space.topic)[0][1] > 0
    assert halted(writer) == 1
    writer.stop()

    told = run_command(space, "migrate", "--new-generation")
    assert told.returncode == 0, told.stderr
    writer = millrace("write", settings=SMALL_RANGES, space=space)
    starts = space.store.value(f"SELECT start_offsets FROM {space.database}.captcha_logs WHERE generation = 2")
    reckon(space, sent, door, generation=2, starts=starts)


@pytest.mark.parametrize("running", [False, True])
def test_the_deduplication_window_shrunk(running, millrace, space, sent):
    """A ClickHouse that forgets tokens would take a repeated insert for a new one: the writer refuses to go on."""
    writer = millrace("run", settings=SMALL_RANGES)
    sent.post_until_taken(writer, make_events(100))
    reckon(space, sent, writer)
    if not running:
        writer.stop()
    table = f"{space.database}.captcha_events"
    space.store.query(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 2")
    told = run_command(space, "check")
    assert told.returncode == 1 and "too few to recognise a repeated one" in told.stdout, told.stdout
    ended = writer if running else millrace("run", settings=SMALL_RANGES, wait=False)
    assert_refused(ended, "too few to recognise a repeated one", "MODIFY SETTING non_replicated_deduplication_window")
    space.store.query(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 100000")
    again = millrace("run", settings=SMALL_RANGES)
    sent.post_until_taken(again, make_events(100))
    reckon(space, sent, again)


def test_the_window_overrun_by_a_zombie(millrace, space, sent):
    """An insert hangs on its way to ClickHouse until more inserts than it remembers have come: the claim has grown too
    old for it, and whoever sent it does not send it again under that claim."""
    proxy = Proxy(space.servers.clickhouse_url.removeprefix("http://"))
    settings = {**SMALL_RANGES, "MILLRACE_WRITER_POLL_MS_MAX": "11000"}
    door = millrace("serve", settings=settings)
    zombie = millrace("write", settings={**settings, "MILLRACE_CLICKHOUSE_URL": f"http://{proxy.address}"})
    with Load(sent, [door], clients=1) as load:
        load.wait_taken(10)
        # Its inserts are on their way, it stands still, and others take over.
        proxy.freeze()
        load.wait_taken(5)
        zombie.pause()
        successor = millrace("write", settings=settings)
        before = sum(stored_to(space).values())
        eventually(lambda: sum(stored_to(space).values()) > before + 100, 60, what="storing by the successor")
        proxy.thaw()
        zombie.resume()
        load.wait_taken(20)
    reckon(space, sent, door)
    assert successor.is_running() and zombie.is_running()
    proxy.close()


def test_two_installations_in_one_group(millrace, servers, space, sent):
    """Another database, the same Kafka and group, by mistake: what it is given stands still at it and says so, and is
    stored where it belongs once the mistake is mended."""
    first = millrace("run", settings=SMALL_RANGES)
    sent.post_until_taken(first, make_events(400))
    wait_stored(space)
    mistaken = Space(servers, space.name)
    database = f"{space.database}_mistaken"
    settings = {**SMALL_RANGES, "MILLRACE_CLICKHOUSE_DATABASE": database}
    told = run_command(OtherDatabase(mistaken, database), "migrate")
    assert told.returncode == 0, told.stderr
    try:
        second = millrace("write", settings=settings, wait=False)
        eventually(lambda: halted(second) == PARTITIONS // 2, 30, what="halted partitions")
        assert "the program is connected to another database" in second.get("/health/ready").text
        sent.post_until_taken(first, make_events(400))
        assert servers.store.value(f"SELECT count() FROM {database}.captcha_events") == 0
        second.stop()
        reckon(space, sent, first)
    finally:
        servers.store.query(f"DROP DATABASE IF EXISTS `{database}`")


def test_two_installations_that_begin_together(millrace, servers, space, sent):
    """Two databases, one Kafka and group, and an empty log: each is given half of the partitions and finds nothing wrong in
    them. Both say so as soon as one has stored something, and what went to the wrong place is brought home."""
    database = f"{space.database}_mistaken"
    for used in (space, OtherDatabase(space, database)):
        told = run_command(used, "migrate")
        assert told.returncode == 0, told.stderr
    space.migrated = True
    try:
        settings = [SMALL_RANGES, {**SMALL_RANGES, "MILLRACE_CLICKHOUSE_DATABASE": database}]
        first, second = (millrace("write", settings=one) for one in settings)
        for writer in (first, second):
            eventually(lambda: is_given(writer, PARTITIONS // 2), 30, what="half of the partitions")  # noqa: B023
        door = millrace("serve", settings=SMALL_RANGES)
        sent.post_until_taken(door, make_events(400))
        for writer in (first, second):
            eventually(lambda: notices(writer), 20, what="a word of it")  # noqa: B023
        split = [servers.store.value(f"SELECT count() FROM {name}.captcha_events") for name in (space.database, database)]
        assert 0 < split[0] < 400 and sum(split) == 400, split
        second.stop()
        # The first one is given what the other one had, finds that it has nothing of it, and waits for the operator.
        eventually(lambda: halted(first) == PARTITIONS // 2, 30, what="halted partitions")
        first.stop()
        told = run_command(space, "repair", settings=SMALL_RANGES)
        assert told.returncode == 0, told.stdout + told.stderr
        first = millrace("write", settings=SMALL_RANGES)
        sent.post_until_taken(door, make_events(400))
        reckon(space, sent, door)
        eventually(lambda: not notices(first), 20, what="silence again")
    finally:
        servers.store.query(f"DROP DATABASE IF EXISTS `{database}`")


def is_given(writer, count):
    text = writer.get("/metrics").text
    return sum(line.startswith('millrace_seen_keys{kind="captcha"') for line in text.splitlines()) == count


def notices(writer):
    answer = writer.get("/health/ready")
    return answer.status == 503 and "another installation" in answer.text


class OtherDatabase:
    """A space whose settings name another database."""

    def __init__(self, space, database):
        self.space, self.database = space, database

    def settings(self):
        return {**self.space.settings(), "MILLRACE_CLICKHOUSE_DATABASE": self.database}
