"""Where a network is fake-quantized: exactly where a library would quantize it.

For oneDNN that is what mxq's own plan says (`mxq.qat.kernels_placement`); for others the block graph of the hardware's
row does (MQBench, arXiv:2111.03759, section 3.3, figures 4, 15 and 16):

1. what each layer reads, for each on its own;
2. every tensor that a layer, sum, pooling or Concat reads, once for all of them, but one input of each sum: the
   convolution that makes it alone for this sum, which then adds in 32 bits;
3. as 2, and all inputs of sums.

What a Concat joins shares its parameters, where the row says so. An operator that only moves values (Flatten, maximum
pooling, ...) gives codes where it reads codes, so that what it makes is not quantized again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from mxq.graph.ir import Graph, Model, Node, Ref
from mxq.graph.layers import edges
from mxq.graph.traits import Arithmetic, traits_of
from mxq.passes.fold_bn import FOLDABLE
from mxq.qat.algorithms import Site
from mxq.qat.config import QatConfig
from mxq.qat.layers import layers, moves, read_by
from mxq.qat.quantizer import Quantizer, activation_name, joined
from mxq.quant.spec import MOST_BITS

CONCAT: Final = "Concat"


def placed(model: Model, config: QatConfig) -> tuple[Quantizer, ...]:
    """The quantizers of a network for a row of hardware, by its block graph; specs are settled when ranges are known.

    Args:
        model: float, operators by their own names.
        config: the settings.

    Raises:
        ConfigError: a pattern of ``exclude_layers`` selects nothing.
    """
    found = layers(model, config.exclude_layers)
    names = {node.name for node in found}
    placer = _Placer(model, config, names)
    placer.walk()
    activations = joined(placer.found.values(), placer.groups) if config.row.joins_concat else placer.found.values()
    return with_edges(model, names, (*activations, *weights(model.graph, found, config)), config.edges)


def weights(graph: Graph, found: Sequence[Node], config: QatConfig) -> Iterator[Quantizer]:
    """Of the weight of each layer; layers that share one share its quantizer."""
    readers: dict[Ref, list[str]] = {}
    for node in found:
        readers.setdefault(node.inputs[1], []).append(node.name)
    spec, rule = config.row.weight(config.bits_w), ""
    if config.row.from_kernels:  # which hold -128; no kernel says what becomes of the last code of fewer bits
        spec, rule = replace(spec, narrow=spec.bits < MOST_BITS), config.row.scheme(spec).name
    site = Site(spec, "weight", rule)
    for ref, names in readers.items():
        yield Quantizer(graph.unused(f"{ref.name}_fq"), ref, tuple(names), site)


def with_edges(
    model: Model, names: Collection[str], quantizers: Iterable[Quantizer], bits: int | None
) -> tuple[Quantizer, ...]:
    """``quantizers``, those of the first and last of the layers ``names`` and of what these read with bits of theirs.

    Args:
        model: float.
        names: of the layers that are quantized.
        quantizers: all.
        bits: None leaves them as they are.
    """
    if bits is None:
        return tuple(quantizers)
    at_edges = edges(model.graph, model.inputs, names)
    read = read_by(model.graph, at_edges)
    groups = {q.group for q in quantizers if (q.is_weight and at_edges & {*q.readers}) or q.tensor in read}
    return tuple(q.with_spec(bits=bits) if q.group in groups else q for q in quantizers)


@dataclass
class _Placer:
    """Walks through a network and places quantizers of activations.

    Attributes:
        found: by name.
        groups: names of those that a Concat makes share their parameters.
        coded: tensors that hold codes for some reader -> the quantizer that they come from.
    """

    model: Model
    config: QatConfig
    layers: set[str]
    found: dict[str, Quantizer] = field(default_factory=dict)
    groups: list[list[str]] = field(default_factory=list)
    coded: dict[Ref, str] = field(default_factory=dict)

    def walk(self) -> None:
        for node in self.model.graph.operators:
            quantized = [self._quantize(ref, node) for ref in self._reads(node)]
            if node.op == CONCAT and quantized:
                self.groups.append(quantized)
            if moves(node) and (source := self._source(node)):
                self.coded[node.out] = source

    def _reads(self, node: Node) -> Sequence[Ref]:
        """The tensors that ``node`` reads as codes."""
        if node.name in self.layers:
            return node.inputs[:1]
        row = self.config.row
        if node.op == CONCAT:
            return node.inputs if row.joins_concat else ()
        if row.graph == 1:
            return ()
        if node.op == "Pooling":
            return node.inputs[:1]
        return self._summands(node) if self._is_sum(node) else ()

    def _is_sum(self, node: Node) -> bool:
        if traits_of(node).arithmetic is not Arithmetic.ADD or len(node.inputs) < 2:
            return False
        return all(self.model.param(ref.name) is None for ref in node.inputs)

    def _summands(self, node: Node) -> Sequence[Ref]:
        """What a sum reads as codes: in graph 2 all but the first that a convolution makes for it alone."""
        if self.config.row.graph == 3:
            return node.inputs
        main = [ref for ref in node.inputs if self._made_for(ref, node)]
        return [ref for ref in node.inputs if ref not in main[:1]]

    def _made_for(self, ref: Ref, reader: Node) -> bool:
        """Whether a layer that is quantized makes ``ref``, perhaps with a BatchNorm after it, for one reader alone."""
        graph = self.model.graph
        node = graph[ref.name]
        while graph.consumers[node.name] == (reader,) and node.name not in graph.head_names:
            if node.op in FOLDABLE:
                return node.name in self.layers
            if node.op != "BatchNorm":
                return False
            reader, node = node, graph[node.inputs[0].name]
        return False

    def _quantize(self, ref: Ref, node: Node) -> str:
        """The quantizer by which ``node`` reads ``ref``, a new one if need be."""
        if ref in self.coded and self.config.row.graph != 1:
            return self.coded[ref]
        own = node.name if self.config.row.graph == 1 else ""
        known = next((q for q in self.found.values() if q.tensor == ref), None)
        if known is not None and not own:
            if node.name not in known.readers:
                self.found[known.name] = replace(known, readers=(*known.readers, node.name))
            return known.name
        name = activation_name(self.model.graph, ref, self.found, own)
        site = Site(self.config.row.activation(self.config.bits_a), "activation")
        self.found[name] = Quantizer(name, ref, (node.name,), site)
        return name

    def _source(self, node: Node) -> str:
        """The quantizer of the codes that ``node`` moves; empty where it moves floats, or codes of several kinds."""
        reads = traits_of(node).places(node)
        sources = {self._read_as(node, node.inputs[place]) for place in reads}
        if node.op == CONCAT and self.config.row.joins_concat:
            return min(sources)
        return sources.pop() if len(sources) == 1 else ""

    def _read_as(self, node: Node, ref: Ref) -> str:
        reader = next((q.name for q in self.found.values() if q.tensor == ref and node.name in q.readers), "")
        return reader or self.coded.get(ref, "")
