"""What the benchmark compares the program with: the same servers doing the plain thing."""

import contextlib
import datetime
import http.client
import io
import os
import random
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import uuid
from types import SimpleNamespace

import ports
from console import Failure

BODY_LINES = 10_000
BLOCK_ROWS = 100_000
CONNECTIONS = 4
PLAIN = "bench_plain"
DAYS = [f"2021-01-{day:02}" for day in range(1, 31)]
RECORD_EVENTS = 10_000
ENGINE_FIRST_S = 20
ENGINE_S = 300


def json_rows(clickhouse, events):
    """Seconds, and events, of plain inserts of NDJSON into a ReplacingMergeTree."""
    rng = random.Random(7)
    sites = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(1000)]
    # Half a million different ones are enough: ClickHouse takes each body for new.
    bodies = [ndjson(rng, sites) for _ in range(max(1, min(50, events // BODY_LINES)))]
    wanted = max(1, events // BODY_LINES)
    with table(clickhouse, "time DateTime64(6,'UTC'), type Enum8('serve'=1,'solve'=2), correlation_id UUID, site_id UUID"):
        parameters = {"async_insert": "0", "date_time_input_format": "best_effort"}
        sql = f"INSERT INTO {PLAIN}.events FORMAT JSONEachRow"
        seconds = send(clickhouse, sql, parameters, [bodies[number % len(bodies)] for number in range(wanted)], CONNECTIONS)
    return seconds, wanted * BODY_LINES


def ndjson(rng, sites):
    lines = []
    for _ in range(BODY_LINES):
        bits, key = rng.getrandbits(64), f"{rng.getrandbits(128):032x}"
        clock = f"{bits % 24:02}:{bits % 59:02}:{bits % 58:02}.{bits % 1_000_000:06}"
        lines.append(
            f'{{"time": "{DAYS[bits % 30]}T{clock}", "type": "{"serve" if bits >> 63 else "solve"}", "correlation_id": '
            f'"{key[:8]}-{key[8:12]}-{key[12:16]}-{key[16:20]}-{key[20:]}", "site_id": "{sites[(bits >> 8) % 1000]}"}}'
        )
    return "\n".join(lines).encode() + b"\n"


@contextlib.contextmanager
def table(clickhouse, columns):
    clickhouse.query(f"CREATE DATABASE IF NOT EXISTS {PLAIN}")
    clickhouse.query(
        f"CREATE TABLE {PLAIN}.events ({columns}) ENGINE = ReplacingMergeTree ORDER BY (correlation_id, type)"
    )
    try:
        yield
    finally:
        clickhouse.query(f"DROP DATABASE {PLAIN} SYNC", timeout_s=120)


def send(clickhouse, sql, parameters, bodies, connections):
    """The seconds that it takes to insert all bodies over so many connections."""
    todo, lock, failures = list(reversed(bodies)), threading.Lock(), []
    headers = {"X-ClickHouse-User": clickhouse.user, "X-ClickHouse-Key": clickhouse.password}
    address = urllib.parse.urlsplit(clickhouse.url).netloc

    def work():
        connection = http.client.HTTPConnection(address, timeout=120)
        while not failures:
            with lock:
                if not todo:
                    return
                body = todo.pop()
            connection.request("POST", "/?" + urllib.parse.urlencode({"query": sql, **parameters}), body, headers)
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200:
                failures.append(said[:500])

    threads = [threading.Thread(target=work) for _ in range(connections)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Failure(f"ClickHouse refuses an insert: {failures[0]}")
    return time.perf_counter() - began


def arrow_blocks(clickhouse, database, events):
    """Seconds, and rows, of inserting Arrow blocks that were made before into the program's own table of events."""
    count = max(1, events // BLOCK_ROWS)
    made = [arrow_block(number) for number in range(min(count, 10))]
    parameters = {"async_insert": "0", "min_insert_block_size_rows": "1048449", "insert_deduplicate": "0"}
    sql = f"INSERT INTO {database}.captcha_events FORMAT ArrowStream"
    return send(clickhouse, sql, parameters, [made[number % len(made)] for number in range(count)], 1), count * BLOCK_ROWS


def arrow_block(number):
    import pyarrow  # Installed for the tests; scripts/bench runs under that Python.

    rows, first = BLOCK_ROWS, number * BLOCK_ROWS
    random_bytes = lambda length: pyarrow.py_buffer(os.urandom(length))  # noqa: E731
    sites = [os.urandom(16) for _ in range(1000)]
    rng = random.Random(number)
    ids = lambda buffer: pyarrow.FixedSizeBinaryArray.from_buffers(pyarrow.binary(16), rows, [None, buffer])  # noqa: E731
    day = int(datetime.datetime(2021, 1, 1, tzinfo=datetime.UTC).timestamp())
    times = pyarrow.array([(day + rng.randrange(30 * 86400)) * 1_000_000 for _ in range(rows)], pyarrow.int64())
    same = lambda value, kind: pyarrow.array([value] * rows, kind)  # noqa: E731
    columns = {
        "time": times.cast(pyarrow.timestamp("us", "UTC")),
        "type": pyarrow.array([1 + row % 2 for row in range(rows)], pyarrow.int8()),
        "correlation_id": ids(random_bytes(16 * rows)),
        "site_id": ids(pyarrow.py_buffer(b"".join(rng.choice(sites) for _ in range(rows)))),
        "log_generation": same(1, pyarrow.uint32()),
        "log_partition": same(0, pyarrow.uint32()),
        "log_offset": pyarrow.array([first + row // RECORD_EVENTS for row in range(rows)], pyarrow.int64()),
        "log_position": pyarrow.array([row % RECORD_EVENTS for row in range(rows)], pyarrow.uint32()),
        "range_last": same(first + rows // RECORD_EVENTS, pyarrow.int64()),
        "accepted_at": same(day * 1000, pyarrow.int64()).cast(pyarrow.timestamp("ms", "UTC")),
        "log_month": same(202101, pyarrow.uint32()),
    }
    batch = pyarrow.record_batch(columns)
    stream = io.BytesIO()
    with pyarrow.ipc.new_stream(stream, batch.schema) as writer:
        writer.write_batch(batch)
    return stream.getvalue()


def kafka_engine(box, topic_prefix, events):
    """Seconds that ClickHouse's Kafka engine takes to move the log into a table; None where this ClickHouse has none."""
    columns = "time DateTime64(6,'UTC'), type Int8, correlation_id FixedString(16), site_id FixedString(16)"
    with table(box.clickhouse, columns):
        try:
            box.clickhouse.query(
                f"CREATE TABLE {PLAIN}.log ({columns}) ENGINE = Kafka SETTINGS kafka_broker_list = '{box.kafka.brokers}', "
                f"kafka_topic_list = '{topic_prefix}.captcha', kafka_group_name = '{topic_prefix}-engine', "
                "kafka_format = 'ArrowStream', kafka_num_consumers = 2, kafka_max_block_size = 1000000"
            )
        except urllib.error.HTTPError as error:
            print(f"    no Kafka engine in this ClickHouse: {error.read(200).decode('utf-8', 'replace')}", file=sys.stderr)
            return None
        began = time.perf_counter()
        box.clickhouse.query(f"CREATE MATERIALIZED VIEW {PLAIN}.move TO {PLAIN}.events AS SELECT * FROM {PLAIN}.log")
        moved = 0
        while moved < events:
            seconds = time.perf_counter() - began
            if seconds > (ENGINE_S if moved else ENGINE_FIRST_S):
                print(f"    ClickHouse's Kafka engine moved {moved:,} events in {seconds:.0f} s", file=sys.stderr)
                return None
            time.sleep(0.05)
            moved = int(box.clickhouse.query(f"SELECT count() FROM {PLAIN}.events"))
        return time.perf_counter() - began


@contextlib.contextmanager
def bare_server(binary):
    """The bare server's process, and its address as the box's tools want it."""
    if not binary.is_file():
        raise Failure(f"there is no {binary}: cargo build --release --example bare_http makes it")
    port = ports.pick_free()
    process = subprocess.Popen([binary, f"127.0.0.1:{port}"], stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 10
        while ports.is_free(port):
            if process.poll() is not None or time.monotonic() > end:
                raise Failure(f"{binary} does not listen on port {port}")
            time.sleep(0.02)
        yield process, SimpleNamespace(url=f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
