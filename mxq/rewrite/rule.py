"""A rule: a pattern, a check that says why not, and what to build instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from mxq.graph.ir import Array, Model, Node, Ref
from mxq.rewrite.pattern import Match, Op


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a rule does not apply: a sentence, and the nodes it is about."""

    reason: str
    nodes: tuple[str, ...] = ()


NO_MATCH = Reject("")
"""The pattern matched a node that the rule is not about; nothing to report."""


@dataclass(frozen=True)
class Rewrite:
    """What a rule changes, in the terms of `Graph.replace`: ``changes``, ``redirect``; and new parameter values."""

    changes: Mapping[str, Sequence[Node]]
    redirect: Mapping[Ref, Ref] = field(default_factory=dict)
    args: Mapping[str, Array] = field(default_factory=dict)


class Rule(Protocol):
    """One rewrite. ``check`` returns None where it applies, else the reason; ``build`` is called only then."""

    @property
    def name(self) -> str: ...

    @property
    def pattern(self) -> Op: ...

    def check(self, model: Model, match: Match) -> Reject | None: ...

    def build(self, model: Model, match: Match) -> Rewrite: ...


def exchanged(model: Model, inner: Node, outer: Node) -> tuple[Node, Node]:
    """``outer`` before ``inner``, whose result it read; the second of them makes what ``outer`` made."""
    inputs = (*inner.inputs[:1], *outer.inputs[1:])
    first = replace(outer, name=model.graph.unused(f"{outer.name}_first"), label="", inputs=inputs)
    first = first.standing_for(outer)
    second = replace(inner, name=outer.name, label=outer.label, inputs=(first.out, *inner.inputs[1:]))
    return first, second.standing_for(inner)


def single_consumer(model: Model, match: Match) -> Reject | None:
    """The guard of every fusion: interior results must not be read, or returned, elsewhere."""
    for node in match.interior:
        if node is match.root:
            continue
        readers = [c for c in model.graph.consumers[node.name] if c not in match.interior]
        if readers:
            return Reject(f"the output of {node.name!r} is also read by {readers[0].name!r}", (node.name,))
        if node.name in model.graph.head_names:
            return Reject(f"{node.name!r} is an output of the network", (node.name,))
    return None
