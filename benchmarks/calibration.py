"""What calibration costs: time and memory beside a plain fused float32 pass and ``mxnet.contrib.quantization``.

    MXQ_DATA=... python benchmarks/calibration.py [NET] [--images 64] [--batch 8] [--repeats 5]

Time is that of the whole calibration, binding and the search for thresholds included, as a multiple of the plain pass
of the same round over the same images; medians of interleaved rounds, the first of which does not count. (contrib's
calibration is what quantizing takes less what it takes with ``calib_mode='none'``.) Memory is the peak of a process of
its own less that of one that runs the plain pass, the images loaded in both; for mxq also for four times as many
images, with which it must not grow. ``--repeats 0`` measures memory alone.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from real_nets import Task, by_contrib, load
from rich.console import Console
from rich.table import Table

from mxq import pipeline
from mxq.config import QuantConfig
from mxq.runtime import MxnetRunner

PLAIN = "plain pass"
MXQ = ("naive", "entropy", "mse", "auto")
CONTRIB = ("naive", "entropy")
METHODS = (PLAIN, *(f"mxq {mode}" for mode in MXQ), *(f"contrib {mode}" for mode in CONTRIB))


def method(name: str, task: Task, batch: int) -> Callable[[], object]:
    """A function that does it once; the plain pass is bound already."""
    tool, _, mode = name.partition(" ")
    batches = [task.calibration[i : i + batch] for i in range(0, len(task.calibration), batch)]
    if name == PLAIN:
        executable, data = MxnetRunner().compile(pipeline.fuse_float(task.model)), task.model.inputs[0]

        def plain() -> None:
            for x in batches:
                np.asarray(executable({data: x})[0])

        return plain
    if tool == "contrib":
        return lambda: by_contrib(task, mode, batch)
    config = QuantConfig(calib_mode=mode, num_calib_examples=len(task.calibration))
    prepared = pipeline.plan(task.model, config)
    return lambda: pipeline.calibrate(prepared, batches, MxnetRunner(), progress=False)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def times(task: Task, batch: int, repeats: int) -> dict[str, list[float]]:
    """Method -> its time in each round."""
    calls = {name: method(name, task, batch) for name in METHODS}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(repeats + 1):
        idle = seconds(lambda: by_contrib(task, "none", batch))
        for name, call in calls.items():
            took = seconds(call) - (idle if name.startswith("contrib") else 0)
            if round_:
                found[name].append(took)
    return found


def peak(name: str, args: argparse.Namespace, images: int) -> float:
    """Peak memory in MB of a process that does one thing; it runs this file with ``--only``."""
    command = [sys.executable, __file__, args.net, "--batch", str(args.batch), "--images", str(images), "--only", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603  (ourselves)
    return float(done.stdout.splitlines()[-1])


def only(args: argparse.Namespace) -> None:
    """Does one thing once and prints the peak memory in MB. 64 images are read over and over, not kept."""
    task = load(args.net, calibration=64, evaluation=64)
    if args.only.startswith("contrib"):
        method(args.only, task, args.batch)()
    else:
        starts = [i % 64 for i in range(0, args.images, args.batch)]
        _streamed(args.only, task, [task.calibration[i : i + args.batch] for i in starts])
    status = Path("/proc/self/status").read_text()  # the peak that getrusage tells is the parent's, if that was higher
    peaks = re.findall(r"VmHWM:\s+(\d+)", status)
    print(float(peaks[0]) * 1024 / 1e6)  # noqa: T201


def _streamed(name: str, task: Task, batches: list[np.ndarray]) -> None:
    runner = MxnetRunner()
    if name == PLAIN:
        executable = runner.compile(pipeline.fuse_float(task.model))
        for x in batches:
            np.asarray(executable({task.model.inputs[0]: x})[0])
        return
    config = QuantConfig(calib_mode=name.partition(" ")[2], num_calib_examples=sum(map(len, batches)))
    pipeline.calibrate(pipeline.plan(task.model, config), batches, runner, progress=False)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", nargs="?", default="resnet50_pqf")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    if args.only:
        only(args)
        return
    found: dict[str, list[float]] = {name: [] for name in METHODS}
    if args.repeats:
        found = times(load(args.net, args.images, max(args.images, 64)), args.batch, args.repeats)
    table = Table(f"{args.net}, {args.images} images", "seconds", "x plain pass (p10-p90)", "MB more", "with 4x images")
    base = [peak(PLAIN, args, n) for n in (args.images, 4 * args.images)]
    for name, took in found.items():
        middle = ratio = "-"
        if took:
            low, half, high = np.percentile(np.array(took) / found[PLAIN], (10, 50, 90))
            middle, ratio = f"{np.median(took):.2f}", f"{half:.2f} ({low:.2f}-{high:.2f})"
        sizes = (args.images,) if name.startswith("contrib") else (args.images, 4 * args.images)
        more = [peak(name, args, n) - b for n, b in zip(sizes, base, strict=False)]
        table.add_row(name, middle, ratio, *(f"{m:.0f}" for m in more))
    console = Console(width=120)
    console.print(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}, batch {args.batch}")
    console.print(table)


if __name__ == "__main__":
    main()
