"""Patterns as data: a small tree of operators, matched from its root (the last operator) towards its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import permutations
from types import MappingProxyType
from typing import TypeAlias

from mxq.graph.ir import Graph, Node, Ref


@dataclass(frozen=True, slots=True)
class Any_:  # noqa: N801 - "Any" is typing's
    """Matches any tensor; ``bind`` names it in the `Match`."""

    bind: str = ""


@dataclass(frozen=True, slots=True)
class Op:
    """Matches the first output of an operator.

    Attributes:
        ops: the op types it may have.
        inputs: patterns of its first inputs, in order; inputs beyond them are free.
        bind: its name in the `Match`.
        commutative: ``inputs`` may match in any order.
    """

    ops: tuple[str, ...]
    inputs: tuple[Pattern, ...] = ()
    bind: str = ""
    commutative: bool = False


Pattern: TypeAlias = Any_ | Op


@dataclass(frozen=True)
class Match:
    """Where a pattern was found: ``root``, bound ``nodes`` and ``refs``, all ``interior`` operators (root last)."""

    root: Node
    nodes: Mapping[str, Node] = field(default_factory=dict)
    refs: Mapping[str, Ref] = field(default_factory=dict)
    interior: tuple[Node, ...] = ()

    def __getitem__(self, bind: str) -> Node:
        return self.nodes[bind]


def match(graph: Graph, node: Node, pattern: Op) -> Iterator[Match]:
    """Every way in which ``pattern`` matches with its root at ``node``; several where inputs commute."""
    for nodes, refs, interior in _match_ref(graph, node.out, pattern):
        yield Match(node, MappingProxyType(nodes), MappingProxyType(refs), interior)


_Found: TypeAlias = tuple[dict[str, Node], dict[str, Ref], tuple[Node, ...]]


def _match_ref(graph: Graph, ref: Ref, pattern: Pattern) -> Iterator[_Found]:
    if isinstance(pattern, Any_):
        yield {}, {pattern.bind: ref} if pattern.bind else {}, ()
        return
    node = graph[ref.name]
    if node.op not in pattern.ops or ref.output != 0 or len(node.inputs) < len(pattern.inputs):
        return
    bound = {pattern.bind: node} if pattern.bind else {}
    orders = permutations(pattern.inputs) if pattern.commutative else iter([pattern.inputs])
    for order in dict.fromkeys(orders):
        for nodes, refs, interior in _match_inputs(graph, node, order):
            yield {**nodes, **bound}, refs, (*interior, node)


def _match_inputs(graph: Graph, node: Node, patterns: tuple[Pattern, ...]) -> Iterator[_Found]:
    if not patterns:
        yield {}, {}, ()
        return
    *rest, last = patterns
    for nodes, refs, interior in _match_inputs(graph, node, tuple(rest)):
        for more_nodes, more_refs, more in _match_ref(graph, node.inputs[len(rest)], last):
            yield {**nodes, **more_nodes}, {**refs, **more_refs}, (*interior, *more)
