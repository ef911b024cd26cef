"""What the tests of "every event is counted once" share: a model of what was sent, a load, and the reckoning at the end.

- `Sent`: what the test's own client knows: the keys that were acknowledged, and those whose answer never came.
- `Load`: clients that post events, send again what was refused, and repeat what was taken before.
- `reckon`: waits until everything in the log is stored, then compares report, stored rows, ledger and commits with `Sent`.
- `Proxy` (of scripts/lib): stands between the program and a server, to cut the connection, or to swallow an answer.
"""

import collections
import http.client
import json
import random
import subprocess
import threading
import time
import uuid

from harness import environment_without_settings, eventually, millrace_binary
from tcp_proxy import Proxy  # noqa: F401: for the tests

# Small ranges that close early, so that a short test sees many of them. A claim lives 10 s, an insert 5 s.
SMALL_RANGES = {
    "MILLRACE_KAFKA_BATCH_EVENTS_MAX": "500",
    "MILLRACE_WRITER_RANGE_EVENTS_MAX": "2000",
    "MILLRACE_WRITER_RANGE_AGE_MS": "50",
    "MILLRACE_WRITER_CLAIM_AGE_MS_MAX": "10000",
    "MILLRACE_CLICKHOUSE_INSERT_MS_MAX": "5000",
    "MILLRACE_WRITER_BACKOFF_MS_MAX": "1000",
}
SITES = [str(uuid.UUID(int=(0x6B1E << 112) + site)) for site in range(7)]
DAYS = ["2021-01-25", "2021-01-26", "2024-02-29"]
TYPES = ["serve", "solve"]
SETTLED_S = 40
# Between a refusal and the next try: less than a client is asked to wait, so that a test sees many.
PAUSE_REFUSED_S = 0.1


def make_events(count):
    """Events with new keys; site, day and type follow from the key, so that a copy of it is the same event."""
    return [event_of(uuid.uuid4()) for _ in range(count)]


def event_of(correlation_id):
    number = correlation_id.int
    return {
        "time": f"{DAYS[number % 3]}T10:{number % 60:02}:00.{number % 1000000:06}",
        "type": TYPES[number % 2],
        "correlation_id": str(correlation_id),
        "site_id": SITES[number % 7],
    }


def key_of(event):
    return event["type"], event["correlation_id"]


def lines(events):
    return "".join(json.dumps(event) + "\n" for event in events)


class Sent:
    """What a client knows of what it sent. Safe to use from several threads."""

    def __init__(self):
        self.lock = threading.Lock()
        self.acknowledged = {}
        self.unsure = {}

    def taken(self, events):
        with self.lock:
            for event in events:
                self.acknowledged[key_of(event)] = event
                self.unsure.pop(key_of(event), None)

    def not_answered(self, events):
        with self.lock:
            self.unsure |= {key_of(event): event for event in events if key_of(event) not in self.acknowledged}

    def some(self, count):
        """Events that were acknowledged before, to be sent again."""
        with self.lock:
            known = list(self.acknowledged.values())
        return random.sample(known, min(count, len(known)))

    def post(self, door, events, timeout_s=15):
        """Sends the events in one request and notes what came of it. Returns the status, 0 when no answer came."""
        try:
            answer = door.post("/v1/events", lines(events), timeout_s=timeout_s)
        except (OSError, http.client.HTTPException):
            self.not_answered(events)
            return 0
        if answer.status == 202:
            told = answer.json()
            assert told["accepted"] == len(events) and told["rejected"] == 0, told
            self.taken(events)
        else:
            assert answer.status == 503, f"{answer.status}: {answer.text}"
            assert int(answer.headers["Retry-After"]) >= 1
            self.not_answered(events)
        return answer.status

    def post_until_taken(self, door, events, deadline_s=30):
        eventually(lambda: self.post(door, events) == 202, deadline_s, what="an acknowledgement")


class Clients:
    """Threads that send for as long as the block lasts: each calls `work` with its arguments, which returns once `stopping`
    is set. An error in one ends it, and fails the test at the block's end. `statuses` counts the answers."""

    def __init__(self, each):
        self.statuses = collections.Counter()
        self.errors = []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=arguments, daemon=True) for arguments in each]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
            assert kind or not thread.is_alive(), "a client hangs"
        if not kind:
            assert not self.errors, self.errors

    def _run(self, *arguments):
        try:
            self.work(*arguments)
        except Exception as error:  # noqa: BLE001: shown by the test
            self.errors.append(error)

    def taken(self):
        """Requests acknowledged so far."""
        return self.statuses[202]

    def wait_taken(self, more, deadline_s=30):
        """Returns once so many more requests were acknowledged."""
        goal = self.taken() + more
        eventually(lambda: self.errors or self.taken() >= goal, deadline_s, what=f"{more} more acknowledged requests")


class Load(Clients):
    """Clients that post until they are stopped. `doors` is a list that may change meanwhile."""

    def __init__(self, sent, doors, *, clients=2, batch=200, pause_s=0.02, resend=True):
        super().__init__([()] * clients)
        self.sent = sent
        self.doors = doors
        self.batch = batch
        self.pause_s = pause_s
        self.resend = resend
        self.slowest_s = 0.0

    def work(self):
        pending = None
        while not self.stopping.is_set():
            if pending is None:
                pending = make_events(self.batch)
                # Copies within the request, and of what was taken before.
                pending += random.sample(pending, self.batch // 20) + self.sent.some(self.batch // 20)
                random.shuffle(pending)
            began = time.monotonic()
            status = self.sent.post(random.choice(self.doors), pending)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            self.statuses[status] += 1
            if status == 202 or not self.resend:
                pending = None
            self.stopping.wait(self.pause_s if status == 202 else max(self.pause_s, PAUSE_REFUSED_S))


def stored_to(space, kind="captcha"):
    """For each partition of each generation, the offset after the last one stored."""
    rows = space.store.rows(
        f"SELECT log_generation AS g, log_partition AS p, max(range_last) + 1 AS next FROM {space.database}.{kind}_counters"
        " WHERE log_generation > 0 GROUP BY g, p"
    )
    return {(row["g"], row["p"]): row["next"] for row in rows}


def wait_stored(space, *, kind="captcha", generation=1, deadline_s=SETTLED_S, starts=None):
    """Waits until everything that is in the log now is stored and committed; returns how many seconds that took."""
    began = time.monotonic()
    log, topic = space.log, space.topic_of(kind)
    watermarks = log.watermarks(topic)
    starts = starts or [low for low, _ in watermarks]
    ends = [high for _, high in watermarks]

    def stored():
        found = stored_to(space, kind)
        nexts = [found.get((generation, partition), starts[partition]) for partition in range(len(ends))]
        assert nexts == ends, f"stored up to {nexts} of {ends}"
        return True

    eventually(stored, deadline_s, what="everything in the log to be stored")

    def committed():
        found = log.committed(space.group_of(kind), topic)
        for end, start, commit in zip(ends, starts, found, strict=True):
            # Before anything was stored of a partition there may be no commit yet.
            assert commit or end == start, found
            if commit:
                assert commit[0] == end and "pending" not in commit[1], (found, ends)
        return True

    eventually(committed, 15, what="the end of the log to be committed")
    return time.monotonic() - began


def read_report(door):
    """The whole report: counts by day, site and type, without zeros."""
    answer = door.get("/v1/report?limit=100000")
    assert answer.status == 200, answer.text
    counted = collections.Counter()
    for row in answer.json()["counters"]:
        day = row["time"].removesuffix("T00:00:00")
        for column, type_ in (("served", "serve"), ("solved", "solve")):
            if row[column]:
                counted[day, row["site_id"], type_] += row[column]
    return counted


def count(events):
    return collections.Counter((event["time"][:10], event["site_id"], event["type"]) for event in events)


def run_command(space, *arguments, settings=None):
    """A command of the program, run to its end."""
    return subprocess.run(
        [millrace_binary(), *arguments],
        env={**environment_without_settings(), **space.settings(), **(settings or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def check_stored(space, sent):
    """Compares what is stored with what was sent: acknowledged keys exactly once, the others at most once; each place
    in the log once. Returns the events that must be counted."""
    table = f"{space.database}.captcha_events"
    stored = space.store.query(f"SELECT type, correlation_id FROM {table} FORMAT TSV")
    keys = collections.Counter(tuple(line.split("\t")) for line in stored.splitlines())
    twice = [key for key, copies in keys.items() if copies > 1]
    assert not twice, f"{len(twice)} events are stored more than once: {twice[:5]}"
    lost = sent.acknowledged.keys() - keys.keys()
    assert not lost, f"{len(lost)} acknowledged events are not stored: {sorted(lost)[:5]}"
    known = sent.acknowledged | sent.unsure
    strange = keys.keys() - known.keys()
    assert not strange, f"{len(strange)} events are stored that were never sent: {sorted(strange)[:5]}"
    shared = space.store.value(
        f"SELECT toInt64(count()) - toInt64(uniqExact(log_generation, log_partition, log_offset, log_position)) FROM {table}"
    )
    assert shared == 0, f"{shared} rows share their place in the log with another"
    return [known[key] for key in keys]


def check_counts(space, sent, door):
    """`check_stored`, the report and `millrace verify`, for what is stored by now."""
    expected = count(check_stored(space, sent))
    found = read_report(door)
    assert found == expected, f"the report differs: {dict(found - expected)} too many, {dict(expected - found)} missing"
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr


def forget_offsets(space, deadline_s=20):
    """Deletes the group with its offsets, as soon as Kafka takes it for empty."""
    log = space.log

    def deleted():
        try:
            log.admin.delete_consumer_groups([space.group])[space.group].result(10)
        except Exception as error:  # noqa: BLE001: the group still has a member that was killed
            raise AssertionError(str(error)) from error
        return True

    eventually(deleted, deadline_s, what="the group to be deleted")


def reckon(space, sent, door, **options):
    """Everything stored, everything counted, nothing twice. Returns how long storing what was left took, in seconds."""
    took_s = wait_stored(space, **options)
    check_counts(space, sent, door)
    return took_s
