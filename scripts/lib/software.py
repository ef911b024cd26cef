"""The software that the scripts run: Debian's packages, the jars of Kafka and the library of ClickHouse.

Versions are pinned here and in ../kafka/pom.xml. What is fetched goes under `software/` of the var folder, complete or
not at all, and is fetched once.
"""

import base64
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

from console import Failure, run_logged, say

SCRIPTS = Path(__file__).resolve().parent.parent
KAFKA_POM = SCRIPTS / "kafka" / "pom.xml"

CHDB_PACKAGE = "@chdb/lib-linux-x64-gnu"
CHDB_VERSION = "26.7.3-stable.1"
CHDB_SHA512 = "XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw=="

JAVA_MIN = 17
# The oldest ClickHouse whose insert de-duplication millrace relies on; the program checks the same at its start.
CLICKHOUSE_MIN = (25, 3)

# What the build needs beside Rust: librdkafka is C, and is built with cmake. Built without curl it still includes its
# headers (librdkafka 2.12.1 asks whether a macro is defined that is always defined, as 0 here).
BUILD_PACKAGES = ["cmake", "g++", "libcurl4-openssl-dev", "libssl-dev", "make", "pkg-config", "zlib1g-dev"]
# Tools that may also come from elsewhere, so that only their absence asks for the package.
TOOL_PACKAGES = {"curl": "curl", "java": "openjdk-17-jre-headless", "mvn": "maven", "npm": "npm"}


def install_packages(packages, tools, log):
    """Installs those Debian packages, and the packages of those tools, that are missing."""
    missing = [package for package in packages if not _is_installed(package)]
    missing += [TOOL_PACKAGES[tool] for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    command = f"apt-get install -y {' '.join(missing)}"
    if shutil.which("apt-get") is None:
        raise Failure(
            f"missing {', '.join(missing)} (names of Debian packages): install them with this system's package manager"
        )
    if os.geteuid() != 0:
        raise Failure(f"missing Debian packages; as root run: apt-get update && {command}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    installed = run_logged(
        f"installing {', '.join(missing)}", ["apt-get", "update", "-q"], log, env=environment
    ) and run_logged(
        "  package lists are up to date, installing",
        ["apt-get", "install", "-q", "-y", "--no-install-recommends", *missing],
        log,
        env=environment,
    )
    if not installed:
        raise Failure(f"could not install {', '.join(missing)}: see {log}, then try: {command}")


def _is_installed(package):
    if shutil.which("dpkg-query") is None:
        # Not a Debian: the build itself will tell what it misses.
        return True
    answer = subprocess.run(
        ["dpkg-query", "-W", "-f=${db:Status-Status}", package], capture_output=True, text=True, check=False
    )
    return answer.stdout == "installed"


def find_cargo():
    """cargo, from the PATH or from where rustup puts it."""
    found = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo" / "bin"))
    if found is None:
        raise Failure("cargo is missing: install Rust with rustup (the version in Cargo.toml's rust-version or newer)")
    return found


def cargo_build_folder(repository):
    """Where cargo puts what it builds."""
    told = subprocess.run(
        [find_cargo(), "metadata", "--no-deps", "--format-version", "1"],
        cwd=repository,
        capture_output=True,
        check=True,
    ).stdout
    return Path(json.loads(told)["target_directory"])


def find_java():
    """A Java new enough for Kafka, from JAVA_HOME or the PATH."""
    home = os.environ.get("JAVA_HOME")
    java = home and shutil.which("java", path=str(Path(home) / "bin")) or shutil.which("java")
    if java is None:
        raise Failure(f"java is missing: install Java {JAVA_MIN} or newer (Debian: {TOOL_PACKAGES['java']})")
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    if version is None or int(version.group(1)) < JAVA_MIN:
        raise Failure(
            f"{java} is {version.group(1) if version else 'of an unknown version'}, Kafka needs Java {JAVA_MIN} or newer: install it or set JAVA_HOME"
        )
    return java


def find_clickhouse():
    """An installed ClickHouse server that is new enough, or None."""
    for name in ("clickhouse", "clickhouse-server"):
        path = shutil.which(name)
        if path is None:
            continue
        command = [path, "--version"] if name == "clickhouse-server" else [path, "server", "--version"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            told = ""
        version = re.search(r"version (\d+)\.(\d+)", told)
        if version and (int(version.group(1)), int(version.group(2))) >= CLICKHOUSE_MIN:
            return Path(path)
        found = f"{version.group(1)}.{version.group(2)}" if version else "an unknown version"
        say(f"{path} is {found}, older than {CLICKHOUSE_MIN[0]}.{CLICKHOUSE_MIN[1]}: using a ClickHouse of our own")
    return None


def _kafka_folder(var):
    version = re.search(
        r"<artifactId>kafka_2\.13</artifactId>\s*<version>([^<]+)", KAFKA_POM.read_text(encoding="utf-8")
    ).group(1)
    return var / "software" / f"kafka-{version}", version


def _chdb_folder(var):
    return var / "software" / f"clickhouse-{CHDB_VERSION}"


def has_kafka(var):
    return _kafka_folder(var)[0].is_dir()


def has_chdb(var):
    return _chdb_folder(var).is_dir()


def fetch_kafka(var, log):
    """The folder with the broker's jars, fetched where it is missing."""
    folder, version = _kafka_folder(var)
    with _fetching(folder) as fresh:
        if fresh is not None:
            if shutil.which("mvn") is None:
                raise Failure(
                    f"mvn is missing and is needed to fetch Kafka: install Maven (Debian: {TOOL_PACKAGES['mvn']})"
                )
            # -C: a download whose checksum is wrong is an error.
            command = [
                "mvn",
                "-q",
                "-B",
                "-C",
                "-f",
                KAFKA_POM,
                "dependency:copy-dependencies",
                f"-DoutputDirectory={fresh}",
            ]
            if not run_logged(f"fetching Kafka {version} with Maven (43 MB)", command, log):
                raise Failure(
                    f"could not fetch Kafka {version} with Maven: check the network and Maven's settings, see {log}, and run this again"
                )
    return folder


def fetch_chdb(var, log):
    """The library that holds the ClickHouse engine, fetched where it is missing."""
    if platform.machine() != "x86_64":
        raise Failure(
            f"no ClickHouse for {platform.machine()} can be fetched: install clickhouse-server, or set MILLRACE_CLICKHOUSE_URL to one that runs"
        )
    folder = _chdb_folder(var)
    with _fetching(folder) as fresh:
        if fresh is not None:
            if shutil.which("npm") is None:
                raise Failure(
                    f"npm is missing and is needed to fetch ClickHouse: install Node.js with npm (Debian: {TOOL_PACKAGES['npm']})"
                )
            command = ["npm", "pack", "--silent", f"{CHDB_PACKAGE}@{CHDB_VERSION}"]
            if not run_logged(
                f"fetching ClickHouse {CHDB_VERSION} with npm (178 MB, 570 MB unpacked)", command, log, cwd=fresh
            ):
                raise Failure(
                    f"could not fetch {CHDB_PACKAGE}@{CHDB_VERSION} with npm: check the network and npm's settings, see {log}, and run this again"
                )
            _unpack_chdb(fresh)
    return folder / "libchdb.so"


def find_faketime(var, log):
    """libfaketime, which gives one process a clock of its own: the installed one, or Debian's package, unpacked."""
    name = "libfaketimeMT.so.1"
    for installed in Path("/usr/lib").glob(f"*/faketime/{name}"):
        return installed
    folder = var / "software" / "libfaketime"
    with _fetching(folder) as fresh:
        if fresh is not None:
            if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
                raise Failure("libfaketime is missing: install it with this system's package manager")
            command = ["apt-get", "download", "-q", "libfaketime"]
            if not run_logged("fetching libfaketime with apt-get", command, log, cwd=fresh):
                raise Failure(f"could not fetch libfaketime with apt-get: see {log}")
            (package,) = fresh.glob("libfaketime_*.deb")
            if not run_logged("  unpacking", ["dpkg-deb", "-x", package, fresh], log):
                raise Failure(f"could not unpack {package.name}: see {log}")
    return next(folder.rglob(name))


def _unpack_chdb(folder):
    (archive,) = folder.glob("*.tgz")
    digest = hashlib.sha512()
    with open(archive, "rb") as source:
        while piece := source.read(1 << 20):
            digest.update(piece)
    if base64.b64encode(digest.digest()).decode() != CHDB_SHA512:
        raise Failure(
            f"the package {CHDB_PACKAGE}@{CHDB_VERSION} is not the one known here (its SHA-512 differs): run this again, and do not use it if that stays"
        )
    say("  unpacking")
    with tarfile.open(archive) as package, open(folder / "libchdb.so", "wb") as target:
        shutil.copyfileobj(package.extractfile("package/libchdb.so"), target, 1 << 20)
    archive.unlink()


@contextmanager
def _fetching(folder):
    """Gives an empty folder to fetch into, which takes its place when all went well; None when it is there already.

    One process fetches, others that want the same wait for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            yield None
            return
        for left_over in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left_over)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield fresh
            fresh.rename(folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
