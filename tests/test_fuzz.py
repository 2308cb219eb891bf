"""Hostile input: 2,000 damaged files of every format; and that the harness sees what it is there to see.

The harness forks from a process that has not run MXNet, so all of it runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "fuzz.py")]

MISBEHAVED = """
import ctypes, hashlib, os, sys, time
import mxq
from fuzzing import runner, texts, trees
from fuzzing.seeds import PREPROCESS, RECIPES
from fuzzing.formats import Format

def use(folder):
    what = (folder / "x").read_text()
    if "refused" in what: raise mxq.DataError("no")
    if "error" in what: raise KeyError("yes")
    if "crash" in what: ctypes.string_at(1)
    if "exit" in what: os._exit(3)
    if "hang" in what: time.sleep(60)
    if "memory" in what: bytearray(1 << 40)
    if "held" in what: b"x" * (1500 << 20)

def write(document, folder):
    (folder / "x").write_text(document)

seeds = ("fine", "refused", "error", "crash", "exit", "hang", "memory", "held", "fine", "error")
form = Format("x", 1, seeds, lambda document, rng: document + rng.choice("abc"), write, use)
cases = runner.wholes({"x": form})
outcomes, failures = runner.run(cases, {"x": form}, jobs=int(sys.argv[1]), limit=4.0)
print([runner.OUTCOMES[o - 1] for o in outcomes])
print([str(f.case) for f in failures])
known = {"x": Format("x", 1, ("",), lambda document, rng: document + rng.choice(("a", "error", "b")), write, use)}
many = [runner.Case("x", 1, n) for n in range(60)]
_, failures = runner.run(many, known)
small = runner.smallest(max(failures, key=lambda f: f.case.document(known["x"]).count("a")), known, 4.0)
print(small.case.document(known["x"]), [runner.Case.of(str(f.case), 1) == f.case for f in failures[:1]])

def digest():
    text = hashlib.sha256()
    for seeds, mutate in ((RECIPES, texts.text_mutated), (PREPROCESS, trees.mutated)):
        form = Format("y", 1, seeds, mutate, write, use)
        for n in range(300):
            text.update(repr(runner.Case("y", 5, n).document(form)).encode("utf-8", "surrogatepass"))
    return text.hexdigest()

print(digest())
"""


def harness(code: str, *arguments: str) -> list[str]:
    """The lines that a program with the harness prints."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)])}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_outcome_is_told_from_the_others() -> None:
    """Whatever a case does to its process, the next one runs; of several mutations those at fault are found."""
    one, three = harness(MISBEHAVED, "1"), harness(MISBEHAVED, "3")
    outcomes, failures, smallest, _ = one
    assert outcomes == str(["ok", "refused", "error", "crash", "crash", "hang", "memory", "memory", "ok", "error"])
    assert failures == str([f"x:{n}:whole" for n in (2, 3, 4, 5, 6, 7, 9)])
    assert smallest == "error [True]"
    assert one == three  # the inputs among them: a number is the same one in any process


@pytest.mark.fuzz
def test_damaged_files_are_used_or_refused(tmp_path: Path) -> None:
    """Of every format: success or one MxqError; never another exception, a signal, a hang, or 1 GB beyond the file."""
    result = tmp_path / "result.json"
    command = [*COMMAND, "--inputs", "2000", "--jobs", "2", "--seed", "1", "--json", str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(result.read_text())
    assert found["failures"] == []
    assert sum(sum(outcomes.values()) for outcomes in found["outcomes"].values()) == 2000
    for name, outcomes in found["outcomes"].items():
        assert set(outcomes) <= {"ok", "refused"}, name
