"""Processes that outlive the script that started them.

A process is remembered in `NAME.pid` (its id alone, for people and their tools) and `NAME.json` (its id, start time and
the boot it was started in). A process id is reused sooner or later, so an id counts as ours only while the boot and the
start time agree as well; nothing else is ever signalled.
"""

import ctypes
import json
import os
import signal
import subprocess
import time

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def _boot_id():
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
        return source.read().strip()


def _start_time(pid):
    """Clock ticks from boot to the start of a living process; None when there is none (a zombie counts as dead)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as source:
            # The command's name may hold anything, blanks and brackets included, and ends at the last bracket.
            fields = source.read().rpartition(")")[2].split()
    except OSError:
        return None
    state, start_time = fields[0], fields[19]
    return None if state in "ZX" else int(start_time)


def _write_whole(path, text):
    """A reader sees the old content or the new one, never a part."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


class Process:
    """One named process, remembered under `run_dir`."""

    def __init__(self, name, run_dir):
        self.name = name
        self.pid_path = run_dir / f"{name}.pid"
        self.state_path = run_dir / f"{name}.json"
        self._child = None

    def _state(self):
        try:
            return json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    @property
    def pid(self):
        """The id of the process while it lives, else None."""
        if self._child is not None:
            self._child.poll()  # Reaps it where it was a child of ours.
        state = self._state()
        pid = state.get("pid")
        if pid is None or state.get("boot") != _boot_id() or state.get("start_time") != _start_time(pid):
            return None
        return pid

    @property
    def settings(self):
        """What `start` was given to remember."""
        return self._state().get("settings", {})

    def start(self, command, *, log, cwd=None, env=None, settings=None, dies_with_parent=False):
        """Starts the command in a session of its own, its output appended to `log`; its files are its owner's alone."""
        self.pid_path.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)

        def tie_to_parent():
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(log, "ab") as sink:
            self._child = subprocess.Popen(
                [str(part) for part in command],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=0o077,
                preexec_fn=tie_to_parent if dies_with_parent else None,
            )
        pid = self._child.pid
        state = {"pid": pid, "start_time": _start_time(pid), "boot": _boot_id(), "settings": settings or {}}
        _write_whole(self.state_path, json.dumps(state) + "\n")
        _write_whole(self.pid_path, f"{pid}\n")

    def status(self):
        """How the process ended that this object started: its exit status, or a signal's number below zero; else None."""
        return None if self._child is None else self._child.poll()

    def signal(self, number):
        """Signals the process; nothing happens when it is gone."""
        pid = self.pid
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def stop(self, grace_s):
        """SIGTERM, and SIGKILL after `grace_s`. Returns None when nothing ran, else the signal that ended it."""
        if self.pid is None:
            self.forget()
            return None
        used = signal.SIGTERM
        self.signal(used)
        if not self.wait_gone(grace_s):
            used = signal.SIGKILL
            self.signal(used)
            self.wait_gone(grace_s)
        self.forget()
        return used

    def wait_gone(self, deadline_s):
        """Whether the process ended within the deadline."""
        end = time.monotonic() + deadline_s
        while self.pid is not None:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def forget(self):
        self.pid_path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)
