"""Operators that carry graphs of their own: the fused ones of oneDNN, and loops and conditions.

Their parsers read the subgraph without a look at whether it is one of theirs, so MXNet is not asked; what is said here
follows ``mkldnn_{conv,fc,transformer}.cc`` of ``src/operator/subgraph/mkldnn``, and ``src/operator/control_flow.cc``,
in MXNet 1.9.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from mxq.errors import GraphError
from mxq.graph.ir import Graph, Node
from mxq.graph.traits import operators
from mxq.operators.signature import Ports

_ACTIVATIONS = ("Activation", "LeakyReLU", "clip")
_SUMS = operators(lambda traits: traits.is_same_sum)


@dataclass(frozen=True)
class Fused:
    """A fused operator: its ``core``, and what may follow it, as (operators, attributes of which each admits one)."""

    core: str
    after: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    ports: Callable[[Node, int], Ports]
    """From the node and the number of its subgraph's variables."""


def _of_conv(node: Node, variables: int) -> Ports:
    if not node.flag("quantized"):
        return Ports(("",) * variables, 1)
    return Ports(("",) * (variables + 2 + 2 * node.flag("with_sum")), 3)


def _of_fc(node: Node, variables: int) -> Ports:
    if not node.flag("quantized"):
        return Ports(("",) * variables, 1)
    ranges = 2 if node.flag("channel_wise_quantize") else 2 * variables
    return Ports(("",) * (variables + ranges), 1 if node.flag("enable_float_output") else 3)


def _of_attention(node: Node, variables: int) -> Ports:
    if not node.flag("quantized"):
        return Ports(("",) * variables, 1)
    return Ports(("",) * (3 * variables), 1 if node.flag("enable_float_output") else 3)


_FUSED: Final[Mapping[str, Fused]] = MappingProxyType(
    {
        "_sg_mkldnn_conv": Fused(
            "Convolution",
            (
                (("BatchNorm",), ("with_bn",)),
                (_SUMS, ("with_sum",)),
                (_ACTIVATIONS, ("with_act", "with_relu", "with_postsum_act", "with_postsum_relu")),
            ),
            _of_conv,
        ),
        "_sg_mkldnn_fully_connected": Fused(
            "FullyConnected",
            (((*_ACTIVATIONS, "square", "sqrt", "exp", "abs"), ("with_eltwise", "with_relu")),),
            _of_fc,
        ),
        "_sg_mkldnn_selfatt_qk": Fused("_contrib_interleaved_matmul_selfatt_qk", (), _of_attention),
        "_sg_mkldnn_selfatt_valatt": Fused("_contrib_interleaved_matmul_selfatt_valatt", (), _of_attention),
    }
)


def _ports_of_fused(node: Node) -> Ports:
    fused, graph = _FUSED[node.op], _the_subgraph(node)
    operators, variables = graph.operators, graph.variables
    cores = [n for n in operators if n.op == fused.core]
    known = {op for ops, _ in fused.after for op in ops} | {fused.core}
    strange = [n for n in operators if n.op not in known]
    if len(cores) != 1 or strange:
        found = ", ".join(n.op for n in operators[:6]) or "no operator"
        raise _broken(node, f"its subgraph holds {found}; allowed: one {fused.core} and what is fused with it")
    for ops, flags in fused.after:
        count, admitted = sum(n.op in ops for n in operators), sum(node.flag(f) for f in flags)
        if count != admitted:
            raise _broken(node, f"its subgraph holds {count} {ops[0]}; {', '.join(flags)} say {admitted}")
    _check_chain(node, graph, cores[0])
    return fused.ports(node, len(variables))


def _check_chain(node: Node, graph: Graph, core: Node) -> None:
    """The core reads the first variables in order, every later operator the one before, and the last is the result."""
    names = [v.name for v in graph.variables]
    if [r.name for r in core.inputs] != names[: len(core.inputs)]:
        raise _broken(node, f"{core.name!r} in it does not read the subgraph's first variables in order")
    before = ""
    for inner in graph.operators:
        if before and inner.inputs[0].name != before:
            raise _broken(node, f"{inner.name!r} in it does not read {before!r}, the operator before it")
        before = inner.name
    reads = [r.name for n in graph.operators for r in n.inputs if graph[r.name].is_variable]
    if sorted(reads) != sorted(names) or [h.name for h in graph.heads] != [before]:
        raise _broken(node, "its subgraph has variables that are read twice or never, or more than one output")


def _the_subgraph(node: Node) -> Graph:
    if len(node.subgraphs) != 1:
        raise _broken(node, f"it has {len(node.subgraphs)} subgraphs; allowed: 1")
    return node.subgraphs[0]


def _broken(node: Node, what: str) -> GraphError:
    return GraphError(f"node {node.name!r} ({node.op}): {what}")


# ---- loops and conditions --------------------------------------------------------------------------------------


def _ports_of_loop(node: Node) -> Ports:
    """``_foreach``: the body's variables are slices of data, states, and what stays the same."""
    body = _the_subgraph(node)
    given = _one(node, "num_args") - 1
    places = [node.ints(a) for a in ("in_data_locs", "in_state_locs", "remain_locs")]
    _check_places(node, body, [i for some in places for i in some])
    outputs, data = _one(node, "num_outputs"), _one(node, "num_out_data")
    if outputs != len(body.heads) or outputs - data != len(places[1]) or data < 0 or not places[0]:
        raise _broken(node, f"num_outputs {outputs} and num_out_data {data} do not fit its subgraph")
    if given != len(body.variables):
        raise _broken(node, f"num_args is {given + 1}; its subgraph asks for {len(body.variables) + 1}")
    return Ports(("",) * given, outputs)


def _ports_of_while(node: Node) -> Ports:
    return _ports_of_branches(node, 2, ("cond_input_locs", "func_input_locs"))


def _ports_of_condition(node: Node) -> Ports:
    return _ports_of_branches(node, 3, ("cond_input_locs", "then_input_locs", "else_input_locs"))


def _ports_of_branches(node: Node, count: int, attrs: tuple[str, ...]) -> Ports:
    """``_while_loop`` and ``_cond``: each subgraph's variables are inputs of the node, by their places."""
    if len(node.subgraphs) != count:
        raise _broken(node, f"it has {len(node.subgraphs)} subgraphs; allowed: {count}")
    given = _one(node, "num_args") - count
    for sub, attr in zip(node.subgraphs, attrs, strict=True):
        places = node.ints(attr)
        if len(places) != len(sub.variables) or any(not 0 <= i < given for i in places):
            raise _broken(node, f"{attr} is {node.attrs.get(attr)!r}; its subgraph has {len(sub.variables)} variables")
    outputs = _one(node, "num_outputs")
    if len(node.subgraphs[0].heads) != 1 or any(len(s.heads) != outputs for s in node.subgraphs[1:]):
        raise _broken(node, f"num_outputs {outputs} does not fit its subgraphs")
    if node.op == "_while_loop":
        _check_loop_variables(node, outputs)
    return Ports(("",) * given, outputs)


def _check_loop_variables(node: Node, outputs: int) -> None:
    places, data = node.ints("func_var_locs"), _one(node, "num_out_data")
    variables = len(node.subgraphs[1].variables)
    if len(places) != outputs - data or data < 0 or any(not 0 <= i < variables for i in places):
        raise _broken(node, f"func_var_locs is {node.attrs.get('func_var_locs')!r}, which does not fit its subgraph")


def _check_places(node: Node, body: Graph, places: list[int]) -> None:
    if sorted(places) != list(range(len(body.variables))):
        raise _broken(node, f"its locations {places} are not those of its subgraph's {len(body.variables)} variables")


def _one(node: Node, attr: str) -> int:
    found = node.ints(attr)
    if len(found) != 1:
        raise _broken(node, f"{attr} is {node.attrs.get(attr)!r}; allowed: an integer")
    return found[0]


SUBGRAPHS: Final[Mapping[str, Callable[[Node], Ports]]] = MappingProxyType(
    {
        **dict.fromkeys(_FUSED, _ports_of_fused),
        "_foreach": _ports_of_loop,
        "_while_loop": _ports_of_while,
        "_cond": _ports_of_condition,
    }
)


def ports_of_subgraph(node: Node) -> Ports:
    """Inputs and outputs of a node of `SUBGRAPHS`, whose subgraphs are checked already.

    Raises:
        GraphError: the attributes do not fit the subgraphs.
    """
    return SUBGRAPHS[node.op](node)
