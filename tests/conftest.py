"""The fixtures: the servers of this run, a space of one's own on them, and the program.

A test that uses `millrace` gets a fresh, migrated space, and ends with every process it started having been asked to
stop and having ended with status 0, unless it ended them itself. Their logs are shown when it fails.
"""

import subprocess
from dataclasses import replace

import pytest
from harness import Millrace, OwnClickHouse, OwnKafka, Servers, Space, environment_without_settings, millrace_binary
from once import Sent

MIGRATE_S = 60


@pytest.fixture(scope="session")
def servers():
    """The Kafka and ClickHouse of this run."""
    return Servers.from_environment()


@pytest.fixture
def space(servers):
    """Names of the test's own on the servers, not migrated."""
    own = Space(servers)
    yield own
    own.remove()


@pytest.fixture(scope="module")
def module_space(servers):
    """As `space`, for all tests of a module."""
    own = Space(servers)
    yield own
    own.remove()


@pytest.fixture
def millrace(request, tmp_path, space):
    """Starts the program: `millrace("run")`, with `failpoints="name=exit(9)"`, `settings={"MILLRACE_...": "..."}`,
    `space=other`, `wait=False` (do not wait for readiness), `migrated=False` (do not migrate first)."""
    yield from _programs(request, tmp_path, space)


@pytest.fixture(scope="module")
def module_millrace(request, tmp_path_factory, module_space):
    """As `millrace`, on the module's space; its processes live until the module's end."""
    yield from _programs(request, tmp_path_factory.mktemp("millrace"), module_space)


@pytest.fixture
def sent():
    """What the test's clients know of what they sent."""
    return Sent()


@pytest.fixture(scope="module")
def module_kafka(tmp_path_factory):
    """A Kafka of the module's own, for tests that stop it and leave it running: its start takes seconds."""
    own = OwnKafka(tmp_path_factory.mktemp("own-kafka"))
    yield own.start()
    own.stop()


@pytest.fixture
def lent_kafka(module_kafka):
    """The module's Kafka, running when the test begins and when it has ended."""
    if module_kafka.server.process.pid is None:
        module_kafka.start()
    yield module_kafka
    module_kafka.resume()


@pytest.fixture
def own_kafka(tmp_path):
    """A Kafka of the test's own, started."""
    own = OwnKafka(tmp_path / "own-kafka")
    yield own.start()
    own.resume()
    own.stop()


@pytest.fixture
def own_clickhouse(tmp_path):
    """A ClickHouse of the test's own, started."""
    own = OwnClickHouse(tmp_path / "own-clickhouse")
    yield own.start()
    own.resume()
    own.stop()


@pytest.fixture
def own_kafka_space(servers, own_kafka):
    """A space on a Kafka of the test's own and the run's ClickHouse."""
    own = Space(replace(servers, kafka_brokers=own_kafka.brokers))
    yield own
    own.remove_database()


@pytest.fixture
def own_clickhouse_space(servers, own_clickhouse):
    """A space on the run's Kafka and a ClickHouse of the test's own."""
    own = Space(
        replace(
            servers,
            clickhouse_url=own_clickhouse.url,
            clickhouse_user=own_clickhouse.user,
            clickhouse_password=own_clickhouse.password,
        )
    )
    yield own
    own.remove_topics()


def migrate(space):
    """Creates the space's topic, database and tables, once."""
    if space.migrated:
        return
    environment = {**environment_without_settings(), **space.settings()}
    told = subprocess.run(
        [millrace_binary(), "migrate"], env=environment, capture_output=True, text=True, timeout=MIGRATE_S, check=False
    )
    assert told.returncode == 0, f"millrace migrate ended with status {told.returncode}:\n{told.stdout}{told.stderr}"
    space.migrated = True


def _programs(request, folder, own_space):
    started = []
    # Read by the hook below when a test that uses them fails.
    request.node.stash.setdefault(PROGRAMS, []).append(started)

    def start(subcommand="run", arguments=(), *, settings=None, failpoints=None, space=None, wait=True, migrated=True):
        used = space or own_space
        if migrated:
            migrate(used)
        program = Millrace(
            folder / f"millrace-{len(started)}.log",
            subcommand,
            arguments,
            settings={**used.settings(), **(settings or {})},
            failpoints=failpoints,
        )
        started.append(program)
        program.start()
        if wait:
            program.wait_ready()
        return program

    yield start

    living = [program for program in started if program.is_running()]
    for program in living:
        program.resume()
        program.terminate()
    failures = []
    for program in living:
        try:
            status = program.wait_end()
            if status != 0:
                failures.append(f"{' '.join(program.command[1:])} ended with status {status}:\n{program.log_tail()}")
        except AssertionError as error:
            program.kill()
            failures.append(str(error))
    assert not failures, "\n\n".join(failures)


PROGRAMS = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for node in (item, item.getparent(pytest.Module)):
            for started in node.stash.get(PROGRAMS, []):
                report.sections += [
                    (f"{program.log_path.name}: {' '.join(program.command[1:])}", program.log_tail(60))
                    for program in started
                ]
    return report
