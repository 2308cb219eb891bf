"""Accuracy of mxq beside ``mxnet.contrib.quantization``: same networks, images and calibration mode, in one run.

    MXQ_DATA=... python benchmarks/accuracy.py [NET ...] [--modes naive entropy]

Prints the score (top-1, or VOC07 mAP for the detector) in percent, the share of equal top-1 answers, and the
SQNR of the outputs in dB (of logits about their mean, per image).
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence

import numpy as np
from real_nets import CIFAR, IMAGENET, YOLO, Task, by_contrib, by_mxq, load, run
from rich.console import Console
from rich.table import Table

from mxq.graph.ir import Array
from mxq.numerics import centred_sqnr_db, sqnr_db


def fidelity(reference: Sequence[Array], outputs: Sequence[Array]) -> tuple[float, float]:
    """Agreement in percent (NaN where there are no classes) and SQNR in dB."""
    if reference[0].ndim == 2:
        agreement = 100 * float(np.mean(reference[0].argmax(1) == outputs[0].argmax(1)))
        return agreement, centred_sqnr_db(reference[0], outputs[0])
    flat = [np.concatenate([x.ravel() for x in outs]) for outs in (reference, outputs)]
    return float("nan"), sqnr_db(*flat)


def rows(task: Task, modes: Sequence[str]) -> list[tuple[str, ...]]:
    """One row for float32 and one for each mode and tool."""
    reference = run(task.model, task.evaluation)
    table = [(task.name, "float32", "", f"{task.score(reference):.2f}", "", "", "")]
    for mode in modes:
        for tool, quantize in (("contrib", by_contrib), ("mxq", lambda t, m: by_mxq(t, calib_mode=m, effort="fast"))):
            start = time.perf_counter()
            try:
                model = quantize(task, mode)
                seconds = time.perf_counter() - start
                outputs = run(model, task.evaluation)
            except Exception as error:  # the peer fails on some networks; that is a result
                table.append((task.name, tool, mode, "fails: " + str(error).strip().splitlines()[0][:60], "", "", ""))
                continue
            agreement, sqnr = fidelity(reference, outputs)
            figures = (f"{task.score(outputs):.2f}", f"{agreement:.1f}", f"{sqnr:.2f}", f"{seconds:.1f}")
            table.append((task.name, tool, mode, *figures))
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[*IMAGENET, *CIFAR, YOLO])
    parser.add_argument("--modes", nargs="+", default=["naive", "entropy"])
    parser.add_argument("--calibration", type=int, default=50, help="images")
    parser.add_argument("--evaluation", type=int, default=500, help="images (CIFAR: twenty times as many)")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    table = Table("network", "tool", "mode", "score %", "agreement %", "SQNR dB", "calibration s")
    for name in args.nets:
        for row in rows(load(name, args.calibration, args.evaluation), args.modes):
            table.add_row(*row)
        table.add_section()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
