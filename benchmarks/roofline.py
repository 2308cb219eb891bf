"""What the machine could do: its peak through MXNet's own kernels, and the multiply-adds that a network needs.

    python benchmarks/roofline.py [--json FILE] [--repeats 10]

The peaks are the best that stacks of equal layers reach, in int8 and in fused float32. Multiply-adds are those of
Convolution, Deconvolution and FullyConnected. The share of a network is 2 x multiply-adds / time / int8 peak, also
where some of its layers run in float, and a depthwise convolution counts like any other though memory bounds it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import mxq  # isort: skip  (before mxnet)

mxq.use_physical_cores()
os.environ.setdefault("MXNET_SUBGRAPH_VERBOSE", "0")

import mxnet as mx  # noqa: E402
from mxnet.gluon import nn  # noqa: E402

from mxq.bench.timing import bench  # noqa: E402
from mxq.graph.ir import Model, Node, Ref, toposort  # noqa: E402
from mxq.pipeline import fuse_float  # noqa: E402
from mxq.runtime import from_symbol, load_model, serve, to_arrays, to_symbol  # noqa: E402

COUNTED = ("Convolution", "Deconvolution", "FullyConnected")

Shape = tuple[int, ...]


def multiply_adds(model: Model, inputs: Mapping[str, Shape]) -> dict[str, int]:
    """Multiply-adds of each convolution, deconvolution and fully connected layer of a float ``model``, by its name.

    Args:
        inputs: shape of each input, with the batch.
    """
    nodes = [node for node in model.graph.operators if node.op in COUNTED]
    refs = list(dict.fromkeys(_counted(node) for node in nodes))
    if not refs:
        return {}
    known = {name: value.shape for name, value in {**model.args, **model.auxs}.items()}
    symbol = to_symbol(toposort(model.graph.nodes, refs, model.graph.attrs))
    read = set(symbol.list_inputs())
    names = symbol.list_arguments()
    arguments, outputs, _ = symbol.infer_shape(**{n: s for n, s in {**known, **inputs}.items() if n in read})
    shapes = dict(zip(refs, outputs, strict=True))
    weights = {**known, **dict(zip(names, arguments, strict=True))}
    return {n.name: math.prod(shapes[_counted(n)]) * math.prod(weights[n.inputs[1].name][1:]) for n in nodes}


def _counted(node: Node) -> Ref:
    """The tensor each of whose elements meets every weight of one first-axis slice of the weights.

    An output of a convolution (O, I/g, kh, kw) or fully connected layer (O, I); an *input* of a deconvolution, whose
    weights are (I, O/g, kh, kw).
    """
    return node.inputs[0] if node.op == "Deconvolution" else node.out


def int8_share(quantized: Model, macs: Mapping[str, int]) -> float:
    """Which share of the multiply-adds ``macs`` of the float network ``quantized`` does in int8."""
    integer = [n for n in quantized.graph.operators if n.flag("quantized") or n.op.startswith("_contrib_quantized_")]
    origins = {origin for node in integer for origin in node.origins}
    total = sum(macs.values())
    return sum(count for name, count in macs.items() if name in origins) / total if total else 0.0


@dataclass(frozen=True)
class Stack:
    """Equal layers in a row, on (batch, channels, side, side); dense ones, on (batch, channels), where kernel is 0."""

    channels: int
    kernel: int
    side: int
    batch: int
    layers: int = 4

    def __str__(self) -> str:
        what = "dense" if not self.kernel else f"conv{self.kernel}x{self.kernel}"
        where = "" if not self.kernel else f" {self.side}x{self.side}"
        return f"{what} {self.channels}{where} batch {self.batch}"

    @property
    def shape(self) -> Shape:
        return (self.batch, self.channels, self.side, self.side) if self.kernel else (self.batch, self.channels)

    def build(self) -> Model:
        """The float network."""
        net, width, pad = nn.HybridSequential(), self.channels, self.kernel // 2
        for _ in range(self.layers):
            if self.kernel:
                net.add(nn.Conv2D(width, self.kernel, padding=pad, in_channels=width, activation="relu"))
            else:
                net.add(nn.Dense(width, in_units=width, activation="relu"))
        net.initialize(mx.init.MSRAPrelu("in", 0.0))
        net(mx.nd.zeros((1, *self.shape[1:]))).wait_to_read()
        return load_model(net)


STACKS = (
    Stack(64, 3, 56, 8), Stack(128, 3, 28, 16), Stack(256, 3, 14, 16), Stack(256, 3, 28, 8), Stack(512, 3, 14, 8),
    Stack(256, 1, 56, 4), Stack(512, 1, 28, 8), Stack(1024, 1, 14, 16), Stack(2048, 0, 1, 256), Stack(4096, 0, 1, 128),
)  # fmt: skip


def peaks(stacks: Sequence[Stack] = STACKS, repeats: int = 10) -> dict[str, dict[str, float]]:
    """Operations per second, two a multiply-add, of each stack: {"int8": {stack: ...}, "float32": {...}}.

    The least of the times counts, for a peak is what is reached when nothing disturbs.
    """
    found: dict[str, dict[str, float]] = {"int8": {}, "float32": {}}
    for stack in stacks:
        model = stack.build()
        images = np.random.default_rng(0).standard_normal(stack.shape).astype(np.float32)
        macs = sum(multiply_adds(model, {model.inputs[0]: stack.shape}).values())
        calls: dict[str, Callable[[], None]] = {
            "int8": serve(_quantize(model, images), {model.inputs[0]: images}),
            "float32": serve(fuse_float(model), {model.inputs[0]: images}),
        }
        timed = bench(calls, repeats=repeats, warmup=2)
        for kind in calls:
            found[kind][str(stack)] = 2 * macs / timed[kind].minimum
    return found


def _quantize(model: Model, images: Any) -> Model:
    symbol = (to_symbol(model.graph), to_arrays(model.args), to_arrays(model.auxs))
    few = images[: max(1, len(images) // 4)]
    return from_symbol(*mxq.quantize_model(*symbol, calib_data=few, num_calib_examples=len(few)))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    found = peaks(repeats=args.repeats)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    lines = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}; 10^9 operations a second, int8 and float32"]
    rows = [(name, found["int8"][name], found["float32"][name]) for name in found["int8"]]
    rows.append(("peak", *(max(found[kind].values()) for kind in ("int8", "float32"))))
    lines += [f"{name:28} {a / 1e9:8.0f} {b / 1e9:8.0f}   ratio {a / b:.2f}" for name, a, b in rows]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
