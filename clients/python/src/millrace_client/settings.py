"""The parameters of a client, checked, and the bounds that are not parameters."""

from __future__ import annotations

from dataclasses import dataclass, fields

# A longer Retry-After is cut to this: five minutes, so that a mistaken header does not silence a client for a day.
RETRY_AFTER_S_MAX = 300.0
# Below this a body gains nothing from gzip, whose frame alone is 18 bytes.
GZIP_BYTES_MIN = 256
# The fastest level: NDJSON shrinks to a fourth to a sixth, and the thread shares the application's processor.
GZIP_LEVEL = 1
# An answer lists at most 100 errors of some hundred bytes each; more than this is not one.
ANSWER_BYTES_MAX = 4 << 20
# While it closes, a client pauses so long between tries: little time is left, and the server may be back at any moment.
CLOSING_PAUSE_S_MIN, CLOSING_PAUSE_S_MAX = 0.05, 1.0
# Of each sort of complaint one line a minute is logged, with the number of those since the last.
LOG_EVERY_S = 60.0
# Three years: what the operating system's waits take without overflowing.
SECONDS_MAX = 1e8

WHEN_FULL = ("block", "drop")


@dataclass(frozen=True)
class Settings:
    """What can be chosen; `Client` documents each."""

    batch_events_max: int = 5_000
    batch_bytes_max: int = 1 << 20
    batch_age_s: float = 1.0
    queue_events_max: int = 100_000
    queue_bytes_max: int = 64 << 20
    event_bytes_max: int = 1 << 20
    when_full: str = "block"
    block_s: float | None = 10.0
    timeout_s: float = 30.0
    close_s: float = 10.0
    backoff_s: float = 0.25
    backoff_s_max: float = 30.0
    give_up_s: float | None = None
    gzip: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith(("_events_max", "_bytes_max")):
                _require_count(field.name, value)
            elif field.name in ("block_s", "give_up_s"):
                if value is not None:
                    require_seconds(field.name, value)
            elif field.name.endswith(("_s", "_s_max")):
                require_seconds(field.name, value)
        if self.when_full not in WHEN_FULL:
            raise ValueError(f"when_full is {self.when_full!r}, not one of {', '.join(map(repr, WHEN_FULL))}")
        if not isinstance(self.gzip, bool):
            raise TypeError(f"gzip is {type(self.gzip).__name__}, not bool")
        if self.backoff_s_max < self.backoff_s:
            raise ValueError("backoff_s_max is less than backoff_s")
        if not 0 < self.backoff_s:
            raise ValueError("backoff_s is 0: a server that is away would be asked without a pause")
        if not 0 < self.timeout_s:
            raise ValueError("timeout_s is 0")


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {type(value).__name__}, not int")
    if value < 1:
        raise ValueError(f"{name} is {value}, less than 1")


def require_seconds(name: str, value: object) -> None:
    """Raises TypeError or ValueError, which name the parameter."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {type(value).__name__}, not a number of seconds")
    if not 0 <= value <= SECONDS_MAX:
        raise ValueError(f"{name} is {value}, not from 0 to {SECONDS_MAX:.0f} seconds")
