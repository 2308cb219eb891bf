"""Fused operators as the operators that they are made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from mxq.graph.ir import Graph, Node, Ref, toposort


def inlined(graph: Graph, ops: Collection[str]) -> Graph:
    """The graph with what each node of ``ops`` has in its subgraph in its place.

    What gives the node's results is called as the node is; other operators keep their names where these are free.
    """
    nodes, names = dict[str, Node](), dict[Ref, Ref]()
    for node in graph:
        moved = replace(node, inputs=tuple(names.get(ref, ref) for ref in node.inputs))
        if node.op in ops:
            _inline(graph, moved, nodes, names)
        else:
            nodes[node.name] = moved
    heads = tuple(names.get(ref, ref) for ref in graph.heads)
    return toposort(nodes.values(), heads, graph.attrs)


def _inline(graph: Graph, node: Node, nodes: dict[str, Node], names: dict[Ref, Ref]) -> None:
    """Puts the operators of ``node`` among ``nodes``, and where its results are now among ``names``."""
    (inside,) = node.subgraphs
    variables = [variable.out for variable in inside.variables]
    local: dict[Ref, Ref] = dict(zip(variables, node.inputs, strict=True))
    last = inside.heads[0].name if len(inside.heads) == 1 else ""
    for inner in inside.operators:
        name = node.name if inner.name == last else graph.unused(inner.name, nodes)
        nodes[name] = replace(inner, name=name, inputs=tuple(_moved(ref, local) for ref in inner.inputs))
        local[inner.out] = Ref(name)
    names |= {Ref(node.name, i): _moved(head, local) for i, head in enumerate(inside.heads)}


def _moved(ref: Ref, local: Mapping[Ref, Ref]) -> Ref:
    """Where a tensor of the subgraph is outside."""
    base = local[Ref(ref.name)]
    return Ref(base.name, base.output + ref.output)
