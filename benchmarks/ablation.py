"""What each method for accuracy does alone, and all of them together: score, agreement, SQNR, time.

    MXQ_DATA=... python benchmarks/ablation.py [NET ...] [--only default fast] [--calibration 50] [--evaluation 500]

NET:outliers is the network made hard: it computes the same, but some channels before each ReLU are `preact.OUTLIER`
times as large, and the weights that read them as much smaller, so that one range does not serve all channels. For
networks of `preact`, NET:streams has them in the streams of sums alone, which BatchNorms read, as trained ones have.

"exact" is the SQNR of the same network in exact arithmetic, as of CPUs with VNNI (`mxq.backends.mxnet.exact`). Where
this CPU has VNNI, both columns say the same; where not, the difference is what saturates. "unguarded" is made for CPUs
with VNNI: where this one has none, its SQNR is what the default would have without the guard. "int8-stem" has the
noisy layers of little work in int8 that the default leaves in float (`mxq.noisy`), such as the stems of MobileNets.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import preact
import roofline
from accuracy import fidelity
from real_nets import CIFAR, IMAGENET, YOLO, Task, by_contrib, by_mxq, load, run
from rich.console import Console
from rich.table import Table

from mxq.backends.mxnet.exact import exact
from mxq.graph.ir import Model
from mxq.pipeline import prepare
from mxq.weights.equalize import families, scaled

NONE = {"equalize": False, "bias_correction": "none", "rounding": "nearest", "range_choice": "tensor", "stem": "int8"}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"effort": "fast"},
    "equalize": {**NONE, "equalize": True},
    "bias": {**NONE, "bias_correction": "empirical"},
    "rounding": {**NONE, "rounding": "reconstruction"},
    "ranges": {**NONE, "range_choice": "layer"},
    "stem": {**NONE, "stem": "float"},
    "default": {},
    "no-equalize": {"equalize": False},
    "no-ranges": {"range_choice": "tensor", "equalize": False},
    "best": {"effort": "best"},
    "int8-stem": {"stem": "int8"},
    "unguarded": {"target": "avx512_vnni"},
}


def with_outliers(task: Task) -> Task:
    """The same function with outlier channels, as `mxq.weights.equalize` takes them away."""
    model, _ = prepare(task.model)
    chosen = []
    for family in families(model):
        if not family.blocked and family.writers and family.readers:
            factors = np.ones(len(model.args[family.writers[0].inputs[1].name]))
            factors[:: preact.EVERY] = preact.OUTLIER
            chosen.append((family, factors))
    hard = scaled(model, chosen)
    plain = {n.name: (n.noted(scale=()),) for n in hard.graph}
    return replace(task, name=f"{task.name}:outliers", model=hard.with_graph(hard.graph.replace(plain)))


HARDER: Mapping[str, Callable[[Task], Task]] = {"outliers": with_outliers, "streams": preact.with_outliers}


def named(net: str, calibration: int, evaluation: int) -> Task:
    """The network NET, or NET made harder."""
    base, _, hard = net.partition(":")
    task = (preact.load if base in preact.NETS else load)(base, calibration, evaluation)
    return HARDER[hard](task) if hard else task


def int8_share(model: Model, task: Task) -> float:
    """Percent of the multiply-adds in int8."""
    macs = roofline.multiply_adds(task.model, {task.model.inputs[0]: (1, *task.calibration.shape[1:])})
    return 100 * roofline.int8_share(model, macs)


def row(task: Task, name: str, reference: Any) -> tuple[str, ...]:
    """One line of the table."""
    start = time.perf_counter()
    tool, _, mode = name.partition("-")
    model = by_contrib(task, mode) if tool == "contrib" else by_mxq(task, **SETTINGS[name])
    seconds = time.perf_counter() - start
    outputs = run(model, task.evaluation)
    agreement, sqnr = fidelity(reference, outputs)
    plain = "" if name.startswith("contrib") else f"{fidelity(reference, run(exact(model), task.evaluation))[1]:.2f}"
    share = "" if name.startswith("contrib") else f"{int8_share(model, task):.1f}"
    drop = task.score(reference) - task.score(outputs)
    return (task.name, name, f"{task.score(outputs):.2f}", f"{drop:+.2f}", f"{agreement:.1f}", f"{sqnr:.2f}", plain,
            share, f"{seconds:.0f}")  # fmt: skip


def main() -> None:
    """Measure and print, a line as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[*IMAGENET, *CIFAR, YOLO])
    parser.add_argument("--only", nargs="+", default=["contrib-naive", "contrib-entropy", *SETTINGS])
    parser.add_argument("--calibration", type=int, default=50, help="images")
    parser.add_argument("--evaluation", type=int, default=500, help="images (CIFAR: twenty times as many)")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    names = ("network", "method", "score %", "drop", "agreement %", "SQNR dB", "exact dB", "int8 %", "seconds")
    table, console = Table(*names), Console(width=120)
    for net in args.nets:
        task = named(net, args.calibration, args.evaluation)
        reference = run(task.model, task.evaluation)
        for name in args.only:
            found = row(task, name, reference)
            console.print(" | ".join(found), markup=False, highlight=False)
            table.add_row(*found)
        table.add_section()
    console.print(table)


if __name__ == "__main__":
    main()
