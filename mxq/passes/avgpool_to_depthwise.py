"""Averages: the average of a large window becomes a depthwise convolution.

Before:  x -> Pooling(avg, k x k) -> y
After:   x -> Convolution(k x k, depthwise, 1 / k^2) [-> Activation(relu)] -> y

Formula: the same sum. ReLU follows where x is never negative: neither is y then, which the int8 kernel is told by that.

The int8 pooling writes in the range of what it averages, of which the means of a large window take up little. The
convolution adds codes in 32 bits and writes in a range of its own (DenseNet: 0.5 to 1 dB). Averages of all of an image,
whatever its size, become convolutions where the size is known: see `mxq.passes.fix_shape`.

Conditions: the window has `LARGE` values or more; it counts what the image is padded with, if at all; the number of
channels is known; nothing else reads x; a layer reads y. What the network returns would lose by a range of 8 bits
(SqueezeNet: 1 of 31 dB, for 6 % of its time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mxq.backends import layer_of
from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref, origins
from mxq.graph.traits import traits_of
from mxq.passes.shapes import image_channels, is_global_pooling, is_of_images, pads
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules

LARGE = 25
"""Values in a window. Means of 2x2 or 3x3 take up much of the range."""
_RELU = {"act_type": "relu"}


@dataclass(frozen=True)
class WindowAverage:
    """See the module."""

    name: str = "window_average"
    pattern: Op = Op(("Pooling",), (Any_("x"),))

    def check(self, model: Model, match: Match) -> Reject | None:
        pool, x = match.root, match.refs["x"]
        if pool.attrs.get("pool_type") != "avg" or is_global_pooling(pool) or not is_of_images(pool):
            return NO_MATCH
        if np.prod(pool.ints("kernel")) < LARGE:
            return NO_MATCH
        if pads(pool) and not pool.flag("count_include_pad", default=True):
            return Reject("at its edges the pooling averages fewer values", (pool.name,))
        if pool.attrs.get("pooling_convention", "valid") != "valid":
            return Reject("its last windows may reach beyond the image", (pool.name,))
        if image_channels(model.graph, x) is None:
            return Reject(f"nothing shows how many channels {str(x)!r} has", (pool.name,))
        return refusal(model, pool)

    def build(self, model: Model, match: Match) -> Rewrite:
        pool = match.root
        channels = image_channels(model.graph, match.refs["x"])
        if channels is None:
            raise ValueError("build is called where check found the number of channels")
        window = {key: pool.attrs[key] for key in ("kernel", "stride", "pad") if key in pool.attrs}
        nodes, args = averaging(model, pool, channels, window)
        return Rewrite({pool.name: nodes}, args=args)


def refusal(model: Model, pool: Node) -> Reject | None:
    """Why an average stays a pooling, however large."""
    x = pool.inputs[0]
    if not _feeds_layer(model.graph, pool):
        return Reject("no layer reads it, and what the network returns stays float", (pool.name,))
    if len(model.graph.consumers[x.name]) > 1 or x.name in model.graph.head_names:
        return Reject(f"{str(x)!r} is read elsewhere, too", (pool.name,))
    return None


def _feeds_layer(graph: Graph, node: Node) -> bool:
    readers = graph.consumers[node.name]
    return any(layer_of(r) is not None or (traits_of(r).moves and _feeds_layer(graph, r)) for r in readers)


def averaging(
    model: Model, pool: Node, channels: int, window: dict[str, str]
) -> tuple[tuple[Node, ...], dict[str, Array]]:
    """What computes ``pool``, under its name: its nodes, the window's variable among them, and that one's value.

    Args:
        channels: of the image.
        window: attributes of the convolution: kernel, stride, pad.
    """
    graph, x = model.graph, pool.inputs[0]
    hidden = {key: value for key, value in pool.attrs.items() if key.startswith("__")}
    note = replace(pool.note, origins=origins(pool), routes=(*pool.note.routes, Route.of(RouteKind.AVERAGE)))
    ones, conv, args = as_depthwise(pool, graph.unused(f"{pool.name}_window"), channels, {**window, **hidden}, note)
    if not never_negative(graph, x):
        return (ones, conv), args
    conv = replace(conv, name=graph.unused(f"{pool.name}_average"), label="")
    return (ones, conv, replace(pool, op="Activation", attrs=_RELU | hidden, inputs=(conv.out,), note=note)), args


def as_depthwise(
    pool: Node, ones: str, channels: int, attrs: Mapping[str, str], note: Annotation, bias: Sequence[Ref] = ()
) -> tuple[Node, Node, dict[str, Array]]:
    """An average as a depthwise convolution: the variable of its weight, the convolution, and the weight's value.

    Args:
        pool: the average of an image.
        ones: what to call the variable.
        channels: of the image.
        attrs: of the convolution; "kernel" among them.
        note: of the convolution.
        bias: what it reads beside its weight.
    """
    counts = {"num_filter": str(channels), "num_group": str(channels), "no_bias": str(not bias)}
    inputs = (*pool.inputs, Ref(ones), *bias)
    conv = replace(pool, op="Convolution", attrs={**attrs, **counts}, inputs=inputs, note=note)
    kernel = conv.ints("kernel")
    value = np.full((channels, 1, *kernel), 1 / np.prod(kernel), np.float32)
    return Node(ones, VARIABLE), conv, {ones: value}


def never_negative(graph: Graph, ref: Ref) -> bool:
    """Whether the graph shows that no value of ``ref`` is below zero."""
    waiting, seen = [ref], {ref}
    while waiting:
        made = waiting.pop()
        node, traits = graph[made.name], traits_of(graph[made.name])
        if made.output or not (traits.nonnegative or traits.keeps_nonnegative):
            return False
        if traits.nonnegative:
            continue
        sources = {node.inputs[place] for place in traits.places(node)} - seen
        seen |= sources
        waiting.extend(sources)
    return True


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (WindowAverage(),), "avgpool_to_depthwise")


AVGPOOL_TO_DEPTHWISE = Pass("avgpool_to_depthwise", _run, requires=(FLOAT,), ensures=(FLOAT,))
