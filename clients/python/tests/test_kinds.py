"""What is put is checked where it is put, and written as the server wants it."""

import json
import uuid
from datetime import date, datetime, timedelta, timezone

import pytest

from millrace_client import Event, kinds
from millrace_client.kinds import captcha_line, hit_line, interaction_line

ID = uuid.UUID("2d5e8a40-4c1f-4b6a-9d0e-6f5a3c2b1a00")


def captcha(**changes):
    return json.loads(
        captcha_line(**{"type": "serve", "correlation_id": ID, "site_id": ID, "time": "2021-01-25T18:20:42", **changes})
    )


def interaction(**changes):
    fields = {"session_id": ID, "category": "page_interaction", "name": "pageview", "data": {}, "timestamp": None}
    return json.loads(interaction_line(**{**fields, "event_id": None, **changes}))


def hit(**changes):
    return json.loads(hit_line(**{"user": "ada", "action": "click", "timestamp": None, "event_id": None, **changes}))


def test_times():
    naive = datetime(2021, 1, 25, 18, 20, 42, 159246)
    assert captcha(time=naive)["time"] == "2021-01-25T18:20:42.159246Z"
    assert captcha(time=naive.replace(tzinfo=timezone(timedelta(hours=2))))["time"] == "2021-01-25T16:20:42.159246Z"
    assert captcha(time=datetime(2021, 1, 25))["time"] == "2021-01-25T00:00:00Z"
    assert captcha(time="2021-01-25 18:20:42+01")["time"] == "2021-01-25 18:20:42+01"
    moment = datetime.fromisoformat(captcha(time=None)["time"].replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(minutes=1)


def test_millis():
    assert hit(timestamp=datetime(2021, 1, 25, 18, 20, 42, 159999))["timestamp"] == 1611598842159
    assert hit(timestamp=1611598842159)["timestamp"] == 1611598842159
    assert hit(timestamp=0)["timestamp"] == 0
    assert abs(hit()["timestamp"] - datetime.now(timezone.utc).timestamp() * 1000) < 60_000
    assert kinds.MILLIS_END == datetime(2101, 1, 1, tzinfo=timezone.utc).timestamp() * 1000


def test_uuids():
    for form in (ID, str(ID), ID.hex, f"{{{ID}}}", f"urn:uuid:{ID}", str(ID).upper()):
        assert captcha(site_id=form)["site_id"] == str(ID)


def test_event_ids():
    assert hit(event_id=ID)["event_id"] == str(ID)
    assert interaction(event_id=str(ID))["event_id"] == str(ID)
    assert len({hit()["event_id"] for _ in range(100)} | {interaction()["event_id"] for _ in range(100)}) == 200
    assert uuid.UUID(hit()["event_id"]).version == 4
    assert "event_id" not in captcha()


def test_data_is_written_as_it_is():
    data = {"host": "münchen.example", "n": 12345678901234567890, "nested": {"list": [1, 2.5, None, True, "\n"]}}
    assert interaction(data=data)["data"] == data
    line = interaction_line(
        session_id=ID, category="c", name="n", data={"text": "a\nb\u2028"}, timestamp=None, event_id=None
    )
    assert b"\n" not in line


def test_an_event_can_be_put_again():
    line = hit_line(user="ada", action="click", timestamp=None, event_id=None)
    assert hit_line(**Event("hit", line).fields) == line
    line = interaction_line(session_id=ID, category="c", name="n", data={"a": 1}, timestamp=None, event_id=None)
    assert interaction_line(**Event("interaction", line).fields) == line
    line = captcha_line(type="solve", correlation_id=ID, site_id=ID, time=None)
    assert captcha_line(**Event("captcha", line).fields) == line


LOOP = {}
LOOP["self"] = LOOP


@pytest.mark.parametrize(
    "make, changes, kind, says",
    [
        (captcha, {"type": "served"}, ValueError, "type is 'served', not one of 'serve', 'solve'"),
        (captcha, {"type": None}, TypeError, "type is NoneType, not str"),
        (captcha, {"site_id": "x"}, ValueError, "site_id is not a UUID: 'x'"),
        (captcha, {"correlation_id": 7}, TypeError, "correlation_id is int, not a UUID or its text"),
        (captcha, {"time": 1611598842}, TypeError, "time is int, not a datetime or ISO 8601 text"),
        (captcha, {"time": date(2021, 1, 25)}, TypeError, "time is date"),
        (captcha, {"time": ""}, ValueError, "time is empty"),
        (captcha, {"time": datetime(1969, 12, 31)}, ValueError, "time lies outside the years 1970 to 2100"),
        (captcha, {"time": datetime(2101, 1, 1)}, ValueError, "time lies outside"),
        (
            captcha,
            {"time": datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))},
            ValueError,
            "time lies outside",
        ),
        (interaction, {"session_id": None}, TypeError, "session_id is NoneType"),
        (interaction, {"category": ""}, ValueError, "category is empty"),
        (interaction, {"name": b"pageview"}, TypeError, "name is bytes, not str"),
        (interaction, {"data": [1]}, TypeError, "data is list, not a mapping"),
        (interaction, {"data": {"at": datetime(2021, 1, 1)}}, TypeError, "data cannot be written as JSON: .*datetime"),
        (interaction, {"data": {"ratio": float("nan")}}, ValueError, "data cannot be written as JSON"),
        (interaction, {"data": LOOP}, ValueError, "data cannot be written as JSON: Circular"),
        (interaction, {"data": {(1, 2): 3}}, TypeError, "data cannot be written as JSON"),
        (interaction, {"data": {"text": "\ud800"}}, ValueError, "half of a surrogate pair"),
        (interaction, {"event_id": "x"}, ValueError, "event_id is not a UUID"),
        (hit, {"user": ""}, ValueError, "user is empty"),
        (hit, {"user": "ü" * 129}, ValueError, "user has 258 bytes of UTF-8, more than 256"),
        (hit, {"user": "\udc00"}, ValueError, "surrogate"),
        (hit, {"user": 5}, TypeError, "user is int"),
        (hit, {"action": "view"}, ValueError, "action is 'view', not one of 'click', 'impression'"),
        (hit, {"timestamp": 1.5}, TypeError, "timestamp is float"),
        (hit, {"timestamp": True}, TypeError, "timestamp is bool"),
        (hit, {"timestamp": -1}, ValueError, "timestamp is -1"),
        (hit, {"timestamp": kinds.MILLIS_END}, ValueError, "not milliseconds since the epoch"),
    ],
)
def test_wrong_arguments(make, changes, kind, says):
    with pytest.raises(kind, match=says):
        make(**changes)
