"""The beginning and the end of a client: close, `with`, the interpreter's end, forks."""

import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import server as behave
import urllib3
from conftest import eventually
from server import status, wait_for
from test_delivery import accounts, put_hits

from millrace_client import ClientClosed

SOURCE = Path(__file__).resolve().parent.parent / "src"


def test_close_sends_what_is_left(server, client):
    one = client(batch_age_s=600)
    put_hits(one, 10)
    assert one.close() is True
    assert len(server.keys()) == 10
    assert one.close() is True
    with pytest.raises(ClientClosed):
        one.hit(user="ada", action="click")


def test_a_with_block(server, client):
    with client(batch_age_s=600) as one:
        put_hits(one, 10)
    assert one.stats.accepted == len(server.keys()) == 10
    with pytest.raises(KeyError, match="its own"), client(batch_age_s=600) as one:
        put_hits(one, 10)
        raise KeyError("its own")
    assert len(server.keys()) == 20


def test_an_idle_client(client):
    """Nothing was put: no thread, no request, and nothing to wait for."""
    before = threading.active_count()
    one = client("http://127.0.0.1:1")
    assert threading.active_count() == before
    assert one.flush() and one.close()


def test_flush_has_an_end(server, client):
    server.always = status(503)
    one = client()
    put_hits(one, 1)
    assert one.flush(0.05) is False
    assert one.stats.pending == 1


@pytest.mark.parametrize("how", ["refused", "hanging", "asked to wait"])
def test_close_out_of_time(how, server, client, rejected, caplog):
    """What is left is counted, logged and reported; nothing is lost without a word."""
    gate = threading.Event()
    server.always = {
        "refused": status(503),
        "hanging": wait_for(gate),
        "asked to wait": status(503, Retry_After="100"),
    }[how]
    one = client(on_rejected=rejected, batch_events_max=10, timeout_s=60)
    put_hits(one, 25)
    eventually(lambda: one.stats.requests)
    began = time.monotonic()
    assert one.close(0.3) is False
    assert time.monotonic() - began < 5
    assert rejected.codes() == ["unsent"] * 25 and len({event.fields["event_id"] for event, _ in rejected}) == 25
    assert one.stats.unsent == 25 and one.stats.pending == 0 and accounts(one)
    assert "25 hit events were given up without an answer" in caplog.text
    gate.set()
    # The late answer to what was given up changes no figure.
    eventually(lambda: not any(thread.name == "millrace-hit" for thread in threading.enumerate()))
    assert one.stats.unsent == 25 and one.stats.accepted == 0 and len(rejected) == 25


def test_unsent_events_can_be_put_again(server, client, rejected):
    """They may have been counted, and are counted once."""
    server.always = behave.take_and_hang_up
    one = client(on_rejected=rejected)
    put_hits(one, 5)
    eventually(lambda: len(server.keys()) == 5)
    one.close(0.1)
    server.always = behave.take
    with client() as other:
        for event, _ in rejected:
            getattr(other, event.kind)(**event.fields)
    assert other.stats.accepted == 5 and len(server.keys()) == 5


def test_close_asks_at_once(server, client):
    """A client that pauses after a failure tries again when it is closed."""
    server.then(status(503))
    one = client(backoff_s=60, backoff_s_max=60)
    put_hits(one, 5)
    eventually(lambda: one.stats.requests == 1)
    assert one.close(10) is True
    assert len(server.keys()) == 5


def test_close_ends_those_who_wait_for_room(server, client):
    gate = threading.Event()
    server.always = wait_for(gate)
    one = client(queue_events_max=1, block_s=None)
    put_hits(one, 1)
    ended = []

    def blocked():
        try:
            one.hit(user="ada", action="click")
        except ClientClosed as error:
            ended.append(error)

    threads = [threading.Thread(target=blocked) for _ in range(3)]
    for thread in threads:
        thread.start()
    one.close(0.1)
    gate.set()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 3


def test_close_in_the_callback(server, client):
    """It begins to close, and does not wait for itself."""
    server.then(behave.judged_by(lambda event: False))
    returned = []
    one = client(on_rejected=lambda *_: returned.append(one.close()))
    put_hits(one, 1)
    eventually(lambda: returned)
    with pytest.raises(ClientClosed):
        put_hits(one, 1)
    assert one.close() and one.stats.callback_errors == 0


def test_closed_by_many_at_once(server, client):
    one = client(batch_age_s=600)
    put_hits(one, 100)
    threads = [threading.Thread(target=one.close) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert one.stats.accepted == len(server.keys()) == 100 and server.sizes() == [100]


def run(program, server, **options):
    """Runs a program with `url` set and the package on its path; returns what it did."""
    return subprocess.run(
        [sys.executable, "-c", f"url = {server.url!r}\nfrom millrace_client import Client\n{program}"],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    "end",
    ["", "raise SystemExit(3)", "raise ValueError('its own')", "del client; import gc; gc.collect()"],
)
def test_the_end_of_the_interpreter(end, server):
    program = "client = Client(url, batch_age_s=600)\nfor _ in range(10): client.hit(user='ada', action='click')\n"
    told = run(program + end, server)
    assert len(server.keys()) == 10, told.stderr
    assert ("ValueError" in told.stderr) == ("ValueError" in end)


def test_events_of_the_last_moment(server):
    """Put by what runs at the interpreter's end, when no thread can be started any more."""
    program = """
import atexit
client = Client(url, batch_age_s=600)
atexit.register(lambda: client.hit(user='ada', action='click'))
"""
    told = run(program, server)
    assert len(server.keys()) == 1 and told.stderr == ""


def test_the_end_of_the_interpreter_is_bounded(server):
    server.always = status(503)
    program = """
import logging
logging.basicConfig()
for _ in range(3): Client(url, close_s=0.5).hit(user='ada', action='click')
"""
    began = time.monotonic()
    told = run(program, server)
    assert time.monotonic() - began < 10
    assert told.returncode == 0 and told.stderr.count("1 hit events were given up without an answer") == 3


def test_a_signal_handler_that_puts(server):
    """It may interrupt a put in the same thread."""
    program = """
import signal
client = Client(url)
handled = []
signal.signal(signal.SIGALRM, lambda *_: handled.append(client.hit(user='handler', action='click')))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for _ in range(20_000): client.hit(user='main', action='click')
signal.setitimer(signal.ITIMER_REAL, 0)
client.close()
print(client.stats.accepted == 20_000 + sum(handled) > 20_000)
"""
    told = run(program, server)
    assert told.stdout == "True\n", told.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked(server):
    """As a server that loads the application and then forks: what was put before is sent by the parent alone, and each
    child sends its own, though the parent's threads, locks and connections are not its own."""
    program = """
import os, threading
client = Client(url, batch_age_s=0.01, timeout_s=5)
for _ in range(100): client.hit(user='parent', action='click')
client.flush()
stop = threading.Event()
def load():
    while not stop.is_set(): client.hit(user='parent', action='click'); stop.wait(0.0001)
threads = [threading.Thread(target=load) for _ in range(4)]
for thread in threads: thread.start()
children = []
for child in range(10):
    pid = os.fork()
    if pid == 0:
        assert client.stats.queued == 0
        for _ in range(50): client.hit(user=f'child{child}', action='click')
        done = client.close(20)
        os._exit(0 if done and client.stats.accepted == 50 else 1)
    children.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
stop.set()
for thread in threads: thread.join()
client.close()
print(codes, client.stats.queued == client.stats.accepted, client.stats.queued)
"""
    told = run(program, server)
    assert told.stdout.startswith(f"{[0] * 10} True "), told.stdout + told.stderr
    put = int(told.stdout.split()[-1])
    users = [event["user"] for event in server.counted["/hits"].values()]
    assert users.count("parent") == put and all(users.count(f"child{child}") == 50 for child in range(10))
    assert max(server.copies.values()) == 1, "no event was sent by two processes"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_while_the_server_is_away(server):
    """The child has a queue of its own, and its end does not wait for the parent's events."""
    server.always = status(503)
    program = """
import os, time
client = Client(url, when_full="drop", queue_events_max=5, close_s=0.2)
for _ in range(10): client.hit(user='parent', action='click')
pid = os.fork()
if pid == 0:
    taken = sum(client.hit(user='child', action='click') for _ in range(10))
    os._exit(taken)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), client.stats.queued)
"""
    assert run(program, server).stdout == "5 5\n"


def test_killed_by_a_signal_with_a_handler(server):
    """An application that turns SIGTERM into an ordinary exit, as servers do, loses nothing."""
    program = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
client = Client(url, batch_age_s=600)
for _ in range(10): client.hit(user='ada', action='click')
os.kill(os.getpid(), signal.SIGTERM)
"""
    told = run(program, server)
    assert told.returncode != -signal.SIGTERM and len(server.keys()) == 10


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 that nobody vouches for, with its key in the same file."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "certificate.pem"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=30)
    both = tmp_path / "both.pem"
    both.write_bytes((tmp_path / "key.pem").read_bytes() + (tmp_path / "certificate.pem").read_bytes())
    return both


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_certificates(server, client, certificate):
    """An unknown server is sent nothing, not even the token; a pool of one's own says whom to trust."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http:", "https:")
    one = client(url, token="s3cret")
    put_hits(one, 3)
    eventually(lambda: one.stats.retries >= 2)
    assert not server.requests and one.close(0.1) is False

    made = []

    def pool():
        made.append(urllib3.PoolManager(ca_certs=str(certificate)))
        return made[-1]

    one = client(url, token="s3cret", pool=pool)
    put_hits(one, 3)
    assert one.flush(10) and len(made) == 1 and len(server.keys()) == 3
