"""The Python packages that scripts/test installs, for a script of its own."""

import os
import subprocess
import sys

from console import Failure
from settings import REPOSITORY, var_dir


def run_again(mark):
    """Runs this script again under the Python that has them; the environment then has `mark`."""
    if subprocess.run([REPOSITORY / "scripts" / "test", "--install-only"], check=False).returncode != 0:
        raise Failure("scripts/test --install-only failed: its messages are above")
    python = var_dir() / "venv" / "bin" / "python"
    os.execve(python, [python, *sys.argv], {**os.environ, mark: "1"})
