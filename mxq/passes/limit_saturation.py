"""Guard: keep an int8 network for CPUs without VNNI from sums of two products that saturate in 16 bits.

Before:  x [0, 6] -> conv (weights 120 and 110 on channels 0 and 1: 255 x 230 is beyond 32767)
After:   x [0, 6] -> conv (weights 67 and 61), or x [0, 8.5] -> conv, or what was there; whichever errs least

The graph stays. Float weights are written so that the stock kernel reads the limited codes, the largest of each channel
untouched, since its scale follows from it; a widened range is a threshold like any other, with a note.

Conditions: the layer is int8, dense, and reads u8 (a fully connected one: s8 too). A weight is changed where it is its
layer's alone. A range is widened only where int8 layers alone read the tensor, its calibrated range is what is written,
nobody fixed it (as by hand, or because pixels are its codes), and no clip ends it: kernels clip by it.
Formula: `mxq.saturation.remedies.remedy` for each layer; for a tensor, the factor of the least cost over all layers
that read it, each in shares of its output's energy. Activations are those of calibration data where there are any
(``samples``), else what is usual (`remedies.assumed_activations`).

A layer that is left with much more noise than it would have with VNNI (`DECENT`), as one of few inputs may be, is
named for float.

Data-free, this is no guarantee: pairs are judged by what activations usually are, since limiting every pair for the
worst that can be costs more than saturation does (see `mxq.saturation.remedies`). `pair_channels`, before it, is free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np

from mxq.backends import BackendSpec, layer_of, result_of
from mxq.graph.ir import Array, Model, Node, Ref
from mxq.quant import BY_DTYPE, MXNET, NetworkPass, QParams, QuantizedNetwork
from mxq.quant.plan import SaturationRecord, TensorRecord
from mxq.quant.thresholds import Thresholds
from mxq.rewrite import NO_EVENTS, Event, Trace
from mxq.saturation.adding import Adding, adding
from mxq.saturation.kernels import Kernel, summed
from mxq.saturation.limits import FEW, MARGIN
from mxq.saturation.remedies import Remedy, assumed_activations, factors, limited, remedy, widened

NAME, FLOAT = "limit_saturation", "float"
_TINY = 1e-30
DECENT = 1e-3
"""What saturation, or what is done about it, may add to a layer's noise, in shares of its output's energy (30 dB); a
layer of more is better off in float, provided that its noise was less than half of that with VNNI."""


@dataclass(frozen=True)
class Layer:
    """A layer whose kernel adds otherwise than with VNNI.

    Attributes:
        node: of the fused float graph.
        data: what it reads there.
        adding: what its kernel does.
        weight: (O, I, ...) float32, as it was before it was rounded for its outputs.
        codes: (O, I, ...) int8, of its weight as it is.
        values: (n, I, K) or, assumed, (n, I) float32: what it multiplies, in activation codes less their zero point,
            not rounded.
        rounding: what makes such codes of ``values``.
        step: (O,), of its weight.
        own: whether its weight is its alone.
        assumed: whether ``values`` are.
        ideal: (O, ...) int8 and (O,), the codes and steps that ``weight`` would have with VNNI.
    """

    node: Node
    data: Ref
    adding: Adding
    weight: Array
    codes: Array
    values: Array
    rounding: QParams
    step: Array
    own: bool
    assumed: bool
    ideal: tuple[Array, Array]

    @cached_property
    def samples(self) -> Array:
        """Activation codes, those of few samples a little larger."""
        few = not self.assumed and len(self.values) < FEW
        return self.rounding.fake(self.values * (MARGIN if few else 1.0))

    @property
    def kernel(self) -> Kernel:
        return self.adding.kernel

    @cached_property
    def energy(self) -> float:
        """Mean square of its sums, in units of a `Remedy`'s cost."""
        flat = self.codes.reshape(*self.codes.shape[:2], -1).astype(np.float32)
        second = np.square(self.samples, dtype=np.float64).mean(axis=0).reshape(flat.shape[1], -1)
        found = np.einsum("oik,ik,o->", np.square(flat), np.broadcast_to(second, flat.shape[1:]), self.step**2)
        return max(float(found), _TINY)

    def at(self, factor: float) -> Remedy:
        """What serves this layer where its input's range is wider by ``factor``, at least 1."""
        if factor == 1:
            return self.remedy
        shift = self.adding.shift
        return widened(self.codes, self.samples, factor, self.step, kernel=self.kernel, limit=self.own, shift=shift)

    @cached_property
    def remedy(self) -> Remedy:
        """What serves this layer alone."""
        kernel, shift = self.kernel, self.adding.shift
        return remedy(self.codes, self.samples, self.step, kernel=kernel, widen=False, limit=self.own, shift=shift)

    def noise(self, codes: Array, factor: float) -> tuple[float, float]:
        """What ``codes`` and a range wider by ``factor`` leave of noise, and what there would be with VNNI.

        Both in shares of the output's energy, and without what a bias takes; (0, 0) where nothing tells how values at
        different kernel positions go together.
        """
        if self.values.ndim < 3 and codes[0, 0].size > 1:
            return 0.0, 0.0
        values = self.values.reshape(*self.values.shape[:2], -1)
        wanted = self.weight.reshape(len(self.weight), -1) @ values.reshape(len(values), -1).T.astype(np.float32)
        narrow, wide = (self.rounding.fake(values / f) for f in (1.0, factor))
        made = summed(codes, wide, self.kernel, self.adding.shift) * (self.step * factor)[:, None]
        ideal = summed(self.ideal[0], narrow, "exact") * self.ideal[1][:, None]
        energy = max(float(wanted.var(axis=1, dtype=np.float64).sum()), _TINY)
        found, with_vnni = (float((m - wanted).var(axis=1).sum()) / energy for m in (made, ideal))
        return found, with_vnni


def limit_saturation(
    spec: BackendSpec,
    samples: Mapping[str, Array] = MappingProxyType({}),
    before: Model | None = None,
    int8: Collection[str] = (),
) -> NetworkPass:
    """Applies the cheapest remedy to every layer; for a target with VNNI there is nothing to do.

    It changes weights and ranges, and ``saturation`` has a record for each layer that can saturate. The remedy is
    "float" where none of the others leaves a decent layer (`DECENT`): that is the caller's to do.

    Args:
        spec: what kernels there are.
        samples: of layers, by name, from `mxq.saturation.activity`.
        before: the float network with weights as they were before they were rounded for their outputs.
        int8: names of layers that stay int8, however poor they are.
    """
    return NetworkPass(NAME, lambda network: _Limiter(spec, samples, before or network.fused, int8).run(network))


@dataclass(frozen=True)
class _Limiter:
    """The arguments of `limit_saturation`."""

    spec: BackendSpec
    samples: Mapping[str, Array]
    before: Model
    int8: Collection[str]

    def run(self, network: QuantizedNetwork) -> tuple[QuantizedNetwork, Trace]:
        if network.exact:
            return network, NO_EVENTS
        layers = list(saturating(network, self.before, self.samples))
        ranges = _Ranges(network, self.spec)
        wider = {} if network.at_run_time else ranges.factors(layers)
        args, records = dict[str, Array](), dict[str, SaturationRecord]()
        for layer in layers:
            factor = wider.get(ranges.of(layer.data), 1.0)
            record, weight = _guarded(layer, network.fused, factor, stays=layer.node.name in self.int8)
            if layer.kernel == "halved" and record.remedy != FLOAT:
                continue
            args |= {layer.node.inputs[1].name: weight} if record.limited else {}
            records[layer.node.name] = record
        events = (Event(NAME, record.remedy, name) for name, record in records.items() if record.remedy != "none")
        found = _widened(network, wider).with_weights(args)
        return replace(found, saturation=records), Trace(tuple(events))


def _widened(network: QuantizedNetwork, factors: Mapping[Ref, float]) -> QuantizedNetwork:
    """``network`` with wider ranges of some tensors."""
    table = dict(network.thresholds)
    for ref, factor in factors.items():
        found = table[str(ref)]
        note = f"widened {factor:.3g} times: without VNNI sums of its products would saturate"
        table[str(ref)] = found.ranged(found.range.times(factor), note)
    return network.with_thresholds(Thresholds(table)) if factors else network


def _guarded(layer: Layer, model: Model, factor: float, *, stays: bool) -> tuple[SaturationRecord, Array]:
    """What is done about a layer whose input's range is widened by ``factor``, and its float weight then.

    It is not named for float where it ``stays`` int8.
    """
    chosen, weight = layer.at(factor), model.args[layer.node.inputs[1].name]
    codes = limited(layer.codes, layer.samples, chosen, layer.kernel, layer.adding.shift)
    changed = codes != layer.codes
    step = layer.step.reshape(-1, *[1] * (weight.ndim - 1))
    noise, with_vnni = layer.noise(codes, factor)
    kind = FLOAT if _is_poor(noise, with_vnni) and not stays else chosen.kind
    pairs, count = layer.remedy.pairs, int(changed.sum())
    record = SaturationRecord(layer.kernel, kind, pairs, count, factor, layer.assumed, noise, with_vnni)
    return record, np.where(changed, codes * step, weight).astype(np.float32)


def _is_poor(noise: float, with_vnni: float) -> bool:
    """Whether a layer with so much noise, in shares of its output's energy, is better off in float."""
    return noise - with_vnni > DECENT and noise > 2 * with_vnni


def kernels(network: QuantizedNetwork) -> dict[str, tuple[Kernel, TensorRecord]]:
    """Of every int8 layer, by name: what its kernel does without VNNI, and how its input is stored."""
    return {name: (how.kernel, record) for name, (how, record) in _added(network).items()}


def _added(network: QuantizedNetwork) -> dict[str, tuple[Adding, TensorRecord]]:
    found = {}
    for name in network.operations:
        node = network.fused.graph[name]
        layer = layer_of(node)
        if layer is not None and (record := network.layer_input(name)) is not None:
            ref, dtype = node.inputs[0], record.dtype
            data = None if network.is_of_kernels else network.stored_as(ref, dtype)
            found[name] = adding(network, layer, node.inputs[1].name, dtype, data), record
    return found


def saturating(network: QuantizedNetwork, before: Model, samples: Mapping[str, Array]) -> Iterable[Layer]:
    """The int8 layers whose kernels saturate and, where there are samples, those that halve weights.

    Args:
        network: what is decided.
        before: the float network with weights as they were before they were rounded for their outputs.
        samples: of layers, by name, from `mxq.saturation.activity`.
    """
    for name, (how, record) in _added(network).items():
        if how.saturates or (how.kernel == "halved" and name in samples):
            yield _layer(network, before, network.fused.graph[name], how, record, samples.get(name))


def _layer(
    network: QuantizedNetwork, before: Model, node: Node, how: Adding, record: TensorRecord, values: Array | None
) -> Layer:
    model, name = network.fused, node.inputs[1].name
    weight, first = model.args[name], before.args[name]
    data, offset = _coding_of(network, node.inputs[0], record)
    if values is None:
        bounded, signed = _ends_at_clip(model, node.inputs[0], record), how.kernel == "shifted"
        given = assumed_activations(weight.shape[1], bounded=bounded, signed=signed)
    else:
        given = (values + np.float32(offset)) * data.scale
    step = _steps(network, name, weight)
    codes = network.weight_as(name, weight).quantize(weight)
    if how.kernel == "halved":
        rows = weight / np.where(step > 0, step, 1.0).reshape(-1, *[1] * (weight.ndim - 1))
        codes = (2 * np.rint(rows / 2)).astype(np.int16)
    own, ideal = len(model.graph.consumers[name]) == 1, network.weight_as(name, first).quantize(first)
    rounding = QParams(data.spec, 1.0, int(data.zero_point))
    best = ideal, _steps(network, name, first)
    return Layer(node, node.inputs[0], how, first, codes, given, rounding, step, own, values is None, best)


def _coding_of(network: QuantizedNetwork, ref: Ref, record: TensorRecord) -> tuple[QParams, float]:
    """The codes in which a layer reads a tensor, and what is added to it before."""
    if not network.is_of_kernels:
        return network.stored_as(ref, record.dtype), 0.0
    size = max(abs(record.min or 0.0), abs(record.max or 0.0))
    return MXNET.params(BY_DTYPE[record.dtype], -size, size), record.offset


def _steps(network: QuantizedNetwork, name: str, weight: Array) -> Array:
    """Of each channel of a weight (O, ...), as the network codes it: (O,) float64."""
    if name in network.given:
        return network.weight_as(name, weight).step.astype(np.float64)
    top = network.weight_scheme(name).top(network.weight_of(name))
    return np.asarray(np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float64) / top)


def _ends_at_clip(model: Model, ref: Ref, record: TensorRecord) -> bool:
    """Whether the range of tensor ``ref`` reaches the bound of a clip that makes it."""
    return bool(record.max is not None and record.max >= 0.99 * _bound(model, ref))


def _bound(model: Model, ref: Ref) -> float:
    """What a clip, the last operator in the node that makes ``ref``, bounds it by; infinity where there is none."""
    last = result_of(model.graph[ref.name])
    return last.number("a_max", np.inf) if last.op == "clip" else np.inf


@dataclass(frozen=True)
class _Ranges:
    """The ranges that tensors of a network are coded in, and which may be wider; ``spec`` says who has one."""

    network: QuantizedNetwork
    spec: BackendSpec

    @property
    def model(self) -> Model:
        return self.network.fused

    def factors(self, layers: list[Layer]) -> dict[Ref, float]:
        """The tensors whose ranges are to be widened -> how much."""
        found = {}
        for read in dict.fromkeys(layer.data for layer in layers):
            readers, ref = [layer for layer in layers if layer.data == read], self.of(read)
            kinds = [layer.remedy for layer in readers]
            least = sum(k.cost / layer.energy for k, layer in zip(kinds, readers, strict=True))
            if least == 0 or not (_alone(self.model, read, readers) and self._widens(ref)):
                continue
            for factor in max((factors(layer.kernel) for layer in readers), key=len):
                if _bound(self.model, ref) < self.network.thresholds.range(str(ref)).max * factor:
                    break
                cost = sum(layer.at(factor).cost / layer.energy for layer in readers)
                if cost < least:
                    least, found[ref] = cost, factor
        return found

    def of(self, ref: Ref) -> Ref:
        """The tensor whose range ``ref`` has: itself, or what int8 operators, read by nobody else, carry to it."""
        graph = self.model.graph
        while not self._has_range(ref):
            data = graph[ref.name].inputs
            if len(data) != 1 or len(graph.consumers[data[0].name]) > 1 or data[0] in graph.heads:
                break
            ref = data[0]
        return ref

    def _has_range(self, ref: Ref) -> bool:
        """Whether ``ref`` is coded in a range of its own."""
        row = self.spec.find(self.model.graph[ref.name].op)
        return ref.name not in self.network.plan.quantized or (row is not None and row.calibrated)

    def _widens(self, ref: Ref) -> bool:
        """Whether the range of ``ref`` may be another."""
        found = self.network.thresholds.get(str(ref))
        free = found is not None and not found.is_fixed
        return free and self._has_range(ref) and ref not in self.model.graph.heads


def _alone(model: Model, ref: Ref, readers: list[Layer]) -> bool:
    """Whether ``readers`` are all that reads ``ref``; a layer may also add to its result what it reads."""
    names = {n.name for n in model.graph.consumers[ref.name]}
    return names == {r.node.name for r in readers} and all(ref not in r.node.inputs[1:] for r in readers)
