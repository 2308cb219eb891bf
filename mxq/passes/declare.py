"""Declare: every parameter's variable says what shape it has, and what type where that is not float32.

Before:  slopes = null                         weight = null __shape__="(8, 0, 3, 3)"
After:   slopes = null __shape__="(1, 8, 1, 1)"    weight = null __shape__="(8, 4, 3, 3)"

Why: ``bind`` and ``SymbolBlock`` are given arrays, but ``simple_bind``, ``Module``, ``FeedForward`` and the C predict
API make them, in the shapes and types that MXNet infers from those of the inputs. Not every operator tells those of its
inputs (a broadcast one does not), and a pass may have given a parameter another shape than its variable still states.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mxq.graph.ir import Array, Model, Node
from mxq.rewrite import NO_EVENTS, Pass, Trace

SHAPE, DTYPE = "__shape__", "__dtype__"
"""Attributes of a variable that MXNet's inference starts from."""

TYPE_FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "float32": "0", "float64": "1", "float16": "2", "uint8": "3", "int32": "4", "int8": "5", "int64": "6",
        "bool": "7",
    }
)  # fmt: skip
"""How `DTYPE` calls a type (``TypeFlag``, mshadow's ``base.h``)."""


def _run(model: Model) -> tuple[Model, Trace]:
    """``model`` with shape and type at each of its parameters; the same object where all are there."""
    changes = {}
    for node in model.graph.variables:
        value = model.param(node.name)
        if value is not None and (declared := _declared(node, value)) != node:
            changes[node.name] = (declared,)
    return (model.with_graph(model.graph.replace(changes)) if changes else model), NO_EVENTS


def _declared(node: Node, value: Array) -> Node:
    flag = TYPE_FLAGS.get(str(value.dtype))
    attrs = {SHAPE: str(value.shape)}
    if flag is not None and (flag != TYPE_FLAGS["float32"] or DTYPE in node.attrs):
        attrs[DTYPE] = flag
    return node.with_attrs(**attrs)


DECLARE = Pass("declare", _run)
