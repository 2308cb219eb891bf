"""Which tensors have to be scaled alike, and which operators write and read them: see `mxq.weights.equalize`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mxq.backends import groups_of, layer_of, summand_of
from mxq.graph.ir import Model, Node
from mxq.graph.traits import traits_of

FIRST, LAST = 1, -1
"""The axes that channels stand on: after the examples, or at the end."""


@dataclass
class Family:
    """Tensors that must be scaled alike, with the layers and BatchNorms that write and read them.

    Attributes:
        axes: where operators take channels to be; a tensor of two axes has one for both.
        cap: where a clip bounds the tensors.
        blocked: why they cannot be scaled; empty where they can.
    """

    tensors: set[str] = field(default_factory=set)
    writers: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    axes: set[int] = field(default_factory=set)
    cap: float = np.inf
    blocked: str = ""

    @property
    def axis(self) -> int:
        """Where its channels are."""
        return LAST if self.axes == {LAST} else FIRST

    def join(self, other: Family) -> None:
        """Takes over all of ``other``."""
        self.tensors |= other.tensors
        self.writers += other.writers
        self.readers += other.readers
        self.axes |= other.axes
        self.cap = min(self.cap, other.cap)
        self.blocked = self.blocked or other.blocked


def families(model: Model) -> list[Family]:
    """All families of a fused float ``model``, in graph order, blocked ones too."""
    table: dict[str, Family] = {}
    for node in model.graph:
        if model.param(node.name) is None:
            table[node.name] = Family({node.name}, blocked="" if not node.is_variable else "it is an input")
    for node in model.graph.operators:
        _relate(model, node, table)
    for head in model.graph.heads:
        table[head.name].blocked = "it is an output of the network"
    return list({id(f): f for f in table.values()}.values())


def _relate(model: Model, node: Node, table: dict[str, Family]) -> None:
    """What ``node`` says of the families of its inputs and output."""
    data = [r.name for r in node.inputs if model.param(r.name) is None]
    layer = _absorber(node)
    if layer is not None and (node.inputs[0].name not in data or (node.flag("with_sum") and len(data) < 2)):
        for name in (*data, node.name):
            table[name].blocked = f"{node.name!r} reads a constant"
        return
    if layer is None:
        if traits_of(node).carries_scale and len(data) == len(node.inputs):
            for name in data:
                _join(table, node.name, name)
            if not traits_of(node).pointwise:
                table[node.name].axes.add(FIRST)
            return
        for name in (*data, node.name):
            table[name].blocked = table[name].blocked or f"{node.op} does not commute with scales"
        return
    refusal = _refusal(model, node, layer)
    for name in (*data, node.name) if refusal else ():
        table[name].blocked = refusal
    table[node.inputs[0].name].readers.append(node)
    table[node.name].writers.append(node)
    read, written = _axes(layer)
    table[node.inputs[0].name].axes |= read
    table[node.name].axes |= written
    if summand := summand_of(node):
        _join(table, node.name, summand.name)
    _after(node, layer, table[node.name])


def _absorber(node: Node) -> Node | None:
    """What takes scales into its parameters: the layer that ``node`` holds, or itself, a BatchNorm."""
    return node if is_norm(node) else layer_of(node)


def is_norm(node: Node) -> bool:
    """Whether ``node`` is a BatchNorm that could not be folded."""
    return node.op == "BatchNorm"


def _refusal(model: Model, node: Node, layer: Node) -> str:
    """Why what ``node`` reads and makes cannot be scaled; empty where it can."""
    own = [r.name for r in node.inputs if model.param(r.name) is not None]
    count = 4 if is_norm(layer) else 1 if layer.flag("no_bias") else 2
    if any(len(model.graph.consumers[name]) > 1 for name in own) or len(set(own)) != count:
        return f"a parameter of {node.name!r} is shared"
    if is_norm(layer):
        return _unusual(layer)
    groups = groups_of(layer)
    if groups > 1 and not (model.args[own[0]].shape[1] == 1 and groups == len(model.args[own[0]])):
        return f"{node.name!r} is a grouped convolution"
    return "" if layer.is_channels_first else f"{node.name!r} has layout {layer.attrs['layout']}"


def _axes(layer: Node) -> tuple[set[int], set[int]]:
    """Where the channels of what ``layer`` reads and writes are."""
    if layer.op != "FullyConnected":
        return {FIRST}, {FIRST}
    return ({FIRST}, set()) if layer.flag("flatten", default=True) else ({LAST}, {LAST})


def _unusual(norm: Node) -> str:
    """Why a BatchNorm takes no scales; empty where it does."""
    if norm.flag("fix_gamma", default=True):
        return f"the gamma of {norm.name!r} is fixed"
    if norm.number("axis", 1) != 1:
        return f"the channels of {norm.name!r} are not axis 1"
    if norm.flag("output_mean_var"):
        return f"{norm.name!r} gives its mean and variance too"
    return ""


def _after(node: Node, layer: Node, family: Family) -> None:
    """What the operators fused after ``layer`` say of the output."""
    for inner in node.subgraphs[0].operators if node.subgraphs else ():
        if inner is layer or traits_of(inner).carries_scale:
            continue
        if inner.op == "clip" and inner.number("a_min", -1) == 0:
            family.cap = min(family.cap, inner.number("a_max", np.inf))
            continue
        family.blocked = family.blocked or f"{inner.op} does not commute with scales"


def _join(table: dict[str, Family], a: str, b: str) -> None:
    first, second = table[a], table[b]
    if first is not second:
        first.join(second)
        for name in second.tensors:
            table[name] = first
