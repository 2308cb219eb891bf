"""Layers of a network that is to be trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mxq.config import selects
from mxq.errors import ConfigError
from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.traits import traits_of
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


def read_by(graph: Graph, names: Collection[str]) -> frozenset[Ref]:
    """The tensors that the layers ``names`` read, at once or by operators that only move values."""
    waiting = [graph[name].inputs[0] for name in names]
    found = set(waiting)
    while waiting:
        node = graph[waiting.pop().name]
        new = [ref for ref in node.inputs if ref not in found] if moves(node) else []
        found.update(new)
        waiting += new
    return frozenset(found)


def moves(node: Node) -> bool:
    """Whether every value that an operator makes is one that it reads."""
    return traits_of(node).moves or (node.op == "Pooling" and node.attrs.get("pool_type", "max") == "max")
