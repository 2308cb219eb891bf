"""Checks of a graph, node by node, before MXNet sees it: the operator, its attributes, its inputs, what it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from mxq.errors import FormatError, GraphError, MxqError
from mxq.graph.annotation_text import INPUT_SHAPE, attributes
from mxq.graph.ir import Graph, Node, Ref
from mxq.operators.limits import INT32, NEVER_NONE, PARTS, REQUIRED, SPLITS, Limit, is_sound, is_to_run, limit_of
from mxq.operators.signature import Ports, Registry, Signature, integers
from mxq.operators.subgraphs import SUBGRAPHS, ports_of_subgraph

VERSION = "mxnet_version"
AUXILIARY_STATES_SINCE = 900
"""``mxnet_version`` from which a file has all inputs; MXNet adds the auxiliary states that an older one lacks."""

LONGEST = 1000
"""Letters of a message: names and attributes of a damaged file may be of any length."""

_HIDDEN = ("ctx_group", "lr_mult", "wd_mult", "force_mirroring", "mirror_stage")
"""Attributes of training that MXNet lets stand at any node, alone or after an input's name ("weight_lr_mult")."""

_OF_FILES = ("arg:", "aux:")
"""What stands before the names of parameters in files."""

_OF_VARIABLES: Mapping[str, tuple[str, Limit]] = {
    "__shape__": ("Shape", Limit(-1, INT32)),
    "__dtype__": ("int", Limit(-1, 12)),
    "__storage_type__": ("int", Limit(-1, 2)),
    INPUT_SHAPE: ("Shape", Limit(1, INT32)),
}


def check_graph(graph: Graph, registry: Registry, source: str = "the symbol") -> None:
    """Every node is one that MXNet can be given.

    Args:
        graph: as it was read; also one of an old release, which MXNet will complete.
        registry: MXNet's operators.
        source: how to call the graph in messages, e.g. the file's name.

    Raises:
        FormatError: an operator or attribute is none that MXNet has, or a value is outside of what it can take.
        GraphError: an operator has too few or too many inputs, or an output is read that there is not.
    """
    with _named(source):
        _check(graph, registry, old=_version(graph) < AUXILIARY_STATES_SINCE)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Says in an error where it is."""
    try:
        yield
    except MxqError as error:
        raise type(error)(f"{where}: {error}"[:LONGEST]) from None


def _version(graph: Graph) -> int:
    """The release that wrote ``graph``, 10901 for 1.9.1; MXNet takes a graph without one for one of its first."""
    written = graph.attrs.get(VERSION, ["int", 0])
    if not (isinstance(written, list) and len(written) == 2 and written[0] == "int" and type(written[1]) is int):
        raise FormatError(f'{VERSION} is {written!r}; allowed: ["int", 10901] and such')
    return int(written[1])


def _check(graph: Graph, registry: Registry, *, old: bool = False) -> None:
    if not graph.heads:
        raise GraphError("the graph has no outputs (heads)")
    outputs: dict[str, int] = {}
    for node in graph.nodes:
        if node.name.startswith(_OF_FILES):
            allowed = " or ".join(map(repr, _OF_FILES))
            raise GraphError(
                f"a node is named {node.name!r}; allowed: names that do not begin with {allowed}, which MXNet takes "
                "off the names of parameters"
            )
        for ref in node.inputs:
            _check_output(ref, outputs, f"node {node.name!r} ({node.op}) reads")
        outputs[node.name] = _check_variable(node) if node.is_variable else _check_operator(node, registry, old=old)
    for head in graph.heads:
        _check_output(head, outputs, "the graph gives")


def _check_output(ref: Ref, outputs: Mapping[str, int], who: str) -> None:
    if not 0 <= ref.output < outputs[ref.name]:
        raise GraphError(f"{who} output {ref.output} of {ref.name!r}, which has {outputs[ref.name]}")


def _check_variable(node: Node) -> int:
    """The number of outputs of a variable."""
    if not node.name:
        raise GraphError("a variable has no name; MXNet cannot bind it")
    if node.inputs or node.subgraphs:
        raise GraphError(f"the variable {node.name!r} has inputs or subgraphs; allowed: none")
    written = attributes(node)
    for name, (kind, limit) in _OF_VARIABLES.items():
        if name in written:
            _check_value(node, name, written[name], kind, limit)
    return 1


def _check_operator(node: Node, registry: Registry, *, old: bool) -> int:
    """The number of outputs of an operator."""
    signature = registry.find(node.op)
    if signature is None:
        raise FormatError(f"node {node.name!r}: this MXNet has no operator {node.op!r}")
    if not is_to_run(node.op):
        raise FormatError(f"node {node.name!r}: {node.op!r} is no operator of a network to be run, but of training")
    if not is_sound(node.op):
        raise FormatError(f"node {node.name!r}: MXNet's {node.op!r} ends the process or hangs on some inputs")
    _check_attributes(node, signature)
    ports = _ports(node, registry)
    found, wanted = len(node.inputs), len(ports.inputs)
    if found != wanted and not (old and 0 < found < wanted):
        raise GraphError(
            f"node {node.name!r} ({node.op}) has {found} inputs; allowed, with its attributes: {wanted}"
            + (f" ({', '.join(ports.inputs[:8])}{', ...' if wanted > 8 else ''})" if wanted else "")
        )
    if found < wanted:
        _check_hidden(node, ports)
    return ports.outputs


def _ports(node: Node, registry: Registry) -> Ports:
    if node.op in SUBGRAPHS:
        for sub in node.subgraphs:
            with _named(f"in node {node.name!r} ({node.op})"):
                _check(sub, registry)
        return ports_of_subgraph(node)
    if node.subgraphs:
        raise GraphError(f"node {node.name!r} ({node.op}) has {len(node.subgraphs)} subgraphs; allowed: none")
    try:
        return registry.ports(node.op, {k: v for k, v in node.attrs.items() if not _is_hidden(k)})
    except FormatError as error:
        raise FormatError(f"node {node.name!r} ({node.op}): {error}") from None


def _is_hidden(attr: str) -> bool:
    return attr.startswith("__") or any(attr.startswith(key) or attr.endswith(key) for key in _HIDDEN)


def _check_hidden(node: Node, ports: Ports) -> None:
    """MXNet looks for the input that such an attribute names, also among those that are missing."""
    absent = ports.inputs[len(node.inputs) :]
    for attr in node.attrs:
        if any(attr.endswith(key) and attr.startswith(name) for key in _HIDDEN for name in absent):
            raise GraphError(f"node {node.name!r} ({node.op}): {attr!r} is of an input that the node does not have")


def _check_attributes(node: Node, signature: Signature) -> None:
    for name in REQUIRED.get(node.op, ()):
        if node.attrs.get(name, "None") == "None":
            raise FormatError(f"node {node.name!r} ({node.op}): {name} is missing; MXNet cannot run it without")
    parts = PARTS.get(node.op)
    if parts and not node.ints(parts[0]) and node.number(parts[1], 0) <= 0:
        raise FormatError(f"node {node.name!r} ({node.op}): neither {' nor '.join(parts)} says how many outputs")
    for name, text in node.attrs.items():
        kind = signature.attributes.get(name)
        if kind is not None:
            _check_value(node, name, text, kind, limit_of(node.op, name))
    _check_splits(node)


def _check_splits(node: Node) -> None:
    attr, split = SPLITS.get(node.op, ("shape", 0))
    codes = node.ints(attr) if node.op in SPLITS else ()
    if any(code == split and 0 in codes[i + 1 : i + 3] for i, code in enumerate(codes)):
        raise FormatError(
            f"node {node.name!r} ({node.op}): {attr} is {node.attrs[attr]!r}; allowed: sizes above 0 behind {split}"
        )


def _check_value(node: Node, name: str, text: str, kind: str, limit: Limit) -> None:
    where = f"node {node.name!r} ({node.op}): {name} is {text[:60]!r}"
    if name in NEVER_NONE and text.strip() == "None":
        raise FormatError(f"{where}; allowed: True or False")
    try:
        found = integers(kind, text)
    except ValueError as error:
        raise FormatError(f"{where}; allowed: {error}") from None
    if found is None:
        return
    if len(found) < limit.least:
        raise FormatError(f"{where}; allowed: {limit.least} integers or more")
    if any(not limit.low <= value <= limit.high for value in found):
        raise FormatError(f"{where}; allowed: {limit.low} to {limit.high}")
