"""Where the scripts keep things, and what the environment says."""

import fcntl
import os
import time
from contextlib import contextmanager
from pathlib import Path

from console import Failure, say

REPOSITORY = Path(__file__).resolve().parent.parent.parent

KAFKA_PORT = 9092
KAFKA_CONTROLLER_PORT = 9093
CLICKHOUSE_PORT = 8123
HTTP_LISTEN = "127.0.0.1:8000"

# A first build on a small machine takes minutes; whoever waits longer than this waits for something that hangs.
LOCK_WAIT_S = 30 * 60


def var_dir():
    """The folder of data, logs and process ids: VAR_DIR, else `var`; a relative one counts from the repository."""
    return REPOSITORY / (os.environ.get("VAR_DIR") or "var")


def port(name, running, default):
    """The port that the variable gives, else the one that the server has or last had, else the default."""
    text = os.environ.get(name)
    if not text:
        return running or default
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise Failure(f"{name} is {text!r} and must be a port, 1 to 65535")
    return int(text)


def listen_address():
    """Host and port of MILLRACE_HTTP_LISTEN."""
    text = os.environ.get("MILLRACE_HTTP_LISTEN") or HTTP_LISTEN
    host, colon, number = text.rpartition(":")
    if not colon or not host or not number.isdigit() or not 0 < int(number) < 65536:
        raise Failure(f"MILLRACE_HTTP_LISTEN is {text!r} and must be ADDRESS:PORT")
    return host.strip("[]"), int(number)


@contextmanager
def only_one(home):
    """Holds the folder against another run of these scripts, waiting for one that is at work."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = open(home / ".lock", "w", encoding="ascii")
    except OSError as error:
        raise Failure(f"cannot write to {home}: {error.strerror}: set VAR_DIR to a folder of your own") from error
    with lock:
        end = time.monotonic() + LOCK_WAIT_S
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Failure(
                        f"another scripts/up or scripts/down has been at work for {LOCK_WAIT_S} s: end it and run this again"
                    ) from None
            if not told:
                say("another scripts/up or scripts/down is at work, waiting for it")
                told = True
            time.sleep(0.2)
        yield
