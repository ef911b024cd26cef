"""Every answer has one meaning for the events of its request."""

import json
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest

from millrace_client.answers import Action, Answer, judge, retry_after_s


def answer(status, body=b"", **others):
    return Answer(status, body if isinstance(body, bytes) else json.dumps(body).encode(), **others)


def errors(*lines):
    return [{"line": line, "code": "bad_uuid", "field": "site_id", "message": "not a UUID"} for line in lines]


def verdict(status, body=b"", *, events=10, compressed=True, which=True, **others):
    return judge(answer(status, body, **others), events, compressed=compressed, which=which)


def test_all_accepted():
    told = verdict(202, {"accepted": 10, "rejected": 0, "errors": []})
    assert (told.action, told.settled, told.rejected, told.unlisted) == (Action.SETTLE, 10, {}, 0)


def test_some_rejected():
    told = verdict(202, {"accepted": 8, "rejected": 2, "errors": errors(1, 10)})
    assert told.settled == 10 and list(told.rejected) == [0, 9]
    assert (told.rejected[9].code, told.rejected[9].field, told.rejected[9].status) == ("bad_uuid", "site_id", 202)


def test_more_rejected_than_listed():
    """Up to the last listed line everything is known; the rest goes in pieces that cannot have more than is listed."""
    body = {"accepted": 5, "rejected": 5, "errors": errors(2, 3, 5)}
    told = verdict(202, body)
    assert (told.settled, list(told.rejected), told.piece, told.unlisted) == (5, [1, 2, 4], 3, 0)
    told = verdict(202, body, which=False)
    assert (told.settled, list(told.rejected), told.piece, told.unlisted) == (10, [1, 2, 4], 0, 2)
    told = verdict(202, {"accepted": 5, "rejected": 5, "errors": []})
    assert (told.settled, told.piece) == (0, 5)


@pytest.mark.parametrize("status", [200, 202, 422, 400])
def test_none_accepted(status):
    told = verdict(status, {"accepted": 0, "rejected": 10, "errors": errors(1, 2)})
    assert told.settled == 10 and list(told.rejected) == list(range(10))
    assert [told.rejected[index].code for index in (0, 1, 2, 9)] == ["bad_uuid", "bad_uuid", "rejected", "rejected"]


@pytest.mark.parametrize("status", [301, 308, 400, 401, 403, 404, 405, 411, 415, 431])
def test_the_whole_request_refused(status):
    told = verdict(status, {"error": {"code": "some_code", "message": "why"}}, compressed=False)
    assert told.settled == len(told.rejected) == 10
    assert {(one.code, one.message, one.status) for one in told.rejected.values()} == {("some_code", "why", status)}
    told = verdict(status, b"<html>no</html>", compressed=False)
    assert {one.code for one in told.rejected.values()} == {f"http_{status}"}


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_for_now(status):
    told = verdict(status, {"error": {"code": "overloaded", "message": "later"}}, retry_after="7", request_id="r-1")
    assert (told.action, told.retry_after_s) == (Action.RETRY, 7.0)
    assert told.reason == f"{status} overloaded later (request r-1)"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>welcome</html>",
        b"[]",
        b'{"accepted":10,"reje',
        {"accepted": 9, "rejected": 0},
        {"accepted": "10", "rejected": 0},
        {"accepted": True, "rejected": 9},
        {"accepted": 11, "rejected": -1},
    ],
)
def test_another_server_answered(body):
    """A 2xx that does not account for every event acknowledges nothing."""
    assert verdict(200, body).action is Action.RETRY


def test_too_large():
    body = {"error": {"code": "content_too_large", "message": "32 MiB at most"}}
    assert verdict(413, body).action is Action.SPLIT
    told = verdict(413, body, events=1)
    assert told.settled == 1 and told.rejected[0].code == "content_too_large"


def test_compression_refused():
    body = {"error": {"code": "unsupported_content_encoding", "message": "gzip"}}
    assert verdict(415, body).action is Action.UNCOMPRESSED
    assert verdict(415, body, compressed=False).rejected[0].code == "unsupported_content_encoding"


def test_lines_that_are_none():
    """Whatever else lies in `errors` is passed over."""
    strange = [
        {"line": 0},
        {"line": 11},
        {"line": "3"},
        {"line": True},
        {},
        None,
        3,
        {"line": 4, "code": 7, "field": []},
    ]
    told = verdict(422, {"accepted": 0, "rejected": 10, "errors": strange})
    assert told.rejected[3].code == "rejected" and told.rejected[3].field is None
    assert verdict(422, {"accepted": 0, "rejected": 10, "errors": "none"}).settled == 10
    assert verdict(422, b"[" * 100_000).settled == 10


def test_retry_after():
    assert retry_after_s(None) is None
    assert retry_after_s(" 5 ") == 5.0
    assert retry_after_s("0") == 0.0
    assert retry_after_s("9" * 400) == 300.0
    assert retry_after_s("soon") is None and retry_after_s("-5") is None and retry_after_s("٣") is None
    later = datetime.now(timezone.utc) + timedelta(seconds=60)
    assert 50 < retry_after_s(format_datetime(later, usegmt=True)) <= 60
    assert retry_after_s("Sun, 06 Nov 1994 08:49:37 GMT") == 0.0
