"""What the tests use to run the program and its servers from outside.

- `Servers`: the Kafka and ClickHouse of this run, as the environment names them (scripts/test starts them).
- `Space`: names of a test's own on those servers: topic prefix, database, consumer group.
- `Millrace`: one process of the program, with its HTTP door.
- `OwnKafka`, `OwnClickHouse`: servers of a test's own, to stop, pause, kill and start again.
- `eventually`: waits for a state; nothing here sleeps for a time and hopes.
"""

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "scripts" / "lib"))

import clickhouse_server  # noqa: E402
import confluent_kafka  # noqa: E402
import confluent_kafka.admin  # noqa: E402
import kafka_server  # noqa: E402
import ports  # noqa: E402
import settings  # noqa: E402
import software  # noqa: E402

START_S = 30
# The program's own bound is 10 s; the rest is for a busy machine.
STOP_S = 15
POLL_S = 0.02
# What a test waits for takes so much longer on a machine that does other work besides. A wait is long only where it fails.
PATIENCE = 3


def eventually(check, deadline_s=10, what="the expected state"):
    """Calls `check` until it returns something true, and returns that. A failing assertion in it counts as not yet."""
    deadline_s *= PATIENCE
    end = time.monotonic() + deadline_s
    while True:
        try:
            answer, reason = check(), None
        except AssertionError as error:
            answer, reason = None, error
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(
                f"{what} did not come within {deadline_s} s{f': {reason}' if reason else ''}"
            ) from reason
        time.sleep(POLL_S)


def environment_without_settings():
    """Our environment without any setting of the program, which may come from an installation in use."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith("MILLRACE_") and name != "FAILPOINTS"
    }


def millrace_binary():
    return Path(os.environ.get("TEST_MILLRACE_BIN") or REPOSITORY / "target" / "debug" / "millrace").absolute()


def load_binary():
    return Path(os.environ.get("TEST_LOAD_BIN") or REPOSITORY / "target" / "debug" / "millrace-load").absolute()


class Store:
    """ClickHouse over HTTP, as one user."""

    def __init__(self, url, user, password):
        self.url = url
        self.user = user
        self.password = password

    def query(self, sql, *, body=b"", timeout_s=60, **parameters):
        """The answer as text; one that breaks off counts as an OSError. With a body, `sql` says what is done with it. Other
        arguments are query parameters."""
        address = urllib.parse.urlsplit(self.url)
        target = "/?" + urllib.parse.urlencode({**parameters, "query": sql} if body else parameters)
        headers = {"X-ClickHouse-User": self.user, "X-ClickHouse-Key": self.password}
        with closing(http.client.HTTPConnection(address.hostname, address.port, timeout=timeout_s)) as connection:
            connection.request("POST", target, body=body or sql.encode(), headers=headers)
            try:
                answer = connection.getresponse()
                said = answer.read().decode()
            except http.client.HTTPException as error:
                raise ConnectionError(f"ClickHouse's answer broke off: {error!r}") from error
        if answer.status != 200:
            raise RuntimeError(f"ClickHouse answers {answer.status} to {sql[:200]!r}: {said[:500]}")
        return said

    def rows(self, sql, **parameters):
        """The answer as a list of dictionaries, 64-bit numbers as numbers."""
        said = self.query(sql, default_format="JSONEachRow", output_format_json_quote_64bit_integers=0, **parameters)
        return [json.loads(line) for line in said.splitlines()]

    def value(self, sql, **parameters):
        """The one value of the answer's one row."""
        (row,) = self.rows(sql, **parameters)
        (value,) = row.values()
        return value


@dataclass
class Record:
    """A record as it lies in a topic."""

    partition: int
    offset: int
    key: bytes
    value: bytes
    headers: dict
    timestamp_ms: int


# That Kafka did not answer, rather than that it refused.
UNANSWERED = (
    confluent_kafka.KafkaError._TIMED_OUT,
    confluent_kafka.KafkaError._TRANSPORT,
    confluent_kafka.KafkaError._ALL_BROKERS_DOWN,
)


class Log:
    """Kafka, seen from outside."""

    def __init__(self, brokers):
        self.brokers = brokers
        self.admin = self._administrator()

    def _administrator(self):
        return confluent_kafka.admin.AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})

    def _ask(self, question):
        """The answer to `question(admin)`. A broker that has just come back may name no broker; who is told that asks no more
        (librdkafka 2.16), so that each try has a client of its own."""

        def answer():
            try:
                return [question(self._administrator())]
            except (TimeoutError, confluent_kafka.KafkaException) as error:
                if isinstance(error, TimeoutError) or error.args[0].code() in UNANSWERED:
                    raise AssertionError(repr(error)) from error
                raise

        return eventually(answer, 30, what="an answer of Kafka")[0]

    def topics(self):
        return sorted(self._ask(lambda admin: admin.list_topics(timeout=5)).topics)

    def partitions(self, topic):
        return len(self._ask(lambda admin: admin.list_topics(topic, timeout=5)).topics[topic].partitions)

    def create_topic(self, topic, partitions, **config):
        self.admin.create_topics([confluent_kafka.admin.NewTopic(topic, partitions, 1, config=config)])[topic].result(
            30
        )

    def delete_topics(self, topics):
        for outcome in (self.admin.delete_topics(list(topics)) if topics else {}).values():
            outcome.result(30)

    def consumer(self, group, **config):
        """A consumer that reads from the start and commits nothing by itself."""
        return confluent_kafka.Consumer(
            {
                "bootstrap.servers": self.brokers,
                "group.id": group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "log_level": 0,
                **config,
            }
        )

    def producer(self, **config):
        """A producer of bare records."""
        return confluent_kafka.Producer({"bootstrap.servers": self.brokers, "log_level": 0, **config})

    def topic_settings(self, topic):
        """Its settings by name, as text."""
        resource = confluent_kafka.admin.ConfigResource(confluent_kafka.admin.ResourceType.TOPIC, topic)
        described = self._ask(lambda admin: admin.describe_configs([resource])[resource].result(5))
        return {name: entry.value for name, entry in described.items()}

    def set_topic(self, topic, **config):
        """Changes some of its settings, by their names and as text, and waits until the broker goes by them: the controller
        answers before."""
        entries = [
            confluent_kafka.admin.ConfigEntry(
                name, value, incremental_operation=confluent_kafka.admin.AlterConfigOpType.SET
            )
            for name, value in config.items()
        ]
        kind = confluent_kafka.admin.ResourceType.TOPIC
        resource = confluent_kafka.admin.ConfigResource(kind, topic, incremental_configs=entries)
        self._ask(lambda admin: admin.incremental_alter_configs([resource])[resource].result(5))
        eventually(lambda: config.items() <= self.topic_settings(topic).items(), what="the broker to go by new settings")

    def watermarks(self, topic):
        """For each partition, its first offset and the one after its last."""

        def ask():
            consumer = self.consumer("harness-watermarks")
            try:
                partitions = (
                    confluent_kafka.TopicPartition(topic, partition) for partition in range(self.partitions(topic))
                )
                return [consumer.get_watermark_offsets(partition, timeout=10) for partition in partitions]
            except confluent_kafka.KafkaException as error:
                # A broker that has just come back does not lead its partitions yet.
                raise AssertionError(str(error)) from error
            finally:
                consumer.close()

        return eventually(lambda: [ask()], what="watermarks")[0]

    def records(self, topic, deadline_s=30):
        """Every record that the topic holds now, by partition and offset."""
        ends = {partition: end for partition, (start, end) in enumerate(self.watermarks(topic)) if end > start}
        found = []
        consumer = self.consumer("harness-records")
        try:
            consumer.assign(
                [
                    confluent_kafka.TopicPartition(topic, partition, confluent_kafka.OFFSET_BEGINNING)
                    for partition in ends
                ]
            )
            end = time.monotonic() + deadline_s
            while any(ends.values()):
                assert time.monotonic() < end, f"could not read {topic} to its end within {deadline_s} s"
                message = consumer.poll(0.1)
                if message is None:
                    continue
                assert message.error() is None, message.error()
                found.append(
                    Record(
                        message.partition(),
                        message.offset(),
                        message.key(),
                        message.value(),
                        dict(message.headers() or []),
                        message.timestamp()[1],
                    )
                )
                if message.offset() + 1 >= ends[message.partition()]:
                    ends[message.partition()] = None
        finally:
            consumer.close()
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def committed(self, group, topic):
        """For each partition of the topic, the group's committed offset and its metadata; None where there is none."""
        partitions = [confluent_kafka.TopicPartition(topic, partition) for partition in range(self.partitions(topic))]
        consumer = self.consumer(group)
        try:
            told = consumer.committed(partitions, timeout=10)
        finally:
            consumer.close()
        return [(one.offset, _metadata(one)) if one.offset >= 0 else None for one in told]


def _metadata(place):
    """A commit's metadata. The client library takes it for text that ends with a NUL, which it does not, and so may read
    on behind it; what the program writes is one JSON object."""
    try:
        text = place.metadata or ""
    except UnicodeDecodeError as error:
        text = error.object[: error.start].decode()
    return text[: text.index("}") + 1] if text.startswith("{") and "}" in text else text


@dataclass
class Servers:
    """The servers of this run."""

    kafka_brokers: str
    clickhouse_url: str
    clickhouse_user: str
    clickhouse_password: str

    @classmethod
    def from_environment(cls):
        named = {name: os.environ.get(name) for name in ("TEST_KAFKA_BROKERS", "TEST_CLICKHOUSE_URL")}
        missing = [name for name, value in named.items() if not value]
        if missing:
            raise RuntimeError(
                f"{' and '.join(missing)} not set: run the tests with scripts/test, or name servers to use"
            )
        return cls(
            *named.values(),
            os.environ.get("TEST_CLICKHOUSE_USER", "default"),
            os.environ.get("TEST_CLICKHOUSE_PASSWORD", ""),
        )

    @property
    def store(self):
        return Store(self.clickhouse_url, self.clickhouse_user, self.clickhouse_password)

    @property
    def log(self):
        return Log(self.kafka_brokers)


@dataclass
class Space:
    """Names of a test's own on the servers, so that tests do not meet."""

    servers: Servers
    name: str = field(default_factory=lambda: f"t{secrets.token_hex(6)}")
    migrated: bool = False

    @property
    def database(self):
        return self.name

    @property
    def topic_prefix(self):
        return self.name

    @property
    def group(self):
        """The group of the captcha kind's writers."""
        return self.group_of("captcha")

    def group_of(self, kind):
        return f"{self.name}-writers.{kind}"

    @property
    def topic(self):
        """The captcha kind's topic."""
        return self.topic_of("captcha")

    def topic_of(self, kind):
        return f"{self.topic_prefix}.{kind}"

    @property
    def store(self):
        return self.servers.store

    @property
    def log(self):
        return self.servers.log

    def settings(self):
        return {
            "MILLRACE_KAFKA_BROKERS": self.servers.kafka_brokers,
            "MILLRACE_KAFKA_TOPIC_PREFIX": self.topic_prefix,
            "MILLRACE_KAFKA_GROUP": f"{self.name}-writers",
            "MILLRACE_CLICKHOUSE_URL": self.servers.clickhouse_url,
            "MILLRACE_CLICKHOUSE_DATABASE": self.database,
            "MILLRACE_CLICKHOUSE_USER": self.servers.clickhouse_user,
            "MILLRACE_CLICKHOUSE_PASSWORD": self.servers.clickhouse_password,
        }

    def remove(self):
        """Drops the database and the topics."""
        self.remove_database()
        self.remove_topics()

    def remove_database(self):
        self.store.query(f"DROP DATABASE IF EXISTS `{self.database}`")

    def remove_topics(self):
        self.log.delete_topics([topic for topic in self.log.topics() if topic.startswith(f"{self.topic_prefix}.")])


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self):
        return self.body.decode()

    def json(self):
        return json.loads(self.body)


class Millrace:
    """One process of the program. `settings` are MILLRACE_* variables; `failpoints` is the text of FAILPOINTS."""

    def __init__(self, log_path, subcommand, arguments=(), *, settings=None, failpoints=None, binary=None):
        self.command = [str(binary or millrace_binary()), subcommand, *arguments]
        self.port = ports.pick_free()
        self.log_path = log_path
        self.environment = {
            **environment_without_settings(),
            "MILLRACE_HTTP_LISTEN": f"127.0.0.1:{self.port}",
            **(settings or {}),
        }
        if failpoints:
            self.environment["FAILPOINTS"] = failpoints
        self.process = None

    # The process.

    def start(self):
        with open(self.log_path, "ab") as sink:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT
            )
        return self

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def wait_ready(self, deadline_s=START_S):
        """Returns once /health/ready answers 200."""

        def check():
            if not self.is_running():
                raise RuntimeError(
                    f"{' '.join(self.command[1:])} ended with status {self.process.returncode} before it was ready:\n{self.log_tail()}"
                )
            try:
                answer = self.get("/health/ready", timeout_s=5)
            except (OSError, http.client.HTTPException) as error:
                raise AssertionError(str(error)) from error
            assert answer.status == 200, answer.text
            return True

        eventually(check, deadline_s, what="readiness")
        return self

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def kill(self):
        """kill -9, and waits for its end."""
        self.process.kill()
        self.process.wait()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def wait_end(self, deadline_s=STOP_S):
        """Its exit status; negative for the signal that ended it."""
        try:
            return self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{' '.join(self.command[1:])} did not end within {deadline_s} s:\n{self.log_tail()}"
            ) from None

    def stop(self, deadline_s=STOP_S):
        """SIGTERM; asserts that it ends in time with status 0."""
        self.terminate()
        status = self.wait_end(deadline_s)
        assert status == 0, f"{' '.join(self.command[1:])} ended with status {status}:\n{self.log_tail()}"

    def log_text(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines=40):
        return "\n".join(self.log_text().splitlines()[-lines:])

    # The door.

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, target, body=None, headers=None, timeout_s=30):
        """One request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)) as connection:
            connection.request(method, target, body=body, headers=headers or {})
            answer = connection.getresponse()
            return Response(answer.status, answer.headers, answer.read())

    def get(self, target, **options):
        return self.request("GET", target, **options)

    def post(self, target, body, **options):
        """A body that is not bytes or text is sent as JSON."""
        if not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        return self.request("POST", target, body.encode() if isinstance(body, str) else body, **options)

    def connect(self, timeout_s=10):
        """A bare connection, for what a well-behaved client would never send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def raw(self, *parts, timeout_s=10):
        """Sends the parts as they are; returns what comes back until the server closes or is silent for `timeout_s`."""
        said = b""
        with self.connect(timeout_s) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
                while piece := connection.recv(1 << 16):
                    said += piece
            except (TimeoutError, ConnectionError):
                pass
        return said

    def metric(self, name, **labels):
        """The sum of the samples of that name which carry those labels; 0 when there is none."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, carried = series.partition("{")
            if (
                not line.startswith("#")
                and found == name
                and all(f'{label}="{text}"' in carried for label, text in labels.items())
            ):
                total += float(value)
        return total


class _OwnServer:
    """A server of a test's own, ended with the test run whatever happens."""

    def __init__(self, server):
        self.server = server

    def start(self):
        self.launch()
        self.server.wait_ready()
        return self

    def launch(self):
        """Starts it and does not wait. It ends with the thread that starts it, as the kernel has it."""
        self.server.start(*self._software(), dies_with_parent=True)

    def stop(self):
        self.server.stop()

    def kill(self):
        """kill -9, and waits until its port can be had again."""
        self.server.process.signal(signal.SIGKILL)
        assert self.server.process.wait_gone(10)
        eventually(lambda: ports.is_free(self.server.port), what=f"port {self.server.port} to be free")

    def pause(self):
        self._signal(signal.SIGSTOP)

    def resume(self):
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        self.server.process.signal(number)


class OwnKafka(_OwnServer):
    def __init__(self, folder, **options):
        super().__init__(
            kafka_server.Kafka(
                folder,
                port=ports.pick_free(),
                controller_port=ports.pick_free(),
                heap_mb=512,
                session_ms=3000,
                **options,
            )
        )

    @property
    def brokers(self):
        return self.server.brokers

    def _software(self):
        home = settings.var_dir()
        return software.find_java(), software.fetch_kafka(home, home / "log" / "setup.log")


class OwnClickHouse(_OwnServer):
    def __init__(self, folder):
        super().__init__(clickhouse_server.ClickHouse(folder, port=ports.pick_free()))

    @property
    def url(self):
        return self.server.url

    @property
    def user(self):
        return self.server.user

    @property
    def password(self):
        return self.server.password

    def engine_pids(self):
        """The processes that hold the data: the children of the host, or an installed server itself."""
        host = self.server.process.pid
        children = Path(f"/proc/{host}/task/{host}/children").read_text(encoding="ascii").split() if host else []
        return [int(child) for child in children] or ([host] if host else [])

    def _signal(self, number):
        # The engine first: the host only waits for it.
        for pid in self.engine_pids():
            os.kill(pid, number)
        super()._signal(number)

    def _software(self):
        home = settings.var_dir()
        return (software.find_clickhouse() or software.fetch_chdb(home, home / "log" / "setup.log"),)
