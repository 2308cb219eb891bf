"""Shape only: what an operator reads of a tensor but for its shape is not computed.

Before:  x -> _mul_scalar(0) -> slice_like(anchors, .)      x -> conv -> Reshape,    slice_like(anchors, x, (2, 3))
After:   x -----------------> slice_like(anchors, .)        x -> conv -> Reshape,    slice_like(anchors, conv, (2, 3))

gluoncv multiplies feature maps by 0 before it cuts anchors like them: 19 M multiplications for SSD-300, 36 M for YOLOv3
at batch 16. And an int8 feature map is turned to float for it, while the small result of its predictor is float anyway.

Conditions: the elementwise operator is read for its shape alone. The convolution has stride 1, and its padding makes
up for its kernel, so that it keeps height and width; what reads it is nothing that could be fused into it.
Formula: shape(f(x)) = shape(x); floor((h + 2 p - d (k - 1) - 1) / 1) + 1 = h where 2 p = d (k - 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.traits import operators, traits_of
from mxq.passes.shapes import keeps_size
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules


@dataclass(frozen=True)
class SkipElementwise:
    """The shape of an elementwise result is that of its input."""

    name: str = "shape_of_elementwise"
    pattern: Op = Op(operators(lambda traits: traits.shape_input is not None))

    def check(self, model: Model, match: Match) -> Reject | None:
        made = _shape_source(model.graph, match.root)
        if made is None:
            return NO_MATCH
        if made.name in model.graph.head_names or not all(
            reads_shape_alone(reader, made) for reader in model.graph.consumers[made.name]
        ):
            return NO_MATCH  # it is computed anyway
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        made = _shape_source(model.graph, match.root)
        if made is None:
            raise ValueError("build is called where check found what makes the tensor")
        return _reading(match.root, made.inputs[0])


def _reading(node: Node, ref: Ref) -> Rewrite:
    """``node`` with another tensor to read the shape of."""
    place = traits_of(node).shape_input
    inputs = tuple(ref if i == place else old for i, old in enumerate(node.inputs))
    return Rewrite({node.name: (replace(node, inputs=inputs),)})


def _shape_source(graph: Graph, node: Node) -> Node | None:
    """The operator whose shape ``node`` reads, where that is the shape of what it reads itself."""
    place = traits_of(node).shape_input
    if place is None or len(node.inputs) <= place:
        return None
    ref = node.inputs[place]
    made = graph[ref.name]
    return made if traits_of(made).keeps_shape and ref.output == 0 else None


def reads_shape_alone(reader: Node, made: Node) -> bool:
    """Whether ``reader`` wants to know nothing of ``made`` but its shape."""
    at = [i for i, ref in enumerate(reader.inputs) if ref.name == made.name]
    return at == [traits_of(reader).shape_input]


@dataclass(frozen=True)
class LikePredictor:
    """What is cut to the height and width of a feature map is cut to those of its predictor's result."""

    name: str = "size_of_predictor"
    pattern: Op = Op(("slice_like",), (Any_("data"), Any_("like")), bind="cut")

    def check(self, model: Model, match: Match) -> Reject | None:
        cut, like = match.root, match.refs["like"]
        if model.graph[like.name].op == "Convolution" or match.refs["data"] == like:
            return NO_MATCH
        axes = cut.ints("axes")
        if not axes or not set(axes) <= {2, 3}:
            return Reject(f"it is cut along axes {axes or 'all'}, not height and width alone", (cut.name,))
        if _predictor(model.graph, like) is None:
            return Reject(f"no convolution that nothing is fused with keeps the size of {str(like)!r}", (cut.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        found = _predictor(model.graph, match.refs["like"])
        return _reading(match.root, match.refs["like"] if found is None else found.out)


def _predictor(graph: Graph, like: Ref) -> Node | None:
    """A convolution of ``like`` that keeps its height and width and can be fused with nothing."""
    for conv in graph.consumers[like.name]:
        if conv.op != "Convolution" or conv.inputs[0] != like or not keeps_size(conv):
            continue
        readers = [traits_of(reader) for reader in graph.consumers[conv.name]]
        of_parameters = all(graph[ref.name].is_variable for ref in conv.inputs[1:])  # so it cannot need the cut
        if of_parameters and readers and all(r.moves or r.shape_input is not None for r in readers):  # none is fused
            return conv
    return None


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (SkipElementwise(), LikePredictor()), "shape_only")


SHAPE_ONLY = Pass("shape_only", _run, requires=(FLOAT,), ensures=(FLOAT,))
