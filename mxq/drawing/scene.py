"""Boxes and arrows: what a picture of a network shows, before anything has a place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from mxq.backends.mxnet.written import dtype_of, is_coded, is_int8, recodes
from mxq.drawing.titles import title_of
from mxq.graph.ir import Graph, Model, Node, Ref


class Kind(Enum):
    """What a box is."""

    FED = "input"
    GIVEN = "output"
    FLOAT = "float32 operator"
    INT8 = "INT8 operator"
    RECODED = "quantize, dequantize or requantize"


@dataclass(frozen=True)
class Box:
    """An operator, or an input or output of the network.

    Attributes:
        name: that of the node; of an output with a mark before it, as the operator that makes it has a box, too.
        title: what it does, in a few words, such as "Convolution 3x3, 64".
        kind: what it is.
    """

    name: str
    title: str
    kind: Kind


@dataclass(frozen=True)
class Arrow:
    """A tensor of ``dtype`` from the box ``start`` to the box ``end``."""

    start: str
    end: str
    dtype: str


@dataclass(frozen=True)
class Scene:
    """The boxes of one network, in graph order, and the arrows between them."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


def scene_of(model: Model, title: str) -> Scene:
    """The picture of a float or int8 ``model``: its inputs, operators and outputs, without parameters.

    Operators of parameters alone are left out, as are the ranges that codes travel with.
    """
    graph = model.graph
    boxes = [_box(node) for node in graph if node.name in model.fed]
    arrows = [a for node in graph.operators if node.name in model.fed for a in _arrows(model, node)]
    for head in dict.fromkeys(graph.heads):
        if head.name in model.fed:
            boxes.append(Box(f"output {head}", "output", Kind.GIVEN))
            arrows.append(Arrow(head.name, f"output {head}", dtype_of(graph, head)))
    return Scene(title, tuple(boxes), tuple(arrows))


def _box(node: Node) -> Box:
    if node.is_variable:
        return Box(node.name, node.name, Kind.FED)
    kind = Kind.RECODED if recodes(node) else Kind.INT8 if is_int8(node) else Kind.FLOAT
    return Box(node.name, title_of(node), kind)


def _arrows(model: Model, node: Node) -> Iterator[Arrow]:
    for ref in dict.fromkeys(node.inputs):
        if ref.name in model.fed and not _is_bound(model.graph, ref):
            yield Arrow(ref.name, node.name, dtype_of(model.graph, ref))


def _is_bound(graph: Graph, ref: Ref) -> bool:
    """Whether ``ref`` is the minimum or maximum of a range that codes travel with."""
    return ref.output > 0 and is_coded(graph[ref.name])
