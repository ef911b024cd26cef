"""Interactions as tests make and count them, without any of the program's own code."""

import json
import uuid
from collections import Counter
from datetime import datetime

from harness import eventually

# A known good event's fields; a test changes what it is about.
TIMESTAMP = "2021-01-25T18:20:42.159246Z"
DATA = {"host": "www.example.org", "path": "/"}


def new_id():
    return str(uuid.uuid4())


def event(**changes):
    """A good event of a session of its own."""
    return {
        "session_id": new_id(),
        "category": "page_interaction",
        "name": "pageview",
        "data": DATA,
        "timestamp": TIMESTAMP,
        **changes,
    }


def ndjson(events):
    return "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in events)


def post(program, events, **options):
    """Sends events in one request, all of which must be taken."""
    body = events if isinstance(events, bytes | str) else ndjson(events)
    answer = program.post("/v2/events", body, **options)
    assert answer.status == 202 and answer.json()["rejected"] == 0, answer.text[:1000]
    return answer.json()["accepted"]


def pages(program, path, rows, query="", limit=None, each=None):
    """The rows of every page; `each` is called between pages."""
    found, cursor = [], ""
    size = "" if limit is None else f"limit={limit}&"
    while True:
        answer = program.get(f"{path}?{size}{query}{cursor}")
        assert answer.status == 200, answer.text[:1000]
        page = answer.json()
        assert limit is None or len(page[rows]) <= limit
        found += page[rows]
        if "next" not in page:
            return found
        cursor = f"&cursor={page['next']}"
        if each:
            each()


def timeline(program, query="", **options):
    return pages(program, "/v2/events", "events", query, **options)


def counters(program, query="", **options):
    return pages(program, "/v2/report", "counters", query, **options)


def place(found):
    """What orders a timeline."""
    return found["timestamp"], found["generation"], found["partition"], found["offset"], found["position"]


def stored(program, query, count, deadline_s=15):
    """Waits until the timeline holds so many events, and returns them."""

    def check():
        found = timeline(program, query)
        assert len(found) == count, f"{len(found)} events, not {count}"
        return found or True

    found = eventually(check, deadline_s, what=f"{count} events of {query}")
    return [] if found is True else found


def report_of(events):
    """The report that these events must make."""
    count = Counter(
        (datetime.fromisoformat(one["timestamp"]).date().isoformat(), one["category"], one["name"]) for one in events
    )
    ordered = sorted(count, key=lambda key: (key[0], key[1].encode(), key[2].encode()))
    return [
        {"time": f"{day}T00:00:00", "category": category, "name": name, "count": count[day, category, name]}
        for day, category, name in ordered
    ]
