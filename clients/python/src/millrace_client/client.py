"""The client: takes events in any thread, and sends them in the background."""

from __future__ import annotations

import atexit
import os
import time as clock
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TypeVar

from . import kinds
from .kinds import Millis, Time, UUIDLike
from .lane import Lane, OnRejected
from .notices import Notices
from .settings import Settings, require_seconds
from .stats import Stats
from .transport import PoolFactory, Transport

AnyClient = TypeVar("AnyClient", bound="Client")

# Clients that are not closed. They are kept until then, so that none loses events by going out of scope.
_open: set[Client] = set()


class Client:
    """Sends events to the server at `url`, the address below which its paths lie. Make one for the process, and close it.

    Each kind of events has a queue and, from its first event on, a thread of its own, so that a kind that the server
    refuses for now holds up no other. All methods may be called from any thread.

    `token` is sent as `Authorization: Bearer`. `on_rejected(event, rejection)` is called for every event that will not be
    counted, in a background thread or in that which closes: it must be thread-safe and should be quick. What it raises is
    logged. `pool` makes the `urllib3.PoolManager` to use, for proxies or certificates of one's own.

    - `batch_events_max`, `batch_bytes_max`, `batch_age_s`: a batch is sent when it has so many events, or so many bytes before
      compression, or when its first event has waited so long.
    - `queue_events_max`, `queue_bytes_max`: how much of one kind may wait or be on its way.
    - `when_full`: "block" waits for room up to `block_s` seconds (None: for ever), then raises QueueFull; "drop" drops the
      event and counts it.
    - `timeout_s`: how long to wait for the server at each step of a request.
    - `backoff_s`, `backoff_s_max`: the pause before a request is repeated, doubled with each try, at random between half
      of it and all. A `Retry-After` of the server counts instead.
    - `give_up_s`: how long to repeat a request; None until `close()` runs out of time.
    - `close_s`: how long `close()`, the end of a `with` block and the end of the interpreter wait for what is left.
    - `event_bytes_max`: a larger event is a ValueError. The server takes 1 MiB unless it is set up otherwise.
    - `gzip`: compress bodies; given up by itself where the server does not take it.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        on_rejected: OnRejected | None = None,
        batch_events_max: int = Settings.batch_events_max,
        batch_bytes_max: int = Settings.batch_bytes_max,
        batch_age_s: float = Settings.batch_age_s,
        queue_events_max: int = Settings.queue_events_max,
        queue_bytes_max: int = Settings.queue_bytes_max,
        event_bytes_max: int = Settings.event_bytes_max,
        when_full: str = Settings.when_full,
        block_s: float | None = Settings.block_s,
        timeout_s: float = Settings.timeout_s,
        close_s: float = Settings.close_s,
        backoff_s: float = Settings.backoff_s,
        backoff_s_max: float = Settings.backoff_s_max,
        give_up_s: float | None = Settings.give_up_s,
        gzip: bool = Settings.gzip,
        pool: PoolFactory | None = None,
    ) -> None:
        if on_rejected is not None and not callable(on_rejected):
            raise TypeError("on_rejected cannot be called")
        self._settings = Settings(
            batch_events_max=batch_events_max,
            batch_bytes_max=batch_bytes_max,
            batch_age_s=batch_age_s,
            queue_events_max=queue_events_max,
            queue_bytes_max=queue_bytes_max,
            event_bytes_max=event_bytes_max,
            when_full=when_full,
            block_s=block_s,
            timeout_s=timeout_s,
            close_s=close_s,
            backoff_s=backoff_s,
            backoff_s_max=backoff_s_max,
            give_up_s=give_up_s,
            gzip=gzip,
        )
        self._on_rejected = on_rejected
        self._transport = Transport(url, token, pool, compress=gzip)
        self._lanes = self._make_lanes()
        _open.add(self)

    def _make_lanes(self) -> dict[str, Lane]:
        notices = Notices()
        return {kind: Lane(kind, self._settings, self._transport, notices, self._on_rejected) for kind in kinds.PATHS}

    def __repr__(self) -> str:
        return f"Client({self._transport.base!r})"

    # Events. Each method returns whether the event was taken: False only with when_full="drop".

    def captcha(self, *, type: str, correlation_id: UUIDLike, site_id: UUIDLike, time: Time | None = None) -> bool:
        """A captcha that was served (`type="serve"`) or solved ("solve"), now unless `time` is given. It is counted once for
        each `type` and `correlation_id`, over all history."""
        line = kinds.captcha_line(type=type, correlation_id=correlation_id, site_id=site_id, time=time)
        return self._lanes[kinds.CAPTCHA].put(line)

    def interaction(
        self,
        *,
        session_id: UUIDLike,
        category: str,
        name: str,
        data: Mapping[str, Any],
        timestamp: Time | None = None,
        event_id: UUIDLike | None = None,
    ) -> bool:
        """Something that a visitor did, now unless `timestamp` is given. `data` is written as JSON at once, so it may change
        afterwards. It is counted once for each `event_id`; each call makes a new one unless it is given."""
        line = kinds.interaction_line(
            session_id=session_id, category=category, name=name, data=data, timestamp=timestamp, event_id=event_id
        )
        return self._lanes[kinds.INTERACTION].put(line)

    def hit(
        self,
        *,
        user: str,
        action: str,
        timestamp: Millis | None = None,
        event_id: UUIDLike | None = None,
    ) -> bool:
        """A "click" or an "impression" of a user, now unless `timestamp` is given (milliseconds since the epoch, or a
        datetime). It is counted once for each `event_id`; each call makes a new one unless it is given."""
        line = kinds.hit_line(user=user, action=action, timestamp=timestamp, event_id=event_id)
        return self._lanes[kinds.HIT].put(line)

    # Waiting.

    def flush(self, timeout_s: float | None = None) -> bool:
        """Sends what waits, and returns once every event put before is settled; False when `timeout_s` passed first."""
        if timeout_s is not None:
            require_seconds("timeout_s", timeout_s)
        end = None if timeout_s is None else clock.monotonic() + timeout_s
        goals = [(lane, lane.begin_flush()) for lane in self._lanes.values()]
        return all(lane.finish_flush(goal, end and max(0.0, end - clock.monotonic())) for lane, goal in goals)

    def close(self, timeout_s: float | None = None) -> bool:
        """Sends what is left, for at most `timeout_s` seconds (`close_s` unless given), and takes no more. Returns whether
        every event was answered. Those that were not are counted as `unsent`, logged, and reported to `on_rejected`.

        Called again, it does nothing. In `on_rejected` it only begins to close.
        """
        if timeout_s is not None:
            require_seconds("timeout_s", timeout_s)
        deadline = clock.monotonic() + (self._settings.close_s if timeout_s is None else timeout_s)
        lanes = list(self._lanes.values())
        for lane in lanes:
            lane.begin_close(deadline)
        answered = [lane.finish_close() for lane in lanes]
        if not any(lane.stats().pending for lane in lanes):
            self._transport.close()
            _open.discard(self)
        return all(answered)

    def __enter__(self: AnyClient) -> AnyClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Figures.

    @property
    def stats(self) -> Stats:
        """Of all kinds together."""
        return Stats.total(lane.stats() for lane in self._lanes.values())

    def stats_of(self, kind: str) -> Stats:
        """Of one kind: "captcha", "interaction" or "hit"."""
        return self._lanes[kind].stats()

    # Forks.

    def _begin_anew(self) -> None:
        """In a forked child: what waits is the parent's to send, and so are its connections, locks and figures."""
        for lane in self._lanes.values():
            lane.leave_to_parent()
        self._transport.renew()
        self._lanes = self._make_lanes()


def _close_all() -> None:
    """At the interpreter's end: all clients at once, so that their times do not add up."""
    clients = list(_open)
    for client in clients:
        for lane in client._lanes.values():
            lane.begin_close(clock.monotonic() + client._settings.close_s)
    for client in clients:
        client.close()


def _after_fork_in_child() -> None:
    for client in list(_open):
        client._begin_anew()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
