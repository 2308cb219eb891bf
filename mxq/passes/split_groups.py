"""Split a grouped convolution of few channels a group into dense ones, which have an int8 kernel that is right.

Before:  x -> Convolution -> relu -> Convolution(num_group=g) -> relu -> y
After:   x -> Convolution_i -> relu -> Convolution_i -> relu  (each i: a part of the channels)  -> Concat -> y

The stock int8 convolution scales a grouped weight by the wrong channels' maxima (`mxq.backends.mxnet.table`), and with
fewer channels a group than a vector holds neither kernel of oneDNN is quick: it multiplies matrices of 4 columns. Here
several groups become one dense convolution with zeros between them. The layer before is split alike, so nothing is
sliced. ResNeXt's first stage (128 channels in 32 groups, 56x56) takes 9.5 ms instead of 16.1 on two AVX2 cores,
although it multiplies 8 times as often; its second (8 channels a group) would take 6.8 instead of 6.0 and stays.

Conditions: a group has fewer than 8 channels, and more than one; both weights and biases are parameters of their
layers alone; results inside are read by nothing else; the layer before has no groups.
Formula: W_i[a co + u, b ci + v] = w[i k co + a co + u, v] where a = b, else 0; a, b = 0..k-1 are the groups of part i.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mxq.graph.annotation import Annotation, Route, RouteKind
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref
from mxq.graph.layers import groups_of
from mxq.passes.simplify import FLOAT
from mxq.rewrite import NO_MATCH, Any_, Match, Op, Pass, Reject, Rewrite, Trace, apply_rules
from mxq.rewrite.rule import single_consumer

VECTOR = 8
"""float32 values in an AVX2 register; the kernels for groups need as many channels in each."""
PART = 32
"""Channels of a part, at least: fewer leave the kernels' blocks half empty."""


@dataclass(frozen=True)
class SplitGroups:
    """See the module."""

    name: str = "split_groups"
    pattern: Op = Op(
        ("Activation",),
        (
            Op(
                ("Convolution",),
                (Op(("Activation",), (Op(("Convolution",), (Any_("x"),), bind="first"),), bind="between"),),
                bind="grouped",
            ),
        ),
        bind="act",
    )

    def check(self, model: Model, match: Match) -> Reject | None:
        first, grouped = match["first"], match["grouped"]
        groups = groups_of(grouped)
        weight = model.args.get(grouped.inputs[1].name)
        if groups == 1 or weight is None or weight.ndim != 4 or weight.shape[1] == 1:
            return NO_MATCH
        if weight.shape[1] >= VECTOR:
            return Reject(f"its groups of {weight.shape[1]} channels are as quick in float", (grouped.name,))
        if groups_of(first) != 1:
            return Reject(f"the layer before, {first.name!r}, has groups too", (grouped.name,))
        if groups % _groups_of_part(weight):
            return Reject(f"{groups} groups cannot be shared out evenly", (grouped.name,))
        return _shared(model, first) or _shared(model, grouped) or single_consumer(model, match)

    def build(self, model: Model, match: Match) -> Rewrite:
        first, between, grouped, act = (match[k] for k in ("first", "between", "grouped", "act"))
        each = _groups_of_part(model.args[grouped.inputs[1].name])
        inside, outside = each * model.args[grouped.inputs[1].name].shape[1], _outputs(model, grouped, each)
        nodes: list[Node] = []
        args: dict[str, Array] = {}
        ends = []
        for i in range(groups_of(grouped) // each):
            rows = slice(i * inside, (i + 1) * inside)
            a, made = _part(model, first, i, first.inputs[0], rows)
            relu = _named(replace(between, inputs=(a[-1].out,)), i)
            b, dense = _part(model, grouped, i, relu.out, slice(i * outside, (i + 1) * outside))
            b = (*b[:-1], b[-1].noted(routes=(Route.of(RouteKind.DENSE_PART),)))
            weight = b[-1].inputs[1].name
            dense[weight] = block_diagonal(dense[weight], each)
            ends.append(_named(replace(act, inputs=(b[-1].out,)), i))
            nodes += [*a, relu, *b, ends[-1]]
            args |= {**made, **dense}
        attrs = {"dim": "1", "num_args": str(len(ends))}
        nodes.append(replace(act, op="Concat", attrs=attrs, inputs=tuple(n.out for n in ends), note=Annotation()))
        return Rewrite({n.name: () for n in match.interior} | {act.name: tuple(nodes)}, args=args)


def _groups_of_part(weight: Array) -> int:
    return int(-(-PART // weight.shape[1]))


def _outputs(model: Model, grouped: Node, each: int) -> int:
    """Output channels of a part."""
    return each * model.args[grouped.inputs[1].name].shape[0] // groups_of(grouped)


def _shared(model: Model, conv: Node) -> Reject | None:
    for ref in conv.inputs[1:]:
        if not model.is_own(ref.name):
            return Reject(f"{ref.name!r} is not a parameter of {conv.name!r} alone", (conv.name,))
    return None


def _named(node: Node, i: int) -> Node:
    """Part ``i`` of ``node``; it stands for the same original nodes."""
    return replace(node.standing_for(node), name=f"{node.name}_part{i}", label="")


def _part(model: Model, conv: Node, i: int, data: Ref, rows: slice) -> tuple[tuple[Node, ...], dict[str, Array]]:
    """The convolution that makes the output channels ``rows`` of ``conv``, its parameters before it; their values."""
    names = {r.name: f"{r.name}_part{i}" for r in conv.inputs[1:]}
    args = {new: model.args[old][rows] for old, new in names.items()}
    made = _named(replace(conv, inputs=(data, *map(Ref, args))), i)
    made = made.with_attrs(num_filter=str(rows.stop - rows.start), num_group="1")
    return (*(Node(name, VARIABLE) for name in args), made), args


def block_diagonal(weight: Array, groups: int) -> Array:
    """The dense weight (O, g ci, kh, kw) that does what ``weight`` (O, ci, kh, kw) does in ``groups`` groups."""
    outputs, inputs, *kernel = weight.shape
    each = outputs // groups
    dense = np.zeros((groups, each, groups, inputs, *kernel), weight.dtype)
    for g in range(groups):
        dense[g, :, g] = weight[g * each : (g + 1) * each]
    return dense.reshape(outputs, groups * inputs, *kernel)


def _run(model: Model) -> tuple[Model, Trace]:
    return apply_rules(model, (SplitGroups(),), "split_groups")


SPLIT_GROUPS = Pass("split_groups", _run, requires=(FLOAT,), ensures=(FLOAT,))
