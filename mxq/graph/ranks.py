"""How many axes a tensor has, where the graph shows it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from mxq.graph.ir import Array, Graph, Node, Ref
from mxq.graph.traits import Operand, traits_of


def rank_of(graph: Graph, ref: Ref, params: Mapping[str, Array] = MappingProxyType({})) -> int | None:
    """The number of axes of ``ref``, where the nodes that make it show it.

    Args:
        graph: holds the nodes.
        ref: the first output of one.
        params: the values of parameters, as far as they are known.
    """
    found: dict[Ref, int | None] = {}
    for node in graph:
        if node.name in params:
            found[node.out] = params[node.name].ndim
        elif node.is_variable:
            found[node.out] = len(node.note.input_shape) + 1 if node.note.input_shape else None
        else:
            found[node.out] = _rank(node, [found.get(r) for r in node.inputs])
        if node.out == ref:
            break
    return found.get(ref)


def _rank(node: Node, given: list[int | None]) -> int | None:
    """The axes of what ``node`` makes of inputs with ``given`` axes."""
    if (shown := _shown(node)) is not None:
        return shown or None
    if traits_of(node).operand is Operand.BROADCAST:
        known = [axes for axes in given if axes is not None]
        return max(known) if len(known) == len(given) else None
    place = 0 if node.op == "FullyConnected" else traits_of(node).ranked_by
    return given[place] if place is not None and place < len(given) else None


def _shown(node: Node) -> int | None:
    """The axes that attributes say ``node`` makes, 0 where they leave it open; None where its inputs decide."""
    shape = node.ints("shape")
    if node.op in ("Convolution", "Deconvolution", "Pooling"):
        return len(node.ints("kernel")) + 2 if node.ints("kernel") else None
    if node.op == "Flatten" or (node.op == "FullyConnected" and node.flag("flatten", default=True)):
        return 2
    if node.op == "Reshape":
        return len(shape) if shape and min(shape) >= -1 else 0
    if node.op == "transpose":
        return len(node.ints("axes")) or None
    return 3 if node.op == "_contrib_box_decode" else None
