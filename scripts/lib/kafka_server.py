"""A Kafka of one node, broker and controller in one process, on loopback."""

import base64
import json
import socket
import struct
import time
import uuid

from console import Failure, last_line
from process import Process
from software import SCRIPTS

READY_S = 60
STOP_S = 30
HOST = "127.0.0.1"


class Kafka:
    """Its data is in `kafka/` of the home folder, its log in `log/kafka.log`."""

    def __init__(self, home, *, port, controller_port, heap_mb=1024, session_ms=6000, doors=()):
        self.home = home
        self.port = port
        self.controller_port = controller_port
        self.heap_mb = heap_mb
        # After so much silence a writer's partitions are given to others.
        self.session_ms = session_ms
        # Further ports, each with the port under which clients that come through it are told to come again: a proxy's.
        self.doors = doors
        self.log = home / "log" / "kafka.log"
        self.process = Process("kafka", home / "run")

    @property
    def brokers(self):
        return f"{HOST}:{self.port}"

    def start(self, java, libs, *, dies_with_parent=False):
        """Starts the process, which is not yet ready when this returns; `libs` is the folder of its jars."""
        folder = self.home / "kafka"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        properties = folder / "server.properties"
        properties.write_text(self._properties(folder / "data"), encoding="ascii")
        if not (folder / "data" / "meta.properties").exists():
            self._format(java, libs, properties)
        # The jars are named relative to the working folder: a class path cannot hold a folder with a colon in its name.
        command = [
            java,
            f"-Xms{min(256, self.heap_mb)}m",
            f"-Xmx{self.heap_mb}m",
            # The second compiler takes ten seconds of CPU before it gives some of them back, and this broker seldom lives
            # for long: a million events cost it 0.5 s in place of 0.8 to 1.3 in its first minute.
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-XX:InitiatingHeapOccupancyPercent=35",
            # Half a region is the longest object that G1 keeps with others; a request of full records is longer than half a MiB.
            "-XX:G1HeapRegionSize=8m",
            "-XX:+ExitOnOutOfMemoryError",
            *self._logging(),
            "-cp",
            "*",
            "kafka.Kafka",
            properties,
        ]
        settings = {"port": self.port, "controller_port": self.controller_port}
        self.process.start(command, log=self.log, cwd=libs, settings=settings, dies_with_parent=dies_with_parent)

    def wait_ready(self, deadline_s=READY_S):
        """Returns once the broker answers a request."""
        end = time.monotonic() + deadline_s
        while not self.answers():
            if self.process.pid is None:
                raise Failure(f"Kafka ended while it was starting: {last_line(self.log)} (log: {self.log})")
            if time.monotonic() > end:
                raise Failure(
                    f"Kafka does not answer on {self.brokers} after {deadline_s} s: see {self.log}, and run this again"
                )
            time.sleep(0.1)

    def stop(self, grace_s=STOP_S):
        return self.process.stop(grace_s)

    def answers(self):
        """Whether the broker serves requests."""
        # ApiVersions version 0, correlation 1, no client id: a broker holds back its answer until it serves requests.
        request = struct.pack(">hhih", 18, 0, 1, -1)
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(struct.pack(">i", len(request)) + request)
                return len(connection.recv(8)) > 4
        except OSError:
            return False

    def _format(self, java, libs, properties):
        # Text of the form that Kafka takes for a cluster id; one that starts with a dash would look like an option.
        cluster = next(text for text in iter(_new_cluster_id, None) if not text.startswith("-"))
        formatter = Process("kafka-format", self.home / "run")
        command = [java, "-XX:TieredStopAtLevel=1", *self._logging(), "-cp", "*", "kafka.tools.StorageTool"]
        # --ignore-formatted: an earlier attempt may have been cut off.
        command += ["format", "--ignore-formatted", "-t", cluster, "-c", properties]
        formatter.start(command, log=self.log, cwd=libs, dies_with_parent=True)
        ended = formatter.wait_gone(READY_S)
        formatter.stop(1)
        if not ended or not (self.home / "kafka" / "data" / "meta.properties").exists():
            raise Failure(f"could not format Kafka's data folder: {last_line(self.log)} (log: {self.log})")

    def _logging(self):
        return [
            f"-Dlog4j2.configurationFile={(SCRIPTS / 'kafka' / 'log4j2.xml').as_uri()}",
            f"-Dkafka.log.file={self.log}",
        ]

    def _properties(self, data):
        if "," in str(data):
            raise Failure(
                f"Kafka cannot keep data in {data}, for it takes a comma as the end of a name: set VAR_DIR to a folder without one"
            )
        names = ["PLAINTEXT", *(f"DOOR{number}" for number in range(len(self.doors)))]
        listened = [self.port, *(port for port, _ in self.doors)]
        advertised = [self.port, *(port for _, port in self.doors)]
        named = lambda ports: [f"{name}://{HOST}:{port}" for name, port in zip(names, ports, strict=True)]  # noqa: E731
        values = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "listeners": ",".join([*named(listened), f"CONTROLLER://{HOST}:{self.controller_port}"]),
            "advertised.listeners": ",".join(named(advertised)),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in ["CONTROLLER", *names]),
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "log.dirs": data,
            # A mistyped topic is an error; millrace creates its own with the partitions it counts on.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            # A year: what a writer had claimed must outlive a long stop (the default is a week).
            "offsets.retention.minutes": 365 * 24 * 60,
            # A broker that was killed comes back once its old session has ended, which is 9 s by default.
            "broker.session.timeout.ms": 4000,
            "broker.heartbeat.interval.ms": 1000,
            "group.coordinator.rebalance.protocols": "classic,consumer",
            "group.initial.rebalance.delay.ms": 0,
            # A writer that was killed gives its partitions back after seconds and not after 45.
            "group.consumer.session.timeout.ms": self.session_ms,
            "group.consumer.min.session.timeout.ms": 1000,
            "group.consumer.heartbeat.interval.ms": 1000,
            "group.consumer.min.heartbeat.interval.ms": 500,
            "group.min.session.timeout.ms": 1000,
            "num.network.threads": 2,
            "num.io.threads": 4,
            # The cleaner has only the small offsets topic to do; the default takes 128 MiB of the heap.
            "log.cleaner.dedupe.buffer.size": 16 << 20,
        }
        return "".join(f"{key}={_escaped(str(value))}\n" for key, value in values.items())


def _new_cluster_id():
    return base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")


def _escaped(value):
    """A value as a Java properties file wants it: JSON escapes backslashes and what is not ASCII in the same way."""
    return json.dumps(value)[1:-1]
