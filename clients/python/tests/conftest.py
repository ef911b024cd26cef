"""The fixtures: a server that misbehaves as told, and clients of it that hurry."""

import time

import pytest
from server import serving

from millrace_client import Client

# Fast enough for tests; what a test is about it sets itself.
HURRIED = {"batch_age_s": 0.01, "backoff_s": 0.01, "backoff_s_max": 0.05, "timeout_s": 5.0}


@pytest.fixture
def server():
    with serving() as one:
        yield one


@pytest.fixture
def client(server):
    """Makes clients of the server, which are closed at the end: `client(batch_events_max=3)`."""
    made = []

    def make(url=None, **options):
        made.append(Client(url or server.url, **{**HURRIED, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


class Rejected(list):
    """An `on_rejected` that notes what it is told."""

    def __call__(self, event, rejection):
        self.append((event, rejection))

    def codes(self):
        return [rejection.code for _, rejection in self]


@pytest.fixture
def rejected():
    return Rejected()


def eventually(check, deadline_s=10):
    """Returns once `check` is true."""
    end = time.monotonic() + deadline_s
    while not check():
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.005)
