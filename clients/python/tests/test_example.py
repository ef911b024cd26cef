"""The example does what it says, against a server that counts what it sends."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from server import status

PACKAGE = Path(__file__).resolve().parent.parent


@pytest.fixture
def counting(server):
    """The server answers reports from what it has counted."""

    def page(path):
        events = list(server.counted["/v1/events"].values())
        if path.startswith("/v1/report"):
            (site,) = parse_qs(urlsplit(path).query)["site_id"]
            of = [event["type"] for event in events if event["site_id"] == site]
            row = {
                "time": "2021-01-25T00:00:00",
                "site_id": site,
                "served": of.count("serve"),
                "solved": of.count("solve"),
            }
            return 200, {"counters": [row]}, {}
        if path.startswith("/analytics"):
            hits = server.counted["/hits"].values()
            actions = [hit["action"] for hit in hits]
            users = len({hit["user"] for hit in hits})
            text = f"unique_users,{users}\nclicks,{actions.count('click')}\nimpressions,{actions.count('impression')}\n"
            return 200, text.encode(), {}
        types = [(event["category"], event["name"]) for event in server.counted["/v2/events"].values()]
        rows = [
            {"time": "2021-01-25T00:00:00", "category": one[0], "name": one[1], "count": types.count(one)}
            for one in sorted(set(types))
        ]
        return 200, {"counters": rows}, {}

    server.page = page
    return server


def run(server, *arguments):
    return subprocess.run(
        [sys.executable, PACKAGE / "examples" / "visits.py", "--server", server.url, *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE / "src")},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_visits(counting):
    told = run(counting, "--visits", "10")
    assert told.returncode == 0 and told.stderr == ""
    assert told.stdout.splitlines() == [
        "captchas of this site   served 10, solved 4",
        "hits of this hour       10 users, 10 impressions, 4 clicks",
        "2021-01-25              page_interaction.cta_click 4",
        "2021-01-25              page_interaction.pageview 10",
        "this client             42 events put, 42 taken, 0 rejected",
    ]
    events = counting.counted["/v2/events"].values()
    clicks = [event for event in events if event["name"] == "cta_click"]
    assert all(click["data"].keys() == {"host", "path", "element"} for click in clicks)
    views = {event["session_id"] for event in events if event["name"] == "pageview"}
    assert {click["session_id"] for click in clicks} < views


def test_rejected(counting):
    body = {
        "accepted": 0,
        "rejected": 1,
        "errors": [{"line": 1, "code": "unknown_type", "field": "name", "message": "?"}],
    }
    normal = counting.always
    counting.always = lambda request: (
        status(422, json.dumps(body).encode())(request) if request.path == "/v2/events" else normal(request)
    )
    told = run(counting, "--visits", "1")
    assert "interaction event not counted: unknown_type name ?" in told.stderr
    assert "this client             6 events put, 4 taken, 2 rejected" in told.stdout
