"""Guard: keep an int8 network for CPUs without VNNI from sums of two products that saturate in 16 bits.

Before:  x [0, 6] -> conv (weights 120 and 110 on channels 0 and 1: 255 x 230 is beyond 32767)
After:   x [0, 6] -> conv (weights 67 and 61), or x [0, 8.5] -> conv, or what was there; whichever errs least

The graph stays. Float weights are written so that the stock kernel reads the limited codes, the largest of each channel
untouched, since its scale follows from it; a widened range is a threshold like any other, with a note.

Conditions: the layer is int8, dense, and reads u8 (a fully connected one: s8 too). A range is widened only where
int8 layers alone read the tensor, its calibrated range is what is written, nobody fixed it (as by hand, or because
pixels are its codes), and no clip ends it: kernels clip by it.
Formula: `mxq.weights.remedies.remedy` for each layer; for a tensor, the factor of the least cost over all layers that
read it, each in shares of its output's energy. Activations are those of calibration data where there are any
(``samples``), else what is usual (`remedies.supposed`).

Data-free, this is no guarantee: pairs are judged by what activations usually are, since limiting every pair for the
worst that can be costs more than saturation does (see `mxq.weights.remedies`). `pair_channels`, before it, is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mxq import numerics
from mxq.backends import MXNET_191, layer_of
from mxq.config import QuantConfig
from mxq.ir import Array, Model, Node, Ref
from mxq.machine import VNNI
from mxq.passes.pair_channels import weight_codes
from mxq.passes.partition import NONE
from mxq.passes.quantize import quantize_graph
from mxq.plan import Plan, SaturationRecord, TensorRecord
from mxq.rewrite import Event, Trace
from mxq.thresholds import Thresholds
from mxq.weights.activity import PLACES
from mxq.weights.remedies import FACTORS, Remedy, coarser, limited, remedy, supposed
from mxq.weights.saturation import Kernel, kernel_of, lost

NAME = "guard"
_TINY = 1e-30
MARGIN = 1.25
"""Where samples are few, as behind a global pooling, other data may have values so many times as large: with the
samples as they are, a CIFAR ResNet-56 loses 1 dB in its last layer."""


@dataclass(frozen=True)
class _Layer:
    """A layer whose sums may saturate.

    Attributes:
        node: of the fused float graph.
        data: what it reads there.
        kernel: what its kernel does.
        codes: (O, I, ...) int8, of its weight.
        samples: (n, I, K) or, supposed, (n, I): activation codes.
        step: (O,), of its weight.
        energy: mean square of its sums over ``samples``, in units of a `Remedy`'s cost.
        supposed: whether ``samples`` are.
    """

    node: Node
    data: Ref
    kernel: Kernel
    codes: Array
    samples: Array
    step: Array
    energy: float
    supposed: bool

    @cached_property
    def remedy(self) -> Remedy:
        """What serves this layer alone."""
        return remedy(self.codes, self.samples, self.step, kernel=self.kernel, widen=False)

    def widened(self, factor: float) -> float:
        """What is lost, and the noise added, with a range so much wider."""
        noise = lost(self.codes, self.samples, factor, self.kernel) + coarser(self.codes, factor)
        return float(noise @ self.step**2)


def guard(
    model: Model,
    plan: Plan,
    thresholds: Thresholds,
    config: QuantConfig,
    target: str,
    trace: Trace | None = None,
    samples: Mapping[str, Array] | None = None,
) -> tuple[Model, Thresholds, dict[str, SaturationRecord]]:
    """Applies the cheapest remedy to every layer.

    Args:
        model: fused, float, as it goes to `quantize_graph`.
        plan: says which layers are int8.
        thresholds: a range for every tensor in ``plan.observe``.
        config: types of activations; nothing is done without calibrated ranges (``calib_mode="none"``).
        target: of `mxq.machine.TARGETS`; with VNNI nothing is done.
        trace: receives the layers that changed.
        samples: of layers of ``model``, by name, from `mxq.weights.activity`.

    Returns:
        The model and thresholds, the same where nothing is to be done, and a record for each layer that can saturate.
    """
    if target == VNNI or config.calib_mode == NONE:
        return model, thresholds, {}
    layers = list(_layers(model, plan, thresholds, config, samples or {}))
    factors = _factors(model, plan, thresholds, layers)
    args, table, records = dict[str, Array](), dict(thresholds), dict[str, SaturationRecord]()
    for ref, factor in factors.items():
        found = table[str(ref)]
        note = f"widened {factor:.3g} times: without VNNI sums of its products would saturate"
        table[str(ref)] = found.ranged(found.range.times(factor), note)
    for layer in layers:
        factor = factors.get(_ranged(model, plan, layer.data), 1.0)
        chosen = layer.remedy
        kind, changed = "range" if factor > 1 else chosen.kind, 0
        if kind == "pairs":
            args[layer.node.inputs[1].name], changed = _limited(layer, model, chosen)
        records[layer.node.name] = SaturationRecord(layer.kernel, kind, chosen.pairs, changed, factor, layer.supposed)
        if trace is not None and kind != "none":
            trace.events.append(Event(NAME, kind, layer.node.name))
    same = Thresholds(table) if factors else thresholds
    return (model.with_graph(model.graph, args) if args else model), same, records


def kernels(
    model: Model, plan: Plan, thresholds: Thresholds, config: QuantConfig
) -> dict[str, tuple[Kernel, TensorRecord]]:
    """Of every int8 layer, by name: what its kernel does without VNNI, and how its input is coded."""
    _, tensors = quantize_graph(model, plan, thresholds, config)
    found = {}
    for node in model.graph.operators:
        layer = layer_of(node)
        record = tensors.of(node.inputs[0]) if node.inputs else None
        if layer is not None and record is not None and node.name in plan.quantized:
            depthwise = int(layer.number("num_group", 1)) > 1
            found[node.name] = kernel_of(layer.op, record.dtype, depthwise=depthwise), record
    return found


def _layers(
    model: Model, plan: Plan, thresholds: Thresholds, config: QuantConfig, samples: Mapping[str, Array]
) -> Iterable[_Layer]:
    """The int8 layers whose kernels saturate."""
    for name, (kernel, record) in kernels(model, plan, thresholds, config).items():
        node = model.graph[name]
        if kernel in ("pairs", "shifted") and len(model.graph.consumers[node.inputs[1].name]) == 1:
            yield _layer(model, node, kernel, record, samples.get(name))


def _layer(model: Model, node: Node, kernel: Kernel, record: TensorRecord, values: Array | None) -> _Layer:
    weight = model.args[node.inputs[1].name]
    codes = weight_codes(weight)
    if values is None:
        given = supposed(weight.shape[1], bounded=_ends_at_clip(model, node.inputs[0], record))
        if kernel == "shifted":  # s8: of both signs
            given *= np.where(np.arange(len(given)) % 2, 0.5, -0.5)[:, None]
        assumed = True
    else:
        size = max(abs(record.min or 0.0), abs(record.max or 0.0))
        grown = values * (MARGIN if len(values) < PLACES else 1.0)
        given = numerics.quantize(grown, numerics.scale(size, record.dtype), record.dtype).astype(np.float32)
        assumed = False
    step = np.abs(weight).reshape(len(weight), -1).max(axis=1).astype(np.float64) / numerics.SPAN["int8"]
    flat = codes.reshape(*codes.shape[:2], -1).astype(np.float32)
    second = np.square(given, dtype=np.float64).mean(axis=0).reshape(flat.shape[1], -1)
    energy = float(np.einsum("oik,ik,o->", np.square(flat), np.broadcast_to(second, flat.shape[1:]), step**2))
    return _Layer(node, node.inputs[0], kernel, codes, given, step, max(energy, _TINY), assumed)


def _ends_at_clip(model: Model, ref: Ref, record: TensorRecord) -> bool:
    """Whether the range of tensor ``ref`` reaches the bound of a clip that makes it."""
    return bool(record.max is not None and record.max >= 0.99 * _bound(model, ref))


def _bound(model: Model, ref: Ref) -> float:
    """What a clip, the last operator in the node that makes ``ref``, bounds it by; infinity where there is none."""
    node = model.graph[ref.name]
    last = node.subgraphs[0].nodes[-1] if node.subgraphs else node
    return last.number("a_max", np.inf) if last.op == "clip" else np.inf


def _factors(model: Model, plan: Plan, thresholds: Thresholds, layers: list[_Layer]) -> dict[Ref, float]:
    """The tensors whose ranges are to be widened -> how much."""
    found = {}
    for read in dict.fromkeys(layer.data for layer in layers):
        readers, ref = [layer for layer in layers if layer.data == read], _ranged(model, plan, read)
        kinds = [layer.remedy for layer in readers]
        least = sum(k.cost / layer.energy for k, layer in zip(kinds, readers, strict=True))
        if least == 0 or not (_alone(model, read, readers) and _widens(model, plan, thresholds, ref)):
            continue
        for factor in FACTORS:
            if _bound(model, ref) < thresholds.range(str(ref)).max * factor:
                break
            cost = sum(layer.widened(factor) / layer.energy for layer in readers)
            if cost < least:
                least, found[ref] = cost, factor
    return found


def _ranged(model: Model, plan: Plan, ref: Ref) -> Ref:
    """The tensor whose range ``ref`` has: itself, or what int8 operators, read by nobody else, carry to it."""
    while not _has_range(model, plan, ref):
        data = model.graph[ref.name].inputs
        if len(data) != 1 or len(model.graph.consumers[data[0].name]) > 1 or data[0] in model.graph.heads:
            break
        ref = data[0]
    return ref


def _has_range(model: Model, plan: Plan, ref: Ref) -> bool:
    """Whether ``ref`` is coded in a range of its own."""
    spec = MXNET_191.find(model.graph[ref.name].op)
    return ref.name not in plan.quantized or (spec is not None and spec.calibrated)


def _alone(model: Model, ref: Ref, readers: list[_Layer]) -> bool:
    """Whether ``readers`` are all that reads ``ref``; a layer may also add to its result what it reads."""
    names = {n.name for n in model.graph.consumers[ref.name]}
    return names == {r.node.name for r in readers} and all(ref not in r.node.inputs[1:] for r in readers)


def _widens(model: Model, plan: Plan, thresholds: Thresholds, ref: Ref) -> bool:
    """Whether the range of ``ref`` may be another."""
    free = str(ref) in thresholds and thresholds[str(ref)].observer != "fixed"
    return free and _has_range(model, plan, ref) and ref not in model.graph.heads


def _limited(layer: _Layer, model: Model, chosen: Remedy) -> tuple[Array, int]:
    """The float weight that the kernel reads as limited codes, and how many of them changed."""
    weight = model.args[layer.node.inputs[1].name]
    codes = limited(layer.codes, layer.samples, chosen, layer.kernel)
    changed = codes != layer.codes
    step = layer.step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.where(changed, codes * step, weight).astype(np.float32), int(changed.sum())
