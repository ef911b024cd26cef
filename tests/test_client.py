"""The Python client against the real program, while things go wrong in the middle of many events: all are counted once.

What the client does by itself is tested in clients/python/tests, against a server that misbehaves on purpose.
"""

import os
import subprocess
import sys
import threading
import uuid
from contextlib import contextmanager

import pytest
from captcha import counters
from harness import REPOSITORY, OwnKafka, Servers, Space, eventually
from once import SMALL_RANGES, Proxy, wait_stored

CLIENT = REPOSITORY / "clients" / "python"
sys.path.insert(0, str(CLIENT / "src"))

from millrace_client import Client  # noqa: E402

EVENTS = 100_000
SITES = [str(uuid.uuid4()) for _ in range(3)]
# A request is given up early, and asked again soon, so that a short test sees many.
OPTIONS = {
    "batch_events_max": 2_000,
    "batch_age_s": 0.1,
    "queue_events_max": 20_000,
    "block_s": None,
    "timeout_s": 2.0,
    "backoff_s": 0.05,
    "backoff_s_max": 0.5,
}
# Longer than the program needs to settle a request whose client has gone.
CLOSE_S = 60
SETTLED_S = 60


class Captcha:
    """Each has a correlation_id of its own; sites and types take turns."""

    kind = "captcha"
    path = "/v1/events"

    def put(self, client, number):
        client.captcha(
            type=("serve", "solve")[number % 2],
            correlation_id=uuid.UUID(int=number),
            site_id=SITES[number % 3],
            time="2021-01-25T10:00:00",
        )

    def expected(self, events):
        found = {}
        for number in range(events):
            site = found.setdefault(SITES[number % 3], {"served": 0, "solved": 0})
            site[("served", "solved")[number % 2]] += 1
        return found

    def found(self, program):
        return {row["site_id"]: {key: row[key] for key in ("served", "solved")} for row in counters(program)}


class Interaction:
    """The client gives each its event_id; two types take turns."""

    kind = "interaction"
    path = "/v2/events"

    def put(self, client, number):
        data = {"host": "example.org", "path": f"/{number % 10}", "element": "subscribe"}
        client.interaction(
            session_id=uuid.UUID(int=number % 1000),
            category="page_interaction",
            name=("pageview", "cta_click")[number % 2],
            data=data,
            timestamp="2021-01-25T10:00:00Z",
        )

    def expected(self, events):
        return {"pageview": (events + 1) // 2, "cta_click": events // 2}

    def found(self, program):
        return {row["name"]: row["count"] for row in program.get("/v2/report").json()["counters"]}


class Hit:
    """The client gives each its event_id; all lie within one hour."""

    kind = "hit"
    path = "/hits"
    hour_ms = 1_611_568_800_000
    users = 1000

    def put(self, client, number):
        action = ("click", "impression")[number % 2]
        client.hit(user=f"user {number % self.users}", action=action, timestamp=self.hour_ms + number)

    def expected(self, events):
        return f"unique_users,{self.users}\nclicks,{(events + 1) // 2}\nimpressions,{events // 2}\n"

    def found(self, program):
        return program.get(f"/analytics?timestamp={self.hour_ms}").text


KINDS = [Captcha(), Interaction(), Hit()]
# Those that the program has an endpoint for.
SERVED = {"captcha", "interaction", "hit"}
ALL_SERVED = len(SERVED) == len(KINDS)


@pytest.fixture(params=[kind for kind in KINDS if kind.kind in SERVED], ids=lambda kind: kind.kind)
def kind(request):
    return request.param


@contextmanager
def sending(kind, url, **options):
    """A client into which a thread puts all events; at the end of the block all were put, sent and answered."""
    client = Client(url, **{**OPTIONS, **options})
    # Ends with the client, should the test fail meanwhile.
    thread = threading.Thread(target=lambda: [kind.put(client, number) for number in range(EVENTS)], daemon=True)
    thread.start()
    try:
        yield client
        thread.join(120)
        assert not thread.is_alive(), client.stats
        assert client.close(CLOSE_S), client.stats
    finally:
        client.close(0)
    stats = client.stats
    assert (stats.accepted, stats.rejected, stats.unsent, stats.dropped) == (EVENTS, 0, 0, 0)
    print(f"{kind.kind}: {stats.requests} requests, {stats.retries} of them again, {stats.body_bytes} bytes of bodies")


def wait_accepted(client, more):
    """Returns once so many more events were acknowledged; there must be some left to send then."""
    goal = client.stats.accepted + more
    eventually(lambda: client.stats.accepted >= goal, 60, what=f"{goal} acknowledged events")
    assert goal < EVENTS


def wait_retries(client, more, deadline_s=30):
    goal = client.stats.retries + more
    eventually(lambda: client.stats.retries >= goal, deadline_s, what=f"{goal} repeated requests")


def check_counted_once(kind, program):
    """The report is what was put, and stays so when all that the log holds is stored."""
    expected = kind.expected(EVENTS)

    def counted():
        found = kind.found(program)
        assert found == expected, f"the report is {found}, not {expected}"
        return True

    eventually(counted, SETTLED_S, what="the report")
    eventually(lambda: program.metric("millrace_lag_records") == 0, SETTLED_S, what="a lag of 0")
    assert kind.found(program) == expected


def test_stopped(kind, millrace):
    """SIGSTOP: connections are accepted by the kernel and nothing is answered."""
    program = millrace("run", settings=SMALL_RANGES)
    with sending(kind, program.url) as client:
        for _ in range(2):
            wait_accepted(client, EVENTS // 5)
            program.pause()
            wait_retries(client, 2)
            program.resume()
    check_counted_once(kind, program)


def test_slow(kind, millrace):
    """Bodies and answers arrive after the client has given up waiting for them, or never."""
    program = millrace("run", settings=SMALL_RANGES)
    proxy = Proxy(f"127.0.0.1:{program.port}")
    with sending(kind, f"http://{proxy.address}") as client:
        for _ in range(3):
            wait_accepted(client, EVENTS // 10)
            proxy.freeze()
            wait_retries(client, 1)
            proxy.thaw()
            wait_accepted(client, EVENTS // 20)
            lost = proxy.swallowed
            proxy.swallow(b"POST", 3)
            eventually(lambda lost=lost: proxy.swallowed == lost + 3, 30, what="lost answers")
            proxy.cut()
            wait_retries(client, 1)
            proxy.mend()
    check_counted_once(kind, program)
    proxy.close()


def test_restarted(kind, millrace):
    """kill -9, and started again on the same port."""
    program = millrace("run", settings=SMALL_RANGES)
    with sending(kind, program.url) as client:
        for _ in range(3):
            wait_accepted(client, EVENTS // 6)
            program.kill()
            wait_retries(client, 1)
            program.start().wait_ready()
    check_counted_once(kind, program)


@pytest.fixture(scope="module")
def module_kafka(tmp_path_factory):
    """A Kafka of this module's own: its start takes seconds."""
    own = OwnKafka(tmp_path_factory.mktemp("own-kafka"))
    yield own.start()
    own.resume()
    own.stop()


def test_answering_503(kind, millrace, module_kafka, servers):
    """Kafka hangs: the program answers 503 with Retry-After, until it is back."""
    named = (servers.clickhouse_url, servers.clickhouse_user, servers.clickhouse_password)
    space = Space(Servers(module_kafka.brokers, *named))
    program = millrace(
        "run",
        space=space,
        settings={**SMALL_RANGES, "MILLRACE_KAFKA_DELIVERY_MS_MAX": "5000", "MILLRACE_HTTP_ACK_MS_MAX": "6000"},
    )
    with sending(kind, program.url, timeout_s=15.0) as client:
        for _ in range(2):
            wait_accepted(client, EVENTS // 5)
            module_kafka.pause()
            eventually(lambda: program.post(kind.path, "{}", timeout_s=15).status == 503, 30, what="refusals")
            wait_retries(client, 2)
            module_kafka.resume()
    check_counted_once(kind, program)
    program.stop()
    space.remove_database()


def test_small_bodies_only(kind, millrace):
    """A server that takes only small bodies is sent small ones."""
    small = {"MILLRACE_HTTP_BODY_BYTES_MAX": "100000", "MILLRACE_HTTP_EVENT_BYTES_MAX": "10000"}
    program = millrace("run", settings={**SMALL_RANGES, **small})
    with sending(kind, program.url, gzip=False) as client:
        pass
    assert client.stats.requests > EVENTS // 1000
    check_counted_once(kind, program)


def test_rejected(millrace, space):
    """Every event that the program rejects is told, however many there are, with its own error."""
    program = millrace("run", settings=SMALL_RANGES)
    told = []
    with Client(program.url, on_rejected=lambda *both: told.append(both), batch_age_s=60) as client:
        for number in range(1000):
            client.captcha(
                type="serve",
                correlation_id=uuid.UUID(int=number),
                site_id=SITES[0],
                time="yesterday" if number % 2 else "2021-01-25T10:00:00",
            )
    assert (client.stats.accepted, client.stats.rejected) == (500, 500)
    assert [uuid.UUID(event.fields["correlation_id"]).int for event, _ in told] == list(range(1, 1000, 2))
    assert {(rejection.code, rejection.field) for _, rejection in told} == {("bad_time", "time")}
    wait_stored(space)
    assert counters(program)[0]["served"] == 500


@pytest.mark.skipif(not ALL_SERVED, reason="the example records events of all kinds")
def test_example(millrace):
    """The example visits itself and prints what was counted."""
    program = millrace("run", settings=SMALL_RANGES)
    said = subprocess.run(
        [sys.executable, CLIENT / "examples" / "visits.py", "--server", program.url, "--visits", "20"],
        env={**os.environ, "PYTHONPATH": str(CLIENT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert said.returncode == 0 and said.stderr == "", said.stderr
    assert said.stdout.splitlines()[:2] == [
        "captchas of this site   served 20, solved 7",
        "hits of this hour       20 users, 20 impressions, 7 clicks",
    ]
    counted = {line.split()[1]: int(line.split()[2]) for line in said.stdout.splitlines() if "page_interaction" in line}
    assert counted == {"page_interaction.pageview": 20, "page_interaction.cta_click": 7}
    assert said.stdout.splitlines()[-1] == "this client             81 events put, 81 taken, 0 rejected"


def test_installed(tmp_path):
    """pip install ./clients/python, in an environment of its own: the package is complete."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=60)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", CLIENT], check=True, timeout=120
    )
    program = (
        "import millrace_client as m, pathlib; c = m.Client('http://127.0.0.1:1'); c.close()\n"
        "print(m.__version__, sorted(p.name for p in pathlib.Path(m.__file__).parent.glob('py.typed')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = subprocess.run(
        [python, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert said.stdout == "0.1.0 ['py.typed']\n"
