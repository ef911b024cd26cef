"""The load generator against the program: what it says it sent is there, and it notices when it is not."""

import json
import os
import signal
import subprocess
import threading
import time
import xml.etree.ElementTree

import captcha
import hit
import pytest
from harness import REPOSITORY, environment_without_settings, eventually, load_binary, ports

END_S = 120


class Load:
    """One run of the load generator."""

    def __init__(self, folder, url, mode, *arguments):
        self.prefix = folder / f"load-{time.monotonic_ns()}"
        command = [load_binary(), mode, "--url", url, "--out", self.prefix, *arguments]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder
        )
        self.out, self.err, self.progress = "", "", threading.Event()
        self.readers = [threading.Thread(target=self.read_out), threading.Thread(target=self.read_err)]
        for reader in self.readers:
            reader.start()

    def read_out(self):
        for line in self.process.stdout:
            self.out += line

    def read_err(self):
        for line in self.process.stderr:
            self.err += line
            self.progress.set()

    def under_way(self):
        """Waits until a second of it is over."""
        assert self.progress.wait(END_S), self.out + self.err
        return self

    def end(self, status):
        """Waits for its end, which must have that status; what it wrote as JSON, if it did."""
        found = self.process.wait(END_S)
        for reader in self.readers:
            reader.join()
        assert found == status, f"status {found}:\n{self.out}{self.err}"
        path = self.prefix.with_suffix(".json")
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def load(tmp_path):
    """Starts the load generator on a program: `load(program, "single", "--events", 100)`."""
    started = []

    def start(program, mode, *arguments):
        url = program if isinstance(program, str) else program.url
        started.append(Load(tmp_path, url, mode, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.end(-signal.SIGKILL)


def streams(told):
    return told["phases"][0]["streams"]


def all_counted(program):
    """Everything that the report of captchas counts."""
    return sum(row["served"] + row["solved"] for row in captcha.all_counters(program))


# A comparison sends 1,024 events of its own for each pass.
PROBES = 1024
ODD = ("--duplicates", 0.1, "--late", 0.1, "--bad", 0.05, "--sites", 7, "--days", 3)


@pytest.mark.parametrize(
    "mode, arguments, sent, passes",
    [
        ("single", ("--events", 400, "--connections", 8, *ODD), 400, 1),
        ("single", ("--events", 300, "--rate", 2000, "--threads", 2, *ODD), 300, 1),
        ("single", ("--events", 200, "--encoding", "gzip", "--event-bytes", 500, *ODD), 200, 1),
        ("bulk", ("--events", 4000, "--lines", 500, *ODD), 4000, 1),
        ("bulk", ("--events", 4000, "--lines", 500, "--passes", 3, *ODD), 4000, 3),
        ("bulk", ("--events", 4000, "--lines", 500, "--rate", 20000, "--encoding", "zstd", *ODD), 4000, 1),
        ("bulk", ("--events", 4000, "--lines", 500, "--encoding", "gzip", "--passes", 2, *ODD), 4000, 2),
    ],
)
def test_captchas_are_there(mode, arguments, sent, passes, load, millrace):
    program = millrace("run")
    run = load(program, mode, *arguments, "--verify")
    told = run.end(0)
    assert len(told["phases"]) == passes
    for phase in told["phases"]:
        (stream,) = phase["streams"].values()
        assert (stream["requests_failed"], stream["requests_unsent"], stream["events_sent"]) == (0, 0, sent), told
        assert stream["events_accepted"] + stream["events_rejected"] == sent
        assert stream["events_rejected"] > 0
        assert stream["latency_ms"]["count"] == stream["requests_answered"] == stream["requests_sent"]
        assert phase["visible_s"] > 0 and phase["own_cpu_s"] > 0
    found = told["verify"]
    assert (found["agrees"], found["events_uncertain"], found["differing"]) == (True, 0, 0)
    # Counted from outside: nothing else is in this report.
    assert 0 < found["events_acknowledged"] < sent
    assert all_counted(program) == found["events_acknowledged"] + passes * PROBES
    assert "verified:" in run.out and "p99.99" in run.out


def test_mixed_keeps_its_histograms_apart(load, millrace):
    run = load(
        millrace("run"), "mixed", "--rate", 300, "--bulk-rate", 20000, "--lines", 100, "--duration", "2s", "--verify"
    )
    told = run.end(0)
    assert told["verify"]["agrees"]
    assert set(streams(told)) == {"single", "bulk"}
    assert all(stream["latency_ms"]["count"] > 0 for stream in streams(told).values())
    log = run.prefix.with_suffix(".hlog").read_text()
    assert log.startswith("#[Histogram log format version 1.3]\n")
    assert "\nTag=single," in log and "\nTag=bulk," in log
    plot = xml.etree.ElementTree.parse(run.prefix.with_suffix(".svg")).getroot()
    assert len(plot.findall("{http://www.w3.org/2000/svg}polyline")) == 2


@pytest.mark.parametrize("what, tags", [("mix", {"whole", "site"}), ("whole", {"whole"}), ("site", {"site"})])
def test_reports_are_read(what, tags, load, module_program):
    run = load(module_program, "report", "--prepare", 2000, "--events", 100, "--reads", what, "--sites", 20, "--verify")
    told = run.end(0)
    answered = {tag: stream["requests_answered"] for tag, stream in streams(told).items()}
    assert sum(answered.values()) == 100
    assert {tag for tag, count in answered.items() if count} == tags
    assert told["verify"]["agrees"] and told["verify"]["events_acknowledged"] == 2000
    # What is there already can be read as well.
    assert load(module_program, "report", "--events", 10).end(0)["verify"] is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("--events", 500, "--reads", 0.2, "--duplicates", 0.1),
        ("--events", 500, "--no-ids"),
        ("--events", 4000, "--form", "ndjson", "--lines", 500, "--connections", 4, "--duplicates", 0.1),
    ],
)
def test_hits_are_there(arguments, load, module_program):
    # Those of others must not matter.
    hit.hit(module_program, hit.event(timestamp=int(time.time() * 1000)))
    run = load(module_program, "hits", *arguments, "--late", 0.1, "--bad", 0.02, "--users", 50, "--hours", 3, "--verify")
    told = run.end(0)
    events = streams(told)["hits"]
    assert events["events_accepted"] > 0 and events["events_rejected"] > 0 and events["requests_failed"] == 0
    assert told["verify"]["agrees"], told["verify"]
    if "--reads" in arguments:
        assert streams(told)["reads"]["requests_answered"] == 100


@pytest.fixture(scope="module")
def module_program(module_millrace):
    return module_millrace("run")


def test_an_event_of_somebody_else_is_noticed(load, module_program):
    same = ("--events", 500, "--sites", 4, "--days", 2, "--seed", 5, "--run-id", 6, "--last-day", "2021-01-25", "--verify")
    first = load(module_program, "single", *same).end(0)
    # The same seed and run id make the same events: nothing new.
    second = load(module_program, "single", *same).end(0)
    assert first["verify"]["events_acknowledged"] == second["verify"]["events_acknowledged"] == 500

    # One of the sites that only this run knows; its counters are as large as they should be.
    before = {row["site_id"] for row in captcha.all_counters(module_program)}
    load(module_program, "single", "--events", 50, "--sites", 1, "--seed", 7, "--run-id", 8, "--days", 1, "--verify").end(0)
    new = [
        row
        for row in captcha.all_counters(module_program)
        if row["site_id"] not in before and row["served"] + row["solved"] == 50
    ]
    site, day = new[0]["site_id"], new[0]["time"][:10]
    extra = captcha.event(site_id=site, time=f"{day}T00:00:00")
    assert module_program.post("/v1/events", extra).status == 202
    eventually(lambda: captcha.of_site(module_program, site)[0] == new[0]["served"] + 1)

    run = load(module_program, "single", "--events", 50, "--sites", 1, "--seed", 7, "--run-id", 8, "--days", 1, "--verify")
    told = run.end(1)
    (difference,) = told["verify"]["differences"]
    assert site in difference["counter"] and "served" in difference["counter"]
    assert difference["found"] == difference["at_most"] + 1 == new[0]["served"] + 1
    assert f"differs: site {site}" in run.out and "differs from what was sent in 1 of 2 counters" in run.err


def test_events_that_are_never_stored_are_noticed(load, millrace):
    # Nothing writes.
    run = load(millrace("serve"), "bulk", "--events", 100, "--verify", "--verify-wait", "1s")
    told = run.end(1)
    assert not told["verify"]["agrees"]
    assert "the report does not show what was sent" in run.err and "--verify-wait" in run.err
    assert "202: 1" in run.out


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://[2001:db8::1]", "http://0.0.0.0:8000"])
def test_other_machines_are_refused(url, load):
    run = load(url, "single", "--events", 1)
    assert run.end(2) is None
    assert "--allow-remote" in run.err and run.out == ""


def test_a_server_that_is_not_there_is_one_line(load):
    run = load(f"http://127.0.0.1:{ports.pick_free()}", "single", "--events", 1)
    run.end(1)
    assert len(run.err.splitlines()) == 1 and "refused" in run.err and "scripts/up" in run.err, run.err


def test_a_server_that_ends_in_the_middle(load, millrace):
    program = millrace("run")
    run = load(program, "single", "--duration", "10m", "--warm-up", 0, "--connections", 4).under_way()
    program.kill()
    told = run.end(1)
    assert "cannot be reached any more" in run.err and "refused" in run.err, run.err
    # What was measured until then is told all the same.
    assert streams(told)["single"]["requests_answered"] > 0 and "p99.99" in run.out
    assert streams(told)["single"]["errors"]["cut"] > 0 and streams(told)["single"]["errors"]["connect"] > 0


def test_what_was_not_acknowledged_may_be_there_or_not(load, millrace):
    program = millrace("run")
    arguments = ("--rate", 500, "--duration", "8s", "--warm-up", 0, "--connections", 16, "--tolerate-errors", "--verify")
    run = load(program, "single", *arguments).under_way()
    program.kill()
    program.start().wait_ready()
    told = run.end(0)
    found, stream = told["verify"], streams(told)["single"]
    assert found["agrees"] and found["events_acknowledged"] > 0
    assert found["events_uncertain"] == stream["requests_failed"] - stream["errors"].get("connect", 0)
    counted = all_counted(program) - PROBES
    assert found["events_acknowledged"] <= counted <= found["events_acknowledged"] + found["events_uncertain"]


def test_a_stall_shows_in_all_that_was_due_in_it(load, millrace):
    program = millrace("run")
    # Two connections: two slow answers are all that a closed loop would see.
    run = load(program, "single", "--rate", 100, "--duration", "5s", "--connections", 2, "--verify").under_way()
    program.pause()
    time.sleep(2)
    program.resume()
    told = run.end(0)
    stream = streams(told)["single"]
    # 200 of the 500 requests were due in the stall, and half of them at least a second before its end.
    assert stream["latency_ms"]["max"] >= 1900
    assert stream["latency_ms"]["p90"] >= 1000
    assert told["verify"]["agrees"]


def test_an_interrupted_run_tells_what_it_has_come_to(load, millrace):
    program = millrace("run")
    run = load(program, "bulk", "--duration", "10m", "--lines", 100, "--rate", 10000, "--verify").under_way()
    run.process.send_signal(signal.SIGINT)
    told = run.end(130)
    assert told["phases"][0]["interrupted"] and told["verify"]["agrees"]
    assert "interrupted" in run.err and "verified:" in run.out
    assert all_counted(program) == told["verify"]["events_acknowledged"] + PROBES


def test_refused_requests_fail_the_run(load, millrace):
    # Enough for the comparison's own events, and not for these.
    program = millrace("run", settings={"MILLRACE_HTTP_BODY_BYTES_MAX": "200000", "MILLRACE_HTTP_EVENT_BYTES_MAX": "1000"})
    run = load(program, "bulk", "--events", 4000, "--lines", 2000)
    told = run.end(1)
    stream = streams(told)["bulk"]
    assert stream["errors"] == {"status": 2} and stream["statuses"] == {"413": 2}
    assert "413" in run.err and "content_too_large" in run.err, run.err
    tolerant = load(program, "bulk", "--events", 4000, "--lines", 2000, "--tolerate-errors", "--verify").end(0)
    assert tolerant["verify"]["agrees"] and tolerant["verify"]["events_acknowledged"] == 0


# The script.


def script(home, *arguments, **environment):
    return subprocess.run(
        [REPOSITORY / "scripts" / "load", *arguments],
        env={**environment_without_settings(), "VAR_DIR": str(home), "LOAD_BINARY": str(load_binary()), **environment},
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
        cwd="/",
    )


def test_the_script_runs_all_and_keeps_results(millrace, tmp_path):
    program, home = millrace("run"), tmp_path / "var"
    arguments = ("all", "--duration", "1s", "--warm-up", "0s", "--seed", "3")
    done = script(home, *arguments, MILLRACE_HTTP_LISTEN=f"127.0.0.1:{program.port}")
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {f"{run}.{kind}" for run in ("single", "bulk", "mixed", "report", "hits") for kind in ("hlog", "svg", "json")}
    assert set(os.listdir(home / "load")) == wanted
    assert done.stdout.count("verified:") == 5


def test_the_script_loads_only_what_it_is_told(tmp_path):
    done = script(tmp_path / "var", "single")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "scripts/up" in done.stderr
    done = script(tmp_path / "var", "singel")
    assert done.returncode == 1 and "single, bulk, mixed, report, hits or all" in done.stderr
