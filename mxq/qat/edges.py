"""Layers of a network, and which of them are its first and last."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mxq.config import selects
from mxq.errors import ConfigError
from mxq.graph.ir import Graph, Model, Node
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


def edges(graph: Graph, inputs: Collection[str], names: Collection[str]) -> frozenset[str]:
    """Of the layers ``names`` those with none before them, on a way from an input, and those with none after them."""
    free, first = set(inputs), set[str]()
    for node in graph.operators:
        if any(ref.name in free for ref in node.inputs):
            (first if node.name in names else free).add(node.name)
    ends, last = set[str](), set[str]()
    for node in reversed(graph.operators):
        after = node.name in graph.head_names or any(reader.name in ends for reader in graph.consumers[node.name])
        if after:
            (last if node.name in names else ends).add(node.name)
    return frozenset(first | last)
