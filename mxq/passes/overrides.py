"""Per-layer settings resolved against a graph: which `LayerConfig` each node has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mxq.config import LayerConfig, QuantConfig, selects
from mxq.ir import Graph, Node


@dataclass(frozen=True)
class LayerChoices:
    """Node name -> the fields that overrides set for it, later patterns winning field by field."""

    table: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @staticmethod
    def of(graph: Graph, config: QuantConfig) -> LayerChoices:
        """Resolves ``config.overrides``; a pattern applies to a fused node through any of its members."""
        table: dict[str, dict[str, object]] = {}
        for node in graph:
            for pattern, layer in config.overrides.items():
                if any(selects(pattern, Node(name, node.op)) for name in dict.fromkeys((*node.origins, node.name))):
                    table.setdefault(node.name, {}).update(_set_fields(layer))
        return LayerChoices(table)

    def dtype(self, node: str) -> str:
        """The activation type asked for a node's output; empty where nothing was."""
        return str(self.table.get(node, {}).get("dtype", ""))

    def calib_mode(self, node: str) -> str:
        """The observer asked for a node's output; empty where nothing was."""
        return str(self.table.get(node, {}).get("calib_mode", ""))

    def threshold(self, node: str) -> tuple[float, float] | None:
        """The range given for a node's output by hand."""
        found = self.table.get(node, {}).get("threshold")
        return (float(found[0]), float(found[1])) if isinstance(found, tuple) else None


def _set_fields(layer: LayerConfig) -> dict[str, object]:
    values = {name: getattr(layer, name) for name in ("quantize", "calib_mode", "dtype", "threshold")}
    return {k: v for k, v in values.items() if v is not None}
