"""Runs a benchmark's networks in processes of their own, so that one that ends MXNet is a line of the table."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

TIMEOUT = 900
"""Seconds."""


def in_its_own_process(script: str, name: str, *arguments: str, timeout: float = TIMEOUT) -> dict[str, Any]:
    """The last line, JSON, of ``script --child name``; what went wrong there, in ``timeout`` seconds, as ``error``."""
    command = [sys.executable, script, "--child", name, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return {"name": name, "error": f"took longer than {timeout:.0f} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"name": name, "error": last[:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))
