"""Correct biases without data, from what BatchNorm knows of the tensors that layers read.

Formula. After BatchNorm a channel has mean beta and deviation |gamma|; supposed normal, what a ReLU or a clip to [a, b]
makes of it has the mean

    E[x] = a Phi(u) + b (1 - Phi(v)) + beta (Phi(v) - Phi(u)) + |gamma| (phi(u) - phi(v))

with ``u = (a - beta) / |gamma|`` and ``v = (b - beta) / |gamma|``. A layer whose weights W became W^ is off by
``(W^ - W) E[x]`` on average, which its bias takes back. Source: Nagel et al., arXiv:1906.04721, section 4.2.1 and
appendix C.

Conditions: a fused convolution or fully connected layer with a folded BatchNorm and no sum makes the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from scipy.stats import norm

from mxq.backends import layer_of
from mxq.calibration.patches import Geometry
from mxq.graph.ir import Array, Model, Node
from mxq.quant.plan import Plan
from mxq.weights.bias import Activation
from mxq.weights.methods import BiasMethod, Rounded


@dataclass(frozen=True)
class Analytic:
    """See the module."""

    name: ClassVar[str] = "analytic"
    needs: ClassVar[Literal["nothing", "data", "batch_norm"]] = "batch_norm"
    in_tune: ClassVar[bool] = True

    def correction(self, layer: Rounded) -> Array | None:
        """None also where the layer's inputs are not the channels that the mean is of."""
        if layer.mean is None:
            return None
        geometry, weight = layer.geometry, layer.weight
        per_group = layer.mean.reshape(geometry.groups, 1, -1)
        channels = per_group.shape[2]
        if weight[0].size % channels or not (geometry.kernel or geometry.flatten):
            return None
        off = (layer.values - geometry.grouped(weight)).astype(np.float64)
        if geometry.kernel:  # (G, O, taps * I)
            sums = off.reshape(*off.shape[:2], -1, channels).sum(axis=2)
        else:  # (1, O, I * places)
            sums = off.reshape(*off.shape[:2], channels, -1).sum(axis=3)
        return -np.asarray((sums * per_group).sum(axis=2).ravel())


def corrected(
    method: BiasMethod,
    source: Model,
    before: Model,
    after: Model,
    values: Mapping[str, Callable[[], Array]],
    plan: Plan,
) -> Model:
    """``after`` with the biases of its int8 layers corrected by a ``method`` that needs BatchNorm's statistics.

    Args:
        method: what corrects each layer of whose inputs BatchNorm tells.
        source: the network as given, whose BatchNorms are still there.
        before: fused, its weights those of float.
        after: the same network with the parameters that are written, a bias in every int8 layer.
        values: weight -> what gives (O, ...), what the kernels make of it.
        plan: says which layers are int8.
    """
    args = {}
    for node in after.graph.operators:
        inner = layer_of(node)
        mean = None if inner is None else expected(source, before.graph[node.inputs[0].name])
        if inner is None or mean is None or node.name not in plan.quantized:
            continue
        weight, bias = node.inputs[1].name, node.inputs[2].name
        geometry = Geometry.of(inner)
        made = geometry.grouped(values[weight]())
        added = method.correction(Rounded(node, geometry, before.args[weight], made, after.args[bias], mean=mean))
        if added is not None:
            args[bias] = (after.args[bias] + added).astype(np.float32)
    return after.with_graph(after.graph, args) if args else after


def expected(source: Model, node: Node) -> Array | None:
    """The mean of each channel of what ``node`` makes, (C,) float64; None where BatchNorm does not tell."""
    norms = [source.graph[name] for name in node.origins if name in source.graph]
    norms = [n for n in norms if n.op == "BatchNorm"]
    if not node.subgraphs or node.flag("with_sum") or len(norms) != 1:
        return None
    gamma, beta = (source.param(ref.name) for ref in norms[0].inputs[1:3])
    if gamma is None or beta is None:
        return None
    spread = np.ones(len(beta)) if norms[0].flag("fix_gamma", default=True) else np.abs(gamma).astype(np.float64)
    mean = clipped_mean(beta.astype(np.float64), np.maximum(spread, 1e-12), Activation.of(node))
    order, scale = node.note.order, node.note.scale
    mean = mean[list(order)] if order else mean
    return mean * np.array(scale) if scale else mean


def clipped_mean(mean: Array, spread: Array, activation: Activation) -> Array:
    """The mean of a normal variable after a clip: (C,) each."""
    low, high = activation.low, activation.high
    u, v = (low - mean) / spread, (high - mean) / spread
    inside = mean * (norm.cdf(v) - norm.cdf(u)) + spread * (norm.pdf(u) - norm.pdf(v))
    below = low * norm.cdf(u) if np.isfinite(low) else 0.0
    above = high * norm.sf(v) if np.isfinite(high) else 0.0
    total: Array = inside + below + above
    return total
