"""GET /v1/report: its order, filters, pages and errors, against counts made here."""

import json
import os
import random
import re
import time
import uuid
from datetime import date, timedelta

import pytest
from captcha import Model, all_counters, becomes, counters, event, ndjson, new_id
from harness import eventually
from once import SMALL_RANGES, wait_stored

PATHS = ["/v1/report", "/api/report", "/latest/report"]
KEPT = "MILLRACE_CLICKHOUSE_REPORT_ROWS_KEPT_MAX"
PARAMETERS = ["site_id", "day", "from", "to", "limit", "cursor"]

# Sites whose texts and whose two halves sort differently, as ClickHouse compares the second half first.
SITES = sorted(
    str(uuid.UUID(text))
    for text in (
        "00000000-0000-0000-ffff-ffffffffffff",
        "00000000-0000-0001-0000-000000000000",
        "7fffffff-ffff-ffff-8000-000000000000",
        "80000000-0000-0000-7fff-ffffffffffff",
        "ffffffff-ffff-ffff-0000-000000000001",
        "a0000000-0000-4000-8000-00000000000a",
        "a0000000-0000-4000-8000-00000000000b",
    )
)
DAYS = [date(1970, 1, 1), date(2020, 2, 29), date(2021, 1, 25), date(2021, 1, 26), date(2021, 2, 1), date(2100, 12, 31)]


@pytest.fixture(scope="module")
def reported(module_millrace):
    """The program and the rows that its whole report must have."""
    program = module_millrace("run")
    dice, model, lines = random.Random(7), Model(), []
    for day in DAYS:
        for site in SITES:
            if dice.random() < 0.2:
                continue
            for kind in dice.choices(["serve", "solve"], k=dice.choice([1, 2, 5, 40])):
                one = event(type=kind, site_id=site, time=f"{day}T{dice.randrange(24):02}:00:00")
                model.take(kind, uuid.UUID(one["correlation_id"]), uuid.UUID(site), day)
                lines.append(one)
    answer = program.post("/v1/events", ndjson(lines))
    assert (answer.status, answer.json()["accepted"]) == (202, len(lines))
    expected = model.report()
    eventually(lambda: counters(program) == expected, what="the whole report")
    return program, expected


@pytest.fixture(scope="module", params=[100_000, 0, 5], ids=["kept whole", "asked each time", "too large to keep"])
def answering(reported, module_millrace, request):
    """The same, from a program that answers out of memory, and from others that ask ClickHouse each question."""
    program, expected = reported
    if request.param != 100_000:
        program = module_millrace("serve", settings={KEPT: str(request.param)})
    return program, expected


def test_the_shape_and_the_order(reported):
    program, expected = reported
    answer = program.get("/v1/report")
    assert answer.headers["Content-Type"] == "application/json"
    assert list(answer.json()) == ["counters"]
    rows = answer.json()["counters"]
    assert all(list(row) == ["time", "site_id", "served", "solved"] for row in rows)
    assert rows == expected
    assert rows == sorted(rows, key=lambda row: (row["time"], row["site_id"]))


@pytest.mark.parametrize("path", PATHS)
def test_every_alias_reports(reported, path):
    program, expected = reported
    assert program.get(path).json() == {"counters": expected}
    assert program.get(f"{path}?site_id={SITES[0]}").json() == {
        "counters": [row for row in expected if row["site_id"] == SITES[0]]
    }


def test_head_says_how_long_it_is(reported):
    program, _ = reported
    head, whole = program.request("HEAD", "/v1/report"), program.get("/v1/report")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(whole.body))


def filtered(rows, sites, days, start, end):
    return [
        row
        for row in rows
        if (not sites or row["site_id"] in sites)
        and (not days or row["time"][:10] in days)
        and (start is None or row["time"][:10] >= start)
        and (end is None or row["time"][:10] <= end)
    ]


def random_filters(dice):
    """A query of random filters, and what they ask for."""
    around = [day + timedelta(days=shift) for day in DAYS for shift in (-1, 0, 1) if day + timedelta(days=shift)]
    sites = [dice.choice([*SITES, new_id()]) for _ in range(dice.choice([0, 0, 1, 2, 4]))]
    days = [str(dice.choice(around)) for _ in range(dice.choice([0, 0, 1, 2, 5]))]
    start, end = sorted(str(dice.choice(around)) for _ in range(2))
    start, end = dice.choice([None, start]), dice.choice([None, end])
    pieces = [f"site_id={dice.choice([site, site.upper(), site.replace('-', '')])}" for site in sites]
    pieces += [f"day={day}" for day in days]
    pieces += [f"{name}={value}" for name, value in (("from", start), ("to", end)) if value is not None]
    dice.shuffle(pieces)
    return "&".join(pieces), (sites, days, start, end)


def test_random_filters_and_pages_against_plain_python(answering):
    program, expected = answering
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    dice = random.Random(seed)
    for _ in range(150):
        query, filters = random_filters(dice)
        wanted = filtered(expected, *filters)
        assert counters(program, f"?{query}") == wanted, (seed, query)
        assert all_counters(program, f"&{query}", limit=dice.choice([1, 2, 3, 10, 1000])) == wanted, (seed, query)


def test_filters_intersect(answering):
    program, expected = answering
    rows = counters(program, "?day=2021-01-25&day=2021-02-01&from=2021-01-26&to=2021-12-31")
    assert rows == filtered(expected, [], ["2021-02-01"], None, None)
    assert counters(program, "?day=2021-01-25&from=2021-01-26") == []
    assert counters(program, "?from=2021-01-25&to=2021-01-25") == filtered(expected, [], ["2021-01-25"], None, None)
    assert counters(program, "?from=0001-01-01&to=9999-12-31") == expected
    assert counters(program, "?day=1969-12-31") == []
    assert counters(program, f"?site_id={new_id()}") == []


def test_pages_go_on_to_the_end(answering):
    program, expected = answering
    for limit in (1, 4, len(expected) - 1):
        seen, query = [], f"?limit={limit}"
        while True:
            answer = program.get(f"/v1/report{query}").json()
            assert len(answer["counters"]) <= limit
            seen += answer["counters"]
            if "next" not in answer:
                break
            assert len(answer["counters"]) == limit
            # A cursor is made to be pasted into an address.
            assert re.fullmatch(r"[A-Za-z0-9_.~-]+", answer["next"])
            query = f"?limit={limit}&cursor={answer['next']}"
        assert seen == expected
    # A page that ends exactly with the report is the last one.
    assert "next" not in program.get(f"/v1/report?limit={len(expected)}").json()
    # The limit may change on the way, filters may be written in another order.
    first = program.get(f"/v1/report?day=2021-01-25&day=2021-01-26&limit=1&site_id={SITES[0]}").json()
    rest = counters(program, f"?site_id={SITES[0].upper()}&cursor={first['next']}&day=2021-01-26&day=2021-01-25")
    assert first["counters"] + rest == filtered(expected, SITES[:1], ["2021-01-25", "2021-01-26"], None, None)


def test_few_queries_for_many_questions(answering):
    """However many sites are asked for, ClickHouse is asked for the whole a few times a second."""
    program, expected = answering

    def queries():
        return program.metric("millrace_report_duration_seconds_count", kind="captcha")

    before, began = queries(), time.monotonic()
    for nth in range(200):
        site = SITES[nth % len(SITES)]
        assert counters(program, f"?site_id={site}&limit={1000 + nth}") == filtered(expected, [site], [], None, None)
    wholes = 2 + (time.monotonic() - began) / 0.03
    asked = queries() - before
    assert asked <= wholes if KEPT not in program.environment else asked >= 200


def test_a_cursor_stays_true_while_events_arrive(reported):
    program, expected = reported
    first = program.get("/v1/report?from=2021-01-25&limit=3").json()
    # An event of an earlier day moves no page.
    site = new_id()
    assert program.post("/v1/events", event(site_id=site, time="1999-12-31T00:00:00")).status == 202
    becomes(program, site, 1)
    rest = counters(program, f"?from=2021-01-25&limit=1000&cursor={first['next']}")
    assert first["counters"] + rest == filtered(expected, [], [], "2021-01-25", None)


def refused(program, query):
    """The message of a 400."""
    answer = program.get(f"/v1/report?{query}")
    assert answer.status == 400, (query, answer.text)
    told = answer.json()
    assert list(told) == ["error"] and list(told["error"]) == ["code", "message"]
    assert told["error"]["code"] == "bad_parameter"
    message = told["error"]["message"]
    assert all(parameter in message for parameter in PARAMETERS), message
    assert len(message) < 500 and message.isprintable()
    return message


def test_cursors_under_other_filters_are_refused(reported):
    program, _ = reported
    cursor = program.get(f"/v1/report?from=2021-01-01&site_id={SITES[0]}&limit=1").json()["next"]
    for query in (
        f"cursor={cursor}",
        f"cursor={cursor}&from=2021-01-02&site_id={SITES[0]}",
        f"cursor={cursor}&from=2021-01-01&site_id={SITES[1]}",
        f"cursor={cursor}&from=2021-01-01&site_id={SITES[0]}&to=2021-12-31",
        f"cursor={cursor[:-1]}&from=2021-01-01&site_id={SITES[0]}",
        f"cursor={cursor}0&from=2021-01-01&site_id={SITES[0]}",
        f"cursor={'0' * len(cursor)}&from=2021-01-01&site_id={SITES[0]}",
        "cursor=",
        "cursor",
        "cursor=%00%ff",
        f"cursor={'x' * 4000}",
    ):
        assert "cursor" in refused(program, query)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("sites=x", "sites"),
        ("x", "x"),
        ("=", '""'),
        ("site_id", "site_id"),
        ("site_id=", "site_id"),
        ("site_id=1", "site_id"),
        (f"site_id={SITES[0]}&site_id=bad", "site_id"),
        (f"site_id={SITES[0]},{SITES[1]}", "site_id"),
        (f"site_id[]={SITES[0]}", "site_id[]"),
        ("day=", "day"),
        ("day=today", "day"),
        ("day=2021-1-25", "day"),
        ("day=2021-02-29", "day"),
        ("day=2021-01-25T00:00:00", "day"),
        ("day=2021-01-25,2021-01-26", "day"),
        ("day=20210125", "day"),
        ("from=", "from"),
        ("to=2021-13-01", "to"),
        ("from=2021-01-26&to=2021-01-25", "from"),
        ("from=2021-01-25&from=2021-01-25", "from"),
        ("to=2021-01-25&to=2021-01-26", "to"),
        ("limit=1&limit=1", "limit"),
        ("cursor=a&cursor=a", "cursor"),
        ("limit=", "limit"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=1.5", "limit"),
        ("limit=100001", "limit"),
        ("limit=99999999999999999999999999", "limit"),
        ("limit=ten", "limit"),
        ("day=%zz", "day"),
        ("day=%ff", "day"),
        ("%00=1", "parameter"),
        ("day=2021-01-25%27%20OR%201=1", "day"),
        ("FORMAT=JSON", "FORMAT"),
        ("x" * 4000 + "=1", "xxx"),
    ],
)
def test_bad_parameters_are_named_with_the_allowed_ones(reported, query, name):
    program, _ = reported
    assert name in refused(program, query)


def test_a_near_name_is_suggested(reported):
    program, _ = reported
    assert "did you mean \"site_id\"" in refused(program, f"siteid={SITES[0]}")


def test_allowed_edges(reported):
    program, expected = reported
    for query in ("", "?", "?&&", "?limit=100000", "?limit=1000&", "?day=2021%2D01%2D25&day=1970-01-01&limit=00010"):
        assert program.get(f"/v1/report{query}").status == 200, query
    assert counters(program, "?limit=100000") [: len(expected)]


def test_many_filters_at_once(answering):
    program, expected = answering
    query = "&".join([*(f"site_id={new_id()}" for _ in range(60)), *(f"site_id={site}" for site in SITES)])
    sites = filtered(expected, SITES, [], None, None)
    assert counters(program, f"?{query}") == sites


def test_counters_that_pile_up_are_merged_by_the_writer(millrace, space):
    """Rows that ClickHouse has not merged yet are added up by each report; a writer asks for merges when they are many."""
    program = millrace("run", settings=SMALL_RANGES)
    space.store.query(f"SYSTEM STOP MERGES {space.database}.captcha_counters")
    sites = 0
    while "counters could not be merged" not in program.log_text():
        assert sites < 600_000, program.log_tail()
        body = ndjson([event(site_id=new_id(), time="2021-01-25T00:00:00") for _ in range(20_000)])
        assert program.post("/v1/events", body).status == 202
        sites += 20_000
    # It is told, and nothing else: every event is stored and counted.
    wait_stored(space)
    assert sites >= 250_000
    assert space.store.value(f"SELECT sum(served + solved) FROM {space.database}.captcha_counters") == sites
    space.store.query(f"SYSTEM START MERGES {space.database}.captcha_counters")


def test_no_wrong_numbers_while_clickhouse_is_away(millrace, own_clickhouse, own_clickhouse_space):
    program = millrace("run", space=own_clickhouse_space, settings={"MILLRACE_CLICKHOUSE_REPORT_MS_MAX": "1000"})
    site = new_id()
    assert program.post("/v1/events", ndjson([event(site_id=site) for _ in range(10)])).status == 202
    becomes(program, site, 10)
    expected = counters(program)

    def away():
        # What was asked for a quarter of a second ago may be given once more.
        eventually(lambda: program.get("/v1/report").status == 503, 5, what="no answer")
        for query in ("", f"?site_id={site}", "?day=1999-01-01", "?limit=1"):
            answer = program.get(f"/v1/report{query}")
            assert answer.status == 503, answer.text
            assert json.loads(answer.body)["error"]["code"] == "unavailable"
            assert int(answer.headers["Retry-After"]) >= 1
        # What is asked wrongly is told so all the same.
        assert program.get("/v1/report?x=1").status == 400

    own_clickhouse.pause()
    away()
    # Events are taken meanwhile, and health says what is not done.
    assert program.post("/v1/events", ndjson([event(site_id=site) for _ in range(5)])).status == 202
    degraded = eventually(lambda: program.get("/health/ready").json()["status"] == "degraded", 15, what="degraded")
    assert degraded
    missing = {one["name"]: one for one in program.get("/health/ready").json()["missing"]}
    assert missing["clickhouse"]["stalled"] == ["report", "store"]
    assert program.get("/health/ready").status == 200
    own_clickhouse.resume()
    becomes(program, site, 15, deadline_s=40)

    own_clickhouse.kill()
    away()
    assert program.post("/v1/events", ndjson([event(site_id=site) for _ in range(5)])).status == 202
    own_clickhouse.start()
    becomes(program, site, 20, deadline_s=40)
    eventually(lambda: program.get("/health/ready").json() == {"status": "ready", "missing": []}, 20, what="readiness")
    assert expected != counters(program)
    program.stop()
