"""A network as what it computes in inference on the CPU: no labels of a loss, float32, dense parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from mxq.graph.annotation import Annotation
from mxq.graph.ir import Array, Graph, Node
from mxq.graph.operator_names import OWN_NAME
from mxq.graph.ranks import rank_of
from mxq.graph.traits import traits_of

_STORAGE: Final = "__storage_type__"
_CSR: Final = "2"
_HALF: Final = ("float16", "bfloat16")
_HALF_FLAGS: Final = ("2", "12")
"""``__dtype__`` of the same (``TypeFlag``, mshadow's ``base.h``)."""


def inference_form(graph: Graph) -> Graph:
    """``graph`` without what only training or other devices need; see the module."""
    changes = dict(_changes(graph))
    return graph.replace(changes) if changes else graph


def _changes(graph: Graph) -> Iterator[tuple[str, tuple[Node, ...]]]:
    for node in graph.nodes:
        is_softmax = OWN_NAME.get(node.op, node.op) == "SoftmaxOutput"
        new = _softmax(graph, node) if is_softmax else (_in_float32(_headless(node)),)
        if new != (node,):
            yield node.name, new


def _headless(node: Node) -> Node:
    op = traits_of(node).in_inference
    return replace(node, op=op, attrs={}, inputs=node.inputs[:1], note=Annotation()) if op else node


def _softmax(graph: Graph, head: Node) -> tuple[Node, ...]:
    """The head's softmax, over the axes that MXNet takes on the CPU, without its label.

    =====================  ==================================
    ``multi_output``       axis 1
    ``preserve_shape``     the last axis
    neither, 2 or 4 axes   the last axis (oneDNN has a kernel)
    neither, 3 or 5 axes   all but the first together
    =====================  ==================================

    In the last case, and where the graph does not show how many axes there are, the operator stays and is given a label
    that it does not look at.
    """
    data, axes = head.inputs[0], rank_of(graph, head.inputs[0])
    if head.flag("multi_output") or head.flag("preserve_shape"):
        return (_over(head, 1 if head.flag("multi_output") else -1),)
    if axes in (2, 4):
        return (_over(head, -1),)
    label = Node(graph.unused(f"{head.name}_unread_label"), "max", {"axis": "-1"}, (data,))
    return label, replace(head, inputs=(data, label.out))


def _over(head: Node, axis: int) -> Node:
    return replace(head, op="softmax", attrs={"axis": str(axis)}, inputs=head.inputs[:1], note=Annotation())


def _in_float32(node: Node) -> Node:
    """Without half precision, for which the CPU has no kernels, and dense where it is a parameter."""
    attrs = {k: "float32" if k == "dtype" and v in _HALF else v for k, v in node.attrs.items()}
    if node.is_variable and attrs.get("__dtype__") in _HALF_FLAGS:
        del attrs["__dtype__"]
    return node if attrs == node.attrs else replace(node, attrs=attrs)


def dense(graph: Graph, parameters: frozenset[str]) -> Graph:
    """``graph`` in which nothing says that it is stored otherwise than dense, but for inputs in rows (csr).

    A row_sparse storage type serves gradients; a SymbolBlock refuses it, whichever node says so.
    """
    changes = {
        n.name: (replace(n, attrs={k: v for k, v in n.attrs.items() if k != _STORAGE}),)
        for n in graph.nodes
        if _STORAGE in n.attrs and not (_is_input(n, parameters) and n.attrs[_STORAGE] == _CSR)
    }
    return graph.replace(changes) if changes else graph


def _is_input(node: Node, parameters: frozenset[str]) -> bool:
    return node.is_variable and node.name not in parameters


def as_float32(value: Array) -> Array:
    """Half and double precision as float32; other types as they are. MXNet hands out bfloat16 as its bits."""
    if value.dtype.names == ("bfloat16",):
        bits: Array = value["bfloat16"].astype(np.uint32) << 16
        return bits.view(np.float32)
    return value.astype(np.float32) if value.dtype in (np.float16, np.float64) else value
