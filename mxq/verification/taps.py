"""Which tensors both networks compute, and the part of the float network that makes one of them out of others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from mxq.backends.mxnet.written import DEQUANTIZE, QUANTIZE, REQUANTIZE, is_coded, is_int8
from mxq.graph.ir import VARIABLE, Array, Graph, Model, Node, Ref
from mxq.verification.stored import Counterparts, StoredTensor

FED: Final = "input"
"""The op of a tap that is an input of integers."""


@dataclass(frozen=True, slots=True)
class Tap:
    """One tensor in both models: where the float model has it and how the int8 model holds it.

    Attributes:
        name: the float tensor's; of what quantizes a float tensor, the quantizer's.
        op: what makes it; for a fused operator the chain, such as "Convolution+Activation".
        float: in the float model.
        stored: where and how the int8 model has it.
        reads: the nearest tensors before it that both models have, and how the int8 model holds each.
    """

    name: str
    op: str
    float: Ref
    stored: StoredTensor
    reads: Mapping[Ref, StoredTensor] = field(default_factory=dict)

    @property
    def int8(self) -> tuple[Ref, ...]:
        """Its tensors in the int8 model: one float, or values, minimum, maximum."""
        return self.stored.refs


def corresponding(float_model: Model, int8_model: Model) -> tuple[Tap, ...]:
    """The tensors that both models compute, in order of the float graph; each is followed by its quantizers."""
    parts = Counterparts(float_model, int8_model)
    holders: dict[str, list[Node]] = {}
    for node in int8_model.graph:
        tensor = parts.float_of(node.out)
        if tensor is not None:
            holders.setdefault(tensor.name, []).append(node)
    known = (node for node in float_model.graph if node.name in holders)
    return tuple(tap for node in known for tap in _taps(parts, node, holders[node.name]))


def _taps(parts: Counterparts, node: Node, holders: Collection[Node]) -> Iterator[Tap]:
    """The taps of the float network's ``node``, of which ``holders`` of the int8 network hold the tensor."""
    own = _best([h for h in holders if h.op != QUANTIZE])
    if own is not None and not (node.is_variable and _is_plain(own)):
        op = _chain(own) or (node.op if not node.is_variable else FED if own.is_variable else own.op)
        yield Tap(node.name, op, node.out, parts.stored(own.out), parts.around(own, node.out))
    for quantizer in holders:
        if quantizer.op == QUANTIZE:
            read = parts.around(quantizer, None)
            yield Tap(quantizer.name, quantizer.op, node.out, parts.stored(quantizer.out), read)


def _best(holders: Collection[Node]) -> Node | None:
    """What int8 readers read before what float ones do; what is requantized rather than its 32-bit source."""

    def rank(node: Node) -> tuple[bool, bool, bool]:
        return not is_coded(node), node.op != REQUANTIZE, not is_int8(node)

    named = [h for h in holders if h.op != DEQUANTIZE] or list(holders)
    return min(named, key=rank, default=None)


def _is_plain(node: Node) -> bool:
    """Whether an input's holder is that input itself, in float."""
    return node.is_variable and node.input_dtype == "float32"


def _chain(node: Node) -> str:
    """The op types inside a fused node, "Convolution+Activation"; empty for others."""
    return "+".join(inner.op for graph in node.subgraphs for inner in graph.operators)


@dataclass(frozen=True)
class Part:
    """A piece of a network: the ``model``, and which tensor of the whole to feed as which of its inputs."""

    model: Model
    slots: Mapping[Ref, str]

    def feeds(self, values: Mapping[Ref, Array]) -> dict[str, Array]:
        """What to feed it, of the whole network's tensors ``values``."""
        return {slot: values[ref] for ref, slot in self.slots.items()}


def cut(model: Model, target: Ref, edges: Collection[Ref]) -> Part | None:
    """The part of ``model`` that makes ``target`` out of the tensors ``edges``, with the parameters of ``model``.

    Returns:
        None where ``target`` depends on an input of the model in another way than through ``edges``, or on no edge.
    """
    graph, needed = model.graph, {target.name}
    slots: dict[Ref, str] = {}
    for node in reversed(graph.nodes):
        if node.name not in needed:
            continue
        if node.name in model.inputs:
            return None
        for ref in node.inputs:
            if ref in edges:
                slots[ref] = graph.unused(f"{ref.name}_{ref.output}_fed")
            else:
                needed.add(ref.name)
    if not slots:
        return None
    inside = [n for n in graph if n.name in needed]
    moved = [replace(n, inputs=tuple(Ref(slots[r]) if r in slots else r for r in n.inputs), label="") for n in inside]
    fed = [Node(slot, VARIABLE) for slot in slots.values()]
    args, auxs = ({k: v for k, v in table.items() if k in needed} for table in (model.args, model.auxs))
    return Part(Model(Graph((*fed, *moved), (target,), graph.attrs), args, auxs), slots)
