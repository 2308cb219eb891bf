"""Shift the summand of conv + sum + ReLU so that it is u8, as the stock kernel's result is.

Before:  x2 -> conv2 -> y (signed)       x1 -> conv1 + y -> relu -> z
After:   x2 -> conv2 + o -> relu -> y+o  x1 -> conv1 - o + (y+o) -> relu -> z

The stock kernel writes conv + sum into the summand's memory with the summand's type (``mkldnn_conv.cc``), so an
s8 summand leaves an unsigned result only the values 0..127. With o = -min(y) the summand is non-negative, u8 holds it
in [0, max(y) - min(y)] at the resolution of asymmetric quantization, and z has all 256 values. The subtraction
folds into conv1's bias, so it costs nothing; in float, values in the calibrated range are unchanged.

Conditions: conv2 becomes int8, is linear (no sum, no post-op), and only this sum reads it; its calibrated minimum is
negative; both biases are parameters of their layers alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from mxq.backends import BackendSpec, OpSpec, result_of, summand_of, summand_place
from mxq.graph.annotation_text import SHIFTED
from mxq.graph.ir import Graph, Model, Node
from mxq.graph.layers import CONVOLUTION
from mxq.passes.biases import has_bias, with_bias
from mxq.quant import NetworkPass, QuantizedNetwork
from mxq.quant.thresholds import Range, Thresholds
from mxq.rewrite import NO_EVENTS, NO_MATCH, Match, Op, Reject, Rewrite, Trace, apply_rules

NAME = "shift_summand"
_NOT_LINEAR = ("with_sum", "with_act", "with_postsum_act")


@dataclass(frozen=True)
class ShiftSummand:
    """See the module."""

    network: QuantizedNetwork
    conv: OpSpec
    name: str = NAME

    @property
    def pattern(self) -> Op:
        return Op((self.conv.fused_op,), bind="reader")

    def check(self, model: Model, match: Match) -> Reject | None:
        reader = match["reader"]
        summand = summand_of(reader)
        if reader.name not in self.network.plan.quantized or summand is None:
            return NO_MATCH
        row = self.conv.post_op(result_of(reader))
        if row is None or not row.unsigned:
            return Reject("its result is s8, as its summand", (reader.name,))
        operand = model.graph[summand.name]
        return (
            self._operand_refusal(model, reader, operand)
            or _bias_refusal(model, reader)
            or _bias_refusal(model, operand)
        )

    def _operand_refusal(self, model: Model, reader: Node, operand: Node) -> Reject | None:
        name = operand.name
        if operand.op != self.conv.fused_op or name not in self.network.plan.quantized:
            return Reject(f"its summand {name!r} is not an int8 convolution", (name,))
        shared = model.graph.consumers[name] != (reader,) or name in model.graph.head_names
        conditions = (
            (any(operand.flag(f) for f in _NOT_LINEAR), "has a sum or post-op of its own"),
            (shared, "is read elsewhere too"),
            ([r.name for r in reader.inputs].count(name) > 1, "is its data too"),
            (self.network.requests.of(name) == "int8", "was asked to be int8"),
            (self.network.thresholds.range(name).min >= 0, "is never negative"),
        )
        return next((Reject(f"its summand {name!r} {why}", (name,)) for broken, why in conditions if broken), None)

    def build(self, model: Model, match: Match) -> Rewrite:
        reader = match["reader"]
        place = summand_place(reader)
        if place is None:
            raise ValueError("build is called where check found a summand")
        operand = model.graph[reader.inputs[place].name]
        offset = -self.network.thresholds.range(operand.name).min
        raised, bias_up = with_bias(model, with_relu(operand, offset), offset)
        moved = replace(reader, inputs=tuple(raised[-1].out if i == place else r for i, r in enumerate(reader.inputs)))
        lowered, bias_down = with_bias(model, moved, -offset)
        return Rewrite({operand.name: raised, reader.name: lowered}, args={**bias_up, **bias_down})


def _bias_refusal(model: Model, conv: Node) -> Reject | None:
    if not has_bias(conv):
        return None
    bias = conv.inputs[2].name
    if not model.is_own(bias):
        return Reject(f"the bias {bias!r} is not a parameter of {conv.name!r} alone", (conv.name,))
    return None


def with_relu(conv: Node, offset: float) -> Node:
    """The linear fused convolution with a ReLU at its end, under the name of the shifted tensor."""
    inner = conv.subgraphs[0]
    relu = Node(f"{conv.name}_relu", "Activation", {"act_type": "relu"}, (inner.heads[0],))
    graph = Graph((*inner.nodes, relu), (relu.out,), inner.attrs)
    flag = "with_postsum_act" if conv.flag("with_sum") else "with_act"
    made = replace(conv, name=conv.name + SHIFTED, attrs={**conv.attrs, flag: "true"}, subgraphs=(graph,))
    return made.standing_for(conv).noted(unshifted=conv.name, offset=offset)


def shifted(network: QuantizedNetwork, fused: Model, names: Iterable[str], why: str) -> QuantizedNetwork:
    """The decisions on a network in which tensors are shifted until none of their values is negative; types are not.

    Args:
        network: before.
        fused: its float network after.
        names: of the convolutions that make the tensors; `SHIFTED` is appended to them.
        why: ends the note of their ranges.
    """
    new, plan = {name: name + SHIFTED for name in names}, network.plan
    decisions = tuple(replace(d, node=new.get(d.node, d.node)) for d in plan.decisions)
    observe = tuple(replace(r, name=new.get(r.name, r.name)) for r in plan.observe)
    table = dict(network.thresholds)
    for old, name in new.items():
        found = table.pop(old)
        span = Range(0.0, found.range.max - found.range.min)
        note = f"shifted up by {-found.range.min:.6g}, {why}"
        table[name] = replace(found.unobserved(), range=span, note=note)
    return replace(
        network,
        fused=fused,
        plan=replace(plan, decisions=decisions, observe=observe),
        thresholds=Thresholds(table),
        requests=network.requests.renamed(new),
    )


def shift_summands(spec: BackendSpec) -> NetworkPass:
    """Applies the rule wherever it fits; a shifted tensor has a name and range of its own. Types are to be assigned."""
    return NetworkPass(NAME, lambda network: _shifted(network, spec))


def _shifted(network: QuantizedNetwork, spec: BackendSpec) -> tuple[QuantizedNetwork, Trace]:
    conv = spec.find(CONVOLUTION)
    if conv is None:
        return network, NO_EVENTS
    fused, trace = apply_rules(network.fused, (ShiftSummand(network, conv),), NAME)
    known = network.fused.graph
    new = [n.note.unshifted for n in fused.graph if n.name not in known and n.note.unshifted]
    return shifted(network, fused, new, "so that it is u8 like the sum it goes into") if new else network, trace
