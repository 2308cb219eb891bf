"""Runs a network one operator after the other and keeps each tensor only as long as somebody is still to read it.

Some operators do not run alone: zeros of shape (0, H) learn their first size from what reads them. What they make is
taken from a run of the whole network.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mxq.errors import RuntimeFailure
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref, Runner

Batches = Sequence[Array]
"""A tensor: one array for each batch of the data, of any sizes; one for all where it is constant."""


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
    fed = _slots(model, node)
    slots = {ref: Ref(fed[ref]) if ref in fed else Ref(ref.name) for ref in node.inputs}
    variables = {slot.name: Node(slot.name, VARIABLE) for slot in slots.values()}
    inner = replace(node, inputs=tuple(slots[r] for r in node.inputs), label="")
    graph = Graph((*variables.values(), inner), tuple(outputs) or (node.out,), model.graph.attrs)
    args = {k: v for k in variables if (v := model.args.get(k)) is not None}
    auxs = {k: v for k in variables if (v := model.auxs.get(k)) is not None}
    return Model(graph, args, auxs)


def _slots(model: Model, node: Node) -> dict[Ref, str]:
    """The tensors that ``node`` reads, and what they are called in the model of it alone."""
    taken = {node.name, *(r.name for r in node.inputs if model.param(r.name) is not None)}
    found: dict[Ref, str] = {}
    for ref in node.inputs:
        if ref not in found and model.param(ref.name) is None:
            name = f"{ref.name}__{ref.output}"
            while name in taken:
                name += "_"
            found[ref] = name
            taken.add(name)
    return found


@dataclass
class LayerwiseExecutor:
    """Tensors of a network under way.

    Attributes:
        runner: what runs an operator.
        held: tensor -> its batches.
        feeds: what the inputs are fed.
        apart: operators that did not run alone -> what MXNet said; their tensors are those of the whole network.
        lost: tensors that cannot be had at all -> why.
        begun: tensors that a run of the whole network showed before it was their turn.
    """

    runner: Runner
    held: dict[Ref, Batches] = field(default_factory=dict)
    feeds: Sequence[Mapping[str, Array]] = ()
    apart: dict[str, str] = field(default_factory=dict)
    lost: dict[Ref, str] = field(default_factory=dict)
    begun: dict[Ref, Batches] = field(default_factory=dict)

    @staticmethod
    def of(runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]]) -> LayerwiseExecutor:
        """Holding the inputs of ``model``."""
        held = {Ref(name): [np.asarray(feed[name]) for feed in feeds] for name in model.inputs}
        return LayerwiseExecutor(runner, dict(held), feeds)

    def step(self, model: Model, node: Node, outputs: Sequence[Ref] = ()) -> dict[Ref, Batches]:
        """The outputs of ``node`` as `run` gives them or, where it does not run alone, as the whole ``model`` does.

        Those that cannot be had are left out, and `lost`.
        """
        wanted = tuple(outputs) or (node.out,)
        why = next((self.lost[r] for r in node.inputs if r in self.lost), "")
        try:
            if not why:
                return self.run(model, node, wanted)
        except RuntimeFailure as error:
            why = f"{node.name!r} ({node.op}) does not run alone: {error}"
        try:
            found = self._of_the_whole(model, wanted)
        except RuntimeFailure:
            self.lost |= dict.fromkeys(wanted, why)
            return {}
        self.apart[node.name] = why
        return found

    def _of_the_whole(self, model: Model, wanted: Sequence[Ref]) -> dict[Ref, Batches]:
        """Tensors of ``model``, run as a whole; those of all that reads nothing are taken down together."""
        if not self.begun.keys() >= set(wanted):
            sources = (n.out for n in model.graph.operators if not _slots(model, n))
            taps = tuple(dict.fromkeys((*wanted, *sources)))
            call, heads = self.runner.compile(model, taps), len(model.graph.heads)
            made = [[np.asarray(found[heads + i]) for i in range(len(taps))] for found in map(call, self.feeds)]
            self.begun |= {ref: [m[i] for m in made] for i, ref in enumerate(taps) if ref not in wanted}
            return {ref: [m[i] for m in made] for i, ref in enumerate(wanted)}
        return {ref: self.begun.pop(ref) for ref in wanted}

    def run(self, model: Model, node: Node, outputs: Sequence[Ref] = ()) -> dict[Ref, Batches]:
        """The outputs of ``node``, on what is held; nothing is kept."""
        wanted = tuple(outputs) or (node.out,)
        single, slots = alone(model, node, wanted), _slots(model, node)
        count = max((len(self.held[r]) for r in slots), default=1)
        # What is constant is a parameter: of a weight that is fed MXNet changes the layout, and takes no other then.
        constant = {name: self.held[r][0] for r, name in slots.items() if len(self.held[r]) == 1 < count}
        call = self.runner.compile(Model(single.graph, {**single.args, **constant}, single.auxs))
        fed = {r: name for r, name in slots.items() if name not in constant}
        parts = []
        for i in range(count):
            found = call({name: self.held[r][min(i, len(self.held[r]) - 1)] for r, name in fed.items()})
            parts.append([found[j] for j in range(len(wanted))])
        return {ref: [p[j] for p in parts] for j, ref in enumerate(wanted)}

    def forget(self, names: Iterable[str]) -> None:
        """Drops the tensors of these nodes."""
        gone = set(names)
        for ref in [r for r in self.held if r.name in gone]:
            del self.held[ref]


@dataclass(frozen=True)
class Schedule:
    """Operators in order, with which of their outputs are read, and when for the last time."""

    nodes: tuple[Node, ...]
    _read: Mapping[str, tuple[Ref, ...]]
    _until: Mapping[str, str]

    @staticmethod
    def of(nodes: Sequence[Node]) -> Schedule:
        """Of ``nodes``, in the order of their graph."""
        read: dict[str, dict[Ref, None]] = {}
        for node in nodes:
            for ref in node.inputs:
                read.setdefault(ref.name, {})[ref] = None
        until = {ref.name: node.name for node in nodes for ref in node.inputs}
        return Schedule(tuple(nodes), {name: tuple(refs) for name, refs in read.items()}, until)

    def outputs(self, node: Node) -> tuple[Ref, ...]:
        """The outputs of ``node`` that are read; the first one where none is."""
        return self._read.get(node.name, (node.out,))

    def done(self, node: Node) -> set[str]:
        """Whose tensors nobody reads after ``node``."""
        return {ref.name for ref in node.inputs if self._until[ref.name] == node.name}


def passing(
    runner: Runner, model: Model, feeds: Sequence[Mapping[str, Array]]
) -> Iterator[tuple[Node, Mapping[Ref, Batches]]]:
    """Runs the network and gives each operator, once it has run, with all tensors that are held at that moment."""
    live, schedule = LayerwiseExecutor.of(runner, model, feeds), Schedule.of(model.graph.operators)
    for node in schedule.nodes:
        live.held |= live.step(model, node, schedule.outputs(node))
        yield node, live.held
        live.forget(schedule.done(node))


def peak_bytes(runner: Runner, model: Model, feed: Mapping[str, Array]) -> int:
    """The most bytes that a refinement on ``feed`` holds of one network's tensors."""
    held = (tensors.values() for _, tensors in passing(runner, model, [feed]))
    return max((sum(array.nbytes for batches in each for array in batches) for each in held), default=0)
