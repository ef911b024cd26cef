"""Clicks and impressions: both ways in, the report by hour, and that every number is exact."""

import itertools
import json
import subprocess
import threading
import time
from contextlib import closing

import pytest
from captcha import becomes as captcha_becomes
from captcha import event as captcha_event
from harness import environment_without_settings, eventually, millrace_binary
from hit import (
    HOUR,
    HOUR_MS,
    Model,
    becomes,
    event,
    hit,
    new_dice,
    new_id,
    ndjson,
    parse_report,
    post,
    random_hits,
    report,
    send_queries,
    target,
)
from once import SMALL_RANGES

LAST_MS = 4_133_980_799_999
_hours = itertools.count(1)


def own_hour():
    """An hour that no other test counts in."""
    return HOUR + next(_hours) * HOUR_MS


@pytest.fixture(scope="module")
def program(module_millrace):
    return module_millrace("run")


def refused(answer):
    assert answer.status == 400, (answer.status, answer.text)
    told = answer.json()
    assert list(told) == ["error"] and told["error"]["code"] == "bad_parameter", told
    return told["error"]["message"]


# Queries.


def test_a_query_is_answered_204_and_counted(program):
    hour = own_hour()
    hit(program, event(timestamp=hour, user="anna", action="click"))
    hit(program, event(timestamp=hour + HOUR_MS - 1, user="anna", action="impression"))
    hit(program, event(timestamp=hour + 5, user="ben", action="impression"))
    becomes(program, hour, (2, 1, 2))
    answer = program.get(f"/analytics?timestamp={hour + 77}")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert answer.body == b"unique_users,2\nclicks,1\nimpressions,2\n"
    assert report(program, hour - 1) == report(program, hour + HOUR_MS) == (0, 0, 0)


def test_204_has_no_body_and_the_connection_goes_on(program):
    hour = own_hour()
    one = f"POST {target(event(timestamp=hour))} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    report_too = f"GET /analytics?timestamp={hour} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    with closing(program.connect()) as connection:
        for _ in range(2):
            connection.sendall(one)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += connection.recv(1 << 16)
            lines = head.decode().lower().split("\r\n")
            assert lines[0].startswith("http/1.1 204 ")
            assert not any(line.startswith(("content-type:", "content-length:", "transfer-encoding:")) for line in lines)
            assert any(line.startswith("x-request-id:") for line in lines)
        connection.sendall(report_too)
        said = b""
        while piece := connection.recv(1 << 16):
            said += piece
    assert said.startswith(b"HTTP/1.1 200 ") and b"unique_users," in said


@pytest.mark.parametrize("flag", ["click", "click=", "click=1", "click=true", "impression", "impression=true"])
def test_forms_of_an_action(program, flag):
    hour = own_hour()
    answer = program.request("POST", f"/analytics?timestamp={hour}&user=a&{flag}")
    assert (answer.status, answer.body) == (204, b"")
    becomes(program, hour, (1, 1, 0) if flag.startswith("click") else (1, 0, 1))


def test_percent_encoding_and_plus(program, module_space):
    """The same names, by a query in every encoding and by a body, are the same users."""
    hour = own_hour()
    encodings = {
        "anna maria": ["anna+maria", "anna%20maria", "%61nna+maria"],
        "a+b": ["a%2Bb", "a%2bb"],
        "ä€😀": ["%C3%A4%E2%82%AC%F0%9F%98%80", "%c3%a4%e2%82%ac%f0%9f%98%80"],
        "&=%#\x00\n": ["%26%3D%25%23%00%0A"],
        "a=b": ["a=b", "a%3Db"],
        "ü" * 128: ["%C3%BC" * 128],
    }
    clicks = 0
    for name, forms in encodings.items():
        for form in forms:
            answer = program.request("POST", f"/analytics?timestamp={hour}&user={form}&click")
            assert answer.status == 204, answer.text
            clicks += 1
        post(program, [event(timestamp=hour, user=name, action="impression")])
    becomes(program, hour, (len(encodings), clicks, len(encodings)))
    stored = module_space.store.rows(
        f"SELECT DISTINCT user FROM {module_space.database}.hit_events WHERE toUnixTimestamp64Milli(timestamp) = {hour}"
    )
    assert {row["user"] for row in stored} == set(encodings)


def test_what_is_no_hit_is_400_and_says_what(program):
    good = {"timestamp": f"timestamp={HOUR}", "user": "user=a", "action": "click"}

    def message(query):
        return refused(program.request("POST", f"/analytics?{query}"))

    def changed(**changes):
        return "&".join({**good, **changes}.values())

    for stamp in ["", "=", "=-1", "=1.0", "=1611532800000.5", "=1e3", "=abc", f"={LAST_MS + 1}", "=%zz", "=2021-01-25"]:
        assert '"timestamp"' in message(changed(timestamp=f"timestamp{stamp}")), stamp
    for name in ["", "=", "=%", "=%ff", "=%ed%a0%80", f"={'x' * 257}", f"={'%C3%BC' * 128}x"]:
        assert '"user"' in message(changed(user=f"user{name}")), name
    for action in ["click&impression", "", "clicks", "click=0", "click=no", "impression=false", "Click"]:
        assert "click" in message(changed(action=action)), action
    for identity in ["event_id", "event_id=", "event_id=null", "event_id=123"]:
        assert '"event_id"' in message(f"{changed()}&{identity}"), identity
    for name, pair in [*good.items(), ("event_id", f"event_id={new_id()}")]:
        assert "more than once" in message(f"{changed()}&event_id={new_id()}&{pair}"), name
    for name, pair in good.items():
        missing = "&".join(other for other in good.values() if other != pair)
        assert {"action": "click"}.get(name, name) in message(missing)
    assert '"time"' in message(f"{changed()}&time=1")
    assert program.request("POST", "/analytics").status == 400
    answer = program.post(f"/analytics?{changed()}", "{}")
    assert (answer.status, answer.json()["error"]["code"]) == (400, "bad_request")
    assert report(program, HOUR) == (0, 0, 0)


def test_other_methods(program):
    for method in ["PUT", "PATCH", "DELETE"]:
        answer = program.request(method, f"/analytics?timestamp={HOUR}")
        assert answer.status == 405
        assert {"GET", "HEAD", "POST"} == set(answer.headers["Allow"].split(", "))
        assert program.request(method, "/hits").status == 405
    head = program.request("HEAD", f"/analytics?timestamp={HOUR - 7 * HOUR_MS}")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len("unique_users,0\nclicks,0\nimpressions,0\n"))


def test_the_report_takes_one_timestamp(program):
    for query in [
        "",
        "?",
        "?timestamp",
        "?timestamp=",
        "?timestamp=x",
        "?timestamp=-1",
        "?timestamp=1.0",
        f"?timestamp={LAST_MS + 1}",
        f"?timestamp={HOUR}&timestamp={HOUR}",
        f"?timestamp={HOUR}&user=a",
        "?hour=1",
    ]:
        assert "timestamp" in refused(program.get(f"/analytics{query}")), query
    for timestamp in [0, LAST_MS]:
        report(program, timestamp)


# Bodies.


def test_bodies_of_every_form(program):
    hour = own_hour()
    one = event(timestamp=hour, user="anna")
    for body in [json.dumps(one), json.dumps([one, one]), ndjson([one, one, one]), json.dumps(one, indent=1)]:
        answer = program.post("/hits", body)
        assert answer.status == 202, answer.text
    post(program, [event(timestamp=hour, user="ben", action="impression", event_id=None, extra={"a": [1]})])
    becomes(program, hour, (2, 7, 1))


def test_edges_of_time(program):
    for instant in [0, LAST_MS]:
        post(program, [event(timestamp=instant)])
        hit(program, event(timestamp=instant, action="impression"))
        becomes(program, instant, (2, 1, 1))


def test_rejected_events_name_their_field(program):
    hour = own_hour()
    bad = [
        (event(timestamp="1611532800000"), "bad_timestamp", "timestamp"),
        (event(timestamp=1.5), "bad_timestamp", "timestamp"),
        (event(timestamp=1000.0), "bad_timestamp", "timestamp"),
        (event(timestamp=-1), "bad_timestamp", "timestamp"),
        (event(timestamp=LAST_MS + 1), "bad_timestamp", "timestamp"),
        (event(timestamp=None), "bad_timestamp", "timestamp"),
        (event(user=""), "bad_user", "user"),
        (event(user="x" * 257), "bad_user", "user"),
        (event(user=5), "bad_user", "user"),
        (event(user="\ud800"), "bad_user", "user"),
        (event(action="Click"), "bad_action", "action"),
        (event(action=1), "bad_action", "action"),
        (event(event_id="x"), "bad_uuid", "event_id"),
        (event(event_id=""), "bad_uuid", "event_id"),
        ({"user": "a", "action": "click"}, "missing_field", "timestamp"),
        ({"timestamp": 1, "action": "click"}, "missing_field", "user"),
        ({"timestamp": 1, "user": "a"}, "missing_field", "action"),
        ([1], "not_an_object", None),
    ]
    lines = [json.dumps(one) for one, _, _ in bad] + ['{"timestamp":1e3,"user":"a","action":"click"}', "{"]
    lines.append('{"timestamp":1,"user":"a","user":"b","action":"click"}')
    wanted = [(code, field) for _, code, field in bad]
    wanted += [("bad_timestamp", "timestamp"), ("bad_json", None), ("repeated_field", "user")]
    good = event(timestamp=hour)
    answer = program.post("/hits", "\n".join([*lines, json.dumps(good)]))
    told = answer.json()
    assert (answer.status, told["accepted"], told["rejected"]) == (202, 1, len(wanted)), told
    found = [(error["line"], error["code"], error["field"]) for error in told["errors"]]
    assert found == [(line, *reason) for line, reason in enumerate(wanted, 1)]
    assert program.post("/hits", lines[0]).status == 422
    assert program.post("/hits", "").status == 400
    assert program.post("/hits?x=1", json.dumps(good)).status == 400
    becomes(program, hour, (1, 1, 0))


# Once.


def test_an_identity_counts_once_whichever_way_it_comes(program):
    hour = own_hour()
    known = [event(timestamp=hour, event_id=new_id()) for _ in range(4)]
    hit(program, known[0])
    post(program, [known[1], known[1]])
    # Together they are taken in the order of the log; the next is sent when these are there.
    becomes(program, hour, (2, 2, 0))
    post(program, [known[0]])
    hit(program, known[1])
    hit(program, {**known[0], "user": "somebody else", "timestamp": hour + 5})
    hit(program, {**known[1], "event_id": known[1]["event_id"].upper()})
    hit(program, {**known[1], "event_id": known[1]["event_id"].replace("-", ""), "action": "impression"})
    hit(program, known[2])
    post(program, [known[3]])
    becomes(program, hour, (4, 4, 0))
    # Without one, the same hit again is another.
    same = event(timestamp=hour + HOUR_MS * 1000)
    for _ in range(2):
        hit(program, same)
        post(program, [same, {**same, "event_id": None}])
    becomes(program, same["timestamp"], (1, 6, 0))


def test_an_idempotency_key_counts_a_request_once(program):
    hour = own_hour()
    key = {"Idempotency-Key": f"upload {new_id()}".replace(" ", "-")}
    one = event(timestamp=hour, user="anna")
    body = [one, one, event(timestamp=hour, user="ben", event_id=new_id())]
    for _ in range(3):
        post(program, body, headers=key)
        hit(program, {**one, "action": "impression"}, headers=key)
    # Used again for others it drops nothing.
    post(program, [event(timestamp=hour, user="carl")], headers=key)
    hit(program, event(timestamp=hour, user="dora", action="impression"), headers=key)
    becomes(program, hour, (4, 4, 2))
    answer = program.request("POST", target(one), headers={"Idempotency-Key": "x" * 256})
    assert answer.status == 400


# The report.


def test_late_hits_change_past_hours(program):
    hour = own_hour() - 40 * 24 * HOUR_MS
    for number in range(1, 6):
        hit(program, event(timestamp=hour + number))
        becomes(program, hour, (number, number, 0))


def test_users_seen_by_two_servers_at_once(millrace, space):
    """Users are a set over everything that is stored, whoever took and stored it."""
    doors = [millrace("run", settings=SMALL_RANGES), millrace("run", settings=SMALL_RANGES)]
    users = [f"user-{number}" for number in range(300)]

    def send(door, action):
        post(door, [event(timestamp=HOUR, user=user, action=action) for user in users])
        post(door, [event(timestamp=HOUR, user=user, action=action, event_id=new_id()) for user in users])

    threads = [
        threading.Thread(target=send, args=(door, action)) for door in doors for action in ("click", "impression")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for door in doors:
        becomes(door, HOUR, (300, 1200, 1200), deadline_s=30)
    check_verify(space)


class Reader:
    """Asks for one hour again and again, and notes when each question began and what was answered."""

    def __init__(self, program, timestamp):
        self.program, self.timestamp = program, timestamp
        self.answers, self.errors = [], []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(30)

    def _run(self):
        try:
            while not self.stopping.is_set():
                began = time.monotonic()
                answer = self.program.get(f"/analytics?timestamp={self.timestamp}")
                assert answer.status == 200, answer.text
                self.answers.append((began, parse_report(answer.text)))
        except Exception as error:  # noqa: BLE001: shown by the test
            self.errors.append(error)


def test_an_answer_is_at_most_a_second_behind_what_is_stored(millrace, space):
    program = millrace("run")
    counted = f"SELECT sum(clicks) FROM {space.database}.hit_counters WHERE log_generation = 0"
    began = time.monotonic()
    stored = []
    with Reader(program, HOUR) as reader:
        for number in range(1, 9):
            hit(program, event(timestamp=HOUR))
            eventually(lambda wanted=number: space.store.value(counted) == wanted, what="the hit to be stored")
            stored.append((time.monotonic(), number))
        eventually(lambda: reader.errors or reader.answers[-1][1][1] == 8, what="the last hit in the report")
    assert not reader.errors, reader.errors
    elapsed_s = time.monotonic() - began
    clicks = [clicks for _, (_, clicks, _) in reader.answers]
    assert clicks == sorted(clicks), "an answer went back"
    for at, (users, seen, _) in reader.answers:
        assert users == seen
        known = max((number for when, number in stored if when <= at - 1), default=0)
        assert seen >= known, f"asked a second after {known} were stored, the answer was {seen}"
    # From memory: no two queries begin within an eighth of the age that an answer may have.
    queries = program.metric("millrace_report_duration_seconds_count", kind="hit")
    assert 2 <= queries <= elapsed_s / 0.112 + 2, (queries, elapsed_s, len(reader.answers))


def test_clickhouse_away(millrace, own_clickhouse_space, own_clickhouse):
    """Nothing is answered from memory for longer than an answer may be old; then it is a 503 until ClickHouse is back."""
    program = millrace("run", space=own_clickhouse_space, settings={"MILLRACE_CLICKHOUSE_REPORT_MS_MAX": "2000"})
    hit(program, event(timestamp=HOUR))
    becomes(program, HOUR, (1, 1, 0))
    own_clickhouse.kill()
    gone = time.monotonic()

    def refused_now():
        began = time.monotonic()
        answer = program.get(f"/analytics?timestamp={HOUR}")
        if answer.status == 200:
            assert parse_report(answer.text) == (1, 1, 0)
            if began > gone + 1:
                pytest.fail("answered from memory for more than a second")
            return False
        assert answer.status == 503 and int(answer.headers["Retry-After"]) >= 1
        return True

    eventually(refused_now, what="a 503")
    hit(program, event(timestamp=HOUR))
    own_clickhouse.start()

    def whole():
        answer = program.get(f"/analytics?timestamp={HOUR}")
        assert answer.status == 200, answer.text
        return parse_report(answer.text) == (2, 2, 0)

    eventually(whole, 60, what="both hits in the report")


# Several servers and writers.


def check_verify(space):
    told = subprocess.run(
        [millrace_binary(), "verify"],
        env={**environment_without_settings(), **space.settings()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert told.returncode == 0, told.stdout + told.stderr


def check_reports(programs, space, model, deadline_s=60):
    """Every hour's report at every server is the model's, and so is the recount of what is stored."""
    expected = model.reports()
    for program in programs:
        for hour, wanted in sorted(expected.items(), reverse=True):
            becomes(program, hour, wanted, deadline_s)
    check_verify(space)
    places = "log_generation, log_partition, log_offset, log_position"
    stored = space.store.rows(
        f"SELECT count() AS rows, uniqExact({places}) AS places FROM {space.database}.hit_events"
    )
    hits = sum(clicks + impressions for _, clicks, impressions in expected.values())
    assert stored == [{"rows": hits, "places": hits}]


def test_writers_join_and_leave(millrace, space):
    dice, model, now = new_dice(), Model(), int(time.time() * 1000)
    doors = [millrace("serve", settings=SMALL_RANGES) for _ in range(2)]
    writers = [millrace("write", settings=SMALL_RANGES)]
    for step in range(4):
        if step % 2 == 0:
            writers.append(millrace("write", settings=SMALL_RANGES, wait=False))
        for turn in range(10):
            sent = random_hits(dice, 300, now_ms=now, users=500)
            for one in sent:
                model.take(one)
            post(doors[turn % 2], sent)
        if step % 2 == 1:
            writers.pop(0).stop()
    # A server that comes later tells the same.
    doors.append(millrace("serve", settings=SMALL_RANGES))
    check_reports(doors, space, model)


@pytest.mark.parametrize("point", ["after_claim", "after_events", "after_counters"])
def test_killed_at(point, millrace, space):
    dice, model, now = new_dice(), Model(), int(time.time() * 1000)
    door = millrace("serve", settings=SMALL_RANGES)
    victim = millrace("write", settings=SMALL_RANGES, failpoints=f"writer::{point}=3*off->1*return")

    def send():
        sent = random_hits(dice, 200, now_ms=now, users=300)
        for one in sent:
            model.take(one)
        post(door, sent)

    def killed():
        send()
        return not victim.is_running()

    eventually(killed, 30, what="the end of the writer")
    send()
    millrace("write", settings=SMALL_RANGES)
    send()
    check_reports([door], space, model)


def test_kinds_at_once(millrace, space):
    """Captchas and hits in one process, each in its own topic and its own tables."""
    program = millrace("run", settings=SMALL_RANGES)
    dice, model, now = new_dice(), Model(), int(time.time() * 1000)
    site, served = new_id(), 0
    for _ in range(10):
        sent = random_hits(dice, 500, now_ms=now, users=200)
        for one in sent:
            model.take(one)
        post(program, sent)
        events = [captcha_event(site_id=site) for _ in range(200)]
        answer = program.post("/v1/events", "".join(json.dumps(one) + "\n" for one in events))
        assert answer.status == 202, answer.text
        served += len(events)
    captcha_becomes(program, site, served, deadline_s=30)
    check_reports([program], space, model)
    assert {f"{space.topic_prefix}.captcha", f"{space.topic_prefix}.hit"} <= set(space.log.topics())


def test_exact_at_two_servers_and_two_writers(millrace, space):
    """Of both ways 200,000, mixed, with copies and late ones, against a count made here."""
    dice, now = new_dice(), int(time.time() * 1000)
    doors = [millrace("serve"), millrace("serve")]
    for _ in range(2):
        millrace("write")
    hits = random_hits(dice, 400_000, now_ms=now, users=20_000)
    model = Model()
    for one in hits:
        model.take(one)
    dice.shuffle(hits)
    queries, bodies = hits[:200_000], hits[200_000:]
    errors = []

    def guarded(work, *arguments):
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001: shown below
            errors.append(error)

    def send_bodies(door, share):
        for start in range(0, len(share), 5000):
            post(door, share[start : start + 5000])

    threads = [threading.Thread(target=guarded, args=(send_queries, doors, queries))]
    threads += [
        threading.Thread(target=guarded, args=(send_bodies, door, bodies[nth::2])) for nth, door in enumerate(doors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    check_reports(doors, space, model)
