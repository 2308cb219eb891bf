"""Give quantized layers back the means and variances of the float network's channels, after BatchNorm was folded.

Formula. A BatchNorm over z has the output ``y = gamma (z - mean z) / sqrt(var z + eps) + beta``: whatever z is, new
statistics (`mxq.recalibration.statistics`) give y the mean beta and, but for eps, the deviation |gamma|. After folding
y = W x + b is the layer's own result, and on quantized inputs and weights it has another mean and deviation, m_q and
s_q. With those of the float network on the same data, m and s, per channel:

    r = sqrt((s^2 + e) / (s_q^2 + e))        W' = r W        b' = r (b - m_q) + m

gives y what a BatchNorm with new statistics would. Scales of weights that are floats, one for each channel, take r up:
codes stay. Others are rounded anew.

m and s are measured, not beta and |gamma|: a few examples have moments of their own, and it is what quantization moved
that is to be put back. The mean is what bias correction (`mxq.weights.bias`) is about, too; this comes after it, and
takes both moments from the float network, so that nothing is corrected twice. A BatchNorm that
no layer took in is treated as a layer: gamma is its weight, beta its bias.

Conditions: ranges are known, one layer alone reads the weight and the bias. Layers go in graph order, each reads what
those before it make with their new parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mxq.backends import layer_of
from mxq.backends.simulate import simulate
from mxq.graph.ir import Array, Model, Node, Runner
from mxq.passes.biases import with_biases
from mxq.quant import QuantizedNetwork
from mxq.recalibration.moments import Moments
from mxq.recalibration.statistics import BATCH_NORM, channels, norms_of
from mxq.rewrite import Event, Trace
from mxq.weights.layerwise_executor import LayerwiseExecutor, Schedule, ancestors

EPS: Final = 1e-5
"""e, in shares of the mean variance of the layer's channels: what is nearly constant is not blown up."""


def restored(
    runner: Runner,
    network: QuantizedNetwork,
    reference: Model,
    feeds: Sequence[Mapping[str, Array]],
    source: Model | None = None,
) -> QuantizedNetwork:
    """``network`` with the float network's moments, on ``feeds``, behind every layer that took in a BatchNorm.

    Args:
        runner: what runs an operator.
        network: weights, types and ranges are chosen; codes of any number of bits.
        reference: its fused float network as it was before, with weights and biases that nothing has corrected.
        feeds: batches of data; all of them are in memory, with every tensor that is still to be read.
        source: the network as given, which says where BatchNorms were; without it every layer counts.
    """
    network = with_biases(network)
    places = [place for node in reference.graph.operators if (place := _place(reference, node, source))]
    wanted = _moments(runner, reference, feeds, places)
    return _Restoring(runner, network, simulate(network), wanted, frozenset(network.weights)).over(feeds)


@dataclass(frozen=True)
class _Place:
    """Where moments are compared: the result of ``node``, a layer without what is fused to it, or a BatchNorm.

    ``key`` is the weight by which it is found in both networks, ``axis`` that of its channels.
    """

    node: Node
    key: str
    axis: int

    def seen(self, live: LayerwiseExecutor, model: Model) -> Moments:
        """The moments in ``model``, whose tensors up to here are held."""
        made = live.run(model, self.node)[self.node.out]
        return Moments.of(made, self.axis % made[0].ndim)


def _place(model: Model, node: Node, source: Model | None) -> _Place | None:
    """Where moments of ``node`` are compared; None where it is not to be changed."""
    inner = _inner(node)
    if inner is None or not _took_norm(node, source) or not all(model.is_own(ref.name) for ref in node.inputs[1:3]):
        return None
    return _Place(
        replace(inner, name=node.name, inputs=node.inputs[: len(inner.inputs)], label=""),
        node.inputs[1].name,
        _axis(inner),
    )


def _inner(node: Node) -> Node | None:
    """The layer with a bias, or the BatchNorm with a gamma, that a node is or holds; None for others."""
    if node.op == BATCH_NORM:
        return None if node.flag("fix_gamma", default=True) else node
    layer = layer_of(node)
    return None if layer is None or layer.flag("no_bias") else replace(layer, inputs=node.inputs[:3])


def _axis(inner: Node) -> int:
    """That of the channels of what ``inner`` makes."""
    if inner.op == BATCH_NORM:
        return channels(inner)
    return 1 if inner.op != "FullyConnected" or inner.flag("flatten", default=True) else -1


def _took_norm(node: Node, source: Model | None) -> bool:
    """Whether a BatchNorm was folded into a layer, or is one."""
    if source is None or node.op == BATCH_NORM:
        return True
    return bool({norm.name for norm in norms_of(source)} & set(node.origins))


def _moments(
    runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]], places: Sequence[_Place]
) -> dict[str, Moments]:
    """Those of the float network, by key."""
    at, found = {place.node.name: place for place in places}, dict[str, Moments]()
    live, schedule = LayerwiseExecutor.of(runner, model, feeds), Schedule.of(ancestors(model.graph, at))
    for node in schedule.nodes:
        if node.name in at and not live.lost.keys() & set(node.inputs):
            found[at[node.name].key] = at[node.name].seen(live, model)
        live.held |= live.step(model, node, schedule.outputs(node))
        live.forget(schedule.done(node))
    return found


@dataclass
class _Restoring:
    """A way through a network.

    Attributes:
        network: as it is so far.
        simulated: what it computes.
        wanted: the moments of the float network, by key.
        coded: the weights that are codes.
    """

    runner: Runner
    network: QuantizedNetwork
    simulated: Model
    wanted: Mapping[str, Moments]
    coded: frozenset[str]

    def over(self, feeds: Sequence[Mapping[str, Array]]) -> QuantizedNetwork:
        """The network, once all layers have been visited."""
        graph = self.simulated.graph
        places = [place for node in graph.operators if (place := _place(self.simulated, node, None))]
        at = {place.node.name: place for place in places if place.key in self.wanted}
        live = LayerwiseExecutor.of(self.runner, self.simulated, feeds)
        schedule = Schedule.of(ancestors(graph, at))
        for node in schedule.nodes:
            if node.name in at and not live.lost.keys() & set(node.inputs):
                place = at[node.name]
                self._restore(place, place.seen(live, self.simulated))
                self._centre(place, place.seen(live, self.simulated))
            live.held |= live.step(self.simulated, node, schedule.outputs(node))
            live.forget(schedule.done(node))
        return self.network

    def _restore(self, place: _Place, found: Moments) -> None:
        """New parameters of a layer, or a BatchNorm's gamma and beta."""
        fused, names = self.network.fused, [ref.name for ref in place.node.inputs[1:3]]
        weight, bias = (fused.args[name] for name in names)
        new = moved(weight, bias, found, self.wanted[place.key])
        event = Event("recalibrate_batchnorm", "restore_moments", place.node.name)
        network = self.network.with_weights(dict(zip(names, new, strict=True)))
        self.network = replace(network, trace=network.trace + Trace((event,)))
        shown = self.network.weight_as(place.key, new[0]).fake(new[0]) if place.key in self.coded else new[0]
        made = {names[0]: shown, names[1]: new[1]}
        self.simulated = self.simulated.with_graph(self.simulated.graph, made)

    def _centre(self, place: _Place, found: Moments) -> None:
        """The mean once more: of weights that were rounded anew it is another."""
        bias = place.node.inputs[2].name
        value = self.network.fused.args[bias] + (self.wanted[place.key].mean - found.mean)
        new = {bias: value.astype(np.float32)}
        self.network = self.network.with_weights(new)
        self.simulated = self.simulated.with_graph(self.simulated.graph, new)


def moved(weight: Array, bias: Array, found: Moments, wanted: Moments) -> tuple[Array, Array]:
    """A weight (C, ...) and bias (C,), float32, by which what has the moments ``found`` gets those ``wanted``."""
    e = EPS * wanted.var.mean()
    spread = (wanted.var + e > 0) & (found.var + e > 0)
    ratio = np.sqrt((wanted.var + e) / np.where(spread, found.var + e, 1.0), where=spread, out=np.ones_like(found.var))
    scaled = weight * ratio.reshape(-1, *[1] * (weight.ndim - 1))
    return scaled.astype(np.float32), (ratio * (bias - found.mean) + wanted.mean).astype(np.float32)
