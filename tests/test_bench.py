"""The benchmark in tiny form, so that it does not rot. It checks by itself that the report shows what was sent."""

import json
import subprocess
import sys

import harness
import pytest


@pytest.mark.parametrize("kind", ["captcha", "interaction", "hit"])
def test_upload_in_tiny_form(kind, millrace, space, tmp_path):
    program = millrace("run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "millrace.pid").write_text(str(program.process.pid))
    password = tmp_path / "clickhouse.password"
    password.write_text(space.servers.clickhouse_password)
    command = [sys.executable, harness.REPOSITORY / "bench" / "upload.py", "--kind", kind]
    command += ["--events", "20000", "--seed", "7"]
    command += ["--url", program.url, "--clickhouse", space.servers.clickhouse_url]
    command += ["--clickhouse-user", space.servers.clickhouse_user, "--clickhouse-password-file", password]
    command += ["--clickhouse-database", space.database, "--pids", tmp_path / "run"]
    said = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    for row in ["acknowledged", "visible in the report", "ClickHouse, plain inserts", "visible / plain"]:
        assert row in said.stdout, said.stdout


def test_the_table_in_tiny_form(tmp_path):
    """Each line checks what it measures: that all events were acknowledged, stored, and shown by the report."""
    binaries = tmp_path / "binaries"
    binaries.mkdir()
    (binaries / "millrace").symlink_to(harness.millrace_binary())
    (binaries / "millrace-load").symlink_to(harness.load_binary())
    home = tmp_path / "var"
    home.mkdir()
    for shared in ("software", "venv"):
        (home / shared).symlink_to(harness.settings.var_dir() / shared)
    environment = {**harness.environment_without_settings(), "VAR_DIR": str(home), "BENCH_BINARIES": str(binaries)}
    command = [harness.REPOSITORY / "scripts" / "bench", "whole", "accepted", "reports", "resent", "recovery", "--tiny"]
    result = tmp_path / "bench.json"
    said = subprocess.run(
        [*command, "--json", result], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    lines = {row["line"]: row for row in json.loads(result.read_text())}
    for line in ["millrace", "ClickHouse, JSONEachRow", "accepted: millrace", "stored: millrace", "fresh: millrace", "resent: millrace"]:
        assert lines[line]["per_s"] > 0 and sum(lines[line]["cpu"].values()) > 0, lines[line]
        assert f"| {line} |" in said.stdout, said.stdout
    assert lines["whole at 0M: millrace"]["more"]["p99 ms"] > 0
    assert lines["start with its cache at 0M: millrace"]["more"]["seen keys"] > 0
    recovered = lines["kill -9 of everything: millrace"]["more"]
    assert 0 < recovered["Kafka up s"] <= recovered["writer at work s"] <= recovered["complete s"] < 60, recovered
    assert recovered["unread"] > 0
