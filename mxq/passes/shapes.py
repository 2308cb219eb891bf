"""What a graph alone says of a tensor's shape, without the size of any input but where that has one alone.

Rules that need a number of channels or a spatial size of 1x1 ask here; both follow from the nodes that make a tensor.
"""

from __future__ import annotations

from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.layers import groups_of
from mxq.graph.traits import traits_of

_LAYERS = ("Convolution", "Deconvolution")


def image_channels(graph: Graph, ref: Ref) -> int | None:
    """The number of channels of ``ref`` where it is known to be (N, C, H, W); None where it is not."""
    node = graph[ref.name]
    while ref.output == 0 and _keeps_image(node):
        ref, node = node.inputs[0], graph[node.inputs[0].name]
    if ref.output != 0:
        return None
    if node.is_variable:
        shape = node.note.input_shape
        return shape[0] if len(shape) == 3 else None
    layer = _layer(node)
    if layer.op in _LAYERS and is_of_images(layer):
        return layer.integer("num_filter", 0)
    if node.op == "Concat" and node.attrs.get("dim", "1") == "1":
        parts = [image_channels(graph, r) for r in node.inputs]
        return None if None in parts else sum(p for p in parts if p is not None)
    return None


def _keeps_image(node: Node) -> bool:
    """Whether what an operator makes of an image is one of as many channels."""
    traits = traits_of(node)
    return traits.keeps_shape or traits.per_channel


def input_ranks(model: Model) -> dict[str, int]:
    """How many axes inputs have, batch and channels among them, where a convolution or pooling of them tells."""
    found = {name: _window(model.graph, name) for name in model.inputs}
    return {name: window + 2 for name, window in found.items() if window}


def _window(graph: Graph, name: str) -> int:
    """The dimensions of the window that looks at a tensor, also through elementwise operators; 0 where none does."""
    same = {name}
    for node in graph.operators:  # what reads a tensor comes after it
        if not node.inputs or node.inputs[0].name not in same:
            continue
        inner = _layer(node)
        if inner.op in (*_LAYERS, "Pooling") and inner.ints("kernel"):
            return len(inner.ints("kernel"))
        if traits_of(node).keeps_shape:
            same.add(node.name)
    return 0


def _layer(node: Node) -> Node:
    """The convolution that a fused node holds; another node as it is."""
    return next((n for sub in node.subgraphs for n in sub.operators if n.op in _LAYERS), node)


def _is_nchw(node: Node) -> bool:
    return node.attrs.get("layout", "None") in ("None", "NCHW")


def is_of_images(node: Node) -> bool:
    """Whether a convolution or pooling is one of (N, C, H, W)."""
    return len(node.ints("kernel")) == 2 and _is_nchw(node)


def stride_of(node: Node) -> tuple[int, int]:
    """Of a convolution or pooling of images, in rows and columns."""
    found = node.ints("stride") or (1, 1)
    return found[0], found[-1]


def pads(node: Node) -> bool:
    """Whether a convolution or pooling pads what it reads."""
    return any(node.ints("pad"))


def keeps_size(conv: Node) -> bool:
    """Whether the result of a convolution is as high and wide as its image."""
    if not is_of_images(conv):
        return False
    kernel = conv.ints("kernel")
    pad, dilate, stride = (conv.ints(a) or (d, d) for a, d in (("pad", 0), ("dilate", 1), ("stride", 1)))
    return stride == (1, 1) and all(2 * p == d * (k - 1) for p, d, k in zip(pad, dilate, kernel, strict=True))


def is_global_pooling(node: Node) -> bool:
    """Whether ``node`` leaves one value of each channel of an image, (N, C, 1, 1)."""
    two_axes = _is_nchw(node) and len(node.ints("kernel")) in (0, 2)
    return node.op == "Pooling" and node.flag("global_pool") and two_axes


def is_pooled(graph: Graph, ref: Ref) -> bool:
    """Whether ``ref`` is known to be (N, C, 1, 1): a global pooling, and what comes after it point by point."""
    node = graph[ref.name]
    while ref.output == 0:
        if is_global_pooling(node):
            return image_channels(graph, node.inputs[0]) is not None
        pointwise = node.op == "Convolution" and is_pointwise(node)
        if not pointwise and not traits_of(node).keeps_shape and not is_column(node):
            return False
        if is_column(node):
            return True
        ref, node = node.inputs[0], graph[node.inputs[0].name]
    return False


def is_pointwise(conv: Node) -> bool:
    """Whether a convolution is a 1x1 one without padding or groups."""
    return conv.ints("kernel") == (1, 1) and not pads(conv) and groups_of(conv) == 1 and _is_nchw(conv)


COLUMN = {"shape": "(0, -1, 1, 1)"}
"""Attributes of the Reshape that makes (N, C) a pooled image, (N, C, 1, 1)."""


def is_column(node: Node) -> bool:
    """Whether ``node`` is a Reshape of (N, C) to (N, C, 1, 1)."""
    return node.op == "Reshape" and node.attrs.get("shape") == COLUMN["shape"]
