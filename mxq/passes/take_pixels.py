"""Take pixels: the preparation of pictures becomes part of the network, which is then fed uint8 (N, H, W, C).

Before:  data (N, C, H, W) float32 -> network
After:   data (N, H, W, C) uint8 -> Cast -> [reverse] -> times scale -> minus mean -> by std -> transpose -> network

As `mxq.images.Preprocess` does it, in the same order and in float32: what comes after the picture has its size, which
remains the caller's. Channels go in as red, green, blue also where the network wants them the other way around.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError
from mxq.graph.ir import Array, Model, Node, Ref, toposort

_UINT8 = "3"
"""MXNet's number of the type."""
CHANNELS_FIRST = "NCHW"


def pictures_in(shapes: Mapping[str, tuple[int, ...]], settings: Preprocess) -> tuple[str, ...]:
    """The inputs that can be pictures prepared so; ``shapes`` are of one example."""
    place = 0 if settings.layout == CHANNELS_FIRST else 2
    return tuple(name for name, shape in shapes.items() if len(shape) == 3 and shape[place] == settings.channels)


def pixels_shape(shape: tuple[int, ...], settings: Preprocess) -> tuple[int, ...]:
    """Of one example (H, W, C) as it is fed, where the network takes ``shape``."""
    return (*shape[1:], shape[0]) if settings.layout == CHANNELS_FIRST else shape


def take_pixels(model: Model, name: str, settings: Preprocess) -> Model:
    """``model`` with pixels as its input ``name``.

    Raises:
        ConfigError: the input is one of integers already.
    """
    graph, given = model.graph, model.graph[name]
    if given.input_dtype != "float32":
        raise ConfigError(f"input {name!r} takes {given.input_dtype}; allowed with_preprocess: one that takes float32")
    unused = graph.unused(f"{name}_prepared")
    nodes, args = list[Node](), dict[str, Array]()
    ref = Ref(name)
    for op, attrs, constant in _steps(settings):
        at = graph.unused(f"{unused}_{len(nodes)}", {node.name for node in nodes})
        inputs: tuple[Ref, ...] = (ref,)
        if constant is not None:
            args[f"{at}_value"] = constant
            nodes.append(Node(f"{at}_value", "null"))
            inputs = (ref, Ref(f"{at}_value"))
        nodes.append(Node(at, op, attrs, inputs))
        ref = Ref(at)
    moved = [_reading(node, Ref(name), ref) for node in graph.nodes if node.name != name]
    heads = tuple(ref if head == Ref(name) else head for head in graph.heads)
    taken = Node(name, "null", {"__dtype__": _UINT8})
    return model.with_graph(toposort([taken, *nodes, *moved], heads, graph.attrs), args)


def _reading(node: Node, old: Ref, new: Ref) -> Node:
    if old not in node.inputs:
        return node
    return replace(node, inputs=tuple(new if ref == old else ref for ref in node.inputs))


def _steps(settings: Preprocess) -> Iterator[tuple[str, dict[str, str], Array | None]]:
    """Operators with their attributes and, where they have one, their second operand."""
    yield "Cast", {"dtype": "float32"}, None
    axes = ([1, 2] if settings.rotate180 else []) + ([3] if settings.color == "BGR" else [])
    if axes:
        yield "reverse", {"axis": str(tuple(axes))}, None
    if settings.scale != 1:
        yield "_mul_scalar", {"scalar": repr(float(np.float32(settings.scale)))}, None
    if any(settings.mean):
        yield "broadcast_sub", {}, np.array(settings.mean, np.float32).reshape(1, 1, 1, -1)
    if any(each != 1 for each in settings.std):
        yield "broadcast_div", {}, np.array(settings.std, np.float32).reshape(1, 1, 1, -1)
    if settings.layout == CHANNELS_FIRST:
        yield "transpose", {"axes": "(0, 3, 1, 2)"}, None
