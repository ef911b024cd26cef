"""A run of scripts/chaos: rounds of faults under load, then everything is healed, drained and judged.

The plan follows from the seed alone: which faults, at whom, in which order, how far apart. A round is one fault, or several
that overlap; the next one begins when the events of a probe that was sent after each healing are in the report.
"""

import heapq
import itertools
import random
import signal
import statistics
import threading
import time
from collections import defaultdict

import chaos_faults
from chaos_box import Program, get, harness
from chaos_events import KINDS, Ledger
from chaos_load import Load
from chaos_oracle import judge
from console import Failure
from once import wait_stored

# Enough that some of its events fall into every partition.
PROBE_EVENTS = 64
# A recovery that takes longer is a failure.
RECOVERY_S_MAX = 90
DRAIN_S_MAX = 300
CALM_S = (0.5, 2)
# How many faults a round has.
TOGETHER = [1, 1, 1, 1, 2, 2, 3]


def plan(box, seed, kinds, together=TOGETHER):
    """Rounds without end: for each its faults, and how many seconds each begins after the one before. Every kind has its
    turn before any comes again."""
    dice = random.Random(f"{seed}/plan")
    deck, number = [], itertools.count()
    while True:
        found = []
        for _ in range(dice.choice(together)):
            deck = deck or dice.sample(kinds, len(kinds))
            fault = chaos_faults.make(deck[-1], box, random.Random(f"{seed}/fault/{next(number)}"))
            # What does not fit beside the others is left for the next round.
            if any(fault.holds & other.holds for other, _ in found):
                break
            deck.pop()
            found.append((fault, dice.uniform(0.2, 3) if found else dice.uniform(*CALM_S)))
        yield found


class Run:
    """One run in a box."""

    def __init__(self, box, seed, *, clients=4, rate=2000, out=print):
        self.box, self.seed, self.out = box, seed, out
        self.ledger = Ledger(random.Random(f"{seed}/tag").getrandbits(64))
        self.dice = random.Random(f"{seed}/probe")
        self.faults = []
        self.began = time.monotonic()
        self.drained_s = None
        doors = [server.links["client"] for server in box.servers]
        self.load = Load(self.ledger, doors, seed, clients=clients, rate=rate)
        # Probes are sent as by a client of their own.
        self.prober = Load(self.ledger, doors, f"{seed}/prober", clients=0, rate=rate)

    def now_s(self):
        return time.monotonic() - self.began

    # Faults under load.

    def inject(self, rounds, until_s, count_min):
        """Breaks things until both the time is over and there were enough faults."""
        self.began = time.monotonic()
        self.load.start()
        warm = chaos_faults.Fault("start", None, set(), self.dice)
        self._finish([self._probe(warm)])
        for found in rounds:
            if self.now_s() >= until_s and len(self.faults) >= count_min:
                return
            self._round(found)

    def _round(self, found):
        """Carries out the faults of a round, and waits until each is recovered from."""
        ready, order, probes, start = [], itertools.count(), [], time.monotonic()
        for fault, after_s in found:
            start += after_s
            fault.alone = len(found) == 1
            heapq.heappush(ready, (start, next(order), fault, None))
        while ready:
            due, _, fault, steps = heapq.heappop(ready)
            self._wait_until(due)
            if steps is None:
                fault.began_s, steps = self.now_s(), fault.steps(self.box)
                self.faults.append(fault)
            try:
                pause_s = next(steps)
                heapq.heappush(ready, (time.monotonic() + pause_s, next(order), fault, steps))
            except StopIteration:
                probes.append(self._probe(fault))
        self._finish(probes)
        for fault, _ in found:
            self.out(told(fault))

    def _wait_until(self, due):
        while True:
            self.box.watch()
            left_s = due - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, 0.1))

    def _probe(self, fault):
        """Sends events of their own site after the healing, and measures when they are acknowledged and in the report."""
        fault.healed_s = self.now_s()
        site = f"{self.dice.getrandbits(128):032x}"
        site = "-".join([site[:8], site[8:12], site[12:16], site[16:20], site[20:]])
        upload = self.prober.make(self.dice, self.ledger.batch("captcha", PROBE_EVENTS, site=site))
        thread = threading.Thread(target=self._recover, args=(fault, upload, site), daemon=True)
        thread.start()
        return fault, thread

    def _recover(self, fault, upload, site):
        end = time.monotonic() + RECOVERY_S_MAX
        doors = itertools.cycle(self.prober.doors)
        if fault.target and fault.target.startswith("server"):
            doors = itertools.repeat(fault.program(self.box).links["client"])
        while time.monotonic() < end:
            if self.prober.send(next(doors), upload) == 202:
                fault.acknowledged_s = self.now_s() - fault.healed_s
                break
            time.sleep(0.05)
        asked = (
            "SELECT toUInt64(sum(served) + sum(solved)) AS n FROM chaos.captcha_counters"
            f" WHERE log_generation = 0 AND log_partition = 0 AND site_id = '{site}'"
        )
        while time.monotonic() < end and fault.acknowledged_s is not None:
            try:
                if self.box.space.store.value(asked, timeout_s=5) >= PROBE_EVENTS:
                    fault.stored_s = self.now_s() - fault.healed_s
                    return
            except (OSError, RuntimeError, ValueError):
                pass
            time.sleep(0.05)

    def _finish(self, probes):
        for fault, thread in probes:
            while thread.is_alive():
                self.box.watch()
                thread.join(0.1)
            if fault.stored_s is None:
                missing = "acknowledged" if fault.acknowledged_s is None else "in the report"
                self.box.problems.append(
                    f"{RECOVERY_S_MAX} s after {fault.text} was healed at {fault.healed_s:.1f} s, a probe was not {missing}"
                )

    # The end.

    def settle(self):
        """Stops the load, heals everything, and waits until all that was taken is stored."""
        self.load.stop()
        self.box.heal()
        self.box.wait_ready()
        self._empty_spools()
        # What servers still hold of requests whose clients are gone is in the log when they have ended.
        self.box.end_programs(self.box.servers)
        began = time.monotonic()
        for kind in KINDS:
            try:
                # The tests' waits are as many times longer as their patience says.
                wait_stored(self.box.space, kind=kind, deadline_s=DRAIN_S_MAX / harness.PATIENCE)
            except (AssertionError, RuntimeError, OSError) as error:
                self.box.problems.append(f"the lag of {kind} does not come to zero: {error}")
        self.drained_s = time.monotonic() - began
        # No insert can come late any more.
        self.box.end_programs(self.box.programs)

    def _empty_spools(self):
        end = time.monotonic() + DRAIN_S_MAX
        for server in filter(Program.spools, self.box.servers):
            while held := server.spooled_bytes():
                if time.monotonic() > end:
                    self.box.problems.append(f"{held} bytes are left in the spool of {server.name}")
                    break
                time.sleep(0.05)

    def judge(self):
        """The oracle's word, and that of `millrace verify`, on what is stored."""
        server = self.box.servers[0]
        server.start()
        end = time.monotonic() + 60
        while not server.is_ready():
            if time.monotonic() > end:
                raise Failure(f"{server.name} is not ready to report after 60 s (log: {server.log})")
            time.sleep(0.05)

        def answer(path):
            status, text = get(server.port, path, timeout_s=60)
            if status != 200:
                raise Failure(f"GET {path} is answered {status}: {text[:300]}")
            return text

        oracle = judge(self.ledger, self.box.space.store, self.box.space.database, answer)
        told = self.box.command("verify")
        if told.returncode != 0:
            self.box.problems.append(f"millrace verify exits with {told.returncode}: {told.stdout}{told.stderr}")
        return oracle

    # What is told.

    def problems(self):
        """What must not happen, apart from what the oracle finds."""
        both = (self.load, self.prober)
        unexpected = [what for load in both for what in load.figures.unexpected]
        return self.box.problems + [what for load in both for what in load.failed] + unexpected

    def figures(self, oracle):
        seen = self.load.figures
        return {
            "seed": self.seed,
            "seconds": round(self.now_s(), 1),
            "faults": len(self.faults),
            "overlapping": sum(not fault.alone for fault in self.faults),
            "events sent": seen.events_sent,
            "events acknowledged": seen.events_acknowledged,
            "uploads": sum(seen.answers.values()),
            "answers": {str(status or "none"): count for status, count in sorted(seen.answers.items())},
            "uploads sent again": seen.resent,
            "clients that died half-way": seen.half,
            "slowest answer s": round(seen.slowest_s, 2),
            "events stored": dict(oracle.rows),
            "in doubt, sent": oracle.unsure_sent,
            "in doubt, stored": oracle.unsure_stored,
            "drained s": round(self.drained_s, 1),
            "kinds": self.by_kind(),
        }

    def by_kind(self):
        """For each kind of fault how often, and median and maximum of the recoveries; of those alone, where there are any."""
        groups = defaultdict(list)
        for fault in self.faults:
            groups[fault.kind].append(fault)
        return {kind: summary(faults) for kind, faults in sorted(groups.items())}


def summary(faults):
    told = {"count": len(faults)}
    for name in ("acknowledged_s", "stored_s"):
        times = [getattr(fault, name) for fault in faults if getattr(fault, name) is not None]
        alone = [getattr(fault, name) for fault in faults if getattr(fault, name) is not None and fault.alone]
        if times:
            told[name] = {"median": round(statistics.median(alone or times), 2), "max": round(max(times), 2)}
    return told


def told(fault):
    """One line of the time line."""
    if fault.acknowledged_s is None:
        after = "no recovery"
    else:
        stored = f"{fault.stored_s:.1f}" if fault.stored_s is not None else "never"
        after = f"acknowledged after {fault.acknowledged_s:.1f} s, in the report after {stored} s"
    text = f"{fault.text} ({fault.note})" if fault.note else fault.text
    beside = " " if fault.alone else "+"
    return f"{fault.began_s:7.1f} {beside} {text:<38} {fault.healed_s - fault.began_s:5.1f} s   {after}"


def end_on_signal():
    """An ordinary exit on SIGTERM, so that everything is cleaned up."""

    def leave(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
