#!/usr/bin/env python3
"""Uploads events of one kind to a running millrace and times the whole way, beside ClickHouse's own plain inserts.

Prints events/s acknowledged (202) and events/s visible in the report, with the CPU seconds that each process spent for
each million events; then sends the same bodies to ClickHouse by INSERT ... FORMAT JSONEachRow and prints the same, and
the ratio of the two. Everything is checked: the report must show exactly the distinct events, beside what it showed before.

Needs nothing but Python and what `scripts/up` started (or the addresses given by options). Keys are new in each run. A
report of hits may be up to a second old, which is part of what is measured.
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
    options.add_argument("--kind", choices=sorted(KINDS), default="captcha", help="default captcha")
    options.add_argument("--events", type=int, default=1_000_000, help="lines to send (default 1,000,000)")
    options.add_argument("--connections", type=int, default=4)
    options.add_argument("--rate", type=float, default=None, help="events/s to send (default: as fast as they are taken)")
    options.add_argument("--sites", type=int, default=1000, help="of captchas")
    options.add_argument("--days", type=int, default=30, help="of captchas and interactions")
    options.add_argument("--users", type=int, default=50_000, help="of hits")
    options.add_argument("--hours", type=int, default=24, help="of hits; 95%% fall into the current one")
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


def make_key(rng):
    key = f"{rng.getrandbits(128):032x}"
    return f"{key[:8]}-{key[8:12]}-{key[12:16]}-{key[16:20]}-{key[20:]}"


def make_days(options):
    first = datetime.date(2021, 1, 1)
    return [(first + datetime.timedelta(days=day)).isoformat() for day in range(options.days)]


def make_clock(bits):
    seconds = (bits >> 20) % 86400
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{(bits >> 40) % 1000000:06}"


def get(connection, path):
    status, answer = connection.request("GET", path)
    if status != 200:
        raise RuntimeError(f"{status} {answer[:300]}")
    return answer


def read_counters(connection, path, query):
    """The rows of a report, all pages."""
    rows, cursor = [], []
    while True:
        answer = json.loads(get(connection, f"{path}?{urllib.parse.urlencode(query + cursor)}"))
        rows += answer["counters"]
        if "next" not in answer:
            return rows
        cursor = [("cursor", answer["next"])]


class Captcha:
    """Counted by day and site; the sites are new in each run."""

    path = "/v1/events"
    columns = "time DateTime64(6,'UTC'), type Enum8('serve'=1,'solve'=2), correlation_id UUID, site_id UUID"
    key = "correlation_id, type"

    def __init__(self, options, rng, _):
        self.sites = [str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(options.sites)]
        self.days = make_days(options)
        self.expected = {}

    def line(self, rng):
        bits = rng.getrandbits(64)
        day, site = self.days[bits % len(self.days)], self.sites[(bits >> 8) % len(self.sites)]
        self.expected[(day, site)] = self.expected.get((day, site), 0) + 1
        kind, key = "serve" if bits >> 63 else "solve", make_key(rng)
        return f'{{"time": "{day}T{make_clock(bits)}", "type": "{kind}", "correlation_id": "{key}", "site_id": "{site}"}}'

    def sample(self):
        """Counters that are cheap to ask for."""
        sites = sorted({site for _, site in self.expected})
        some = sites[:: max(1, len(sites) // 5)][:5]
        return {counter: count for counter, count in self.expected.items() if counter[1] in some}

    def read(self, connection, counters):
        """What the report shows of these counters."""
        sites = {site for _, site in counters}
        asked = [("site_id", site) for site in sorted(sites)] if len(sites) <= 5 else []
        rows = read_counters(connection, "/v1/report", [("limit", "100000"), *asked])
        found = {(row["time"][:10], row["site_id"]): row["served"] + row["solved"] for row in rows}
        return {counter: found.get(counter, 0) for counter in counters}


class Interaction:
    """Counted by day; what the report shows before is added to what it must show."""

    path = "/v2/events"
    columns = "session_id UUID, category String, name String, data String, timestamp DateTime64(6,'UTC'), event_id UUID"
    key = "event_id"

    def __init__(self, options, rng, connection):
        self.days = make_days(options)
        self.sessions = [make_key(rng) for _ in range(10_000)]
        self.expected = self.read(connection, self.days)

    def line(self, rng):
        bits = rng.getrandbits(64)
        day, session = self.days[bits % len(self.days)], self.sessions[(bits >> 8) % len(self.sessions)]
        self.expected[day] += 1
        return (
            f'{{"session_id": "{session}", "category": "page_interaction", "name": "pageview", "data": {{"host": '
            f'"example.org", "path": "/page/{bits % 997}"}}, "timestamp": "{day}T{make_clock(bits)}", '
            f'"event_id": "{make_key(rng)}"}}'
        )

    def sample(self):
        return self.expected

    def read(self, connection, counters):
        query = [("category", "page_interaction"), ("name", "pageview"), ("limit", "100000")]
        found = {row["time"][:10]: row["count"] for row in read_counters(connection, "/v2/report", query)}
        return {day: found.get(day, 0) for day in counters}


class Hit:
    """Counted by hour: users, who are new in each run, clicks and impressions."""

    path = "/hits"
    columns = "timestamp Int64, user String, action Enum8('click'=1,'impression'=2), event_id UUID"
    key = "event_id"

    def __init__(self, options, rng, connection):
        self.hour_ms = int(time.time()) // 3600 * 3_600_000
        self.hours = [self.hour_ms - hour * 3_600_000 for hour in range(options.hours)]
        self.run, self.users = rng.getrandbits(48), options.users
        self.seen = {hour: set() for hour in self.hours}
        self.expected = self.read(connection, {(hour, name): 0 for hour in self.hours for name in self.names})

    names = ("unique_users", "clicks", "impressions")

    def line(self, rng):
        bits = rng.getrandbits(64)
        hour = self.hour_ms if bits % 100 < 95 else self.hours[(bits >> 8) % len(self.hours)]
        user, action = (bits >> 20) % self.users, ("click", "impression")[(bits >> 62) > 0]
        if user not in self.seen[hour]:
            self.seen[hour].add(user)
            self.expected[(hour, "unique_users")] += 1
        self.expected[(hour, f"{action}s")] += 1
        return (
            f'{{"timestamp": {hour + (bits >> 40) % 3_600_000}, "user": "user-{self.run:012x}-{user}", '
            f'"action": "{action}", "event_id": "{make_key(rng)}"}}'
        )

    def sample(self):
        return {counter: count for counter, count in self.expected.items() if counter[0] == self.hour_ms}

    def read(self, connection, counters):
        found = {}
        for hour in sorted({hour for hour, _ in counters}):
            lines = get(connection, f"/analytics?timestamp={hour}").decode().splitlines()
            found |= {(hour, name): int(count) for name, _, count in (line.partition(",") for line in lines)}
        return {counter: found[counter] for counter in counters}


KINDS = {"captcha": Captcha, "interaction": Interaction, "hit": Hit}


def make_bodies(options, kind, rng):
    """The bodies, and the number of distinct events."""
    lines, bodies, distinct = [], [], 0
    for _ in range(options.events):
        if lines and rng.random() < options.duplicates:
            lines.append(lines[rng.randrange(len(lines))])
        else:
            lines.append(kind.line(rng))
            distinct += 1
        if len(lines) == LINES_PER_BODY:
            bodies.append("\n".join(lines).encode() + b"\n")
            lines = []
    if lines:
        bodies.append("\n".join(lines).encode() + b"\n")
    return bodies, distinct


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


def send_all(bodies, connections, send, rate=None):
    """Sends every body over so many connections, at a rate of events/s where there is one; returns the seconds."""
    todo, failures, lock = list(reversed(list(enumerate(bodies)))), [], threading.Lock()

    def work():
        try:
            sender = send()
            while True:
                with lock:
                    if not todo or failures:
                        return
                    index, body = todo.pop()
                if rate:
                    time.sleep(max(0.0, begin + index * LINES_PER_BODY / rate - time.perf_counter()))
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


def millrace_sender(options, kind):
    def make():
        connection = Http(options.url, {"Content-Type": "application/x-ndjson"})

        def send(_, body):
            status, answer = connection.request("POST", kind.path, body)
            if status != 202 or json.loads(answer)["rejected"]:
                raise RuntimeError(f"{status} {answer[:300]}")

        return send

    return make


def wait_until_visible(connection, kind, deadline_s=300):
    """Waits until the report shows what was sent: a part first, so that the asking costs little, then all."""
    end = time.monotonic() + deadline_s
    for expected in (kind.sample(), kind.expected):
        while (found := kind.read(connection, expected)) != expected:
            wrong = [counter for counter, count in expected.items() if found[counter] > count]
            if wrong:
                sys.exit(f"the report is wrong: {len(wrong)} counters too high, first {wrong[:1]}")
            if time.monotonic() > end:
                sys.exit("the report did not show the events in time")
            time.sleep(0.02)


def plain_insert(options, kind, bodies, connections):
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
    query(control, f"CREATE TABLE {table} ({kind.columns}) ENGINE = ReplacingMergeTree ORDER BY ({kind.key})")

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
        rng, reporter = random.Random(seed), Http(options.url)
        kind = KINDS[options.kind](options, rng, reporter)
        bodies, distinct = make_bodies(options, kind, rng)
        size = sum(map(len, bodies)) / options.events
        print(f"round {number + 1}: {options.kind}, {options.events:,} lines of {size:.0f} bytes, {distinct:,} distinct, "
              f"{len(bodies)} bodies over {options.connections} connections, seed {seed}", flush=True)
        before = cpu_seconds(options.pids)
        begin = time.perf_counter()
        acknowledged = send_all(bodies, options.connections, millrace_sender(options, kind), options.rate)
        wait_until_visible(reporter, kind)
        visible = time.perf_counter() - begin
        after = cpu_seconds(options.pids)
        spent = {name: after[name] - before.get(name, 0) for name in after}
        line("acknowledged", options.events, acknowledged, {})
        line("visible in the report", options.events, visible, spent, f"  all {sum(spent.values()) / options.events * 1e6:.2f}")
        if options.skip_plain:
            continue
        before = cpu_seconds(options.pids)
        plain = plain_insert(options, kind, bodies, options.connections)
        after = cpu_seconds(options.pids)
        spent = {name: after[name] - before.get(name, 0) for name in after if name == "clickhouse"}
        line("ClickHouse, plain inserts", options.events, plain, spent)
        print(f"{'visible / plain':<28}{plain / visible:>12.2f} times the rate", flush=True)


if __name__ == "__main__":
    main()
