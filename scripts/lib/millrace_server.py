"""The program itself, as `scripts/up` runs it."""

import http.client
import os
import time

from console import Failure, last_line
from process import Process

READY_S = 60
# Its own bound is 10 s.
STOP_S = 15
LOG_BYTES_MAX = 50 << 20


def own_environment(environment):
    """The part of an environment that configures the program."""
    return {name: value for name, value in environment.items() if name.startswith("MILLRACE_")}


class Millrace:
    """`millrace run`, its log in `log/millrace.log`."""

    def __init__(self, home, *, host, port):
        # What listens on every address is reached on loopback.
        self.host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        self.port = port
        self.log = home / "log" / "millrace.log"
        self.process = Process("millrace", home / "run")

    @property
    def url(self):
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"

    def start(self, binary, environment):
        if self.log.exists() and self.log.stat().st_size > LOG_BYTES_MAX:
            self.log.replace(self.log.with_name("millrace.log.1"))
        self.process.start([binary, "run"], log=self.log, env=environment)

    def outdated(self, binary, environment):
        """Why the running process is not what `start` would start now; None when it is."""
        running = f"/proc/{self.process.pid}"
        # Cargo puts a new file in the place of the old one, which the process keeps.
        if not os.path.samestat(os.stat(f"{running}/exe"), os.stat(binary)):
            return "the program was built anew"
        with open(f"{running}/environ", "rb") as source:
            pairs = [pair.partition(b"=") for pair in source.read().split(b"\0")]
        before, now = (
            own_environment({os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}),
            own_environment(environment),
        )
        changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return f"{', '.join(changed)} changed" if changed else None

    def wait_ready(self, deadline_s=READY_S):
        """Returns once the program says that it takes and stores events."""
        end = time.monotonic() + deadline_s
        while True:
            status, said = self._readiness()
            if status == 200:
                return
            if self.process.pid is None:
                raise Failure(f"millrace ended while it was starting: {last_line(self.log)} (log: {self.log})")
            if time.monotonic() > end:
                raise Failure(f"millrace is not ready after {deadline_s} s ({said}): see {self.log}")
            time.sleep(0.05)

    def _readiness(self):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", "/health/ready")
            answer = connection.getresponse()
            return answer.status, f"it answers {answer.status} {answer.read(500).decode('utf-8', 'replace')}"
        except (OSError, http.client.HTTPException):
            return None, f"it does not answer on {self.url}"
        finally:
            connection.close()

    def stop(self, grace_s=STOP_S):
        return self.process.stop(grace_s)
