"""An event as it was put into the queue, and what the server had against it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

# The code of an event that was given up by the client: no answer had come for it. It may have been counted or not.
UNSENT = "unsent"


@dataclass(frozen=True)
class Event:
    """One event. `kind` is "captcha", "interaction" or "hit", the name of the client's method that takes it."""

    kind: str
    line: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """Its fields as they were sent, the assigned `event_id` among them.

        `getattr(client, event.kind)(**event.fields)` puts the same event into a queue again; it is counted once.
        """
        fields: dict[str, Any] = json.loads(self.line)
        return fields


@dataclass(frozen=True)
class Rejection:
    """Why an event will not be counted.

    `code` is the server's (`bad_uuid`, `missing_field`, ...), `http_404` where the server gave none, `rejected` where it
    refused the event and did not list why, or `unsent` (see `UNSENT`). `field` is the event's field to blame, if one is.
    `status` is that of the answer, None where none came.
    """

    code: str
    message: str
    field: str | None = None
    status: int | None = None
