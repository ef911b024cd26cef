"""The systemd unit: what systemd itself says of it."""

import shutil
import subprocess

import pytest
from harness import REPOSITORY

UNIT = REPOSITORY / "systemd" / "millrace.service"
INSTALLED = "/usr/local/bin/millrace"
# In tenths. What is left is what a server on the network cannot do without.
EXPOSURE_MAX = 20

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")


@pytest.fixture
def unit(tmp_path):
    """The unit as on a machine where the program is installed."""
    copy = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert INSTALLED in text
    copy.write_text(text.replace(INSTALLED, shutil.which("true")))
    return copy


def test_the_unit_is_clean(unit):
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_hardened(unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
