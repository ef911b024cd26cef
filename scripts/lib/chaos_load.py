"""The clients of scripts/chaos: constant load, and a note of every event sent and every answer got.

Most uploads are new, with copies of some of their own and of earlier events among them; some are earlier uploads sent again
whole, some are compressed, some hold lines that must be refused, and now and then a client dies half-way. What was not
answered 202 is sent again, byte for byte, to whichever server, a few times; then it stays in doubt.
"""

import collections
import gzip
import http.client
import json
import random
import socket
import threading
import time
from dataclasses import dataclass, field

from chaos_events import ACKNOWLEDGED, HALF, UNSURE

PATHS = {"captcha": "/v1/events", "hit": "/hits", "interaction": "/v2/events"}
# Longer than a server waits for Kafka, shorter than a process is stopped for.
ANSWER_S_MAX = 8
TRIES_MAX = 8
PAUSE_REFUSED_S = 0.2
BATCH_EVENTS_MAX = 400
BAD_LINE = '{"of a kind": "that no endpoint takes"}'
REMEMBERED = 30


@dataclass
class Upload:
    """A request's body and what it holds."""

    batch: object
    body: bytes
    headers: dict
    events: int
    bad: int
    tries: int = 0


@dataclass
class Figures:
    """What all clients together have seen."""

    answers: collections.Counter = field(default_factory=collections.Counter)
    events_sent: int = 0
    events_acknowledged: int = 0
    resent: int = 0
    half: int = 0
    slowest_s: float = 0.0
    unexpected: list = field(default_factory=list)


class Load:
    """`doors` are the proxies before the servers; `rate` is events a second, all clients together."""

    def __init__(self, ledger, doors, seed, *, clients=4, rate=2000):
        self.ledger, self.doors, self.rate, self.clients = ledger, doors, rate, clients
        self.figures = Figures()
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.failed = []
        self.known = collections.deque(maxlen=REMEMBERED)
        self.threads = [
            threading.Thread(target=self._run, args=(random.Random(f"{seed}/client/{number}"),), daemon=True)
            for number in range(clients)
        ]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        """Every upload under way gets its answer, or not; nothing is sent after this returns."""
        self.stopping.set()
        for thread in self.threads:
            thread.join(3 * ANSWER_S_MAX)
        if any(thread.is_alive() for thread in self.threads):
            self.failed.append("a client hangs")

    def _run(self, dice):
        try:
            waiting = collections.deque(maxlen=100)
            while not self.stopping.is_set():
                upload = self._next(dice, waiting)
                if upload.tries == 0 and dice.random() < 0.03:
                    self._die_half_way(dice, upload)
                    if dice.random() < 0.5:
                        waiting.append(upload)
                    continue
                status = self.send(dice.choice(self.doors), upload)
                if status == 202:
                    self.known.append(upload)
                elif upload.tries < TRIES_MAX:
                    waiting.append(upload)
                pause_s = self.clients * upload.events / self.rate * dice.uniform(0.3, 1.7)
                self.stopping.wait(pause_s if status == 202 else max(pause_s, PAUSE_REFUSED_S))
        except Exception as error:  # noqa: BLE001: it is told at the end, and fails the run
            self.failed.append(repr(error))

    def _next(self, dice, waiting):
        if waiting and dice.random() < 0.7:
            with self.lock:
                self.figures.resent += 1
            return waiting.popleft()
        if self.known and dice.random() < 0.05:
            return dice.choice(self.known)
        kind = dice.choices(["captcha", "hit", "interaction"], [70, 15, 15])[0]
        size = 1 if dice.random() < 0.2 else dice.randrange(2, BATCH_EVENTS_MAX)
        return self.make(dice, self.ledger.batch(kind, size, keyed=dice.random() < 0.3))

    def make(self, dice, batch):
        """An upload of a new batch, with copies and bad lines among its events."""
        lines = [self.ledger.event(batch, position).line for position in range(batch.size)]
        headers = {"Content-Type": "application/x-ndjson"}
        if batch.keyed:
            # Where an event stands in the body is part of its identity: no copies.
            headers["Idempotency-Key"] = f"chaos-{batch.number}"
        else:
            lines += dice.sample(lines, len(lines) // 20)
            earlier = [upload.batch for upload in list(self.known) if upload.batch.kind == batch.kind]
            for other in dice.sample(earlier, min(3, len(earlier))):
                if not other.keyed:
                    lines.append(self.ledger.event(other, dice.randrange(other.size)).line)
            dice.shuffle(lines)
        events, bad = len(lines), 0
        if dice.random() < 0.1:
            bad = dice.randint(1, 3)
            lines += [BAD_LINE] * bad
        body = ("\n".join(lines) + "\n").encode()
        if dice.random() < 0.2:
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1)
        return Upload(batch, body, headers, events, bad)

    def send(self, door, upload):
        """Posts it and notes what came of it. The status, 0 where no answer came."""
        upload.tries += 1
        self.ledger.sent(upload.batch, UNSURE)
        began, torn = time.monotonic(), door.torn
        status, headers, text = post(door.port, PATHS[upload.batch.kind], upload.body, upload.headers)
        took_s = time.monotonic() - began
        with self.lock:
            self.figures.events_sent += upload.events + upload.bad
            self.figures.slowest_s = max(self.figures.slowest_s, took_s)
            self.figures.answers[status] += 1
        if status == 202:
            self._acknowledged(upload, text)
        elif status == 503:
            if not headers.get("Retry-After", "").isdigit():
                self.unexpected(f"503 without Retry-After: {text[:200]}")
        # 400 is right where the proxy has torn the request.
        elif status != 0 and (status != 400 or door.torn == torn):
            self.unexpected(f"{status} to an upload of {upload.events} events: {text[:200]}")
        return status

    def _acknowledged(self, upload, text):
        told = json.loads(text)
        self.ledger.sent(upload.batch, ACKNOWLEDGED)
        with self.lock:
            self.figures.events_acknowledged += upload.events
        if (told["accepted"], told["rejected"]) != (upload.events, upload.bad):
            self.unexpected(f"{upload.events} good and {upload.bad} bad lines, and the answer is {text[:200]}")

    def unexpected(self, what):
        with self.lock:
            self.figures.unexpected.append(what)

    def _die_half_way(self, dice, upload):
        """Says how long the body is, sends a part of it and goes."""
        self.ledger.sent(upload.batch, HALF)
        head = "".join(f"{name}: {value}\r\n" for name, value in upload.headers.items())
        request = (
            f"POST {PATHS[upload.batch.kind]} HTTP/1.1\r\nHost: millrace\r\n{head}"
            f"Content-Length: {len(upload.body)}\r\n\r\n"
        )
        part = upload.body[: dice.randrange(len(upload.body))]
        try:
            with socket.create_connection(("127.0.0.1", dice.choice(self.doors).port), timeout=2) as connection:
                connection.sendall(request.encode() + part)
        except OSError:
            pass
        with self.lock:
            self.figures.half += 1


def post(port, path, body, headers, timeout_s=ANSWER_S_MAX):
    """Status, headers and text; the status is 0 where no whole answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, {}, ""
    finally:
        connection.close()
