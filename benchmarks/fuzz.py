"""Hostile input: random mutations of every format that mxq reads, each used as mxq would; a table of what came of them.

    python benchmarks/fuzz.py --inputs 2000 --seed 1                # what the tests run
    python benchmarks/fuzz.py --inputs 200000 --jobs 2 --seed 1     # the long run
    python benchmarks/fuzz.py --format symbol --inputs 5000 --seed 7
    python benchmarks/fuzz.py --case symbol:123 --seed 1 --keep there     # one again: files and traceback

The outcome of an input is "ok" or "refused" (one `MxqError`); all else is a failure: the process ended, another
exception, no end, more than 1 GB beyond the file. Failures of one cause are shown once, with the number of them and a
case that shows it with as few mutations as possible. The same seed, format and number are the same input anywhere.
Exit code 1 where there are failures.
"""

# ruff: noqa: PLC0415 - what imports MXNet waits until the seeds are made and the environment is set
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

MEMORY = "/dev/shm"  # noqa: S108 - files there cost no disk
HERE = Path(__file__).resolve().parent
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")
sys.path[:0] = [str(HERE.parent / "tests"), str(HERE.parent)]


def show(line: str) -> None:
    Console(highlight=False, markup=False, soft_wrap=True).print(line)


def main() -> int:
    options = parsed()
    with tempfile.TemporaryDirectory(prefix="mxq-seeds-", dir=MEMORY if Path(MEMORY).is_dir() else None) as folder:
        seeds = Path(folder)
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[:2])}
        command = [sys.executable, "-m", "fuzzing.seeds", folder]
        made = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603
        if made.returncode:
            raise SystemExit(made.stderr)
        from fuzzing import formats, runner  # after the seeds: this process forks and must not have run MXNet

        known = formats.all_formats(seeds)
        if options.case:
            return again(runner.Case.of(options.case, options.seed), known, options.keep)
        return many(options, known)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=2000, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--format", action="append", help="only this format; may be repeated")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds for one input")
    parser.add_argument("--case", help="FORMAT:NUMBER[:MUTATIONS]; runs it in this process")
    parser.add_argument("--keep", type=Path, help="a folder for the files of failures")
    parser.add_argument("--json", type=Path, help="a file for the result")
    return parser.parse_args()


def many(options: argparse.Namespace, known: dict[str, Any]) -> int:
    from fuzzing import runner

    warm_up()
    whole = runner.wholes(known, options.format)
    outcomes, failures = runner.run(whole, known, options.jobs, options.limit)
    for case in (c for c, outcome in zip(whole, outcomes, strict=True) if outcome != runner.OK):
        show(f"not mutated, and refused: {case}; run --case {case}")
    if any(outcomes != runner.OK):
        return 1
    cases = runner.spread(known, options.inputs, options.seed, options.format)
    started = time.monotonic()
    outcomes, failures = runner.run(cases, known, options.jobs, options.limit, told(len(cases)))
    seconds = time.monotonic() - started
    table = Counter((case.format, runner.OUTCOMES[outcome - 1]) for case, outcome in zip(cases, outcomes, strict=True))
    print_table(table, len(cases), seconds, options)
    groups = Counter(f.kind for f in failures)
    shown = [runner.smallest(f, known, options.limit) for f in {f.kind: f for f in reversed(failures)}.values()]
    for failure in sorted(shown, key=lambda f: -groups[f.kind]):
        show(f"{groups[failure.kind]:6d} x {failure}")
        if options.keep:
            written(failure.case, known, options.keep / str(failure.case).replace(":", "-"))
    if options.json:
        result = {"seed": options.seed, "inputs": len(cases), "seconds": round(seconds, 1), "jobs": options.jobs}
        result["outcomes"] = {name: {o: table[name, o] for o in runner.OUTCOMES if table[name, o]} for name in known}
        options.json.write_text(json.dumps({**result, "failures": [str(f) for f in failures]}, indent=1) + "\n")
    return 1 if failures else 0


def again(case: Any, known: dict[str, Any], keep: Path | None) -> int:
    """One case in this process, so that a debugger and a traceback see it."""
    with tempfile.TemporaryDirectory(prefix="mxq-case-") as scratch:
        folder = Path(scratch) / "case"
        written(case, known, folder)
        if keep:
            written(case, known, keep)
        known[case.format].use(folder)
    show("ok")
    return 0


def written(case: Any, known: dict[str, Any], folder: Path) -> None:
    from fuzzing import runner

    folder.parent.mkdir(parents=True, exist_ok=True)
    runner.clean(folder)
    known[case.format].write(case.document(known[case.format]), folder)


def warm_up() -> None:
    """What is compiled or read at first use, without MXNet: children then have it."""
    import numpy as np

    from mxq import observers
    from mxq.quant import ANY8

    observer = observers.get("entropy")
    state = observer.update(observer.empty(), np.linspace(-1, 1, 100, dtype=np.float32))
    observer.range(state, ANY8)
    mse = observers.get("mse")
    mse.range(state, ANY8)


def told(total: int) -> Any:
    """Progress, on a terminal."""
    last = [0.0]

    def tell(done: int) -> None:
        if sys.stderr.isatty() and time.monotonic() - last[0] > 1:
            last[0] = time.monotonic()
            sys.stderr.write(f"\r{done} of {total}")

    return tell


def print_table(table: Counter[tuple[str, str]], inputs: int, seconds: float, options: argparse.Namespace) -> None:
    from fuzzing.runner import OUTCOMES

    names = list(dict.fromkeys(name for name, _ in table))
    show(f"{inputs} inputs, seed {options.seed}, {options.jobs} jobs: {seconds:.0f} s, {inputs / seconds:.0f} inputs/s")
    show(f"{'format':12}" + "".join(f"{o:>9}" for o in OUTCOMES))
    for name in (*sorted(names), "all"):
        row: Sequence[int] = [
            sum(n for (f, o), n in table.items() if o == outcome and name in (f, "all")) for outcome in OUTCOMES
        ]
        show(f"{name:12}" + "".join(f"{n:9d}" for n in row))


if __name__ == "__main__":
    sys.exit(main())
