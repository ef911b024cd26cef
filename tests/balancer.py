"""A small HTTP balancer, as a load balancer does it: each request to the next server in turn that is ready.

A server is left out while `/health/ready` does not answer 200 or while it refuses connections. A request that could not be
handed over goes to the next one; one that was handed over and never answered is a 502, since nobody knows what became of
it. Every other answer is passed on as it is. Connections to the servers are kept, each by the client's connection it serves.
"""

import collections
import http.client
import http.server
import select
import threading

HEALTH_EVERY_S = 0.1
ANSWER_S_MAX = 30
# Of a request or an answer; all others are between two neighbours alone.
PASSED_ON = ("Content-Type", "Content-Encoding", "Retry-After", "X-Request-Id")


class Balancer:
    """Listens on a free port of loopback until it is closed. `ports` are those of the servers."""

    def __init__(self, ports):
        self.lock = threading.Lock()
        self.ports = list(ports)
        self.ready = set()
        self.turn = 0
        # For each port, requests handed over that wait for their answer, and those that were answered.
        self.waiting = collections.Counter()
        self.answered = collections.Counter()
        # Requests without an answer, and those that found nobody.
        self.unanswered = self.nobody = 0
        # Answers of servers that no client can mend by sending again.
        self.bad = []
        self.closing = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.watchers = [threading.Thread(target=self._watch, args=(port,), daemon=True) for port in self.ports]
        for thread in [*self.watchers, threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)]:
            thread.start()

    def close(self):
        self.closing.set()
        for thread in self.watchers:
            thread.join()
        self.server.shutdown()
        self.server.server_close()

    def in_turn(self):
        """The ports of those that are ready, the one whose turn it is first."""
        with self.lock:
            self.turn += 1
            first = self.turn % len(self.ports)
            return [port for port in self.ports[first:] + self.ports[:first] if port in self.ready]

    def refused(self, port):
        with self.lock:
            self.ready.discard(port)

    def begins(self, port):
        with self.lock:
            self.waiting[port] += 1

    def ends(self, port, status, retry_after):
        with self.lock:
            self.waiting[port] -= 1
            self.answered[port] += status is not None
            self.unanswered += status is None
            if status not in (None, 202) and not (status == 503 and (retry_after or "").isdigit()):
                self.bad.append((status, retry_after))

    def _watch(self, port):
        """Asks one server, on a connection of its own each time."""
        while not self.closing.wait(HEALTH_EVERY_S):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            try:
                connection.request("GET", "/health/ready")
                is_ready = connection.getresponse().status == 200
            except (OSError, http.client.HTTPException):
                is_ready = False
            finally:
                connection.close()
            with self.lock:
                (self.ready.add if is_ready else self.ready.discard)(port)


def _handler(balancer):
    class Handler(http.server.BaseHTTPRequestHandler):
        """One client's connection."""

        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self):
            super().setup()
            self.kept = {}

        def finish(self):
            for connection in self.kept.values():
                connection.close()
            super().finish()

        def log_message(self, *_):
            pass

        def do_POST(self):  # noqa: N802: its name in the base class
            body = self.rfile.read(int(self.headers["Content-Length"]))
            for port in balancer.in_turn():
                connection = self._connection(port)
                if connection is not None:
                    return self._pass_on(port, connection, body)
            with balancer.lock:
                balancer.nobody += 1
            return self._answer(502, {}, b"nobody is ready")

        def _connection(self, port):
            """A connection that is open, as far as can be seen; None where it is refused."""
            kept = self.kept.pop(port, None)
            # Nothing is to come on an idle one: what can be read is its end.
            if kept and kept.sock and not select.select([kept.sock], [], [], 0)[0]:
                return kept
            if kept:
                kept.close()
            fresh = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S_MAX)
            try:
                fresh.connect()
            except OSError:
                balancer.refused(port)
                return None
            return fresh

        def _pass_on(self, port, connection, body):
            headers = {name: self.headers[name] for name in PASSED_ON if name in self.headers}
            status, answer = None, None
            balancer.begins(port)
            try:
                connection.request("POST", self.path, body, headers)
                answer = connection.getresponse()
                said = answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                connection.close()
            finally:
                balancer.ends(port, status, answer and answer.headers["Retry-After"])
            if status is None:
                return self._answer(502, {}, b"no answer")
            if connection.sock:
                self.kept[port] = connection
            return self._answer(status, answer.headers, said)

        def _answer(self, status, headers, body):
            self.send_response(status)
            for name in PASSED_ON:
                if name in headers:
                    self.send_header(name, headers[name])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
