"""Noisy layers: those of little work whose rounding is much of the network's noise, found by measuring, stay in float.

Before:  image -> conv (int8) -> depthwise (int8) -> ... -> global depthwise (int8) -> dense (int8)
After:   image -> conv (float) -> depthwise (float) -> ... -> global depthwise (float) -> dense (int8)

Stems of few channels, from which all others come, and learned poolings, whose output is all that is left of a picture,
are such layers. No names or shapes say so; calibration data does, for every int8 layer l:

    delta_l = Q(w) * q(x) - w * x        the layer on codes and on floats, both on what the float network gives it
    b_l     = -E[delta_l]                of each channel: what a bias makes up for (arXiv:1906.04721, section 4.2)
    n_l     = Var[f(y + delta_l + b_l) - f(y)] / Var[f(y)]            of all channels together

n_l is the layer's noise in shares of the outputs' variance: the float network f goes on from what the layer makes on
codes. Errors of single layers add up (H. Wu et al., arXiv:2004.09602, section 5.1, look at layers one by one as well),
so the noise of the network is n, the sum of all n_l. On MobileNet v2 that is within 1 dB of what refinement leaves.

Layers stay in float one after the other, each time the noisiest that may. It may where n_l is at least `DOMINANT` of
the n of those that do not stay, and its shares of the multiply-adds, of the weights and of the elements that layers
read and write are at most that, with those that stay already at most `ALL`: weights take the time at batch 1, elements
that of layers that do little with each. Where float neither reads nor gives codes it spares conversions, and `BESIDE`
counts. Nothing stays where n is below `GOOD`. The outputs are what the last int8 layers give: what follows these
(softmax, suppression of boxes) is float anyway.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final

import numpy as np

from mxq.backends import BackendSpec, the_layer_of
from mxq.data.feed import examples_in
from mxq.errors import RuntimeFailure
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref, Runner
from mxq.graph.layers import CONVOLUTION, layer_of, without_bias
from mxq.numerics import channel_rows
from mxq.passes.biases import with_biases
from mxq.quant import QuantizedNetwork
from mxq.quant.plan import NoiseRecord
from mxq.weights.layerwise_executor import Batches, LayerwiseExecutor, passing

EXAMPLES: Final = 4
"""How many examples are looked at; each layer takes a run of what follows it."""
ALL: Final = (0.06, 0.06, 0.15)
"""Shares of the multiply-adds, the weights and the elements that all layers may have that stay in float."""


@dataclass(frozen=True)
class _Bar:
    """A layer stays in float that has at least this share of the ``noise``, and at most these of the ``work``."""

    noise: float
    work: tuple[float, float, float]


DOMINANT: Final = _Bar(0.15, (0.02, 0.04, 0.1))
BESIDE: Final = _Bar(0.1, (0.04, 0.04, 0.1))
"""Of a layer that reads floats, which only float operators read."""
GOOD: Final = 1e-3
"""Noise (30 dB) of which nothing needs to be taken away."""
SHOWN: Final = 8
"""The noisiest layers, of which there are records."""
_TINY: Final = 1e-30
_UNCHANGED: Final[Mapping[str, tuple[Node, ...]]] = MappingProxyType({})


def noisy_layers(
    runner: Runner,
    network: QuantizedNetwork,
    spec: BackendSpec,
    feeds: Sequence[Mapping[str, Array]],
    free: Collection[str],
) -> dict[str, NoiseRecord]:
    """What was measured of the noisiest layers; those with ``to_float`` are better left in float.

    Args:
        runner: what runs networks.
        network: what is decided of it; its weights are those of float.
        spec: what kernels there are.
        feeds: a few examples.
        free: the layers that may be left in float.

    Raises:
        RuntimeFailure: the network does not run.
    """
    return _Meter(runner, with_biases(network), spec, feeds, frozenset(free)).records()


@dataclass(frozen=True)
class _Measured:
    """A layer: its multiply-adds, weights, and elements read and written, those of one example; and its noise."""

    work: Array
    noise: float


@dataclass(frozen=True)
class _Meter:
    """Measures ``network``; attributes as of `noisy_layers`."""

    runner: Runner
    network: QuantizedNetwork
    spec: BackendSpec
    feeds: Sequence[Mapping[str, Array]]
    free: frozenset[str]

    @property
    def model(self) -> Model:
        return self.network.fused

    @cached_property
    def layers(self) -> tuple[Node, ...]:
        """The int8 layers, in graph order."""
        int8 = self.network.plan.quantized
        return tuple(n for n in self.model.graph.operators if n.name in int8 and layer_of(n) and self._is_own(n))

    def _is_own(self, node: Node) -> bool:
        return all(self.model.is_own(ref.name) for ref in node.inputs[1:3])

    @cached_property
    def outputs(self) -> tuple[Ref, ...]:
        """What the layers give that no other one follows."""
        names, before = {n.name for n in self.layers}, set[str]()
        for node in reversed(self.model.graph.operators):
            if any(c.name in names or c.name in before for c in self.model.graph.consumers[node.name]):
                before.add(node.name)
        return tuple(n.out for n in self.layers if n.name not in before)

    def records(self) -> dict[str, NoiseRecord]:
        """See `noisy_layers`."""
        found = self._measured()
        total = sum(layer.noise for layer in found.values())
        if not found or not math.isfinite(total):
            return {}
        whole = np.maximum(np.sum([layer.work for layer in found.values()], axis=0), 1)
        shares = {name: layer.work / whole for name, layer in found.items()}
        chosen = self._chosen({name: layer.noise for name, layer in found.items()}, shares)
        shown = sorted(found, key=lambda name: (name not in chosen, -found[name].noise))[:SHOWN]
        return {n: _record(found[n].noise, total, shares[n], to_float=n in chosen) for n in shown}

    def _chosen(self, noises: Mapping[str, float], shares: Mapping[str, Array]) -> frozenset[str]:
        """Those that stay in float."""
        chosen = frozenset[str]()
        while True:
            left = sum(noise for name, noise in noises.items() if name not in chosen)
            used = sum((shares[name] for name in chosen), np.zeros(3))
            may = [n for n in self.free & noises.keys() - chosen if bool((used + shares[n] <= ALL).all())]
            bars = {n: BESIDE if self._is_beside(n, chosen) else DOMINANT for n in may}
            may = [n for n in may if noises[n] >= bars[n].noise * left and bool((shares[n] <= bars[n].work).all())]
            if left < GOOD or not may:
                return chosen
            chosen |= {max(may, key=lambda name: (noises[name], name))}

    def _is_beside(self, name: str, chosen: frozenset[str]) -> bool:
        """Whether the layer reads floats and gives floats, where it and ``chosen`` stay in float."""
        graph, int8 = self.model.graph, self.network.plan.quantized - chosen - {name}
        around = [graph[name].inputs[0], *(reader.out for reader in graph.consumers[name])]
        return not any(ref.name in int8 for ref in around)

    def _measured(self) -> dict[str, _Measured]:
        """Each layer, as it is on codes, on what the float network gives it."""
        exact, found, names = self._run(self.feeds), dict[str, _Measured](), {n.name for n in self.layers}
        for node, held in passing(self.runner, self.model, self.feeds):
            if node.name in names and all(ref in held for ref in node.inputs if ref.name not in self.model.args):
                with suppress(RuntimeFailure):  # it does not run alone
                    noise = _noise(exact, self._after(node.name, self._coded_layer(node, held)))
                    found[node.name] = _Measured(self._work(node, held), noise)
        return found

    def _work(self, node: Node, held: Mapping[Ref, Batches]) -> Array:
        """Its multiply-adds, weights and elements, (3,)."""
        weight, examples = self.model.args[node.inputs[1].name], sum(map(examples_in, self.feeds))
        read, written = (sum(b.size for b in held[ref]) // examples for ref in (node.inputs[0], node.out))
        return np.array([written * math.prod(weight.shape[1:]), weight.size, read + written])

    def _coded_layer(self, node: Node, held: Mapping[Ref, Batches]) -> Batches:
        """What a layer makes on codes, its bias moved by what takes the mean error of each channel away."""
        data, names = node.inputs[0], [ref.name for ref in node.inputs[1:3]]
        weight = self.network.weights[names[0]].fake(self.model.args[names[0]])
        rounded = self.model.with_graph(self.model.graph, {names[0]: weight})
        exact = self._linear(self.model, node, held[data])
        coded = self._linear(rounded, node, self._coded(node, 0, held[data]))
        axis = 1 if the_layer_of(node).op == CONVOLUTION else -1
        mean = _by_channel([c - e for c, e in zip(coded, exact, strict=True)], axis).mean(axis=1, dtype=np.float64)
        bias = (self.model.args[names[1]] - mean).astype(np.float32)
        return self._alone(rounded.with_graph(rounded.graph, {names[1]: bias}), node, held)

    def _coded(self, node: Node, place: int, value: Batches) -> Batches:
        """What ``node`` reads as codes at a place, where it would read it otherwise if it stayed in float."""
        dtype, ref = self.network.operations[node.name].reads.get(place), node.inputs[place]
        if dtype is None or self._is_code_anyway(ref):
            return value
        params = self.network.stored_as(ref, dtype)
        return [params.fake(v) for v in value]

    def _is_code_anyway(self, ref: Ref) -> bool:
        """Whether float readers of ``ref`` read its codes made float."""
        row = self.spec.find(self.model.graph[ref.name].op)
        return row is not None and row.codes_for_all and ref.name in self.network.plan.quantized

    def _linear(self, model: Model, node: Node, value: Batches) -> Batches:
        """What the layer in ``node`` makes of ``value`` without bias, sum and activation."""
        layer = without_bias(replace(the_layer_of(node), inputs=node.inputs))
        return LayerwiseExecutor(self.runner, {node.inputs[0]: value}).run(model, layer)[layer.out]

    def _alone(self, model: Model, node: Node, held: Mapping[Ref, Batches]) -> Batches:
        """What ``node`` makes of what it reads as codes."""
        read = {ref: self._coded(node, place, held[ref]) for place, ref in enumerate(node.inputs) if ref in held}
        return LayerwiseExecutor(self.runner, read).run(model, node)[node.out]

    def _after(self, name: str, made: Batches) -> list[Batches]:
        """The outputs where the layer ``name`` gives what it makes on codes."""
        changes = {name: (Node(name, VARIABLE),)}
        feeds = [{**feed, name: value} for feed, value in zip(self.feeds, made, strict=True)]
        return self._run(feeds, changes)

    def _run(
        self, feeds: Sequence[Mapping[str, Array]], changes: Mapping[str, tuple[Node, ...]] = _UNCHANGED
    ) -> list[Batches]:
        """The `outputs` of each batch, where nodes are exchanged; one that is fed is as it is fed."""
        made = [ref for ref in self.outputs if ref.name not in changes]
        if not made:
            return [[feed[ref.name] for ref in self.outputs] for feed in feeds]
        graph = Graph(self.model.graph.nodes, tuple(made), self.model.graph.attrs).replace(changes)
        only = self.model.with_graph(graph)
        call = self.runner.compile(only)
        found = list[Batches]()
        for feed in feeds:
            results = dict(zip(made, call({name: feed[name] for name in only.inputs}), strict=True))
            found.append([np.array(results[r]) if r in results else feed[r.name] for r in self.outputs])
        return found


def _record(noise: float, total: float, shares: Array, *, to_float: bool) -> NoiseRecord:
    products, weights, elements = map(float, shares)
    return NoiseRecord(noise, total, products, weights, elements, to_float)


def _by_channel(batches: Batches, axis: int) -> Array:
    """(C, n): all values of each channel."""
    return np.concatenate(channel_rows(batches, axis), axis=1)


def _noise(exact: Sequence[Batches], found: Sequence[Batches]) -> float:
    """Of all outputs together: of each in shares of its variance, without what a bias would take away."""
    whole = 0.0
    for wanted, made in zip(zip(*exact, strict=True), zip(*found, strict=True), strict=True):
        axis = 1 if wanted[0].ndim > 1 else 0
        error = _by_channel([m - w for w, m in zip(wanted, made, strict=True)], axis).var(axis=1, dtype=np.float64)
        energy = _by_channel(wanted, axis).var(axis=1, dtype=np.float64)
        whole += float(error.sum()) / max(float(energy.sum()), _TINY)
    return whole


def why_float(record: NoiseRecord) -> str:
    """Why a layer stays in float, with what was measured."""
    return (
        f"its rounding alone would be {record.share:.0%} of the noise of the network's outputs, for "
        f"{record.multiply_adds:.1%} of the multiply-adds; stem 'int8' makes it int8"
    )
