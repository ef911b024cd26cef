"""The scripts as a user runs them: what they start, find, leave alone and say."""

import http.client
import os
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from harness import (
    REPOSITORY,
    Store,
    environment_without_settings,
    eventually,
    millrace_binary,
    ports,
    settings,
    software,
)
from process import Process

SCRIPTS = REPOSITORY / "scripts"
NAMES = ("millrace", "kafka", "clickhouse")


class Installation:
    """A folder for scripts/up to work in, with ports of its own; what was fetched already is shared."""

    def __init__(self, home, *, with_software=True):
        self.home = home
        home.mkdir()
        if with_software:
            (settings.var_dir() / "software").mkdir(parents=True, exist_ok=True)
            (home / "software").symlink_to(settings.var_dir() / "software")
        self.ports = {
            name: ports.pick_free() for name in ("KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "CLICKHOUSE_PORT", "HTTP")
        }
        self.environment = {
            **environment_without_settings(),
            **{name: str(port) for name, port in self.ports.items() if name != "HTTP"},
            "MILLRACE_HTTP_LISTEN": f"127.0.0.1:{self.ports['HTTP']}",
            "VAR_DIR": str(home),
            "UP_BINARY": str(millrace_binary()),
        }

    def begin(self, script, **environment):
        return subprocess.Popen(
            [SCRIPTS / script],
            cwd="/",
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, **environment):
        begun = self.begin(script, **environment)
        out, err = begun.communicate(timeout=120)
        return subprocess.CompletedProcess(begun.args, begun.returncode, out, err)

    def succeed(self, script, **environment):
        done = self.run(script, **environment)
        logs = "".join(
            f"\n--- {log.name}\n{log.read_text(errors='replace')[-3000:]}"
            for log in sorted((self.home / "log").glob("*.log"))
        )
        assert done.returncode == 0, f"{done.stdout}{done.stderr}{logs}"
        return done

    def pids(self):
        return {name: int((self.home / "run" / f"{name}.pid").read_text()) for name in NAMES}

    def store(self):
        return Store(
            f"http://127.0.0.1:{self.ports['CLICKHOUSE_PORT']}",
            "millrace",
            (self.home / "clickhouse.password").read_text(),
        )

    def ready_status(self):
        with closing(http.client.HTTPConnection("127.0.0.1", self.ports["HTTP"], timeout=10)) as connection:
            connection.request("GET", "/health/ready")
            return connection.getresponse().status


@pytest.fixture
def installation(tmp_path):
    """An installation in a folder whose name has a blank and a letter beyond ASCII."""
    made = Installation(tmp_path / "vår dir")
    yield made
    made.run("down")


def is_one_line(text):
    return len(text.splitlines()) == 1


def is_living(pid):
    """Whether the process lives; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# A whole life: up, up again, crashes, down.


def test_up_brings_back_what_is_missing_and_nothing_else(installation):
    done = installation.succeed("up")
    assert "/v1/events" in done.stdout and "/v1/report" in done.stdout and "scripts/down" in done.stdout
    first = installation.pids()
    assert installation.ready_status() == 200
    installation.store().query("CREATE DATABASE kept")
    installation.store().query("CREATE TABLE kept.numbers (n UInt64) ENGINE = MergeTree ORDER BY n")
    installation.store().query("INSERT INTO kept.numbers SELECT number FROM numbers(1000)")

    # Two at once, when all is up.
    both = [installation.begin("up"), installation.begin("up")]
    for run in both:
        out, err = run.communicate(timeout=60)
        assert run.returncode == 0, out + err
        assert "nothing to do" in out
    assert installation.pids() == first

    for name in NAMES:
        before = installation.pids()
        os.kill(before[name], signal.SIGKILL)
        eventually(lambda pid=before[name]: not is_living(pid))
        installation.succeed("up")
        after = installation.pids()
        assert after[name] != before[name]
        assert {other: after[other] for other in NAMES if other != name} == {
            other: before[other] for other in NAMES if other != name
        }
    assert installation.store().value("SELECT count() FROM kept.numbers") == 1000

    for pid in installation.pids().values():
        os.kill(pid, signal.SIGKILL)
    installation.succeed("up")
    assert installation.ready_status() == 200
    assert installation.store().value("SELECT count() FROM kept.numbers") == 1000

    last = installation.pids()
    installation.succeed("down")
    assert not any(is_living(pid) for pid in last.values())
    assert all(ports.is_free(port) for port in installation.ports.values())
    assert "nothing was running" in installation.succeed("down").stdout


def test_up_restarts_only_millrace_when_its_settings_change(installation):
    installation.succeed("up")
    before = installation.pids()
    installation.ports["HTTP"] = ports.pick_free()
    done = installation.succeed("up", MILLRACE_HTTP_LISTEN=f"127.0.0.1:{installation.ports['HTTP']}")
    assert "restarting millrace: MILLRACE_HTTP_LISTEN changed" in done.stdout
    after = installation.pids()
    assert after["millrace"] != before["millrace"]
    assert (after["kafka"], after["clickhouse"]) == (before["kafka"], before["clickhouse"])
    assert installation.ready_status() == 200


def test_given_servers_are_used_and_none_started(installation, space):
    given = space.settings()
    installation.succeed("up", **given)
    assert installation.ready_status() == 200
    assert sorted(path.name for path in (installation.home / "run").glob("*.pid")) == ["millrace.pid"]


# What goes wrong is one line.


@pytest.mark.parametrize("name", ["KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "CLICKHOUSE_PORT", "MILLRACE_HTTP_LISTEN"])
def test_a_taken_port_is_one_line_and_starts_nothing(installation, name):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = installation.run("up", **{name: f"127.0.0.1:{port}" if name.startswith("MILLRACE") else str(port)})
    assert done.returncode == 1
    assert is_one_line(done.stderr), done.stderr
    assert str(port) in done.stderr and name in done.stderr and str(os.getpid()) in done.stderr
    assert not list(installation.home.glob("run/*"))


@pytest.mark.parametrize("name", ["KAFKA_PORT", "CLICKHOUSE_PORT"])
@pytest.mark.parametrize("text", ["0", "65536", "abc", "-1"])
def test_a_malformed_port_is_one_line(installation, name, text):
    done = installation.run("up", **{name: text})
    assert done.returncode == 1 and is_one_line(done.stderr) and name in done.stderr, done.stderr


def folder_of_tools(folder, **tools):
    """A folder for the PATH with Python and small shell scripts."""
    folder.mkdir()
    (folder / "python3").symlink_to(os.path.realpath("/proc/self/exe"))
    for name, text in tools.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_a_missing_tool_is_one_line(installation, tmp_path):
    environment = {"PATH": folder_of_tools(tmp_path / "bin")}
    installation.environment.pop("JAVA_HOME", None)
    done = installation.run("up", **environment)
    assert done.returncode == 1
    assert is_one_line(done.stderr) and "openjdk" in done.stderr, done.stderr


@pytest.mark.parametrize("tool, title", [("mvn", "Kafka"), ("npm", "ClickHouse")])
def test_a_failed_download_is_one_line_and_leaves_nothing_half_done(tmp_path, tool, title):
    installation = Installation(tmp_path / "var", with_software=False)
    # What is not under test seems to be there.
    for name in software.CHDB_VERSION, software._kafka_folder(installation.home)[1]:
        title_of = f"clickhouse-{name}" if name == software.CHDB_VERSION else f"kafka-{name}"
        if title.lower() not in title_of:
            (installation.home / "software" / title_of).mkdir(parents=True)
    failing = folder_of_tools(tmp_path / "bin", **{tool: "echo no route to the registry; exit 1"})
    given = (
        {"MILLRACE_KAFKA_BROKERS": "127.0.0.1:1"}
        if tool == "npm"
        else {"MILLRACE_CLICKHOUSE_URL": "http://127.0.0.1:1"}
    )
    done = installation.run("up", PATH=f"{failing}:{os.environ['PATH']}", **given)
    assert done.returncode == 1
    assert (
        is_one_line(done.stderr)
        and "could not fetch" in done.stderr
        and str(installation.home / "log" / "setup.log") in done.stderr
    ), done.stderr
    assert "no route to the registry" in (installation.home / "log" / "setup.log").read_text()
    assert not [path for path in (installation.home / "software").iterdir() if title.lower() in path.name.lower()]


def test_a_server_that_does_not_come_up_is_one_line(installation):
    data = installation.home / "clickhouse" / "data"
    data.parent.mkdir(parents=True)
    data.write_text("a file where a folder must be")
    done = installation.run("up", MILLRACE_KAFKA_BROKERS="127.0.0.1:1")
    assert done.returncode != 0
    assert is_one_line(done.stderr) and str(data) in done.stderr, done.stderr


@pytest.mark.parametrize("script", ["up", "down", "test", "load"])
def test_help(script):
    done = subprocess.run([SCRIPTS / script, "--help"], capture_output=True, text=True, check=True)
    assert f"usage: scripts/{script}" in done.stdout and "VAR_DIR" in done.stdout


# Processes of others.


def test_down_leaves_a_reused_process_id_alone(installation):
    with subprocess.Popen(["sleep", "100"]) as stranger:
        try:
            process = Process("kafka", installation.home / "run")
            process.pid_path.parent.mkdir()
            process.pid_path.write_text(f"{stranger.pid}\n")
            # As after a reboot: the id is in use again, by a process that started at another time.
            process.state_path.write_text(f'{{"pid": {stranger.pid}, "start_time": 1, "boot": "another"}}')
            assert process.pid is None
            assert "nothing was running" in installation.succeed("down").stdout
            assert stranger.poll() is None
        finally:
            stranger.kill()


# ClickHouse under its host.


def test_the_host_restarts_its_engine(own_clickhouse):
    store = Store(own_clickhouse.url, own_clickhouse.user, own_clickhouse.password)
    store.query("CREATE DATABASE kept")
    store.query("CREATE TABLE kept.numbers (n UInt64) ENGINE = MergeTree ORDER BY n")
    store.query("INSERT INTO kept.numbers SELECT number FROM numbers(1000)")
    host, (engine,) = own_clickhouse.server.process.pid, own_clickhouse.engine_pids()
    if host == engine:
        pytest.skip("an installed ClickHouse server runs without the host")
    os.kill(engine, signal.SIGKILL)
    eventually(lambda: not is_living(engine))

    def answers():
        try:
            return store.value("SELECT count() FROM kept.numbers") == 1000
        except OSError:
            return False

    eventually(answers, 20)
    assert own_clickhouse.server.process.pid == host
    assert own_clickhouse.engine_pids() != [engine]
    assert "was ended by signal 9" in own_clickhouse.server.log.read_text()


def test_killing_the_host_ends_its_engine(own_clickhouse):
    store = Store(own_clickhouse.url, own_clickhouse.user, own_clickhouse.password)
    store.query("CREATE DATABASE kept")
    engines = own_clickhouse.engine_pids()
    own_clickhouse.kill()
    eventually(lambda: not any(is_living(pid) for pid in engines))
    own_clickhouse.start()
    assert store.value("SELECT count() FROM system.databases WHERE name = 'kept'") == 1


def test_the_host_ends_on_sigterm(own_clickhouse):
    engines = own_clickhouse.engine_pids()
    began = time.monotonic()
    assert own_clickhouse.server.stop() == signal.SIGTERM
    assert time.monotonic() - began < 10
    assert not any(is_living(pid) for pid in engines)


def test_only_the_owner_reads_secrets_and_data(own_clickhouse):
    home = own_clickhouse.server.home
    for path in home / "clickhouse.password", home / "clickhouse" / "users.xml", home / "clickhouse" / "data":
        assert path.stat().st_mode & 0o077 == 0, path
    assert len(own_clickhouse.password) >= 24


def test_the_password_is_needed(own_clickhouse):
    secret_file = own_clickhouse.server.password_path
    for user, password in [("millrace", ""), ("millrace", "wrong"), ("default", "")]:
        with pytest.raises(RuntimeError, match="AUTHENTICATION_FAILED|QUOTA_EXCEEDED"):
            Store(own_clickhouse.url, user, password).query("SELECT count() FROM system.tables")
    # Users that may read what the process may read would make its files everybody's.
    reading = f"SELECT * FROM file('{secret_file}', 'LineAsString', 'line String')"
    with pytest.raises(RuntimeError, match="QUOTA_EXCEEDED|ACCESS_DENIED|AUTHENTICATION_FAILED"):
        Store(own_clickhouse.url, "default", "").query(reading)
    with pytest.raises(RuntimeError, match="ACCESS_DENIED"):
        Store(own_clickhouse.url, own_clickhouse.user, own_clickhouse.password).query(reading)


def test_an_old_installed_clickhouse_is_passed_over(tmp_path, monkeypatch):
    old = folder_of_tools(
        tmp_path / "old", **{"clickhouse-server": "echo ClickHouse server version 18.16.1 revision 54412."}
    )
    new = folder_of_tools(tmp_path / "new", clickhouse="echo 'ClickHouse server version 26.7.3.1 (official build).'")
    monkeypatch.setenv("PATH", old)
    assert software.find_clickhouse() is None
    monkeypatch.setenv("PATH", f"{old}:{new}")
    assert software.find_clickhouse() == Path(new) / "clickhouse"
