"""What scripts/chaos breaks: a Kafka, a ClickHouse, servers and writers of its own, with a proxy on every way between them.

Every process has a port of its own at Kafka, which tells its clients to come again through that process's proxy, so the way
of one process can be disturbed while the others' are whole. All processes are started by the main thread and die with it.
"""

import ctypes
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import ports
import software
from console import Failure
from process import Process
from settings import REPOSITORY
from tcp_proxy import Proxy

sys.path.insert(0, str(REPOSITORY / "tests"))

import harness  # noqa: E402
from once import SMALL_RANGES  # noqa: E402

SERVERS, WRITERS = 2, 3
START_S = 60
# What the program promises for an orderly end, and what a busy machine may take besides.
END_S = 10
END_LATE_S = 15
CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18

# Small bounds, so that a pause of PAUSE_S is longer than each of them.
SETTINGS = {
    **SMALL_RANGES,
    "MILLRACE_KAFKA_DELIVERY_MS_MAX": "5000",
    "MILLRACE_HTTP_ACK_MS_MAX": "6000",
    "MILLRACE_WRITER_POLL_MS_MAX": "11000",
    "MILLRACE_WRITER_SESSION_MS": "6000",
    "MILLRACE_LOG_FORMAT": "text",
}
PAUSE_S = (12, 15)


class Program:
    """One process of the program in its place: its port, its proxies and its cache stay when it is started again."""

    def __init__(self, box, role, number):
        self.box, self.role, self.number = box, role, number
        self.name = f"{role} {number}"
        self.port = ports.pick_free()
        self.kafka_port, self.kafka_proxy_port = ports.pick_free(), ports.pick_free()
        self.process = Process(self.name.replace(" ", "-"), box.home / "run")
        self.log = box.home / "log" / f"{role}-{number}.log"
        self.wanted = False
        self.links = {}

    def connect(self, dice):
        """Makes its proxies; the servers behind them need not run yet."""
        self.links["kafka"] = Proxy(f"127.0.0.1:{self.kafka_port}", self.kafka_proxy_port, dice)
        self.links["clickhouse"] = Proxy(f"127.0.0.1:{self.box.clickhouse.server.port}", dice=dice)
        if self.role == "server":
            self.links["client"] = Proxy(f"127.0.0.1:{self.port}", dice=dice)

    def start(self, clock=None):
        """`clock` is a file that holds how far its clock is off."""
        environment = self.box.environment() | {
            "MILLRACE_HTTP_LISTEN": f"127.0.0.1:{self.port}",
            "MILLRACE_KAFKA_BROKERS": self.links["kafka"].address,
            "MILLRACE_CLICKHOUSE_URL": f"http://{self.links['clickhouse'].address}",
        }
        # Keys on disk and keys in memory, both.
        if self.role == "writer" and self.number != 0:
            environment["MILLRACE_WRITER_CACHE_DIR"] = str(self.box.home / "cache" / str(self.number))
        # Events wait on disk while Kafka is away, or are refused, both.
        if self.spools():
            environment["MILLRACE_SPOOL_DIR"] = str(self.box.home / "spool" / str(self.number))
        if clock:
            environment |= {
                "LD_PRELOAD": str(self.box.faketime),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        command = [self.box.binary, {"server": "serve", "writer": "write"}[self.role]]
        self.process.start(command, log=self.log, env=environment, dies_with_parent=True)
        self.wanted = True

    def spools(self):
        return self.role == "server" and self.number != 0

    def spooled_bytes(self):
        """How much waits in its spool."""
        _, text = get(self.port, "/metrics", timeout_s=10)
        samples = (line.rpartition(" ") for line in text.splitlines() if line.startswith("millrace_spool_bytes{"))
        return sum(int(value) for _, _, value in samples)

    def is_running(self):
        return self.process.pid is not None

    def kill(self):
        self.wanted = False
        self.process.signal(signal.SIGKILL)
        self.process.wait_gone(10)

    def terminate(self):
        self.wanted = False
        self.process.signal(signal.SIGTERM)

    def pause(self):
        self.process.signal(signal.SIGSTOP)

    def resume(self):
        self.process.signal(signal.SIGCONT)

    def status(self):
        """How it ended, once it has."""
        return self.process.status()

    def is_ready(self):
        try:
            return get(self.port, "/health/ready", timeout_s=5)[0] == 200
        except OSError:
            return False


def get(port, path, timeout_s=30):
    """Status and text; an answer that breaks off counts as an OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


class Box:
    """All of it, under one folder. `problems` are what must not happen, whatever is broken."""

    def __init__(self, home, software_home, binary, *, disk_mb, dice, writers=WRITERS):
        self.home, self.software_home, self.binary = home, software_home, binary
        self.problems, self.notes = [], []
        for folder in ("log", "run", "kafka/data", "clickhouse/data", "cache", "clocks"):
            (home / folder).mkdir(parents=True, exist_ok=True)
        self.mounts = self._mount_disks(disk_mb)
        self.faketime = self._find_faketime()
        self.kafka = self.clickhouse = None
        self.programs = [Program(self, "server", number) for number in range(SERVERS)]
        # One place more than writers: for those that join and leave.
        self.programs += [Program(self, "writer", number) for number in range(writers + 1)]
        doors = [(program.kafka_port, program.kafka_proxy_port) for program in self.programs]
        self.kafka = harness.OwnKafka(home, doors=doors)
        self.clickhouse = harness.OwnClickHouse(home)
        # While one of them is meant to be away nobody starts it again.
        self.away = set()
        for program in self.programs:
            program.connect(dice)
        self.space = None

    @property
    def servers(self):
        return [program for program in self.programs if program.role == "server"]

    @property
    def writers(self):
        return [program for program in self.programs if program.role == "writer"][:-1]

    @property
    def joiner(self):
        return self.programs[-1]

    def _mount_disks(self, disk_mb):
        """Puts the data of both servers on small disks of their own, which vanish with this process.

        They are ext4 in files, as a real disk is: what is written late fails late.
        """
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
            self.notes.append(f"no disks of its own (mounting: {os.strerror(ctypes.get_errno())}): none is filled")
            return False
        for name in ("kafka", "clickhouse"):
            image, data = self.home / f"{name}.disk", self.home / name / "data"
            with open(image, "wb") as sink:
                sink.truncate(disk_mb << 20)
            # Nothing is reserved for root, who is who runs this.
            for command in (["mkfs.ext4", "-q", "-m", "0", image], ["mount", "-o", "loop", image, data]):
                try:
                    told = subprocess.run(command, capture_output=True, text=True, check=False)
                except FileNotFoundError as error:
                    told = subprocess.CompletedProcess(command, 127, "", str(error))
                if told.returncode != 0:
                    self.notes.append(f"no disks of its own ({told.stderr.strip()}): none is filled")
                    return False
            shutil.rmtree(data / "lost+found")
            data.chmod(0o700)
        return True

    def _find_faketime(self):
        try:
            return software.find_faketime(self.software_home, self.home / "log" / "setup.log")
        except (Failure, OSError) as failure:
            self.notes.append(f"no clock is set wrong ({failure})")
            return None

    def environment(self):
        return harness.environment_without_settings() | SETTINGS | self.space.settings()

    def start(self):
        """The servers, the tables and topics, then every process."""
        for server in (self.kafka, self.clickhouse):
            server.launch()
        for server in (self.kafka, self.clickhouse):
            server.server.wait_ready()
        reached = (self.kafka.brokers, self.clickhouse.url, self.clickhouse.user, self.clickhouse.password)
        self.space = harness.Space(harness.Servers(*reached), "chaos")
        told = self.command("migrate")
        if told.returncode != 0:
            raise Failure(f"millrace migrate failed: {told.stdout}{told.stderr}")
        for program in self.servers + self.writers:
            program.start()
        self.wait_ready()

    def command(self, *arguments):
        """A command of the program, on the direct way, to its end."""
        return subprocess.run(
            [self.binary, *arguments], env=self.environment(), capture_output=True, text=True, timeout=600, check=False
        )

    def wait_ready(self, deadline_s=START_S):
        end = time.monotonic() + deadline_s
        for program in self.servers + self.writers:
            while not program.is_ready():
                self.watch()
                if time.monotonic() > end:
                    self.problems.append(f"{program.name} is not ready after {deadline_s} s")
                    return
                time.sleep(0.05)

    def watch(self):
        """Nothing ends by itself: what did is told, and started again."""
        for program in self.programs:
            if program.wanted and not program.is_running():
                self.problems.append(f"{program.name} ended by itself with status {program.status()}")
                program.start()
        for name, server in (("kafka", self.kafka), ("clickhouse", self.clickhouse)):
            if name not in self.away and server.server.process.pid is None:
                self.problems.append(f"{name} ended by itself with status {server.server.process.status()}")
                server.launch()

    def heal(self):
        """Whatever was broken is whole again: the way back from a fault that was cut short."""
        for program in self.programs:
            for link in program.links.values():
                mend(link)
            program.resume()
        for server in (self.kafka, self.clickhouse):
            server.resume()
            (server.server.home / server.server.process.name / "data" / "filler").unlink(missing_ok=True)
            if server.server.process.pid is None:
                server.launch()
        self.away.clear()
        for program in self.servers + self.writers:
            if not program.is_running():
                program.start()

    def end_programs(self, programs):
        """SIGTERM to all of them: each must end in time, with status 0."""
        running = [program for program in programs if program.is_running()]
        began = time.monotonic()
        for program in running:
            program.terminate()
        for program in running:
            self.expect_end(program, began)

    def expect_end(self, program, began):
        """Waits for the end of a process that was told to end, which must be orderly and in time."""
        if not program.process.wait_gone(max(0, began + END_LATE_S - time.monotonic())):
            self.problems.append(f"{program.name} did not end within {END_LATE_S} s of SIGTERM")
            program.kill()
        elif program.status() not in (0, None):
            self.problems.append(f"{program.name} ended with status {program.status()} on SIGTERM")

    def close(self):
        """Ends every process."""
        for program in self.programs:
            program.kill()
            for link in program.links.values():
                link.close()
        for server in (self.clickhouse, self.kafka):
            if server:
                server.server.process.signal(signal.SIGKILL)
                server.server.process.wait_gone(10)

    def unmount(self):
        """What is on the disks stays in their files."""
        for name in ("kafka", "clickhouse") if self.mounts else ():
            subprocess.run(["umount", "-l", self.home / name / "data"], check=False)


def mend(link):
    """A proxy lets everything through again."""
    link.delay_s = link.lose = link.tear = 0
    link.thaw()
    if link.listener.fileno() < 0:
        link.mend()


def disk_of(server):
    """The folder of a server's data."""
    return Path(server.server.home) / server.server.process.name / "data"
