"""What differs between two networks that were made int8: what runs in int8, how tensors are coded, weights, settings.

Most is read from the graphs, so it is what the networks do. What only the records say (settings, reasons, what became
of weights) is compared where both have one; where not, ``notes`` say what is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mxq import numerics
from mxq.backends import layer_of
from mxq.backends.mxnet.written import QUANTIZE, dtype_of, is_coded, is_int8, plain_name, recodes, tensor_name
from mxq.graph.ir import Array, Model, Node
from mxq.quant.plan import Report, TensorRecord, WeightRecord
from mxq.verification.agreement import json_number
from mxq.verification.stored import channels_of


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: how to call it, the network, and its record where there is one."""

    name: str
    model: Model
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """An operator that is "int8" in one and "float" in the other, or not there (""); the reasons if recorded."""

    node: str
    a: str
    b: str
    reason_a: str = ""
    reason_b: str = ""


@dataclass(frozen=True, slots=True)
class Coded:
    """An int8 tensor that is coded in two ways, or in one network only (None)."""

    tensor: str
    a: TensorRecord | None
    b: TensorRecord | None

    @property
    def ratio(self) -> float | None:
        """The range of b in terms of that of a, by their largest absolute values; None where one is not known."""
        first, second = (None if t is None else _absmax(t) for t in (self.a, self.b))
        return second / first if first and second is not None else None


@dataclass(frozen=True, slots=True)
class Weights:
    """A layer with different parameters, or records of them.

    Attributes:
        sqnr: of the weight in b against that in a, in dB: inf where they are equal, None where shapes differ.
        bias_sqnr: likewise of the bias; None also where one has none.
        a, b: what the records say.
    """

    layer: str
    sqnr: float | None
    bias_sqnr: float | None
    a: WeightRecord | None = None
    b: WeightRecord | None = None


@dataclass(frozen=True, slots=True)
class ChangedSetting:
    """A field of the records with two values; None where it is not set."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Differences:
    """What `differences` found, in the order of the graphs.

    Attributes:
        int8: how many operators are int8 in a, and in b.
        compared: how many operators, tensors and layers with weights both have.
        notes: what could not be compared, and what to bear in mind, as sentences.
    """

    int8: tuple[int, int]
    compared: Mapping[str, int]
    decisions: tuple[Decided, ...]
    tensors: tuple[Coded, ...]
    weights: tuple[Weights, ...]
    settings: tuple[ChangedSetting, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; infinities are text, as in `Verification.to_json`."""
        numbers = ("sqnr", "bias_sqnr")
        return {
            "int8": dict(zip("ab", self.int8, strict=True)),
            "compared": dict(self.compared),
            "decisions": [asdict(d) for d in self.decisions],
            "tensors": [{**asdict(t), "ratio": t.ratio} for t in self.tensors],
            "weights": [{k: json_number(v) if k in numbers else v for k, v in asdict(w).items()} for w in self.weights],
            "settings": [asdict(s) for s in self.settings],
            "notes": list(self.notes),
        }


def differences(a: Side, b: Side) -> Differences:
    """Compares two quantized networks, which need not come from the same settings, but should from the same network."""
    sides = (a, b)
    operators = [_operators(side.model) for side in sides]
    tensors = [_tensors(side) for side in sides]
    layers = [_layers(side.model) for side in sides]
    common = {
        "operators": len(operators[0].keys() & operators[1].keys()),
        "tensors": len(tensors[0].keys() & tensors[1].keys()),
        "weights": len(layers[0].keys() & layers[1].keys()),
    }
    return Differences(
        int8=(sum(map(is_int8, operators[0].values())), sum(map(is_int8, operators[1].values()))),
        compared=common,
        decisions=tuple(_decisions(sides, operators)),
        tensors=tuple(_codings(*tensors)),
        weights=tuple(_weights(sides, layers)),
        settings=tuple(_settings(a.report, b.report)),
        notes=tuple(_notes(sides)),
    )


def _union(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys((*first, *second)))


def _operators(model: Model) -> dict[str, Node]:
    """The operators that compute, by the names of the float tensors they make."""
    return {plain_name(n): n for n in model.graph.operators if not recodes(n)}


def _decisions(sides: tuple[Side, Side], operators: list[dict[str, Node]]) -> Iterator[Decided]:
    for name in _union(*operators):
        nodes = [found.get(name) for found in operators]
        states = ["" if n is None else "int8" if is_int8(n) else "float" for n in nodes]
        if states[0] != states[1]:
            yield Decided(name, *states, *(_reason(side.report, n) for side, n in zip(sides, nodes, strict=True)))


def _reason(report: Report | None, node: Node | None) -> str:
    if report is None or node is None:
        return ""
    names = (tensor_name(node), plain_name(node))
    return next((report.plan[name].reason for name in names if name in report.plan), "")


def _tensors(side: Side) -> dict[str, TensorRecord]:
    """The coded tensors: what the record says of them, which knows ranges that are only handed on, or the graph."""
    recorded = {} if side.report is None else side.report.tensors
    found = {}
    for node in side.model.graph.operators:
        if is_coded(node):
            name = node.name if node.op == QUANTIZE else plain_name(node)
            found[name] = recorded.get(node.name) or _record(side.model, node)
    return found


def _record(model: Model, node: Node) -> TensorRecord:
    low, high = (float(node.attrs[k]) if k in node.attrs else None for k in ("min_calib_range", "max_calib_range"))
    return TensorRecord(dtype_of(model.graph, node.out), low, high)


def _codings(first: Mapping[str, TensorRecord], second: Mapping[str, TensorRecord]) -> Iterator[Coded]:
    for name in _union(first, second):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or a.dtype != b.dtype or _other_range(a, b):
            yield Coded(name, a, b)


def _other_range(a: TensorRecord, b: TensorRecord) -> bool:
    """Whether the codes mean other values: kernels look at the largest absolute value of a range alone."""
    first, second = _absmax(a), _absmax(b)
    return first is not None and second is not None and first != second


def _absmax(record: TensorRecord) -> float | None:
    return None if record.min is None or record.max is None else max(abs(record.min), abs(record.max))


def _layers(model: Model) -> dict[str, tuple[Array, Array | None]]:
    """Layers with a weight -> weight and bias, in the order and the units of the float network's channels."""
    found = {}
    for node in model.graph.operators:
        layer = layer_of(node)
        if layer is not None and node.inputs[1].name in model.args:
            bias = None if layer.flag("no_bias") else model.args.get(node.inputs[2].name)
            found[plain_name(node)] = _as_in_float(model, node, model.args[node.inputs[1].name], bias)
    return found


def _as_in_float(model: Model, node: Node, weight: Array, bias: Array | None) -> tuple[Array, Array | None]:
    """Undoes what notes say of the channels of the layer's input and output."""
    (rows, up), (columns, down) = (channels_of(model.graph, n) for n in (node, model.graph[node.inputs[0].name]))
    if rows:
        weight, bias = weight[np.argsort(rows)], None if bias is None else bias[np.argsort(rows)]
    if up:
        weight, bias = weight / _along(up, 0, weight), None if bias is None else bias / np.asarray(up)
    if weight.shape[1] == 1:  # depthwise: an input channel is an output channel
        return weight * _along(down, 0, weight) if down else weight, bias
    if columns:
        weight = weight.reshape(len(weight), len(columns), -1)[:, np.argsort(columns)].reshape(weight.shape)
    return weight * _along(down, 1, weight) if down else weight, bias


def _along(factors: Sequence[float], axis: int, weight: Array) -> Array:
    """``factors`` of channels, to be broadcast over a weight; after Flatten, a channel has several places in a row."""
    each = np.repeat(np.asarray(factors), weight.shape[axis] // len(factors))
    return each.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])


def _weights(sides: tuple[Side, Side], layers: list[dict[str, tuple[Array, Array | None]]]) -> Iterator[Weights]:
    first, second = layers
    for name in (n for n in first if n in second):
        records = [None if s.report is None else s.report.weights.get(name) for s in sides]
        weight, bias = (_sqnr(a, b) for a, b in zip(first[name], second[name], strict=True))
        both = all(s.report is not None for s in sides)
        if weight != math.inf or bias not in (math.inf, None) or (both and records[0] != records[1]):
            yield Weights(name, weight, bias, *records)


def _sqnr(first: Array | None, second: Array | None) -> float | None:
    """Of a parameter of the second network against that of the first."""
    if first is None or second is None or first.shape != second.shape:
        return None
    return numerics.sqnr_db(first, second)


def _settings(a: Report | None, b: Report | None) -> Iterator[ChangedSetting]:
    if a is None or b is None:
        return
    tables = [{**r.config, **{f"{k} version": v for k, v in r.versions.items()}} for r in (a, b)]
    for report, table in zip((a, b), tables, strict=True):
        table["calibration_examples"] = report.summary.get("calibration_examples")
    for name in _union(*tables):
        values = [table.get(name) for table in tables]
        if values[0] != values[1]:
            yield ChangedSetting(name, *values)


def _notes(sides: tuple[Side, Side]) -> Iterator[str]:
    for side in sides:
        if not any(is_int8(n) or is_coded(n) for n in side.model.graph.operators):
            yield f"{side.name} has no int8 operator: is it the float network?"
        if side.report is None:
            yield (
                f"{side.name} has no record beside it: settings, reasons, what became of weights, and ranges that are "
                "only handed on are not known"
            )
    sources = [{} if s.report is None else s.report.source for s in sides]
    if all(sources) and sources[0] != sources[1]:
        yield "they were made from different float networks"
