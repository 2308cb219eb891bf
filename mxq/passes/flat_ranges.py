"""Flat ranges: the range of a tensor ends where those that read it tell no values apart.

Before:  conv -> [-185, 134] ---> hard_sigmoid(x, 1/6, 1/2) -> product with x
After:   conv -> [-3, 134] -----> hard_sigmoid(x, 1/6, 1/2) -> product with x

A hard-swish is 0 for all x below -3, a hard sigmoid 1 for all above 3, ReLU 0 below 0. Codes saturate, so that the ones
for values beyond are spent on nothing: on PP-OCRv4's detector they are 2.5 dB.

Conditions: every reader of the tensor is such a function; it is no output of the network; its range is not given.
Formula: both ends are clipped to [a, b], the union of what each reader tells apart.
"""

from __future__ import annotations

from functools import reduce
from math import inf
from typing import Final, TypeAlias

from mxq.graph.ir import Graph, Node
from mxq.quant import NetworkPass, QuantizedNetwork
from mxq.quant.thresholds import Range, Thresholds
from mxq.rewrite import Event, Trace

NAME: Final = "flat_ranges"
Interval: TypeAlias = tuple[float, float]
EVERYTHING: Final = (-inf, inf)


def _run(network: QuantizedNetwork) -> tuple[QuantizedNetwork, Trace]:
    """Types are to be assigned anew: a range that had a negative part may have none."""
    graph, table, events = network.fused.graph, dict(network.thresholds), list[Event]()
    for node in graph.operators:
        found = table.get(str(node.out))
        if found is None or found.is_fixed or node.name in graph.head_names:
            continue
        low, high = _told_apart(graph, node)
        limited = Range(*(min(max(end, low), high) for end in (found.range.min, found.range.max)))
        if limited != found.range:
            note = f"from [{found.range.min:.6g}, {found.range.max:.6g}]: beyond it, all that read it are flat"
            table[str(node.out)] = found.ranged(limited, note)
            events.append(Event(NAME, NAME, node.name))
    return (network.with_thresholds(Thresholds(table)) if events else network), Trace(tuple(events))


def _told_apart(graph: Graph, node: Node) -> Interval:
    """Between which values of what ``node`` makes some reader gives different results."""
    readers = graph.consumers[node.name]
    found = [_told_by(graph, node, reader) for reader in readers]
    return reduce(lambda a, b: (min(a[0], b[0]), max(a[1], b[1])), found) if found else EVERYTHING


def _told_by(graph: Graph, node: Node, reader: Node) -> Interval:
    if any(ref.name == node.name and ref.output for ref in reader.inputs):
        return EVERYTHING
    if reader.op == "hard_sigmoid" and (slope := reader.number("alpha", 0.2)) > 0:
        beta = reader.number("beta", 0.5)
        return -beta / slope, (1 - beta) / slope
    if reader.op in ("elemwise_mul", "broadcast_mul"):
        return _told_by_gate(graph, node, reader)
    if reader.op == "relu" or (reader.op == "Activation" and reader.attrs.get("act_type") == "relu"):
        return 0.0, inf
    return EVERYTHING


def _told_by_gate(graph: Graph, node: Node, product: Node) -> Interval:
    """Of x hard_sigmoid(x), which is 0 below the gate."""
    gates = [graph[ref.name] for ref in product.inputs if ref.name != node.name]
    if len(gates) == 1 and gates[0].op == "hard_sigmoid" and gates[0].inputs[0] == node.out:
        return _told_by(graph, node, gates[0])[0], inf
    return EVERYTHING


FLAT_RANGES: Final = NetworkPass(NAME, _run)
