"""Runs a network one operator after the other and keeps each tensor only as long as somebody is still to read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mxq.ir import VARIABLE, Array, Graph, Model, Node, Ref, Runner

Batches = Sequence[Array]
"""A tensor: one array for each batch of the data, examples along the first axis; one for all where it is constant."""


def ancestors(graph: Graph, names: Iterable[str]) -> tuple[Node, ...]:
    """The operators without which ``names`` cannot be computed, and these themselves, in graph order."""
    wanted = set(names)
    for node in reversed(graph.operators):
        if node.name in wanted:
            wanted |= {ref.name for ref in node.inputs}
    return tuple(n for n in graph.operators if n.name in wanted)


def alone(model: Model, node: Node, outputs: Sequence[Ref] = ()) -> Model:
    """The model of one operator: its parameters are the network's, its other inputs are fed under their names.

    Args:
        outputs: which of its outputs; the first by default.
    """
    params = {r.name: model.param(r.name) for r in node.inputs}
    slots = {ref: Ref(_slot(ref)) if params[ref.name] is None else Ref(ref.name) for ref in node.inputs}
    variables = {slot.name: Node(slot.name, VARIABLE) for slot in slots.values()}
    inner = replace(node, inputs=tuple(slots[r] for r in node.inputs), label="")
    graph = Graph((*variables.values(), inner), tuple(outputs) or (node.out,), model.graph.attrs)
    args = {k: v for k in variables if (v := model.args.get(k)) is not None}
    auxs = {k: v for k in variables if (v := model.auxs.get(k)) is not None}
    return Model(graph, args, auxs)


def _slot(ref: Ref) -> str:
    return f"{ref.name}__{ref.output}"


@dataclass
class Live:
    """Tensors of a network under way.

    Attributes:
        runner: what runs an operator.
        held: tensor -> its batches.
    """

    runner: Runner
    held: dict[Ref, Batches] = field(default_factory=dict)

    def run(self, model: Model, node: Node, outputs: Sequence[Ref] = ()) -> dict[Ref, Batches]:
        """The outputs of ``node``, on what is held; nothing is kept."""
        wanted = tuple(outputs) or (node.out,)
        call = self.runner.compile(alone(model, node, wanted))
        fed = [r for r in dict.fromkeys(node.inputs) if model.param(r.name) is None]
        count = max((len(self.held[r]) for r in fed), default=1)
        parts = []
        for i in range(count):
            found = call({_slot(r): self.held[r][min(i, len(self.held[r]) - 1)] for r in fed})
            parts.append([found[j] for j in range(len(wanted))])
        return {ref: [p[j] for p in parts] for j, ref in enumerate(wanted)}

    def forget(self, names: Iterable[str]) -> None:
        """Drops the tensors of these nodes."""
        gone = set(names)
        for ref in [r for r in self.held if r.name in gone]:
            del self.held[ref]


def last_reader(nodes: Sequence[Node]) -> Mapping[str, str]:
    """Node name -> the last of ``nodes`` that reads any of its outputs."""
    return {ref.name: node.name for node in nodes for ref in node.inputs}


def outputs_read(nodes: Sequence[Node]) -> Mapping[str, tuple[Ref, ...]]:
    """Node name -> its outputs that ``nodes`` read."""
    found: dict[str, dict[Ref, None]] = {}
    for node in nodes:
        for ref in node.inputs:
            found.setdefault(ref.name, {})[ref] = None
    return {name: tuple(refs) for name, refs in found.items()}


def peak_bytes(runner: Runner, model: Model, feed: Mapping[str, Array]) -> int:
    """The most bytes that a walk over ``feed`` holds of one network's tensors."""
    live = Live(runner, {Ref(name): [feed[name]] for name in model.inputs})
    nodes, peak = model.graph.operators, 0
    until, read = last_reader(nodes), outputs_read(nodes)
    for node in nodes:
        live.held |= live.run(model, node, read.get(node.name, (node.out,)))
        peak = max(peak, sum(array.nbytes for batches in live.held.values() for array in batches))
        live.forget({r.name for r in node.inputs if until.get(r.name) == node.name})
    return peak
