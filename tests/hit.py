"""Hits as tests make and count them, without any of the program's own code."""

import json
import random
import selectors
import socket
import time
import urllib.parse
import uuid

from harness import eventually

HOUR_MS = 3_600_000
# 2021-01-25T00:00:00Z.
HOUR = 1_611_532_800_000


def new_id():
    return str(uuid.uuid4())


def event(**changes):
    """A good hit of a user of its own, without an identity."""
    return {"timestamp": HOUR + 1234, "user": f"user-{new_id()}", "action": "click", **changes}


def ndjson(events):
    return "".join(json.dumps(one) + "\n" for one in events)


def target(one):
    """A hit as the query of a request."""
    pairs = [("timestamp", str(one["timestamp"])), ("user", one["user"])]
    if one.get("event_id") is not None:
        pairs.append(("event_id", one["event_id"]))
    return f"/analytics?{urllib.parse.urlencode(pairs)}&{one['action']}"


def hit(program, one, **options):
    """Sends one as a query, which must be taken."""
    answer = program.request("POST", target(one), **options)
    assert (answer.status, answer.body) == (204, b""), (target(one), answer.status, answer.text)


def post(program, events, **options):
    """Sends some as a body, all of which must be taken."""
    answer = program.post("/hits", ndjson(events), **options)
    assert (answer.status, answer.json()["accepted"]) == (202, len(events)), answer.text[:500]


def parse_report(text):
    """Unique users, clicks and impressions; the text must have exactly its form."""
    numbers = tuple(int(line.partition(",")[2]) for line in text.splitlines())
    assert text == "unique_users,{}\nclicks,{}\nimpressions,{}\n".format(*numbers), text
    return numbers


def report(program, timestamp):
    answer = program.get(f"/analytics?timestamp={timestamp}")
    assert answer.status == 200, answer.text
    return parse_report(answer.text)


def becomes(program, timestamp, expected, deadline_s=10):
    """Waits until the report of an hour is that."""

    def check():
        found = report(program, timestamp)
        assert found == expected, f"users, clicks and impressions are {found}, not {expected}"
        return True

    eventually(check, deadline_s, what=f"the report of {timestamp}")


class Model:
    """An independent count: each identity once, whatever else an equal one says later."""

    def __init__(self):
        self.known = set()
        self.hours = {}

    def take(self, one):
        identity = one.get("event_id")
        if identity is not None:
            if identity in self.known:
                return
            self.known.add(identity)
        users, counts = self.hours.setdefault(one["timestamp"] // HOUR_MS, (set(), [0, 0]))
        users.add(one["user"])
        counts[one["action"] != "click"] += 1

    def reports(self):
        """For each hour, by its start: users, clicks, impressions."""
        return {hour * HOUR_MS: (len(users), *counts) for hour, (users, counts) in self.hours.items()}


NAMES = ["anna", "Ünal", "李雷", "a b+c&d=e%", "😀", "o'neil\\\"", "\t\x00"]


def random_hits(dice, count, *, now_ms, users=5000, late=0.05, late_hours=48, copies=0.03):
    """Hits of the hour of `now_ms`, some of them of earlier hours, some with an identity, some of these twice."""
    hour, made, known = now_ms // HOUR_MS * HOUR_MS, [], []
    while len(made) < count:
        if known and dice.random() < copies:
            made.append(dice.choice(known))
            continue
        start = hour - (dice.randrange(1, late_hours) * HOUR_MS if dice.random() < late else 0)
        number = dice.randrange(users)
        one = {
            "timestamp": start + dice.choice([0, HOUR_MS - 1, dice.randrange(HOUR_MS)]),
            "user": f"{NAMES[number % len(NAMES)]}{number}",
            "action": dice.choice(["click", "impression", "impression"]),
        }
        if dice.random() < 0.4:
            one["event_id"] = str(uuid.UUID(int=dice.getrandbits(128)))
            known.append(one)
        made.append(one)
    return made


def send_queries(programs, events, *, connections=500, deadline_s=120):
    """Sends each as a query, pipelined over many connections to several programs; all must be taken."""
    shares = [share for share in (events[start::connections] for start in range(connections)) if share]
    # Before the first connection is opened: one that sends nothing for long is closed.
    requests = [
        "".join(f"POST {target(one)} HTTP/1.1\r\nHost: millrace\r\n\r\n" for one in share).encode() for share in shares
    ]
    selector, left = selectors.DefaultSelector(), {}
    for number, (share, lines) in enumerate(zip(shares, requests, strict=True)):
        connection = socket.create_connection(("127.0.0.1", programs[number % len(programs)].port), timeout=10)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)
        left[connection] = [memoryview(lines), len(share), b""]
    end = time.monotonic() + deadline_s
    while left:
        assert time.monotonic() < end, f"{sum(answers for _, answers, _ in left.values())} answers are missing"
        for key, ready in selector.select(1):
            connection, state = key.fileobj, left[key.fileobj]
            if ready & selectors.EVENT_WRITE:
                state[0] = state[0][connection.send(state[0]) :]
                if not state[0]:
                    selector.modify(connection, selectors.EVENT_READ)
            if ready & selectors.EVENT_READ:
                piece = connection.recv(1 << 16)
                assert piece, f"a connection was closed before {state[1]} were answered: {state[2][-2000:]!r}"
                *whole, state[2] = (state[2] + piece).split(b"\r\n\r\n")
                for answer in whole:
                    assert answer.startswith(b"HTTP/1.1 204 "), answer
                state[1] -= len(whole)
                if state[1] == 0:
                    assert not state[2], state[2]
                    selector.unregister(connection)
                    connection.close()
                    del left[connection]


def new_dice():
    """Randomness with a printed seed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)
