"""The three kinds of events: where each is sent, and its line of NDJSON from checked arguments.

What is cheap to check is checked here, in the caller's thread, where a TypeError or ValueError points at the line that is
wrong. Everything else is the server's to judge.
"""

from __future__ import annotations

import json
import time as clock
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Union

CAPTCHA = "captcha"
INTERACTION = "interaction"
HIT = "hit"
PATHS = {CAPTCHA: "/v1/events", INTERACTION: "/v2/events", HIT: "/hits"}

CAPTCHA_TYPES = ("serve", "solve")
HIT_ACTIONS = ("click", "impression")
USER_BYTES_MAX = 256
# The years that the server takes, both included; the last is bounded here by the first moment after it.
YEAR_MIN, YEAR_MAX = 1970, 2100
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
MILLIS_END = 4_133_980_800_000  # 2101-01-01T00:00:00Z

UUIDLike = Union[uuid.UUID, str]
# A string is sent as it is; a datetime without a zone is in UTC.
Time = Union[datetime, str]
Millis = Union[datetime, int]

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def captcha_line(*, type: str, correlation_id: UUIDLike, site_id: UUIDLike, time: Time | None) -> bytes:
    """Identified by its own `type` and `correlation_id`."""
    return _line(
        {
            "time": _time_text("time", time),
            "type": _one_of("type", type, CAPTCHA_TYPES),
            "correlation_id": _uuid_text("correlation_id", correlation_id),
            "site_id": _uuid_text("site_id", site_id),
        }
    )


def interaction_line(
    *,
    session_id: UUIDLike,
    category: str,
    name: str,
    data: Mapping[str, Any],
    timestamp: Time | None,
    event_id: UUIDLike | None,
) -> bytes:
    """Identified by its `event_id`, which is made here where none is given."""
    if not isinstance(data, Mapping):
        raise TypeError(f"data is {_type_name(data)}, not a mapping")
    return _line(
        {
            "session_id": _uuid_text("session_id", session_id),
            "category": _text("category", category),
            "name": _text("name", name),
            "data": data if isinstance(data, dict) else dict(data),
            "timestamp": _time_text("timestamp", timestamp),
            "event_id": _event_id_text(event_id),
        }
    )


def hit_line(*, user: str, action: str, timestamp: Millis | None, event_id: UUIDLike | None) -> bytes:
    """Identified by its `event_id`, which is made here where none is given."""
    _text("user", user)
    user_bytes = len(user.encode("utf-8", "surrogatepass"))
    if user_bytes > USER_BYTES_MAX:
        raise ValueError(f"user has {user_bytes} bytes of UTF-8, more than {USER_BYTES_MAX}")
    return _line(
        {
            "timestamp": epoch_millis("timestamp", timestamp),
            "user": user,
            "action": _one_of("action", action, HIT_ACTIONS),
            "event_id": _event_id_text(event_id),
        }
    )


def epoch_millis(name: str, value: Millis | None) -> int:
    """Milliseconds since the epoch; now where there is none."""
    if value is None:
        return clock.time_ns() // 1_000_000
    if isinstance(value, datetime):
        return (_in_utc(name, value) - EPOCH) // timedelta(milliseconds=1)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {_type_name(value)}, not a datetime or an int of milliseconds since the epoch")
    if not 0 <= value < MILLIS_END:
        raise ValueError(f"{name} is {value}, not milliseconds since the epoch from {YEAR_MIN} to {YEAR_MAX}")
    return value


def _line(fields: Mapping[str, Any]) -> bytes:
    try:
        return _encode(fields).encode()
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair, which is not text") from None
    except RecursionError:
        raise ValueError("data is nested too deeply") from None
    except TypeError as error:
        raise TypeError(f"data cannot be written as JSON: {error}") from None
    except ValueError as error:
        raise ValueError(f"data cannot be written as JSON: {error}") from None


def _uuid_text(name: str, value: UUIDLike) -> str:
    if isinstance(value, uuid.UUID):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{name} is {_type_name(value)}, not a UUID or its text")
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise ValueError(f"{name} is not a UUID: {value[:60]!r}") from None


def _event_id_text(value: UUIDLike | None) -> str:
    return str(uuid.uuid4()) if value is None else _uuid_text("event_id", value)


def _time_text(name: str, value: Time | None) -> str:
    if value is None:
        value = datetime.now(timezone.utc)
    if isinstance(value, datetime):
        return _in_utc(name, value).replace(tzinfo=None).isoformat() + "Z"
    if not isinstance(value, str):
        raise TypeError(f"{name} is {_type_name(value)}, not a datetime or ISO 8601 text")
    return _text(name, value)


def _in_utc(name: str, value: datetime) -> datetime:
    try:
        moment = value.replace(tzinfo=timezone.utc) if value.utcoffset() is None else value.astimezone(timezone.utc)
    except OverflowError:
        moment = None
    if moment is None or not YEAR_MIN <= moment.year <= YEAR_MAX:
        raise ValueError(f"{name} lies outside the years {YEAR_MIN} to {YEAR_MAX} in UTC")
    return moment


def _text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {_type_name(value)}, not str")
    if not value:
        raise ValueError(f"{name} is empty")
    return value


def _one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} is {_type_name(value)}, not str")
    if value not in known:
        raise ValueError(f"{name} is {value[:60]!r}, not one of {', '.join(map(repr, known))}")
    return value


def _type_name(value: object) -> str:
    return type(value).__name__
