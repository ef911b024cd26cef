"""Events reach a server that misbehaves, once each, and what is not taken is told."""

import logging
import threading
import time
import uuid

import pytest
import server as behave
from conftest import eventually
from server import error, hang_up, judged_by, serving, status, take_and_hang_up, too_large_beyond, wait_for

from millrace_client import QueueFull

ID = uuid.uuid4()


def put_hits(client, count, user="ada"):
    for _ in range(count):
        assert client.hit(user=user, action="click")


def accounts(client):
    """The identity that always holds."""
    stats = client.stats
    return stats.queued == stats.accepted + stats.rejected + stats.unsent + stats.pending


def test_the_three_kinds(server, client):
    one = client(token="s3cret")
    assert one.captcha(type="serve", correlation_id=ID, site_id=ID)
    assert one.interaction(session_id=ID, category="page_interaction", name="pageview", data={"host": "a", "path": "/"})
    assert one.hit(user="ada", action="click")
    assert one.flush(10)
    assert {path: len(events) for path, events in server.counted.items()} == {
        "/v1/events": 1,
        "/v2/events": 1,
        "/hits": 1,
    }
    for request in server.requests:
        assert request.headers["Authorization"] == "Bearer s3cret"
        assert request.headers["Content-Type"] == "application/x-ndjson"
        assert request.headers["User-Agent"].startswith("millrace-client/")
    assert one.stats.queued == one.stats.accepted == 3 and one.stats_of("hit").accepted == 1


def test_paths_below_a_prefix(server, client):
    server.always = status(404)
    one = client(server.url + "/ingest/")
    put_hits(one, 1)
    assert one.flush(10)
    assert server.requests[0].path == "/ingest/hits"


def test_batches_by_number(server, client):
    gate = threading.Event()
    server.then(wait_for(gate))
    one = client(batch_events_max=4, batch_age_s=60)
    put_hits(one, 13)
    gate.set()
    assert one.flush(10)
    assert server.sizes() == [4, 4, 4, 1]


def test_batches_by_bytes(server, client):
    one = client(batch_bytes_max=1000, batch_age_s=60)
    put_hits(one, 50)
    assert one.flush(10)
    line_bytes = (
        one.stats_of("hit").queued
        and len(b'{"timestamp":1611598842159,"user":"ada","action":"click","event_id":""}') + 37
    )
    assert max(server.sizes()) == 1000 // line_bytes
    one.hit(user="u" * 250, action="click")
    small = client(batch_bytes_max=10, batch_age_s=60)
    put_hits(small, 3)
    assert small.flush(10), "an event larger than a batch is a batch of its own"


def test_batches_by_age(server, client):
    one = client(batch_age_s=0.05)
    put_hits(one, 3)
    eventually(lambda: one.stats.accepted == 3)
    assert server.sizes() == [3]


def test_compression(server, client):
    one = client(batch_age_s=60)
    put_hits(one, 1000)
    assert one.flush(10)
    (request,) = server.requests
    assert request.headers["Content-Encoding"] == "gzip" and one.stats.body_bytes == request.sent_bytes < 100 * 1000
    plain = client(gzip=False)
    put_hits(plain, 100)
    assert plain.flush(10)
    assert "Content-Encoding" not in server.requests[-1].headers


def test_a_server_without_compression(server, client):
    """It says so once, and is believed from then on; what it refused is sent again as it is."""

    def older(request):
        if "Content-Encoding" in request.headers:
            error(415, "unsupported_content_encoding")(request)
        else:
            behave.take(request)

    server.always = older
    one = client(batch_age_s=60)
    for _ in range(3):
        put_hits(one, 100)
        assert one.flush(10)
    assert [request.headers.get("Content-Encoding") for request in server.requests] == ["gzip", None, None, None]
    assert one.stats.accepted == len(server.keys()) == 300


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_refused_for_now(code, server, client):
    server.then(*[status(code)] * 3)
    one = client()
    put_hits(one, 10)
    assert one.flush(10)
    assert one.stats.accepted == len(server.keys()) == 10 and one.stats.retries == 3


def test_retry_after_is_waited_for(server, client):
    moments = []

    def noted(then):
        return lambda request: (moments.append(time.monotonic()), then(request))

    server.then(noted(status(503, Retry_After="1")), noted(behave.take))
    one = client()
    put_hits(one, 1)
    assert one.flush(10)
    assert moments[1] - moments[0] >= 1


def test_an_answer_that_breaks_off(server, client):
    """The server has counted the events and the client does not know: the same events with the same keys come again."""
    server.then(take_and_hang_up, take_and_hang_up)
    one = client()
    put_hits(one, 10)
    one.captcha(type="serve", correlation_id=ID, site_id=ID)
    one.interaction(session_id=ID, category="c", name="n", data={})
    assert one.flush(10)
    assert [len(events) for events in server.counted.values()] == [1, 1, 10]
    assert sum(copies > 1 for copies in server.copies.values()) >= 2
    assert one.stats.accepted == 12


def test_lost_connections(server, client):
    server.then(hang_up, hang_up, behave.take, hang_up)
    one = client(batch_events_max=5)
    put_hits(one, 20)
    assert one.flush(10)
    assert one.stats.accepted == len(server.keys()) == 20 and one.stats.retries == 3


def test_a_server_that_is_not_there_yet(client):
    with serving() as gone:
        port = gone.server_address[1]
    one = client(f"http://127.0.0.1:{port}")
    put_hits(one, 10)
    eventually(lambda: one.stats.retries >= 2)
    with serving(port) as server:
        assert one.flush(10)
        assert len(server.keys()) == 10


def test_a_slow_answer_is_not_waited_for(server, client):
    gate = threading.Event()
    server.then(wait_for(gate))
    one = client(timeout_s=0.2)
    put_hits(one, 10)
    assert one.flush(10)
    gate.set()
    assert one.stats.accepted == len(server.keys()) == 10 and one.stats.retries >= 1


def test_connections_are_kept(server, client):
    one = client(batch_events_max=1)
    put_hits(one, 50)
    assert one.flush(10)
    assert server.connections == 1


def test_rejected_lines(server, client, rejected):
    server.always = judged_by(lambda event: event["user"] != "bad")
    one = client(on_rejected=rejected, batch_age_s=60)
    for number in range(30):
        one.hit(user="bad" if number % 10 == 7 else f"u{number}", action="click")
    assert one.flush(10)
    assert [event.fields["user"] for event, _ in rejected] == ["bad"] * 3
    assert [rejection.message for _, rejection in rejected] == ["line 8 is bad", "line 18 is bad", "line 28 is bad"]
    assert {event.fields["event_id"] for event, _ in rejected}.isdisjoint(server.keys())
    assert (one.stats.accepted, one.stats.rejected) == (27, 3)


@pytest.mark.parametrize("told", [True, False])
def test_more_rejected_than_listed(told, server, client, rejected):
    """The callback hears of each, by asking again for those whose errors were not listed; nothing is counted twice."""
    server.always = judged_by(lambda event: event["user"].startswith("good"))
    one = client(on_rejected=rejected if told else None, batch_age_s=60)
    for number in range(600):
        one.hit(user="good" if number % 2 else f"bad{number}", action="click")
    assert one.flush(10)
    assert (one.stats.accepted, one.stats.rejected, one.stats.pending) == (300, 300, 0)
    assert len(server.keys()) == 300
    if told:
        assert [event.fields["user"] for event, _ in rejected] == [f"bad{number}" for number in range(0, 600, 2)]
        assert set(rejected.codes()) == {"bad_field"}
        # Lines 1 to 199 were decided by the first answer.
        assert server.sizes() == [600, 100, 100, 100, 100, 1]
    else:
        assert server.sizes() == [600]


def test_all_rejected(server, client, rejected):
    """A 422 lists the first 100, and rejects all."""
    server.always = judged_by(lambda event: False)
    one = client(on_rejected=rejected, batch_age_s=60)
    put_hits(one, 150)
    assert one.flush(10)
    assert rejected.codes() == ["bad_field"] * 100 + ["rejected"] * 50
    assert len(server.requests) == 1 and one.stats.rejected == 150


@pytest.mark.parametrize("code", [400, 401, 403, 404, 415])
def test_the_whole_request_refused(code, server, client, rejected, caplog):
    server.then(error(code, "some_code", "why"))
    one = client(on_rejected=rejected, gzip=False, token="s3cret")
    put_hits(one, 10, user="private-user")
    assert one.flush(10)
    put_hits(one, 10)
    assert one.flush(10)
    assert rejected.codes() == ["some_code"] * 10 and rejected[0][1].status == code
    assert (one.stats.accepted, one.stats.rejected) == (10, 10)
    assert "10 some_code" in caplog.text


def test_a_body_that_is_too_large(server, client, rejected):
    """It is halved until it is taken, and the next batches are small from the start."""
    server.always = too_large_beyond(100)
    one = client(on_rejected=rejected, batch_age_s=60)
    put_hits(one, 700)
    assert one.flush(10)
    put_hits(one, 300)
    assert one.flush(10)
    assert one.stats.accepted == len(server.keys()) == 1000 and not rejected
    assert server.sizes()[:4] == [700, 350, 175, 88]
    assert max(server.sizes()[4:]) <= 100


def test_an_event_that_is_too_large(server, client, rejected):
    def picky(request):
        if any(len(event["user"]) > 100 for event in request.events):
            error(413, "content_too_large")(request)
        else:
            behave.take(request)

    server.always = picky
    one = client(on_rejected=rejected, batch_age_s=60)
    for number in range(20):
        one.hit(user="u" * (200 if number == 11 else 10), action="click")
    assert one.flush(10)
    assert rejected.codes() == ["content_too_large"] and len(rejected[0][0].fields["user"]) == 200
    assert one.stats.accepted == len(server.keys()) == 19
    with pytest.raises(ValueError, match="more than 50"):
        client(event_bytes_max=50).hit(user="ada", action="click")


def test_a_kind_that_waits_holds_up_no_other(server, client):
    server.always = lambda request: (status(503) if request.path == "/hits" else behave.take)(request)
    one = client()
    put_hits(one, 5)
    eventually(lambda: one.stats.retries > 2)
    one.captcha(type="serve", correlation_id=ID, site_id=ID)
    eventually(lambda: one.stats_of("captcha").accepted == 1)
    assert one.stats_of("hit").pending == 5


def test_given_up(server, client, rejected):
    server.always = status(503)
    one = client(on_rejected=rejected, give_up_s=0.1, batch_events_max=5, batch_age_s=60)
    put_hits(one, 5)
    eventually(lambda: len(rejected) == 5)
    server.always = behave.take
    put_hits(one, 5)
    assert one.flush(10)
    assert rejected.codes() == ["unsent"] * 5 and (one.stats.unsent, one.stats.accepted) == (5, 5)


# The queue.


def stuck(server):
    """Makes the server wait; returns the event that ends it."""
    gate = threading.Event()
    server.then(wait_for(gate))
    return gate


def test_dropping_when_full(server, client, caplog):
    gate = stuck(server)
    one = client(when_full="drop", queue_events_max=10)
    taken = [one.hit(user="ada", action="click") for _ in range(25)]
    assert sum(taken) == 10 and one.stats.dropped == 15
    gate.set()
    assert one.flush(10)
    assert len(server.keys()) == 10 and accounts(one)
    assert one.hit(user="ada", action="click")
    assert "1 events dropped: the queue for hit is full" in caplog.text


def test_blocking_when_full(server, client):
    gate = stuck(server)
    one = client(queue_events_max=10, block_s=None)
    thread = threading.Thread(target=put_hits, args=(one, 25))
    thread.start()
    eventually(lambda: one.stats.queued == 10)
    assert thread.is_alive()
    gate.set()
    thread.join(10)
    assert not thread.is_alive() and one.flush(10)
    assert len(server.keys()) == 25 and one.stats.dropped == 0


def test_blocking_has_an_end(server, client):
    gate = stuck(server)
    one = client(queue_events_max=3, block_s=0.05)
    put_hits(one, 3)
    with pytest.raises(QueueFull):
        one.hit(user="ada", action="click")
    assert one.stats.dropped == 1 and one.stats.queued == 3
    gate.set()


def test_the_queue_is_bounded_in_bytes(server, client):
    gate = stuck(server)
    one = client(when_full="drop", queue_bytes_max=1000)
    while one.hit(user="u" * 100, action="click"):
        pass
    assert one.stats.queued == 4
    gate.set()
    assert one.flush(10)
    assert client(queue_bytes_max=1).hit(user="ada", action="click"), "one event always fits"


def test_a_full_queue_does_not_wait_for_its_age(server, client):
    one = client(queue_events_max=10, batch_events_max=1000, batch_age_s=600, block_s=10)
    put_hits(one, 100)
    assert one.stats.dropped == 0


def test_many_threads(server, client):
    dice = iter([status(503), take_and_hang_up, hang_up] * 20)
    lock = threading.Lock()

    def unreliable(request):
        with lock:
            behaviour = next(dice, behave.take) if len(server.requests) % 2 else behave.take
        behaviour(request)

    server.always = unreliable
    one = client(batch_events_max=50, queue_events_max=200, block_s=None, backoff_s_max=0.02)
    threads = [threading.Thread(target=put_hits, args=(one, 500)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert one.flush(30)
    assert one.stats.accepted == len(server.keys()) == 4000 and accounts(one)


# What the application and the log are told.


def test_a_callback_that_raises(server, client, caplog):
    server.then(judged_by(lambda event: False))
    heard = []

    def on_rejected(event, rejection):
        heard.append(event)
        raise SystemExit("from the application") if len(heard) == 2 else ValueError("from the application")

    one = client(on_rejected=on_rejected, batch_age_s=60)
    put_hits(one, 3)
    assert one.flush(10)
    eventually(lambda: one.stats.callback_errors == 3)
    put_hits(one, 3)
    assert one.flush(10)
    assert len(heard) == 3 and one.stats.accepted == 3 and "on_rejected failed" in caplog.text


def test_a_callback_that_puts(server, client):
    """It may put a mended event; in a full queue it cannot wait, since it would wait for itself."""
    server.always = judged_by(lambda event: event["user"] != "bad")
    full = []

    def mend(event, rejection):
        try:
            one.hit(**{**event.fields, "user": "mended"})
        except QueueFull as error:
            full.append(error)
        with pytest.raises(RuntimeError, match="wait for itself"):
            one.flush()

    one = client(on_rejected=mend, queue_events_max=5, block_s=None, batch_events_max=5, batch_age_s=60)
    put_hits(one, 5, user="bad")
    eventually(lambda: one.stats.rejected == 5 and one.stats.queued + len(full) == 10)
    assert one.flush(10)
    assert one.stats.callback_errors == 0 and one.stats.accepted == len(server.keys()) == 5 - len(full)


def test_no_secret_is_logged(server, client, caplog):
    caplog.set_level(logging.DEBUG)
    server.then(status(503), hang_up, error(401, "unauthorized"), judged_by(lambda event: False), take_and_hang_up)
    one = client(token="s3cret-token")
    for _ in range(5):
        put_hits(one, 3, user="private-user")
        assert one.flush(10)
    one.close()
    assert "millrace_client" in {record.name for record in caplog.records}
    assert "s3cret" not in caplog.text and "private-user" not in caplog.text and "s3cret" not in repr(one)


def test_an_outage_is_logged_once(server, client, caplog):
    caplog.set_level(logging.INFO)
    server.then(*[status(503)] * 20)
    one = client(backoff_s_max=0.01)
    put_hits(one, 1)
    assert one.flush(10)
    said = [record.message for record in caplog.records if record.name == "millrace_client"]
    assert len(said) == 2 and "are repeated: 503" in said[0] and "taken again after" in said[1]


@pytest.mark.parametrize(
    "options, kind, says",
    [
        ({"url": "127.0.0.1:8000"}, ValueError, "url does not begin with http"),
        ({"url": "ftp://host"}, ValueError, "url does not begin with http"),
        ({"url": b"http://host"}, TypeError, "url is bytes"),
        ({"url": "http://me:hunter2@host"}, ValueError, "url holds a user name or password"),
        ({"url": "http://host:99999"}, ValueError, "port"),
        ({"url": "http://host/?a=b"}, ValueError, "query"),
        ({"token": "two words"}, ValueError, "token is empty or holds"),
        ({"token": "a\r\nX-Evil: 1"}, ValueError, "token is empty or holds"),
        ({"token": 7}, TypeError, "token is int"),
        ({"when_full": "wait"}, ValueError, "when_full is 'wait'"),
        ({"batch_events_max": 0}, ValueError, "batch_events_max is 0"),
        ({"batch_events_max": 1.5}, TypeError, "batch_events_max is float"),
        ({"timeout_s": 0}, ValueError, "timeout_s is 0"),
        ({"close_s": float("inf")}, ValueError, "close_s is inf"),
        ({"block_s": -1}, ValueError, "block_s is -1"),
        ({"block_s": "1"}, TypeError, "block_s is str"),
        ({"backoff_s": 0}, ValueError, "backoff_s is 0"),
        ({"backoff_s": 60}, ValueError, "backoff_s_max is less"),
        ({"on_rejected": 5}, TypeError, "on_rejected cannot be called"),
        ({"gzip": "yes"}, TypeError, "gzip is str"),
    ],
)
def test_wrong_parameters(options, kind, says, client):
    with pytest.raises(kind, match=says) as caught:
        client(**{"url": "http://127.0.0.1:1", **options})
    assert "hunter2" not in str(caught.value) and "Evil" not in str(caught.value)
