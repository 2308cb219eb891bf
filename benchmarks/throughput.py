"""Speed of mxq's int8 beside ``mxnet.contrib.quantization`` and fused float32: interleaved, medians, equal threads.

    MXQ_DATA=... python benchmarks/throughput.py [NET ...] [--batch-sizes 1 16]

NET is one of ``MXQ_DATA`` or of gluoncv's zoo (`zoo`; then with random weights).

"x fused" is how many times as fast as fused float32, "x contrib" as contrib's int8: medians of the round-by-round
ratios, with the 10th and 90th percentile of the latter.
"""

from __future__ import annotations

import argparse
import logging
import os

import numpy as np
from real_nets import CIFAR, IMAGENET, YOLO, Task, by_contrib, by_mxq, load
from rich.console import Console
from rich.table import Table
from zoo import NETS, build, examples

from mxq.bench.timing import bench
from mxq.pipeline import fuse_float
from mxq.runtime import serve


def row(task: Task, batch: int, repeats: int) -> tuple[str, ...]:
    """One line of the table."""
    images = np.resize(task.evaluation, (batch, *task.evaluation.shape[1:]))
    models = {
        "contrib": by_contrib(task, "naive", batch=min(10, len(task.calibration))),
        "mxq": by_mxq(task),
        "fused": fuse_float(task.model),
        "float32": task.model,
    }
    calls = max(1, 64 // batch // 4) if images.shape[-1] < 64 else max(1, 4 // batch)
    found = bench(
        {name: serve(model, {model.inputs[0]: images}) for name, model in models.items()},
        repeats=repeats, examples=batch, calls=calls, base="contrib",
    )  # fmt: skip
    mxq, fused = found["mxq"], found["fused"]
    return (
        task.name,
        str(batch),
        *(f"{1000 * found[n].median:.2f}" for n in ("float32", "fused", "contrib", "mxq")),
        f"{fused.median / mxq.median:.2f}",
        f"{mxq.speedup:.3f} ({mxq.low:.2f}-{mxq.high:.2f})",
    )


def zoo_task(name: str) -> Task:
    """A network of the zoo on noise."""
    return Task(name, build(name), examples(NETS[name], 4, seed=3), examples(NETS[name], 4), None)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[*IMAGENET, *CIFAR, YOLO])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    logging.disable(logging.INFO)
    table = Table("network", "batch", "float32 ms", "fused ms", "contrib ms", "mxq ms", "x fused", "x contrib")
    for name in args.nets:
        task = zoo_task(name) if name in NETS else load(name, evaluation=64)
        for batch in args.batch_sizes:
            table.add_row(*row(task, batch, args.repeats))
    console = Console(width=120)
    console.print(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}")
    console.print(table)


if __name__ == "__main__":
    main()
