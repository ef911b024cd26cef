"""What the package raises besides TypeError and ValueError for wrong arguments."""

from __future__ import annotations


class ClientClosed(RuntimeError):
    """An event was given to a client that is closed, or that was closed while the caller waited for room."""


class QueueFull(RuntimeError):
    """With `when_full="block"`: there was no room in the queue for `block_s` seconds. The event was not taken."""


class ServerError(RuntimeError):
    """A report could not be had.

    `status` is that of the answer, None when none came; `code` is the server's own word for it where it gave one.
    """

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
