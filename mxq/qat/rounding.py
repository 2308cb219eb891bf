"""Which biases are rounded: of layers whose kernels read codes with one scale, and add biases to sums of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from mxq.graph.ir import Node, Ref
from mxq.graph.traits import traits_of
from mxq.qat.algorithms import Gridded
from mxq.qat.biases import RoundedBias
from mxq.qat.layers import moves
from mxq.qat.network import QatNetwork
from mxq.qat.quantizer import Quantizer, by_reader


def with_rounded_biases(network: QatNetwork) -> QatNetwork:
    """``network`` that rounds the biases of all layers which have one, or get one from their BatchNorm."""
    return replace(network, biases=tuple(_Layers(network).biases))


@dataclass(frozen=True)
class _Layers:
    network: QatNetwork

    @property
    def biases(self) -> Iterator[RoundedBias]:
        graph = self.network.source.graph
        for weight in self.network.quantizers:
            for layer in (graph[name] for name in weight.readers) if weight.is_weight else ():
                data = self._read(layer, layer.inputs[0])
                has_bias = layer.name in self.network.pairs or not layer.flag("no_bias")
                if has_bias and data is not None and self._is_gridded(data) and self._is_gridded(weight):
                    yield RoundedBias(layer.name, data.name, weight.name)

    def _is_gridded(self, quantizer: Quantizer) -> bool:
        return isinstance(self.network.algorithm(quantizer), Gridded)

    def _read(self, reader: Node, ref: Ref) -> Quantizer | None:
        """The quantizer whose codes ``reader`` finds in ``ref``; None where there is none, or several that differ."""
        name = self._readers.get((reader.name, ref))
        if name is not None:
            return self._by_name[name]
        node = self.network.source.graph[ref.name]
        if not node.inputs or not moves(node):
            return None
        found = [self._read(node, node.inputs[place]) for place in traits_of(node).places(node)]
        same = found and all(q is not None and found[0] is not None and q.group == found[0].group for q in found)
        return found[0] if same else None

    @cached_property
    def _readers(self) -> Mapping[tuple[str, Ref], str]:
        return by_reader(self.network.quantizers)

    @cached_property
    def _by_name(self) -> Mapping[str, Quantizer]:
        return {q.name: q for q in self.network.quantizers}
