"""POST /v1/events: every form a body may have, every rule at its edges, every answer."""

import gzip
import itertools
import json
import os
import random
import re
import subprocess
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from captcha import Model, all_counters, becomes, counters, event, ndjson, new_id, of_site, take_event
from harness import REPOSITORY, eventually

BODY_BYTES_MAX = 32 << 20
EVENT_BYTES_MAX = 1 << 20
PATHS = ["/v1/events", "/v1/event", "/api/event", "/latest/events"]
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def program(module_millrace):
    return module_millrace("run")


def send(program, body, path="/v1/events", content_type="application/x-ndjson"):
    return program.post(path, body, headers={} if content_type is None else {"Content-Type": content_type})


def answered(program, body, status, accepted, rejected=None, **options):
    """Sends a body, checks the whole shape of the answer, and returns its errors as (line, code, field)."""
    answer = send(program, body, **options)
    assert answer.status == status, (answer.text[:1000], body[:200])
    assert answer.headers["Content-Type"] == "application/json"
    told = answer.json()
    assert list(told) == ["accepted", "rejected", "errors"]
    errors = []
    for error in told["errors"]:
        assert list(error) == ["line", "code", "field", "message"]
        assert error["message"] and len(error["message"]) < 400
        assert error["message"].isprintable()
        errors.append((error["line"], error["code"], error["field"]))
    assert told["accepted"] == accepted
    assert told["rejected"] == (len(errors) if rejected is None else rejected)
    return errors


def is_error(answer, status, code):
    """Checks an error that is not about events."""
    assert answer.status == status, answer.text[:500]
    assert answer.headers["Content-Type"] == "application/json"
    told = answer.json()
    assert list(told) == ["error"] and list(told["error"]) == ["code", "message"]
    assert told["error"]["code"] == code
    return told["error"]["message"]


def compact(one):
    return json.dumps(one, separators=(",", ":")).encode()


# What the README shows.


def readme_examples():
    """The README's curl commands, each with the answer that stands below it (None for one that stands alone)."""
    blocks = re.findall(r"```(\w*)\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    found = []
    for (language, text), (_, after) in itertools.pairwise([*blocks, ("", "")]):
        if language == "sh" and "curl" in text:
            found.append((text, after))
    return found


def test_the_readme_works_as_pasted(millrace):
    program = millrace("run")
    (first, first_says), (many, many_says), *_ = readme_examples()
    commands = re.split(r"\n(?=curl)", first.strip())
    assert len(commands) == 2
    assert paste(program, commands[0]) == first_says.splitlines()[0]
    shown = eventually(lambda: paste(program, commands[1]) == first_says.splitlines()[1], what="the README's report")
    assert shown
    # "Send it again, and the report stays as it is."
    assert paste(program, commands[0]) == first_says.splitlines()[0]
    told, promised = json.loads(paste(program, many.strip())), json.loads(many_says)
    assert told["errors"][0].pop("message")
    assert promised["errors"][0].pop("message")
    assert told == promised
    site = "6b1e9f0a-93d5-4c57-8a39-0d4a7c1e2f3b"
    becomes(program, site, 1, 1)


def paste(program, command):
    """What a shell prints for a command of the README, without its last newline."""
    assert "127.0.0.1:8000" in command
    command = command.replace("127.0.0.1:8000", f"127.0.0.1:{program.port}").replace("curl ", "curl -sS ")
    told = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=30, check=False)
    assert told.returncode == 0, told.stderr
    return told.stdout.removesuffix("\n")


# Forms of bodies.


def two_on_a_line(lines):
    return b"\n".join(b" ".join(lines[at : at + 2]) for at in range(0, len(lines), 2))


FORMS = {
    "NDJSON": lambda lines: b"\n".join(lines) + b"\n",
    "no last newline": b"\n".join,
    "CRLF": lambda lines: b"\r\n".join(lines) + b"\r\n",
    "a byte order mark": lambda lines: BOM + b"\n".join(lines),
    "blank lines": lambda lines: b"\n\n \t\r\n" + b"\n \r\n\n".join(lines) + b"\n\n\n",
    "blanks around": lambda lines: b"\n".join(b"  \t" + line + b" \t " for line in lines),
    "one after the other": b"".join,
    "blanks between": b"  ".join,
    "two on a line": two_on_a_line,
    "pretty-printed": lambda lines: b"\n".join(json.dumps(json.loads(line), indent=2).encode() for line in lines),
    "pretty-printed with tabs and CRLF": lambda lines: b"\r\n".join(
        json.dumps(json.loads(line), indent="\t").encode().replace(b"\n", b"\r\n") for line in lines
    ),
    "pretty-printed and not": lambda lines: lines[0] + b"\n" + b"\n".join(
        json.dumps(json.loads(line), indent=1).encode() for line in lines[1:]
    ),
    "an array": lambda lines: b"[" + b",".join(lines) + b"]",
    "an array with blanks and a mark": lambda lines: BOM + b" \n [ \r\n" + b" ,\n ".join(lines) + b"\n]\n\n",
    "a pretty-printed array": lambda lines: json.dumps([json.loads(line) for line in lines], indent=4).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_body(program, form):
    site = new_id()
    lines = [compact(event(site_id=site, type=kind)) for kind in ("serve", "serve", "solve", "serve", "solve")]
    assert answered(program, FORMS[form](lines), 202, 5) == []
    becomes(program, site, 3, 2)


@pytest.mark.parametrize("path", PATHS)
def test_every_alias_takes_events(program, path):
    site = new_id()
    assert answered(program, compact(event(site_id=site)), 202, 1, path=path) == []
    becomes(program, site, 1)


def test_forms_of_one_event(program):
    site = new_id()
    one = event(site_id=site)
    backwards = dict(reversed(one.items()))
    escaped = compact(event(site_id=site)).replace(b'"time"', b'"t\\u0069me"').replace(b'"serve"', b'"\\u0073erve"')
    bodies = [
        compact(one),
        compact({**backwards, "correlation_id": new_id()}),
        escaped,
        compact({"x": {"time": [None]}, **event(site_id=site), "Time": 1, "": [[[]]]}),
        compact(event(site_id=site))[:-1] + b',"n":1e999,"m":-123456789012345678901234567890,"s":"\\ud800"}',
        compact(event(site_id=site))[:-1] + b',"x":1,"x":2,"x":{"x":1,"x":1}}',
        compact(event(site_id=site))[:-1] + b',"deep":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ]
    for body in bodies:
        assert answered(program, body, 202, 1) == [], body[:300]
    becomes(program, site, len(bodies))


# Media types.


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "APPLICATION/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "text/json",
        "application/vnd.acme.event+json",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
        "application/x-www-form-urlencoded",
    ],
)
def test_media_types_that_are_taken(program, content_type):
    # The content tells the form, whatever the type says.
    lines = [compact(event()) for _ in range(3)]
    assert answered(program, b"\n".join(lines), 202, 3, content_type=content_type) == []
    assert answered(program, b"[" + b",".join(lines) + b"]", 202, 3, content_type=content_type) == []


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "text/html",
        "application/xml",
        "application/octet-stream",
        "multipart/form-data; boundary=x",
        "application/json; charset=latin1",
        "application/json, text/plain",
        "json",
        "*/*",
    ],
)
def test_other_media_types_are_415(program, content_type):
    site = new_id()
    message = is_error(send(program, compact(event(site_id=site)), content_type=content_type), 415, "unsupported_media_type")
    assert "application/json" in message and "application/x-ndjson" in message
    assert of_site(program, site) == (0, 0)


def test_other_encodings_are_415(program):
    site = new_id()
    body = compact(event(site_id=site))
    for encoding in ("br", "deflate", "gzip, identity", "gzip, zstd", "x"):
        answer = program.post("/v1/events", gzip.compress(body), headers={"Content-Encoding": encoding})
        message = is_error(answer, 415, "unsupported_content_encoding")
        assert encoding in message and "gzip, zstd or identity" in message
    for encoding in ("identity", "Identity", ""):
        assert program.post("/v1/events", body, headers={"Content-Encoding": encoding}).status == 202
    becomes(program, site, 1)


# Nothing, and what is no JSON.


@pytest.mark.parametrize("body", [b"", b" ", b"\n", b" \r\n\t\n", BOM, BOM + b"\n", b"[]", b" [ \n ] \n", BOM + b"[]"])
def test_nothing_is_400(program, body):
    assert answered(program, body, 400, 0, 0) == []


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"}",
        b"garbage",
        b"{'time': 1}",
        b'{"time":"2021-01-25T18:20:42"',
        b'{"a":1,}',
        b"[",
        b"[{}",
        b"[{},]",
        b"[{} {}]",
        b"[{}}",
        b"nul",
        b"01",
        b"+1",
        b"NaN",
        b'"open',
        b'{"a":"\n"}x',
        b"\x00",
        b"\xff\xfe{\x00}\x00",
        b'{"a":"\xff"}',
        b"<html></html>",
        b"time=2021&type=serve",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_only_broken_json_is_400(program, body):
    errors = answered(program, body, 400, 0, 1 if b"\n" not in body else None)
    assert {(code, field) for _, code, field in errors} == {("bad_json", None)}
    assert errors[0][0] == 1


def test_a_broken_array_is_refused_whole(program):
    site = new_id()
    good = [compact(event(site_id=site)) for _ in range(3)]
    for body in (
        b"[" + b",".join(good),
        b"[" + b",".join(good) + b",]",
        b"[" + b",".join(good) + b",{]",
        b"[\n" + b",\n".join(good) + b"\n}",
        b"[" + good[0] + b"\n" + good[1] + b"]",
        b"[" + good[0] + b',"\xff"]',
    ):
        assert answered(program, body, 400, 0) == [(1, "bad_json", None)], body
    assert of_site(program, site) == (0, 0)


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        (b"{}", "missing_field", "time"),
        (b"[{}]", "missing_field", "time"),
        (b"[[]]", "not_an_object", None),
        (b"1", "not_an_object", None),
        (b"-0.5e1", "not_an_object", None),
        (b"null", "not_an_object", None),
        (b"true", "not_an_object", None),
        (b'"text"', "not_an_object", None),
        (b"[1]", "not_an_object", None),
    ],
)
def test_json_without_an_event_is_422(program, body, code, field):
    assert answered(program, body, 422, 0) == [(1, code, field)]


def test_json_among_broken_lines_is_422(program):
    assert answered(program, b"{\nnull\n", 422, 0) == [(1, "bad_json", None), (2, "not_an_object", None)]


# Lines.


def test_lines_are_physical(program):
    good = compact(event())
    for newline in (b"\n", b"\r\n"):
        body = newline.join([b"", good, b"oops", b"  ", b"{}", good, b"", b"1", b""])
        expected = [(3, "bad_json", None), (5, "missing_field", "time"), (8, "not_an_object", None)]
        assert answered(program, body, 202, 2) == expected


def test_a_value_has_the_line_where_it_begins(program):
    bad = json.dumps(event(site_id="x"), indent=2).encode()
    good = json.dumps(event(), indent=2).encode()
    body = b"\n\n" + good + b"\n" + bad + b"\n{}\n" + compact(event())
    assert answered(program, body, 202, 2) == [(9, "bad_uuid", "site_id"), (15, "missing_field", "time")]


def test_elements_count_from_one(program):
    elements = [event(), {}, event(type="x"), event(), 7]
    for body in (compact(elements), json.dumps(elements, indent=3).encode()):
        expected = [(2, "missing_field", "time"), (3, "bad_type", "type"), (5, "not_an_object", None)]
        assert answered(program, body, 202, 2) == expected


def test_two_values_may_share_a_line(program):
    body = compact(event()) + b"{}" + b" [] " + compact(event()) + b"\n{}"
    expected = [(1, "missing_field", "time"), (1, "not_an_object", None), (2, "missing_field", "time")]
    assert answered(program, body, 202, 2) == expected


def test_an_array_among_other_values_is_one_rejected_value(program):
    good = compact(event())
    array = b"[" + compact(event()) + b"," + compact(event()) + b"]"
    assert answered(program, good + b"\n" + array + b"\n" + compact(event()), 202, 2) == [(2, "not_an_object", None)]
    assert answered(program, array + b"\n" + compact(event()), 202, 1) == [(1, "not_an_object", None)]
    assert answered(program, array + array, 422, 0) == [(1, "not_an_object", None)] * 2


def test_a_broken_line_costs_that_line_only(program):
    site = new_id()
    good = [compact(event(site_id=site)) for _ in range(9)]
    broken = [b"{", good[0][:-1], good[0] + b"}", good[0] + b" garbage", b"garbage " + good[0], b"\x00", b'{"a":"\xc3("}']
    lines = []
    for index, bad in enumerate(broken):
        lines += [good[index], bad]
    errors = answered(program, b"\n".join([*lines, *good[len(broken) :]]), 202, 9)
    assert errors == [(2 * index + 2, "bad_json", None) for index in range(len(broken))]
    becomes(program, site, 9)


def test_commas_between_lines_are_no_json(program):
    lines = [compact(event()) for _ in range(3)]
    errors = answered(program, b",\n".join(lines), 202, 1)
    assert errors == [(1, "bad_json", None), (2, "bad_json", None)]


def test_the_first_hundred_errors_are_listed_and_all_are_counted(program):
    body = b"\n".join([b"{}"] * 150 + [compact(event())] + [b"null"] * 100)
    errors = answered(program, body, 202, 1, 250)
    assert errors == [(line, "missing_field", "time") for line in range(1, 101)]
    body = b"\n".join([b"{}"] * 100 + [compact(event())])
    assert len(answered(program, body, 202, 1, 100)) == 100


# Fields.


@pytest.mark.parametrize("field", ["time", "type", "correlation_id", "site_id"])
def test_every_field_is_required_once(program, field):
    one = event()
    without = {name: value for name, value in one.items() if name != field}
    twice = compact(one)[:-1] + b"," + compact({field: one[field]})[1:]
    escaped = compact(one)[:-1] + b"," + compact({field: one[field]})[1:].replace(b"e", b"\\u0065", 1)
    misspelt = {**without, field.upper(): one[field]}
    body = b"\n".join([compact(without), twice, escaped, compact(misspelt), compact({**one, field: None})])
    bad = {"type": "bad_type", "time": "bad_time"}.get(field, "bad_uuid")
    codes = ["missing_field", "repeated_field", "repeated_field", "missing_field", bad]
    assert answered(program, body, 422, 0) == [(line, code, field) for line, code in enumerate(codes, 1)]


def test_the_first_bad_field_in_the_order_of_the_schema_is_named(program):
    bad = {"site_id": 1, "correlation_id": 1, "type": 1, "time": 1}
    good = event()
    expected = []
    lines = []
    for line, field in enumerate(["time", "type", "correlation_id", "site_id"], 1):
        code = {"type": "bad_type", "time": "bad_time"}.get(field, "bad_uuid")
        lines.append(compact(bad))
        expected.append((line, code, field))
        bad[field] = good[field]
    assert answered(program, b"\n".join(lines), 422, 0) == expected


def test_messages_say_what_was_expected_and_found(program):
    long = "\u202e\x1b[31m\"'\\" + "x" * 100_000
    lines = [
        compact(event(type="served")),
        compact(event(time=1611339642)),
        compact(event(time="2021-02-30T00:00:00")),
        compact(event(site_id=long)),
        compact(event(correlation_id=[1])),
        b'{"a":' + b"x" * 100_000,
    ]
    told = send(program, b"\n".join(lines)).json()
    messages = [error["message"] for error in told["errors"]]
    assert len(messages) == len(lines)
    for message, parts in zip(
        messages,
        [
            ("serve", "solve", '"served"'),
            ("ISO 8601", "1611339642"),
            ("2021-02-30T00:00:00", "no such date"),
            ("UUID", "xxx..."),
            ("UUID", "an array"),
            ("expected", "xxx..."),
        ],
        strict=True,
    ):
        assert all(part in message for part in parts), message
        assert len(message) < 300 and message.isprintable(), message


@pytest.mark.parametrize("text", ["Serve", "SOLVE", " serve", "serve ", "", "served", "1", "serve\x00", "ſerve"])
def test_types_are_exact(program, text):
    assert answered(program, compact(event(type=text)), 422, 0) == [(1, "bad_type", "type")]


@pytest.mark.parametrize("value", [1, 1.0, True, None, [], {}, ["serve"]])
def test_a_type_is_a_text(program, value):
    assert answered(program, compact(event(type=value)), 422, 0) == [(1, "bad_type", "type")]


# Identities.

ID = "67e55044-10b1-426f-9247-bb680e5fe0c8"
ID_FORMS = [
    ID,
    ID.upper(),
    ID.replace("-", ""),
    ID.replace("-", "").upper(),
    f"{{{ID}}}",
    f"{{{ID.replace('-', '')}}}",
    f"urn:uuid:{ID}",
    f"URN:UUID:{ID.upper()}",
    f"Urn:Uuid:{ID.replace('-', '')}",
]


def test_forms_of_one_identity_are_one_identity(program):
    site = new_id()
    # One correlation in every form is one event; one site in every form is one site.
    assert answered(program, ndjson([event(correlation_id=form, site_id=site) for form in ID_FORMS]), 202, 9) == []
    becomes(program, site, 1)
    assert answered(program, ndjson([event(site_id=form) for form in ID_FORMS]), 202, 9) == []
    becomes(program, ID, 9)
    for form in ID_FORMS:
        quoted = form.replace("{", "%7B").replace("}", "%7d")
        assert of_site(program, quoted) == (9, 0), form


@pytest.mark.parametrize("special", ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"])
def test_the_nil_identity_is_one(program, special):
    assert answered(program, compact(event(site_id=special, correlation_id=special)), 202, 1) == []
    becomes(program, special, 1)


BAD_IDS = [
    "",
    " ",
    ID[:-1],
    ID + "0",
    ID + " ",
    " " + ID,
    ID.replace("67e5", "67g5"),
    ID.replace("-", "_"),
    ID.replace("-", "", 1),
    ID[:1] + "-" + ID[1:],
    ID.replace("-", "", 1) + "-",
    "{" + ID,
    ID + "}",
    "{" + ID + ")",
    "(" + ID + ")",
    "{{" + ID + "}}",
    "{urn:uuid:" + ID + "}",
    "urn:uuid:{" + ID + "}",
    "urn:" + ID,
    "uuid:" + ID,
    "0x" + ID.replace("-", ""),
    "x" * 36,
    "é" * 18,
    "６7e55044-10b1-426f-9247-bb680e5fe0c8",
    ID + "\x00",
    "z" * 100_000,
    5,
    None,
    True,
    [ID],
    {"id": ID},
]


@pytest.mark.parametrize("field", ["correlation_id", "site_id"])
def test_what_is_no_identity(program, field):
    errors = answered(program, ndjson([event(**{field: bad}) for bad in BAD_IDS]), 422, 0)
    assert errors == [(line, "bad_uuid", field) for line in range(1, len(BAD_IDS) + 1)]


# Times.

GOOD_TIMES = {
    "2021-01-22T18:20:42": "2021-01-22 18:20:42.000000",
    "2021-01-22t18:20:42z": "2021-01-22 18:20:42.000000",
    "2021-01-22 18:20:42": "2021-01-22 18:20:42.000000",
    "2021-01-22T18:20:42.1": "2021-01-22 18:20:42.100000",
    "2021-01-22T18:20:42.159246": "2021-01-22 18:20:42.159246",
    "2021-01-22T18:20:42.123456999Z": "2021-01-22 18:20:42.123456",
    "2021-01-22T23:59:59.999999999": "2021-01-22 23:59:59.999999",
    "2021-01-22T18:20:42+00:00": "2021-01-22 18:20:42.000000",
    "2021-01-22T18:20:42-00:00": "2021-01-22 18:20:42.000000",
    "2021-01-22T18:20:42+01": "2021-01-22 17:20:42.000000",
    "2021-01-22T18:20:42.5+0130": "2021-01-22 16:50:42.500000",
    "2021-01-22 00:20:42+01:00": "2021-01-21 23:20:42.000000",
    "2021-01-22T18:20:42-23:59": "2021-01-23 18:19:42.000000",
    "2021-12-31T24:00:00": "2022-01-01 00:00:00.000000",
    "2021-12-31T24:00:00.000Z": "2022-01-01 00:00:00.000000",
    "2020-02-29T12:00:00": "2020-02-29 12:00:00.000000",
    "2000-02-29T12:00:00": "2000-02-29 12:00:00.000000",
    "1970-01-01T00:00:00": "1970-01-01 00:00:00.000000",
    "1969-12-31T23:00:00-01:00": "1970-01-01 00:00:00.000000",
    "1969-12-31T24:00:00": "1970-01-01 00:00:00.000000",
    "2100-12-31T23:59:59.999999": "2100-12-31 23:59:59.999999",
    "2101-01-01T00:59:59+01:00": "2100-12-31 23:59:59.000000",
}

BAD_TIMES = [
    "",
    "now",
    "2021-01-22",
    "2021-01-22T18:20",
    "2021-01-22T18:20Z",
    "2021-01-22T18",
    "20210122T182042",
    "2021-1-22T18:20:42",
    "21-01-22T18:20:42",
    "2021-01-22  18:20:42",
    "2021-01-22_18:20:42",
    " 2021-01-22T18:20:42",
    "2021-01-22T18:20:42 ",
    "2021-01-22T18:20:42 Z",
    "2021-01-22T18:20:42.",
    "2021-01-22T18:20:42.Z",
    "2021-01-22T18:20:42,5",
    "2021-01-22T18:20:42.1234567890",
    "2021-01-22T18:20:42+1",
    "2021-01-22T18:20:42+1:00",
    "2021-01-22T18:20:42+01:0",
    "2021-01-22T18:20:42+24:00",
    "2021-01-22T18:20:42+01:60",
    "2021-01-22T18:20:42+01:00:00",
    "2021-01-22T18:20:42UTC",
    "2021-01-22T18:20:42ZZ",
    "2021-01-22T18:20:42[UTC]",
    "2021-00-22T18:20:42",
    "2021-13-22T18:20:42",
    "2021-01-00T18:20:42",
    "2021-01-32T18:20:42",
    "2021-02-29T18:20:42",
    "2100-02-29T18:20:42",
    "2021-04-31T18:20:42",
    "2021-01-22T24:00:01",
    "2021-01-22T24:00:00.000000001",
    "2021-01-22T25:00:00",
    "2021-01-22T18:60:42",
    "2021-01-22T18:20:60",
    "2021-12-31T23:59:60Z",
    "1969-12-31T23:59:59.999999",
    "1970-01-01T00:00:00+00:01",
    "2101-01-01T00:00:00",
    "2100-12-31T24:00:00",
    "2100-12-31T23:59:59-00:01",
    "0000-01-01T00:00:00",
    "9999-12-31T23:59:59",
    "-2021-01-22T18:20:42",
    "+2021-01-22T18:20:42",
    "２021-01-22T18:20:42",
    "2021-01-22T18:20:42\x00",
    "2021-W03-5T18:20:42",
    "2021-022T18:20:42",
    1611339642,
    1611339642.5,
    None,
    True,
    [],
    {},
]


def test_times_are_stored_exactly(program, module_space):
    site = new_id()
    times = {new_id(): time for time in GOOD_TIMES}
    lines = [event(site_id=site, correlation_id=key, time=time) for key, time in times.items()]
    assert answered(program, ndjson(lines), 202, len(lines)) == []
    becomes(program, site, len(lines))
    rows = module_space.store.rows(
        f"SELECT correlation_id, toString(time) AS time FROM {module_space.database}.captcha_events "
        f"WHERE site_id = '{site}'"
    )
    assert {times[row["correlation_id"]]: row["time"] for row in rows} == GOOD_TIMES
    # The day of the report is the UTC day.
    days = [row["time"] for row in counters(program, f"?site_id={site}")]
    assert days == sorted({f"{time[:10]}T00:00:00" for time in GOOD_TIMES.values()})


def test_what_is_no_time(program):
    errors = answered(program, ndjson([event(time=bad) for bad in BAD_TIMES]), 422, 0)
    assert errors == [(line, "bad_time", "time") for line in range(1, len(BAD_TIMES) + 1)]


# Sizes.


def padded(size, **changes):
    """An event of exactly so many bytes."""
    bare = compact(event(**changes, padding=""))
    return bare[:-2] + b"x" * (size - len(bare)) + b'"}'


def test_an_event_has_a_largest_size_in_any_form(program):
    site = new_id()
    fits, large = padded(EVENT_BYTES_MAX, site_id=site), padded(EVENT_BYTES_MAX + 1, site_id=site)
    assert len(fits) == EVENT_BYTES_MAX
    assert answered(program, fits, 202, 1) == []
    assert answered(program, large, 422, 0) == [(1, "too_long", None)]
    assert answered(program, b"[" + large + b"]", 422, 0) == [(1, "too_long", None)]
    small = compact(event(site_id=site))
    assert answered(program, b"\n".join([small, large, padded(EVENT_BYTES_MAX, site_id=site)]), 202, 2) == [
        (2, "too_long", None)
    ]
    array = b"[" + b",".join([large, compact(event(site_id=site))]) + b"]"
    assert answered(program, array, 202, 1) == [(1, "too_long", None)]
    becomes(program, site, 4)


def test_a_body_of_the_largest_size_is_taken(program):
    site = new_id()
    lines = [padded(EVENT_BYTES_MAX - 1, site_id=site) for _ in range(32)]
    body = b"\n".join(lines) + b"\n"
    assert len(body) == BODY_BYTES_MAX
    assert answered(program, body, 202, 32) == []
    becomes(program, site, 32, deadline_s=30)


def test_a_larger_body_is_413(program):
    for announced in (BODY_BYTES_MAX + 1, 1 << 40):
        said = program.raw(f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {announced}\r\n\r\n".encode())
        head, _, body = said.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 413 "), said
        assert json.loads(body)["error"]["code"] == "content_too_large"
        assert str(BODY_BYTES_MAX) in body.decode()


def test_curl_sees_the_413_of_a_large_upload(program, tmp_path):
    path = tmp_path / "large"
    with open(path, "wb") as file:
        file.truncate(BODY_BYTES_MAX + (8 << 20))
    said, status = curl(program, "--data-binary", f"@{path}")
    assert status == "413" and "content_too_large" in said
    # Without waiting for leave to send.
    said, status = curl(program, "-H", "Expect:", "--data-binary", f"@{path}")
    assert status == "413" and "content_too_large" in said


def curl(program, *arguments, path="/v1/events", data=None):
    """The body of the answer, and the status."""
    command = ["curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}", *arguments, program.url + path]
    told = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    body, _, status = told.stdout.decode().rpartition("\n")
    return body, status


def test_curl_strips_newlines_and_it_works_all_the_same(program, tmp_path):
    site = new_id()
    path = tmp_path / "events.ndjson"
    path.write_text(ndjson([event(site_id=site) for _ in range(50)]), encoding="utf-8")
    said, status = curl(program, "-d", f"@{path}")
    assert (status, json.loads(said)["accepted"]) == ("202", 50)
    said, status = curl(program, "-T", str(path), "-X", "POST")
    assert (status, json.loads(said)["accepted"]) == ("202", 50)
    becomes(program, site, 50)


# Other answers.


def test_unknown_paths_are_404(program):
    for path in ("/", "/v1", "/v1/eventz", "/v1/events/", "/V1/events", "/v9/events", "//v1/events", "/favicon.ico"):
        for method in ("GET", "POST"):
            message = is_error(program.request(method, path, b""), 404, "not_found")
            assert path in message


def test_other_methods_are_405_and_name_the_right_ones(program):
    for path in PATHS:
        for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "post"):
            answer = program.request(method, path)
            is_error(answer, 405, "method_not_allowed")
            assert answer.headers["Allow"] == "POST"
        answer = program.request("HEAD", path)
        assert (answer.status, answer.body, answer.headers["Allow"]) == (405, b"", "POST")
    for path in ("/v1/report", "/api/report", "/latest/report", "/health/live", "/health/ready", "/metrics"):
        for method in ("POST", "PUT", "DELETE"):
            answer = program.request(method, path, b"{}")
            is_error(answer, 405, "method_not_allowed")
            assert {one.strip() for one in answer.headers["Allow"].split(",")} == {"GET", "HEAD"}


def test_parameters_are_400(program):
    site = new_id()
    message = is_error(program.post("/v1/events?dry_run=1", event(site_id=site)), 400, "bad_parameter")
    assert "dry_run" in message
    assert answered(program, compact(event(site_id=site)), 202, 1, path="/v1/events?") == []
    becomes(program, site, 1)


def test_chunked_bodies_are_411_and_never_a_second_request(program):
    site = new_id()
    smuggled = compact(event(site_id=site))
    inner = (
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: " + str(len(smuggled)).encode() + b"\r\n\r\n" + smuggled
    )
    for head in (
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nHost: x\r\ntransfer-encoding: gzip, chunked\r\nContent-Length: 5\r\n\r\n",
        b"GET /v1/report HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n",
    ):
        said = program.raw(head + hex(len(inner))[2:].encode() + b"\r\n" + inner + b"\r\n0\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 411 ") and said.count(b"HTTP/1.1") == 1, said
        assert b'"length_required"' in said and b"proxy" in said
    said, status = curl(program, "-H", "Transfer-Encoding: chunked", "--data-binary", "@-", data=smuggled)
    assert status == "411" and "Content-Length" in said
    assert of_site(program, site) == (0, 0)


def test_every_answer_has_an_id(program):
    answer = program.post("/v1/events", event(), headers={"X-Request-Id": "my-own.id_1"})
    assert answer.headers["X-Request-Id"] == "my-own.id_1"
    assert program.get("/nowhere").headers["X-Request-Id"]


# Once.


def test_copies_count_once_and_the_first_wins(program):
    first_site, second_site = new_id(), new_id()
    key = new_id()
    copies = [
        event(correlation_id=key, site_id=first_site, time="2021-01-25T10:00:00"),
        event(correlation_id=key, site_id=second_site, time="2021-01-20T10:00:00"),
        event(correlation_id=key.upper(), site_id=first_site, time="2021-01-26T10:00:00"),
    ]
    # Duplicates are accepted: only the writer knows them.
    assert answered(program, ndjson(copies), 202, 3) == []
    assert answered(program, ndjson(reversed(copies)), 202, 3) == []
    # A solve of the same captcha is another event.
    assert answered(program, ndjson([event(correlation_id=key, site_id=second_site, type="solve")]), 202, 1) == []
    becomes(program, second_site, 0, 1)
    rows = counters(program, f"?site_id={first_site}")
    assert rows == [{"time": "2021-01-25T00:00:00", "site_id": first_site, "served": 1, "solved": 0}]


def test_the_order_of_an_array_counts_too(program):
    key, sites = new_id(), [new_id() for _ in range(50)]
    assert answered(program, compact([event(correlation_id=key, site_id=site) for site in sites]), 202, 50) == []
    becomes(program, sites[0], 1)
    assert [of_site(program, site) for site in sites[1:]] == [(0, 0)] * 49


def test_a_body_sent_again_counts_nothing(program):
    site = new_id()
    body = ndjson([event(site_id=site) for _ in range(1000)])
    for _ in range(5):
        assert answered(program, body, 202, 1000) == []
    becomes(program, site, 1000)
    # The mark tells that everything sent before it was stored, in its partition; many cover all partitions.
    mark = new_id()
    assert answered(program, ndjson([event(site_id=mark) for _ in range(64)]), 202, 64) == []
    becomes(program, mark, 64)
    assert of_site(program, site) == (1000, 0)


# Many.


def random_time(dice, day):
    """A text of a random form, whose UTC day is `day`."""
    instant = datetime.combine(day, datetime.min.time(), UTC) + timedelta(microseconds=dice.randrange(86_400_000_000))
    offset = dice.choice([None, None, "Z", "z", 60, -330, 1439, -1439, 0])
    if isinstance(offset, int):
        instant += timedelta(minutes=offset)
        sign, (hours, minutes) = "-" if offset < 0 else "+", divmod(abs(offset), 60)
        suffix = f"{sign}{hours:02}{dice.choice(['', ':'])}{minutes:02}"
    else:
        suffix = offset or ""
    digits = dice.choice([0, 1, 3, 6, 9])
    fraction = f".{instant.microsecond:06}{dice.randrange(1000):03}"[: digits + 1] if digits else ""
    return instant.strftime(f"%Y-%m-%d{dice.choice('Tt ')}%H:%M:%S") + fraction + suffix


def random_id_text(dice, identity):
    text = dice.choice([str(identity), str(identity), identity.hex, f"{{{identity}}}", f"urn:uuid:{identity}"])
    return text.upper() if dice.random() < 0.2 else text


SPOILT = [
    lambda dice, one: one.pop(dice.choice(["time", "type", "correlation_id", "site_id"])),
    lambda dice, one: one.update(type=dice.choice(["", "Serve", 1, None])),
    lambda dice, one: one.update(time=dice.choice(BAD_TIMES)),
    lambda dice, one: one.update({dice.choice(["site_id", "correlation_id"]): dice.choice(BAD_IDS[:20])}),
]


def random_body(dice, values):
    """The values in a random form; only NDJSON can also hold lines that are no JSON, so (body, broken lines)."""
    texts = [json.dumps(one, indent=dice.choice([None, None, None, 1]) if len(values) < 50 else None) for one in values]
    form = dice.randrange(4)
    if form == 0:
        return f"[{dice.choice([',', ', ', ' ,' + chr(10)]).join(texts)}]".encode(), 0
    if form == 1:
        return dice.choice(["", " ", "  "]).join(texts).encode(), 0
    broken = 0
    newline = dice.choice(["\n", "\r\n"])
    lines = []
    for text in texts:
        if dice.random() < 0.02:
            lines.append(dice.choice(["", "  "]))
        if dice.random() < 0.01:
            lines.append(dice.choice(["{", "oops", '{"time":', "]["]))
            broken += 1
        lines.append(text.replace("\n", newline))
    return (newline.join(lines) + dice.choice(["", newline])).encode(), broken


def test_a_hundred_thousand_random_events_against_a_model(millrace, space):
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    dice = random.Random(seed)
    program = millrace("run")
    model = Model()
    sites = [uuid.UUID(int=dice.getrandbits(128)) for _ in range(40)]
    days = [(datetime(1970, 1, 1) + timedelta(days=dice.randrange(47_847))).date() for _ in range(20)]
    keys, sent = [], 0
    while sent < 100_000:
        values, good, bad = [], 0, 0
        for _ in range(dice.choice([1, 2, 3, 10, 100, 1000, 5000, 8000])):
            if keys and dice.random() < 0.1:
                key = dice.choice(keys)
            else:
                key = uuid.UUID(int=dice.getrandbits(128))
                keys.append(key)
            kind, site, day = dice.choice(["serve", "solve"]), dice.choice(sites), dice.choice(days)
            one = {
                "time": random_time(dice, day),
                "type": kind,
                "correlation_id": random_id_text(dice, key),
                "site_id": random_id_text(dice, site),
            }
            if dice.random() < 0.1:
                one = dict(dice.sample(list(one.items()), 4))
                one["extra"] = dice.choice([None, [1, {}], "}{", 'x"\\', -1.5e300])
            if dice.random() < 0.02:
                dice.choice(SPOILT)(dice, one)
                bad += 1
            else:
                model.take(kind, key, site, day)
                good += 1
            values.append(one)
        body, broken = random_body(dice, values)
        answer = send(program, body)
        told = answer.json()
        assert (told["accepted"], told["rejected"]) == (good, bad + broken), (seed, answer.text[:500])
        assert answer.status == (202 if good else 422 if bad else 400)
        sent += len(values)
    expected = model.report()

    def report_equals():
        found = all_counters(program, limit=dice.choice([7, 100, 10_000]))
        assert len(found) == len(expected)
        assert found == expected
        return True

    eventually(report_equals, 60, what=f"the report of the model (TEST_SEED={seed})")
    assert space.store.value(f"SELECT count() FROM {space.database}.captcha_events") == len(model.first)


# Kafka away.


def test_nothing_acknowledged_is_lost_while_kafka_stops_and_goes_on(millrace, own_kafka, own_kafka_space):
    settings = {"MILLRACE_KAFKA_DELIVERY_MS_MAX": "1500", "MILLRACE_HTTP_ACK_MS_MAX": "3000"}
    program = millrace("run", space=own_kafka_space, settings=settings)
    model, unsure, site = Model(), [], new_id()

    def post():
        batch = [event(site_id=site) for _ in range(100)]
        answer = send(program, ndjson(batch))
        if answer.status == 202:
            for one in batch:
                take_event(model, one)
        else:
            is_error(answer, 503, "unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
            unsure.append(batch)
        return answer.status

    def refused_at_once():
        failures = program.metric("millrace_produce_failures_total")
        return post() == 503 and program.metric("millrace_produce_failures_total") == failures

    assert post() == 202
    own_kafka.pause()
    assert [post() for _ in range(3)] == [503] * 3
    # Also with nothing on its way: who asks is told, and who sends is refused at once.
    missing = eventually(lambda: missing_for_accepting(program), 15, what="not being ready")
    assert missing["stalled"] == ["accept"] and missing["reason"]
    # Readiness may have been told by another kind, and each asks Kafka for itself.
    eventually(refused_at_once, 15, what="a request refused without a record for it")
    own_kafka.resume()
    eventually(lambda: post() == 202, 30, what="an event taken after Kafka went on")
    eventually(lambda: program.get("/health/ready").status == 200, 15, what="readiness")
    # Sent again, as the answer asks: whether its first copies arrived or not, each counts once.
    while unsure:
        batch = unsure.pop()
        assert send(program, ndjson(batch)).status == 202
        for one in batch:
            take_event(model, one)
    becomes(program, site, len(model.first), deadline_s=30)
    assert all_counters(program) == model.report()
    program.stop()


def missing_for_accepting(program):
    answer = program.get("/health/ready")
    return answer.status == 503 and next(one for one in answer.json()["missing"] if "accept" in one["stalled"])
