"""The graph that every pass reads and returns: `Ref`, `Node`, `Graph`, `Model`, and the `Runner` protocol.

All of it is immutable. A graph is keyed by *node name*, because parameters and thresholds are; a pass
returns a new `Model`, or the same object where nothing changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mxq.errors import GraphError
from mxq.graph.annotation import NOTHING, Annotation

Array = NDArray[Any]


def reduced(value: Any) -> tuple[Any, ...]:
    """`object.__reduce__` of a dataclass whose mappings are in proxies, which can be neither copied nor pickled."""
    parts = (getattr(value, f.name) for f in fields(value) if f.init)
    return type(value), tuple(dict(part) if isinstance(part, MappingProxyType) else part for part in parts)


VARIABLE = "null"
"""The op name of a variable (input or parameter) in MXNet's symbol JSON."""

INPUT_TYPES: Mapping[str, str] = MappingProxyType({"3": "uint8", "5": "int8"})
"""Integers that an input may be of, by what ``__dtype__`` of its variable says (``TypeFlag``, mshadow's ``base.h``)."""


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """One output of one node: its ``name``, index of the ``output``, ``version`` (of mutated auxiliary states)."""

    name: str
    output: int = 0
    version: int = 0

    def __str__(self) -> str:
        return self.name if self.output == 0 else f"{self.name}:{self.output}"


@dataclass(frozen=True)
class Node:
    """An operator or, where ``op`` is `VARIABLE`, an input or parameter.

    ``attrs`` are strings, as MXNet keeps them. ``label`` is the name the file gives the node where that
    differs from ``name`` (MXNet lets two operators share a name; here names are unique). ``note`` is what passes
    say of the node; it computes the same without.
    """

    name: str
    op: str
    attrs: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[Ref, ...] = ()
    subgraphs: tuple[Graph, ...] = ()
    label: str = ""
    note: Annotation = NOTHING

    __reduce__ = reduced

    def __post_init__(self) -> None:
        if not isinstance(self.attrs, MappingProxyType):
            object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def is_variable(self) -> bool:
        return self.op == VARIABLE

    @property
    def out(self) -> Ref:
        """The node's first output."""
        return Ref(self.name)

    @property
    def input_dtype(self) -> str:
        """The type that a variable declares, such as "int8"; "float32" where it declares none."""
        return INPUT_TYPES.get(self.attrs.get("__dtype__", ""), "float32")

    @property
    def origins(self) -> tuple[str, ...]:
        """Names of the original nodes that this one stands for; its own where it is original."""
        return self.note.origins or (self.name,)

    @property
    def is_channels_first(self) -> bool:
        """Whether its layout, where it has one, puts channels right after the batch."""
        return self.attrs.get("layout", "None") in ("None", "NCW", "NCHW", "NCDHW")

    def flag(self, attr: str, default: bool = False) -> bool:
        """A boolean attribute, as MXNet spells it ("True", "true", "1"); "None" says nothing."""
        value = self.attrs.get(attr, "None").lower()
        return default if value == "none" else value in ("true", "1")

    def number(self, attr: str, default: float) -> float:
        """A numeric attribute.

        Raises:
            GraphError: it is none.
        """
        try:
            return float(self.attrs.get(attr, default))
        except ValueError:
            raise self._unreadable(attr, "a number") from None

    def integer(self, attr: str, default: int) -> int:
        """An integer attribute.

        Raises:
            GraphError: it is none.
        """
        try:
            return int(self.number(attr, default))
        except (ValueError, OverflowError):  # of nan, and of inf
            raise self._unreadable(attr, "an integer") from None

    def ints(self, attr: str) -> tuple[int, ...]:
        """A tuple attribute such as "(3, 3)"; empty where it is missing.

        Raises:
            GraphError: it holds what is no integer.
        """
        try:
            return tuple(int(float(v)) for v in re.findall(r"-?[\d.]+", self.attrs.get(attr, "")))
        except (ValueError, OverflowError):
            raise self._unreadable(attr, 'integers such as "(3, 3)"') from None

    def _unreadable(self, attr: str, allowed: str) -> GraphError:
        return GraphError(f"node {self.name!r} ({self.op}): {attr} is {self.attrs[attr][:60]!r}; allowed: {allowed}")

    def with_attrs(self, **attrs: str) -> Node:
        """A copy with ``attrs`` added or changed."""
        return replace(self, attrs={**self.attrs, **attrs})

    def noted(self, **said: Any) -> Node:
        """A copy whose note has these fields (of `Annotation`) added or changed."""
        return replace(self, note=replace(self.note, **said))

    def standing_for(self, *nodes: Node) -> Node:
        """A copy that reports take for the original nodes of ``nodes``."""
        return self.noted(origins=origins(*nodes))


def origins(*nodes: Node) -> tuple[str, ...]:
    """Names of the original nodes that ``nodes`` stand for, each once."""
    return tuple(dict.fromkeys(name for node in nodes for name in node.origins))


@dataclass(frozen=True)
class Graph:
    """Nodes in topological order, and the outputs (``heads``) of the whole.

    Raises:
        GraphError: a name occurs twice, an input or head refers to no earlier node.
    """

    nodes: tuple[Node, ...]
    heads: tuple[Ref, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    __reduce__ = reduced

    def __post_init__(self) -> None:
        if not isinstance(self.attrs, MappingProxyType):
            object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))
        seen: set[str] = set()
        for node in self.nodes:
            for ref in node.inputs:
                if ref.name not in seen:
                    raise GraphError(f"node {node.name!r} ({node.op}) reads {str(ref)!r}, which no earlier node makes")
            if node.name in seen:
                raise GraphError(f"two nodes are named {node.name!r}; names must be unique")
            seen.add(node.name)
        for head in self.heads:
            if head.name not in seen:
                raise GraphError(f"output {str(head)!r} refers to no node of the graph")

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        return MappingProxyType({n.name: n for n in self.nodes})

    @cached_property
    def consumers(self) -> Mapping[str, tuple[Node, ...]]:
        """For each node name the nodes that read any of its outputs, in order, each once."""
        found: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(r.name for r in node.inputs):
                found[name].append(node)
        return MappingProxyType({k: tuple(v) for k, v in found.items()})

    @cached_property
    def head_names(self) -> frozenset[str]:
        return frozenset(h.name for h in self.heads)

    def __getitem__(self, name: str) -> Node:
        try:
            return self.by_name[name]
        except KeyError:
            raise GraphError(f"the graph has no node {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    @property
    def variables(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if n.is_variable)

    @property
    def operators(self) -> tuple[Node, ...]:
        return tuple(n for n in self.nodes if not n.is_variable)

    def unused(self, name: str, taken: Container[str] = ()) -> str:
        """``name``, or the first of "name0", "name00", ... that no node has, and that is not ``taken``."""
        while name in self or name in taken:
            name += "0"
        return name

    def replace(self, changes: Mapping[str, Sequence[Node]], redirect: Mapping[Ref, Ref] | None = None) -> Graph:
        """A new graph in which nodes are exchanged, inserted or dropped.

        Args:
            changes: node name -> the nodes that stand in its place (empty: dropped).
            redirect: old ref -> new ref, applied to every input and head; chains are followed.

        Returns:
            The new graph, sorted topologically, without nodes that no head needs.

        Raises:
            GraphError: the result breaks an invariant or has a cycle.
        """
        moved = dict(redirect or {})

        def follow(ref: Ref) -> Ref:
            while ref in moved:
                ref = moved[ref]
            return ref

        nodes = [new for old in self.nodes for new in changes.get(old.name, (old,))]
        if moved:
            nodes = [replace(n, inputs=tuple(map(follow, n.inputs))) for n in nodes]
        return toposort(nodes, tuple(map(follow, self.heads)), self.attrs)


def toposort(nodes: Iterable[Node], heads: Sequence[Ref], attrs: Mapping[str, Any] | None = None) -> Graph:
    """Orders ``nodes`` depth first from ``heads``, as MXNet does, and drops those no head needs.

    Raises:
        GraphError: a name occurs twice, a reference dangles, or the nodes form a cycle.
    """
    table: dict[str, Node] = {}
    for node in nodes:
        if node.name in table:
            raise GraphError(f"two nodes are named {node.name!r}; names must be unique")
        table[node.name] = node
    ordered: list[Node] = []
    state: dict[str, bool] = {}  # False while a node's inputs are being visited, True when it is placed
    for head in heads:
        stack = [head.name]
        while stack:
            name = stack[-1]
            if name not in table:
                raise GraphError(f"{name!r} is read but no node makes it")
            if state.get(name):
                stack.pop()
                continue
            pending = [r.name for r in table[name].inputs if not state.get(r.name)]
            if not pending:
                state[name] = True
                ordered.append(table[name])
                stack.pop()
            elif name in state and any(p in state for p in pending):
                raise GraphError(f"the graph has a cycle through {name!r}")
            else:
                state[name] = False
                stack.extend(reversed(pending))
    return Graph(tuple(ordered), tuple(heads), attrs or {})


@dataclass(frozen=True)
class Model:
    """A graph and its parameters.

    ``args`` and ``auxs`` map a variable's name to its value, a read-only array (float32 unless the
    network says otherwise). A variable in neither is an input.
    """

    graph: Graph
    args: Mapping[str, Array] = field(default_factory=dict)
    auxs: Mapping[str, Array] = field(default_factory=dict)

    __reduce__ = reduced

    def __post_init__(self) -> None:
        for name in ("args", "auxs"):
            table = getattr(self, name)
            if not isinstance(table, MappingProxyType):
                object.__setattr__(self, name, MappingProxyType({k: _read_only(v) for k, v in table.items()}))

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """Names of the inputs in the order of a call; "" for an argument that the network does not read.

        Inputs without a place (see `Annotation.input_place`) follow those that have one, in graph order.
        """
        fed = [n for n in self.graph.variables if n.name not in self.args and n.name not in self.auxs]
        places = {n.name: n.note.input_place for n in fed}
        slots = [""] * max((p[1] for p in places.values() if p), default=0)
        rest = []
        for name, place in places.items():
            if place is None or slots[place[0]]:
                rest.append(name)
            else:
                slots[place[0]] = name
        return (*slots, *rest)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the variables that the caller must feed, in the order of a call."""
        return tuple(name for name in self.arguments if name)

    @cached_property
    def fed(self) -> frozenset[str]:
        """The inputs, and the operators whose tensors depend on what is fed; begin states are zero whatever that is."""
        found = set(self.inputs)
        for node in self.graph.operators:
            if any(ref.name in found for ref in node.inputs):
                found.add(node.name)
        return frozenset(found)

    def param(self, name: str) -> Array | None:
        """The value of a parameter, argument or auxiliary; None for an input or an operator."""
        return self.args.get(name, self.auxs.get(name))

    def is_own(self, parameter: str) -> bool:
        """Whether ``parameter`` is among ``args`` and one node alone reads it."""
        return parameter in self.args and len(self.graph.consumers[parameter]) == 1

    def with_graph(self, graph: Graph, args: Mapping[str, Array] | None = None) -> Model:
        """This model with another graph and ``args`` added or changed; parameters that no node reads are dropped."""
        kept = {n.name for n in graph.variables}
        table = {**self.args, **(args or {})}
        return Model(
            graph,
            {k: v for k, v in table.items() if k in kept},
            {k: v for k, v in self.auxs.items() if k in kept},
        )


def _read_only(value: Array) -> Array:
    array = np.asarray(value)
    if array.flags.writeable:
        array = array.view()
        array.flags.writeable = False
    return array


class Executable(Protocol):
    """A model bound to run: feeds in, one array per head (and then per tap) out, valid until the next call."""

    def __call__(self, feeds: Mapping[str, Array]) -> Sequence[Array]: ...


class Watched(Protocol):
    """A model bound to be looked into: shows each watched tensor to ``visit`` while it exists, then forgets it.

    The array is valid only during the call; it holds the tensor's values in an order of the runner's choice, as (n,).
    What ``visit`` raises ends the run and is raised.
    """

    def __call__(self, feeds: Mapping[str, Array], visit: Callable[[Ref, Array], None]) -> None: ...


class Runner(Protocol):
    """What runs a model. `mxq.runtime` implements it with MXNet; tests may with numpy."""

    def compile(self, model: Model, taps: Sequence[Ref] = ()) -> Executable:
        """Binds ``model``; the executable returns its heads, then the tensors named by ``taps``."""
        ...

    def watch(self, model: Model, refs: Sequence[Ref]) -> Watched:
        """Binds ``model`` so that the outputs ``refs`` of its operators are seen as they are made."""
        ...
