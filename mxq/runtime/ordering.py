"""In which order a network takes its inputs.

Batches without names (tuples, lists) and calls of a block go by it. MXNet itself keeps no such order with a symbol:
``list_inputs`` follows the graph, which begins with whatever is used first.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

from mxq.graph.ir import Graph, Node, Ref

_NUMBERED = re.compile(r"(.*?)(\d{1,9})", re.ASCII)


def in_call_order(graph: Graph, parameters: Container[str], order: Sequence[str] | None = None) -> Graph:
    """``graph`` with the place of each input among the arguments written to it (`Annotation.input_place`).

    Args:
        graph: the network.
        parameters: names of the variables that are not inputs.
        order: the arguments of a call, among them any that the network does not read. Without, the places are those
            written before, or `natural`.
    """
    fed = [n for n in graph.variables if n.name not in parameters]
    names = [n.name for n in fed]
    if order is None:
        if len({n.note.input_place for n in fed}) == len(fed):
            return graph
        order = natural(names)
    arguments = (*dict.fromkeys(order), *(name for name in natural(names) if name not in order))
    places = {name: (i, len(arguments)) for i, name in enumerate(arguments)} if len(arguments) > 1 else {}
    inputs = set(names)
    return replace(graph, nodes=tuple(_placed(n, places) if n.name in inputs else n for n in graph.nodes))


def first_versions(graph: Graph) -> Graph:
    """``graph`` with the versions of auxiliary states that the first trace of its block has.

    MXNet counts on with every trace of a block that has not been hybridized, so that one network would have many forms.
    """
    read = sorted({ref for node in graph.nodes for ref in node.inputs if ref.version} - {None})
    known: dict[Ref, int] = {}
    for ref in read:
        counted = sum(other.name == ref.name and other.output == ref.output for other in known)
        known[ref] = counted + 1
    if all(ref.version == version for ref, version in known.items()):
        return graph

    def first(ref: Ref) -> Ref:
        return replace(ref, version=known[ref]) if ref in known else ref

    nodes = tuple(replace(node, inputs=tuple(map(first, node.inputs))) for node in graph.nodes)
    return replace(graph, nodes=nodes, heads=tuple(map(first, graph.heads)))


def _placed(variable: Node, places: Mapping[str, tuple[int, int]]) -> Node:
    return variable.noted(input_place=places.get(variable.name))


def natural(names: Sequence[str]) -> list[str]:
    """Names that differ in a number alone by that ("data2" before "data10"); others as they come, labels last."""
    numbers = {name: int(found[2]) for name in names if (found := _NUMBERED.fullmatch(name))}
    stems = {name.rstrip("0123456789") for name in names}
    if len(numbers) == len(names) and len(stems) == 1:
        return sorted(names, key=numbers.__getitem__)
    return sorted(names, key=lambda name: name.endswith("label"))
