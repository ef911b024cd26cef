"""Running the program: settings, check, migrate, verify, health, metrics, and how it ends."""

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
import time
import tomllib

import pytest
from captcha import Model, all_counters, becomes, counters, event, ndjson, new_id, take_event
from conftest import migrate
from harness import REPOSITORY, environment_without_settings, eventually, millrace_binary

# The program's own bound for an orderly end is 10 s; the rest is for a busy machine.
END_S = 14


def tell(space, *arguments, settings=None, timeout_s=60):
    """Runs a subcommand to its end; (status, standard output, standard error)."""
    environment = {**environment_without_settings(), **(space.settings() if space else {}), **(settings or {})}
    told = subprocess.run(
        [millrace_binary(), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    return told.returncode, told.stdout, told.stderr


def free_listen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return {"MILLRACE_HTTP_LISTEN": f"127.0.0.1:{server.getsockname()[1]}"}


# Settings.


def test_unknown_settings_are_refused_with_the_nearest_known_one(tmp_path):
    path = tmp_path / "millrace.toml"
    path.write_text("[http]\nlisten = '127.0.0.1:1'\nworker = 3\n\n[clickhose]\nurl = 'http://x'\n", encoding="utf-8")
    status, out, err = tell(None, "check", "--config", str(path))
    assert (status, out) == (2, "")
    assert f"{path}:3: http.worker: no such setting" in err and "http.workers" in err
    assert f"{path}:6: clickhose.url: no such setting" in err and "clickhouse.url" in err
    for name, nearest in (
        ("MILLRACE_HTTP_LISTN", "MILLRACE_HTTP_LISTEN"),
        ("MILLRACE_CLICKHOUSE_PASWORD", "MILLRACE_CLICKHOUSE_PASSWORD"),
        ("MILLRACE_KAFKA_BROKER", "MILLRACE_KAFKA_BROKERS"),
    ):
        status, out, err = tell(None, "run", settings={name: "secret-value"})
        assert (status, out) == (2, "") and name in err and nearest in err
        assert "secret-value" not in err
    for given, nearest in (("writer.range_age=5", "writer.range_age_ms"), ("listen=x", "http.listen")):
        status, out, err = tell(None, "run", "--set", given)
        assert (status, out) == (2, "") and given.split("=")[0] in err and nearest in err
    status, out, err = tell(None, "run", "--http-listn", "127.0.0.1:1")
    assert (status, out) == (2, "") and "--http-listen" in err
    status, _, err = tell(None, "rum")
    assert status == 2 and "run" in err


def test_every_mistake_is_told_at_once():
    settings = {"MILLRACE_HTTP_LISTEN": "nowhere", "MILLRACE_KAFKA_PARTITIONS": "0", "MILLRACE_LOG_FORMAT": "xml"}
    status, _, err = tell(None, "check", "--set", "http.body_bytes_max=32MiB", settings=settings)
    assert status == 2
    assert len(err.splitlines()) == 4
    assert "MILLRACE_HTTP_LISTEN" in err and "nowhere" in err
    assert "MILLRACE_KAFKA_PARTITIONS" in err and "from 1" in err
    assert "xml" in err and '"json"' in err
    assert "33554432" in err


@pytest.mark.parametrize("text", ["[http", "http = 1\n[http]\nworkers = 1\n", "\x00", "[http]\nworkers = \n"])
def test_a_file_that_is_no_toml_names_its_line(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    status, _, err = tell(None, "check", settings={"MILLRACE_CONFIG": str(path)})
    assert status == 2 and f"{path}:" in err


def test_a_file_that_cannot_be_read(tmp_path):
    status, _, err = tell(None, "run", "--config", str(tmp_path / "nowhere.toml"))
    assert status == 2 and "nowhere.toml" in err
    status, _, err = tell(None, "run", "--config", str(tmp_path))
    assert status == 2 and str(tmp_path) in err


def test_flags_override_the_environment_which_overrides_the_file(tmp_path):
    path = tmp_path / "millrace.toml"
    path.write_text("[http]\nworkers = 1\nconnections_max = 11\nack_ms_max = 9111\n", encoding="utf-8")
    settings = {"MILLRACE_HTTP_WORKERS": "2", "MILLRACE_HTTP_CONNECTIONS_MAX": "22"}
    arguments = ["check", "--show-config", "--config", str(path), "--http-workers", "3"]
    status, out, err = tell(None, *arguments, settings=settings)
    assert (status, err) == (0, "")
    shown = tomllib.loads(out)["http"]
    assert (shown["workers"], shown["connections_max"], shown["ack_ms_max"]) == (3, 22, 9111)
    assert re.search(r"workers = 3 +# --http-workers", out)
    assert re.search(r"connections_max = 22 +# MILLRACE_HTTP_CONNECTIONS_MAX", out)
    assert re.search(rf"ack_ms_max = 9111 +# {re.escape(str(path))}:4", out)
    # What is shown is a file that says the same.
    again = tmp_path / "again.toml"
    again.write_text(out, encoding="utf-8")
    status, shown_again, err = tell(None, "check", "--show-config", "--config", str(again))
    assert (status, err) == (0, "")
    assert tomllib.loads(shown_again) == tomllib.loads(out)


def test_the_example_file_equals_the_defaults():
    status, by_default, _ = tell(None, "check", "--show-config")
    assert status == 0
    status, by_example, err = tell(None, "check", "--show-config", "--config", str(REPOSITORY / "millrace.toml"))
    assert (status, err) == (0, "")
    assert tomllib.loads(by_example) == tomllib.loads(by_default)


SECRET = "correct-horse-battery"


@pytest.mark.parametrize("subcommand", ["run", "serve", "write", "check", "migrate", "verify"])
def test_secrets_are_never_printed(tmp_path, space, subcommand):
    """Wrong secrets in every place, at the most talkative level; whatever the program says holds none of them."""
    password = tmp_path / "password"
    password.write_text(SECRET, encoding="utf-8")
    settings = {
        **free_listen(),
        "MILLRACE_LOG_LEVEL": "trace",
        "MILLRACE_KAFKA_OPTIONS_SASL_PASSWORD": SECRET,
        "MILLRACE_KAFKA_OPTIONS_SSL_KEY_PASSWORD": SECRET,
    }
    for place in ({"MILLRACE_CLICKHOUSE_PASSWORD": SECRET}, {"MILLRACE_CLICKHOUSE_PASSWORD_FILE": str(password)}):
        environment = {**environment_without_settings(), **space.settings(), **settings}
        del environment["MILLRACE_CLICKHOUSE_PASSWORD"]
        process = subprocess.Popen(
            [millrace_binary(), subcommand],
            env={**environment, **place},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if subcommand in ("run", "serve", "write"):
            asked = http_get(settings["MILLRACE_HTTP_LISTEN"], "/health/ready")
            assert SECRET not in asked and SECRET not in http_get(settings["MILLRACE_HTTP_LISTEN"], "/metrics")
            process.terminate()
        said, _ = process.communicate(timeout=60)
        assert said and SECRET not in said
    for arguments in (["--help"], ["check", "--show-config"], ["check", "--offline"]):
        status, out, err = tell(space, *arguments, settings={**settings, "MILLRACE_CLICKHOUSE_PASSWORD": SECRET})
        assert status == 0 and SECRET not in out + err


def http_get(address, target):
    host, port = address.split(":")

    def ask():
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request("GET", target)
            return connection.getresponse().read().decode()
        except OSError as error:
            raise AssertionError(str(error)) from error
        finally:
            connection.close()

    return eventually(ask, 20, what=f"an answer from {address}")


def test_secrets_are_not_taken_from_flags_nor_shown_when_they_are_wrong(tmp_path):
    for given in (f"clickhouse.password={SECRET}", f"kafka.options.sasl.password={SECRET}"):
        status, out, err = tell(None, "check", "--set", given)
        assert status == 2 and SECRET not in out + err and "MILLRACE_" in err
    status, out, err = tell(None, "check", settings={"MILLRACE_CLICKHOUSE_URL": f"http://user:{SECRET}@127.0.0.1:1"})
    assert status == 2 and SECRET not in out + err
    path = tmp_path / "millrace.toml"
    path.write_text(f"[clickhouse]\npassword = ['{SECRET}']\n", encoding="utf-8")
    status, out, err = tell(None, "check", "--config", str(path))
    assert status == 2 and SECRET not in out + err
    path.write_text(f"[clickhouse]\npassword = '{SECRET}\n", encoding="utf-8")
    status, out, err = tell(None, "check", "--config", str(path))
    assert status == 2 and SECRET not in out + err


def test_every_subcommand_has_help():
    status, out, err = tell(None, "--help")
    assert (status, err) == (0, "")
    for subcommand in ("run", "serve", "write", "migrate", "check", "verify", "repair"):
        assert subcommand in out
        status, said, err = tell(None, subcommand, "--help")
        assert (status, err) == (0, "")
        assert "Examples:" in said and "Exit codes:" in said and f"millrace {subcommand}" in said
    status, out, _ = tell(None, "--version")
    assert status == 0 and re.fullmatch(r"millrace \d+\.\d+\.\d+\n", out)


# check.


def findings(out):
    """What `check` found: the worst state of each thing looked at."""
    found = {}
    for state, thing in (line.split()[:2] for line in out.splitlines()):
        if found.get(thing) != "FAIL":
            found[thing] = state
    return found


def test_check_says_what_is_missing_and_what_to_do(space):
    settings = free_listen()
    status, out, err = tell(space, "check", settings=settings)
    assert (status, err) == (1, "")
    assert findings(out) == {
        "config": "OK",
        "listen": "OK",
        "limits": "OK",
        "interaction": "OK",
        "kafka": "OK",
        "topic": "FAIL",
        "clickhouse": "OK",
        "schema": "FAIL",
    }
    assert all("run millrace migrate" in line for line in out.splitlines() if line.startswith("FAIL"))
    migrate(space)
    status, out, err = tell(space, "check", settings=settings)
    assert (status, err) == (0, "") and findings(out)["power"] == "WARN"
    assert {state for thing, state in findings(out).items() if thing != "power"} == {"OK"}
    assert f"{space.topic} has 1 replica: a power cut loses" in out and "flush.messages=1" in out
    # It changes nothing.
    assert space.store.value(f"SELECT count() FROM {space.database}.captcha_logs") == 0


def test_check_names_what_is_away_or_wrong(space):
    away = "127.0.0.1:1"
    settings = free_listen()
    status, out, _ = tell(space, "check", settings={**settings, "MILLRACE_KAFKA_BROKERS": away})
    assert status == 1 and findings(out)["kafka"] == "FAIL" and away in out and "kafka.brokers" in out
    assert findings(out)["clickhouse"] == "OK"
    status, out, _ = tell(space, "check", settings={**settings, "MILLRACE_CLICKHOUSE_URL": f"http://{away}"})
    assert status == 1 and findings(out)["clickhouse"] == "FAIL" and "clickhouse.url" in out
    status, out, _ = tell(space, "check", settings={**settings, "MILLRACE_CLICKHOUSE_PASSWORD": "wrong-one"})
    assert status == 1 and findings(out)["clickhouse"] == "FAIL" and "clickhouse.password" in out
    assert "wrong-one" not in out
    # --offline asks no server.
    status, out, _ = tell(space, "check", "--offline", settings={**settings, "MILLRACE_KAFKA_BROKERS": away})
    assert status == 0 and set(findings(out)) == {"config", "listen", "limits", "interaction"}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        status, out, _ = tell(space, "check", "--offline", "--http-listen", f"127.0.0.1:{port}")
        assert status == 1 and findings(out)["listen"] == "FAIL" and str(port) in out


def test_check_beside_a_running_one_is_fine(millrace, space):
    program = millrace("run")
    status, out, _ = tell(space, "check", "--http-listen", f"127.0.0.1:{program.port}")
    assert status == 0 and {state for thing, state in findings(out).items() if thing != "power"} == {"OK"}


def test_check_finds_a_topic_that_would_lose_events(space):
    migrate(space)
    space.log.delete_topics([space.topic])
    eventually(lambda: space.topic not in space.log.topics(), what="the topic to be gone")
    space.log.create_topic(space.topic, 4, **{"cleanup.policy": "compact"})
    status, out, _ = tell(space, "check", settings=free_listen())
    assert status == 1 and findings(out)["topic"] == "FAIL" and "cleanup.policy" in out


# migrate.


def tables(space):
    return {
        row["name"]: row["sql"]
        for row in space.store.rows(
            f"SELECT name, create_table_query AS sql FROM system.tables WHERE database = '{space.database}' "
            "AND name NOT LIKE 'schema_migrations_lock_%'"
        )
    }


def test_migrate_says_what_it_would_do_then_does_it_once(space):
    status, dry, err = tell(space, "migrate", "--dry-run")
    assert (status, err) == (0, "")
    assert "would apply sql/captcha/0001_events.sql" in dry and "CREATE TABLE" in dry and "would create the topic" in dry
    assert tables(space) == {} and space.topic not in space.log.topics()
    assert space.database not in space.store.query("SHOW DATABASES").split()

    status, out, err = tell(space, "migrate", "--set", "kafka.partitions=3")
    assert (status, err) == (0, "") and "applied sql/captcha/0001_events.sql" in out
    made = tables(space)
    assert {"captcha_events", "captcha_counters", "captcha_logs", "schema_migrations"} <= set(made)
    assert space.log.partitions(space.topic) == 3
    recorded = space.store.rows(f"SELECT * FROM {space.database}.schema_migrations ORDER BY kind, number")

    # The number of partitions is left as it is, and that is told.
    status, out, err = tell(space, "migrate")
    assert (status, err) == (0, "") and "all migrations are applied" in out and "3 partitions" in out
    status, out, err = tell(space, "migrate", "--dry-run")
    assert (status, err) == (0, "") and "would" not in out
    assert tables(space) == made and space.log.partitions(space.topic) == 3
    assert space.store.rows(f"SELECT * FROM {space.database}.schema_migrations ORDER BY kind, number") == recorded


def test_the_log_takes_records_from_whoever_has_a_wrong_clock(space):
    migrate(space)
    producer = space.log.producer(acks="all")
    refused = []
    for hours in (-10_000, 3, 10_000):
        at_ms = int((time.time() + hours * 3600) * 1000)
        producer.produce(space.topic, b"x", partition=0, timestamp=at_ms, on_delivery=lambda error, _: refused.append(error))
    assert producer.flush(10) == 0 and refused == [None] * 3
    # And keeps them by its own clock.
    assert all(abs(record.timestamp_ms - time.time() * 1000) < 60_000 for record in space.log.records(space.topic))


def test_a_topic_made_for_smaller_events_is_widened(space):
    migrate(space)
    space.log.delete_topics([space.topic])
    eventually(lambda: space.topic not in space.log.topics(), what="the topic to be gone")
    # As an earlier version made it.
    space.log.create_topic(space.topic, 4, **{"max.message.bytes": "1048588", "retention.ms": "604800001"})
    status, out, _ = tell(space, "check", settings=free_listen())
    assert status == 1 and findings(out)["topic"] == "FAIL"
    assert "takes records of 1048588 bytes" in out and "run millrace migrate" in out

    status, out, err = tell(space, "migrate", "--dry-run")
    raised = f"max.message.bytes of the topic {space.topic} from 1048588 to 1067008"
    assert (status, err) == (0, "") and f"would raise {raised}" in out
    assert space.log.topic_settings(space.topic)["max.message.bytes"] == "1048588"
    status, out, err = tell(space, "migrate")
    assert (status, err) == (0, "") and f"\nraised {raised}" in out
    # That setting alone.
    settings = space.log.topic_settings(space.topic)
    assert (settings["max.message.bytes"], settings["retention.ms"]) == ("1067008", "604800001")
    status, out, _ = tell(space, "check", settings=free_listen())
    assert status == 0 and findings(out)["topic"] == "OK"
    status, out, err = tell(space, "migrate")
    assert (status, err) == (0, "") and "raised" not in out

    # Larger events need more, smaller ones no less.
    settings = {"MILLRACE_HTTP_EVENT_BYTES_MAX": str(4 << 20)}
    status, out, _ = tell(space, "migrate", settings=settings)
    assert status == 0 and "to 4212736" in out
    status, out, _ = tell(space, "migrate")
    assert status == 0 and "raised" not in out


def test_many_migrate_at_once(space):
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(tell(space, "migrate"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in outcomes] == [0] * 4, outcomes
    rows = space.store.rows(f"SELECT count() AS times FROM {space.database}.schema_migrations GROUP BY kind, number")
    assert rows and all(row["times"] == 1 for row in rows)
    assert space.log.partitions(space.topic) == 4


def test_an_edited_migration_and_a_newer_database_are_refused(space):
    migrate(space)
    records = f"{space.database}.schema_migrations"
    space.store.query(
        f"ALTER TABLE {records} UPDATE checksum = 'edited' WHERE number = 2 SETTINGS mutations_sync = 1"
    )
    for arguments in (["migrate"], ["migrate", "--dry-run"]):
        status, _, err = tell(space, *arguments)
        assert status == 1 and "sql/captcha/0002_counters.sql was changed" in err
    status, out, _ = tell(space, "check", settings=free_listen())
    assert status == 1 and findings(out)["schema"] == "FAIL" and "0002_counters" in out
    space.store.query(f"ALTER TABLE {records} DELETE WHERE number = 2 SETTINGS mutations_sync = 1")
    space.store.query(f"INSERT INTO {records} (kind, number, name, checksum, version) VALUES ('captcha', 99, 'x', '', '9.9')")
    status, _, err = tell(space, "migrate")
    assert status == 1 and "99" in err and "9.9" in err


def test_migrate_while_something_is_away(space):
    status, _, err = tell(space, "migrate", settings={"MILLRACE_CLICKHOUSE_URL": "http://127.0.0.1:1"})
    assert status == 1 and "clickhouse cannot be reached" in err
    status, _, err = tell(space, "migrate", settings={"MILLRACE_KAFKA_BROKERS": "127.0.0.1:1"})
    assert status == 1 and "127.0.0.1:1" in err


# verify.


def test_verify_is_clean_and_finds_every_falsification(millrace, space):
    program = millrace("run")
    site = new_id()
    lines = [event(site_id=site, time=f"2021-01-{day:02}T00:00:00") for day in range(1, 21) for _ in range(10)]
    assert program.post("/v1/events", ndjson(lines + lines[:50])).status == 202
    becomes(program, site, 200)
    status, out, err = tell(space, "verify")
    assert (status, err) == (0, ""), out
    found = out.splitlines()
    assert found[0] == "captcha: 200 events, 20 counters, 0 differences"
    assert all(line.endswith(": 0 events, 0 counters, 0 differences") for line in found[1:])
    program.stop()

    def falsified(sql, *named):
        space.store.query(sql.replace("DB.", f"{space.database}."), mutations_sync=1)
        status, out, err = tell(space, "verify")
        assert (status, err) == (1, ""), (out, err)
        assert not any(line.startswith("captcha: ") and line.endswith(" 0 differences") for line in out.splitlines())
        for name in named:
            assert name in out, out
        return out

    insert = "INSERT INTO DB.captcha_counters (log_generation, log_partition, day, site_id, served, solved) VALUES "
    falsified(f"{insert} (0, 0, '2021-01-05', '{site}', 1, 0)", "2021-01-05", site, "served is 11", "10 in the events")
    other = new_id()
    falsified(f"{insert} (0, 0, '2021-02-01', '{other}', 0, 3)", "2021-02-01", other, "solved is 3")
    falsified("ALTER TABLE DB.captcha_events DELETE WHERE time = '2021-01-07 00:00:00'", "2021-01-07", "are stored")
    twice = "INSERT INTO DB.captcha_events SELECT * FROM DB.captcha_events WHERE time = '2021-01-09 00:00:00'"
    falsified(twice, "10 events are stored although", "2021-01-09")
    falsified(
        "ALTER TABLE DB.captcha_counters DELETE WHERE log_generation = 0 AND day = '2021-01-11'", "2021-01-11", "served is 0"
    )


def test_verify_that_cannot_be_done_is_no_success(space):
    status, out, err = tell(space, "verify", settings={"MILLRACE_CLICKHOUSE_URL": "http://127.0.0.1:1"})
    assert status == 1 and out == "" and "clickhouse" in err
    status, out, err = tell(space, "verify")
    assert status == 1 and "migrate" in err


def test_verify_runs_beside_a_load(millrace, space):
    program = millrace("run")
    stop = threading.Event()

    def load():
        while not stop.is_set():
            assert program.post("/v1/events", ndjson([event() for _ in range(200)])).status == 202

    thread = threading.Thread(target=load)
    thread.start()
    try:
        for _ in range(8):
            status, out, err = tell(space, "verify")
            assert (status, err) == (0, ""), out
    finally:
        stop.set()
        thread.join()


# Health and metrics.


def test_health_is_json_and_says_ready(millrace):
    program = millrace("run")
    live = program.get("/health/live")
    assert (live.status, live.json()) == (200, {"status": "live"})
    eventually(lambda: program.get("/health/ready").json() == {"status": "ready", "missing": []}, what="readiness")
    head = program.request("HEAD", "/health/ready")
    assert (head.status, head.body) == (200, b"")


def test_without_migrations_it_says_what_to_do(millrace, space):
    program = millrace("run", migrated=False, wait=False)

    def told():
        try:
            answer = program.get("/health/ready")
        except OSError as error:
            raise AssertionError(str(error)) from error
        assert answer.status == 503 and answer.json()["status"] == "not_ready"
        return all("run `millrace migrate`" in one["reason"] for one in answer.json()["missing"])

    eventually(told, 20, what="the advice")
    refused = program.post("/v1/events", event())
    assert refused.status == 503 and refused.headers["Retry-After"]
    assert program.get("/v1/report").status == 503
    eventually(lambda: "run `millrace migrate`" in program.log_text(), what="the advice in the log")
    # Once migrated, it goes on by itself.
    migrate(space)
    program.wait_ready()
    site = new_id()
    eventually(lambda: program.post("/v1/events", event(site_id=site)).status == 202, what="an event taken")
    becomes(program, site, 1, deadline_s=20)


def test_tables_alone_missing_is_told_too(millrace, space):
    space.log.create_topic(space.topic, 4)
    program = millrace("run", migrated=False, wait=False)

    def told():
        try:
            missing = program.get("/health/ready").json()["missing"]
        except OSError as error:
            raise AssertionError(str(error)) from error
        reasons = [one["reason"] for one in missing if "store" in one["stalled"]]
        return any("clickhouse" in reason and "run `millrace migrate`" in reason for reason in reasons)

    eventually(told, 20, what="the advice")


SAMPLE = re.compile(r'^[a-zA-Z_:][a-zA-Z0-9_:]*(\{([a-z_]+="([^"\\]|\\.)*",?)*\})? -?[0-9.eE+-]+(Inf|NaN)?$')


def test_metrics_are_prometheus_text_and_count(millrace):
    program = millrace("run")
    site = new_id()
    good = [event(site_id=site) for _ in range(20)]
    body = ndjson(good + good[:5]) + "{}\nnull\noops\n" + ndjson([event(site_id="x"), event(type="x"), event(time="x")])
    assert program.post("/v1/events", body).json()["accepted"] == 25
    assert program.post("/v1/events", "oops").status == 400
    becomes(program, site, 20)
    eventually(lambda: program.metric("millrace_events_stored_total", kind="captcha") == 20, what="20 stored")
    eventually(lambda: program.metric("millrace_events_duplicate_total", kind="captcha") == 5, what="5 duplicates")
    assert program.metric("millrace_events_accepted_total", kind="captcha") == 25
    codes = {"missing_field": 1, "not_an_object": 1, "bad_json": 2, "bad_uuid": 1, "bad_type": 1, "bad_time": 1}
    for code, count in codes.items():
        assert program.metric("millrace_events_rejected_total", code=code) == count, code
    requests = {"route": "/v1/events", "method": "POST"}
    assert program.metric("millrace_http_requests_total", **requests, status="202") == 1
    assert program.metric("millrace_http_requests_total", **requests, status="400") == 1
    assert program.metric("millrace_batch_events_sum") == 25
    assert program.metric("millrace_produce_duration_seconds_count") >= 1
    assert program.metric("millrace_insert_duration_seconds_count", table="captcha_events") >= 1
    assert program.metric("millrace_seen_keys") == 20
    assert program.metric("millrace_http_connections") == 1
    answer = program.get("/metrics")
    assert answer.status == 200
    lines = answer.text.splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in samples), [line for line in samples if not SAMPLE.match(line)]
    helped = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert helped and all(name.startswith(("millrace_", "process_")) for name in helped)
    assert "process_resident_memory_bytes" in answer.text
    # What a client makes up becomes no series.
    for path in ("/made/up", "/v1/report?x=1", "/%00"):
        program.get(path)
    program.request("MADEUP", "/v1/events")
    assert "made/up" not in program.get("/metrics").text and "MADEUP" not in program.get("/metrics").text


def test_rejected_events_are_logged_at_a_bounded_rate(millrace):
    program = millrace("run")
    start = time.monotonic()
    for _ in range(5):
        assert program.post("/v1/events", "{}\n" * 10_000).status == 422
    # One more, in a later second, tells how many were left out.
    eventually(
        lambda: program.post("/v1/events", "{}").status == 422 and '"left_out"' in program.log_text(),
        what="the number of rejected events that were not logged",
    )
    # Every line is one JSON object, and says each thing once.
    lines = [json.loads(line, object_pairs_hook=without_repetition) for line in program.log_text().splitlines()]
    logged = [line for line in lines if line["message"] == "event rejected"]
    assert 10 <= len(logged) <= 12 * (time.monotonic() - start + 2)
    assert logged[0]["code"] == "missing_field" and "time" in logged[0]["reason"]
    assert logged[0]["raw"] == "{}" and logged[0]["peer"].startswith("127.")
    assert program.metric("millrace_events_rejected_total", code="missing_field") >= 50_000


def without_repetition(pairs):
    assert len(dict(pairs)) == len(pairs), pairs
    return dict(pairs)


# The end.


class Load:
    """Clients that post one body after the other, each on a connection that it keeps, until they are refused."""

    def __init__(self, program, clients=4):
        self.program = program
        self.model = Model()
        self.posted = 0
        self.broken = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.program.port, timeout=30)
        while not self._stop.is_set():
            batch = [event() for _ in range(50)]
            try:
                connection.request("POST", "/v1/events", ndjson(batch))
                answer = connection.getresponse()
                status, _ = answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                with self._lock:
                    self.broken.append(error)
                break
            if status != 202:
                continue
            with self._lock:
                self.posted += 1
                for one in batch:
                    take_event(self.model, one)
        connection.close()

    def wait_posted(self, count):
        eventually(lambda: self.posted >= count, 30, what=f"{count} bodies acknowledged")

    def end(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_an_end_under_load_loses_nothing(millrace, space, signal_number):
    program = millrace("run")
    load = Load(program)
    load.wait_posted(20)
    start = time.monotonic()
    program.process.send_signal(signal_number)
    assert program.wait_end(END_S) == 0
    assert time.monotonic() - start < END_S
    load.end()
    assert "ended in order" in program.log_text()
    # Whoever had no answer was not in flight: the connection was closed between two requests, or refused.
    again = millrace("run")
    expected = load.model.report()

    def nothing_is_lost():
        found = {(row["time"], row["site_id"]): row for row in all_counters(again)}
        return all(found.get((row["time"], row["site_id"])) == row for row in expected)

    eventually(nothing_is_lost, 30, what="every acknowledged event in the report")
    status, out, _ = tell(space, "verify")
    assert status == 0, out


def test_a_request_in_flight_is_answered(millrace):
    """Its body is still on its way when the signal comes."""
    program = millrace("run")
    site = new_id()
    body = ndjson([event(site_id=site) for _ in range(100)]).encode()
    with program.connect() as connection:
        head = f"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(head + body[:1000])
        # The one that asks counts too.
        eventually(lambda: program.metric("millrace_http_connections") == 2, what="the connection")
        program.terminate()
        eventually(lambda: "ending" in program.log_text(), what="the end's beginning")
        connection.sendall(body[1000:])
        said = b""
        while piece := connection.recv(1 << 16):
            said += piece
    assert said.startswith(b"HTTP/1.1 202 ") and b'"accepted":100' in said and b"Connection: close" in said
    assert program.wait_end(END_S) == 0
    again = millrace("run")
    becomes(again, site, 100)


def test_idle_and_silent_connections_do_not_outlast_the_end(millrace):
    settings = {
        "MILLRACE_KAFKA_DELIVERY_MS_MAX": "1000",
        "MILLRACE_HTTP_ACK_MS_MAX": "2000",
        "MILLRACE_HTTP_SHUTDOWN_MS_MAX": "2000",
    }
    program = millrace("run", settings=settings)
    idle = [program.connect() for _ in range(20)]
    for connection in idle[:10]:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    idle[15].sendall(b"POST /v1/ev")
    idle[16].sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    program.terminate()
    assert program.wait_end(END_S) == 0
    for connection in idle:
        connection.close()


def test_it_ends_while_kafka_is_away(millrace, own_kafka, own_kafka_space):
    program = millrace("run", space=own_kafka_space)
    site = new_id()
    assert program.post("/v1/events", event(site_id=site)).status == 202
    becomes(program, site, 1)
    own_kafka.pause()
    # One request waits for Kafka when the signal comes.
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(program.post("/v1/events", event(site_id=site)).status))
    waiting.start()
    eventually(lambda: program.metric("millrace_batch_events_sum") >= 2, what="the event on its way")
    program.terminate()
    assert program.wait_end(END_S) == 0
    waiting.join()
    assert answers == [503]
    # The first start while Kafka is away, too.
    again = millrace("run", space=own_kafka_space, wait=False)
    eventually(lambda: "millrace is up" in again.log_text(), 20, what="the start")
    again.terminate()
    assert again.wait_end(END_S) == 0


def test_it_ends_while_clickhouse_is_away(millrace, own_clickhouse, own_clickhouse_space):
    program = millrace("run", space=own_clickhouse_space)
    site = new_id()
    assert program.post("/v1/events", event(site_id=site)).status == 202
    becomes(program, site, 1)
    own_clickhouse.pause()
    assert program.post("/v1/events", ndjson([event(site_id=site) for _ in range(100)])).status == 202
    program.terminate()
    assert program.wait_end(END_S) == 0
    again = millrace("run", space=own_clickhouse_space, wait=False)
    eventually(lambda: "millrace is up" in again.log_text(), 20, what="the start")
    again.terminate()
    assert again.wait_end(END_S) == 0
    own_clickhouse.resume()
    last = millrace("run", space=own_clickhouse_space)
    becomes(last, site, 101, deadline_s=40)
    assert tell(own_clickhouse_space, "verify")[0] == 0
    last.stop()


@pytest.mark.parametrize(("signal_number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(millrace, signal_number, status):
    program = millrace("run")
    with program.connect() as connection:
        # An orderly end would wait for this body.
        connection.sendall(b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        eventually(lambda: program.metric("millrace_http_connections") == 2, what="the connection")
        program.process.send_signal(signal_number)
        eventually(lambda: '"ending"' in program.log_text(), what="the end's beginning")
        start = time.monotonic()
        program.process.send_signal(signal_number)
        assert program.wait_end(END_S) == status
        assert time.monotonic() - start < 3


def test_a_taken_port_is_named(millrace, space):
    migrate(space)
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        status, out, err = tell(space, "run", settings={"MILLRACE_HTTP_LISTEN": listen})
    assert status == 1
    assert listen in out + err and "http.listen" in out + err


def test_roles_divide_the_work(millrace, space):
    """`serve` accepts and reports, `write` stores; each has health and metrics."""
    serve = millrace("serve")
    site = new_id()
    assert serve.post("/v1/events", event(site_id=site)).status == 202
    assert counters(serve, f"?site_id={site}") == []
    write = millrace("write")
    becomes(serve, site, 1)
    assert write.post("/v1/events", event()).status == 404
    assert write.get("/v1/report").status == 404
    eventually(lambda: write.metric("millrace_events_stored_total") == 1, what="one stored")
    assert serve.metric("millrace_events_accepted_total") == 1
