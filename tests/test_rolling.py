"""Servers are ended and started again one after the other, under full load, and nobody behind the balancer loses anything.

The clients do what clients do: they send again what was not answered, or was answered 502 or 503. Bulk bodies are mostly
lines that were stored before, so that the load is the server's and not the test's; the fresh lines among them are sent until
they are answered once, and never again.
"""

import collections
import contextlib
import http.client
import threading
import time

from balancer import Balancer
from harness import eventually
from once import Clients, lines, make_events, reckon

# What the program promises for an orderly end.
END_S_MAX = 10
TRIES_MAX = 5
KNOWN_LINES, FRESH_LINES = 4500, 500
# Between a try without an answer and the next one; a 503 says itself how long to wait.
PAUSE_S = 0.1


class Senders(Clients):
    """Clients of one address that send without a pause until they are stopped. `known` are lines to send along."""

    def __init__(self, sent, port, *, singles, bulks, known=b""):
        super().__init__([(1, b"")] * singles + [(FRESH_LINES, known)] * bulks)
        self.sent, self.port = sent, port
        self.lock = threading.Lock()
        # How many requests needed how many tries; `statuses` has what the tries came to (0: no answer).
        self.tries = collections.Counter()

    def work(self, fresh, known):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            while not self.stopping.is_set():
                events = make_events(fresh)
                self._send(connection, events, lines(events).encode() + known)

    def _send(self, connection, events, body):
        """Until it is taken, or the load ends."""
        count = body.count(b"\n")
        for number in range(1, 1000):
            status, wait_s, said = self._try(connection, body)
            with self.lock:
                self.statuses[status] += 1
                if status == 202:
                    self.tries[number] += 1
            if status == 202:
                assert f'"accepted":{count},"rejected":0'.encode() in said, said[:300]
                self.sent.taken(events)
                return
            assert status in (0, 502, 503), f"{status}: {said[:300]}"
            self.sent.not_answered(events)
            if self.stopping.wait(wait_s):
                return

    def _try(self, connection, body):
        """The status (0: no answer), how long to wait before the next try, and the answer's body."""
        try:
            connection.request("POST", "/v1/events", body)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return 0, PAUSE_S, b""
        return answer.status, int(answer.headers["Retry-After"]) if answer.status == 503 else PAUSE_S, said


def known_lines(sent, door):
    """Lines of events that were acknowledged, to fill bodies with."""
    events = make_events(KNOWN_LINES)
    sent.post_until_taken(door, events)
    return lines(events).encode()


def end_in_time(program):
    """SIGTERM, an end in order within what is promised; how long it took."""
    began = time.monotonic()
    program.terminate()
    status = program.wait_end(END_S_MAX)
    took_s = time.monotonic() - began
    assert status == 0, f"it ended with status {status}:\n{program.log_tail()}"
    assert took_s < END_S_MAX
    return took_s


def wait_busy(balancer, server):
    """Until it has its share of the load, and is in the middle of it."""
    goal = balancer.answered[server.port] + 20
    eventually(lambda: balancer.answered[server.port] >= goal, what="a share of the load")
    eventually(lambda: balancer.waiting[server.port] >= 3, what="requests under way")


def test_rolling_restart(millrace, space, sent):
    servers = [millrace("serve") for _ in range(2)]
    writer = millrace("write")
    ended_s = []
    with contextlib.closing(Balancer([server.port for server in servers])) as balancer:
        eventually(lambda: len(balancer.ready) == len(servers), what="both servers behind the balancer")
        known = known_lines(sent, servers[0])
        with Senders(sent, balancer.port, singles=4, bulks=4, known=known) as clients:
            for server in servers * 2:
                wait_busy(balancer, server)
                ended_s.append(end_in_time(server))
                # By the other one.
                clients.wait_taken(20)
                server.start().wait_ready()
            lost, nobody = balancer.unanswered, balancer.nobody
            # What an end in order spares the clients: a kill is noticed by those who wait, and cured by sending again.
            wait_busy(balancer, servers[0])
            servers[0].kill()
            clients.wait_taken(20)
            servers[0].start().wait_ready()
        assert balancer.unanswered > lost
        assert not balancer.bad, balancer.bad[:5]
    # All that was sent was taken in the end, but for what was under way when the load ended.
    assert clients.tries.total() == clients.taken() > 200
    assert max(clients.tries) <= TRIES_MAX, clients.tries
    print(f"ended after {', '.join(f'{one:.2f}' for one in ended_s)} s; tries {sorted(clients.tries.items())}")
    print(f"answers {dict(clients.statuses)}; before the kill {lost} unanswered and {nobody} that found nobody ready")
    print(f"all stored {reckon(space, sent, servers[0]):.1f} s after the load, {len(sent.acknowledged):,} acknowledged")
    assert writer.is_running()


def test_an_end_at_full_load(millrace, space, sent):
    """One process accepts and stores as much as it can, and is told to end in the middle of it."""
    program = millrace("run")
    known = known_lines(sent, program) * 2
    ended_s = []
    with Senders(sent, program.port, singles=2, bulks=8, known=known) as clients:
        for _ in range(2):
            clients.wait_taken(30)
            # Bodies lie at the door, records in the log that are not stored.
            eventually(lambda: program.metric("millrace_http_body_bytes") > len(known), what="bodies in flight")
            eventually(lambda: program.metric("millrace_lag_records", kind="captcha") > 0, what="a lag")
            ended_s.append(end_in_time(program))
            program.start().wait_ready()
        clients.wait_taken(1)
    assert clients.statuses[0] + clients.statuses[503] > 0, "nobody noticed that it had ended"
    print(f"ended after {', '.join(f'{one:.2f}' for one in ended_s)} s; answers {dict(clients.statuses)}")
    print(f"all stored {reckon(space, sent, program):.1f} s after the load, {len(sent.acknowledged):,} acknowledged")
