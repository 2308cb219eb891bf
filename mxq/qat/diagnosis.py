"""What a fake-quantized network has learned of ranges, epoch by epoch, and what rounding costs each tensor.

Li et al., "MQBench", arXiv:2111.03759, appendix B: learned ranges say what an algorithm clips; a tensor that rounding
hurts most is where bits are missing. Both are read off the graph's fake-quantizing operators, so of networks that have
them (`mxq.qat.algorithms.fake_node`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np

from mxq import runtime
from mxq.data.feed import Feed, taken
from mxq.errors import MxqError
from mxq.graph.ir import Array, Model, Node
from mxq.numerics import sqnr_db
from mxq.qat.algorithms import OP_TYPE, get, site_of

EXAMPLES: Final = 16
"""Of the first training batch, on which rounding is measured."""


def fake_nodes(model: Model) -> tuple[Node, ...]:
    """The operators of a network that fake-quantize."""
    return tuple(n for n in model.graph.operators if n.op == "Custom" and n.attrs.get("op_type") == OP_TYPE)


def diagnosed(block: Any, feed: Feed, epoch: int) -> Iterator[Mapping[str, Any]]:
    """Lines for the journal about a block as it is; none of one that is not fake-quantized, or cannot be traced.

    ==========  ===================================================================================================
    "ranges"    name of each quantizer -> [low, high], what its codes cover, of all channels
    "noise"     the same names -> SQNR in dB of what it makes against what it reads; None where that is not finite
    ==========  ===================================================================================================
    """
    try:
        model = runtime.load_model(block)
    except MxqError:
        return
    nodes = fake_nodes(model)
    if not nodes:
        return
    refs = [ref for node in nodes for ref in (node.inputs[0], node.out)]
    found = runtime.MxnetRunner().compile(model, refs)(taken(feed, slice(EXAMPLES)))
    tensors = [np.asarray(found[len(model.graph.heads) + i]) for i in range(len(refs))]
    names = [quantizer_of(model, node) for node in nodes]
    pairs = dict(zip(names, zip(tensors[::2], tensors[1::2], strict=True), strict=True))
    ranges = {name: covered(model, node, pairs[name][0]) for name, node in zip(names, nodes, strict=True)}
    yield {"kind": "ranges", "epoch": epoch, "ranges": ranges}
    noise = {name: sqnr_db(given, made) for name, (given, made) in pairs.items()}
    yield {"kind": "noise", "epoch": epoch, "sqnr_db": {k: v if math.isfinite(v) else None for k, v in noise.items()}}


def quantizer_of(model: Model, node: Node) -> str:
    """The name of the quantizer: of the copy of what a fake-quantizing operator makes, or its own without one."""
    readers = [reader for reader in model.graph.consumers[node.name] if node.out in reader.inputs]
    return readers[0].name if len(readers) == 1 and node.name.startswith(f"{readers[0].name}_") else node.name


def covered(model: Model, node: Node, values: Array) -> list[float]:
    """The lowest and the highest value that codes of a fake-quantized tensor stand for.

    Args:
        model: with the parameters.
        node: the operator.
        values: what it reads.
    """
    site, algorithm = site_of(node.attrs), get(node.attrs["algorithm"])
    given = [model.args[ref.name] for ref in node.inputs[1:]]
    parameters = dict(zip(algorithm.parameters(site), given, strict=True))
    folded = np.ascontiguousarray(values, np.float32).reshape(site.folded(values.shape))
    params = algorithm.deployed(site, folded, parameters)[1]
    return [float(params.low.min()), float(params.high.max())]
