"""Per-layer settings resolved against a graph: what each node has, and which pattern said so."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

from mxq.config import LayerConfig, QuantConfig, selects
from mxq.graph.ir import Graph, Node
from mxq.quant.bits import Bits


@dataclass(frozen=True, slots=True)
class Chosen:
    """The ``value`` of one field of a `LayerConfig`, and the ``source`` that set it: "overrides 'stage1_*'"."""

    value: object
    source: str


@dataclass(frozen=True)
class LayerChoices:
    """Node name -> the fields that overrides set for it, later patterns winning field by field.

    ``calib_mode`` and ``threshold`` are two ways to say the same, so a later one of either replaces both.
    """

    table: Mapping[str, Mapping[str, Chosen]] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, config: QuantConfig) -> LayerChoices:
        """Resolves ``config.overrides``; a pattern applies to a fused node through any of its members."""
        table: dict[str, dict[str, Chosen]] = {}
        for node in graph:
            seen = tuple(views(node))
            for pattern, layer in config.overrides.items():
                if any(selects(pattern, view) for view in seen):
                    _apply(layer, override_source(pattern), table.setdefault(node.name, {}))
        return LayerChoices(table)

    def calib_mode(self, node: str) -> str:
        """The observer asked for a node's output; empty where nothing was."""
        return str(self._value(node, "calib_mode") or "")

    def weight_calib_mode(self, node: str) -> str:
        """The observer asked for a layer's own weight; empty where nothing was."""
        return str(self._value(node, "weight_calib_mode") or "")

    def dtype(self, node: str) -> str:
        """The activation type asked for a node's output; empty where nothing was."""
        return str(self._value(node, "dtype") or "")

    def threshold(self, node: str) -> tuple[float, float] | None:
        """The range given for a node's output by hand."""
        found = self._value(node, "threshold")
        return (float(found[0]), float(found[1])) if isinstance(found, tuple) else None

    def bits(self, node: str) -> Bits | None:
        """The bits asked for a layer; None where nothing was."""
        found = self._value(node, "bits")
        return None if found is None else Bits.parse(found)

    def asks_int8(self, node: str) -> bool:
        """Whether a node was asked to be int8."""
        return self._value(node, "quantize") is True

    def source(self, node: str, field: str) -> str:
        """What set a ``field`` of `LayerConfig` for a node, such as "overrides 'stage1_*'"; empty where nothing did."""
        found = self.table.get(node, {}).get(field)
        return "" if found is None else found.source

    def unused_ranges(self, observed: Collection[str]) -> tuple[str, ...]:
        """A sentence for each setting that gives ranges, and none of them to one of the ``observed`` tensors."""
        nodes: dict[str, list[str]] = {}
        for name in self.table:
            if source := self.source(name, "threshold"):
                nodes.setdefault(source, []).append(name)
        return tuple(
            f"{source}: threshold has no effect: {names[0]!r} is not written in a calibrated range"
            for source, names in nodes.items()
            if {*names}.isdisjoint(observed)
        )

    def _value(self, node: str, field: str) -> object:
        found = self.table.get(node, {}).get(field)
        return None if found is None else found.value


def override_source(pattern: str) -> str:
    """How a setting that ``overrides`` made is called in reports."""
    return f"overrides {pattern!r}"


def _apply(layer: LayerConfig, source: str, settings: dict[str, Chosen]) -> None:
    values = {f.name: getattr(layer, f.name) for f in fields(LayerConfig)}
    if layer.calib_mode is not None or layer.threshold is not None:
        settings.pop("calib_mode", None)
        settings.pop("threshold", None)
    settings.update({name: Chosen(value, source) for name, value in values.items() if value is not None})


def views(node: Node) -> Iterator[Node]:
    """The original nodes that ``node`` stands for, as selectors see them: each with its own op, attributes and inputs.

    A node that was folded into another, as BatchNorm is, has only its name left; the rest is the other's.
    """
    for member in dict.fromkeys((*node.origins, node.name)):
        yield _view(member, node)


def _view(member: str, node: Node) -> Node:
    for sub in node.subgraphs:
        outside = dict(zip((v.name for v in sub.variables), node.inputs, strict=False))
        for inner in sub.operators:
            if member in (inner.name, *inner.origins):
                return replace(inner, name=member, inputs=tuple(outside.get(r.name, r) for r in inner.inputs))
    return replace(node, name=member)
