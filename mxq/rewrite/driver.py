"""Runs rules to a fixpoint and passes under their contracts; each returns what it made and a trace of what it did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

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


@dataclass(frozen=True)
class Trace:
    """What passes did, in order. A sum of two is one after the other."""

    events: tuple[Event, ...] = ()

    def __add__(self, other: Trace) -> Trace:
        return Trace((*self.events, *other.events))

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


NO_EVENTS = Trace()
"""Of a pass that did nothing."""


def apply_rules(model: Model, rules: Sequence[Rule], step: str = "") -> tuple[Model, Trace]:
    """Applies ``rules``, the first that fits each node winning, until none fits.

    Every sweep collects rewrites whose matches do not overlap and applies them in one `Graph.replace`.

    Returns:
        The rewritten model, the same object where nothing fired; and what fired and what refused.
    """
    events: list[Event] = []
    while True:
        rewrites = _sweep(model, rules, events, step)
        if not rewrites:
            return model, Trace(tuple(events))
        changes = {k: v for r in rewrites for k, v in r.changes.items()}
        redirect = {k: v for r in rewrites for k, v in r.redirect.items()}
        args = {k: v for r in rewrites for k, v in r.args.items()}
        model = model.with_graph(model.graph.replace(changes, redirect), args)


def exhaust_each(model: Model, rules: Iterable[Rule], step: str = "") -> tuple[Model, Trace]:
    """`apply_rules` with one rule after the other."""
    trace = NO_EVENTS
    for rule in rules:
        model, found = apply_rules(model, (rule,), step)
        trace += found
    return model, trace


def _sweep(model: Model, rules: Sequence[Rule], events: list[Event], step: str) -> list[Rewrite]:
    taken: set[str] = set()
    rewrites = []
    for node in model.graph.operators:
        found = _first(model, node, rules, taken, events, step)
        if found is not None:
            rewrites.append(found)
    return rewrites


def _first(
    model: Model, node: Node, rules: Sequence[Rule], taken: set[str], events: list[Event], step: str
) -> Rewrite | None:
    for rule in rules:
        for found in match(model.graph, node, rule.pattern):
            names = {n.name for n in found.interior}
            if names & taken:
                continue
            refusal = rule.check(model, found)
            if refusal is not None:
                event = Event(step, rule.name, found.interior[0].name, refusal.reason)
                if refusal.reason and event not in events:
                    events.append(event)
                continue
            taken |= names
            events.append(Event(step, rule.name, node.name))
            return rule.build(model, found)
    return None


T = TypeVar("T")


@dataclass(frozen=True)
class Contract(Generic[T]):
    """A named property of what a step takes or gives: ``check`` returns what breaks it, or None."""

    name: str
    check: Callable[[T], Reject | None]


@dataclass(frozen=True)
class Step(Generic[T]):
    """A named change of something immutable, with what it requires before and ensures after.

    ``run`` returns what it made, the same object where there was nothing to do, and what it did.
    """

    name: str
    run: Callable[[T], tuple[T, Trace]]
    requires: tuple[Contract[T], ...] = ()
    ensures: tuple[Contract[T], ...] = ()


Pass: TypeAlias = Step[Model]
"""A step from one float network to another."""


def run_pass(step: Step[T], given: T) -> tuple[T, Trace]:
    """Runs one step under its contracts.

    Raises:
        GraphError: a contract does not hold; names pass, contract and node.
    """
    _hold(step.name, "requires", step.requires, given)
    result, trace = step.run(given)
    _hold(step.name, "ensures", step.ensures, result)
    return result, trace


def run_passes(steps: Iterable[Step[T]], given: T) -> tuple[T, Trace]:
    """Runs one step after the other."""
    trace = NO_EVENTS
    for step in steps:
        given, found = run_pass(step, given)
        trace += found
    return given, trace


def _hold(step: str, when: str, contracts: Iterable[Contract[T]], given: T) -> None:
    for contract in contracts:
        broken = contract.check(given)
        if broken is not None:
            raise GraphError(f"pass {step!r} {when} {contract.name!r}, but {broken.reason}")
