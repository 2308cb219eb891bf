"""Fix shape: what is computed because the input may have any size is spared where that has one (``input_shape``).

Before:  x -> Pooling(avg, global) -> y                          u -> slice_like(., v, axes=(2, 3)) -> y
After:   x -> Convolution(h x w, depthwise, 1 / (h w)) -> y      u -> slice(end=(None, None, h, w)) -> y, or u itself

The average of all of an image, with which most classifiers end, is one of a window (`mxq.passes.avgpool_to_depthwise`:
1 to 4 % of the time at batch 1). What cuts a tensor to the size of another one need not see that one, which for YOLOv3
is turned to float for it, and goes where nothing is left to cut.

Conditions: sizes are those that a run on zeros of the given shape shows. Average: nothing else reads the image.
Slice: by axes, none of which is the batch. So that the network refuses other sizes rather than average a part: a fully
connected layer reads the average, or a Reshape that names the channels follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from mxq.config import Shape
from mxq.errors import ConfigError, RuntimeFailure
from mxq.graph.annotation import Annotation
from mxq.graph.ir import Graph, Model, Node, Ref, Runner, origins
from mxq.passes.avgpool_to_depthwise import averaging, refusal
from mxq.passes.shapes import is_global_pooling
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Rule, Trace, apply_rules

Sizes = Mapping[Ref, tuple[int, ...]]
"""Tensor -> its shape at batch 1."""


def with_shapes(model: Model, shapes: Mapping[str, Shape]) -> Model:
    """``model``, whose inputs say which shape they have.

    Args:
        shapes: of one example of each input, by name; of the only input, under "".

    Raises:
        ConfigError: an input has none, or there is no such input.
    """
    names = ", ".join(map(repr, model.inputs))
    if list(shapes) == [""]:
        if len(model.inputs) != 1:
            raise ConfigError(f"input_shape is one shape; allowed: a mapping with one for each of the inputs {names}")
        shapes = {model.inputs[0]: shapes[""]}
    if set(shapes) != set(model.inputs):
        raise ConfigError(f"input_shape is of {', '.join(map(repr, shapes))}; allowed: each of the inputs {names}")
    nodes = {name: (model.graph[name].noted(input_shape=shape),) for name, shape in shapes.items()}
    return model.with_graph(model.graph.replace(nodes))


def fix_shape(runner: Runner) -> Pass:
    """Uses the shapes that the inputs of a model, from `with_shapes`, say they have.

    Args:
        runner: runs it once; it raises RuntimeFailure where the network does not take these shapes.
    """

    def run(model: Model) -> tuple[Model, Trace]:
        sizes = _sizes(model, runner)
        rules: tuple[Rule, ...] = (FixedAverage(sizes), FixedSlice(sizes))
        return apply_rules(model, rules, "fix_shape")

    return Pass("fix_shape", run, requires=(FLOAT,), ensures=(FLOAT,))


def _sizes(model: Model, runner: Runner) -> Sizes:
    """The shapes of all that the rules ask for."""
    wanted = list(dict.fromkeys(_asked(model.graph)))
    if not wanted:
        return {}
    feeds = {
        name: np.zeros((1, *model.graph[name].note.input_shape), model.graph[name].input_dtype) for name in model.inputs
    }
    try:
        made = runner.compile(model, wanted)(feeds)
    except RuntimeFailure as failure:
        given = ", ".join(f"{name!r} {tuple(feed.shape[1:])}" for name, feed in feeds.items())
        raise RuntimeFailure(
            f"{failure}; input_shape is {given}: give the axes of one example, without that of the batch"
        ) from failure
    heads = len(model.graph.heads)
    return {ref: np.shape(made[heads + i]) for i, ref in enumerate(wanted)}


def _asked(graph: Graph) -> Iterator[Ref]:
    for node in graph.operators:
        if is_global_pooling(node):
            yield node.inputs[0]
        elif node.op == "slice_like":
            yield from node.inputs


@dataclass(frozen=True)
class FixedAverage:
    """The average of an image becomes that of a window as large."""

    sizes: Sizes
    name: str = "fixed_average"
    pattern: Op = Op(("Pooling",), (Any_("x"),))

    def check(self, model: Model, match: Match) -> Reject | None:
        pool = match.root
        if not is_global_pooling(pool) or pool.attrs.get("pool_type") != "avg":
            return NO_MATCH
        if len(self.sizes[match.refs["x"]]) != 4:
            return NO_MATCH  # a sequence
        return refusal(model, pool)

    def build(self, model: Model, match: Match) -> Rewrite:
        pool, graph = match.root, model.graph
        _, channels, height, width = self.sizes[match.refs["x"]]
        nodes, args = averaging(model, pool, channels, {"kernel": str((height, width))})
        if not all(_names_channels(graph, reader) for reader in graph.consumers[pool.name]):
            last = replace(nodes[-1], name=graph.unused(f"{pool.name}_mean"), label="")
            whole, note = {"shape": f"(0, {channels}, 1, 1)"}, Annotation(origins(pool))
            nodes = (*nodes[:-1], last, replace(pool, op="Reshape", attrs=whole, inputs=(last.out,), note=note))
        return Rewrite({pool.name: nodes}, args=args)


def _names_channels(graph: Graph, node: Node) -> bool:
    """Whether ``node`` refuses more values than its weights are for."""
    if node.op == "Flatten":
        return node.name not in graph.head_names and all(_names_channels(graph, r) for r in graph.consumers[node.name])
    return node.op == "FullyConnected" and node.flag("flatten", default=True)


@dataclass(frozen=True)
class FixedSlice:
    """What is cut to the size of another tensor is cut to a size, or is not cut."""

    sizes: Sizes
    name: str = "fixed_slice"
    pattern: Op = Op(("slice_like",), (Any_("x"), Any_("like")))

    def check(self, model: Model, match: Match) -> Reject | None:
        axes = match.root.ints("axes")
        if not axes or 0 in axes or min(axes) < 0 or match.root.name in model.graph.head_names:
            return NO_MATCH
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node, x = match.root, match.refs["x"]
        found, wanted = self.sizes[x], self.sizes[match.refs["like"]]
        axes = [axis for axis in node.ints("axes") if found[axis] != wanted[axis]]
        if not axes:
            return Rewrite({node.name: ()}, {node.out: x})
        end = tuple(wanted[i] if i in axes else None for i in range(len(found)))
        begin = tuple(0 if i in axes else None for i in range(len(found)))
        attrs, note = {"begin": str(begin), "end": str(end)}, Annotation(origins(node))
        return Rewrite({node.name: (replace(node, op="slice", attrs=attrs, inputs=(x,), note=note),)})
