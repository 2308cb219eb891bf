"""A 1x1 convolution over a pooled image is a fully connected layer: squeeze-and-excitation, heads of mobile networks.

Before:  p (N, C, 1, 1) -> Convolution(1x1) -> Activation -> Convolution(1x1) -> Activation -> y (N, K, 1, 1)
After:   p -> FullyConnected -> Activation -> FullyConnected -> Activation -> Reshape -> y

Three rules do it: the convolution becomes FullyConnected and a Reshape to (N, O, 1, 1); an activation changes places
with the Reshape; a layer that flattens its input reads what was reshaped.

Why: the layer may fuse its sigmoid, and writes float itself where float reads it. And stock memory planning is at
fault: with int8 convolutions on such small tensors, SE-ResNeXt under ``hybridize(static_alloc=True)`` ends in "We can't
generate TBlob for MKLDNN data", because a later kernel (``SgMKLDNNFCOp::Forward``) finds the minimum of its input in
memory that still has oneDNN's layout. A fully connected layer's result lies in plain layout, and the network runs.

Conditions: the input is a global pooling's, as `mxq.passes.shapes` shows; no padding, no groups; the weight is a
parameter of this layer alone; the result inside is read by nothing else.
Formula: w'(O, C) = w(O, C, 1, 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import Model, Node, origins
from mxq.graph.traits import Traits, operators, traits_of
from mxq.passes.shapes import COLUMN, is_column, is_pointwise, is_pooled
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules
from mxq.rewrite.rule import single_consumer


def _is_of_one_tensor(traits: Traits) -> bool:
    """Whether each value of the result is made of one value alone, and in one way for all."""
    return traits.pointwise and traits.per_channel and traits.data == 1


@dataclass(frozen=True)
class PooledConvolution:
    """The convolution becomes a fully connected layer."""

    name: str = "conv1x1_to_dense"
    pattern: Op = Op(("Convolution",), (Any_("x"),), bind="conv")

    def check(self, model: Model, match: Match) -> Reject | None:
        conv = match.root
        if not is_pointwise(conv) or not is_pooled(model.graph, match.refs["x"]):
            return NO_MATCH
        weight = conv.inputs[1].name
        if not model.is_own(weight):
            return Reject(f"the weight {weight!r} is not a parameter of this layer alone", (conv.name,))
        return None

    def build(self, model: Model, match: Match) -> Rewrite:
        conv = match.root
        attrs = {"num_hidden": conv.attrs["num_filter"], "no_bias": conv.attrs.get("no_bias", "False")}
        note = Annotation(origins(conv), (Route.of(RouteKind.CONV1X1_TO_DENSE),))
        dense = Node(model.graph.unused(f"{conv.name}_dense"), "FullyConnected", attrs, conv.inputs, note=note)
        column = Node(conv.name, "Reshape", COLUMN, (dense.out,), label=conv.label)
        weight = conv.inputs[1].name
        value = model.args[weight]
        return Rewrite({conv.name: (dense, column)}, args={weight: value.reshape(value.shape[0], -1)})


@dataclass(frozen=True)
class PooledHead(PooledConvolution):
    """The same of a convolution whose result goes to outputs of the network alone, flattened perhaps."""

    def check(self, model: Model, match: Match) -> Reject | None:
        return super().check(model, match) if _is_head(model, match.root) else NO_MATCH


def _is_head(model: Model, node: Node) -> bool:
    """Whether what ``node`` makes goes to outputs of the network alone, in another shape or as probabilities."""
    known = [(each, traits_of(each)) for each in model.graph.consumers[node.name]]
    return all((t.keeps_order or t.distribution) and _is_head(model, each) for each, t in known)


@dataclass(frozen=True)
class ActivateBeforeReshape:
    """An activation works on (N, C) before the Reshape, so that the layer can fuse it."""

    name: str = "activate_before_reshape"
    pattern: Op = Op(operators(_is_of_one_tensor), (Op(("Reshape",), (Any_("x"),), bind="column"),), bind="act")

    def check(self, model: Model, match: Match) -> Reject | None:
        meant = is_column(match["column"]) and _is_of_one_tensor(traits_of(match["act"]))
        return single_consumer(model, match) if meant else NO_MATCH

    def build(self, model: Model, match: Match) -> Rewrite:
        act, column = match["act"], match["column"]
        first = replace(act, name=model.graph.unused(f"{act.name}_dense"), label="", inputs=(match.refs["x"],))
        first = first.standing_for(act)
        last = replace(column, name=act.name, label=act.label, inputs=(first.out,))
        return Rewrite({column.name: (), act.name: (first, last)})


@dataclass(frozen=True)
class FlattenColumn:
    """What flattens its input reads (N, C) rather than the Reshape of it."""

    name: str = "flatten_column"
    pattern: Op = Op(("FullyConnected", "Flatten"), (Op(("Reshape",), (Any_("x"),), bind="column"),), bind="reader")

    def check(self, model: Model, match: Match) -> Reject | None:
        return None if is_column(match["column"]) and match.root.flag("flatten", default=True) else NO_MATCH

    def build(self, model: Model, match: Match) -> Rewrite:
        reader = match.root
        return Rewrite({reader.name: (replace(reader, inputs=(match.refs["x"], *reader.inputs[1:])),)})


def _run(model: Model) -> tuple[Model, Trace]:
    rules = (PooledConvolution(), ActivateBeforeReshape(), FlattenColumn())
    return apply_rules(model, rules, "conv1x1_to_dense")


def _run_heads(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (PooledHead(), FlattenColumn()), "head_to_dense")


CONV1X1_TO_DENSE = Pass("conv1x1_to_dense", _run, requires=(FLOAT,), ensures=(FLOAT,))
HEAD_TO_DENSE = Pass("head_to_dense", _run_heads, requires=(FLOAT,), ensures=(FLOAT,))
"""Of layers that give the network's outputs alone: for runtimes whose integer convolutions make codes of all results,
where fully connected layers leave them float."""
