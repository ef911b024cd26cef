"""Reports are read page by page, patiently."""

import json
from datetime import date, datetime
from uuid import UUID

import pytest

from millrace_client import Reports, ServerError

ID = UUID("2d5e8a40-4c1f-4b6a-9d0e-6f5a3c2b1a00")


def page(body, status=200, **headers):
    return status, body if isinstance(body, bytes) else json.dumps(body).encode(), headers


@pytest.fixture
def reports(server):
    one = Reports(server.url, token="s3cret", retry_s=5)
    yield one
    one.close()


def test_pages(server, reports):
    server.pages = {
        f"/v1/report?site_id={ID}&day=2021-01-25&day=2021-01-26&limit=1": page({"counters": [1, 2], "next": "a&b"}),
        f"/v1/report?site_id={ID}&day=2021-01-25&day=2021-01-26&limit=1&cursor=a%26b": page({"counters": [3]}),
    }
    assert list(reports.captcha(site_id=ID, day=[date(2021, 1, 25), "2021-01-26"], limit=1)) == [1, 2, 3]


def test_filters(server, reports):
    server.pages = {
        "/v2/report?category=c&name=n&from=2021-01-25&to=2021-01-26": page({"counters": [{"count": 5}]}),
        f"/v2/events?session_id={ID}&from=2021-01-25T10%3A00%3A00Z": page({"events": [{"name": "pageview"}]}),
        "/v1/report": page({"counters": []}),
    }
    assert list(reports.interaction_counts(category="c", name="n", from_="2021-01-25", to=date(2021, 1, 26))) == [
        {"count": 5}
    ]
    found = reports.interactions(session_id=ID, from_=datetime(2021, 1, 25, 10))
    assert list(found) == [{"name": "pageview"}]
    assert list(reports.captcha()) == []


def test_hits(server, reports):
    server.pages = {"/analytics?timestamp=1611598842159": page(b"unique_users,3\nclicks,4\nimpressions,5\n")}
    told = reports.hits(1611598842159)
    assert (told.unique_users, told.clicks, told.impressions) == (3, 4, 5)
    server.pages = {"/analytics?timestamp=0": page(b"<html>")}
    with pytest.raises(ServerError, match="not a report"):
        reports.hits(0)


def test_failures(server, reports):
    with pytest.raises(ServerError, match="404 not_found no such path") as caught:
        list(reports.captcha())
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    server.pages = {"/v1/report": page(b"[]")}
    with pytest.raises(ServerError, match="not a report"):
        list(reports.captcha())


def test_refused_for_now(server, reports):
    answers = [page(b"", 503, **{"Retry-After": "0"}), page(b"", 429), page({"counters": [1]})]
    server.pages = {"/v1/report": lambda: answers.pop(0)}
    assert list(reports.captcha()) == [1]
    server.pages = {"/v1/report": page(b"", 503, **{"Retry-After": "60"})}
    with pytest.raises(ServerError, match="503"):
        list(reports.captcha())
    with pytest.raises(ServerError, match="refused"):
        list(Reports("http://127.0.0.1:1", retry_s=0).captcha())
