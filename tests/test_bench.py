"""The benchmark in tiny form, so that it does not rot. It checks by itself that the report shows what was sent."""

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
