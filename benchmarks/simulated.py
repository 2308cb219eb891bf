"""How many codes of the int8 kernels the simulation gives, network by network, and why others differ.

    MXQ_DATA=... OMP_NUM_THREADS=1 python benchmarks/simulated.py [NET ...] [--examples 10]

Networks are those of `every_cpu`, made for this CPU with the method "fast". Every tensor that a kernel writes as codes
is compared. "whole" runs `mxq.backends.simulate` from the network's input, so that a code that differs is seen in all
that follows it; "largest" is the largest difference, in codes, and "outputs" the SQNR of the simulation's outputs with
the kernels' as reference. "alone" gives every operator what its kernel read. What differs then has a `Cause`, in codes
of a million. Without VNNI the kernels' sums saturate: `exact` stands in for them there.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import every_cpu
import numpy as np
from rich.console import Console
from rich.table import Table

from mxq import pipeline
from mxq.backends import layer_of
from mxq.backends.mxnet.exact import exact
from mxq.backends.mxnet.lower import int8_graph
from mxq.backends.mxnet.table import MXNET_191
from mxq.backends.simulate import simulate
from mxq.config import QuantConfig
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref, toposort
from mxq.graph.layers import CONVOLUTION
from mxq.host import machine
from mxq.numerics import sqnr_db
from mxq.passes.biases import has_bias
from mxq.quant import QuantizedNetwork
from mxq.runtime import MxnetRunner

CALIBRATION = 16
NEAR = 2e-3
"""How near a half float32 may decide, in codes: sums of thousands of products, and one more multiplication."""


class Cause(Enum):
    """Why a kernel gives another code than the simulation, for the same codes that it reads."""

    HALVED = "u8 halved"
    """BatchNorm takes half of the u8 codes that it reads, and rounds up in one part of a tensor, down in another."""
    BIAS = "bias grid"
    """The kernel rounds the bias to units of its sums of products; with such a bias the simulation has its code."""
    HALF = "near a half"
    """The value lies so near the middle of two codes that the order of float32 operations decides."""
    OTHER = "other"


@dataclass
class Compared:
    """What came of one network.

    Attributes:
        tensors: how many were compared.
        codes: how many they have.
        whole: of these, how many differ where the simulation runs from the input.
        largest: difference there.
        outputs: SQNR of the outputs in dB.
        causes: of those that differ alone.
        first: cause -> the first tensor that has it.
    """

    tensors: int
    codes: int = 0
    whole: int = 0
    largest: float = 0.0
    outputs: float = np.inf
    causes: Counter[Cause] = field(default_factory=Counter)
    first: dict[Cause, str] = field(default_factory=dict)


def tapped(model: Model, refs: Sequence[Ref], feeds: every_cpu.Feeds) -> tuple[list[Array], list[Array]]:
    """Outputs, and the tensors ``refs``."""
    found = list(MxnetRunner().compile(model, refs)(feeds))
    heads = len(model.graph.heads)
    return found[:heads], found[heads:]


def alone(network: QuantizedNetwork, refs: Sequence[Ref]) -> Model:
    """What operators make before it is rounded, in the order of ``refs``; what they read is fed as "<tensor>_codes"."""
    model = simulate(network)
    fed = {ref: Ref(f"{ref.name}_codes") for ref in refs}
    nodes = [replace(node, inputs=tuple(fed.get(ref, ref) for ref in node.inputs)) for node in model.graph]
    heads = tuple(_unrounded(model, network, ref) for ref in refs)
    doors = [Node(ref.name, VARIABLE) for ref in fed.values()]
    return model.with_graph(toposort([*nodes, *doors], heads, model.graph.attrs))


def _unrounded(model: Model, network: QuantizedNetwork, ref: Ref) -> Ref:
    """What `QParams.fake`, six operators and two more for an offset, makes the codes of ``ref`` from."""
    for _ in range(8 if network.made[ref].offset else 6):
        ref = model.graph[ref.name].inputs[0]
    return ref


def causes(network: QuantizedNetwork, ref: Ref, value: Array, code: Array) -> Counter[Cause]:
    """Of each code of ``ref`` that is not what ``value``, before it is rounded, becomes."""
    params, operation = network.made_as(ref), network.operations[ref.name]
    wanted = np.clip((value + network.made[ref].offset) * params.scale, params.spec.lowest, params.spec.highest)
    off = np.abs(np.rint(wanted) - code)
    where = off > 0
    if operation.halves and operation.reads[0] == "uint8":
        return Counter({Cause.HALVED: int(where.sum())})
    moved = wanted + np.broadcast_to(_bias_moves(network, ref, value.ndim), value.shape)
    half, bias = (where & (np.abs(v - code) <= 0.5 + NEAR) for v in (wanted, moved))
    return Counter({
        Cause.HALF: int(half.sum()), Cause.BIAS: int((bias & ~half).sum()),
        Cause.OTHER: int((where & ~half & ~bias).sum()),
    })  # fmt: skip


def _bias_moves(network: QuantizedNetwork, ref: Ref, ndim: int) -> Array:
    """What rounding the bias to units of the sums of products adds to a layer's result, in codes; 0 for no layer."""
    node = network.fused.graph[ref.name]
    layer = layer_of(node)
    if layer is None or not has_bias(node):
        return np.zeros(1)
    weight, bias = network.weights[node.inputs[1].name], network.fused.args[node.inputs[2].name].astype(np.float64)
    unit = 1 / (network.stored_as(node.inputs[0], network.operations[ref.name].reads[0]).scale * weight.scale)
    moves = (np.rint(bias / unit) * unit - bias) * network.made_as(ref).scale
    return np.asarray(moves.reshape(-1, *[1] * (ndim - 2)) if layer.op == CONVOLUTION else moves)


def compare(network: QuantizedNetwork, feeds: Mapping[str, Array]) -> Compared:
    """The kernels' codes beside those of the simulation."""
    int8, tensors = int8_graph(network, MXNET_191)
    kernels = exact(int8) if machine.detect().saturates else int8
    refs = [ref for ref in network.made if not network.operations[ref.name].passes_on]
    outputs, codes = tapped(kernels, [Ref(tensors.names[ref]) for ref in refs], feeds)
    simulated, values = tapped(simulate(network), refs, feeds)
    found = Compared(len(refs), outputs=min(sqnr_db(w, f) for w, f in zip(outputs, simulated, strict=True)))
    model = alone(network, refs)
    given = {f"{ref.name}_codes": _values(network, ref, code) for ref, code in zip(refs, codes, strict=True)}
    fed = {name: value for name, value in {**feeds, **given}.items() if name in model.graph}
    for ref, code, value, unrounded in zip(refs, codes, values, MxnetRunner().compile(model)(fed), strict=True):
        mine = np.rint((value + network.made[ref].offset) * network.made_as(ref).scale)
        off = np.abs(mine - code)
        found.codes, found.whole = found.codes + off.size, found.whole + int((off > 0).sum())
        found.largest = max(found.largest, float(off.max()))
        own = +causes(network, ref, np.asarray(unrounded), code)
        found.causes += own
        found.first = {**dict.fromkeys(own, str(ref)), **found.first}
    return found


def _values(network: QuantizedNetwork, ref: Ref, code: Array) -> Array:
    return (code / network.made_as(ref).scale - network.made[ref].offset).astype(np.float32)


def compared(name: str, examples: int) -> Compared:
    """`compare` for a network of `every_cpu`."""
    net, runner = every_cpu.NETS[name](), MxnetRunner()
    prepared = pipeline.plan(net.model, QuantConfig(effort="fast", num_calib_examples="100%"), runner)
    data = {n: v[:CALIBRATION] for n, v in net.calibration.items()}
    made = pipeline.quantize(prepared, pipeline.calibrate(prepared, data, runner, progress=False), runner=runner)
    if made.network is None:
        raise SystemExit(f"{name}: nothing is int8")
    return compare(made.network, {n: v[:examples] for n, v in net.evaluation.items()})


def main() -> None:
    """Compares, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", default=list(every_cpu.NETS))
    parser.add_argument("--examples", type=int, default=10)
    given = parser.parse_args()
    logging.disable(logging.INFO)
    table = Table("network", "tensors", "equal, whole", "largest", "outputs", "equal, alone", *(c.value for c in Cause))
    for name in given.nets:
        found = compared(name, given.examples)
        own = found.causes.total()
        each = [f"{1e6 * found.causes[c] / found.codes:.0f} {found.first.get(c, '')}".strip() for c in Cause]
        shares = (f"{100 * (1 - n / found.codes):.4f} %" for n in (found.whole, own))
        whole, single = shares
        table.add_row(name, str(found.tensors), whole, f"{found.largest:.0f}", f"{found.outputs:.1f} dB", single, *each)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
