"""The events of scripts/chaos, and what its clients remember of them.

An event is a function of its number: tag of the run, kind, batch, position in the batch. Its identity (a UUID, or a text
for events that get theirs from an Idempotency-Key) is the number under a mapping that can be undone, so a stored row tells
which event it claims to be, and the memory of millions of events is a few words for each batch.

No part of this looks at, or shares code with, the program.
"""

import json
import threading
import uuid
from dataclasses import dataclass

KINDS = ["captcha", "hit", "interaction"]
POSITION_BITS, BATCH_BITS, KIND_BITS = 20, 36, 8
LOW_BITS = POSITION_BITS + BATCH_BITS + KIND_BITS
MASK = (1 << 128) - 1
# Any odd number has an inverse modulo 2^128, so that the mapping can be undone.
FACTOR = 0x9E3779B97F4A7C15F39CC0605CEDC835
FACTOR_BACK = pow(FACTOR, -1, 1 << 128)

DAYS = ["2021-01-25", "2021-01-26", "2024-02-29"]
SITES = [str(uuid.UUID(int=(0xC4A0 << 112) + site)) for site in range(7)]
TYPES = ["serve", "solve"]
ACTIONS = ["click", "impression"]
NAMES = ["pageview", "cta_click", "submit"]
CATEGORY = {"pageview": "page_interaction", "cta_click": "page_interaction", "submit": "form_interaction"}
HOUR_MS = 3_600_000
# 2021-01-25T00:00:00Z.
HOUR = 1_611_532_800_000
HOURS = 5
USERS = 400

# What has become of a batch, from the least to the most that is known of it. Only a part of its bytes was ever sent: it
# must not be counted. It was sent and no good answer came: each event may be counted, once. It was answered 202.
HALF, UNSURE, ACKNOWLEDGED = "half", "unsure", "acknowledged"
ORDER = [HALF, UNSURE, ACKNOWLEDGED]


def scramble(number):
    return number * FACTOR & MASK


def unscramble(identity):
    return identity * FACTOR_BACK & MASK


@dataclass
class Batch:
    """Events that are sent for the first time in one upload."""

    kind: str
    number: int
    size: int
    # Its events have no identity of their own: they get one from the upload's Idempotency-Key.
    keyed: bool
    # A site of its own, for captchas that are to be found alone in the report.
    site: str | None
    state: str = HALF
    uploads: int = 0


@dataclass(frozen=True)
class Event:
    """What one event says, as plain values."""

    kind: str
    identity: str
    # What a stored row must hold besides, and where the event counts: (day, site, type), (hour, user, action), (day, category, name).
    counted: tuple
    line: str


class Ledger:
    """Every batch of a run. Safe to use from several threads."""

    def __init__(self, tag):
        self.tag = tag & ((1 << 128 - LOW_BITS) - 1)
        self.batches = []
        self.lock = threading.Lock()

    def batch(self, kind, size, *, keyed=False, site=None):
        """A new batch, of which nothing has been sent."""
        assert 0 < size < 1 << POSITION_BITS
        with self.lock:
            made = Batch(kind, len(self.batches), size, keyed and kind != "captcha", site)
            self.batches.append(made)
        return made

    def sent(self, batch, state):
        """Notes what came of an upload; a batch never gets into a state that says less."""
        with self.lock:
            batch.uploads += state != HALF
            batch.state = max(batch.state, state, key=ORDER.index)

    def number(self, batch, position):
        kind = KINDS.index(batch.kind)
        return ((self.tag << KIND_BITS | kind) << BATCH_BITS | batch.number) << POSITION_BITS | position

    def find(self, kind, number):
        """Batch and position of a number; None where this run never made it."""
        position = number & (1 << POSITION_BITS) - 1
        index = number >> POSITION_BITS & (1 << BATCH_BITS) - 1
        head = self.tag << KIND_BITS | KINDS.index(kind)
        if number >> (POSITION_BITS + BATCH_BITS) != head or index >= len(self.batches):
            return None
        batch = self.batches[index]
        return (batch, position) if batch.kind == kind and position < batch.size else None

    def event(self, batch, position):
        return {"captcha": self._captcha, "hit": self._hit, "interaction": self._interaction}[batch.kind](batch, position)

    def _captcha(self, batch, position):
        # A served captcha and its solving share their id: they are two events all the same.
        number = self.number(batch, position)
        mixed = scramble(number) >> 64
        identity, type_ = uuid.UUID(int=scramble(number & ~1)), TYPES[number & 1]
        day, site = DAYS[mixed % 3], batch.site or SITES[mixed % 7]
        text = (
            f'{{"time":"{day}T10:{mixed % 60:02}:00.{mixed % 1000000:06}","type":"{type_}",'
            f'"correlation_id":"{identity}","site_id":"{site}"}}'
        )
        return Event("captcha", f"{type_} {identity}", (day, site, type_), text)

    def _hit(self, batch, position):
        number = self.number(batch, position)
        mixed = scramble(number) >> 64
        hour, action = HOUR + mixed % HOURS * HOUR_MS, ACTIONS[mixed >> 8 & 1]
        one = {"timestamp": hour + mixed % HOUR_MS, "user": f"user {mixed % USERS}", "action": action}
        if batch.keyed:
            one["user"] = identity = f"keyed {number:x}"
        else:
            one["event_id"] = identity = str(uuid.UUID(int=scramble(number)))
        return Event("hit", identity, (hour, one["user"], action), json.dumps(one))

    def _interaction(self, batch, position):
        number = self.number(batch, position)
        mixed = scramble(number) >> 64
        day, name = DAYS[mixed % 3], NAMES[(mixed >> 8) % 3]
        identity = f"keyed {number:x}" if batch.keyed else str(uuid.UUID(int=scramble(number)))
        one = {
            "session_id": str(uuid.UUID(int=mixed)),
            "category": CATEGORY[name],
            "name": name,
            # All that any of the types asks for.
            "data": {"host": "www.example.org", "path": f"/{identity}", "element": "buy", "form": "order"},
            "timestamp": f"{day}T10:{mixed % 60:02}:00.{mixed % 1000000:06}Z",
        }
        if not batch.keyed:
            one["event_id"] = identity
        return Event("interaction", identity, (day, CATEGORY[name], name), json.dumps(one))
