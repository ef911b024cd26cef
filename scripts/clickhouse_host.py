#!/usr/bin/env python3
"""Runs the ClickHouse engine of a shared library as a server, and keeps it running.

    clickhouse_host.py LIBRARY CONFIG

The library is the one of the npm package that software.py names; it holds the real engine with its real HTTP interface,
but no program to start it. CONFIG is a ClickHouse configuration file; addresses, paths and users are all in there.

Two processes, for an engine that crashes takes its process with it:

- the supervisor (what is started, and what a pid file names) waits. When the engine dies by a signal it is started
  again, after a pause that doubles from 0.1 s to 10 s and shrinks back once the engine has lived for a minute. An
  engine that refuses to start (a bad configuration, a data folder in use) ends the supervisor with status 1.
- the engine is killed by the kernel when the supervisor dies, however that happens, so that its port and its data
  folder are free for the next one.

SIGTERM and SIGINT stop both; an engine that has not stopped after 30 s is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
STOP_S = 30
PAUSE_MIN_S = 0.1
PAUSE_MAX_S = 10
LIVED_WELL_S = 60

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
libc = ctypes.CDLL(None)


def note(text):
    print(time.strftime("%Y.%m.%d %H:%M:%S"), "clickhouse_host:", text, file=sys.stderr, flush=True)


# The supervisor.


def supervise(library, config):
    # All three are waited for, never handled, so that nothing is missed between two waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    pause_s = PAUSE_MIN_S
    while True:
        began = time.monotonic()
        engine = start_engine(library, config)
        while engine.poll() is None:
            if signal.sigwait(STOP_SIGNALS | {signal.SIGCHLD}) in STOP_SIGNALS:
                return stop_engine(engine)
        if engine.returncode >= 0:
            return engine.returncode or 1
        lived_s = time.monotonic() - began
        pause_s = PAUSE_MIN_S if lived_s > LIVED_WELL_S else pause_s
        note(
            f"the engine was ended by signal {-engine.returncode} after {lived_s:.1f} s, starting it again in {pause_s:.1f} s"
        )
        if signal.sigtimedwait(STOP_SIGNALS, pause_s) is not None:
            return 0
        pause_s = min(2 * pause_s, PAUSE_MAX_S)


def start_engine(library, config):
    supervisor = os.getpid()

    def before_exec():
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # It died before the line above.
            os._exit(1)

    return subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--engine", library, config],
        stdin=subprocess.DEVNULL,
        preexec_fn=before_exec,
    )


def stop_engine(engine):
    engine.terminate()
    try:
        engine.wait(STOP_S)
    except subprocess.TimeoutExpired:
        note(f"the engine did not stop within {STOP_S} s and is killed")
        engine.kill()
        engine.wait()
    return 0


# The engine.


def run_engine(library, config):
    """Runs the engine until a stop signal comes; the status is 1 when it ended before that."""
    # Blocked here, before any thread is made, so that every thread of the engine has them blocked too.
    signal.pthread_sigmask(signal.SIG_SETMASK, STOP_SIGNALS)
    libc.prctl(PR_SET_NAME, b"clickhouse", 0, 0, 0)

    # The engine's last query reads its standard input, which is this pipe; closing the other end lets it finish.
    reader, writer = os.pipe()
    os.dup2(reader, 0)
    os.close(reader)

    engine = ctypes.CDLL(library)
    engine.chdb_query_cmdline.restype = ctypes.c_void_p
    engine.chdb_result_error.restype = ctypes.c_char_p
    engine.chdb_result_error.argtypes = [ctypes.c_void_p]
    queries = "SYSTEM START LISTEN HTTP; SELECT line FROM file('/dev/stdin', 'LineAsString', 'line String') FORMAT Null"
    # The log level counts from here only: without it the engine logs at its most talkative, whatever the file says.
    arguments = ["clickhouse", f"--config-file={config}", "--log-level=warning", "--multiquery", "--query", queries]
    argv = (ctypes.c_char_p * len(arguments))(*map(os.fsencode, arguments))
    stopping = threading.Event()
    statuses = []

    def query():
        result = engine.chdb_query_cmdline(len(arguments), argv)
        error = engine.chdb_result_error(result) if result else b"it gave no result"
        if error:
            # Its first line; a stack trace of the library's addresses follows.
            note(f"the engine ended: {error.decode('utf-8', 'replace').splitlines()[0]}")
        statuses.append(0 if stopping.is_set() and not error else 1)
        os.kill(os.getpid(), signal.SIGTERM)

    # ClickHouse counts on stacks of 8 MiB; Python's threads have what the shell's limit says.
    threading.stack_size(64 << 20)
    thread = threading.Thread(target=query)
    thread.start()
    signal.sigwait(STOP_SIGNALS)
    stopping.set()
    os.close(writer)
    thread.join()
    return statuses[0]


def main(arguments):
    if len(arguments) == 3 and arguments[0] == "--engine":
        return run_engine(*arguments[1:])
    if len(arguments) == 2 and not arguments[0].startswith("-"):
        return supervise(*arguments)
    asked = arguments in (["-h"], ["--help"])
    print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # The engine's library leaves threads and destructors behind that an ordinary exit would run into.
    os._exit(status)
