"""The door from outside, with the real program behind it: what no well-behaved client sends."""

import json
import os
import random
import re
import subprocess

import pytest
from captcha import becomes, event, ndjson, new_id, of_site
from harness import eventually


@pytest.fixture(scope="module")
def program(module_millrace):
    return module_millrace("run")


# A request after which the server closes, so that nobody waits to see whether more comes.
LAST = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post_bytes(site, head="", body=None):
    body = ndjson([event(site_id=site)]).encode() if body is None else body
    return f"POST /v1/events HTTP/1.1\r\nHost: x\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def statuses(said):
    """The statuses of all answers in what came back."""
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 (\d{3}) ", said, re.MULTILINE)]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA\r\n\r\n", 400),
        (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: +5\r\n\r\n12345", 400),
        (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n12", 400),
        (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12", 400),
        (b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", (400, 413)),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"H%d: 1\r\n" % n for n in range(40)) + b"\r\n", 431),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else None,
)
def test_malformed_requests_are_told_and_closed(program, head, status):
    said = program.raw(head, timeout_s=15)
    allowed = status if isinstance(status, tuple) else (status,)
    assert len(statuses(said)) == 1 and statuses(said)[0] in allowed, said
    assert b"Connection: close" in said
    body = json.loads(said.partition(b"\r\n\r\n")[2])
    assert body["error"]["code"] and body["error"]["message"]


def test_random_garbage_harms_nobody(program):
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    dice = random.Random(seed)
    site = new_id()
    good = post_bytes(site)
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(dice.choice([1, 1, 2, 8])):
            # Not in the body: a damaged event may still be one.
            at = dice.randrange(good.index(b"\r\n\r\n"))
            damaged[at] = dice.choice(b"\x00\r\n :/{}\xff9A")
        with program.connect(5) as connection:
            connection.sendall(bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])]))
            if dice.random() < 0.3:
                continue
            connection.shutdown(1)
            try:
                while connection.recv(1 << 16):
                    pass
            except ConnectionError:
                pass
    assert program.is_running()
    assert program.get("/health/live").status == 200
    assert "panic" not in program.log_text()
    assert program.metric("millrace_http_requests_total", status="500") == 0


def test_a_body_that_is_cut_short_is_not_taken(program):
    site = new_id()
    whole = post_bytes(site, body=ndjson([event(site_id=site) for _ in range(50)]).encode())
    # At a line's end too: what stands there is complete, and still not what was announced.
    for cut in (len(whole) - 1, whole.rindex(b"\n", 0, len(whole) - 1) + 1):
        with program.connect() as connection:
            connection.sendall(whole[:cut])
            connection.shutdown(1)
            said = connection.recv(1 << 16)
            assert statuses(said) in ([400], []), said
        with program.connect() as connection:
            connection.sendall(whole[:cut])
    mark = new_id()
    assert program.post("/v1/events", ndjson([event(site_id=mark) for _ in range(64)])).status == 202
    becomes(program, mark, 64)
    assert of_site(program, site) == (0, 0)


def test_requests_in_one_packet_are_answered_in_order(program):
    site = new_id()
    said = program.raw(post_bytes(site) + b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + post_bytes(site) + LAST)
    assert statuses(said) == [202, 404, 202, 200]
    becomes(program, site, 2)


def test_close_is_honoured(program):
    site = new_id()
    said = program.raw(post_bytes(site, "Connection: close\r\n") + post_bytes(site))
    assert statuses(said) == [202] and b"Connection: close" in said
    said = program.raw(b"GET /health/live HTTP/1.0\r\n\r\n")
    assert statuses(said) == [200]
    becomes(program, site, 1)


def test_refused_bodies_are_never_second_requests(program):
    site = new_id()
    inner = post_bytes(site)
    for head, status in (
        ("Content-Type: text/plain\r\n", 415),
        ("Transfer-Encoding: chunked\r\n", 411),
        ("Expect: the-unexpected\r\n", 417),
    ):
        said = program.raw(post_bytes(site, head, body=inner) + LAST)
        assert statuses(said) in ([status], [status, 200]), said
    for target, status in (("/nowhere", 404), ("/v1/report", 405), ("/v1/events?x=1", 400)):
        said = program.raw(post_bytes(site, body=inner).replace(b"/v1/events", target.encode(), 1) + LAST)
        assert statuses(said) in ([status], [status, 200]), said
    assert of_site(program, site) == (0, 0)


def test_curl_does_not_wait_for_leave_to_send(program, tmp_path):
    """curl asks before it sends a large body, and would wait a second for an answer that does not come."""
    site = new_id()
    path = tmp_path / "events.ndjson"
    path.write_text(ndjson([event(site_id=site) for _ in range(20_000)]), encoding="utf-8")
    told = subprocess.run(
        ["curl", "-sSv", "-H", "Expect: 100-continue", "--expect100-timeout", "60", "--data-binary", f"@{path}",
         "-w", "%{time_total}", "-o", str(tmp_path / "answer"), f"{program.url}/v1/events"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "HTTP/1.1 100 Continue" in told.stderr and float(told.stdout) < 30, told.stderr[-2000:]
    assert json.loads((tmp_path / "answer").read_text(encoding="utf-8"))["accepted"] == 20_000
    becomes(program, site, 20_000)
    # The final answer comes instead of leave where the head is enough to refuse.
    told = subprocess.run(
        ["curl", "-sSv", "-H", "Expect: 100-continue", "-H", "Content-Type: text/plain", "--expect100-timeout", "60",
         "--data-binary", f"@{path}", "-w", "%{http_code} %{size_upload}", "-o", os.devnull,
         f"{program.url}/v1/events"],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert "100 Continue" not in told.stderr and told.stdout == "415 0", told.stdout


def test_many_connections_at_once(program):
    """More clients than threads, each with one request that is half sent until all are there."""
    site = new_id()
    requests = [post_bytes(site) for _ in range(300)]
    connections = [program.connect(30) for _ in requests]
    try:
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request[:60])
        # Others are served meanwhile.
        assert program.get("/health/live").status == 200
        for connection, request in zip(connections, requests, strict=True):
            connection.sendall(request[60:])
        for connection in connections:
            assert statuses(connection.recv(1 << 16)) == [202]
    finally:
        for connection in connections:
            connection.close()
    becomes(program, site, 300)
    eventually(lambda: program.metric("millrace_http_connections") == 1, what="closed connections to be counted off")


def test_an_answer_without_content_has_no_length(program):
    target = f"/analytics?timestamp=1611339642159&user={new_id()}&click"
    request = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    with program.connect(30) as connection:
        for _ in range(20):
            connection.sendall(request)
            said = connection.recv(1 << 16)
            assert said.startswith(b"HTTP/1.1 204 No Content\r\n") and said.endswith(b"\r\n\r\n")
            assert b"Content-" not in said and b"Connection: close" not in said
        connection.sendall(LAST)
        assert statuses(connection.recv(1 << 16)) == [200]
