"""Log lines that may come often, at a bounded rate."""

from __future__ import annotations

import logging
import threading
import time

from .settings import LOG_EVERY_S

logger = logging.getLogger("millrace_client")
logger.addHandler(logging.NullHandler())


class Notices:
    """Of each sort one line in `LOG_EVERY_S`, with the number of events of that sort since the last. No line holds
    anything of an event but its kind and the codes and fields of its errors."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._sorts: dict[str, tuple[float, int]] = {}

    def tell(self, level: int, sort: str, count: int, message: str, *values: object) -> None:
        """`message` is a %-format of the events counted since the last line, then of `values`."""
        with self._lock:
            said_at, silent = self._sorts.get(sort, (float("-inf"), 0))
            now = time.monotonic()
            if now - said_at < LOG_EVERY_S:
                self._sorts[sort] = (said_at, silent + count)
                return
            self._sorts[sort] = (now, 0)
        logger.log(level, message, silent + count, *values)

    def forget(self, sort: str) -> bool:
        """The next of that sort is told at once. Returns whether one was told."""
        with self._lock:
            return self._sorts.pop(sort, None) is not None
