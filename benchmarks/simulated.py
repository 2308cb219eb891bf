"""How many codes of the int8 kernels the simulation gives, network by network: `mxq.backends.simulate`.

    MXQ_DATA=... OMP_NUM_THREADS=1 python benchmarks/simulated.py [NET ...] [--examples 10]

Networks are those of `every_cpu`, made for this CPU with the method "fast". Every tensor that a kernel writes as codes
is compared. "whole" runs both networks from their input, so that a code that differs is seen in all that follows it;
"largest" is the largest difference, in codes. "outputs" is the SQNR of the simulation's outputs with the kernels' as
reference. Without VNNI the kernels' sums saturate: `exact` stands in for them there.
"""

from __future__ import annotations

import argparse
import logging

import every_cpu
import numpy as np
from rich.console import Console
from rich.table import Table

from mxq import pipeline
from mxq.backends.simulate import simulate
from mxq.config import QuantConfig
from mxq.graph.ir import Array, Model, Ref
from mxq.host import machine
from mxq.numerics import sqnr_db
from mxq.passes.exact import exact
from mxq.passes.quantize import quantize_graph
from mxq.runtime import MxnetRunner

CALIBRATION = 16


def tapped(model: Model, refs: list[Ref], feeds: every_cpu.Feeds) -> tuple[list[Array], list[Array]]:
    """Outputs, and the tensors ``refs``."""
    found = list(MxnetRunner().compile(model, refs)(feeds))
    heads = len(model.graph.heads)
    return found[:heads], found[heads:]


def compared(name: str, examples: int) -> tuple[int, float, float, float]:
    """The number of tensors, the share of equal codes, the largest difference, and the outputs' SQNR."""
    net, runner = every_cpu.NETS[name](), MxnetRunner()
    prepared = pipeline.plan(net.model, QuantConfig(effort="fast", num_calib_examples="100%"), runner)
    data = {n: v[:CALIBRATION] for n, v in net.calibration.items()}
    made = pipeline.quantize(prepared, pipeline.calibrate(prepared, data, runner, progress=False), runner=runner)
    chosen = made.chosen
    if chosen is None:
        raise SystemExit(f"{name}: nothing is int8")
    int8, tensors = quantize_graph(chosen)
    kernels = exact(int8) if machine.detect().saturates else int8
    refs = [ref for ref in chosen.made if not chosen.operations[ref.name].passes_on]
    feeds = {n: v[:examples] for n, v in net.evaluation.items()}
    wanted, codes = tapped(kernels, [Ref(tensors.names[ref]) for ref in refs], feeds)
    found, values = tapped(simulate(chosen), refs, feeds)
    equal = total = largest = 0
    for ref, code, value in zip(refs, codes, values, strict=True):
        mine = np.rint((value + chosen.made[ref].offset) * chosen.made_as(ref).scale)
        off = np.abs(mine - code)
        equal, total, largest = equal + int((off == 0).sum()), total + off.size, max(largest, int(off.max()))
    return len(refs), equal / max(total, 1), largest, min(sqnr_db(w, f) for w, f in zip(wanted, found, strict=True))


def main() -> None:
    """Compares, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(every_cpu.NETS))
    parser.add_argument("--examples", type=int, default=10)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    table = Table("network", "tensors", "equal codes", "largest", "outputs")
    for name in given.nets:
        count, share, largest, db = compared(name, given.examples)
        table.add_row(name, str(count), f"{100 * share:.3f} %", f"{largest:.0f}", f"{db:.1f} dB")
    Console().print(table)


if __name__ == "__main__":
    main()
