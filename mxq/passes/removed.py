"""Removed: what became of the operators of the network as it was given that nothing stands for any more.

Dropout, identities, folded factors, constants: passes take them out, and the names of what they leave do not tell. For
each there is a `Decision` with the reason, from what fired (`Trace`), so that reports know every original operator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mxq.graph.ir import Graph, Model, Node
from mxq.passes.constants import RULE as FOLDED
from mxq.quant.plan import Decision
from mxq.rewrite import Event, Trace

_WHY: Mapping[str, str] = {
    "drop_identity": "in inference it passes on what it reads",
    "of_one_shape": "the sum of one tensor is that tensor",
    "fold_channel_scale": "its factor is in the weights of the layers that read the product",
    "fold_scalar": "its factor is in the weights of the layers that read the product",
    "shift_before_layers": "its number is in the biases of the layers that read the sum",
    FOLDED: "parameters alone determine it, so that it was computed once and is a parameter now",
    "fixed_slice": "of a network with one input shape it has nothing to cut",
}
"""What a rule has to say of the operator at which it fired."""


def removed(source: Model, fused: Model, trace: Trace) -> tuple[Decision, ...]:
    """The operators of ``source`` that none of ``fused`` stands for, in graph order.

    Args:
        source: the network as it was given.
        fused: what the passes made of it.
        trace: what they did.
    """
    kept = set(_stood_for(fused.graph))
    gone = [node for node in source.graph.operators if node.name not in kept]
    last = {event.node: event for event in trace.events if event.fired}
    return tuple(
        Decision(node.name, node.op, node.origins, int8=False, reason=_reason(source.graph, node, kept, last))
        for node in gone
    )


def _stood_for(graph: Graph) -> Iterator[str]:
    for node in graph.operators:
        yield node.name
        yield from node.origins
        for sub in node.subgraphs:
            yield from _stood_for(sub)


def _reason(graph: Graph, node: Node, kept: set[str], last: Mapping[str, Event]) -> str:
    if (event := last.get(node.name)) is None:
        return _unread(graph, node, last)
    rule = f"rule {event.rule!r} of pass {event.step!r}"
    why = _WHY.get(event.rule)
    if why is None:
        return f"removed by {rule}"
    made = "" if event.rule == FOLDED else _made_by(graph, node, kept)
    return f"removed: {why}" + (f"; what read it reads {made!r}" if made else "") + f" ({rule})"


def _made_by(graph: Graph, node: Node, kept: set[str]) -> str:
    """The operator or input before ``node`` that is still there; empty where there is none."""
    while node.inputs and node.name not in kept:
        node = graph[node.inputs[0].name]
        if node.is_variable:
            return node.name
    return node.name if node.name in kept else ""


def _unread(graph: Graph, node: Node, last: Mapping[str, Event]) -> str:
    """Why an operator at which no rule fired is gone: what read it does so no more."""
    readers = graph.consumers[node.name]
    if not readers:
        return "removed: no output of the network needs it"
    events = [last[reader.name] for reader in readers if reader.name in last]
    named = ", ".join(repr(reader.name) for reader in readers[:3])
    since = f" (rule {events[0].rule!r} of pass {events[0].step!r})" if events else ""
    return f"removed: what read it, {named}, does so no more{since}"
