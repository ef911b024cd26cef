"""Captcha events as tests make and count them, without any of the program's own code."""

import json
import uuid
from collections import Counter
from datetime import date

from harness import eventually

# A known good event's fields; a test changes what it is about.
TIME = "2021-01-25T18:20:42.159246"
DAY = "2021-01-25"


def new_id():
    return str(uuid.uuid4())


def event(**changes):
    """A good event with identities of its own."""
    return {"time": TIME, "type": "serve", "correlation_id": new_id(), "site_id": new_id(), **changes}


def ndjson(events):
    return "".join(json.dumps(one, separators=(",", ":")) + "\n" for one in events)


def counters(program, query=""):
    """The rows of a report."""
    answer = program.get(f"/v1/report{query}")
    assert answer.status == 200, answer.text
    return answer.json()["counters"]


def all_counters(program, query="", limit=100_000):
    """The rows of every page of a report."""
    rows, cursor = [], ""
    while True:
        answer = program.get(f"/v1/report?limit={limit}{query}{cursor}").json()
        rows += answer["counters"]
        if "next" not in answer:
            return rows
        cursor = f"&cursor={answer['next']}"


def of_site(program, site):
    """What a site's report adds up to: events served, events solved."""
    rows = counters(program, f"?site_id={site}")
    return sum(row["served"] for row in rows), sum(row["solved"] for row in rows)


def becomes(program, site, served, solved=0, deadline_s=10):
    """Waits until the report of a site is that."""

    def check():
        found = of_site(program, site)
        assert found == (served, solved), f"served and solved are {found}, not {(served, solved)}"
        return True

    eventually(check, deadline_s, what=f"the report of {site}")


class Model:
    """An independent count: each key once, in the order in which its copies were sent."""

    def __init__(self):
        self.first = {}

    def take(self, kind, correlation_id, site_id, day):
        """A day is a `date`; identities are `uuid.UUID`."""
        self.first.setdefault((kind, correlation_id), (day, site_id))

    def report(self):
        """The rows in the report's order."""
        counted = Counter((day, str(site), kind) for (kind, _), (day, site) in self.first.items())
        return [
            {
                "time": f"{day.isoformat()}T00:00:00",
                "site_id": site,
                "served": counted[day, site, "serve"],
                "solved": counted[day, site, "solve"],
            }
            for day, site in sorted({(day, site) for day, site, _ in counted})
        ]


def take_event(model, one):
    """Counts an event in the usual text forms."""
    day = date.fromisoformat(one["time"][:10])
    model.take(one["type"], uuid.UUID(one["correlation_id"]), uuid.UUID(one["site_id"]), day)
