"""Servers and programs for the benchmark: all on this machine, all its own, with what each of them spends."""

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
import urllib.parse
from dataclasses import dataclass, field

import ports
import software
from clickhouse_server import ClickHouse
from console import Failure, last_line
from kafka_server import Kafka

START_S = 60
STOP_S = 20
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Space:
    """A database and topics of one measurement alone."""

    name: str = field(default_factory=lambda: f"bench_{secrets.token_hex(4)}")

    def settings(self):
        return {"MILLRACE_CLICKHOUSE_DATABASE": self.name, "MILLRACE_KAFKA_TOPIC_PREFIX": self.name}


class Program:
    """A running process of the program under test."""

    def __init__(self, role, process, url, log):
        self.role, self.process, self.url, self.log = role, process, url, log

    @property
    def address(self):
        return urllib.parse.urlsplit(self.url).netloc

    def get(self, path):
        """Status and body."""
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=30)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def post(self, path, body):
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=30)) as connection:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def metric(self, name):
        """The values of a metric of captchas, for all partitions."""
        status, text = self.get("/metrics")
        if status != 200:
            raise Failure(f"{self.url}/metrics answers {status}")
        return [float(value) for value in re.findall(rf'^{name}\{{[^}}]*kind="captcha"[^}}]*\}} (\S+)$', text, re.M)]

    def wait_ready(self):
        end = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                if self.get("/health/ready")[0] == 200:
                    return self
            if self.process.poll() is not None or time.monotonic() > end:
                raise Failure(f"{self.role} did not become ready: {last_line(self.log)} (log: {self.log})")
            time.sleep(0.01)

    def stored(self):
        """How many events of captchas this process has dealt with, duplicates included."""
        return sum(self.metric("millrace_events_stored_total") + self.metric("millrace_events_duplicate_total"))

    def wait_stored(self, events, deadline_s=900):
        """Waits until so many events have been dealt with."""
        end = time.monotonic() + deadline_s
        while self.stored() < events:
            if time.monotonic() > end:
                raise Failure(f"{self.role} did not store {events:,} events in {deadline_s} s (log: {self.log})")
            time.sleep(0.02)

    def stop(self, kill=False):
        if self.process.poll() is None:
            (self.process.kill if kill else self.process.terminate)()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_S)


class Box:
    """A Kafka, a ClickHouse and the tools, under one folder."""

    def __init__(self, home, software_home, log, load):
        self.home, self.load = home, load
        home.mkdir(parents=True, exist_ok=True)
        (home / "log").mkdir(exist_ok=True)
        self.kafka = Kafka(home, port=ports.pick_free(), controller_port=ports.pick_free())
        self.clickhouse = ClickHouse(home, port=ports.pick_free())
        self.running = []
        self.java, self.jars = software.find_java(), software.fetch_kafka(software_home, log)
        self.engine = software.find_clickhouse() or software.fetch_chdb(software_home, log)
        self.start_servers()
        self.wait_servers()

    def start_servers(self):
        self.kafka.start(self.java, self.jars, dies_with_parent=True)
        self.clickhouse.start(self.engine, dies_with_parent=True)

    def wait_servers(self):
        self.kafka.wait_ready()
        self.clickhouse.wait_ready()

    def kill_all(self):
        """kill -9 of the servers and of every program, at once; returns when their ports can be had again."""
        pids = [program.process.pid for program in self.running if program.process.poll() is None]
        pids += [pid for server in (self.kafka, self.clickhouse) for pid in tree(server.process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for program in self.running:
            program.stop(kill=True)
        self.running.clear()
        end = time.monotonic() + STOP_S
        for server in (self.kafka, self.clickhouse):
            while not server.process.wait_gone(STOP_S) or not ports.is_free(server.port):
                if time.monotonic() > end:
                    raise Failure(f"port {server.port} is still taken {STOP_S} s after its server was killed")
                time.sleep(0.01)

    def close(self):
        for program in self.running:
            program.stop(kill=True)
        self.clickhouse.stop(grace_s=5)
        self.kafka.stop(grace_s=5)

    @property
    def caches(self):
        """The folder of the writers' caches."""
        return self.home / "cache"

    def forget_caches(self):
        shutil.rmtree(self.caches, ignore_errors=True)

    def cache_settings(self, binary):
        """Those of the caches, where this build has any."""
        asked = [binary, "check", "--show-config"]
        told = subprocess.run(asked, env=self.environment(Space()), capture_output=True, text=True, check=False).stdout
        return {"MILLRACE_WRITER_CACHE_DIR": str(self.caches)} if "cache_dir" in told else {}

    def environment(self, space, settings=None):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_")}
        servers = {
            "MILLRACE_KAFKA_BROKERS": self.kafka.brokers,
            "MILLRACE_CLICKHOUSE_URL": self.clickhouse.url,
            "MILLRACE_CLICKHOUSE_USER": self.clickhouse.user,
            "MILLRACE_CLICKHOUSE_PASSWORD_FILE": str(self.clickhouse.password_path),
        }
        return {**clean, **servers, **space.settings(), **(settings or {})}

    def command(self, binary, name, space):
        """Runs a command of the program, which must succeed."""
        done = subprocess.run([binary, name], env=self.environment(space), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"{binary} {name} failed: {done.stdout}{done.stderr}")

    @contextlib.contextmanager
    def program(self, binary, role, space, **settings):
        """A process of the program (`serve`, `write` or `run`), ready, until the block ends."""
        program = self.launch(binary, role, space, **settings)
        try:
            yield program.wait_ready()
        finally:
            program.stop()
            if program in self.running:
                self.running.remove(program)

    def launch(self, binary, role, space, **settings):
        """Starts a process of the program and does not wait for it."""
        port = ports.pick_free()
        log = self.home / "log" / f"{role}.log"
        settings = {"MILLRACE_HTTP_LISTEN": f"127.0.0.1:{port}", **self.cache_settings(binary), **settings}
        environment = self.environment(space, settings)
        with open(log, "ab") as sink:
            process = subprocess.Popen([binary, role], env=environment, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
        program = Program(role, process, f"http://127.0.0.1:{port}", log)
        self.running.append(program)
        return program

    def drop(self, space):
        """Gives a space's disk back."""
        self.clickhouse.query(f"DROP DATABASE IF EXISTS {space.name} SYNC", timeout_s=120)

    def drive(self, program, mode, *arguments):
        """Runs millrace-load against a program; returns what it measured."""
        result = self.home / "load.json"
        result.unlink(missing_ok=True)
        command = [self.load, mode, "--url", program.url, "--quiet", "--json", result, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"millrace-load {mode} exits with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return json.loads(result.read_text(encoding="utf-8"))

    def pids(self, programs):
        named = {program.role: program.process.pid for program in programs}
        return named | {"kafka": self.kafka.process.pid, "clickhouse": self.clickhouse.process.pid}


class Spending:
    """CPU seconds and memory of processes, from its making on."""

    def __init__(self, pids):
        self.pids = pids
        self.before = {name: cpu_seconds(pid) for name, pid in pids.items()}

    def cpu(self):
        return {name: cpu_seconds(pid) - self.before[name] for name, pid in self.pids.items()}

    def rss_mib(self):
        return {name: sum(map(resident_mib, tree(pid))) for name, pid in self.pids.items()}


def tree(pid):
    """A process and its children, theirs included."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        try:
            for task in os.listdir(f"/proc/{found[-1]}/task"):
                with open(f"/proc/{found[-1]}/task/{task}/children", encoding="ascii") as source:
                    todo += map(int, source.read().split())
        except OSError:
            continue
    return found


def cpu_seconds(pid):
    spent = 0
    for process in tree(pid):
        with contextlib.suppress(OSError), open(f"/proc/{process}/stat", encoding="utf-8", errors="replace") as source:
            fields = source.read().rpartition(")")[2].split()
            spent += int(fields[11]) + int(fields[12])
    return spent / TICKS


def resident_mib(pid):
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as source:
        found = re.search(r"^RssAnon:\s+(\d+) kB", source.read(), re.M)
        return int(found[1]) / 1024 if found else 0
    return 0
