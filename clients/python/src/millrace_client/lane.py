"""The queue of one kind of events, and the thread that empties it.

An event is *waiting* in the queue, then *in hand* of the thread, in the order in which it was put, and leaves by being
settled: accepted, rejected or unsent. What is waiting and in hand together is bounded. The thread is started by the first
event, is a daemon, and ends when the lane is closed and empty, or *abandoned*: out of time, with what was left settled as
unsent by whoever noticed.

All state is guarded by one lock. No request, callback or log line is made under it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from itertools import islice
from typing import Callable

from .answers import Action, Verdict, judge
from .errors import ClientClosed, QueueFull
from .events import UNSENT, Event, Rejection
from .kinds import PATHS
from .notices import Notices, logger
from .settings import CLOSING_PAUSE_S_MAX, CLOSING_PAUSE_S_MIN, Settings
from .stats import Stats
from .transport import Transport, Unreachable

OnRejected = Callable[[Event, Rejection], object]

_UNSENT = Rejection(UNSENT, "given up before the server answered: it may have been counted or not")
# A power of two beyond which the pause has long reached its bound.
_DOUBLINGS_MAX = 30


class Lane:
    """One kind's events on their way. `on_rejected` is called by the lane's thread and by whoever closes it."""

    def __init__(
        self, kind: str, settings: Settings, transport: Transport, notices: Notices, on_rejected: OnRejected | None
    ) -> None:
        self.kind = kind
        self._settings = settings
        self._transport = transport
        self._notices = notices
        self._on_rejected = on_rejected

        # Reentrant, so that a signal handler may put an event while its thread is doing so.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # for the thread
        self._room = threading.Condition(self._lock)  # for those who put
        self._done = threading.Condition(self._lock)  # for those who flush
        self._thread: threading.Thread | None = None

        self._waiting: deque[tuple[float, bytes]] = deque()  # with the moment of its putting
        self._waiting_bytes = 0
        self._in_hand: deque[bytes] = deque()
        self._in_hand_bytes = 0
        self._reported = 0  # events settled of which the callback was told
        self._flush_to = 0  # of `queued`: batches up to there are not kept waiting for more
        # Halved when the server finds a body too large.
        self._batch_bytes_max = settings.batch_bytes_max

        self._closing = False
        self._deadline = float("inf")
        self._abandoned = False

        self._queued = self._accepted = self._rejected = self._unsent = self._dropped = 0
        self._requests = self._retries = self._body_bytes = self._callback_errors = 0

    # Those who put.

    def put(self, line: bytes) -> bool:
        """Takes a line without its newline. Returns False where it was dropped; raises QueueFull and ClientClosed."""
        line_bytes = len(line) + 1
        if len(line) > self._settings.event_bytes_max:
            raise ValueError(f"the event has {len(line)} bytes, more than {self._settings.event_bytes_max}")
        with self._lock:
            taken = self._has_room(line_bytes) or self._make_room(line_bytes)
            if self._closing:
                raise ClientClosed("the client is closed")
            if taken:
                self._waiting.append((time.monotonic(), line))
                self._waiting_bytes += line_bytes
                self._queued += 1
                if len(self._waiting) == 1 or self._is_batch_full():
                    self._work.notify()
                self._ensure_thread()
                return True
            self._dropped += 1
        self._notices.tell(logging.WARNING, "dropped", 1, "%d events dropped: the queue for %s is full", self.kind)
        if self._settings.when_full == "block":
            raise QueueFull(f"the queue for {self.kind} is full")
        return False

    def _has_room(self, line_bytes: int) -> bool:
        events = len(self._waiting) + len(self._in_hand)
        held_bytes = self._waiting_bytes + self._in_hand_bytes
        # One event always fits, so that a large one cannot wait for ever.
        return events == 0 or (
            events < self._settings.queue_events_max and held_bytes + line_bytes <= self._settings.queue_bytes_max
        )

    def _make_room(self, line_bytes: int) -> bool:
        # What waits is not kept waiting for more: no more fits.
        self._flush_to = self._queued
        self._work.notify()
        # Room is made by the lane's own thread, which would wait for itself when it puts from the callback.
        if self._settings.when_full == "drop" or self._is_own_thread():
            return False
        return self._room.wait_for(lambda: self._closing or self._has_room(line_bytes), self._settings.block_s)

    def _is_batch_full(self) -> bool:
        return len(self._waiting) >= self._settings.batch_events_max or self._waiting_bytes >= self._batch_bytes_max

    def _ensure_thread(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._run, name=f"millrace-{self.kind}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # While the interpreter ends there are no new threads: close() then sends in its own.
            return
        # A signal handler may have put an event meanwhile and so started another.
        if self._thread is None or not self._thread.is_alive():
            self._thread = thread

    def _is_own_thread(self) -> bool:
        return self._thread is threading.current_thread()

    # Those who wait.

    def begin_flush(self) -> int:
        """Sends what waits without waiting for more. Returns what `finish_flush` is to wait for."""
        if self._is_own_thread():
            raise RuntimeError("flush() in on_rejected would wait for itself")
        with self._lock:
            self._flush_to = self._queued
            self._work.notify()
            return self._flush_to

    def finish_flush(self, goal: int, timeout_s: float | None) -> bool:
        """Returns once so many events are settled and reported; False when that took too long."""
        with self._lock:
            return self._done.wait_for(lambda: self._reported >= goal, timeout_s)

    def begin_close(self, deadline: float) -> None:
        """Takes no more events, and sends what there is without waiting for more, until the deadline."""
        with self._lock:
            self._closing = True
            self._deadline = deadline
            self._work.notify_all()
            self._room.notify_all()

    def finish_close(self) -> bool:
        """Waits for the thread until the deadline, then gives up what is left. Returns whether nothing was ever given up."""
        if self._is_own_thread():
            return False
        with self._lock:
            thread = self._thread
            if (thread is None or not thread.is_alive()) and self._pending():
                # While the interpreter ends no thread can be started, so this one does the work.
                self._thread = threading.current_thread()
        if self._is_own_thread():
            try:
                self._run()
            finally:
                self._thread = None
        elif thread is not None:
            thread.join(max(0.0, self._deadline - time.monotonic()))
        self._abandon()
        with self._lock:
            return self._unsent == 0

    def leave_to_parent(self) -> None:
        """In a forked child: the events are sent by the parent. Takes no lock, since nobody is left to release it."""
        self._abandoned = self._closing = True

    # Figures.

    def stats(self) -> Stats:
        """Of one moment."""
        with self._lock:
            return Stats(
                queued=self._queued,
                accepted=self._accepted,
                rejected=self._rejected,
                unsent=self._unsent,
                pending=self._pending(),
                dropped=self._dropped,
                requests=self._requests,
                retries=self._retries,
                body_bytes=self._body_bytes,
                callback_errors=self._callback_errors,
            )

    def _pending(self) -> int:
        return len(self._waiting) + len(self._in_hand)

    # The thread.

    def _run(self) -> None:
        with self._lock:
            if self._thread is not None and self._thread.is_alive() and not self._is_own_thread():
                return
            self._thread = threading.current_thread()
        while self._take_batch():
            self._deliver()

    def _take_batch(self) -> bool:
        """Waits for a batch and takes it in hand. Returns False when there will be none."""
        with self._lock:
            while not self._in_hand:
                if self._abandoned or (self._closing and not self._waiting):
                    return False
                wait_s = self._due_in_s()
                if wait_s is not None and wait_s <= 0:
                    break
                self._work.wait(wait_s)
            while self._waiting and len(self._in_hand) < self._settings.batch_events_max:
                line = self._waiting[0][1]
                if self._in_hand and self._in_hand_bytes + len(line) + 1 > self._batch_bytes_max:
                    break
                self._waiting.popleft()
                self._waiting_bytes -= len(line) + 1
                self._in_hand.append(line)
                self._in_hand_bytes += len(line) + 1
            return True

    def _due_in_s(self) -> float | None:
        """When the next batch is to be sent; None when nothing waits."""
        if not self._waiting:
            return None
        first = self._queued - len(self._waiting)
        if self._closing or first < self._flush_to or self._is_batch_full():
            return 0.0
        return self._waiting[0][0] + self._settings.batch_age_s - time.monotonic()

    def _deliver(self) -> None:
        """Sends what is in hand until all of it is settled, in one request or, where the answer asks for it, in pieces."""
        piece = len(self._in_hand)
        while True:
            with self._lock:
                part = list(islice(self._in_hand, piece))
                if self._abandoned or not part:
                    return
            verdict = self._exchange(part)
            if verdict is None:
                self._abandon()
                return
            if verdict.action is Action.SPLIT:
                piece = (len(part) + 1) // 2
                self._shrink_batches(part)
                continue
            self._settle(part, verdict)
            piece = verdict.piece or piece

    def _exchange(self, part: list[bytes]) -> Verdict | None:
        """Asks until the answer settles something. None when the lane is out of time."""
        body = b"\n".join(part) + b"\n"
        sent, compressed = self._transport.encode(body)
        began = time.monotonic()
        tries = 0
        while True:
            left_s = self._deadline - time.monotonic()
            if left_s <= 0 or self._abandoned:
                return None
            verdict = self._ask(sent, compressed, len(part), min(self._settings.timeout_s, left_s))
            if verdict.action is Action.UNCOMPRESSED:
                if self._transport.compress:
                    logger.info("the server takes no gzip: sending uncompressed from now on")
                self._transport.compress = compressed = False
                sent = body
                continue
            if verdict.action is not Action.RETRY:
                if self._notices.forget(self._outage):
                    logger.info("%s events are taken again after %.1f s", self.kind, time.monotonic() - began)
                return verdict
            self._notices.tell(
                logging.WARNING,
                self._outage,
                1,
                "%d requests with %s events failed and are repeated: %s",
                self.kind,
                verdict.reason,
            )
            give_up_s = self._settings.give_up_s
            if give_up_s is not None and time.monotonic() - began >= give_up_s:
                return _all_unsent(part)
            tries += 1
            if not self._pause(tries, verdict.retry_after_s):
                return None
            with self._lock:
                self._retries += 1

    @property
    def _outage(self) -> str:
        return f"{self.kind} retry"

    def _ask(self, sent: bytes, compressed: bool, events: int, timeout_s: float) -> Verdict:
        with self._lock:
            self._requests += 1
            self._body_bytes += len(sent)
        try:
            answer = self._transport.post(PATHS[self.kind], sent, compressed=compressed, timeout_s=timeout_s)
        except Unreachable as error:
            return Verdict(Action.RETRY, reason=str(error))
        except Exception as error:  # noqa: BLE001
            # Whatever it is, the thread goes on and the events are kept.
            logger.exception("a request with %s events failed", self.kind)
            return Verdict(Action.RETRY, reason=type(error).__name__)
        return judge(answer, events, compressed=compressed, which=self._on_rejected is not None)

    def _pause(self, tries: int, asked_s: float | None) -> bool:
        """Waits before the next try: a growing, random time, or what the server asked for and a little more, so that clients
        do not come back all at once. Returns False when the lane is out of time, or surely will be by then."""
        settings = self._settings
        longest_s = min(settings.backoff_s_max, settings.backoff_s * 2 ** min(tries - 1, _DOUBLINGS_MAX))
        pause_s = random.uniform(longest_s / 2, longest_s)
        if asked_s is not None:
            pause_s = asked_s + random.uniform(0, settings.backoff_s)
        with self._lock:
            began = time.monotonic()
            was_closing = self._closing
            if was_closing and asked_s is None:
                # At most half of what is left, so that there is always another try before the end.
                longest_s = min((self._deadline - began) / 2, CLOSING_PAUSE_S_MAX)
                pause_s = min(pause_s, max(longest_s, CLOSING_PAUSE_S_MIN))
            while not self._abandoned:
                now = time.monotonic()
                if now >= began + pause_s:
                    return True
                if self._closing and asked_s is not None and began + pause_s >= self._deadline:
                    return False
                if self._closing and not was_closing and asked_s is None:
                    return True
                self._work.wait(began + pause_s - now)
            return False

    def _shrink_batches(self, part: list[bytes]) -> None:
        """After a body was too large: the next ones are half as large, so that not each is refused once."""
        with self._lock:
            self._batch_bytes_max = max(1, min(self._batch_bytes_max, sum(map(len, part)) // 2))
        logger.info(
            "the server found a body with %d %s events too large: batches have at most %d bytes from now on",
            len(part),
            self.kind,
            self._batch_bytes_max,
        )

    # Settling.

    def _settle(self, part: list[bytes], verdict: Verdict) -> None:
        """Lets go of the first `verdict.settled` events of the part, which is what is in hand first."""
        unsent = sum(rejection is _UNSENT for rejection in verdict.rejected.values())
        rejected = len(verdict.rejected) - unsent + verdict.unlisted
        with self._lock:
            # Whoever abandoned the lane meanwhile has settled them.
            if self._abandoned:
                return
            for _ in range(verdict.settled):
                self._in_hand_bytes -= len(self._in_hand.popleft()) + 1
            self._unsent += unsent
            self._rejected += rejected
            self._accepted += verdict.settled - rejected - unsent
            self._room.notify_all()
        self._report([(part[index], rejection) for index, rejection in verdict.rejected.items()], rejected)
        self._count_reported(verdict.settled)

    def _abandon(self) -> None:
        """Out of time: gives up everything that is left, once."""
        with self._lock:
            if self._abandoned or not self._pending():
                return
            self._abandoned = True
            left = [*self._in_hand, *(line for _, line in self._waiting)]
            self._in_hand.clear()
            self._waiting.clear()
            self._in_hand_bytes = self._waiting_bytes = 0
            self._unsent += len(left)
            self._work.notify_all()
            self._room.notify_all()
        self._report([(line, _UNSENT) for line in left], 0)
        self._count_reported(len(left))

    def _count_reported(self, events: int) -> None:
        with self._lock:
            self._reported += events
            self._done.notify_all()

    def _report(self, refused: list[tuple[bytes, Rejection]], rejected: int) -> None:
        """Tells the log how many and why, and the callback each."""
        unsent = sum(rejection is _UNSENT for _, rejection in refused)
        if unsent:
            logger.error("%d %s events were given up without an answer", unsent, self.kind)
        if rejected:
            reasons: dict[str, int] = {}
            for _, rejection in refused:
                if rejection is not _UNSENT:
                    reason = f"{rejection.code} {rejection.field or ''}".strip()
                    reasons[reason] = reasons.get(reason, 0) + 1
            text = ", ".join(f"{count} {reason}" for reason, count in islice(reasons.items(), 5))
            sort = f"{self.kind} rejected"
            self._notices.tell(
                logging.WARNING, sort, rejected, "%d %s events rejected, the last: %s", self.kind, text or "not listed"
            )
        if self._on_rejected is None:
            return
        for line, rejection in refused:
            try:
                self._on_rejected(Event(self.kind, line), rejection)
            except BaseException:  # noqa: BLE001
                # It may neither end the thread nor cost another event its report.
                with self._lock:
                    self._callback_errors += 1
                logger.exception("on_rejected failed")


def _all_unsent(part: list[bytes]) -> Verdict:
    return Verdict(Action.SETTLE, len(part), {index: _UNSENT for index in range(len(part))})
