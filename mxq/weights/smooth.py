"""Scale the channels of what LayerNorms make, for the layers that read it: equalization where a sum reads it, too.

Before:  x -> LayerNorm(gamma, beta) -> y -> FullyConnected(w)
                                          -> sum
After:   x -> LayerNorm(s gamma, s beta) -> s y -> FullyConnected(w / s)
                                                -> times 1 / s -> sum

Transformers have few channels that are a hundred times as large as the others, in what LayerNorms make, and a range for
these leaves the others a code or two. Layers take 1 / s into their weights. What else reads y, such as the sum around
attention, reads it times 1 / s: one product more in float.

Conditions: LayerNorm's axis is the last, gamma and beta are its own, what it makes is no output; each layer is fully
connected without flattening, with a weight of its own, and int8. Formula: that of `equalize`, for the layers alone, and
its `equalize.WORTH`. Source: Xiao et al., "SmoothQuant" (arXiv:2211.10438), section 4, which scales what LayerNorms
make; the product for what else reads it is needed where they stand behind sums, not before layers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mxq.backends import layer_of
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref, Runner
from mxq.quant.bits import Bits
from mxq.quant.thresholds import Thresholds
from mxq.weights.equalize import EIGHT, Channels, channels_of, rescaled, scaled, scales
from mxq.weights.families import LAST, Family
from mxq.weights.layerwise_executor import passing


def norms(model: Model, int8: Collection[str]) -> dict[str, Family]:
    """The LayerNorms of a fused float ``model`` that layers of ``int8`` read, by name, with these layers."""
    found = {}
    for node in model.graph.operators:
        if node.op != "LayerNorm" or not _is_usual(model, node):
            continue
        layers = [n for n in model.graph.consumers[node.name] if n.name in int8 and _reads(model, n, node.out)]
        if layers:
            found[node.name] = Family({node.name}, [node], layers, {LAST})
    return found


def _is_usual(model: Model, norm: Node) -> bool:
    own = all(model.is_own(ref.name) for ref in norm.inputs[1:3]) and norm.name not in model.graph.head_names
    return own and norm.integer("axis", -1) == -1 and not norm.flag("output_mean_var")


def _reads(model: Model, node: Node, ref: Ref) -> bool:
    """Whether a fully connected layer reads ``ref`` as its data, and nothing else of it."""
    layer = layer_of(node)
    if layer is None or layer.op != "FullyConnected" or layer.flag("flatten", default=True):
        return False
    return node.inputs[0] == ref and node.inputs.count(ref) == 1 and model.is_own(node.inputs[1].name)


def channels_made(
    runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]], found: Mapping[str, Family]
) -> dict[str, tuple[Channels, int]]:
    """What calibration data shows of the channels of what LayerNorms make, and how many axes that has."""
    if not found:
        return {}
    seen = {}
    for node, held in passing(runner, model, feeds):
        if node.name in found and len({batch.ndim for batch in held.get(node.out, ())}) == 1:
            seen[node.name] = channels_of(held[node.out], LAST), held[node.out][0].ndim
    return seen


def smooth(
    runner: Runner,
    model: Model,
    thresholds: Thresholds,
    int8: Collection[str],
    feeds: Sequence[Mapping[str, Array]],
    bits: Bits = EIGHT,
) -> tuple[Model, Thresholds, tuple[str, ...]]:
    """Scales what LayerNorms make where that helps, but for ranges that are given: they are of the values as they are.

    Args:
        runner: what runs the network.
        model: fused, float.
        thresholds: its ranges.
        int8: names of the layers that are to be int8.
        feeds: batches of calibration data.
        bits: of codes.

    Returns:
        The model and the ranges of its tensors, and the names of the LayerNorms that are scaled.
    """
    found = {n: f for n, f in norms(model, int8).items() if n not in thresholds or not thresholds[n].is_fixed}
    seen = channels_made(runner, model, feeds, found)
    known, table = {name: channels for name, (channels, _) in seen.items()}, dict(thresholds)
    chosen = {name: s for name in seen if (s := scales(model, found[name], known, bits)) is not None}
    for name, s in chosen.items():
        model = _restored(scaled(model, [(found[name], s)]), found[name], s, seen[name][1])
        if name in table:
            table[name] = rescaled(table[name], known[name], s)
    return model, Thresholds(table) if chosen else thresholds, tuple(chosen)


def _restored(model: Model, family: Family, s: Array, rank: int) -> Model:
    """Times 1 / s where no layer of ``family`` reads what its LayerNorm makes, of ``rank`` axes."""
    norm, layers = family.writers[0], {node.name for node in family.readers}
    others = [n for n in model.graph.consumers[norm.name] if n.name not in layers]
    if not others:
        return model
    inverse = Node(model.graph.unused(f"{norm.name}_inverse"), VARIABLE)
    plain = Node(model.graph.unused(f"{norm.name}_unscaled"), "broadcast_mul", {}, (norm.out, inverse.out))
    changes: dict[str, Sequence[Node]] = {
        n.name: (replace(n, inputs=tuple(plain.out if r == norm.out else r for r in n.inputs)),) for n in others
    }
    changes[norm.name] = (model.graph[norm.name], inverse, plain)
    graph = model.graph.replace(changes)
    value = (1 / s).astype(np.float32).reshape(*[1] * (rank - 1), -1)
    return model.with_graph(graph, {inverse.name: value})
