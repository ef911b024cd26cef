"""What the scripts say, and how they fail.

Progress goes to standard output. A failure that a person can act on is a `Failure`: one line on standard error that
says what is wrong and what to do, and exit status 1. Anything else is a defect of the scripts and keeps its traceback.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

PROGRESS_EVERY_S = 10


class Failure(Exception):
    """Something that the person who runs the script can put right; its text is one line."""


def say(text):
    print(f"==> {text}", flush=True)


def takes_no_arguments(usage):
    """For scripts without arguments: the status to end with when there are any, --help among them, else None."""
    if not sys.argv[1:]:
        return None
    if sys.argv[1] in ("-h", "--help"):
        print(usage.strip())
        return 0
    print(
        f"{os.path.basename(sys.argv[0])}: takes no arguments, got {sys.argv[1]!r}; --help tells more", file=sys.stderr
    )
    return 2


def run_main(main):
    """Calls `main` and ends the process with its status; a Failure becomes one line on standard error."""
    try:
        sys.exit(main() or 0)
    except (Failure, OSError) as failure:
        # An OSError says by itself what could not be done to which file: a full disk, a folder of somebody else's.
        line = " ".join(str(failure).split())
        print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{os.path.basename(sys.argv[0])}: interrupted", file=sys.stderr)
        sys.exit(130)


def run_logged(title, command, log, *, cwd=None, env=None):
    """Runs a long command with its output in `log`, saying every few seconds that it still goes on.

    Returns whether it succeeded.
    """
    say(title)
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(log, "ab") as sink:
        sink.write(f"$ {' '.join(map(str, command))}\n".encode())
        sink.flush()
        child = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
        )
        try:
            while True:
                try:
                    return child.wait(timeout=PROGRESS_EVERY_S) == 0
                except subprocess.TimeoutExpired:
                    say(f"  ... still at it after {time.monotonic() - began:.0f} s")
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()


def last_line(log):
    """The last line of a log that is not blank, cut to a sane length; empty when there is none."""
    try:
        with open(log, "rb") as source:
            source.seek(max(0, Path(log).stat().st_size - 4096))
            lines = source.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
