"""What an answer means for the events of a request. Pure: bytes in, verdict out.

| answer | verdict |
|---|---|
| 2xx with `accepted`, `rejected` and `errors` | settles: the listed lines are rejected, the others accepted |
| the same, more rejected than are listed | settles up to the last listed line; the rest is asked again in pieces so small that all their errors are listed |
| 408, 429, 5xx | the same request again, later |
| 2xx that is not millrace's | the same: whoever it was that answered, it was not the server |
| 413 | the same in halves; a lone event is rejected |
| 415 for a compressed body | the same without compression |
| 400, 422 and every other | rejects all events of the request |

Asking again cannot count an event twice: each carries the key that the server de-duplicates on.
"""

from __future__ import annotations

import email.utils
import enum
import json
import time
from dataclasses import dataclass, field
from typing import Any

from .events import Rejection
from .settings import RETRY_AFTER_S_MAX


@dataclass(frozen=True)
class Answer:
    """A whole answer of the server."""

    status: int
    body: bytes = b""
    retry_after: str | None = None
    request_id: str | None = None


class Action(enum.Enum):
    """What is to be done next."""

    SETTLE = "settle"
    RETRY = "retry"
    SPLIT = "split"
    UNCOMPRESSED = "uncompressed"


@dataclass(frozen=True)
class Verdict:
    """For SETTLE: the first `settled` events are decided, those at the indexes in `rejected` are rejected, `unlisted` more of
    them too without it being known which, and the rest is to be sent in pieces of `piece` events.
    For RETRY: `reason` for the log, and the pause that the server asks for."""

    action: Action
    settled: int = 0
    rejected: dict[int, Rejection] = field(default_factory=dict)
    unlisted: int = 0
    piece: int = 0
    reason: str = ""
    retry_after_s: float | None = None


def judge(answer: Answer, events: int, *, compressed: bool, which: bool) -> Verdict:
    """`events` is the number sent, at least 1; `which` says whether it matters which of them are rejected."""
    status = answer.status
    if status in (408, 429) or status >= 500:
        reason = describe(answer)
        return Verdict(Action.RETRY, reason=reason, retry_after_s=retry_after_s(answer.retry_after))
    if status == 413 and events > 1:
        return Verdict(Action.SPLIT)
    if status == 415 and compressed:
        return Verdict(Action.UNCOMPRESSED)
    told = _object(answer.body)
    if 200 <= status < 300:
        return _taken(answer, told, events, which=which)
    return _refused(answer, told, events)


def _taken(answer: Answer, told: dict[str, Any], events: int, *, which: bool) -> Verdict:
    accepted, rejected = _count(told.get("accepted")), _count(told.get("rejected"))
    if accepted is None or rejected is None or accepted + rejected != events:
        return Verdict(Action.RETRY, reason=f"{answer.status} with an answer that is not millrace's")
    if accepted == 0:
        return _refused(answer, told, events)
    listed = _listed(answer.status, told, events)
    hidden = rejected - len(listed)
    if hidden <= 0 or not which:
        return Verdict(Action.SETTLE, events, listed, unlisted=max(hidden, 0))
    if not listed:
        return Verdict(Action.SETTLE, piece=(events + 1) // 2)
    settled = max(listed) + 1
    return Verdict(Action.SETTLE, settled, listed, unlisted=hidden if settled == events else 0, piece=len(listed))


def _refused(answer: Answer, told: dict[str, Any], events: int) -> Verdict:
    """All of them. The server lists the reasons of the first 100 only, or has one reason for the whole request."""
    listed = _listed(answer.status, told, events)
    error = told.get("error")
    if isinstance(error, dict):
        whole = Rejection(
            _text(error.get("code")) or f"http_{answer.status}", _text(error.get("message")), None, answer.status
        )
    elif listed:
        whole = Rejection("rejected", "the server listed the reasons of the first events only", None, answer.status)
    else:
        whole = Rejection(f"http_{answer.status}", f"the server answered {answer.status}", None, answer.status)
    return Verdict(Action.SETTLE, events, {index: listed.get(index, whole) for index in range(events)})


def _listed(status: int, told: dict[str, Any], events: int) -> dict[int, Rejection]:
    """The listed errors by the index of their event. Lines are physical and start at 1, and each event is a line."""
    errors = told.get("errors")
    found: dict[int, Rejection] = {}
    for error in errors if isinstance(errors, list) else []:
        line = _count(error.get("line")) if isinstance(error, dict) else None
        if line is not None and 1 <= line <= events:
            found[line - 1] = Rejection(
                _text(error.get("code")) or "rejected",
                _text(error.get("message")),
                _text(error.get("field")) or None,
                status,
            )
    return dict(sorted(found.items()))


def describe(answer: Answer) -> str:
    """One line for logs and exceptions: the status, and what the server says of the request as a whole."""
    error = _object(answer.body).get("error")
    words = [str(answer.status)]
    if isinstance(error, dict):
        words += [_text(error.get("code")), _text(error.get("message"))[:200]]
    if answer.request_id:
        words.append(f"(request {answer.request_id[:128]})")
    return " ".join(word for word in words if word)


def error_code(answer: Answer) -> str | None:
    """The code of an error of the whole request."""
    error = _object(answer.body).get("error")
    return (_text(error.get("code")) or None) if isinstance(error, dict) else None


def retry_after_s(value: str | None) -> float | None:
    """Seconds from now, of either form: seconds, or an HTTP date."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), RETRY_AFTER_S_MAX)
    try:
        moment = email.utils.parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    return min(max(moment - time.time(), 0.0), RETRY_AFTER_S_MAX)


def _object(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
