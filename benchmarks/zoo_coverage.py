"""Every network of the coverage list: does it quantize with the defaults, how close is it, how fast, what stays float.

    MXQ_DATA=... python benchmarks/zoo_coverage.py [NET ...] [--repeats 20] [--json FILE] [--markdown FILE]

Each network runs in a process of its own, so that one that ends MXNet is a line of the table. Weights are random (see
`zoo`), as are the four calibration examples; the SQNR is that of another example's outputs. Where a network ends in
boxes or masks, which change place with the slightest noise, it is the least SQNR among the tensors that leave the int8
part before boxes are chosen. Times are medians of interleaved repeats at batch 1 (16 for the later nets of MTCNN);
"fused" is mxq's own float form, with all of its passes.

Noise says little of accuracy: where BatchNorm follows pooled features, which hardly differ between noises, it blows up
any difference (ResNeSt, DeepLab), and the statistics of detectors are those of a single example.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from children import in_its_own_process
from rich.console import Console
from rich.progress import track
from rich.table import Table
from zoo import DENSE, DETECTOR, NETS, Net, build, examples

from mxq import pipeline
from mxq.bench.timing import bench
from mxq.config import QuantConfig
from mxq.graph.ir import Array, Ref
from mxq.numerics import sqnr_db
from mxq.runtime import MxnetRunner, serve

CALIBRATION = 4
SECONDS = 10
"""How long a network is timed: slow ones have fewer repeats, two at least."""
CHOICES = ("nms", "topk", "Proposal")
"""Parts of the names of operators after which tensors of two networks belong to different boxes."""
COLUMNS = ("network", "int8", "float", "SQNR dB", "stock ms", "fused ms", "int8 ms", "x stock", "x fused (p10-p90)")


def measure(net: Net, repeats: int) -> dict[str, Any]:
    """Quantizes and times one network."""
    model, runner = build(net.name), MxnetRunner()
    prepared = pipeline.plan(model, QuantConfig(num_calib_examples="100%"), runner)
    batches = [examples(net, 1, seed) for seed in range(10, 10 + CALIBRATION)]  # some take one example at a time
    made = pipeline.quantize(prepared, pipeline.calibrate(prepared, batches, runner, progress=False))
    feeds = {model.inputs[0]: examples(net, net.batch)}
    networks = {"stock": model, "fused": pipeline.fuse_float(model, runner), "int8": made.model}
    calls = {k: serve(v, feeds) for k, v in networks.items()}
    for call in calls.values():
        call()
    start = time.perf_counter()
    for call in calls.values():
        call()
    rounds = max(2, min(repeats, int(SECONDS / (time.perf_counter() - start))))
    found = bench(calls, repeats=rounds, warmup=min(3, rounds - 2), base="fused")
    left = Counter((d.op, d.reason) for d in made.report.plan.decisions if not d.int8)
    return {
        "name": net.name,
        "int8": made.report.summary["int8"],
        "float": made.report.summary["float"],
        "sqnr": sqnr(net, prepared, made, feeds),
        **{f"{name}_ms": 1e3 * found[name].median for name in networks},
        "x_fused": found["int8"].speedup,
        "p10": found["int8"].low,
        "p90": found["int8"].high,
        "x_stock": found["stock"].median / found["int8"].median,
        "left": [[op, reason, count] for (op, reason), count in sorted(left.items())],
    }


def sqnr(net: Net, prepared: pipeline.Prepared, made: pipeline.Quantized, feeds: dict[str, Array]) -> float:
    """In dB, of the outputs, or of what leaves the int8 part."""
    taps = leaving(prepared, made) if net.kind in (DETECTOR, DENSE) else ()
    wanted, got = (
        list(MxnetRunner().compile(m, taps)(feeds))[-len(taps) if taps else 0 :] for m in (prepared.fused, made.model)
    )
    return min(sqnr_db(a - a.mean(), b - a.mean()) for a, b in zip(wanted, got, strict=True))


def leaving(prepared: pipeline.Prepared, made: pipeline.Quantized) -> tuple[Ref, ...]:
    """The float tensors that int8 nodes give to float ones, as far as no choice of boxes lies before them."""
    graph, quantized = prepared.fused.graph, prepared.plan.quantized
    after: set[str] = set()
    for node in graph.operators:
        if any(part in node.op for part in CHOICES) or any(r.name in after for r in node.inputs):
            after.add(node.name)
    found = [n.name for n in graph.operators if n.name in quantized and n.name in made.model.graph]
    return tuple(Ref(name) for name in found if name not in after)


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    if "error" in found:
        return (found["name"], *["-"] * (len(COLUMNS) - 2), found["error"])
    times = (f"{found[f'{name}_ms']:.2f}" for name in ("stock", "fused", "int8"))
    ratio = f"{found['x_fused']:.2f} ({found['p10']:.2f}-{found['p90']:.2f})"
    counts = (str(found["int8"]), str(found["float"]), f"{found['sqnr']:.1f}")
    return (found["name"], *counts, *times, f"{found['x_stock']:.2f}", ratio)


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table, and under it for each network what stays float and why."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(row(found))} |" for found in results]
    lines += ["", "## What stays float, and why", ""]
    for found in results:
        reasons: dict[str, list[str]] = {}
        for op, reason, count in found.get("left", ()):
            reasons.setdefault(reason, []).append(f"{count} {op}")
        lines += [f"**{found['name']}**" + ("" if reasons else ": nothing"), ""]
        lines += [f"- {', '.join(ops)}: {reason}" for reason, ops in sorted(reasons.items())]
        lines += [""] if reasons else []
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=[*NETS])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", choices=NETS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.stdout.write(json.dumps(measure(NETS[args.child], args.repeats)) + "\n")
        return
    results, console = [], Console(width=150)
    try:
        for name in track(args.nets, "networks", console=Console(stderr=True)):
            results.append(in_its_own_process(__file__, name, "--repeats", str(args.repeats)))  # noqa: PERF401 - kept when interrupted
    finally:
        table = Table(*COLUMNS)
        for found in results:
            table.add_row(*row(found))
        console.print(f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}")
        console.print(table)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
        if args.markdown:
            args.markdown.write_text(markdown(results))


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
