"""Runs rules to a fixpoint and passes under their contracts, and keeps a trace of what fired and what refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mxq.errors import GraphError
from mxq.graph.ir import Model, Node
from mxq.rewrite.pattern import match
from mxq.rewrite.rule import Reject, Rewrite, Rule


@dataclass(frozen=True, slots=True)
class Event:
    """A rule fired at ``node`` (``reason`` empty), or refused to and why."""

    step: str
    rule: str
    node: str
    reason: str = ""

    @property
    def fired(self) -> bool:
        return not self.reason


@dataclass
class Trace:
    """What passes did, in order."""

    events: list[Event] = field(default_factory=list)

    def fired(self, rule: str) -> int:
        """How often ``rule`` fired."""
        return sum(e.fired and e.rule == rule for e in self.events)

    def refusals(self, node: str) -> list[Event]:
        """Every refusal at ``node``, each once."""
        return list(dict.fromkeys(e for e in self.events if e.node == node and not e.fired))

    def to_json(self) -> tuple[Mapping[str, object], ...]:
        """One entry per step and rule: how often it fired, and its refusals by node."""
        table: dict[tuple[str, str], dict[str, object]] = {}
        for event in dict.fromkeys(self.events):
            entry = table.setdefault(
                (event.step, event.rule), {"pass": event.step, "rule": event.rule, "fired": 0, "refused": {}}
            )
            if event.fired:
                entry["fired"] = int(str(entry["fired"])) + 1
            else:
                refused = entry["refused"]
                if isinstance(refused, dict):
                    refused[event.node] = event.reason
        return tuple(table.values())


def apply_rules(model: Model, rules: Sequence[Rule], trace: Trace | None = None, step: str = "") -> Model:
    """Applies ``rules``, the first that fits each node winning, until none fits.

    Every sweep collects rewrites whose matches do not overlap and applies them in one `Graph.replace`.

    Returns:
        The rewritten model; the same object where nothing fired.
    """
    trace = trace if trace is not None else Trace()
    while True:
        rewrites = _sweep(model, rules, trace, step)
        if not rewrites:
            return model
        changes = {k: v for r in rewrites for k, v in r.changes.items()}
        redirect = {k: v for r in rewrites for k, v in r.redirect.items()}
        args = {k: v for r in rewrites for k, v in r.args.items()}
        model = model.with_graph(model.graph.replace(changes, redirect), args)


def _sweep(model: Model, rules: Sequence[Rule], trace: Trace, step: str) -> list[Rewrite]:
    taken: set[str] = set()
    rewrites = []
    for node in model.graph.operators:
        found = _first(model, node, rules, taken, trace, step)
        if found is not None:
            rewrites.append(found)
    return rewrites


def _first(model: Model, node: Node, rules: Sequence[Rule], taken: set[str], trace: Trace, step: str) -> Rewrite | None:
    for rule in rules:
        for found in match(model.graph, node, rule.pattern):
            names = {n.name for n in found.interior}
            if names & taken:
                continue
            refusal = rule.check(model, found)
            if refusal is not None:
                event = Event(step, rule.name, found.interior[0].name, refusal.reason)
                if refusal.reason and event not in trace.events:
                    trace.events.append(event)
                continue
            taken |= names
            trace.events.append(Event(step, rule.name, node.name))
            return rule.build(model, found)
    return None


@dataclass(frozen=True)
class Contract:
    """A named property of a model: ``check`` returns what breaks it, or None."""

    name: str
    check: Callable[[Model], Reject | None]


@dataclass(frozen=True)
class Pass:
    """A step ``Model -> Model`` with what it requires before and ensures after."""

    name: str
    run: Callable[[Model, Trace], Model]
    requires: tuple[Contract, ...] = ()
    ensures: tuple[Contract, ...] = ()


def run_pass(step: Pass, model: Model, trace: Trace | None = None) -> Model:
    """Runs one pass under its contracts.

    Raises:
        GraphError: a contract does not hold; names pass, contract and node.
    """
    _hold(step.name, "requires", step.requires, model)
    result = step.run(model, trace if trace is not None else Trace())
    _hold(step.name, "ensures", step.ensures, result)
    return result


def _hold(step: str, when: str, contracts: Iterable[Contract], model: Model) -> None:
    for contract in contracts:
        broken = contract.check(model)
        if broken is not None:
            raise GraphError(f"pass {step!r} {when} {contract.name!r}, but {broken.reason}")
