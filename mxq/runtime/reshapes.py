"""Reshapes as MXNet's first releases wrote them."""

from __future__ import annotations

from dataclasses import replace

from mxq.errors import GraphError
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Graph, Node
from mxq.graph.operator_names import OWN_NAME


def without_target_shapes(graph: Graph) -> Graph:
    """Reshapes by MXNet's first attribute for it, ``target_shape``, as those by ``shape``.

    MXNet does not compare the sizes of the former, and writes where it must not (``InferReshapeShape``).
    """
    old = (n for n in graph.operators if OWN_NAME.get(n.op, n.op) == "Reshape" and n.ints("target_shape"))
    changes = {n.name: (_reshape(n),) for n in old if not n.ints("shape")}
    return graph.replace(changes) if changes else graph


def _reshape(node: Node) -> Node:
    """0 is what the others leave; with ``keep_highest`` the first side stays what it is."""
    first, *others = node.ints("target_shape")
    kept = node.flag("keep_highest")
    sides = [side or -1 for side in (others if kept else (first, *others))]
    if min(sides, default=1) < -1 or sides.count(-1) > 1:
        raise GraphError(
            f"node {node.name!r} (Reshape): target_shape is {node.attrs['target_shape']!r}; allowed: sizes, one 0 "
            "at most"
        )
    return replace(node, attrs={"shape": str(tuple([0, *sides] if kept else sides))}, note=Annotation())
