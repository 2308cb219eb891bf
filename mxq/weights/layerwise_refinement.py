"""Layer-by-layer refinement: gives each layer the weights, bias and range that serve its output best.

Every tensor is computed twice, by the float network and by the network quantized so far. A layer's weights are rounded
(`rounding`) for what the second gives it, its bias makes up for what is then still missing of the first (`bias`), so
also for the errors of the layers before; then the range of its output is chosen (`ranges`). Sources: Nagel et al.,
"Data-Free Quantization Through Weight Equalization and Bias Correction" (arXiv:1906.04721), appendix D, for the order;
"Up or Down?" (arXiv:2004.10568), section 4, for taking inputs from the quantized network.

The arithmetic is that of exact int8 kernels, simulated in float32 (`coding`), so the result does not depend on the
machine it is made on. Tensors are kept only while they are to be read, as in a run of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial, reduce

import numpy as np
from tqdm import tqdm

from mxq.backends import BackendSpec, OpSpec, layer_of, result_of, summand_of, the_layer_of
from mxq.calibration.patches import Geometry, choose_places, inputs_at
from mxq.data.feed import examples_in
from mxq.errors import RuntimeFailure
from mxq.graph.ir import Array, Model, Node, Ref, Runner
from mxq.quant import QParams, QuantizedNetwork
from mxq.quant.plan import WeightRecord
from mxq.quant.thresholds import Range, Threshold, Thresholds
from mxq.saturation.adding import Adding, adding
from mxq.saturation.kernels import Kernel
from mxq.saturation.limits import FEW, Exposed, Sums, by_channel
from mxq.weights import layer as layers
from mxq.weights.coding import Code, code_all, codes_of
from mxq.weights.grid import Grid, Nearest, grid_in
from mxq.weights.layerwise_executor import Batches, LayerwiseExecutor, Schedule, ancestors
from mxq.weights.methods import Methods
from mxq.weights.pieces import pieces
from mxq.weights.ranges import narrowed, telling
from mxq.weights.readers import Readers


@dataclass(frozen=True)
class LayerwiseConfig:
    """What a network is refined by.

    Attributes:
        network: what is decided of it; in its float network every int8 layer has a bias.
        spec: what kernels there are.
        methods: what to do.
        places: factor on `layer.LEAST_PLACES`.
        sweeps: how often rounding goes over all weights of a layer again.
    """

    network: QuantizedNetwork
    spec: BackendSpec
    methods: Methods
    places: int = 1
    sweeps: int = 0

    @property
    def model(self) -> Model:
        """The fused float network."""
        return self.network.fused

    @property
    def thresholds(self) -> Thresholds:
        """Its calibrated ranges."""
        return self.network.thresholds

    @property
    def exact(self) -> bool:
        """Whether the target's kernels add products exactly; otherwise those of s8 tensors have half the codes."""
        return self.network.exact

    def row(self, node: Node) -> OpSpec | None:
        """The table's row of ``node`` where it is int8."""
        return self.spec.find(node.op) if node.name in self.network.plan.quantized else None


@dataclass(frozen=True)
class LayerwiseResult:
    """What refinement gives: the ``network`` with new parameters and ranges, and a record for each layer.

    Attributes:
        apart: operators that do not run alone, and why; what follows them was chosen for what they are in float.
        lost: layers that were not looked at because nothing gives what they read, and why.
    """

    network: QuantizedNetwork
    weights: Mapping[str, WeightRecord]
    apart: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)


def refine_layerwise(
    runner: Runner, setting: LayerwiseConfig, feeds: Sequence[Mapping[str, Array]], *, progress: bool = True
) -> LayerwiseResult:
    """Refines a network, layer after layer, in one pass over its operators.

    Args:
        runner: what runs an operator.
        setting: the network.
        feeds: batches of calibration data; all of them are in memory, with every tensor that is still to be read.
        progress: whether to show a bar, which stays silent where stderr is no terminal.
    """
    model = setting.model
    schedule = Schedule.of(ancestors(model.graph, setting.network.plan.quantized))
    state = _LayerwiseState.of(runner, setting, feeds)
    for ref in list(state.float.held):
        state.choose_range(ref, state.float.held[ref])
    with tqdm(schedule.nodes, desc="weights", unit="layer", leave=False, disable=None if progress else True) as bar:
        for node in bar:
            state.visit(node, schedule.outputs(node))
            for live in (state.float, state.int8):
                live.forget(schedule.done(node))
    apart = {name: why for name, why in state.float.apart.items() if state.reads_data(model.graph[name])}
    network = setting.network.with_weights(state.written).with_thresholds(state.thresholds())
    return LayerwiseResult(network, state.records, apart, state.lost)


@dataclass
class _LayerwiseState:
    """A refinement under way: the tensors of both networks, as far as they are still read.

    Attributes:
        spans: tensor -> its range, narrowed once it has been seen.
        codes: of the calibrated tensors.
        float, int8: the tensors of both networks.
        examples: how many are looked at.
        written: new parameters, as they go into the file.
        carried: ranges of tensors that have none of their own, such as a pooling's result.
    """

    runner: Runner
    setting: LayerwiseConfig
    spans: dict[str, Range]
    codes: Mapping[Ref, Code]
    float: LayerwiseExecutor
    int8: LayerwiseExecutor
    examples: int
    written: dict[str, Array] = field(default_factory=dict)
    carried: dict[Ref, Range] = field(default_factory=dict)
    records: dict[str, WeightRecord] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @staticmethod
    def of(runner: Runner, setting: LayerwiseConfig, feeds: Sequence[Mapping[str, Array]]) -> _LayerwiseState:
        spans = {name: t.range for name, t in setting.thresholds.items()}
        exact, noisy = (LayerwiseExecutor.of(runner, setting.model, feeds) for _ in range(2))
        count = sum(map(examples_in, feeds))
        return _LayerwiseState(runner, setting, spans, codes_of(setting.network, spans), exact, noisy, count)

    def visit(self, node: Node, outputs: Sequence[Ref]) -> None:
        """Computes ``node`` in both networks; where it is an int8 layer, changes it before.

        Where it does not run alone, both have what the float network makes.
        """
        spec, model = self.setting.row(node), self.setting.model
        values = self._improve(node) if spec is not None and spec.role == "compute" else {}
        found = self.float.step(model, node, outputs)
        self.float.held |= found
        if found and node.name not in self.float.apart:
            changed = Model(model.graph, {**model.args, **values}, model.auxs)
            source = (
                self.int8
                if spec is None
                else LayerwiseExecutor(self.runner, {r: self._coded(r) for r in self._data(node)})
            )
            found = source.run(changed, node, outputs)
        for ref, value in found.items():
            self.choose_range(ref, value)
            self.int8.held[ref] = value if spec is None else self._as_written(node, ref, value)

    def reads_data(self, node: Node) -> bool:
        """Whether ``node`` depends on the network's inputs in more than their sizes."""
        return bool(self._data(node))

    def choose_range(self, ref: Ref, value: Batches) -> None:
        """Narrows the range of a tensor that has just been made, where its readers run alone."""
        threshold = self.setting.thresholds.get(str(ref))
        if self.setting.methods.range_choice != "layer" or threshold is None or ref not in self.codes:
            return
        readers = Readers(self.runner, self.setting.model, self.setting.row).of(ref)
        if not readers or threshold.is_fixed:
            return
        with suppress(RuntimeFailure):
            little, span, code = telling(value, self.examples), self.spans[str(ref)], self.codes[ref]
            exposed, widen = self._exposed(ref, little), not self._is_bounded(ref)
            self.spans[str(ref)] = narrowed(little, span, code, readers, exposed, widen=widen)

    def thresholds(self) -> Thresholds:
        """The ranges as they are now, with a note where they changed."""
        return Thresholds({k: _narrowed(t, self.spans[k]) for k, t in self.setting.thresholds.items()})

    # ---- one node ----

    def _as_written(self, node: Node, ref: Ref, value: Batches) -> Batches:
        """What an int8 operator makes, as its kernel rounds it: in its range, or in that of what it carries."""
        network = self.setting.network
        operation = network.operations.get(node.name)
        if operation is not None and (operation.passes_on or operation.writes_float):
            return value
        record = network.stored(ref)
        if ref not in self.codes and record is not None:
            known = [self.carried[r] if r in self.carried else self.spans.get(str(r)) for r in self._data(node)]
            spans = [s for s in known if s is not None]
            if len(spans) == len(known):
                span = self.carried[ref] = reduce(Range.union, spans)
                code = Code(record.dtype, nonnegative=bool(record.offset)).in_network(network, ref)
                return code_all(value, code, span)
        return code_all(value, self.codes[ref], self.spans[str(ref)]) if ref in self.codes else value

    def _data(self, node: Node) -> list[Ref]:
        return [r for r in node.inputs if self.setting.model.param(r.name) is None]

    def _coded(self, ref: Ref) -> Batches:
        """What an int8 operator reads of a tensor of the quantized network."""
        if ref in self.setting.network.made or ref not in self.codes:
            return self.int8.held[ref]
        return code_all(self.int8.held[ref], self.codes[ref], self.spans[str(ref)])

    def _improve(self, node: Node) -> dict[str, Array]:
        """Chooses the parameters of an int8 layer where it can: what its kernel makes of them."""
        model, names = self.setting.model, [r.name for r in node.inputs[1:3]]
        if why := self._as_it_is(node):
            self.records[node.name] = self._untouched(node, why)
            return {}
        inner, data, setting = the_layer_of(node), node.inputs[0], self.setting
        geometry = Geometry.of(inner)
        how = adding(setting.network, inner, names[0], self._dtype(data), self._params(data))
        weight, bias = (model.args[name] for name in names)
        levels = levels_of(setting.network, names[0], weight, how.kernel)
        layer = layers.Layer(node, weight, bias, geometry, setting.methods, levels, setting.sweeps)
        summands = None
        if (summand := summand_of(node)) and not node.flag("with_act"):  # what the layer makes is added to it as it is
            summands = self.float.held[summand], self._coded(summand)
        exact, noisy = self.float.held[data], self._coded(data)
        places = layers.choose_places(layer, noisy, setting.places, self.rng)
        chosen = layers.improved(layer, exact, noisy, summands, places, partial(self._sums, how, data, weight))
        self.written |= {names[0]: chosen.weight, names[1]: chosen.bias}
        self.records[node.name] = record_of(weight, chosen, setting.methods, levels)
        return {names[0]: chosen.values, names[1]: chosen.bias}

    def _as_it_is(self, node: Node) -> str:
        """Why the parameters of a layer stay; empty where they may change."""
        for ref in node.inputs:
            if ref in self.float.lost:
                return self.lost.setdefault(node.name, self.float.lost[ref])
            if ref in node.inputs[1:3] and not self.setting.model.is_own(ref.name):
                return f"{ref.name!r} is no parameter of this layer alone"
        return ""

    def _untouched(self, node: Node, why: str) -> WeightRecord:
        weight = self.setting.model.param(node.inputs[1].name)
        return WeightRecord("layer", "rounding", 0 if weight is None else len(weight), 0, 0.0, note=why)

    def _exposed(self, ref: Ref, value: Batches) -> list[Exposed]:
        """The layers that read ``ref`` and may saturate."""
        model, found = self.setting.model, list[Exposed | None]()
        for node in () if self.setting.exact else model.graph.consumers[ref.name]:
            layer, spec = layer_of(node), self.setting.row(node)
            if spec is None or layer is None or node.inputs[0] != ref:
                continue
            geometry, weight = Geometry.of(layer), model.args[node.inputs[1].name]
            how = adding(self.setting.network, layer, node.inputs[1].name, self.codes[ref].dtype, self._params(ref))
            if how.saturates and geometry.groups == 1:
                places = choose_places([geometry.places_of(b.shape) for b in value], FEW, np.random.default_rng(0))
                inputs = by_channel(inputs_at(value, places, geometry)[0], weight.shape[1])
                found.append(Exposed.of(how.kernel, weight, inputs, how.shift))
        return [e for e in found if e is not None]

    def _is_bounded(self, ref: Ref) -> bool:
        """Whether the range of ``ref`` ends where it does for a reason: a clip, or an output of the network."""
        last = result_of(self.setting.model.graph[ref.name])
        return last.op == "clip" or ref in self.setting.model.graph.heads

    def _sums(self, how: Adding, ref: Ref, weight: Array, samples: Array) -> Sums | None:
        """How the kernel of a layer that reads ``ref`` adds; None where nothing saturates or the scale is unknown."""
        params = self._params(ref)
        if self.setting.exact or not how.saturates or params is None:
            return None
        return Sums.of(how.kernel, float(params.scale), samples, weight.shape[1], how.shift)

    def _params(self, ref: Ref) -> QParams | None:
        """The codes of an int8 operator's input, as they are now; None where they are not known."""
        if ref in self.codes:
            return self.codes[ref].params(self.spans[str(ref)])
        if ref in self.carried:
            return Code(self._dtype(ref)).in_network(self.setting.network, ref).params(self.carried[ref])
        return None

    def _dtype(self, ref: Ref) -> str:
        """The type of an int8 operator's input."""
        if ref in self.codes:
            return self.codes[ref].dtype
        record = self.setting.network.stored(ref)
        return "int8" if record is None else record.dtype


def levels_of(network: QuantizedNetwork, name: str, weight: Array, kernel: Kernel) -> Grid | Nearest:
    """The codes of a layer's ``weight`` (O, ...), which ``network`` has by that name."""
    grid = grid_in(network, name, kernel)
    if grid is not None:
        return grid
    spec, scheme = network.weight_of(name), network.weight_scheme(name)
    return Grid.of_whole(weight, spec, scheme) if Grid.holds_whole(spec) else Nearest.of(weight, spec, scheme)


def record_of(weight: Array, chosen: layers.Chosen, methods: Methods, levels: Grid | Nearest) -> WeightRecord:
    """What became of the ``weight`` (O, ...) of a layer."""
    nearest = isinstance(levels, Nearest)
    outside = np.zeros(len(weight), np.int64)
    for part in pieces(len(weight), weight[0].size):
        sizes, bounds = (np.abs(w[part]).reshape(part.stop - part.start, -1) for w in (weight, chosen.values))
        outside[part] = np.count_nonzero(sizes > 1.01 * bounds.max(axis=1, keepdims=True), axis=1)
    return WeightRecord(
        observer="layer",
        source="rounding",
        channels=len(weight),
        clipped_channels=int(np.count_nonzero(outside)),
        clipped_share=int(outside.sum()) / weight.size,
        rounding="nearest" if nearest else methods.rounding,
        moved_share=chosen.moved,
        bias_correction=methods.bias_correction,
        note="methods for rounding take no codes with a zero point" * nearest,
    )


def _narrowed(threshold: Threshold, span: Range) -> Threshold:
    if span == threshold.range:
        return threshold
    note = f"from [{threshold.range.min:.6g}, {threshold.range.max:.6g}], for the layers that read it"
    return threshold.ranged(span, note)
