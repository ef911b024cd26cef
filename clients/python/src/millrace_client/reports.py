"""Reads what the server has counted."""

from __future__ import annotations

import json
import time as clock
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any, Union
from urllib.parse import urlencode

from .answers import describe, error_code, retry_after_s
from .errors import ServerError
from .kinds import Millis, Time, UUIDLike, epoch_millis
from .transport import PoolFactory, Transport, Unreachable

# A page has up to 100,000 rows, or events with their data.
PAGE_BYTES_MAX = 256 << 20
PAUSE_S = 0.25

UUIDs = Union[UUIDLike, Iterable[UUIDLike]]
Day = Union[date, str]
Days = Union[Day, Iterable[Day]]
Row = dict[str, Any]


@dataclass(frozen=True)
class HitCounts:
    """One UTC hour."""

    unique_users: int
    clicks: int
    impressions: int


class Reports:
    """The reports of the server at `url`. Every method may raise ServerError.

    Reading does not change anything, so a request that fails for now (no answer, 408, 429, 5xx) is repeated for up to
    `retry_s` seconds. Rows are dictionaries as the server sends them; pages are fetched as the rows are taken.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        pool: PoolFactory | None = None,
    ) -> None:
        self._transport = Transport(url, token, pool, compress=False)
        self._timeout_s = timeout_s
        self._retry_s = retry_s

    def captcha(
        self,
        *,
        site_id: UUIDs | None = None,
        day: Days | None = None,
        from_: Day | None = None,
        to: Day | None = None,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """`{"time", "site_id", "served", "solved"}` for each site and UTC day. Days are both included; `limit` is a page's."""
        asked = [*_several("site_id", site_id), *_several("day", day), *_one("from", from_), *_one("to", to)]
        return self._pages("/v1/report", "counters", [*asked, *_one("limit", limit)])

    def interaction_counts(
        self,
        *,
        category: str | None = None,
        name: str | None = None,
        day: Days | None = None,
        from_: Day | None = None,
        to: Day | None = None,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """`{"time", "category", "name", "count"}` for each type and UTC day."""
        asked = [*_one("category", category), *_one("name", name), *_several("day", day)]
        asked += [*_one("from", from_), *_one("to", to), *_one("limit", limit)]
        return self._pages("/v2/report", "counters", asked)

    def interactions(
        self,
        *,
        session_id: UUIDLike | None = None,
        category: str | None = None,
        name: str | None = None,
        from_: Time | None = None,
        to: Time | None = None,
        event_id: UUIDLike | None = None,
        limit: int | None = None,
    ) -> Iterator[Row]:
        """The events themselves, with where and when each was stored. `from_` is included, `to` is not."""
        asked = [*_one("session_id", session_id), *_one("category", category), *_one("name", name)]
        asked += [*_one("from", from_), *_one("to", to), *_one("event_id", event_id), *_one("limit", limit)]
        return self._pages("/v2/events", "events", asked)

    def hits(self, timestamp: Millis | None = None) -> HitCounts:
        """The UTC hour of a moment (milliseconds since the epoch, or a datetime), which is now unless given."""
        target = f"/analytics?timestamp={epoch_millis('timestamp', timestamp)}"
        text = self._get(target).decode("utf-8", "replace")
        try:
            told = dict(line.split(",") for line in text.split())
            return HitCounts(int(told["unique_users"]), int(told["clicks"]), int(told["impressions"]))
        except (ValueError, KeyError):
            raise ServerError("the answer is not a report of hits", status=200) from None

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def _pages(self, path: str, member: str, asked: list[tuple[str, str]]) -> Iterator[Row]:
        cursor: list[tuple[str, str]] = []
        while True:
            query = urlencode([*asked, *cursor])
            try:
                told = json.loads(self._get(f"{path}?{query}" if query else path))
                rows = told[member]
                following = told.get("next")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ServerError("the answer is not a report", status=200) from None
            yield from rows
            if following is None:
                return
            cursor = [("cursor", following)]

    def _get(self, target: str) -> bytes:
        end = clock.monotonic() + self._retry_s
        while True:
            try:
                answer = self._transport.get(target, timeout_s=self._timeout_s, answer_bytes_max=PAGE_BYTES_MAX)
            except Unreachable as error:
                failure, pause_s = ServerError(str(error)), PAUSE_S
            else:
                if answer.status == 200:
                    return answer.body
                failure = ServerError(describe(answer), status=answer.status, code=error_code(answer))
                if answer.status not in (408, 429) and answer.status < 500:
                    raise failure
                pause_s = max(PAUSE_S, retry_after_s(answer.retry_after) or 0.0)
            if clock.monotonic() + pause_s > end:
                raise failure
            clock.sleep(pause_s)


def _one(name: str, value: UUIDLike | Time | Day | int | None) -> list[tuple[str, str]]:
    return [] if value is None else [(name, _text(value))]


def _several(name: str, values: UUIDs | Days | None) -> list[tuple[str, str]]:
    if values is None:
        return []
    if isinstance(values, (str, uuid.UUID, date)):
        return _one(name, values)
    return [(name, _text(value)) for value in values]


def _text(value: UUIDLike | Time | Day | int) -> str:
    if isinstance(value, datetime):
        moment = value if value.utcoffset() is not None else value.replace(tzinfo=timezone.utc)
        return moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat() + "Z"
    return str(value)
