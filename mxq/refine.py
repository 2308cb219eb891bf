"""Refining: what calibration data says beyond ranges, put into the fused network before it is quantized.

::

    fused Model + Thresholds --equalize--> --biases, layers--> fused Model + Thresholds, closer to float once quantized
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final

import numpy as np

from mxq.backends import BackendSpec, groups_of, layer_of, the_layer_of
from mxq.calibration.patches import Geometry
from mxq.config import QuantConfig
from mxq.data.feed import Feed, examples_in, taken
from mxq.data.feeding import Feeds, shares
from mxq.errors import RuntimeFailure
from mxq.graph.ir import Array, Model, Node, Runner
from mxq.passes.biases import with_biases
from mxq.passes.limit_saturation import kernels
from mxq.quant import QuantizedNetwork
from mxq.quant.bits import Bits
from mxq.quant.plan import Plan, WeightRecord
from mxq.quant.thresholds import Thresholds
from mxq.rewrite import Event, Trace
from mxq.saturation.activity import sampled
from mxq.weights.analytic import corrected
from mxq.weights.equalize import EIGHT, Channels, channels_seen, equalize
from mxq.weights.example_axis import can_be_cut
from mxq.weights.example_ranges import EXAMPLES as RULED
from mxq.weights.example_ranges import RULES, ruled, seen_of
from mxq.weights.grid import grid_of, on_grid
from mxq.weights.held_out import Judge, divided
from mxq.weights.layer import Layer, choose
from mxq.weights.layerwise_executor import peak_bytes
from mxq.weights.layerwise_refinement import LayerwiseConfig, LayerwiseResult, levels_of, record_of, refine_layerwise
from mxq.weights.methods import BiasMethod, Methods
from mxq.weights.smooth import smooth

BLIND: Final = "without a look at calibration data"
NO_DATA: Final = f"weights are rounded to the nearest code, {BLIND}"
EXAMPLES: Final = {"fast": 64, "default": 64, "best": 256}
"""How many examples are looked at, by effort."""
PLACES: Final = {"fast": 1, "default": 1, "best": 4}
"""How many places of a layer's output, in shares of the least."""
FOR_SCALES: Final = 16
"""Examples from which channels' ranges are taken."""
SWEEPS: Final = {"fast": 0, "default": 0, "best": 1}
"""How often rounding goes over the weights of a layer again. Once is worth 0.1 to 0.25 dB at 4 bits and less at 8, and
more often as much."""
AT_ONCE: Final = 8
"""Examples of which all tensors are held at once, where the guard against saturation takes samples."""
MEMORY: Final = 3 << 30
"""Bytes that tensors may take; fewer examples are looked at where they would take more."""


@dataclass(frozen=True)
class CalibrationSubset:
    """Calibration data to look at again: ``feeds``, the ``runner`` for it, and whether a batch may be ``cut``."""

    runner: Runner
    feeds: Sequence[Feed]
    cut: bool = True

    @staticmethod
    def at(runner: Runner, model: Model, data: Iterable[Feed], config: QuantConfig) -> CalibrationSubset:
        """As many examples of ``data`` as ``config.effort`` and memory allow; see `of`."""
        return CalibrationSubset.of(runner, model, data, EXAMPLES[config.effort])

    @staticmethod
    def of(runner: Runner, model: Model, data: Iterable[Feed], asked: int) -> CalibrationSubset:
        """The ``asked`` examples of ``data``, or as many as memory allows, at least one; see `Feeds.take`.

        Of a network whose batches cannot be cut, whole batches, at least one.
        """
        chosen = _taken(data, asked)
        first = next(chosen, None)
        if first is None:
            return CalibrationSubset(runner, [])
        whole = first if examples_in(first) > 1 else next(iter(data))
        cut, single = can_be_cut(runner, model, whole), examples_in(whole) == 1
        cost = _Cost.of(runner, model, taken(first, slice(1)) if cut or single else next(iter(data)))
        most = min(asked, max(1, cost.room(first)))
        if not cut and not single:
            return CalibrationSubset(runner, list(_fitting(data, most, cost, cut=False)), cut=False)
        kept = chain((first,), chosen) if most == asked else _taken(data, most)
        return CalibrationSubset(runner, list(_fitting(kept, most, cost, cut=cut)), cut)

    def divided(self) -> tuple[CalibrationSubset, list[Feed]]:
        """What methods are fitted to, and what is held back from them, a few examples at a time; see `held_out`."""
        fitted, held = divided(self.feeds, cut=self.cut)
        return replace(self, feeds=fitted), list(replace(self, feeds=held).pieces(AT_ONCE))

    def some(self, examples: int) -> list[Feed]:
        """The first so many examples, or the batches that hold them."""
        found, count = list[Feed](), 0
        for feed in self.feeds:
            if count >= examples:
                break
            found.append(taken(feed, slice(examples - count)) if self.cut else feed)
            count += examples_in(feed)
        return found

    def pieces(self, size: int) -> Iterator[Feed]:
        """All examples, so many at once at most, or batch by batch."""
        for feed in self.feeds:
            if not self.cut:
                yield feed
                continue
            for start in range(0, examples_in(feed), size):
                yield taken(feed, slice(start, start + size))


def _taken(data: Iterable[Feed], count: int) -> Iterator[Feed]:
    return data.take(count) if isinstance(data, Feeds) else shares(data, count)


@dataclass(frozen=True)
class _Cost:
    """What a network's tensors take: so many bytes for so many bytes ``fed``, those of both networks together."""

    fed: int
    taken: int

    @staticmethod
    def of(runner: Runner, model: Model, feed: Feed) -> _Cost:
        return _Cost(max(_bytes(feed), 1), max(2 * peak_bytes(runner, model, feed), 1))

    def each(self, feed: Feed) -> int:
        """Of an example, by its size."""
        return max(-(-self.taken * _bytes(feed) // (self.fed * examples_in(feed))), 1)

    def room(self, feed: Feed, used: int = 0) -> int:
        """For how many examples like those of ``feed`` there is memory beside what is ``used``."""
        return max(MEMORY - used, 0) // self.each(feed)


def _bytes(feed: Feed) -> int:
    return sum(np.asarray(value).nbytes for value in feed.values())


def _fitting(feeds: Iterable[Feed], most: int, cost: _Cost, *, cut: bool) -> Iterator[Feed]:
    """The first of ``feeds``, ``most`` examples or as few more as whole batches have, for which there is memory."""
    used, count = 0, 0
    for feed in feeds:
        size, room = examples_in(feed), cost.room(feed, used)
        keep = size if room >= size else room if cut else 0
        if count == 0:
            keep = max(keep, 1) if cut else size
        if keep == 0:
            return
        yield feed if keep == size else taken(feed, slice(keep))
        used, count = used + keep * cost.each(feed), count + keep
        if count >= most:
            return


def activations(looked: CalibrationSubset, network: QuantizedNetwork) -> dict[str, Array]:
    """Samples of what dense int8 layers read, by name; of all examples, as each has but one place after a pooling."""
    model, int8 = network.fused, network.plan.quantized
    return samples_of(looked, model, [n for n in model.graph.operators if n.name in int8 and _is_dense(model, n)])


def samples_of(looked: CalibrationSubset, model: Model, nodes: Sequence[Node]) -> dict[str, Array]:
    """Samples of what ``nodes`` read, layers, by name."""
    return sampled(looked.runner, model, nodes, looked.pieces(AT_ONCE))


def _is_dense(model: Model, node: Node) -> bool:
    """Whether a layer has several inputs for each output, at a kernel place."""
    layer = layer_of(node)
    return layer is not None and (groups_of(layer) == 1 or model.args[node.inputs[1].name].shape[1] > 1)


def channels(looked: CalibrationSubset, model: Model) -> dict[str, Channels]:
    """What calibration data shows of the channels that `equalized` may scale."""
    return channels_seen(looked.runner, model, looked.some(FOR_SCALES))


def equalized(
    looked: CalibrationSubset,
    model: Model,
    plan: Plan,
    thresholds: Thresholds,
    bits: Bits = EIGHT,
    seen: Mapping[str, Channels] | None = None,
) -> tuple[Model, Thresholds, Trace]:
    """The network with channels scaled, and which; see `mxq.weights.equalize` and `mxq.weights.smooth`.

    Args:
        looked: the data.
        model: fused, float.
        plan: which layers are int8.
        thresholds: ranges of the tensors.
        bits: of codes.
        seen: `channels` of ``model``, where they are known.
    """
    some = looked.some(FOR_SCALES)
    seen = channels(looked, model) if seen is None else seen
    model, thresholds, names = equalize(model, thresholds, seen, bits)
    model, thresholds, norms = smooth(looked.runner, model, thresholds, plan.quantized, some, bits)
    return model, thresholds, Trace(tuple(Event("equalize", "equalize", name) for name in (*names, *norms)))


def by_examples(looked: CalibrationSubset, model: Model, plan: Plan, thresholds: Thresholds) -> dict[str, Thresholds]:
    """Other ranges of the tensors of ``model``, by the name of their rule; see `mxq.weights.example_ranges`.

    None where examples cannot be told apart, or a tensor cannot be had.
    """
    singles = [taken(feed, [i]) for feed in looked.some(RULED) for i in range(examples_in(feed))] if looked.cut else []
    try:
        seen = seen_of(looked.runner, model, plan.observe, singles) if singles else {}
    except RuntimeFailure:
        return {}
    return {name: ruled(thresholds, seen, rule) for name, rule in RULES.items() if seen}


def kept(
    judge: Judge,
    before: QuantizedNetwork,
    found: LayerwiseResult,
    records: Mapping[str, WeightRecord] = MappingProxyType({}),
) -> LayerwiseResult:
    """What refinement gave, without the methods that the network's outputs are better off without.

    Args:
        judge: who knows.
        before: the network that was refined, its weights on their nearest codes.
        found: what refinement gave.
        records: of these weights.
    """
    after, biased = found.network, with_biases(before)
    biases = {name: biased.fused.args[name] for name in _biases(biased)}
    ranges, unbiased = before.thresholds, after.with_weights(biases)
    undone: dict[str, Callable[[], QuantizedNetwork]] = {
        "range_choice": partial(after.with_thresholds, ranges),
        "bias_correction": lambda: unbiased,
        "range_choice, bias_correction": partial(unbiased.with_thresholds, ranges),
        "rounding, bias_correction": partial(biased.with_thresholds, after.thresholds),
        "all": lambda: before,
    }
    verdict = judge.best(after, undone)
    weights = records if verdict.name in ("rounding, bias_correction", "all") else found.weights
    return replace(found, network=verdict.network, weights=weights)


def _biases(network: QuantizedNetwork) -> Iterator[str]:
    """The biases of int8 layers."""
    for name in kernels(network):
        yield from (ref.name for ref in network.fused.graph[name].inputs[2:3] if network.fused.is_own(ref.name))


def refined(
    looked: CalibrationSubset, network: QuantizedNetwork, spec: BackendSpec, config: QuantConfig
) -> LayerwiseResult:
    """The network with weights, biases and ranges chosen layer by layer; see `mxq.weights.layerwise_refinement`."""
    places, sweeps = PLACES[config.effort], SWEEPS[config.effort]
    return refine_layerwise(
        looked.runner, LayerwiseConfig(with_biases(network), spec, config.methods, places, sweeps), looked.feeds
    )


def rounded(network: QuantizedNetwork, config: QuantConfig) -> tuple[QuantizedNetwork, dict[str, WeightRecord]]:
    """The network with weights rounded, and biases corrected, by methods that need no data; a record for each layer."""
    network = with_biases(network)
    model, written, records = network.fused, dict[str, Array](), dict[str, WeightRecord]()
    for name, (kernel, _) in kernels(network).items():
        node = model.graph[name]
        names = [ref.name for ref in node.inputs[1:3]]
        if all(map(model.is_own, names)):
            weight, bias = (model.args[n] for n in names)
            levels, geometry = levels_of(network, names[0], weight, kernel), Geometry.of(the_layer_of(node))
            chosen = choose(Layer(node, weight, bias, geometry, config.methods, levels, SWEEPS[config.effort]), None)
            written |= dict(zip(names, (chosen.weight, chosen.bias), strict=True))
            records[name] = record_of(weight, chosen, config.methods, levels)
    return network.with_weights(written), records


def without_data(methods: Methods) -> str:
    """What becomes of weights where there is no data to look at."""
    return f"weights are rounded by {methods.rounding!r} alone, {BLIND}" if methods.round_alone else NO_DATA


def exceptions(found: LayerwiseResult) -> tuple[str, ...]:
    """A sentence for each operator that kept layers from being refined as the others are."""
    layers: dict[str, list[str]] = {}
    for name, why in found.lost.items():
        layers.setdefault(why, []).append(repr(name))
    lost = (f"{NO_DATA} in {', '.join(names)}: {why}" for why, names in layers.items())
    others = dict.fromkeys(why for why in found.apart.values() if why not in layers)
    return (*lost, *(f"what follows it is refined on its values in float: {why}" for why in others))


def analytic(method: BiasMethod, source: Model, before: Model, network: QuantizedNetwork) -> QuantizedNetwork:
    """The network with biases corrected by what BatchNorm knows, without data; see `mxq.weights.analytic.corrected`.

    Args:
        method: what corrects a layer's bias.
        source: the network as given.
        before: fused, its weights those of float.
        network: its weights as they are written.
    """
    network, values = with_biases(network), {}
    for name, (kernel, _) in kernels(network).items():
        weight = network.fused.graph[name].inputs[1].name
        halved = grid_of(kernel, exact=network.exact).halved
        values[weight] = partial(on_grid, network.fused.args[weight], halved=halved)
        if network.weight is not None:
            values[weight] = partial(network.weights[weight].fake, network.fused.args[weight])
    return replace(network, fused=corrected(method, source, before, network.fused, values, network.plan))
