"""The paths that people already use, what they may be asked, and what they refuse."""

import json
from urllib.parse import quote

import jsonschema
import pytest
from captcha import DAY, becomes, event, ndjson, new_id
from harness import eventually

METHODS = ["PUT", "PATCH", "DELETE"]


@pytest.fixture(scope="module")
def program(module_millrace):
    return module_millrace("run")


def in_path(text):
    return quote(text, safe="")


def test_one_event_in_the_path(program):
    site = new_id()
    one = event(site_id=site)
    answer = program.post(f"/api/event/{in_path(json.dumps(one))}", "")
    assert (answer.status, answer.json()) == (202, {"accepted": 1, "rejected": 0, "errors": []})
    # Again, with what a path may hold as it is, and a plus that is a plus.
    offset = event(site_id=site, correlation_id=one["correlation_id"], time="2021-01-25T18:20:42+01:00", type="solve")
    text = quote(json.dumps(offset, separators=(",", ":")), safe=":,+")
    assert program.post(f"/api/event/{text}", "").status == 202
    becomes(program, site, 1, 1)


@pytest.mark.parametrize(
    "segment, status, code, part",
    [
        (in_path("{}"), 422, "missing_field", "`time`"),
        (in_path("not json"), 400, "bad_json", "not JSON"),
        ("%7B%2", 400, "bad_json", "percent-encoded"),
        ("%ff", 400, "bad_json", "percent-encoded"),
        (in_path("{}{}"), 400, "bad_json", "expected one event, found 2"),
        (in_path("[{},{},{}]"), 400, "bad_json", "expected one event, found 3"),
    ],
)
def test_no_event_in_the_path(program, segment, status, code, part):
    answer = program.post(f"/api/event/{segment}", "")
    told = answer.json()
    assert (answer.status, told["accepted"], told["rejected"]) == (status, 0, 1)
    assert told["errors"][0]["code"] == code and part in told["errors"][0]["message"]


def test_an_event_in_the_path_comes_alone(program):
    segment = in_path(json.dumps(event()))
    answer = program.post(f"/api/event/{segment}", ndjson([event()]))
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")
    answer = program.post(f"/api/event/{segment}?x=1", "")
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_parameter")
    assert program.post("/api/event/", "").status == 404


def test_filters_in_the_path(program):
    site, other = new_id(), new_id()
    events = [event(site_id=site), event(site_id=site, time="2021-01-26T00:00:00"), event(site_id=other)]
    assert program.post("/v1/events", ndjson(events)).status == 202
    becomes(program, site, 2)
    becomes(program, other, 1)

    def days(target):
        answer = program.get(target)
        assert answer.status == 200, answer.text
        return sorted((row["time"][:10], row["site_id"]) for row in answer.json()["counters"])

    first, second, third = (DAY, site), ("2021-01-26", site), (DAY, other)
    quoted = in_path(f'site_id="{site}" and day=') + in_path(f"'{DAY}' ")
    for root in ("/api/report", "/v1/report", "/latest/report"):
        assert days(f"{root}/site_id='{site}'") == [first, second]
        assert days(f"{root}/{quoted}") == [first]
        assert days(f"{root}/site_id={site}&day={DAY}") == [first]
        assert days(f"{root}/site_id='{site}'&site_id='{other}'&day='{DAY}'") == sorted([first, third])
        assert days(f"{root}/site_id='{site}'?day=2021-01-26") == [second]


@pytest.mark.parametrize(
    "segment", ["type='serve'", "1=1", "site_id='x' or 1=1", "day>'2021-01-25'", "site_id", "site_id=';DROP TABLE x'"]
)
def test_other_filters_are_refused(program, segment):
    answer = program.get(f"/api/report/{in_path(segment)}")
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_parameter")
    assert "site_id" in answer.json()["error"]["message"] and "day" in answer.json()["error"]["message"]


def test_where_is_my_event(program):
    captcha, site = new_id(), new_id()
    both = [event(correlation_id=captcha, site_id=site), event(correlation_id=captcha, site_id=site, type="solve")]
    answer = program.get(f"/v1/events/{captcha}")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")
    assert captcha in answer.json()["error"]["message"]
    assert program.post("/v1/events", ndjson([event(), *both, both[0]])).status == 202

    def found():
        answer = program.get(f"/v1/events/{captcha}")
        assert answer.status == 200, answer.text
        events = answer.json()["events"]
        assert len(events) == 2
        return events

    events = eventually(found, what="the stored events")
    for one, sent in zip(sorted(events, key=lambda one: one["type"]), both, strict=True):
        assert {name: one[name] for name in ("type", "correlation_id", "site_id")} == {
            name: sent[name] for name in ("type", "correlation_id", "site_id")
        }
        assert one["time"] == f"{sent['time']}Z"
        assert one["accepted_at"] <= one["stored_at"]
        assert (one["generation"], one["partition"] in range(4), one["offset"] >= 0) == (1, True, True)
    assert len({(one["partition"], one["offset"], one["position"]) for one in events}) == 2
    assert program.get(f"/latest/events/{captcha.replace('-', '').upper()}").json() == {"events": events}
    for wrong in ("x", f"{captcha}x", "%ff"):
        answer = program.get(f"/v1/events/{wrong}")
        assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_parameter")


def test_the_schema_is_what_is_accepted(program):
    answer = program.get("/v1/schema")
    assert answer.status == 200 and answer.json() == program.get("/latest/schema").json()
    schema = answer.json()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    uuid = new_id()
    good = [
        event(),
        event(time="2021-01-22t18:20:42Z", correlation_id=f"urn:uuid:{uuid}", more=1),
        event(time="2021-01-22 18:20:42.1+0100", site_id="{" + uuid.upper() + "}"),
    ]
    bad = [event(type="x"), event(time="2021-01-22"), event(site_id="x"), event(time=1), {"time": "2021"}, [], 1]
    for one in good:
        assert validator.is_valid(one) and program.post("/v1/events", json.dumps(one)).status == 202, one
    for one in bad:
        assert not validator.is_valid(one) and program.post("/v1/events", json.dumps(one)).status in (400, 422), one


def test_nothing_is_changed_or_deleted(program):
    """Every path, with its parameters filled in, takes what it says and refuses the rest."""
    listed = program.get("/v1/").json()["paths"]
    assert len(listed) > 10
    for path in listed:
        target = path["path"].replace("{", "").replace("}", "")
        for method in METHODS:
            answer = program.request(method, target, body="{}")
            assert (answer.status, answer.json()["error"]["code"]) == (405, "method_not_allowed"), (method, target)
            assert answer.headers["Allow"] == ", ".join(path["methods"]), target


def test_latest_is_a_version_that_there_is(millrace):
    program = millrace("run", settings={"MILLRACE_HTTP_LATEST_VERSION": "v99"}, wait=False)
    assert program.wait_end() == 1
    assert "http.latest_version" in program.log_text() and "v1" in program.log_text()
    program = millrace("check", ["--offline"], settings={"MILLRACE_HTTP_LATEST_VERSION": "1"}, wait=False)
    assert program.wait_end() == 2
    assert "a version of the API" in program.log_text()
