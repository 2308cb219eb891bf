"""Subsample early: pixels that no layer reads, or that are averaged at once, are not computed.

Before:  x -> conv3x3 -> conv1x1 + y -> relu -> conv1x1(stride 2), conv1x1(stride 2)
After:   x -> conv3x3(stride 2) -> conv1x1 + pool1x1(y, stride 2) -> relu -> conv1x1, conv1x1

Before:  x -> conv1x1 -> average pooling -> y
After:   x -> average pooling -> conv1x1 -> y

A 1x1 convolution of stride s reads every s-th row and column. Where all readers of a tensor do, the stride moves
towards the input, through what works pixel by pixel, into the convolutions that make the tensor. In ResNet v1 with
bottlenecks the last block of each stage makes four times the pixels that the next stage reads: a tenth of all products.
DenseNet's transitions, the other kind, make a tenth of its products too many.

Conditions of the first: (N, C, H, W) without groups or padding in the readers; no other reader, no output of the
network; a convolution is among what makes less. Of the second: the pooling alone reads the convolution and makes fewer
pixels; its padding, if any, is not counted.
Formula: floor((floor((h - k) / t)) / s) = floor((h - k) / (t s)), so sizes agree for any image, and results are exact;
mean(W x + b) = W mean(x) + b up to the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import Graph, Model, Node, Ref, origins
from mxq.graph.traits import traits_of
from mxq.passes.shapes import is_global_pooling, is_of_images, is_pointwise, pads, stride_of
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_EVENTS, NO_MATCH, Any_, Event, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules
from mxq.rewrite.rule import exchanged, single_consumer

NAME = "subsample_early"
Stride = tuple[int, int]
ALL: Stride = (1, 1)


@dataclass(frozen=True)
class PoolFirst:
    """An average of 1x1 convolutions is a 1x1 convolution of averages, of which there are fewer."""

    name: str = "pool_first"
    pattern: Op = Op(("Pooling",), (Op(("Convolution",), (Any_("x"),), bind="conv"),), bind="pool")

    def check(self, model: Model, match: Match) -> Reject | None:
        conv, pool = match["conv"], match["pool"]
        if pool.attrs.get("pool_type") != "avg" or not is_pointwise(conv) or not _makes_fewer(pool):
            return NO_MATCH
        if stride_of(conv) != ALL:
            return Reject(f"the convolution has stride {stride_of(conv)}", (conv.name,))
        if pads(pool) and pool.flag("count_include_pad", default=True):
            return Reject("the pooling averages its padding too, which would have no bias", (pool.name,))
        return single_consumer(model, match)

    def build(self, model: Model, match: Match) -> Rewrite:
        conv, pool = match["conv"], match["pool"]
        first, last = exchanged(model, conv, pool)
        last = last.noted(routes=(Route.of(RouteKind.AVERAGED_PIXELS),))
        return Rewrite({conv.name: (), pool.name: (first, last)})


def _makes_fewer(pool: Node) -> bool:
    """Whether a pooling of images has fewer pixels to make than it reads."""
    return is_global_pooling(pool) or (is_of_images(pool) and stride_of(pool) != ALL)


def _is_pixelwise(node: Node) -> bool:
    """Whether each pixel of what an operator makes is of the same pixel of what it reads."""
    traits = traits_of(node)
    return traits.pointwise and traits.channel_axis in (None, 1)


@dataclass(frozen=True)
class Demand:
    """Of which tensors no more than every so many rows and columns are read; of those not in ``table``, all are."""

    graph: Graph
    table: dict[str, Stride] = field(default_factory=dict)

    def of(self, ref: Ref) -> Stride:
        """The stride of what is read of a tensor."""
        return self.table.get(ref.name, ALL) if ref.output == 0 else ALL

    def by(self, reader: Node, place: int) -> Stride:
        """The stride at which ``reader`` reads its input number ``place`` for what is read of its own result."""
        own = self.of(reader.out)
        if reader.op == "Convolution" and is_pointwise(reader) and place == 0:
            return _times(stride_of(reader), own)
        return own if _is_pixelwise(reader) and place in _images(reader) else ALL


def _times(a: Stride, b: Stride) -> Stride:
    return a[0] * b[0], a[1] * b[1]


def _over(a: Stride, b: Stride) -> Stride:
    return a[0] // b[0], a[1] // b[1]


def _images(node: Node) -> range:
    """Which inputs of a pixelwise operator have the shape of its result."""
    return traits_of(node).places(node)


def _demand(graph: Graph) -> Demand:
    """What is read of every tensor that can be made with fewer pixels, where a convolution gets less to do by it."""
    idle: set[str] = set()
    while True:
        table: dict[str, Stride] = {}
        found = Demand(graph, table)
        for node in reversed(graph.operators):
            stride = _read_of(found, node)
            makes = _is_pixelwise(node) or (node.op == "Convolution" and is_of_images(node))
            if stride != ALL and makes and node.name not in idle:
                table[node.name] = stride
        saves = _saving(found)
        if saves >= table.keys():
            return found
        idle |= table.keys() - saves


def _read_of(demand: Demand, node: Node) -> Stride:
    """The stride at which all readers of a node's result read it."""
    graph, found = demand.graph, set[Stride]()
    if node.name in graph.head_names:
        return ALL
    for reader in graph.consumers[node.name]:
        for place, ref in enumerate(reader.inputs):
            if ref.name == node.name:
                found.add(demand.by(reader, place) if ref.output == 0 else ALL)
    return found.pop() if len(found) == 1 else ALL


def _saving(demand: Demand) -> set[str]:
    """The tensors with fewer pixels for which a convolution has less to do."""
    saves: set[str] = set()
    for node in demand.graph.operators:
        if node.name in demand.table and (
            node.op == "Convolution" or any(node.inputs[i].name in saves for i in _images(node))
        ):
            saves.add(node.name)
    return saves


@dataclass
class _Maker:
    """Makes the nodes of a graph in which only what ``demand`` says is computed."""

    demand: Demand
    subsampled: dict[tuple[Ref, Stride], Ref] = field(default_factory=dict)

    def nodes(self, node: Node) -> Iterator[Node]:
        """What takes the place of ``node``."""
        own = self.demand.of(node.out)
        if node.op == "Convolution":
            yield self._convolution(node, own)
        elif own == ALL:
            yield node
        else:
            inputs = list(node.inputs)
            for i in _images(node):
                step = _over(own, self.demand.of(inputs[i]))
                if step != ALL and (inputs[i], step) not in self.subsampled:
                    made = self._subsampling(node, inputs[i], step)
                    self.subsampled[inputs[i], step] = made.out
                    yield made
                inputs[i] = self.subsampled.get((inputs[i], step), inputs[i])
            yield _marked(replace(node, inputs=tuple(inputs)), own)

    def _convolution(self, conv: Node, own: Stride) -> Node:
        stride = _over(_times(stride_of(conv), own), self.demand.of(conv.inputs[0]))
        moved = conv if stride == stride_of(conv) else conv.with_attrs(stride=str(stride))
        return moved if own == ALL else _marked(moved, own).noted(routes=(Route.of(RouteKind.READ_PIXELS),))

    def _subsampling(self, reader: Node, ref: Ref, step: Stride) -> Node:
        attrs = {"kernel": "(1, 1)", "pool_type": "max", "stride": str(step), "pooling_convention": "valid"}
        note = Annotation(origins(reader), (Route.of(RouteKind.SUBSAMPLING),))
        name = f"{ref.name}{ref.output or ''}_every_{step[0]}x{step[1]}"
        return Node(self.demand.graph.unused(name), "Pooling", attrs, (ref,), note=note)


def _marked(node: Node, stride: Stride) -> Node:
    return node.noted(stride=_times(stride, node.note.stride))


def move_strides(model: Model) -> tuple[Model, Trace]:
    """Moves strides of 1x1 convolutions towards the input, with the event "move_strides" for each tensor that shrinks.

    Returns:
        The rewritten model, the same object where nothing moves; and the events.
    """
    demand = _demand(model.graph)
    if not demand.table:
        return model, NO_EVENTS
    maker = _Maker(demand)
    changes = {node.name: tuple(maker.nodes(node)) for node in model.graph.operators}
    changed = {name: nodes for name, nodes in changes.items() if nodes != (model.graph[name],)}
    moved = Trace(tuple(Event(NAME, "move_strides", name) for name in reversed(demand.table)))
    return model.with_graph(model.graph.replace(changed)), moved


def _run(model: Model) -> tuple[Model, Trace]:
    model, pooled = apply_rules(model, (PoolFirst(),), NAME)
    model, moved = move_strides(model)
    return model, pooled + moved


SUBSAMPLE_EARLY = Pass(NAME, _run, requires=(FLOAT,), ensures=(FLOAT,))
