"""The faults of scripts/chaos: what is broken, for how long, and how it is made whole again.

A fault is a generator: it breaks something, yields how many seconds it wants to wait, and has healed what it broke when it
ends. It never blocks, so that several can be under way at once; each holds the names of what it touches, so that no two
break the same thing.
"""

import os
import re
import signal
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from chaos_box import END_LATE_S, PAUSE_S, disk_of, get, harness, mend
from process import Process

POLL_S = 0.05
# What ClickHouse reserves on its disk before it inserts or merges anything is 1 MiB at least.
RESERVED = 900 << 10
# For some of them.
BRIM_ROOM = 4 << 20
# Until an insert that was claimed cannot be under way any more, and then some.
REPAIR_S_MAX = 120
# What ClickHouse finds broken at a start it puts aside.
BROKEN_PARTS = "SELECT count() FROM system.detached_parts WHERE database = 'chaos'"
# Room for some twenty events.
LARGEST, NARROW = "max.message.bytes", "3000"
KINDS_OF_EVENTS = ["captcha", "hit", "interaction"]
WAYS = ["client-server", "server-kafka", "server-clickhouse", "writer-kafka", "writer-clickhouse"]
DISTURBANCES = ["cut", "freeze", "blackhole", "delay", "lose", "tear"]


class Fault:
    """One fault to come: what kind, at which of its targets, and a dice of its own for the rest."""

    def __init__(self, kind, target, holds, dice):
        self.kind, self.target, self.holds, self.dice = kind, target, holds, dice
        what, _, role = kind.rpartition(" ")
        self.text = kind
        if target:
            self.text = f"{kind} of {target}" if role in WAYS else f"{what} {target}"
        self.began_s = self.healed_s = self.acknowledged_s = self.stored_s = None
        self.alone = True
        self.note = ""

    def steps(self, box):
        """The generator that breaks and heals."""
        return STEPS[self.kind](box, self)

    def program(self, box):
        return next(program for program in box.programs if program.name == self.target)

    def server(self, box):
        return {"kafka": box.kafka, "clickhouse": box.clickhouse}[self.kind.split()[-1]]


def kinds_possible(box):
    """All kinds, without those that this machine does not allow."""
    left_out = set() if box.mounts else {"fill kafka", "fill clickhouse", "brim clickhouse"}
    left_out |= set() if box.faketime else {"clock server", "clock writer"}
    return [kind for kind in STEPS if kind not in left_out]


def make(kind, box, dice):
    """A fault of that kind at one of its possible targets."""
    role = kind.split()[-1].partition("-")[0] if kind.split()[-1] in WAYS else kind.split()[-1]
    if role == "client":
        role = "server"
    candidates = {"server": box.servers, "writer": box.writers}.get(role)
    if candidates:
        target = dice.choice(candidates).name
        return Fault(kind, target, {target}, dice)
    if role == "everything":
        return Fault(kind, None, {program.name for program in box.programs} | {"kafka", "clickhouse"}, dice)
    if kind == "brim clickhouse":
        # A repair wants all writers stopped.
        return Fault(kind, None, {"clickhouse", box.joiner.name} | {program.name for program in box.writers}, dice)
    if kind == "narrow kafka":
        return Fault(kind, None, {"kafka"} | {program.name for program in box.servers if program.spools()}, dice)
    if role == "joiner":
        return Fault(kind, None, {box.joiner.name}, dice)
    return Fault(kind, None, {role}, dice)


# Processes of the program.


def kill_program(box, fault):
    program = fault.program(box)
    program.kill()
    yield fault.dice.uniform(0, 3)
    program.start()


def stop_program(box, fault):
    program = fault.program(box)
    yield from ended(box, program)
    yield fault.dice.uniform(0, 2)
    program.start()


def ended(box, program):
    """SIGTERM, until it has ended in time and in order."""
    began = time.monotonic()
    program.terminate()
    while program.is_running() and time.monotonic() < began + END_LATE_S:
        yield POLL_S
    box.expect_end(program, began)


def paused(process, dice):
    """SIGSTOP for longer than every bound, then SIGCONT."""
    process.pause()
    yield dice.uniform(*PAUSE_S)
    process.resume()


def pause_program(box, fault):
    yield from paused(fault.program(box), fault.dice)


def join(box, fault):
    """A further writer comes, stays for a while, and goes in order."""
    box.joiner.start()
    yield fault.dice.uniform(3, 8)
    yield from ended(box, box.joiner)


def storm(box, fault):
    """Writers come and go faster than the group settles, in order or killed."""
    for _ in range(fault.dice.randint(3, 5)):
        box.joiner.start()
        yield fault.dice.uniform(0.2, 1.5)
        if fault.dice.random() < 0.5:
            box.joiner.kill()
        else:
            yield from ended(box, box.joiner)


def clock(box, fault):
    """The process is started again with a clock that is hours off, which then jumps under it, and started as it was."""
    program, hours = fault.program(box), fault.dice.choice([-30, -7, -2, 2, 5, 26])
    fault.note = f"{hours:+} h"
    file = box.home / "clocks" / f"{program.name.replace(' ', '-')}"
    file.write_text(f"{hours:+}h\n", encoding="ascii")
    program.kill()
    program.start(clock=file)
    yield fault.dice.uniform(3, 5)
    fresh = file.with_suffix(".new")
    fresh.write_text(f"{-hours:+}h\n", encoding="ascii")
    fresh.replace(file)
    yield fault.dice.uniform(3, 5)
    program.kill()
    program.start()


# Servers.


def kill_server(box, fault):
    name, server = fault.kind.split()[-1], fault.server(box)
    box.away.add(name)
    server.server.process.signal(signal.SIGKILL)
    yield from gone(server)
    yield fault.dice.uniform(0, 4)
    yield from back(box, name, server)


def stop_server(box, fault):
    name, server = fault.kind.split()[-1], fault.server(box)
    box.away.add(name)
    server.server.process.signal(signal.SIGTERM)
    yield from gone(server, deadline_s=30)
    yield fault.dice.uniform(0, 2)
    yield from back(box, name, server)


def gone(server, deadline_s=10):
    """Until the process has ended; it is killed at the deadline."""
    end = time.monotonic() + deadline_s
    while server.server.process.pid is not None:
        if time.monotonic() > end:
            server.server.process.signal(signal.SIGKILL)
        yield POLL_S


def back(box, name, server):
    """Starts it again; whole once it answers."""
    server.launch()
    box.away.discard(name)
    yield from answering(name, server)


def answering(name, server, deadline_s=60):
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if name == "kafka" and server.server.answers():
            return
        if name == "clickhouse" and answers(server):
            return
        yield POLL_S


def answers(clickhouse):
    """Whether it answers at all: an error is an answer too."""
    try:
        clickhouse.server.query("SELECT 1", timeout_s=1)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def pause_server(box, fault):
    yield from paused(fault.server(box), fault.dice)


def stutter(box, fault):
    """It stands still for a third of a second, again and again: slow, and never away."""
    server = fault.server(box)
    for _ in range(12):
        server.pause()
        yield 0.35
        server.resume()
        yield 0.15


def slow_kafka(box, fault):
    """Every answer of Kafka comes late, for everybody."""
    delay_s = fault.dice.choice([0.1, 0.3, 0.6])
    fault.note = f"{delay_s} s"
    for program in box.programs:
        program.links["kafka"].delay_s = delay_s
    yield fault.dice.uniform(5, 9)
    for program in box.programs:
        program.links["kafka"].delay_s = 0


def narrow_kafka(box, fault):
    """Kafka takes small records only: it refuses for good some of what comes, and of what a spool has gathered before."""
    links = [program.links["kafka"] for program in box.servers if program.spools()]
    for link in links:
        link.cut()
    # Longer than it takes to be noticed.
    yield fault.dice.uniform(4, 6)
    topics = [box.space.topic_of(kind) for kind in KINDS_OF_EVENTS]
    usual = yield from of_kafka(box, lambda log: [log.topic_settings(topic)[LARGEST] for topic in topics])
    yield from of_kafka(box, lambda log: [log.set_topic(topic, **{LARGEST: NARROW}) for topic in topics])
    for link in links:
        mend(link)
    yield fault.dice.uniform(6, 10)
    sizes = dict(zip(topics, usual, strict=True))
    yield from of_kafka(box, lambda log: [log.set_topic(topic, **{LARGEST: sizes[topic]}) for topic in topics])


def of_kafka(box, ask, deadline_s=60):
    """What `ask` brings, which may block and is tried again, with a client that Kafka has not been away from."""
    end = time.monotonic() + deadline_s
    with ThreadPoolExecutor(1) as thread:
        while True:
            answer = thread.submit(lambda: ask(harness.Log(box.kafka.brokers)))
            while not answer.done():
                yield POLL_S
            if answer.exception() is None:
                return answer.result()
            if time.monotonic() > end:
                raise RuntimeError(f"Kafka does not do as it is asked: {answer.exception()!r}")
            yield 0.2


def fill(box, fault):
    """The disk is full; when it has room again, whoever ended for it is started.

    For ClickHouse it fills up slowly, to less than an insert or a merge reserves before it begins ("fill"); or to the last byte at
    once, then room comes and goes, and whatever has begun in it does not get to its end ("brim").
    """
    how, name = fault.kind.split()
    server = fault.server(box)
    slack = [16 << 20, 8 << 20, 4 << 20, 2 << 20, RESERVED] if (how, name) == ("fill", "clickhouse") else [0]
    box.away.add(name)
    filler = disk_of(server) / "filler"
    end = time.monotonic() + fault.dice.uniform(5, 9)
    with open(filler, "wb") as sink:
        for left in slack:
            fill_up(sink, left)
            yield 0.5
        while time.monotonic() < end:
            if how == "brim":
                os.ftruncate(sink.fileno(), max(0, os.fstat(sink.fileno()).st_size - BRIM_ROOM))
                yield fault.dice.uniform(0.02, 0.2)
            fill_up(sink, slack[-1])
            yield 0.1
    filler.unlink()
    if server.server.process.pid is None:
        fault.note = "it had ended"
        yield from back(box, name, server)
    box.away.discard(name)
    yield from answering(name, server)


def brim(box, fault):
    """The disk of ClickHouse is full to the last byte, whatever it was in the midst of: it then takes parts of 0 bytes for good
    ones. Once there is room, what README says is done: ClickHouse is started again, writers are stopped, and what is missing
    is read from the log."""
    yield from fill(box, fault)
    box.away.add("clickhouse")
    box.clickhouse.server.process.signal(signal.SIGTERM)
    yield from gone(box.clickhouse, deadline_s=30)
    yield from back(box, "clickhouse", box.clickhouse)
    for program in box.writers:
        yield from ended(box, program)
    yield from repaired(box, fault)
    for program in box.writers:
        program.start()


def repaired(box, fault):
    """`millrace repair`, again until it is done: other faults go on meanwhile."""
    log = box.home / "log" / "repair.log"
    end = time.monotonic() + REPAIR_S_MAX
    while True:
        began = log.stat().st_size if log.exists() else 0
        process = Process("repair", box.home / "run")
        process.start([box.binary, "repair"], log=log, env=box.environment(), dies_with_parent=True)
        while process.pid is not None:
            yield POLL_S
        said = log.read_bytes()[began:].decode(errors="replace")
        if process.status() == 0:
            parts = box.clickhouse.server.query(BROKEN_PARTS).strip()
            events = sum(map(int, re.findall(r": (\d+) events read again$", said, re.M)))
            fault.note = f"{parts} parts put aside so far, {events:,} events read again"
            return
        if time.monotonic() > end:
            raise RuntimeError(f"millrace repair is not done after {REPAIR_S_MAX} s: {said[-1000:]}")
        yield 1


def fill_up(sink, left):
    """Leaves so many bytes free, or fewer."""
    room = os.fstatvfs(sink.fileno())
    free = max(0, room.f_bavail * room.f_frsize - left)
    while free:
        try:
            os.posix_fallocate(sink.fileno(), os.fstat(sink.fileno()).st_size, free)
            return
        except OSError:
            free //= 2


def kill_everything(box, fault):
    """kill -9 of every process at once."""
    box.away |= {"kafka", "clickhouse"}
    for program in box.programs:
        program.kill()
    for server in (box.clickhouse, box.kafka):
        server.server.process.signal(signal.SIGKILL)
    for server in (box.clickhouse, box.kafka):
        yield from gone(server)
    box.kafka.launch()
    box.clickhouse.launch()
    box.away.clear()
    for program in box.servers + box.writers:
        program.start()


# ClickHouse refuses inserts.


def refuse_parts(box, fault):
    """Too many parts: the bound is lowered to what is there."""
    yield from altered(box, fault, {"parts_to_delay_insert": 1, "parts_to_throw_insert": 1})


def refuse_read_only(box, fault):
    """The tables take no inserts. This does not pass by itself for the writers: they are started again, as they ask for."""
    yield from altered(box, fault, {"table_readonly": 1})
    halted = [program for program in box.writers if program.is_running() and is_halted(program)]
    fault.note = f"{len(halted)} writers started again"
    for program in halted:
        yield from ended(box, program)
        program.start()


def altered(box, fault, settings):
    """Settings of all tables that take events, for a while."""
    tables = [f"chaos.{kind}_{what}" for kind in KINDS_OF_EVENTS for what in ("events", "counters")]
    done = [f"ALTER TABLE {{}} MODIFY SETTING {', '.join(f'{name} = {value}' for name, value in settings.items())}"]
    undone = [f"ALTER TABLE {{}} RESET SETTING {', '.join(settings)}"]
    for statements, pause_s in ((done, fault.dice.uniform(4, 8)), (undone, 0)):
        for statement in statements:
            for table in tables:
                yield from asked(box, statement.format(table))
        yield pause_s


def asked(box, statement, deadline_s=60):
    """A statement, until ClickHouse has done it: it may be away meanwhile."""
    end = time.monotonic() + deadline_s
    while True:
        try:
            box.clickhouse.server.query(statement, timeout_s=5)
            return
        except OSError as error:
            if time.monotonic() > end:
                said = error.read(300).decode() if isinstance(error, urllib.error.HTTPError) else error
                raise RuntimeError(f"{statement}: {said}") from error
        yield 0.2


def is_halted(program):
    with suppress(OSError):
        text = get(program.port, "/metrics", timeout_s=5)[1]
        return any(
            line.startswith("millrace_partition_halted{") and not line.endswith(" 0") for line in text.splitlines()
        )
    return False


def refuse_memory(box, fault):
    """Started again with so little memory for a query that inserts fail; and once more as it was."""
    server = box.clickhouse
    for profile in ({"max_memory_usage": 100_000}, {}):
        server.server.profile = profile
        box.away.add("clickhouse")
        server.server.process.signal(signal.SIGTERM)
        yield from gone(server, deadline_s=30)
        yield from back(box, "clickhouse", server)
        yield fault.dice.uniform(4, 7) if profile else 0


# The ways between them.


def disturb(box, fault):
    how, way = fault.kind.split()
    link = fault.program(box).links["client" if way == "client-server" else way.partition("-")[2]]
    if how == "cut":
        link.cut()
    elif how == "freeze":
        link.freeze()
    elif how == "blackhole":
        # Nothing is left to heal: who used the connections has to notice.
        link.blackhole()
        yield 0
        return
    elif how == "delay":
        link.delay_s = fault.dice.choice([0.05, 0.2, 0.5])
    elif how == "lose":
        link.lose = fault.dice.choice([0.05, 0.2, 0.5])
    else:
        link.tear = fault.dice.choice([0.05, 0.2])
    # Half of what stands still stands longer than any time-out.
    long = how == "freeze" and fault.dice.random() < 0.5
    yield fault.dice.uniform(*PAUSE_S) if long else fault.dice.uniform(1, 7)
    mend(link)


STEPS = {
    "kill server": kill_program,
    "stop server": stop_program,
    "pause server": pause_program,
    "clock server": clock,
    "kill writer": kill_program,
    "stop writer": stop_program,
    "pause writer": pause_program,
    "clock writer": clock,
    "join joiner": join,
    "storm joiner": storm,
    "kill kafka": kill_server,
    "stop kafka": stop_server,
    "pause kafka": pause_server,
    "stutter kafka": stutter,
    "slow kafka": slow_kafka,
    "fill kafka": fill,
    "narrow kafka": narrow_kafka,
    "kill clickhouse": kill_server,
    "stop clickhouse": stop_server,
    "pause clickhouse": pause_server,
    "stutter clickhouse": stutter,
    "fill clickhouse": fill,
    "brim clickhouse": brim,
    "parts clickhouse": refuse_parts,
    "memory clickhouse": refuse_memory,
    "readonly clickhouse": refuse_read_only,
    "kill everything": kill_everything,
    **{f"{how} {way}": disturb for way in WAYS for how in DISTURBANCES},
}
