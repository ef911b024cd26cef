"""Figures of what a client has done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Stats:
    """A moment's figures, since the client was made (in a forked child: since the fork).

    `queued == accepted + rejected + unsent + pending` holds at every moment.
    """

    #: Events taken into the queue.
    queued: int = 0
    #: Events that the server has acknowledged.
    accepted: int = 0
    #: Events that the server has refused for good.
    rejected: int = 0
    #: Events given up without an answer, because `close()` or `give_up_s` ran out.
    unsent: int = 0
    #: Events that wait or are on their way.
    pending: int = 0
    #: Events not taken because the queue was full.
    dropped: int = 0
    #: Requests sent.
    requests: int = 0
    #: Requests that were sent again, after a refusal for now or without an answer.
    retries: int = 0
    #: Bytes of bodies sent, after compression.
    body_bytes: int = 0
    #: Exceptions that `on_rejected` has raised.
    callback_errors: int = 0

    @classmethod
    def total(cls, parts: Iterable[Stats]) -> Stats:
        """The sum, figure by figure."""
        listed = list(parts)
        return cls(**{field.name: sum(getattr(part, field.name) for part in listed) for field in fields(cls)})
