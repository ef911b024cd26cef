"""A ClickHouse on loopback: an installed server, or the embedded engine under `../clickhouse_host.py`.

Both get the same configuration: HTTP only, no system log tables, and one user, `millrace`, whose password is generated
here and kept in a file that only its owner can read.
"""

import hashlib
import http.client
import os
import secrets
import sys
import time
import urllib.error
import urllib.request
from xml.sax.saxutils import escape

from console import Failure, last_line
from process import Process
from software import SCRIPTS

READY_S = 60
STOP_S = 40
HOST = "127.0.0.1"
USER = "millrace"

# Everything on tables and databases; no reading of files, URLs or other servers, and no managing of users.
GRANTS = [
    "GRANT SHOW, SELECT, INSERT, ALTER, CREATE, DROP, UNDROP TABLE, TRUNCATE, OPTIMIZE, KILL QUERY, dictGet, TABLE ENGINE ON *.*",
    "GRANT SYSTEM MERGES, SYSTEM FLUSH, SYSTEM DROP CACHE, SYSTEM SYNC REPLICA ON *.*",
]

CONFIG = """\
<clickhouse>
    <logger>
        <level>warning</level>
        <log>{log}</log>
        <size>10M</size>
        <count>3</count>
    </logger>
    <listen_host>{host}</listen_host>
    <http_port>{port}</http_port>
    <path>{data}/</path>
    <tmp_path>{data}/tmp/</tmp_path>
    <user_files_path>{data}/user_files/</user_files_path>
    <format_schema_path>{data}/format_schemas/</format_schema_path>
    <users_config>{users}</users_config>
    <default_profile>default</default_profile>
    <default_database>default</default_database>
    <timezone>UTC</timezone>
    <!-- Longer than clients keep a connection idle, so that none is closed under a request. -->
    <keep_alive_timeout>75</keep_alive_timeout>
    <!-- The machine is shared with Kafka and millrace. -->
    <max_server_memory_usage_to_ram_ratio>0.5</max_server_memory_usage_to_ram_ratio>
    <mark_cache_size>536870912</mark_cache_size>
    <!-- No query_log, part_log, metric_log, ...: a log table that is not named here does not exist. -->
</clickhouse>
"""

USERS = """\
<clickhouse>
    <profiles>
        <default>{profile}</default>
        {host_profile}
    </profiles>
    <quotas>
        <default/>
        {host_quota}
    </quotas>
    <users>
        {host_user}
        <{user}>
            <password_sha256_hex>{password_sha256}</password_sha256_hex>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile>
            <quota>default</quota>
            <grants>
                {grants}
            </grants>
        </{user}>
    </users>
</clickhouse>
"""

# The embedded engine runs its own two queries, which start it listening and keep it alive, as the user `default`, who
# can have no password. They use up a quota of 68 years, so that nobody else gets to run one under that name.
EMBEDDED = {
    "host_profile": "<host><max_memory_usage>100000000</max_memory_usage></host>",
    "host_quota": "<host><interval><duration>2147483647</duration><queries>2</queries></interval></host>",
    "host_user": """\
<default>
            <no_password/>
            <networks><ip>127.0.0.1</ip></networks>
            <profile>host</profile>
            <quota>host</quota>
            <grants>
                <query>GRANT SYSTEM LISTEN ON *.*</query>
                <query>GRANT CREATE TEMPORARY TABLE ON *.*</query>
                <query>GRANT READ ON FILE</query>
            </grants>
        </default>""",
}
INSTALLED = dict.fromkeys(EMBEDDED, "")


class ClickHouse:
    """Its data is in `clickhouse/` of the home folder, its log in `log/clickhouse.log`."""

    def __init__(self, home, *, port):
        self.home = home
        self.port = port
        self.user = USER
        self.log = home / "log" / "clickhouse.log"
        self.password_path = home / "clickhouse.password"
        # Settings of its users' queries, from the next start on, such as {"max_memory_usage": 1000}.
        self.profile = {}
        self.process = Process("clickhouse", home / "run")

    @property
    def url(self):
        return f"http://{HOST}:{self.port}"

    @property
    def password(self):
        return self.password_path.read_text(encoding="utf-8").strip()

    def start(self, engine, *, dies_with_parent=False):
        """Starts the process, which is not yet ready when this returns.

        `engine` is the embedded engine's library (`.so`) or an installed server's program.
        """
        folder = self.home / "clickhouse"
        (folder / "data").mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ensure_password()
        config, users = folder / "config.xml", folder / "users.xml"
        values = {"log": self.log, "host": HOST, "port": self.port, "data": folder / "data", "users": users}
        _write_private(config, CONFIG.format(**{key: escape(str(value)) for key, value in values.items()}))
        grants = "\n                ".join(f"<query>{grant}</query>" for grant in GRANTS)
        digest = hashlib.sha256(self.password.encode()).hexdigest()
        profile = "".join(f"<{name}>{value}</{name}>" for name, value in self.profile.items())
        embedded = engine.suffix == ".so"
        _write_private(
            users,
            USERS.format(
                user=self.user,
                password_sha256=digest,
                grants=grants,
                profile=profile,
                **(EMBEDDED if embedded else INSTALLED),
            ),
        )
        environment = dict(os.environ, TZ="UTC")
        if embedded:
            command = [sys.executable, SCRIPTS / "clickhouse_host.py", engine, config]
        else:
            command = [engine, *(["server"] if engine.name == "clickhouse" else []), "--config-file", config]
            # Its own watchdog would be a second process to keep track of.
            environment["CLICKHOUSE_WATCHDOG_ENABLE"] = "0"
        self.process.start(
            command,
            log=self.log,
            cwd=folder,
            env=environment,
            settings={"port": self.port},
            dies_with_parent=dies_with_parent,
        )

    def wait_ready(self, deadline_s=READY_S):
        """Returns once our user can run a query."""
        if not self.password_path.exists():
            raise Failure(f"{self.password_path} is gone: run scripts/down and then scripts/up, which makes a new one")
        end = time.monotonic() + deadline_s
        while True:
            try:
                self.query("SELECT 1")
                return
            except urllib.error.HTTPError as error:
                refusal = error.read(300).decode("utf-8", "replace")
                if error.code in (401, 403, 516):
                    raise Failure(
                        f"ClickHouse on {self.url} refuses the user {self.user} with the password of {self.password_path}: {refusal}"
                    ) from error
            except OSError:
                pass
            if self.process.pid is None:
                raise Failure(f"ClickHouse ended while it was starting: {last_line(self.log)} (log: {self.log})")
            if time.monotonic() > end:
                raise Failure(
                    f"ClickHouse does not answer on {self.url} after {deadline_s} s: see {self.log}, and run this again"
                )
            time.sleep(0.05)

    def query(self, sql, timeout_s=10):
        """The answer's body, as text; one that breaks off counts as an OSError."""
        request = urllib.request.Request(
            self.url, data=sql.encode(), headers={"X-ClickHouse-User": self.user, "X-ClickHouse-Key": self.password}
        )
        # A proxy of the environment is no way to loopback.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as answer:
            try:
                return answer.read().decode()
            except http.client.HTTPException as error:
                raise ConnectionError(f"ClickHouse's answer broke off: {error!r}") from error

    def stop(self, grace_s=STOP_S):
        return self.process.stop(grace_s)

    def _ensure_password(self):
        try:
            if self.password_path.stat().st_mode & 0o077:
                self.password_path.chmod(0o600)
            if self.password:
                return
        except FileNotFoundError:
            pass
        _write_private(self.password_path, secrets.token_urlsafe(24))


def _write_private(path, text):
    """Writes a file that nobody else can read, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as target:
        target.write(text)
    fresh.replace(path)
