"""From a model to an ONNX graph: every node by its row, and all that have none, or cannot be written, in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np

from mxq.backends.onnx.context import (
    OPSET,
    OPSET_INT4,
    Builder,
    Context,
    Feed,
    FloatFeed,
    Operator,
    Result,
    Unfit,
    Why,
    plain,
)
from mxq.backends.onnx.table import row_of
from mxq.errors import QuantizeError
from mxq.graph.ir import Array, Model, Node, Ref
from mxq.graph.tensors import Tensor

SHOWN: Final = 12
"""Nodes that an error names of those that it refuses for one reason, at most."""
REMEDIES: Final[Mapping[Why, str]] = MappingProxyType(
    {
        Why.OPERATOR: "operators of the table in docs/onnx.md",
        Why.ATTRIBUTE: "what the table in docs/onnx.md says of its operator",
        Why.BATCH: "one batch_size (--batch-size)",
        Why.SIZE: "pictures of one size, without dynamic_size (--dynamic-size)",
    }
)


@dataclass(frozen=True)
class Refusal:
    """A node that cannot be written: its name and operator, the kind of reason, and what of it is meant.

    Its text is all but the name.
    """

    node: str
    op: str
    why: Why
    detail: str

    def __str__(self) -> str:
        more = f": {self.detail}" if self.detail else ""
        return f"({self.op}): {self.why.value}{more}"


@dataclass(frozen=True)
class Lowering:
    """An ONNX graph, before any of it is ONNX's.

    Attributes:
        inputs: name -> what is fed.
        outputs: name -> what is given.
        operators: in the order in which they run.
        constants: name -> value, parameters among them.
        narrow: those of them that are codes of 4 bits, each a byte here.
        opset: the version of ONNX's operators that these are of.
    """

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    operators: Sequence[Operator]
    constants: Mapping[str, Array]
    narrow: frozenset[str] = frozenset()
    opset: int = OPSET


def lower(model: Model, tensors: Mapping[Ref, Tensor], feed: Feed | None = None) -> Lowering:
    """Writes every node of ``model``.

    Args:
        model: a float network.
        tensors: what its tensors are, see `mxq.runtime.tensors`.
        feed: how tensors come to operators; as they are where None.

    Raises:
        QuantizeError: nodes that cannot be written, all of them.
    """
    builder = Builder(model, tensors, feed or FloatFeed())
    refusals = [found for node in model.graph.nodes if (found := _node(builder, node)) is not None]
    if refusals:
        raise QuantizeError(_listed(refusals))
    outputs = _outputs(builder)
    inputs = {name: tensors[Ref(name)] for name in model.inputs if Ref(name) in tensors}
    operators = _needed(builder.operators, outputs)
    if builder.narrow:
        operators = [_with_axes_as_input(builder, one) for one in operators]
    read = {name for one in operators for name in _read_by(one)}
    constants = {name: value for name, value in builder.constants.items() if name in read}
    narrow = frozenset(builder.narrow)
    return Lowering(inputs, outputs, operators, constants, narrow, OPSET_INT4 if narrow else OPSET)


def _read_by(one: Operator) -> Iterator[str]:
    yield from one.inputs
    for inner in () if one.body is None else one.body.operators:
        yield from _read_by(inner)


def _with_axes_as_input(builder: Builder, one: Operator) -> Operator:
    """A reduction as operators since opset 18 have it, also within another operator."""
    if one.body is not None:
        inner = tuple(_with_axes_as_input(builder, each) for each in one.body.operators)
        return replace(one, body=replace(one.body, operators=inner))
    axes = one.attrs.get("axes")
    if not one.kind.startswith("Reduce") or not isinstance(axes, Sequence):
        return one
    attrs = {name: value for name, value in one.attrs.items() if name != "axes"}
    return replace(one, inputs=(*one.inputs, builder.constant(np.array(axes, np.int64), "axes")), attrs=attrs)


def _needed(operators: Sequence[Operator], outputs: Mapping[str, Tensor]) -> Sequence[Operator]:
    """Those that an output needs."""
    wanted, kept = {*outputs}, list[Operator]()
    for one in reversed(operators):
        if wanted.intersection(one.outputs):
            wanted.update(one.inputs)
            kept.append(one)
    return kept[::-1]


def _node(builder: Builder, node: Node) -> Refusal | None:
    """Writes one node; where it cannot be, its outputs are taken as written, so that others are looked at too."""
    if node.is_variable:
        _variable(builder, node)
        return None
    since = len(builder.operators)
    try:
        made = _made(builder, node, _lower(builder, node)(Context(node, builder)))
    except Unfit as unfit:
        _bind(builder, node, [node.name] * (1 + _last_read(builder, node)))
        return Refusal(node.name, node.op, unfit.why, unfit.detail)
    _name(builder, node, since, made)
    return None


def _lower(builder: Builder, node: Node) -> Callable[[Context], Result]:
    """How ``node`` is written."""
    other = builder.feed.row(node)
    if other is not None:
        return other
    row = row_of(node.op)
    if row is None:
        raise Unfit(Why.OPERATOR)
    return row.lower


def _made(builder: Builder, node: Node, result: Result) -> Sequence[str]:
    """What a row gives, if it is all that is read of the node."""
    made, last = (result,) if isinstance(result, str) else result, _last_read(builder, node)
    if last >= len(made):
        raise Unfit(Why.OUTPUT, f"output {last}")
    return made


def _last_read(builder: Builder, node: Node) -> int:
    """The last output of ``node`` that is read, or given by the network."""
    graph = builder.model.graph
    refs = [*graph.heads, *(ref for reader in graph.consumers[node.name] for ref in reader.inputs)]
    return max((ref.output for ref in refs if ref.name == node.name), default=0)


def _variable(builder: Builder, node: Node) -> None:
    value = builder.model.param(node.name)
    if value is not None:
        builder.constants[node.name] = value
    _bind(builder, node, [node.name])


def _bind(builder: Builder, node: Node, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        builder.names[Ref(node.name, i)] = name


def _name(builder: Builder, node: Node, since: int, made: Sequence[str]) -> None:
    """Calls what a node makes as the node is called, where it did not only pass on what it read."""
    own = {name for one in builder.operators[since:] for name in one.outputs}
    for i, name in enumerate(made):
        ref = Ref(node.name, i)
        if name in own:
            builder.rename(since, name, str(ref))
        builder.names[ref] = builder.feed.made(builder, ref, str(ref) if name in own else name)


def _outputs(builder: Builder) -> dict[str, Tensor]:
    """The network's outputs; one that is an input, a constant, or there twice gets a name of its own."""
    made = {name for one in builder.operators for name in one.outputs}
    found: dict[str, Tensor] = {}
    for head in builder.model.graph.heads:
        name = builder.names[plain(head)]
        if name in found or name not in made:
            name = _copied(builder, name, str(head))
        found[name] = builder.tensors[plain(head)]
    return found


def _copied(builder: Builder, tensor: str, head: str) -> str:
    """A copy of ``tensor`` that is called ``head``, if nothing else is."""
    taken = {*builder.constants, *builder.model.inputs, *(name for one in builder.operators for name in one.outputs)}
    (made,) = builder.emit(head, "Identity", [tensor], {})
    if head in taken:
        return made
    builder.rename(len(builder.operators) - 1, made, head)
    return head


def _listed(refusals: Sequence[Refusal]) -> str:
    """Every operator and reason, each with its nodes, then what is allowed."""
    alike: dict[Refusal, list[str]] = {}
    for one in refusals:
        alike.setdefault(replace(one, node=""), []).append(one.node)
    shown = "; ".join(f"{_names(nodes)} {about}" for about, nodes in alike.items())
    count = "1 operator" if len(refusals) == 1 else f"{len(refusals)} operators"
    remedies = [text for why, text in REMEDIES.items() if any(one.why is why for one in refusals)]
    allowed = f"; allowed: {', '.join(remedies)}" if remedies else ""
    return f"{count} cannot be written as ONNX: {shown}{allowed}"


def _names(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
    return f"{', '.join(map(repr, nodes[:SHOWN]))}{more}"
