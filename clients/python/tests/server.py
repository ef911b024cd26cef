"""A server that counts like millrace and misbehaves as it is told.

Events are counted once by their key, however often they come. What is to happen to the next requests is queued as
behaviours: functions of a `Request` that answer, or do not. Without one a request is taken and answered 202.
"""

import gzip
import json
import socket
import threading
from collections import Counter, deque
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEYS = {
    "/v1/events": lambda event: (event["type"], event["correlation_id"]),
    "/v2/events": lambda event: event["event_id"],
    "/hits": lambda event: event["event_id"],
}
ERRORS_LISTED_MAX = 100


@dataclass
class Request:
    """One POST. `events` are the objects of its lines."""

    handler: BaseHTTPRequestHandler
    path: str
    headers: dict
    sent_bytes: int
    events: list

    @property
    def server(self):
        return self.handler.server

    def count(self, events=None):
        """Counts the events: what a server does before it answers."""
        key = KEYS[self.path]
        with self.server.lock:
            for event in self.events if events is None else events:
                self.server.counted[self.path].setdefault(key(event), event)
                self.server.copies[self.path, key(event)] += 1

    def answer(self, status, body=b"", headers=()):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.handler.send_response(status)
        for name, value in dict(headers).items():
            self.handler.send_header(name, value)
        self.handler.send_header("Content-Length", str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # A closed port must be free at once, since a test starts another server on it.
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.Lock()
        self.behaviours = deque()
        self.always = take
        self.requests = []
        self.counted = {path: {} for path in KEYS}
        self.copies = Counter()
        self.pages = {}
        self.page = self.listed_page
        self.connections = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def then(self, *behaviours):
        """What is to happen to the next requests, one each."""
        with self.lock:
            self.behaviours.extend(behaviours)

    def listed_page(self, path):
        """What a GET answers: status, body and headers, or a function of nothing that returns them."""
        page = self.pages.get(path)
        return page() if callable(page) else page

    def next_behaviour(self):
        with self.lock:
            return self.behaviours.popleft() if self.behaviours else self.always

    def sizes(self):
        """How many events each request had."""
        with self.lock:
            return [len(request.events) for request in self.requests]

    def keys(self, path="/hits"):
        with self.lock:
            return set(self.counted[path])

    def handle_error(self, request, client_address):
        """A client that goes away is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        text = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        assert text.endswith(b"\n")
        events = [json.loads(line) for line in text.splitlines()]
        request = Request(self, self.path, dict(self.headers.items()), len(body), events)
        with self.server.lock:
            self.server.requests.append(request)
        self.server.next_behaviour()(request)

    def do_GET(self):
        with self.server.lock:
            page = self.server.page(self.path)
        status, body, headers = page or (404, {"error": {"code": "not_found", "message": "no such path"}}, {})
        Request(self, self.path, dict(self.headers.items()), 0, []).answer(status, body, headers)

    def log_message(self, *_):
        pass


@contextmanager
def serving(port=0):
    """A server on a port of its own, until the end of the block."""
    server = Server(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Behaviours.


def take(request):
    request.count()
    request.answer(202, {"accepted": len(request.events), "rejected": 0, "errors": []})


def status(code, body=b"", **headers):
    """Answers and counts nothing; underscores in header names are dashes."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda request: request.answer(code, body, named)


def error(code, word, message="no"):
    return status(code, {"error": {"code": word, "message": message}})


def judged_by(is_good):
    """Counts the good events, rejects the others, and lists the first 100 of those."""

    def behave(request):
        bad = [index for index, event in enumerate(request.events) if not is_good(event)]
        request.count([event for event in request.events if is_good(event)])
        listed = [
            {"line": index + 1, "code": "bad_field", "field": "user", "message": f"line {index + 1} is bad"}
            for index in bad[:ERRORS_LISTED_MAX]
        ]
        accepted = len(request.events) - len(bad)
        request.answer(202 if accepted else 422, {"accepted": accepted, "rejected": len(bad), "errors": listed})

    return behave


def take_and_hang_up(request):
    """The body was taken, and the answer breaks off in its middle."""
    request.count()
    request.handler.wfile.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 50\r\n\r\n" + b'{"accepted":')
    request.handler.wfile.flush()
    hang_up(request)


def hang_up(request):
    request.handler.close_connection = True
    request.handler.connection.shutdown(socket.SHUT_RDWR)


def wait_for(event, then=take):
    """Answers once the event is set."""

    def behave(request):
        assert event.wait(30)
        then(request)

    return behave


def too_large_beyond(events_max):
    return lambda request: (
        error(413, "content_too_large")(request) if len(request.events) > events_max else take(request)
    )
