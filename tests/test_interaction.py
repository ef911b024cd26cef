"""Interactions (API v2) from outside: what is taken and what is not, what is stored, reports, pages, schemas, reloads."""

import json
import os
import random
import re
import signal
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta

import jsonschema
import pytest
from captcha import becomes
from captcha import event as captcha_event
from captcha import ndjson as captcha_ndjson
from harness import REPOSITORY, eventually
from interaction import DATA, counters, event, ndjson, new_id, place, post, report_of, stored, timeline
from once import SMALL_RANGES, run_command, wait_stored
from test_accept import paste, readme_examples

KNOWN = ["form_interaction.submit", "page_interaction.cta_click", "page_interaction.pageview"]


@pytest.fixture(scope="module")
def program(module_millrace):
    return module_millrace("run")


@pytest.fixture
def dice():
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    return random.Random(seed)


def answered(program, body, status, accepted):
    """Sends a body; returns its errors as (code, field, message)."""
    answer = program.post("/v2/events", body if isinstance(body, bytes | str) else json.dumps(body))
    assert answer.status == status, answer.text[:1000]
    told = answer.json()
    assert told["accepted"] == accepted
    for error in told["errors"]:
        assert list(error) == ["line", "code", "field", "message"]
        assert error["message"].isprintable() and len(error["message"]) < 600
    return [(error["code"], error["field"], error["message"]) for error in told["errors"]]


def blamed(program, one):
    """The one error of an event that is rejected."""
    ((code, field, message),) = answered(program, one, 422, 0)
    return code, field, message


# What is taken.


def test_singly_as_an_array_and_as_lines(program):
    session = new_id()
    events = [event(session_id=session, name="pageview") for _ in range(6)]
    answer = program.post("/v2/event", json.dumps(events[0]))
    assert (answer.status, answer.json()) == (202, {"accepted": 1, "rejected": 0, "errors": []})
    assert post(program, json.dumps(events[1:3])) == 2
    assert post(program, ndjson(events[3:5])) == 2
    assert post(program, json.dumps(events[5], indent=2)) == 1
    assert len(stored(program, f"session_id={session}", 6)) == 6


def test_every_built_in_type(program):
    session = new_id()
    types = {
        "page_interaction.pageview": ["host", "path"],
        "page_interaction.cta_click": ["host", "path", "element"],
        "form_interaction.submit": ["host", "path", "form"],
    }
    assert sorted(types) == KNOWN
    for full, fields in types.items():
        category, name = full.split(".")
        good = event(session_id=session, category=category, name=name, data={field: "x" for field in fields})
        assert post(program, [good]) == 1
        # More than the schema names is allowed.
        assert post(program, [good | {"data": {**good["data"], "more": [1, {"x": None}]}}]) == 1
        for field in fields:
            without = {key: value for key, value in good["data"].items() if key != field}
            assert blamed(program, good | {"data": without})[:2] == ("bad_data", f"data.{field}")
            assert blamed(program, good | {"data": {**good["data"], field: 5}})[:2] == ("bad_data", f"data.{field}")
            assert blamed(program, good | {"data": {**good["data"], field: ""}})[:2] == ("bad_data", f"data.{field}")
    found = stored(program, f"session_id={session}", 6)
    assert Counter(f"{one['category']}.{one['name']}" for one in found) == {full: 2 for full in types}


def nested(depth):
    inner = {}
    for _ in range(depth - 1):
        inner = {"a": inner}
    return {**DATA, **inner}


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ({"session_id": None}, "bad_uuid", "session_id"),
        ({"session_id": "x"}, "bad_uuid", "session_id"),
        ({"category": ""}, "bad_text", "category"),
        ({"category": "a.b"}, "bad_text", "category"),
        ({"category": "x" * 129}, "bad_text", "category"),
        ({"category": 5}, "bad_text", "category"),
        ({"name": "a\tb"}, "bad_text", "name"),
        ({"name": None}, "bad_text", "name"),
        ({"name": "pageviews"}, "unknown_type", "name"),
        ({"category": "page_interactions"}, "unknown_type", "name"),
        ({"name": "a.b"}, "unknown_type", "name"),
        ({"data": None}, "bad_data", "data"),
        ({"data": []}, "bad_data", "data"),
        ({"data": "{}"}, "bad_data", "data"),
        ({"data": {"host": "h", "path": ["/"]}}, "bad_data", "data.path"),
        ({"data": nested(65)}, "too_deep", "data"),
        ({"timestamp": 1611598842}, "bad_time", "timestamp"),
        ({"timestamp": "2021-02-30T00:00:00Z"}, "bad_time", "timestamp"),
        ({"timestamp": "2099-12-31T00:00:00Z"}, "future_time", "timestamp"),
        ({"event_id": "x"}, "bad_uuid", "event_id"),
        ({"event_id": 5}, "bad_uuid", "event_id"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused(program, change, code, field):
    assert blamed(program, event(**change))[:2] == (code, field)


def test_the_first_bad_field_is_blamed_and_good_lines_are_taken(program):
    session = new_id()
    bad = event(session_id=session, data={**DATA, "host": 1}, timestamp="x", event_id="y")
    lines = [event(session_id=session), bad, event(session_id=session, name="x"), event(session_id=session)]
    errors = answered(program, ndjson(lines), 202, 2)
    assert [(code, field) for code, field, _ in errors] == [("bad_data", "data.host"), ("unknown_type", "name")]
    for missing in ("session_id", "category", "name", "data", "timestamp"):
        one = event()
        del one[missing]
        assert blamed(program, one)[:2] == ("missing_field", missing)
    assert blamed(program, "[[]]")[0] == "not_an_object"
    repeated = json.dumps(event())[:-1] + ',"d\\u0061ta":{}}'
    assert blamed(program, repeated)[:2] == ("repeated_field", "data")
    stored(program, f"session_id={session}", 2)


def test_messages_say_what_was_expected_and_found(program):
    _, _, message = blamed(program, event(data={"host": "h" * 300, "path": "/"}))
    assert re.fullmatch(
        r'expected what the schema of page_interaction.pageview allows, found "h+\.\.\.": it is longer than 253 characters',
        message,
    )
    _, _, message = blamed(program, event(name="pagevew"))
    assert 'found "page_interaction.pagevew": near are page_interaction.pageview' in message
    _, _, message = blamed(program, event(category="zzz", name="yyy"))
    assert message.endswith("GET /v2/schema lists them")


def test_the_allowance_for_the_future(millrace):
    program = millrace("run", settings={"MILLRACE_INTERACTION_FUTURE_MS_MAX": "60000"})
    now = datetime.now(UTC)
    post(program, [event(timestamp=(now + timedelta(seconds=30)).isoformat())])
    # Without an offset it is UTC.
    post(program, [event(timestamp=(now + timedelta(seconds=30)).replace(tzinfo=None).isoformat(timespec="seconds"))])
    code, field, message = blamed(program, event(timestamp=(now + timedelta(seconds=300)).isoformat()))
    assert (code, field) == ("future_time", "timestamp")
    assert message.startswith("expected a time at most 60 s in the future, found")


def test_unknown_types_may_be_accepted(millrace, space):
    program = millrace("run", settings={"MILLRACE_INTERACTION_UNKNOWN_TYPES": "accept"})
    session = new_id()
    post(program, [event(session_id=session, category="any'thing", name="at.all", data={"x": 1})])
    assert blamed(program, event(data={}))[:2] == ("bad_data", "data.host")
    assert blamed(program, event(category="other", data=nested(65)))[0] == "too_deep"
    (found,) = stored(program, f"session_id={session}&category=any%27thing&name=at.all", 1)
    assert (found["category"], found["name"], found["data"]) == ("any'thing", "at.all", {"x": 1})
    # An event is stored before it is counted.
    eventually(lambda: counters(program, "category=any%27thing") == report_of([found]), what="its counter")
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("path", ["/v2/events", "/v2/event", "/v2/report", "/v2/schema", "/v1/events", "/v1/report"])
def test_nothing_can_be_changed_or_deleted(program, path):
    for method in ("PUT", "PATCH", "DELETE"):
        answer = program.request(method, path, body=json.dumps(event()))
        assert answer.status == 405
        allowed = {word.strip() for word in answer.headers["Allow"].split(",")}
        expected = {"/v1/events": {"POST"}, "/v2/event": {"POST"}, "/v2/events": {"GET", "HEAD", "POST"}}
        assert allowed == expected.get(path, {"GET", "HEAD"})


# What is stored.

DATA_TEXTS = [
    '{"host":"h","path":"/"}',
    '{ "path" : "/" ,\t"host": "h" }',
    '{"host":"h","path":"/","z":1,"a":2,"m":[]}',
    '{"host":"x","host":"h","path":"/","k":1,"k":2}',
    '{"host":"h","path":"\\u002f\\/","s":"\\ud83d\\ude00 \\u0000 \\"\\\\ é 😀"}',
    '{"host":"h","path":"/","n":[1.10,-0.0,1E+2,1e999,-1e999,12345678901234567890123,0.1e-400]}',
    '{"host":"h","path":"/","half":"\\ud800"}',
    '{"host":"h","path":"/","deep":' + "[" * 60 + "]" * 60 + "}",
    '{"host":"h","path":"/","":{"":{"data":{}}}}',
    '{"host":"h","path":"/","long":"' + "x" * 50_000 + '"}',
]


def test_data_is_stored_to_the_byte(program, space_of_module):
    session = new_id()
    lines = [
        f'{{"session_id":"{session}","category":"page_interaction","name":"pageview","d\\u0061ta":{text},'
        f'"timestamp":"2021-01-25T00:00:{number:02}Z"}}'
        for number, text in enumerate(DATA_TEXTS)
    ]
    post(program, "\n".join(lines))
    # Values that are spread over lines, too.
    over_lines = DATA_TEXTS[2].replace(",", ",\r\n  ")
    post(program, json.dumps(event(session_id=session, data="@")).replace('"@"', over_lines))
    stored(program, f"session_id={session}", len(DATA_TEXTS) + 1)
    answer = program.get(f"/v2/events?session_id={session}").text
    for text in [*DATA_TEXTS, over_lines]:
        assert f'"data":{text},"timestamp"' in answer
    table = f"{space_of_module.database}.interaction_events"
    found = space_of_module.store.rows(
        f"SELECT data FROM {table} WHERE session_id = '{session}' ORDER BY timestamp, log_offset", output_format_json_escape_forward_slashes=0
    )
    assert [row["data"] for row in found] == [*DATA_TEXTS, over_lines]


@pytest.fixture(scope="module")
def space_of_module(program, module_space):
    return module_space


def test_an_event_says_where_and_when_it_was_stored(program):
    one = event(event_id=new_id(), timestamp="2021-01-25T19:20:42.5+01:00")
    before = datetime.now(UTC)
    post(program, [one])
    found = eventually(
        lambda: program.get(f"/v2/events?event_id={one['event_id']}"), what="an answer"
    )
    (found,) = stored(program, f"session_id={one['session_id']}", 1)
    assert list(found) == [
        *("session_id", "category", "name", "data", "timestamp", "event_id"),
        *("accepted_at", "stored_at", "generation", "partition", "offset", "position"),
    ]
    sent = one | {"timestamp": "2021-01-25T18:20:42.500000Z"}
    assert {field: found[field] for field in sent} == sent
    accepted, was_stored = (datetime.fromisoformat(found[field]) for field in ("accepted_at", "stored_at"))
    assert before - timedelta(milliseconds=1) <= accepted <= was_stored <= datetime.now(UTC)
    by_id = program.get(f"/v2/events?event_id={{{one['event_id'].upper()}}}").json()
    assert by_id == {"events": [found]}


def test_the_look_up_of_an_unknown_id(program):
    answer = program.get(f"/v2/events?event_id={new_id()}")
    assert (answer.status, answer.json()["error"]["code"]) == (404, "not_found")
    answer = program.get(f"/v2/events?session_id={new_id()}")
    assert (answer.status, answer.json()) == (200, {"events": []})


def test_an_event_id_is_counted_once_over_all_history(millrace, space):
    settings = SMALL_RANGES
    program = millrace("run", settings=settings)
    events = [event(event_id=new_id()) for _ in range(300)]
    without = [event() for _ in range(50)]
    post(program, [*events, *events[:100], *without, *without])
    post(program, events[50:150])
    wait_stored(space, kind="interaction")
    program.stop()
    program = millrace("run", settings=settings)
    # The first one counts, whatever the copies say.
    post(program, [one | {"name": "cta_click", "data": {**DATA, "element": "x"}} for one in events[:20]])
    program.kill()
    program = millrace("run", settings=settings)
    post(program, [*events, *without])
    wait_stored(space, kind="interaction")
    assert len(timeline(program, limit=1000)) == 300 + 150
    assert counters(program) == report_of([*events, *without, *without, *without])
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr
    for one in random.sample(events, 20):
        (found,) = program.get(f"/v2/events?event_id={one['event_id']}").json()["events"]
        assert found["name"] == "pageview"


def with_key(program, body, key):
    return post(program, body, headers={"Idempotency-Key": key})


def test_a_body_that_is_sent_again_under_its_key_is_counted_once(millrace, space):
    program = millrace("run", settings=SMALL_RANGES)
    own = event(event_id=new_id())
    events = [*(event() for _ in range(200)), own]
    # Equal events of one body are as many events.
    events += [events[0]] * 5
    for _ in range(3):
        with_key(program, ndjson(events), "upload-1")
    # Without the key, or under another, they are new; the one with an id of its own is not.
    with_key(program, ndjson(events), "upload-2")
    post(program, events)
    # Another body under the same key drops nothing.
    others = [event() for _ in range(100)]
    with_key(program, ndjson(others), "upload-1")
    with_key(program, ndjson(others), "upload-1")
    wait_stored(space, kind="interaction")
    assert len(timeline(program, limit=1000)) == 3 * 205 + 1 + 100
    assert counters(program) == report_of([*events[:200], *[events[0]] * 5] * 3 + [own] + others)
    # A made id is not one that can be asked for.
    assert all("event_id" not in one or one["event_id"] == own["event_id"] for one in timeline(program, limit=1000))
    program.kill()
    program = millrace("run", settings=SMALL_RANGES)
    with_key(program, ndjson(events), "upload-1")
    with_key(program, ndjson(others), "upload-1")
    wait_stored(space, kind="interaction")
    assert len(timeline(program, limit=1000)) == 3 * 205 + 1 + 100
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("point", ["after_claim", "after_events", "after_counters"])
def test_killed_while_storing(point, millrace, space):
    """kill -9 at a named place, then another writer takes over: events without an id are stored once, too."""
    door = millrace("serve", settings=SMALL_RANGES)
    victim = millrace("write", settings=SMALL_RANGES, failpoints=f"writer::{point}=4*off->1*return")
    sent, number = [], 0

    def send():
        nonlocal number
        number += 1
        batch = [event(data={**DATA, "n": f"{number}-{at}"}) for at in range(40)]
        batch += [event(event_id=new_id(), data={**DATA, "n": f"{number}-id-{at}"}) for at in range(10)]
        post(door, [*batch, *batch[-5:]])
        sent.extend(batch)

    eventually(lambda: send() or not victim.is_running(), 40, what="the writer to kill itself")
    assert victim.wait_end(5) == -signal.SIGKILL
    millrace("write", settings=SMALL_RANGES)
    send()
    wait_stored(space, kind="interaction")
    found = Counter(one["data"]["n"] for one in timeline(door, limit=10_000))
    assert found == Counter(one["data"]["n"] for one in sent)
    assert counters(door) == report_of(sent)
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr


def test_the_readme_works_as_pasted(millrace):
    program = millrace("run")
    (block, says) = next((block, says) for block, says in readme_examples() if "/v2/events" in block)
    commands = re.split(r"\n(?=curl)", block.strip())
    accepted, events, report = says.splitlines()
    assert paste(program, commands[0]) == accepted

    def shown():
        told = re.sub(r'_at":"[^"]+"', '_at":"..."', paste(program, commands[1]))
        assert told == events
        return True

    eventually(shown, what="the README's events")
    eventually(lambda: paste(program, commands[2]) == report, what="the README's report")


# Pages and reports.


def test_pages_join_while_events_pour_in(millrace, dice):
    program = millrace("run", settings=SMALL_RANGES)
    sessions = [new_id() for _ in range(3)]
    types = [("page_interaction", "pageview"), ("page_interaction", "cta_click"), ("form_interaction", "submit")]
    data = {**DATA, "element": "e", "form": "f"}

    def some(count, year):
        # Few instants, so that many events share theirs.
        for _ in range(count):
            category, name = dice.choice(types)
            yield event(
                session_id=dice.choice(sessions),
                category=category,
                name=name,
                data=data,
                timestamp=f"{year}-01-{dice.randrange(1, 29):02}T00:00:{dice.randrange(3):02}Z",
            )

    for _ in range(6):
        post(program, list(some(200, 2021)))
    whole = stored(program, "limit=10000", 1200, deadline_s=30)
    assert whole == sorted(whole, key=place)
    # Late and new events come between the pages; those that were there are found once each, in order.
    left = 0

    def pour():
        nonlocal left
        left -= 1
        if left >= 0:
            post(program, list(some(20, dice.choice([2020, 2022]))))

    for query, belongs in [
        ("", lambda one: True),
        (f"session_id={sessions[0]}", lambda one: one["session_id"] == sessions[0]),
        ("category=page_interaction", lambda one: one["category"] == "page_interaction"),
        ("name=submit&name=pageview", lambda one: one["name"] in ("submit", "pageview")),
        (
            f"session_id={sessions[1]}&name=submit&from=2021-01-03T00:00:01Z&to=2021-01-20T00:00:02Z",
            lambda one: one["session_id"] == sessions[1]
            and one["name"] == "submit"
            and "2021-01-03T00:00:01" <= one["timestamp"] < "2021-01-20T00:00:02",
        ),
    ]:
        for limit in (31, 1000):
            left = 15
            found = timeline(program, query, limit=limit, each=pour)
            assert found == sorted(found, key=place)
            assert len({place(one) for one in found}) == len(found)
            known = [one for one in found if one["timestamp"].startswith("2021")]
            assert known == [one for one in whole if belongs(one)], (query, limit)


def test_a_page_is_bounded_in_bytes(millrace):
    program = millrace("run")
    session = new_id()
    for number in range(30):
        post(program, [event(session_id=session, data={**DATA, "n": number, "long": "x" * 900_000})])
    found = stored(program, f"session_id={session}", 30, deadline_s=40)
    assert [one["data"]["n"] for one in sorted(found, key=lambda one: one["accepted_at"])] == list(range(30))
    for query in ("limit=10000", f"session_id={session}&limit=10000"):
        page = program.get(f"/v2/events?{query}")
        assert 16 << 20 < len(page.body) < 18 << 20
        assert "next" in page.json()


def test_queries_that_are_refused(program):
    for path, query, said in [
        ("/v2/events", "site_id=x", "session_id, category, name, from, to, event_id, limit, cursor"),
        ("/v2/events", "limit=10001", "from 1 to 10000"),
        ("/v2/events", "from=2021-01-26T00:00:00Z&to=2021-01-25T00:00:00Z", "not after `to`"),
        ("/v2/events", "category=a'%20OR%201=1", None),
        ("/v2/events", "name=%ff", "UTF-8"),
        ("/v2/events", "cursor=00", "cursor"),
        ("/v2/report", "session_id=x", "category, name, day, from, to, limit, cursor"),
        ("/v2/report", "day=2021-02-29", "there is no such date"),
    ]:
        answer = program.get(f"{path}?{query}")
        if said is None:
            # A quote is a character like any other.
            assert (answer.status, answer.json()) == (200, {"events": []})
        else:
            assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_parameter"), answer.text
            assert said in answer.json()["error"]["message"]


def test_report_against_a_model(millrace, space, dice):
    """200,000 events of two writers, with copies and late ones."""
    doors = [millrace("run"), millrace("run")]
    types = [tuple(full.split(".")) for full in KNOWN]
    data = {**DATA, "element": "e", "form": "f"}
    expected, sent = {}, []
    without = Counter()
    start = datetime(2024, 2, 1, tzinfo=UTC)
    for number in range(100):
        batch = []
        for _ in range(2000):
            if sent and dice.random() < 0.1:
                batch.append(dice.choice(sent))
                continue
            category, name = dice.choice(types)
            late = dice.random() < 0.05
            when = start + timedelta(hours=number) - timedelta(seconds=dice.randrange(40 * 86400 if late else 600))
            one = event(
                session_id=str(uuid.UUID(int=dice.getrandbits(128))),
                category=category,
                name=name,
                data=data,
                timestamp=when.isoformat(),
            )
            if dice.random() < 0.5:
                one["event_id"] = str(uuid.UUID(int=dice.getrandbits(128)))
                sent.append(one)
            batch.append(one)
        for one in batch:
            key = (one["timestamp"][:10], one["category"], one["name"])
            if "event_id" not in one:
                without[key] += 1
            else:
                expected.setdefault(one["event_id"], key)
        post(dice.choice(doors), batch)
    total = without + Counter(expected.values())
    wait_stored(space, kind="interaction", deadline_s=60)
    rows = [
        {"time": f"{day}T00:00:00", "category": category, "name": name, "count": total[day, category, name]}
        for day, category, name in sorted(total)
    ]
    for door in doors:
        assert counters(door) == rows
    assert counters(doors[0], limit=7) == rows
    for query, belongs in [
        ("category=page_interaction", lambda row: row["category"] == "page_interaction"),
        ("name=submit&name=pageview", lambda row: row["name"] in ("submit", "pageview")),
        ("from=2024-01-20&to=2024-02-02", lambda row: "2024-01-20" <= row["time"][:10] <= "2024-02-02"),
        ("day=2024-02-01&day=2024-01-10", lambda row: row["time"][:10] in ("2024-02-01", "2024-01-10")),
    ]:
        assert counters(doors[1], query, limit=dice.choice([1, 5, 1000])) == [row for row in rows if belongs(row)]
    stored_events = space.store.value(f"SELECT count() FROM {space.database}.interaction_events")
    assert stored_events == sum(total.values())
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr


def test_captchas_and_interactions_at_once(millrace, space):
    program = millrace("run", settings=SMALL_RANGES)
    site, session = new_id(), new_id()
    for _ in range(10):
        captchas = [captcha_event(site_id=site) for _ in range(100)]
        assert program.post("/v1/events", captcha_ndjson(captchas)).json()["accepted"] == 100
        post(program, [event(session_id=session) for _ in range(100)])
    becomes(program, site, 1000)
    assert len(stored(program, f"session_id={session}&limit=10000", 1000)) == 1000
    assert {f"{space.topic_prefix}.captcha", f"{space.topic_prefix}.interaction"} <= set(space.log.topics())
    # Counted once a range is committed, which is after the report shows it.
    for kind in ("captcha", "interaction"):
        eventually(lambda kind=kind: program.metric("millrace_events_stored_total", kind=kind) == 1000, what="the count")
    told = run_command(space, "verify")
    assert told.returncode == 0, told.stdout + told.stderr


def test_latest_may_be_v2(millrace):
    program = millrace("run", settings={"MILLRACE_HTTP_LATEST_VERSION": "v2"})
    session = new_id()
    answer = program.post("/latest/events", json.dumps(event(session_id=session)))
    assert answer.status == 202
    eventually(lambda: program.get(f"/latest/events?session_id={session}").json()["events"], what="the event")
    assert program.get("/latest/schema").json() == program.get("/v2/schema").json()


# Schemas.


def test_the_schema_accepts_what_the_program_accepts(program):
    schema = program.get("/v2/schema").json()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    good = [
        event(),
        event(event_id=None),
        event(event_id=new_id().upper().replace("-", "")),
        event(session_id=f"urn:uuid:{new_id()}"),
        event(name="cta_click", data={**DATA, "element": "x"}),
        event(category="form_interaction", name="submit", data={**DATA, "form": "x"}),
        event(more=1, timestamp="2021-01-25 18:20:42"),
    ]
    bad = [
        event(session_id="x"),
        event(event_id="x"),
        event(category="form_interaction"),
        event(name="none"),
        event(data={}),
        event(data=[]),
        event(name="cta_click"),
        event(timestamp="2021-01-25"),
        {key: value for key, value in event().items() if key != "timestamp"},
        [],
    ]
    assert post(program, good) == len(good)
    for one in good:
        validator.validate(one)
    for one in bad:
        assert not validator.is_valid(one), one
        assert program.post("/v2/events", json.dumps([one])).status == 422


def write_schema(folder, full, schema):
    """As an operator should: whole or not at all."""
    new = folder / f".{full}.new"
    new.write_text(schema if isinstance(schema, str) else json.dumps(schema), encoding="utf-8")
    new.rename(folder / f"{full}.json")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "schemas"
    made.mkdir()
    write_schema(made, "shop.buy", {"type": "object", "required": ["sku"], "properties": {"sku": {"type": "string"}}})
    return made


def reload(program, said):
    """Sends SIGHUP and waits for what the log says of it."""
    before = program.log_path.read_text(encoding="utf-8").count(said)
    program.process.send_signal(signal.SIGHUP)
    eventually(lambda: program.log_path.read_text(encoding="utf-8").count(said) > before, what=f"{said!r} in the log")


def test_schemas_of_a_folder_are_read_again_on_sighup(millrace, folder):
    program = millrace("run", settings={"MILLRACE_INTERACTION_SCHEMAS": str(folder)})
    buy = event(category="shop", name="buy", data={"sku": "x"})
    look = event(category="shop", name="look", data={})
    post(program, [buy])
    assert blamed(program, look)[0] == "unknown_type"
    # The built-in types are not there: the folder has all there are.
    assert blamed(program, event())[0] == "unknown_type"

    write_schema(folder, "shop.look", {})
    assert blamed(program, look)[0] == "unknown_type"
    reload(program, "2 types")
    post(program, [buy, look])
    assert {"shop.buy", "shop.look"} == set(program.get("/v2/schema").json()["$defs"])

    # One that is broken leaves all as it was, and the log says which and where.
    write_schema(folder, "shop.look", '{\n"type": 7}')
    write_schema(folder, "shop.sell", {})
    reload(program, "shop.look.json: at /type")
    post(program, [buy, look])
    assert blamed(program, look | {"name": "sell"})[0] == "unknown_type"

    # One that is mended, and one that is gone.
    write_schema(folder, "shop.look", {"required": ["at"]})
    (folder / "shop.buy.json").unlink()
    reload(program, "2 types")
    assert blamed(program, look)[:2] == ("bad_data", "data.at")
    assert blamed(program, buy)[0] == "unknown_type"
    for path in folder.iterdir():
        path.unlink()
    reload(program, "holds no CATEGORY.NAME.json")
    post(program, [look | {"data": {"at": 1}}])


def test_reloads_lose_no_request_and_mix_no_sets(millrace, space, folder):
    """Each request is judged by one set from its first event to its last."""
    program = millrace("run", settings={"MILLRACE_INTERACTION_SCHEMAS": str(folder)})
    schemas = [{"required": ["a"]}, {"required": ["b"]}]
    write_schema(folder, "shop.look", schemas[0])
    reload(program, "2 types")
    lines = ndjson([event(category="shop", name="look", data={"ab"[n % 2]: n}) for n in range(400)])
    judged, taken = set(), 0
    for number in range(40):
        write_schema(folder, "shop.look", schemas[number % 2])
        program.process.send_signal(signal.SIGHUP)
        for _ in range(5):
            answer = program.post("/v2/events", lines)
            assert answer.status == 202
            told = answer.json()
            assert (told["accepted"], told["rejected"]) == (200, 200)
            fields = {error["field"] for error in told["errors"]}
            assert len(fields) == 1, fields
            judged |= fields
            taken += 200
    assert judged == {"data.a", "data.b"}
    wait_stored(space, kind="interaction")
    assert counters(program)[0]["count"] == taken


def test_a_schema_may_refer_to_itself_as_deep_as_data_goes(millrace, folder):
    """The deepest check that there is, on a coroutine's stack."""
    count = 1000
    places = {f"p{n}": {"$ref": f"#/$defs/p{n + 1}"} for n in range(count)}
    places[f"p{count}"] = {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#/$defs/p0"}]}}}
    write_schema(folder, "shop.tree", {"$ref": "#/$defs/p0", "$defs": places})
    program = millrace("run", settings={"MILLRACE_INTERACTION_SCHEMAS": str(folder)})

    def tree(inner, depth):
        for _ in range(depth):
            inner = {"a": inner}
        return event(category="shop", name="tree", data=inner)

    good = [tree({}, depth) for depth in range(64)]
    for _ in range(20):
        post(program, good)
    assert blamed(program, tree({}, 64))[0] == "too_deep"
    code, field, _ = blamed(program, tree(5, 63))
    assert (code, field) == ("bad_data", "data.a")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("shop.look.json", "{", "shop.look.json: not JSON: EOF while parsing an object at line 1 column 1"),
        ("shop.look.json", '{"properties":{"a":{"minLength":-1}}}', "shop.look.json: at /properties/a/minLength"),
        ("shop.look.json", '{"$ref":"http://127.0.0.1:9/x"}', "shop.look.json: "),
        ("look.json", "{}", "look.json: expected a file name of the form CATEGORY.NAME.json"),
    ],
)
def test_a_broken_schema_refuses_the_start(millrace, space, folder, name, text, said):
    (folder / name).write_text(text, encoding="utf-8")
    settings = {"MILLRACE_INTERACTION_SCHEMAS": str(folder)}
    program = millrace("run", settings=settings, wait=False)
    assert program.wait_end(20) == 1
    assert said in program.log_path.read_text(encoding="utf-8")
    check = millrace("check", ["--offline"], settings=settings, wait=False)
    assert check.wait_end(20) == 1
    assert said in check.log_path.read_text(encoding="utf-8")


def test_who_accepts_nothing_has_nothing_to_reload(millrace):
    program = millrace("write")
    reload(program, "nothing to reload")
    assert program.is_running()


def test_the_systemd_unit_reloads():
    unit = (REPOSITORY / "systemd" / "millrace.service").read_text(encoding="utf-8")
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit
