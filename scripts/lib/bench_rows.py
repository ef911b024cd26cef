"""The rows of the benchmark's table: what each of them does to a program, and what it compares it with.

A row is a function of a `Run` (the box, the program's binary, how much) that yields one `Figures` for each line it
measures. Everything is measured from outside: rates by the clock, CPU and memory from the system, what is stored by the
report and the program's own counters, which `millrace-load --verify` compares with what was sent.
"""

import contextlib
import http.client
import json
import statistics
import threading
import time
import uuid
from dataclasses import dataclass, field

import bench_plain
import software
from bench_box import Space, Spending
from console import Failure

BODY_LINES = 10_000
SINGLES = ("--connections", 64)
DAY = "2021-01-25"
PARTITIONS = 4
# What waits in the log when everything is killed.
RECOVERED_EVENTS = 1_000_000


@dataclass
class Figures:
    """One line of the table, measured once."""

    line: str
    per_s: float | None = None
    millions: float | None = None
    cpu: dict = field(default_factory=dict)
    rss_mib: dict = field(default_factory=dict)
    more: dict = field(default_factory=dict)

    def cpu_per_million(self):
        return {name: spent / self.millions for name, spent in self.cpu.items()} if self.millions else {}


@dataclass
class Run:
    """What a row is given."""

    box: object
    name: str
    binary: object
    bare: object
    events: int
    seconds: int
    stored: list

    @contextlib.contextmanager
    def space(self):
        space = Space()
        self.box.command(self.binary, "migrate", space)
        try:
            yield space
        finally:
            self.box.drop(space)

    @contextlib.contextmanager
    def programs(self, space, *roles, **settings):
        with contextlib.ExitStack() as stack:
            started = [stack.enter_context(self.box.program(self.binary, role, space, **settings)) for role in roles]
            # The first second of a producer and of a fresh JVM is slow, and no part of what is measured.
            if "serve" in roles:
                self.box.drive(started[roles.index("serve")], "bulk", "-n", min(self.events, 200_000))
            if "write" in roles and "serve" in roles:
                wait_stored(started[roles.index("serve")], started[roles.index("write")])
            yield started

    def spending(self, programs):
        return Spending(self.box.pids(programs))


def wait_stored(serve, writer):
    """Until everything that was accepted is stored: for two processes that have been there from the start."""
    writer.wait_stored(sum(serve.metric("millrace_events_accepted_total")))


def taken(result, phase=0):
    """Events acknowledged in a phase of millrace-load, which must be all that were sent."""
    (stream,) = result["phases"][phase]["streams"].values()
    if stream["events_accepted"] != stream["events_sent"]:
        raise Failure(f"{stream['events_sent']:,} events were sent and {stream['events_accepted']:,} acknowledged")
    return stream["events_sent"]


def whole(run):
    """NDJSON until visible in the report; beside it what ClickHouse takes by plain inserts."""
    with run.space() as space, run.programs(space, "serve", "write") as programs:
        spending = run.spending(programs)
        result = run.box.drive(programs[0], "bulk", "-n", run.events, "--duplicates", 0.01, "--verify")
        events, phase = taken(result), result["phases"][0]
        more = {"own CPU": phase["own_cpu_s"] / sum(spending.cpu().values())}
        yield Figures(run.name, events / phase["visible_s"], events / 1e6, spending.cpu(), spending.rss_mib(), more)


def plain(run):
    """The same kind of bodies by INSERT ... FORMAT JSONEachRow into a ReplacingMergeTree."""
    spending = run.spending([])
    seconds, events = bench_plain.json_rows(run.box.clickhouse, run.events)
    spent = {"clickhouse": spending.cpu()["clickhouse"]}
    yield Figures("ClickHouse, JSONEachRow", events / seconds, events / 1e6, spent, spending.rss_mib())


def accepted(run):
    """The same until 202, without a writer; then the log is drained by one."""
    with run.space() as space:
        with run.programs(space, "serve") as (serve,):
            before = serve.metric("millrace_events_accepted_total")
            spending = run.spending([serve])
            result = run.box.drive(serve, "bulk", "-n", run.events, "--duplicates", 0.01)
            events, phase = taken(result), result["phases"][0]
            spent = {name: spending.cpu()[name] for name in ("serve", "kafka")}
            yield Figures(
                f"accepted: {run.name}", events / phase["seconds"], events / 1e6, spent, spending.rss_mib(), latency(result)
            )
            total = events + sum(before)
        began = time.perf_counter()
        with run.box.program(run.binary, "write", space) as writer:
            spending = Spending(run.box.pids([writer]))
            spending.before["write"] = 0
            writer.wait_stored(total)
            seconds = time.perf_counter() - began
            yield Figures(
                f"stored: {run.name}", total / seconds, total / 1e6, spending.cpu(), spending.rss_mib()
            )


def blocks(run):
    """Precomputed Arrow blocks of 100,000 rows into the same table."""
    with run.space() as space:
        spending = run.spending([])
        seconds, events = bench_plain.arrow_blocks(run.box.clickhouse, space.name, run.events)
        spent = {"clickhouse": spending.cpu()["clickhouse"]}
        yield Figures("stored: ClickHouse, ArrowStream blocks", events / seconds, events / 1e6, spent, spending.rss_mib())


def engine(run):
    """The same log read by ClickHouse's own Kafka engine, which removes no duplicates."""
    if software.find_clickhouse() is None:
        # The embedded engine takes the table, reads nothing, and hangs when it is dropped.
        return
    with run.space() as space, run.programs(space, "serve") as (serve,):
        run.box.drive(serve, "bulk", "-n", run.events, "--duplicates", 0.01)
        total = sum(serve.metric("millrace_events_accepted_total"))
        spending = run.spending([])
        seconds = bench_plain.kafka_engine(run.box, space.name, total)
        if seconds is None:
            return
        yield Figures("stored: ClickHouse's Kafka engine", total / seconds, total / 1e6, spending.cpu(), spending.rss_mib())


def warm_singles(run, serve):
    """A Kafka that has just started compiles for seconds what single events make it do."""
    run.box.drive(serve, "single", *SINGLES, "--duration", f"{run.seconds}s")


def singles(run):
    """One event a request over 64 connections."""
    with run.space() as space, run.programs(space, "serve") as (serve,):
        warm_singles(run, serve)
        spending = run.spending([serve])
        result = run.box.drive(serve, "single", *SINGLES, "--duration", f"{run.seconds}s", "--warm-up", "0s")
        events = taken(result)
        more = {**latency(result), "own CPU": result["phases"][0]["own_cpu_s"] / sum(spending.cpu().values())}
        spent = {name: spending.cpu()[name] for name in ("serve", "kafka")}
        yield Figures(run.name, events / result["phases"][0]["seconds"], events / 1e6, spent, spending.rss_mib(), more)


def bare(run):
    """A bare may_minihttp that answers the same bytes at once."""
    with bench_plain.bare_server(run.bare) as (process, program):
        spending = Spending({"bare": process.pid})
        result = run.box.drive(program, "single", *SINGLES, "--duration", f"{run.seconds}s", "--warm-up", "0s")
        events = taken(result)
        per_s = events / result["phases"][0]["seconds"]
        yield Figures("bare may_minihttp", per_s, events / 1e6, spending.cpu(), spending.rss_mib(), latency(result))


def beside(run):
    """5,000 single events a second, alone and beside a bulk upload."""
    rate = ("--rate", 5000, "--duration", f"{run.seconds}s")
    with run.space() as space, run.programs(space, "serve", "write") as programs:
        warm_singles(run, programs[0])
        alone = run.box.drive(programs[0], "single", *SINGLES, *rate)
        yield Figures(f"alone: {run.name}", 5000, more=latency(alone))
        spending = run.spending(programs)
        both = run.box.drive(programs[0], "mixed", *SINGLES, *rate)
        streams = both["phases"][0]["streams"]
        single = next(stream for name, stream in streams.items() if "bulk" not in name)
        bulk = next(stream for name, stream in streams.items() if "bulk" in name)
        more = percentiles(single) | {"bulk events/s": bulk["events_per_s"]}
        yield Figures(f"beside bulk: {run.name}", 5000, more=more, rss_mib=spending.rss_mib())


def reports(run):
    """The whole report and one site's, with more and more events stored."""
    with run.space() as space, run.programs(space, "serve", "write") as programs:
        serve, writer = programs
        held = sum(writer.metric("millrace_events_stored_total"))
        # Always the same sites, so that the report stays as long as it is.
        for number, wanted in enumerate(run.stored):
            if wanted > held:
                result = run.box.drive(serve, "bulk", "-n", wanted - int(held), "--run-id", 7, "--seed", number)
                held += taken(result)
                wait_stored(serve, writer)
            for reads in ("whole", "site"):
                spending = run.spending(programs)
                arguments = ("--reads", reads, "--limit", 100_000, "--connections", 1, "--duration", f"{run.seconds}s")
                result = run.box.drive(serve, "report", *arguments)
                # One stream for each kind of read; the others had nothing to do.
                stream = max(result["phases"][0]["streams"].values(), key=lambda one: one["requests_answered"])
                more = percentiles(stream)
                line = f"{reads} at {held / 1e6:.0f}M: {run.name}"
                yield Figures(line, stream["requests_per_s"], more=more, rss_mib=spending.rss_mib())
        yield from restarts(run, space, programs, held)


def restarts(run, space, programs, held):
    """A writer's start with so many keys stored: until a new event is in the report."""
    serve, writer = programs
    for state in ("with its cache", "without"):
        writer.stop(kill=True)
        if state == "without":
            run.box.forget_caches()
        began = time.perf_counter()
        with run.box.program(run.binary, "write", space) as fresh:
            seconds = visible_after(serve, began)
            spending = Spending(run.box.pids([fresh]))
            more = {"seconds": seconds, "seen keys": sum(fresh.metric("millrace_seen_keys"))}
            more["RAM bytes a key"] = sum(fresh.metric("millrace_seen_bytes")) / max(1, more["seen keys"])
            yield Figures(f"start {state} at {held / 1e6:.0f}M: {run.name}", more=more, rss_mib=spending.rss_mib())


def freshness(run):
    """From the 202 of an event to its place in the report, while so many others come."""
    for rate in (100, 10_000, 100_000):
        with run.space() as space, run.programs(space, "serve", "write") as programs:
            lines = max(1, min(BODY_LINES, rate // 20))
            arguments = ("--rate", rate, "--duration", f"{run.seconds}s", "--lines", lines)
            load = threading.Thread(target=run.box.drive, args=(programs[0], "bulk", *arguments))
            load.start()
            waits = []
            while load.is_alive():
                waits.append(visible_after(programs[0]) * 1000)
            load.join()
            yield Figures(f"{rate:,}/s: {run.name}", rate, more=spread(waits))


def idle(run):
    """The whole box at 10 events a second."""
    with run.space() as space, run.programs(space, "run") as programs:
        time.sleep(3)
        spending = run.spending(programs)
        began = time.perf_counter()
        run.box.drive(programs[0], "single", "--rate", 10, "--duration", f"{max(run.seconds, 20)}s")
        seconds = time.perf_counter() - began
        shares = {f"{name}, % of a core": 100 * spent / seconds for name, spent in spending.cpu().items()}
        yield Figures(run.name, 10, more=shares, rss_mib=spending.rss_mib())


def resent(run):
    """A file of events, and the same file again: until all of it is dealt with."""
    same = ("--run-id", 11, "--seed", 11, "-n", run.events)
    with run.space() as space, run.programs(space, "serve", "write") as programs:
        serve, writer = programs
        for line in ("fresh", "resent"):
            known = writer.stored()
            spending = run.spending(programs)
            began = time.perf_counter()
            events = taken(run.box.drive(serve, "bulk", *same))
            writer.wait_stored(known + events)
            seconds = time.perf_counter() - began
            yield Figures(f"{line}: {run.name}", events / seconds, events / 1e6, spending.cpu(), spending.rss_mib())


def recovery(run):
    """kill -9 of everything at once while a writer works on what waits in the log; all is started again in the same
    moment, until the report holds every event."""
    with run.space() as space:
        with run.box.program(run.binary, "serve", space) as serve:
            events = taken(run.box.drive(serve, "bulk", "-n", min(run.events, RECOVERED_EVENTS), "--sites", 100))
        program = run.box.launch(run.binary, "run", space).wait_ready()
        # Every partition is at work, and next to nothing of it done.
        wait_until("the writer to begin", lambda: len(program.metric("millrace_seen_keys")) == PARTITIONS)
        unread = events - program.stored()
        if not unread:
            raise Failure("all was stored before it could be killed")
        run.box.kill_all()
        began = time.perf_counter()
        run.box.start_servers()
        program = run.box.launch(run.binary, "run", space)
        more = {"unread": unread}
        for name, server in (("ClickHouse", run.box.clickhouse), ("Kafka", run.box.kafka)):
            server.wait_ready()
            more[f"{name} up s"] = time.perf_counter() - began
        wait_until("everything to be ready", lambda: '"ready"' in answered(program, "/health/ready"))
        wait_until("the writer to be given its partitions", lambda: len(program.metric("millrace_seen_keys")) == PARTITIONS)
        more["writer at work s"] = time.perf_counter() - began
        wait_until("every event to be in the report", lambda: reported(program, events) == events)
        more["complete s"] = time.perf_counter() - began
        # The report's total could be right by a loss and a double; the keys cannot.
        found = run.box.clickhouse.query(f"SELECT count(), uniqExact(type, correlation_id) FROM {space.name}.captcha_events", timeout_s=60)
        if found.split() != [str(events)] * 2:
            raise Failure(f"{events:,} events were acknowledged, and {found!r} are stored")
        run.box.command(run.binary, "verify", space)
        program.stop()
        run.box.running.remove(program)
        yield Figures(f"kill -9 of everything: {run.name}", more=more)


def answered(program, path):
    """The answer's body; nothing while there is none or no good one."""
    try:
        status, said = program.get(path)
    except (OSError, http.client.HTTPException):
        return ""
    return said if status == 200 else ""


def reported(program, most):
    """How many events the report holds, which must never be more than `most`."""
    said = answered(program, "/v1/report?limit=100000")
    rows = json.loads(said)["counters"] if said else []
    total = sum(row["served"] + row["solved"] for row in rows)
    if total > most:
        raise Failure(f"the report holds {total:,} events, and {most:,} were sent")
    return total


def wait_until(what, check, deadline_s=300):
    end = time.monotonic() + deadline_s
    while not check():
        if time.monotonic() > end:
            raise Failure(f"waited {deadline_s} s for {what}")
        time.sleep(0.01)


def visible_after(serve, began=None):
    """Sends one event of a new site; the seconds from its 202 (or from `began`) until the report shows it."""
    site = str(uuid.uuid4())
    event = f'{{"time":"{DAY}T00:00:00","type":"serve","correlation_id":"{uuid.uuid4()}","site_id":"{site}"}}'
    status, said = serve.post("/v1/events", event)
    if status != 202:
        raise Failure(f"an event was answered {status}: {said}")
    began = began or time.perf_counter()
    while site not in (answer := serve.get(f"/v1/report?site_id={site}"))[1] or answer[0] != 200:
        if time.perf_counter() - began > 600:
            raise Failure(f"an event did not show in the report: {answer}")
        time.sleep(0.01)
    return time.perf_counter() - began


def spread(values):
    ordered = sorted(values)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {"p50 ms": statistics.median(ordered), "p99 ms": at(0.99), "max ms": ordered[-1], "samples": len(ordered)}


def percentiles(stream):
    ms = stream["latency_ms"]
    return {"p50 ms": ms["p50"], "p99 ms": ms["p99"], "max ms": ms["max"]}


def latency(result):
    (stream,) = result["phases"][0]["streams"].values()
    return percentiles(stream)


# What a row runs for each program, and what it runs once a round beside them.
ROWS = {
    "whole": ([whole], [plain]),
    "accepted": ([accepted], [blocks, engine]),
    "singles": ([singles], [bare]),
    "beside": ([beside], []),
    "reports": ([reports], []),
    "freshness": ([freshness], []),
    "idle": ([idle], []),
    "resent": ([resent], []),
    "recovery": ([recovery], []),
}
