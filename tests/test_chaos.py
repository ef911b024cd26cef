"""scripts/chaos: a short run with a fixed plan, and proof that its oracle finds what it is there to find."""

import collections
import json
import random
import subprocess
import uuid

import harness
import pytest
from chaos_events import ACKNOWLEDGED, HALF, HOUR, KINDS, UNSURE, Ledger, scramble
from chaos_load import Load
from chaos_oracle import Oracle, judge, read_captchas, read_hits, read_interactions
from once import SMALL_RANGES, wait_stored
from tcp_proxy import Proxy

# Each sort once, in overlapping pairs where the plan of the seed has them so.
SEED = 6
FAULTS = [
    "kill server",
    "kill writer",
    "pause writer",
    "kill kafka",
    "kill clickhouse",
    "cut writer-kafka",
    "blackhole server-kafka",
    "lose writer-clickhouse",
    "tear client-server",
    "kill everything",
]
RUN_S = 480


@pytest.mark.timeout(RUN_S + 20)
def test_a_short_run(tmp_path):
    result = tmp_path / "chaos.json"
    command = [harness.REPOSITORY / "scripts" / "chaos", "--seed", str(SEED), "--minutes", "0", "--overlap", "2"]
    command += ["--faults", f"{len(FAULTS)},{','.join(FAULTS)}", "--binary", harness.millrace_binary(), "--json", result]
    environment = {**harness.environment_without_settings(), "VAR_DIR": str(harness.settings.var_dir())}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=RUN_S, check=False)
    print(said.stdout)
    assert said.returncode == 0, said.stdout[-5000:] + said.stderr[-2000:]
    told = json.loads(result.read_text())
    assert {fault["text"].split()[0] for fault in told["faults"]} == {kind.split()[0] for kind in FAULTS}
    assert set(told["figures"]["kinds"]) == set(FAULTS)
    assert told["figures"]["events acknowledged"] > 10_000
    assert all(count > 1000 for count in told["figures"]["events stored"].values()), told["figures"]
    assert f"seed {SEED}" in said.stdout and "0 lost, 0 twice, 0 invented" in said.stdout


@pytest.mark.parametrize("wrong", [["--faults", "kill god"], ["--rate", "0"], ["--binary", "/nowhere"]])
def test_wrong_arguments_are_told(wrong):
    command = [harness.REPOSITORY / "scripts" / "chaos", "--binary", harness.millrace_binary(), *wrong]
    environment = {**harness.environment_without_settings(), "VAR_DIR": str(harness.settings.var_dir())}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode != 0 and said.stderr.startswith("chaos: ") and "Traceback" not in said.stderr, said.stderr


# The oracle alone, on rows made up here.


def stored_row(event, place):
    """A row as `chaos_oracle.stored_rows` gives it."""
    first, second, third = event.counted
    made = event.identity.startswith("keyed ")
    identity = str(uuid.UUID(int=0)) if made else event.identity
    origin = "made" if made else "sent"
    texts = {
        "captcha": lambda: (event.identity.split()[1], third, first, second, "", ""),
        "hit": lambda: (identity, origin, second, third, str(first), ""),
        "interaction": lambda: (identity, origin, f"/{event.identity}", second, third, first),
    }[event.kind]()
    return place, texts


class Told:
    """A store and a door that are right, until a test falsifies them."""

    def __init__(self):
        self.ledger = Ledger(7)
        self.rows = {kind: [] for kind in KINDS}
        self.report = collections.Counter()
        for kind in KINDS:
            for keyed, state in ((False, ACKNOWLEDGED), (True, ACKNOWLEDGED), (False, UNSURE), (False, HALF)):
                batch = self.ledger.batch(kind, 9, keyed=keyed)
                self.ledger.sent(batch, state)
                # Of a doubtful upload a part may be there.
                stored = {ACKNOWLEDGED: range(9), UNSURE: range(4), HALF: ()}[state]
                for position in stored:
                    event = self.ledger.event(batch, position)
                    self.rows[kind].append(stored_row(event, (1, 0, len(self.rows[kind]), position)))

    def judge(self):
        oracle = Oracle(self.ledger)
        for kind in KINDS:
            oracle.take(kind, self.rows[kind])
        oracle.finish()
        return oracle


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_finds_each_falsified_row(kind):
    assert Told().judge().agrees()
    doubtful = Told().judge()
    assert (doubtful.unsure_sent, doubtful.unsure_stored) == (27, 12)

    def found(change):
        told = Told()
        change(told, told.rows[kind])
        oracle = told.judge()
        assert sum(oracle.differences.counts.values()) == 1, list(oracle.differences.lines())
        return " ".join(oracle.differences.lines())

    def key(row):
        place, texts = row
        text = " ".join(texts)
        return next(word for word in text.replace("/", " ").split() if len(word) > 24)

    lost = Told().rows[kind][3]
    told = found(lambda _, rows: rows.pop(3))
    assert "acknowledged and not stored" in told and key(lost) in told
    told = found(lambda _, rows: rows.append(((1, 1, 0, 0), lost[1])))
    assert "stored twice" in told and key(lost) in told
    told = found(lambda _, rows: rows.insert(4, (lost[0], rows.pop(4)[1])))
    assert "share their place" in told

    def other(**changes):
        def change(told, rows):
            ledger = Ledger(changes.get("tag", 7))
            batch = ledger.batch(kind, 9)
            while batch.number < changes.get("batch", 0):
                batch = ledger.batch(kind, 9)
            batch.size = 1 << 10
            rows.append(stored_row(ledger.event(batch, changes.get("position", 0)), (1, 1, 0, 0)))

        return change

    half = KINDS.index(kind) * 4 + 3
    assert "never made" in found(other(tag=8))
    assert "never made" in found(other(batch=99))
    assert "never made" in found(other(batch=half, position=9))
    assert "only a part was ever sent" in found(other(batch=half, position=0))

    def alter(_, rows):
        place, texts = rows[2]
        index = {"captcha": 3, "hit": 2, "interaction": 4}[kind]
        rows[2] = place, (*texts[:index], "other", *texts[index + 1 :])

    assert "with other values" in found(alter)


def test_the_oracle_compares_every_report():
    told = Told()
    oracle = told.judge()
    answers = {
        "/v1/report?limit=50000": {
            "counters": [
                {"time": f"{day}T00:00:00", "site_id": site, "served": 0, "solved": 0, {"serve": "served", "solve": "solved"}[type_]: n}
                for (day, site, type_), n in oracle.captchas.items()
            ]
        },
        "/v2/report?limit=50000": {
            "counters": [
                {"time": f"{day}T00:00:00", "category": category, "name": name, "count": n}
                for (day, category, name), n in oracle.interactions.items()
            ]
        },
    }
    hours = {hour: (len(users), counts["click"], counts["impression"]) for hour, (users, counts) in oracle.hits.items()}

    def get(path):
        if path.startswith("/analytics"):
            return "unique_users,{}\nclicks,{}\nimpressions,{}\n".format(*hours.get(int(path.rpartition("=")[2]), (0, 0, 0)))
        return json.dumps(answers[path])

    oracle.check_reports(get)
    assert oracle.agrees(), list(oracle.differences.lines())
    assert sum(read_captchas(get).values()) == 22 and sum(read_interactions(get).values()) == 22
    assert sum(read_hits(get, HOUR)) > 0
    counters = answers["/v1/report?limit=50000"]["counters"]
    for falsify in (
        lambda: counters[0].update(served=counters[0]["served"] + 1),
        lambda: answers["/v2/report?limit=50000"]["counters"].pop(),
        lambda: hours.update({HOUR: (1, 1, 1)}),
        lambda: hours.update({HOUR - 3_600_000: (1, 1, 0)}),
    ):
        before = sum(oracle.differences.counts.values())
        falsify()
        oracle.check_reports(get)
        assert sum(oracle.differences.counts.values()) > before


def test_an_identity_tells_its_event():
    ledger = Ledger(random.getrandbits(64))
    for kind in KINDS:
        for _ in range(50):
            batch = ledger.batch(kind, random.randrange(1, 1000))
            position = random.randrange(batch.size)
            assert ledger.find(kind, ledger.number(batch, position)) == (batch, position)
            assert ledger.find(kind, ledger.number(batch, position) + (1 << 100)) is None
    assert len({scramble(number) for number in range(1000)}) == 1000


# The oracle on real tables, which are then falsified.


def test_the_oracle_finds_what_is_falsified_in_the_store(millrace, space):
    program = millrace("run", settings=SMALL_RANGES)
    ledger = Ledger(random.getrandbits(64))
    door = Proxy(f"127.0.0.1:{program.port}")
    load = Load(ledger, [door], "falsified", clients=2, rate=5000)
    load.start()
    harness.eventually(lambda: load.figures.answers[202] > 60, 60, what="60 acknowledged uploads")
    load.stop()
    assert not load.failed and not load.figures.unexpected, (load.failed, load.figures.unexpected)
    for kind in KINDS:
        wait_stored(space, kind=kind)

    def get(path):
        answer = program.get(path)
        assert answer.status == 200, answer.text
        return answer.text

    def judged():
        # Hits' answers are kept for less than a second: a falsified counter must show.
        return judge(ledger, space.store, space.database, get)

    assert judged().agrees(), list(judged().differences.lines())
    events, counters = f"{space.database}.captcha_events", f"{space.database}.captcha_counters"
    victim = space.store.rows(f"SELECT toString(correlation_id) AS id, toString(type) AS type FROM {events} LIMIT 1")[0]
    one = f"correlation_id = '{victim['id']}' AND type = '{victim['type']}'"
    backup = f"INSERT INTO {events} SELECT * EXCEPT (log_position), log_position + {{}} AS log_position FROM {events} WHERE {one}"
    space.store.query(backup.format(500_000))
    told = " ".join(judged().differences.lines())
    assert "stored twice" in told and victim["id"] in told, told
    space.store.query(f"ALTER TABLE {events} DELETE WHERE {one}", mutations_sync=1)
    told = " ".join(judged().differences.lines())
    assert "acknowledged and not stored" in told and victim["id"] in told and "the report of captchas" in told, told
    other = str(uuid.uuid4())
    space.store.query(f"INSERT INTO {events} SELECT * REPLACE (toUUID('{other}') AS correlation_id) FROM {events} LIMIT 1")
    told = " ".join(judged().differences.lines())
    assert "never made" in told and other in told, told
    space.store.query(
        f"INSERT INTO {counters} (log_generation, log_partition, day, site_id, served)"
        f" SELECT 0, 0, day, site_id, 5 FROM {counters} WHERE log_generation = 0 LIMIT 1"
    )
    assert sum(judged().differences.counts.values()) > 3
    door.close()
