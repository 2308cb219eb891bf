"""Every calibrator on every network: SQNR of the logits, agreement with float32, top-1, from one calibration pass.

    MXQ_DATA=... python benchmarks/calibrators.py [NET ...] [--calibration 50] [--evaluation 500]

The network runs once over the calibration images; each calibrator then reads the same statistics ("ema_minmax", which
collects averages, has a pass of its own). The images that calibrate are among those that evaluate.
"""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import replace

from real_nets import IMAGENET, load, run
from rich.console import Console
from rich.table import Table

from mxq import numerics, observers, pipeline
from mxq.calibration.collect import collect
from mxq.config import QuantConfig
from mxq.runtime import MxnetRunner

CALIBRATORS = (
    "naive", "ema_minmax", "percentile:99.9", "percentile:99.99", "percentile:99.999", "percentile:99.9999",
    "entropy", "mse", "norm", "norm:1", "mean_std", "auto",
)  # fmt: skip
BATCH = 10


def cells(name: str, calibration: int, evaluation: int) -> dict[str, tuple[float, float, float]]:
    """Calibrator -> SQNR in dB, agreement and top-1 in per cent; and the float network under "float32"."""
    task = load(name, calibration, evaluation)
    runner = MxnetRunner()
    reference = run(task.model, task.evaluation)
    prepared = pipeline.plan(task.model, QuantConfig(num_calib_examples=calibration))
    batches = [{"data": task.calibration[i : i + BATCH]} for i in range(0, calibration, BATCH)]
    found = {"float32": (float("inf"), 100.0, task.score(reference))}
    passes = {
        kind: collect(runner, prepared.fused, batches, dict.fromkeys(pipeline.wanted(prepared), observers.get(kind)))
        for kind in ("mse", "ema_minmax")
    }
    for calibrator in CALIBRATORS:
        asked = replace(prepared, config=replace(prepared.config, calib_mode=calibrator))
        statistics = passes["ema_minmax" if observers.get(calibrator).ordered else "mse"]
        outputs = run(pipeline.quantize(asked, pipeline.ranges(asked, statistics)).model, task.evaluation)
        agreement = 100 * float((outputs[0].argmax(1) == reference[0].argmax(1)).mean())
        sqnr = numerics.centred_sqnr_db(reference[0], outputs[0])
        found[calibrator] = (sqnr, agreement, task.score(outputs))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[*IMAGENET])
    parser.add_argument("--calibration", type=int, default=50)
    parser.add_argument("--evaluation", type=int, default=500)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    results = {name: cells(name, args.calibration, args.evaluation) for name in args.nets}
    table = Table("dB / agreement % / top-1 %", *results)
    for row in ("float32", *CALIBRATORS):
        texts = (f"{r[row][0]:.2f} / {r[row][1]:.1f} / {r[row][2]:.1f}" for r in results.values())
        table.add_row(row, *texts)
    best = {n: max((r[c][0], c) for c in CALIBRATORS if c != "auto") for n, r in results.items()}
    table.add_row(
        "auto less the best single",
        *(f"{results[n]['auto'][0] - score:+.2f} dB ({name})" for n, (score, name) in best.items()),
    )
    console = Console(width=150)
    console.print(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}")
    console.print(table)


if __name__ == "__main__":
    main()
