"""Says whether what is stored and reported is what the clients know. It shares no code with the program.

In go the ledger of what was sent, the rows of the events' tables, and the reports as the door gives them; out come
differences, each a line that names the keys. It holds that

- every event of an acknowledged upload is stored once,
- no event is stored twice, and no two rows have the same place in the log,
- nothing is stored that was never sent whole, and what is stored says what was sent,
- the reports are what the stored events add up to, per site and day, hour and user, day and type.
"""

import collections
import itertools
import json
import uuid

from chaos_events import ACKNOWLEDGED, HALF, HOUR, HOUR_MS, KINDS, UNSURE, unscramble

SHOWN_MAX = 10
PAGE_ROWS = 50_000

PLACE = "log_generation, log_partition, log_offset, log_position"
# What identifies an event, then what it counts as; the place first.
ROWS = {
    "captcha": "correlation_id, type, toString(toDate(time)), toString(site_id), '', ''",
    "hit": "event_id, event_id_origin, user, action, toString(toUnixTimestamp(toStartOfHour(timestamp, 'UTC')) * 1000), ''",
    "interaction": "event_id, event_id_origin, path, category, name, toString(toDate(timestamp))",
}


class Differences:
    """Lines of what is wrong; of each sort only the first ones are shown, and all are counted."""

    def __init__(self):
        self.found = collections.defaultdict(list)
        self.counts = collections.Counter()

    def add(self, sort, what):
        self.counts[sort] += 1
        if len(self.found[sort]) < SHOWN_MAX:
            self.found[sort].append(what)

    def lines(self):
        for sort, count in self.counts.items():
            yield f"{count} {sort}"
            yield from (f"    {what}" for what in self.found[sort])
            if count > SHOWN_MAX:
                yield f"    ... and {count - SHOWN_MAX} more"


def stored_rows(store, database, kind):
    """The rows of a kind's events in the order of the log: their place, and texts as `ROWS` has them."""
    said = store.query(
        f"SELECT {PLACE}, {ROWS[kind]} FROM {database}.{kind}_events ORDER BY {PLACE} FORMAT TSV", timeout_s=600
    )
    for line in said.splitlines():
        *place, first, second, third, fourth, fifth, sixth = line.split("\t")
        yield tuple(map(int, place)), (first, second, third, fourth, fifth, sixth)


class Oracle:
    """`take` all stored rows of all kinds, then `finish`, then compare the reports."""

    def __init__(self, ledger):
        self.ledger = ledger
        self.differences = Differences()
        # For each batch a number whose bits are the positions that are stored.
        self.stored = collections.Counter()
        self.rows = collections.Counter()
        self.unsure_sent = 0
        self.unsure_stored = 0
        self.captchas = collections.Counter()
        self.hits = collections.defaultdict(lambda: (set(), collections.Counter()))
        self.interactions = collections.Counter()

    def take(self, kind, rows):
        """The stored rows of a kind, by their place in the log."""
        last = None
        for place, texts in rows:
            self.rows[kind] += 1
            if place == last:
                self.differences.add("rows that share their place in the log with another", f"{kind} {place}")
            last = place
            self._take_one(kind, place, texts)

    def _take_one(self, kind, place, texts):
        number, counted = _read(kind, texts)
        found = None if number is None else self.ledger.find(kind, number)
        where = f"{kind} at {place}: {' '.join(texts).strip()}"
        if found is None:
            self.differences.add("events stored that were never made", where)
            return
        batch, position = found
        event = self.ledger.event(batch, position)
        name = f"{kind} {event.identity} (batch {batch.number}, {position}) at {place}"
        if self.stored[batch.number] >> position & 1:
            self.differences.add("events stored twice", name)
            return
        self.stored[batch.number] |= 1 << position
        if batch.state == HALF:
            self.differences.add("events stored of which only a part was ever sent", name)
        if counted != event.counted:
            self.differences.add("events stored with other values", f"{name}: {counted}, sent {event.counted}")
        self._count(kind, event)

    def _count(self, kind, event):
        if kind == "captcha":
            self.captchas[event.counted] += 1
        elif kind == "interaction":
            self.interactions[event.counted] += 1
        else:
            hour, user, action = event.counted
            users, actions = self.hits[hour]
            users.add(user)
            actions[action] += 1

    def finish(self):
        """After the last row: whether anything acknowledged is missing."""
        for batch in self.ledger.batches:
            stored = self.stored[batch.number]
            if batch.state == UNSURE:
                self.unsure_sent += batch.size
                self.unsure_stored += stored.bit_count()
            if batch.state != ACKNOWLEDGED:
                continue
            for position in range(batch.size) if stored.bit_count() < batch.size else ():
                if not stored >> position & 1:
                    event = self.ledger.event(batch, position)
                    name = f"{batch.kind} {event.identity} (batch {batch.number}, {position})"
                    self.differences.add("events acknowledged and not stored", name)

    def compare(self, what, expected, found):
        """Two counts by name, either way."""
        for key in sorted(expected.keys() | found.keys(), key=str):
            if expected.get(key, 0) != found.get(key, 0):
                wrong = f"{key}: {found.get(key, 0)}, and {expected.get(key, 0)} are stored"
                self.differences.add(f"differences in {what}", wrong)

    def check_reports(self, get):
        """`get` gives the text of an answer with status 200 for a path of the door."""
        self.compare("the report of captchas", self.captchas, read_captchas(get))
        self.compare("the report of interactions", self.interactions, read_interactions(get))
        # An hour on either side, too, where nothing must be.
        hours = set(self.hits) | {HOUR - HOUR_MS} | {max(self.hits, default=HOUR) + HOUR_MS}
        expected = {
            hour: (len(users), actions["click"], actions["impression"])
            for hour, (users, actions) in ((hour, self.hits.get(hour, (set(), collections.Counter()))) for hour in hours)
        }
        self.compare("the reports of hits", expected, {hour: read_hits(get, hour) for hour in hours})

    def agrees(self):
        return not self.differences.counts


def _read(kind, texts):
    """The number that a stored row claims, and what it counts as."""
    first, second, third, fourth, fifth, sixth = texts
    if kind == "captcha":
        number = unscramble(uuid.UUID(first).int)
        # Both events of a captcha carry the even number.
        return (None if number & 1 else number | (second == "solve")), (third, fourth, second)
    counted = (int(fifth), third, fourth) if kind == "hit" else (sixth, fourth, fifth)
    if second == "sent":
        return unscramble(uuid.UUID(first).int), counted
    text = third.removeprefix("/")
    if second != "made" or not text.startswith("keyed "):
        return None, counted
    return int(text.removeprefix("keyed "), 16), counted


def pages(get, path, rows):
    """The rows of all pages of a report."""
    cursor = ""
    for _ in itertools.count():
        answer = json.loads(get(f"{path}?limit={PAGE_ROWS}{cursor}"))
        yield from answer[rows]
        if not answer.get("next"):
            return
        cursor = f"&cursor={answer['next']}"


def read_captchas(get):
    counted = collections.Counter()
    for row in pages(get, "/v1/report", "counters"):
        for column, type_ in (("served", "serve"), ("solved", "solve")):
            if row[column]:
                counted[row["time"].removesuffix("T00:00:00"), row["site_id"], type_] += row[column]
    return counted


def read_interactions(get):
    counted = collections.Counter()
    for row in pages(get, "/v2/report", "counters"):
        counted[row["time"].removesuffix("T00:00:00"), row["category"], row["name"]] += row["count"]
    return counted


def read_hits(get, hour):
    """Unique users, clicks, impressions."""
    return tuple(int(line.partition(",")[2]) for line in get(f"/analytics?timestamp={hour}").splitlines())


def judge(ledger, store, database, get):
    """All of it, for what is stored by now."""
    oracle = Oracle(ledger)
    for kind in KINDS:
        oracle.take(kind, stored_rows(store, database, kind))
    oracle.finish()
    oracle.check_reports(get)
    return oracle
