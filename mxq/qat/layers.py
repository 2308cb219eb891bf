"""Layers of a network that is to be trained."""

from __future__ import annotations

from collections.abc import Iterable

from mxq.config import selects
from mxq.errors import ConfigError
from mxq.graph.ir import Model, Node
from mxq.passes.fold_bn import FOLDABLE


def layers(model: Model, excluded: Iterable[str] = ()) -> tuple[Node, ...]:
    """Convolutions and fully connected layers whose weight is a parameter, but for those that patterns exclude.

    Raises:
        ConfigError: a pattern selects no operator.
    """
    nodes = model.graph.operators
    out = {name for pattern in excluded for name in _selected(nodes, pattern)}
    found = (node for node in nodes if node.op in FOLDABLE and node.inputs[1].name in model.args)
    return tuple(node for node in found if node.name not in out)


def _selected(nodes: Iterable[Node], pattern: str) -> list[str]:
    found = [node.name for node in nodes if selects(pattern, node)]
    if not found:
        raise ConfigError(
            f"exclude_layers: {pattern!r} selects no operator of the network; allowed: names and patterns"
        )
    return found
