"""Where mxq quantizes for oneDNN: what its plan and the types of its kernels say, on the network as it trains.

====================================  ==============================================================================
tensor of the `QuantizedNetwork`      quantizer
====================================  ==============================================================================
written in a range of its own         of what the node of that name makes, for all readers
quantized from float                  for the int8 operators that read it alone
an average                            with the parameters of what is averaged: the kernel rounds to its codes
joined of several kinds of codes      once more, in files for other runtimes
made u8 in s8 memory (``doubled``)    7 bits: the kernel leaves codes 0..127
shifted until it is u8                a zero point: the shift is that many steps
rectified by a BatchNorm              unsigned: the lowest code is zero
added to within a convolution         none: it is a float there (`mxq.qat.fused_sums`)
====================================  ==============================================================================

Fewer bits than 8 stand at the same places; no kernel has them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.passes.fold_bn import FOLDABLE
from mxq.qat.algorithms import Site
from mxq.qat.config import QatConfig
from mxq.qat.fused_sums import unrounded_summands
from mxq.qat.layers import moves
from mxq.qat.placement import CONCAT, weights, with_edges
from mxq.qat.quantizer import Quantizer, activation_name, joined
from mxq.quant import MXNET, QuantizedNetwork, QuantSpec
from mxq.quant.model import HALVED
from mxq.quant.spec import BY_DTYPE

AFFINE8: Final = QuantSpec(signed=False, symmetric=False)


@dataclass(frozen=True)
class KernelPlacement:
    """What stands where.

    Attributes:
        quantizers: the places.
        missing: tensors and weights of the int8 network that have no place in the one that trains.
    """

    quantizers: tuple[Quantizer, ...]
    missing: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        if not self.missing:
            return ()
        listed = ", ".join(map(repr, self.missing[:3]))
        return (f"{len(self.missing)} tensors of the int8 network do not exist while it trains, such as {listed}",)


def placed_as_planned(model: Model, network: QuantizedNetwork, config: QatConfig) -> KernelPlacement:
    """The quantizers of a network for oneDNN.

    Args:
        model: float, as it is to be trained.
        network: what is decided of the same network, constrained.
        config: the settings.
    """
    placer = _Placer(model.graph, network, config)
    placer.walk()
    found = [node for node in model.graph.operators if node.op in FOLDABLE and node.name in placer.layers]
    own = [node for node in found if node.inputs[1].name in model.args]
    every = (*joined(placer.found.values(), placer.groups), *weights(model.graph, own, config))
    names = {node.name for node in own}
    return KernelPlacement(with_edges(model, names, every, config.edges), tuple(placer.missing))


def origin(graph: Graph, ref: Ref, known: Container[str]) -> Ref:
    """The tensor that has the values of ``ref``, one of ``known`` nodes; ``ref`` itself where there is none.

    A fully connected layer of a quantized network may have its Flatten as an operator of its own.
    """
    found = ref
    while found.name not in known:
        node = graph[found.name]
        if len(node.inputs) != 1 or not moves(node):
            return ref
        found = node.inputs[0]
    return found


@dataclass
class _Placer:
    graph: Graph
    network: QuantizedNetwork
    config: QatConfig
    found: dict[str, Quantizer] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @cached_property
    def owners(self) -> Mapping[str, frozenset[str]]:
        """Node that trains -> the operators of the quantized network that do its work, or read it for it."""
        stands = {origin: node.name for node in self.network.fused.graph.operators for origin in node.origins}
        found: dict[str, frozenset[str]] = {}
        for node in reversed(self.graph.operators):
            readers = (found[reader.name] for reader in self.graph.consumers[node.name])
            found[node.name] = frozenset({stands[node.name]}) if node.name in stands else frozenset().union(*readers)
        return found

    @cached_property
    def layers(self) -> frozenset[str]:
        """Nodes that train and are int8 layers, or parts of such."""
        return frozenset(name for name, found in self.owners.items() if found & self.network.operations.keys())

    def walk(self) -> None:
        fused, quantizers = self.network.fused.graph, dict[Ref, str]()
        floats = unrounded_summands(self.network) if self.config.row.adds_unrounded else frozenset()
        for name, operation in self.network.operations.items():
            node = fused[name]
            if node.out in floats:
                continue
            if operation.ranged and not operation.writes_float:
                quantizers[node.out] = self._made(node)
            elif not (operation.passes_on or operation.writes_float):
                self._carried(node, quantizers)
        for ref, dtype in self.network.conversions:
            if ref not in self.network.made:
                self._read(ref, dtype)

    def _made(self, node: Node) -> str:
        """The quantizer of what an int8 operator writes in a range of its own."""
        tensor = node.note.unshifted or node.name
        if tensor not in self.graph:
            self.missing.append(tensor)
            return ""
        readers = tuple(reader.name for reader in self.graph.consumers[tensor])
        return self._add(Ref(tensor), readers, self._made_spec(node), is_output=tensor in self.graph.head_names)

    def _made_spec(self, node: Node) -> QuantSpec:
        record = self.network.made[node.out]
        if node.note.unshifted:
            return AFFINE8
        if record.widened > 1:
            return HALVED
        return self._spec("uint8" if record.offset else record.dtype)

    def _spec(self, dtype: str) -> QuantSpec:
        """The kind of codes that are called ``dtype``, which kernels but oneDNN's do not tell apart."""
        row = self.config.row
        return BY_DTYPE[dtype] if row.from_kernels else row.activation()

    def _carried(self, node: Node, quantizers: dict[Ref, str]) -> None:
        """What an int8 operator makes in the range of what it reads: rounded again where it is an average."""
        sources = [quantizers.get(ref, "") or self._conversion(ref) for ref in node.inputs]
        known = [name for name in sources if name]
        if node.op == CONCAT and self._is_aligned(node):
            self.groups.append(known)
        if known:
            quantizers[node.out] = known[0]
        if known and node.name in self.graph and self._rounds_again(node):
            quantizers[node.out] = added = self._again(node, self.found[known[0]].spec)
            self.groups += [[known[0], added]] if node.op != CONCAT else []

    def _rounds_again(self, node: Node) -> bool:
        """Whether an operator makes other codes of codes: an average, or what is joined of several kinds."""
        if node.op == CONCAT:
            return not (self.config.row.from_kernels or self._is_aligned(node))
        return node.op == "Pooling" and node.attrs.get("pool_type", "max") != "max"

    def _again(self, node: Node, spec: QuantSpec) -> str:
        readers = tuple(reader.name for reader in self.graph.consumers[node.name])
        return self._add(node.out, readers, spec, is_output=node.name in self.graph.head_names)

    def _is_aligned(self, node: Node) -> bool:
        """Whether all that a Concat joins has one range; of u8 tensors records have its upper part."""
        records = (self.network.stored(ref) for ref in node.inputs)
        return len({record.max for record in records if record is not None}) == 1

    def _conversion(self, ref: Ref) -> str:
        """The quantizer of a tensor that is quantized from float."""
        dtype = next((dtype for known, dtype in self.network.conversions if known == ref), "")
        return self._read(ref, dtype) if dtype and ref not in self.network.made else ""

    def _read(self, ref: Ref, dtype: str) -> str:
        """The quantizer of a float tensor for the int8 operators that read it as a type."""
        spec, own = self._spec(dtype), origin(self.network.fused.graph, ref, self.graph.by_name)
        if own.name not in self.graph:
            self.missing.append(str(ref))
            return ""
        wanted = {n for n, o in self.network.operations.items() if self._reads(n, ref, dtype)}
        readers = [r.name for r in self.graph.consumers[own.name] if self.owners[r.name] & wanted and own in r.inputs]
        known = next((q for q in self.found.values() if q.tensor == own and q.spec.dtype == spec.dtype), None)
        if known is None:
            return self._add(own, tuple(readers), spec)
        self.found[known.name] = replace(known, readers=tuple(dict.fromkeys((*known.readers, *readers))))
        return known.name

    def _reads(self, name: str, ref: Ref, dtype: str) -> bool:
        operation, node = self.network.operations[name], self.network.fused.graph[name]
        reader = self.network.fused.graph[operation.norm] if operation.norm else node
        return any(reader.inputs[place] == ref and found == dtype for place, found in operation.reads.items())

    def _add(self, ref: Ref, readers: tuple[str, ...], spec: QuantSpec, *, is_output: bool = False) -> str:
        name = activation_name(self.graph, ref, self.found)
        bits = spec.bits if self.config.bits_a == 8 else self.config.bits_a
        site = Site(replace(spec, bits=bits), "activation", MXNET.name if spec.symmetric else "")
        self.found[name] = Quantizer(name, ref, readers, site, is_output=is_output)
        return name
