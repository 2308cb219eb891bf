"""Align ranges: what goes into one int8 Concat is written in one range, so that the Concat only copies.

Before:  conv_a -> [0, 2] ---> Concat -> [0, 5]        conv_b -> [0, 5] -/
After:   conv_a -> [0, 5] ---> Concat -> [0, 5]        conv_b -> [0, 5] -/

The stock kernel (``mkldnn_quantized_concat.cc``) writes in the widest of its inputs' ranges; every other input is first
reordered into it. A value of conv_a is rounded to the coarse step either way, but rounded twice without this.

Conditions: the tensor is written in a calibrated range (or quantized from float), and goes into the Concat at once or
through int8 operators that keep the range (pooling, Flatten, another Concat). Where something else reads it or them as
well, which then reads the coarse step, too, its step grows by `SHARED` at most and its sign stays. A range that is
given stays, so that the Concat reorders what has it.
Formula: range_i := the union of all inputs' ranges.

A dense block of DenseNet joins what it has with 32 channels more, again and again. Where each time one range is a
little wider than all before, everything is rounded anew: 14 of 58 Concats, 3 % of its time at batch 16, and 1 dB of
its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce

from mxq.backends import BackendSpec
from mxq.graph.ir import Graph, Ref
from mxq.quant import NetworkPass, QuantizedNetwork
from mxq.quant.plan import Plan
from mxq.quant.thresholds import Range, Thresholds
from mxq.rewrite import Event, Trace

NAME = "align_ranges"
SHARED = 2**0.5
"""Rounding to a step d leaves a variance of d^2 / 12 (uniform noise), so that the one rounding to the step widened by
this has as much as the two it stands for: to the tensor's own step, and again to one no finer."""


def align_ranges(spec: BackendSpec) -> NetworkPass:
    """Gives all that a Concat joins one range; other tensors keep theirs, and types are to be assigned."""
    return NetworkPass(NAME, lambda network: _aligned(network, spec))


def _aligned(network: QuantizedNetwork, spec: BackendSpec) -> tuple[QuantizedNetwork, Trace]:
    graph, plan, table, events = network.fused.graph, network.plan, dict(network.thresholds), list[Event]()
    for node in reversed(graph.operators):  # the last of nested ones first: it holds the others' inputs
        if node.op != "Concat" or node.name not in plan.quantized:
            continue
        sources = dict(s for ref in node.inputs for s in _sources(graph, ref, plan, spec))
        if len(sources) < 2 or any(str(r) not in table for r in sources):
            continue
        union = reduce(Range.union, (table[str(r)].range for r in sources))
        for ref, alone in sources.items():
            found = table[str(ref)]
            if found.range != union and not found.is_fixed and (alone or _is_near(found.range, union)):
                low, high = found.range.min, found.range.max
                note = f"from [{low:.6g}, {high:.6g}], to be what {node.name!r} joins it with"
                table[str(ref)] = found.ranged(union, note)
                events.append(Event(NAME, NAME, ref.name))
    return (network.with_thresholds(Thresholds(table)) if events else network), Trace(tuple(events))


def _is_near(own: Range, union: Range) -> bool:
    """Whether a tensor that others read, too, may be written in ``union``."""
    return union.absmax <= SHARED * own.absmax and (own.min < 0) == (union.min < 0)


def _sources(
    graph: Graph, ref: Ref, plan: Plan, spec: BackendSpec, *, alone: bool = True
) -> Iterator[tuple[Ref, bool]]:
    """The calibrated tensors whose ranges make that of ``ref``, each with whether nothing else reads it."""
    node = graph[ref.name]
    alone = alone and len(graph.consumers[ref.name]) == 1 and ref.name not in graph.head_names
    row = spec.find(node.op) if node.name in plan.quantized else None
    if row is None or row.has_range(node) or row.s8_only:
        yield ref, alone
        return
    for inner in node.inputs:
        yield from _sources(graph, inner, plan, spec, alone=alone)
