"""Coding: which codes tensors and weights of a simulated network have: the hardware's, of so many bits each.

A layer's bits are those of its weight and of what it reads. A tensor that several layers read, or that reaches several
through other operators without a layer between, has the most of theirs; one that reaches none has the network's. What
`overrides` say comes first, then the hardware's own bits of the first and the last layers, then the network's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from mxq.backends import BackendSpec
from mxq.config import QuantConfig, selects
from mxq.errors import ConfigError
from mxq.graph.ir import Graph, Model, Node
from mxq.graph.layers import edges
from mxq.passes.overrides import LayerChoices, override_source, views
from mxq.quant import QuantizedNetwork, QuantSpec, Scheme
from mxq.quant.bits import Bits
from mxq.quant.hardware import Hardware, hardware_of
from mxq.quant.plan import Plan


@dataclass(frozen=True)
class Coding:
    """The codes of a simulated network.

    Attributes:
        hardware: whose codes they are.
        bits: how many they have.
        layers: layer -> its bits, where those are others.
        widths: node, also of a weight -> the bits of what it makes, where those are others.
    """

    hardware: Hardware
    bits: Bits
    layers: Mapping[str, Bits] = field(default_factory=dict)
    widths: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_of_kernels(self) -> bool:
        """Whether they are those of MXNet's kernels."""
        return self.hardware.from_kernels and self.bits == Bits() and not self.widths

    def activation(self, node: str) -> QuantSpec:
        """The kind of codes of what a node makes."""
        return self.hardware.activation(self.widths.get(node, self.bits.activations))

    def weight(self, name: str) -> QuantSpec:
        """The kind of codes of a weight."""
        return self.hardware.weight(self.widths.get(name, self.bits.weights))

    def of_weight(self, name: str) -> tuple[QuantSpec, Scheme]:
        """The kind of codes of a weight, and how their scales follow from ranges."""
        spec = self.weight(name)
        return spec, self.hardware.scheme(spec)

    @property
    def scheme(self) -> Scheme:
        """From the range of a tensor to its scale."""
        return self.hardware.scheme(self.hardware.activations)

    def of(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """``network`` with these codes; the same where MXNet's kernels have them."""
        if self.is_of_kernels:
            return network
        hardware, bits = self.hardware, self.bits
        activation, weight = hardware.activation(bits.activations), hardware.weight(bits.weights)
        return network.respecified(activation, weight, hardware.scheme, self.widths, hardware.products)

    def __str__(self) -> str:
        return f"{self.hardware.name} {self.bits}"


KERNELS: Coding = Coding(hardware_of("onednn"), Bits())
"""Of networks that are not simulated."""


def coding_of(model: Model, plan: Plan, config: QuantConfig, spec: BackendSpec) -> Coding:
    """The codes that the settings ask for.

    Args:
        model: fused.
        plan: which of its operators are quantized.
        config: the settings.
        spec: the table that the plan was made by.

    Raises:
        ConfigError: ``overrides`` give bits to what is no layer, or the hardware is unknown.
    """
    if not config.simulate:
        return KERNELS
    hardware, bits, graph = hardware_of(config.hardware), config.width, model.graph
    known = [n.name for n in graph.operators if _is_layer(n, spec)]
    _check_patterns(graph, config, known)
    names, choices = [name for name in known if name in plan.quantized], LayerChoices.of(graph, config)
    usual = dict.fromkeys(known, bits) | _at_edges(model, hardware, known)
    asked = {name: choices.bits(name) or usual[name] for name in names}
    layers = {name: found for name, found in asked.items() if found != bits}
    return Coding(hardware, bits, layers, _widths(graph, names, layers, bits))


def _is_layer(node: Node, spec: BackendSpec) -> bool:
    row = spec.find(node.op)
    return row is not None and row.role == "compute"


def _at_edges(model: Model, hardware: Hardware, names: Collection[str]) -> dict[str, Bits]:
    """The bits of first and last layers, where the hardware has such."""
    width = hardware.edge_bits
    return {} if width is None else dict.fromkeys(edges(model.graph, model.inputs, names), Bits(width, width))


def _check_patterns(graph: Graph, config: QuantConfig, names: Collection[str]) -> None:
    """Every pattern of ``overrides`` that gives bits does so to a layer.

    Raises:
        ConfigError: one does not.
    """
    for pattern, layer in config.overrides.items():
        if layer.bits is not None and not any(selects(pattern, view) for name in names for view in views(graph[name])):
            raise ConfigError(
                f"{override_source(pattern)}: bits are {layer.bits!r}, but it names no layer; "
                "allowed: for convolutions and fully connected layers, which read what has these bits, too"
            )


def _widths(graph: Graph, names: Collection[str], layers: Mapping[str, Bits], bits: Bits) -> dict[str, int]:
    """Node -> how many bits what it makes has, where that is not the network's; of a weight those of its layer."""
    found: dict[str, int] = {}
    reached: dict[str, int] = {}
    for node in reversed(graph.nodes if layers else ()):
        readers = graph.consumers[node.name]
        own = [(layers.get(r.name, bits), r) for r in readers if r.name in names]
        if weights := [width.weights for width, r in own if r.inputs[1].name == node.name]:
            usual, width = bits.weights, max(weights)
        else:
            ways = [width.activations for width, _ in own]
            ways += [reached[r.name] for r in readers if r.name not in names]
            usual, width = bits.activations, max(ways, default=0)
        reached[node.name] = width
        if width not in (0, usual):
            found[node.name] = width
    return found
