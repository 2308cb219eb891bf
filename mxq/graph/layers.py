"""Layers: the convolution or fully connected operator in a node, fused or not; what a fused sum adds; edges."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Final

from mxq.errors import GraphError
from mxq.graph.ir import Graph, Node, Ref

CONVOLUTION: Final = "Convolution"
FULLY_CONNECTED: Final = "FullyConnected"
_LAYERS: Final = (CONVOLUTION, FULLY_CONNECTED)


def layer_of(node: Node) -> Node | None:
    """The convolution or fully connected layer that ``node`` is, or that a fused one holds; None for others."""
    inside = node.subgraphs[0].operators if node.subgraphs else (node,)
    return next((n for n in inside if n.op in _LAYERS), None)


def the_layer_of(node: Node) -> Node:
    """`layer_of` a node that has one.

    Raises:
        GraphError: it has none.
    """
    layer = layer_of(node)
    if layer is None:
        raise GraphError(f"{node.name!r} ({node.op}) holds no layer; allowed: {', '.join(_LAYERS)}, fused or not")
    return layer


def without_bias(layer: Node) -> Node:
    """A convolution or fully connected ``layer`` that adds no bias."""
    return replace(layer, inputs=layer.inputs[:2]).with_attrs(no_bias="True")


def groups_of(layer: Node) -> int:
    """In how many groups of channels, each read by its own filters, ``layer`` works; 1 for a fully connected one."""
    return layer.integer("num_group", 1)


def result_of(node: Node) -> Node:
    """The operator whose result ``node`` gives: of a fused one the last inside it, of another the operator itself."""
    inside = node.subgraphs[0] if node.subgraphs else None
    return node if inside is None else inside[inside.heads[0].name]


def summand_place(node: Node) -> int | None:
    """Which input a fused layer + sum, float or int8, adds to what its layer makes; None for others.

    It is the last of what a float one reads; in int8 the bounds of two ranges follow, of its data and of the summand.
    """
    if not node.flag("with_sum"):
        return None
    return len(node.inputs) - 1 - (4 if node.flag("quantized") else 0)


def summand_of(node: Node) -> Ref | None:
    """The tensor at `summand_place`."""
    place = summand_place(node)
    return None if place is None else node.inputs[place]


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
