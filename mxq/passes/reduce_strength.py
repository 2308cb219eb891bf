"""Reduce strength: operators whose MXNet kernel is slow give way to quicker ones with the same result.

Many of MXNet's own kernels run on one thread or value by value, beside oneDNN's of the same arithmetic. The times are
of one 1x64x112x112 tensor on two cores (milliseconds before -> after):

Before:  _div_scalar(clip(x + 3, 0, 6), 6)               repeat(repeat(x, s, axis=3), s, axis=2)
After:   hard_sigmoid(x, 1/6, 1/2)         4.0 -> 0.4    UpSampling(x, s, nearest)          6.0 -> 0.8

Before:  _div_scalar(x * clip(x + 3, 0, 6), 6)
After:   x * hard_sigmoid(x, 1/6, 1/2)

Before:  UpSampling(x, s, nearest)                       _contrib_AdaptiveAvgPooling2D(x, 1)
After:   Deconvolution(x, ones, stride s)  0.8 -> 0.4    Pooling(x, avg, global)            0.9 -> 0.5

Before:  LeakyReLU(x, a, prelu)                          Pooling(LeakyReLU(x, a, prelu), max)
After:   maximum(x, a * x)                 2.7 -> 1.4    LeakyReLU(Pooling(x, max), a, prelu)

Before:  x / c                                           clip(x, 0, b)   (what no layer took in)
After:   x * (1/c)                         2.2 -> 1.0    minimum(relu(x), b)                2.7 -> 0.9

Before:  Concat(a, Concat(b, c))
After:   Concat(a, b, c)           (b and c are copied once)

Conditions: results inside are read by nothing else. Where a rule needs the shape (N, C, H, W), the nodes before must
show it (`mxq.passes.shapes`). maximum(x, a x) is PReLU for slopes a <= 1 only, and pooling before it for a >= 0.
Formula: each is an identity of real numbers. 1/c and hard_sigmoid round elsewhere; the others are exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref, origins
from mxq.passes.shapes import image_channels
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Rule, exhaust_each
from mxq.rewrite.rule import exchanged, single_consumer

_SCALED = ("_div_scalar", "_mul_scalar")
LARGEST: Final = 64
"""The largest scale of an upsampling that becomes a convolution: its weight has as many values as a pixel becomes."""


def _joined(match: Match) -> Annotation:
    """What the report says of a node that stands for all of a match."""
    members = "+".join(n.op for n in match.interior)
    return Annotation(origins(*match.interior), (Route.of(RouteKind.QUICKER, members),))


def _instead(node: Node) -> Annotation:
    """What the report says of a node that stands for ``node``."""
    return Annotation(origins(node), (Route.of(RouteKind.QUICKER, node.op),))


@dataclass(frozen=True)
class HardSigmoid:
    """clip(x + c, 0, d) / d is ``hard_sigmoid`` with alpha = 1/d and beta = c/d, the half of hard-swish."""

    name: str = "hard_sigmoid"
    pattern: Op = Op(
        _SCALED, (Op(("clip",), (Op(("_plus_scalar",), (Any_("x"),), bind="shift"),), bind="clip"),), bind="scale"
    )

    def check(self, model: Model, match: Match) -> Reject | None:
        top = match["clip"].number("a_max", 0)
        if match["clip"].number("a_min", 0) != 0 or not np.isclose(_factor(match["scale"]) * top, 1, rtol=1e-5):
            return Reject("the clipped value is not scaled to 0..1", (match.root.name,))
        return single_consumer(model, match)

    def build(self, model: Model, match: Match) -> Rewrite:
        alpha, beta = 1 / match["clip"].number("a_max", 1), match["shift"].number("scalar", 0)
        attrs = {"alpha": repr(alpha), "beta": repr(alpha * beta)}
        root = replace(match.root, op="hard_sigmoid", attrs=attrs, inputs=(match.refs["x"],), note=_joined(match))
        return Rewrite({n.name: () for n in match.interior} | {root.name: (root,)})


@dataclass(frozen=True)
class HardSwish:
    """x clip(x + c, 0, d) / d is x ``hard_sigmoid``(x), whichever is divided."""

    name: str = "hard_swish"
    pattern: Op = Op(
        _SCALED,
        (
            Op(
                ("elemwise_mul", "broadcast_mul"),
                (Any_("x"), Op(("clip",), (Op(("_plus_scalar",), (Any_("gated"),), bind="shift"),), bind="clip")),
                bind="product",
                commutative=True,
            ),
        ),
        bind="scale",
    )

    def check(self, model: Model, match: Match) -> Reject | None:
        return HardSigmoid().check(model, match) if match.refs["x"] == match.refs["gated"] else NO_MATCH

    def build(self, model: Model, match: Match) -> Rewrite:
        alpha, beta = 1 / match["clip"].number("a_max", 1), match["shift"].number("scalar", 0)
        attrs = {"alpha": repr(alpha), "beta": repr(alpha * beta)}
        name = model.graph.unused(f"{match.root.name}_gate")
        gate = Node(name, "hard_sigmoid", attrs, (match.refs["x"],), note=_joined(match))
        root = replace(match["product"], name=match.root.name, label=match.root.label, note=_joined(match))
        root = replace(root, inputs=(match.refs["x"], gate.out))
        return Rewrite({n.name: () for n in match.interior} | {root.name: (gate, root)})


def _factor(node: Node) -> float:
    scalar = node.number("scalar", 1)
    return scalar if node.op == "_mul_scalar" else 1 / scalar


@dataclass(frozen=True)
class DivideAsMultiply:
    """Division by a constant becomes multiplication by its reciprocal."""

    name: str = "divide_as_multiply"
    pattern: Op = Op(("_div_scalar",), bind="divide")

    def check(self, model: Model, match: Match) -> Reject | None:
        scalar, floats = match.root.number("scalar", 0), np.finfo(np.float32)
        if not (scalar and floats.tiny <= abs(1 / scalar) <= floats.max):
            return Reject(f"{scalar:g} has no reciprocal in float32", (match.root.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        attrs = {**node.attrs, "scalar": repr(1 / node.number("scalar", 1))}
        return Rewrite({node.name: (replace(node, op="_mul_scalar", attrs=attrs),)})


@dataclass(frozen=True)
class GlobalPooling:
    """Adaptive average pooling to a single value is global pooling, which has float and int8 kernels of oneDNN."""

    name: str = "global_pooling"
    pattern: Op = Op(("_contrib_AdaptiveAvgPooling2D",), bind="pool")

    def check(self, model: Model, match: Match) -> Reject | None:
        if not set(match.root.ints("output_size")) <= {1}:
            return Reject(f"its output_size is {match.root.attrs.get('output_size')}", (match.root.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        attrs = {"kernel": "(1, 1)", "pool_type": "avg", "global_pool": "True", "pooling_convention": "full"}
        node = match.root
        return Rewrite({node.name: (replace(node, op="Pooling", attrs=attrs, note=_instead(node)),)})


@dataclass(frozen=True)
class RepeatAsUpSampling:
    """Rows and columns repeated equally often are nearest-neighbour upsampling."""

    name: str = "repeat_as_upsampling"
    pattern: Op = Op(("repeat",), (Op(("repeat",), (Any_("x"),), bind="inner"),), bind="outer")

    def check(self, model: Model, match: Match) -> Reject | None:
        inner, outer = match["inner"], match["outer"]
        axes = {n.integer("axis", 0) % 4 if n.attrs.get("axis", "None") != "None" else 0 for n in (inner, outer)}
        if axes != {2, 3} or inner.attrs.get("repeats") != outer.attrs.get("repeats"):
            return Reject("it does not repeat rows and columns equally often", (outer.name,))
        if image_channels(model.graph, match.refs["x"]) is None:
            return Reject("nothing shows that its input is (N, C, H, W)", (outer.name,))
        return single_consumer(model, match)

    def build(self, model: Model, match: Match) -> Rewrite:
        attrs = {"scale": match.root.attrs["repeats"], "sample_type": "nearest", "num_args": "1"}
        root = replace(match.root, op="UpSampling", attrs=attrs, inputs=(match.refs["x"],), note=_joined(match))
        return Rewrite({match["inner"].name: (), root.name: (root,)})


@dataclass(frozen=True)
class UpSamplingAsDeconvolution:
    """Nearest-neighbour upsampling by s is a depthwise transposed convolution with ones, kernel and stride s."""

    name: str = "upsampling_as_deconvolution"
    pattern: Op = Op(("UpSampling",), (Any_("x"),), bind="up")

    def check(self, model: Model, match: Match) -> Reject | None:
        node = match.root
        if node.attrs.get("sample_type") != "nearest" or len(node.inputs) != 1:
            return Reject("it is not nearest-neighbour upsampling of one tensor", (node.name,))
        if image_channels(model.graph, match.refs["x"]) is None:
            return Reject("its number of channels is not known", (node.name,))
        if node.number("scale", 1) > LARGEST:
            return Reject(f"its scale is beyond {LARGEST}", (node.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node, channels = match.root, image_channels(model.graph, match.refs["x"]) or 0
        side, ones = node.integer("scale", 1), model.graph.unused(f"{node.name}_ones")
        attrs = {
            "kernel": f"({side}, {side})", "stride": f"({side}, {side})", "num_filter": str(channels),
            "num_group": str(channels), "no_bias": "True",
        }  # fmt: skip
        inputs = (match.refs["x"], Ref(ones))
        root = replace(node, op="Deconvolution", attrs=attrs, inputs=inputs, note=_instead(node))
        weight = np.ones((channels, 1, side, side), np.float32)
        return Rewrite({node.name: (Node(ones, VARIABLE), root)}, args={ones: weight})


def _slopes(model: Model, node: Node) -> Array | None:
    """The slopes of a PReLU over an image, (C,) or (1,); None where ``node`` is none, or they are no parameter."""
    if node.op != "LeakyReLU" or node.attrs.get("act_type", "leaky") != "prelu" or len(node.inputs) < 2:
        return None
    return model.args.get(node.inputs[1].name)


@dataclass(frozen=True)
class PoolBeforePReLU:
    """A PReLU that does not fall anywhere may follow max pooling, with a fraction of the values left."""

    name: str = "pool_before_prelu"
    pattern: Op = Op(("Pooling",), (Op(("LeakyReLU",), (Any_("x"),), bind="act"),), bind="pool")

    def check(self, model: Model, match: Match) -> Reject | None:
        slopes = _slopes(model, match["act"])
        if slopes is None or match["pool"].attrs.get("pool_type", "max") != "max":
            return NO_MATCH
        if slopes.min() < 0:
            return Reject(f"a slope is {slopes.min():.3g}, so that the greatest value may change", (match.root.name,))
        return single_consumer(model, match)

    def build(self, model: Model, match: Match) -> Rewrite:
        act, pool = match["act"], match["pool"]
        return Rewrite({act.name: (), pool.name: exchanged(model, act, pool)})


@dataclass(frozen=True)
class PReLUAsMaximum:
    """PReLU with slopes of at most one is the greater of x and a x."""

    name: str = "prelu_as_maximum"
    pattern: Op = Op(("LeakyReLU",), (Any_("x"),), bind="act")

    def check(self, model: Model, match: Match) -> Reject | None:
        slopes = _slopes(model, match.root)
        if slopes is None:
            return NO_MATCH
        if slopes.max() > 1:
            return Reject(f"a slope is {slopes.max():.3g}, above one", (match.root.name,))
        if image_channels(model.graph, match.refs["x"]) is None:
            return Reject("nothing shows that its input is (N, C, H, W)", (match.root.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        slopes = model.args[node.inputs[1].name]
        name, column = model.graph.unused(f"{node.name}_scaled"), model.graph.unused(f"{node.name}_slopes")
        note = _instead(node)
        scaled = Node(name, "broadcast_mul", {}, (match.refs["x"], Ref(column)), note=note)
        root = replace(node, op="_maximum", attrs={}, inputs=(match.refs["x"], scaled.out), note=note)
        return Rewrite({node.name: (Node(column, VARIABLE), scaled, root)}, args={column: slopes.reshape(1, -1, 1, 1)})


@dataclass(frozen=True)
class ClipAsMinimum:
    """A clip from zero that no layer took in is a ReLU and a minimum."""

    name: str = "clip_as_minimum"
    pattern: Op = Op(("clip",), (Any_("x"),), bind="clip")

    def check(self, model: Model, match: Match) -> Reject | None:
        return None if match.root.number("a_min", -1) == 0 else Reject("it does not clip at zero", (match.root.name,))

    def build(self, model: Model, match: Match) -> Rewrite:
        node = match.root
        name, note, top = model.graph.unused(f"{node.name}_relu"), _instead(node), {"scalar": node.attrs["a_max"]}
        relu = Node(name, "Activation", {"act_type": "relu"}, node.inputs, note=note)
        root = replace(node, op="_minimum_scalar", attrs=top, inputs=(relu.out,), note=note)
        return Rewrite({node.name: (relu, root)})


@dataclass(frozen=True)
class JoinOnce:
    """What a Concat joins that another one alone reads is joined by that one (Inception's last blocks)."""

    name: str = "join_once"
    pattern: Op = Op(("Concat",))

    def check(self, model: Model, match: Match) -> Reject | None:
        return None if _parts(model, match.root) else NO_MATCH

    def build(self, model: Model, match: Match) -> Rewrite:
        outer, parts = match.root, _parts(model, match.root)
        inputs = tuple(ref for r in outer.inputs for ref in (parts[r.name].inputs if r.name in parts else (r,)))
        joined = replace(outer, inputs=inputs).with_attrs(num_args=str(len(inputs)))
        joined = joined.standing_for(*parts.values(), outer)
        return Rewrite({**dict.fromkeys(parts, ()), outer.name: (joined,)})


def _parts(model: Model, outer: Node) -> dict[str, Node]:
    """The Concats along the same axis that ``outer`` alone reads."""
    graph, axis = model.graph, outer.attrs.get("dim", "1")
    inner = [graph[r.name] for r in outer.inputs if graph[r.name].op == "Concat" and r.name not in graph.head_names]
    return {n.name: n for n in inner if n.attrs.get("dim", "1") == axis and graph.consumers[n.name] == (outer,)}


BEFORE_FUSION = (
    HardSigmoid(), HardSwish(), GlobalPooling(), RepeatAsUpSampling(), PoolBeforePReLU(), JoinOnce(),
)  # fmt: skip
AFTER_FUSION = (ClipAsMinimum(), DivideAsMultiply(), PReLUAsMaximum())


def _pass(name: str, rules: tuple[Rule, ...]) -> Pass:
    return Pass(name, lambda model: exhaust_each(model, rules, name), requires=(FLOAT,), ensures=(FLOAT,))


REDUCE_STRENGTH = _pass("reduce_strength", BEFORE_FUSION)
UPSAMPLING_AS_DECONVOLUTION = _pass("upsampling_as_deconvolution", (UpSamplingAsDeconvolution(),))
REDUCE_STRENGTH_AFTER_FUSION = _pass("reduce_strength_after_fusion", AFTER_FUSION)
