"""The tuner on real networks: once undisturbed, once killed on the way, as often as asked; the results must be one.

    MXQ_DATA=... python benchmarks/tuner.py [NET ...] [--kills 2] [--max-drop 0.005] [--budget 1800]

NET may be made hard, NET:outliers, as for `ablation`. Each search is a process of its own. It is ended by SIGKILL in
the middle of a trial, a third and two thirds on the way, and started again in the same workdir.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ablation import named
from rich.console import Console
from rich.table import Table

import mxq
from mxq.runtime import to_arrays, to_symbol
from mxq.tuning.driver import TRIAL
from mxq.tuning.tuner import TRIALS

RESULT = "result.json"
POLL = 0.05
"""Seconds between two looks at the journal of a search that is to be killed."""


def search(args: argparse.Namespace, net: str, workdir: Path) -> None:
    """One search, in this process; what it found is written beside its journal."""
    logging.disable(logging.INFO)
    task = named(net, args.calibration, args.evaluation)
    found = mxq.tune(
        (to_symbol(task.model.graph), to_arrays(task.model.args), to_arrays(task.model.auxs)),
        task.calibration,
        max_drop=args.max_drop,
        time_budget=args.budget,
        workdir=workdir,
        eval_data=task.evaluation,
        labels=task.truth,
        num_calib_examples=len(task.calibration),
        batch_size=10,
    )
    result = {"verdict": found.verdict, "stopped": found.stopped, "met": found.met, "trials": len(found.trials)}
    (workdir / RESULT).write_text(json.dumps({**result, "best": found.best.to_json(), "seconds": found.seconds}))


def started(args: argparse.Namespace, net: str, workdir: Path) -> subprocess.Popen[bytes]:
    """The same as another process."""
    options = ("calibration", "evaluation", "max_drop", "budget")
    given = [part for name in options for part in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    return subprocess.Popen([sys.executable, __file__, net, *given, "--search", str(workdir)])  # noqa: S603


def trials(workdir: Path) -> list[dict[str, Any]]:
    """What the journal has."""
    path = workdir / TRIALS
    lines = path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []
    return [entry for entry in map(json.loads, lines) if entry.get("kind") == TRIAL]


def killed(args: argparse.Namespace, net: str, workdir: Path, after: int) -> int:
    """Kills a search in the middle of the trial after ``after`` others; how many were there."""
    process = started(args, net, workdir)
    while process.poll() is None and len(trials(workdir)) < after:
        time.sleep(POLL)
    time.sleep(trials(workdir)[-1]["seconds"] / 2 if after else 1.0)
    process.kill()
    process.wait()
    return len(trials(workdir))


def result(workdir: Path) -> dict[str, Any]:
    """What a search that ended found, with the hash of the network that it keeps."""
    found: dict[str, Any] = json.loads((workdir / RESULT).read_text())
    files = (workdir / "best-symbol.json", workdir / "best-0000.params")
    return {**found, "sha256": hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()}


def compared(args: argparse.Namespace, net: str, folder: Path, console: Console) -> bool:
    """Both searches of a network, printed; whether they found the same."""
    whole, broken = folder / "whole", folder / "broken"
    started(args, net, whole).wait()
    reference, table = result(whole), Table("stage", "calibrator", "method", "layers in float", "score", "seconds")
    for trial in trials(whole):
        settings = trial["settings"]
        method = ", ".join(f"{k}={v}" for k, v in settings["method"].items() if v is not None)
        score = "" if trial["score"] is None else f"{100 * trial['score']:.2f} %"
        table.add_row(trial["stage"], settings["calib_mode"], method, str(len(settings["floats"])), score,
                      f"{trial['seconds']:.0f}")  # fmt: skip
    console.print(f"{net}: {reference['verdict']}; {reference['seconds']:.0f} s")
    console.print(table)
    parts = range(1, args.kills + 1)
    ends = [killed(args, net, broken, reference["trials"] * part // (args.kills + 1)) for part in parts]
    started(args, net, broken).wait()
    again = result(broken)
    same = (
        all(again[k] == reference[k] for k in ("trials", "sha256", "stopped"))
        and again["best"]["settings"] == (reference["best"]["settings"])
    )
    console.print(f"killed in the trials after {ends}: {'the same network, bit for bit' if same else 'ANOTHER RESULT'}")
    return same


def main() -> None:
    """Search, kill, search again; exit code 1 where results differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=["mobilenet_v1_0.75", "resnet18_pqf:outliers"])
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--budget", type=float, default=1800.0, help="seconds")
    parser.add_argument("--calibration", type=int, default=50, help="images")
    parser.add_argument("--evaluation", type=int, default=500, help="images")
    parser.add_argument("--search", type=Path, help="one search in this workdir, for the processes that this starts")
    args = parser.parse_args()
    if args.search is not None:
        search(args, args.nets[0], args.search)
        return
    console, same = Console(width=120), True
    for net in args.nets:
        with tempfile.TemporaryDirectory() as folder:
            same &= compared(args, net, Path(folder), console)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
