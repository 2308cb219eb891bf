"""benchmarks/kills.py on two of its commands; by hand it is run on all, with many more kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_what_is_killed_leaves_nothing_torn_and_ends_the_same_when_run_again() -> None:
    command = [sys.executable, "benchmarks/kills.py", "--kills", "3", "--command", "quantize", "--command", "save"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
