#!/usr/bin/env python3
"""Uploads captcha events to a running millrace and times the whole way, beside ClickHouse's own plain inserts.

Prints events/s acknowledged (202) and events/s visible in the report, with the CPU seconds that each process spent for
each million events; then sends the same bodies to ClickHouse by INSERT ... FORMAT JSONEachRow and prints the same, and
the ratio of the two. Everything is checked: the report must show exactly the distinct events.

Needs nothing but Python and what `scripts/up` started (or the addresses given by options). Keys are new in each run.
"""
import argparse
import base64
import datetime
import http.client
import json
import os
import pathlib
import random
import sys
import threading
import time
import urllib.parse
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINES_PER_BODY = 10_000


def parse_arguments():
    var = pathlib.Path(os.environ.get("VAR_DIR", ROOT / "var"))
    password_file = os.environ.get("MILLRACE_CLICKHOUSE_PASSWORD_FILE", var / "clickhouse.password")
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--events", type=int, default=1_000_000, help="lines to send (default 1,000,000)")
    options.add_argument("--connections", type=int, default=4)
    options.add_argument("--sites", type=int, default=1000)
    options.add_argument("--days", type=int, default=30)
    options.add_argument("--duplicates", type=float, default=0.01, help="share of lines sent a second time")
    options.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--url", default="http://" + os.environ.get("MILLRACE_HTTP_LISTEN", "127.0.0.1:8000"))
    options.add_argument("--clickhouse", default=os.environ.get("MILLRACE_CLICKHOUSE_URL", "http://127.0.0.1:8123"))
    options.add_argument("--clickhouse-user", default=os.environ.get("MILLRACE_CLICKHOUSE_USER", "millrace"))
    options.add_argument("--clickhouse-password-file", type=pathlib.Path, default=password_file)
    options.add_argument("--clickhouse-database", default=os.environ.get("MILLRACE_CLICKHOUSE_DATABASE", "millrace"))
    options.add_argument("--pids", default=str(var / "run"), help="folder of NAME.pid files, for the CPU figures")
    options.add_argument("--skip-plain", action="store_true", help="leave out ClickHouse's plain inserts")
    return options.parse_args()


class Http:
    """One keep-alive connection."""

    def __init__(self, url, headers=None):
        parts = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=120)
        self.headers = headers or {}

    def request(self, method, path, body=None, headers=None):
        self.connection.request(method, path, body=body, headers={**self.headers, **(headers or {})})
        response = self.connection.getresponse()
        return response.status, response.read()


def make_bodies(options, seed):
    """The bodies, and the number of distinct events by (day, site)."""
    rng = random.Random(seed)
    sites = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(options.sites)]
    first = datetime.date(2021, 1, 1)
    days = [(first + datetime.timedelta(days=day)).isoformat() for day in range(options.days)]
    expected, lines, bodies, total = {}, [], [], 0
    for _ in range(options.events):
        if lines and rng.random() < options.duplicates:
            lines.append(lines[rng.randrange(len(lines))])
        else:
            bits = rng.getrandbits(64)
            day, site = days[bits % len(days)], sites[(bits >> 8) % len(sites)]
            seconds = (bits >> 20) % 86400
            clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{(bits >> 40) % 1000000:06}"
            key = f"{rng.getrandbits(128):032x}"
            key = f"{key[:8]}-{key[8:12]}-{key[12:16]}-{key[16:20]}-{key[20:]}"
            kind = "serve" if bits >> 63 else "solve"
            lines.append(f'{{"time": "{day}T{clock}", "type": "{kind}", "correlation_id": "{key}", "site_id": "{site}"}}')
            expected[(day, site)] = expected.get((day, site), 0) + 1
            total += 1
        if len(lines) == LINES_PER_BODY:
            bodies.append("\n".join(lines).encode() + b"\n")
            lines = []
    if lines:
        bodies.append("\n".join(lines).encode() + b"\n")
    return bodies, expected, total


def process_tree(pid):
    """A process and all its descendants."""
    children = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def cpu_seconds(pids_folder):
    """CPU seconds spent so far, by name of the pid file."""
    spent = {}
    for pid_file in sorted(pathlib.Path(pids_folder).glob("*.pid")):
        seconds = 0.0
        for pid in process_tree(int(pid_file.read_text().split()[0])):
            try:
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        spent[pid_file.stem] = seconds
    return spent


def send_all(bodies, connections, send):
    """Sends every body over so many connections; returns the seconds."""
    todo, failures, lock = list(reversed(list(enumerate(bodies)))), [], threading.Lock()

    def work():
        try:
            sender = send()
            while True:
                with lock:
                    if not todo or failures:
                        return
                    index, body = todo.pop()
                sender(index, body)
        except Exception as error:  # the first failure ends the run with its text
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(connections)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        sys.exit(f"sending failed: {failures[0]!r}")
    return time.perf_counter() - begin


def millrace_sender(options):
    def make():
        connection = Http(options.url, {"Content-Type": "application/x-ndjson"})

        def send(_, body):
            status, answer = connection.request("POST", "/v1/events", body)
            if status != 202 or json.loads(answer)["rejected"]:
                raise RuntimeError(f"{status} {answer[:300]}")

        return send

    return make


def read_report(connection, sites=None):
    """The report's counters, all pages, as {(day, site): served + solved}."""
    found, cursor = {}, None
    while True:
        query = [("limit", "100000")] + [("site_id", site) for site in sites or []]
        if cursor:
            query.append(("cursor", cursor))
        status, answer = connection.request("GET", "/v1/report?" + urllib.parse.urlencode(query))
        if status != 200:
            raise RuntimeError(f"{status} {answer[:300]}")
        answer = json.loads(answer)
        for row in answer["counters"]:
            found[(row["time"][:10], row["site_id"])] = row["served"] + row["solved"]
        cursor = answer.get("next")
        if not cursor:
            return found


def wait_until_visible(connection, expected, deadline_s=300):
    """Waits until the report shows what was sent: a few sites first, so that the asking costs little, then all."""
    sites = sorted({site for _, site in expected})
    sample = sites[:: max(1, len(sites) // 5)][:5]
    sample_expected = {key: count for key, count in expected.items() if key[1] in sample}
    end = time.monotonic() + deadline_s
    while read_report(connection, sample) != sample_expected:
        if time.monotonic() > end:
            sys.exit("the report did not show the events in time")
        time.sleep(0.02)
    while True:
        found = {key: count for key, count in read_report(connection).items() if key in expected}
        if found == expected:
            return
        wrong = [key for key in expected if found.get(key, 0) > expected[key]]
        if wrong or time.monotonic() > end:
            sys.exit(f"the report is wrong: {len(wrong)} counters too high, first {wrong[:1]}")
        time.sleep(0.02)


def plain_insert(options, bodies, connections):
    """The same bodies by plain inserts; returns the seconds."""
    password = options.clickhouse_password_file.read_text().strip()
    authorization = base64.b64encode(f"{options.clickhouse_user}:{password}".encode()).decode()
    headers = {"Authorization": "Basic " + authorization}
    table = f"{options.clickhouse_database}.bench_plain_{os.getpid()}"

    def query(connection, sql, body=b""):
        parameters = {"query": sql, "async_insert": "0", "date_time_input_format": "best_effort"}
        status, answer = connection.request("POST", "/?" + urllib.parse.urlencode(parameters), body)
        if status != 200:
            raise RuntimeError(answer[:500])
        return answer

    control = Http(options.clickhouse, headers)
    query(control, f"CREATE TABLE {table} (time DateTime64(6,'UTC'), type Enum8('serve'=1,'solve'=2), correlation_id UUID, "
                   "site_id UUID) ENGINE = ReplacingMergeTree ORDER BY (correlation_id, type)")

    def make():
        connection = Http(options.clickhouse, headers)
        return lambda _, body: query(connection, f"INSERT INTO {table} FORMAT JSONEachRow", body)

    try:
        return send_all(bodies, connections, make)
    finally:
        query(control, f"DROP TABLE {table} SYNC")


def line(name, events, seconds, cpu, extra=""):
    million = events / 1e6
    per_process = "  ".join(f"{process} {spent / million:.2f}" for process, spent in cpu.items())
    print(f"{name:<28}{events / seconds:>12,.0f} events/s{seconds:>9.2f} s   CPU s/million: {per_process}{extra}", flush=True)


def main():
    options = parse_arguments()
    for number in range(options.rounds):
        seed = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
        bodies, expected, distinct = make_bodies(options, seed)
        size = sum(map(len, bodies)) / options.events
        print(f"round {number + 1}: {options.events:,} lines of {size:.0f} bytes, {distinct:,} distinct, "
              f"{len(bodies)} bodies over {options.connections} connections, seed {seed}", flush=True)
        reporter = Http(options.url)
        before = cpu_seconds(options.pids)
        begin = time.perf_counter()
        acknowledged = send_all(bodies, options.connections, millrace_sender(options))
        wait_until_visible(reporter, expected)
        visible = time.perf_counter() - begin
        after = cpu_seconds(options.pids)
        spent = {name: after[name] - before.get(name, 0) for name in after}
        line("acknowledged", options.events, acknowledged, {})
        line("visible in the report", options.events, visible, spent, f"  all {sum(spent.values()) / options.events * 1e6:.2f}")
        if options.skip_plain:
            continue
        before = cpu_seconds(options.pids)
        plain = plain_insert(options, bodies, options.connections)
        after = cpu_seconds(options.pids)
        spent = {name: after[name] - before.get(name, 0) for name in after if name == "clickhouse"}
        line("ClickHouse, plain inserts", options.events, plain, spent)
        print(f"{'visible / plain':<28}{plain / visible:>12.2f} times the rate", flush=True)


if __name__ == "__main__":
    main()
