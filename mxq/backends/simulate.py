"""Simulate: what a `QuantizedNetwork` computes, in float operators, whatever its specs; on any CPU.

Before:  x -> conv (int8: reads u8, writes s8) -> y
After:   x -> fake(u8) -> conv (its weight on its grid) -> fake(s8) -> y

``fake`` is `QParams.fake`, written as operators: times the scale, clipped, rounded, clipped to the codes, divided by
the scale. Float32 rounds halves to even where 1.5 * 2^23 is added and taken away; MXNet's ``rint`` does not.

Sums of products of codes are integers below 2^24 nearly always, which float32 holds. So a layer's result differs from
that of its integer kernel by the last rounding alone, and where that kernel rounds the bias to its own grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from mxq.backends import Backend, BackendSpec, Lowered, get
from mxq.errors import QuantizeError
from mxq.graph.ir import Array, Model, Node, Ref, toposort
from mxq.numerics import TO_WHOLE
from mxq.quant import INT8, MXNET, UINT8, QParams, QuantizedNetwork


def simulate(network: QuantizedNetwork) -> Model:
    """A float network that computes what ``network`` does.

    Its outputs, and the tensors that operators write as codes, have the names that they have in ``network.fused``.

    Raises:
        QuantizeError: ranges are found at run time, or a tensor has a scale for each channel.
    """
    return Simulator(network).model


@dataclass(frozen=True)
class Simulated:
    """The backend that writes, of a network for kernels ``of`` another, a float network that computes the same.

    Its input is float, whatever that other one's is fed.
    """

    name: str
    of: Backend

    @property
    def spec(self) -> BackendSpec:
        """The other one's table."""
        return self.of.spec

    def constrain(self, network: QuantizedNetwork) -> QuantizedNetwork:
        """What the other one asks for."""
        return self.of.constrain(network)

    def lower(self, network: QuantizedNetwork) -> Lowered:
        """See `simulate`."""
        return Lowered(simulate(network))


@dataclass
class Simulator:
    """Makes `model` of ``network``; what stands for codes, `_fake` writes."""

    network: QuantizedNetwork
    nodes: dict[str, Node] = field(default_factory=dict)
    faked: dict[tuple[Ref, str], Ref] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        fused, operations = self.network.fused, self.network.operations
        for node in fused.graph:
            if node.name in operations:
                self._operation(node)
            else:
                self.nodes[node.name] = node
        weights = self.network.weights
        args: dict[str, Array] = {name: params.fake(fused.args[name]) for name, params in weights.items()}
        return fused.with_graph(toposort(self.nodes.values(), fused.graph.heads, fused.graph.attrs), args)

    def _operation(self, node: Node) -> None:
        operation = self.network.operations[node.name]
        reader = self.network.fused.graph[operation.norm] if operation.norm else node
        places = operation.reads
        inputs = tuple(self._read(ref, places[i]) if i in places else ref for i, ref in enumerate(reader.inputs))
        if operation.halves and places[0] == "uint8" and self.network.activation is None:
            inputs = (self._halved(inputs[0], self.network.stored_as(reader.inputs[0], "uint8")), *inputs[1:])
        if operation.norm:
            self.nodes[reader.name] = replace(reader, inputs=inputs)
            inputs = node.inputs
        if operation.writes_float or operation.passes_on:
            self.nodes[node.name] = replace(node, inputs=inputs)
            return
        plain = replace(node, name=self._unused(f"{node.name}_exact"), inputs=inputs, label="")
        self.nodes[plain.name] = plain
        offset = self.network.made[node.out].offset if self.network.activation is None else 0.0  # else a zero point
        self._fake(plain.out, self.network.made_as(node.out), offset, node)

    def _read(self, ref: Ref, dtype: str) -> Ref:
        """What an operator finds that reads ``ref`` in that type."""
        made = self.network.made.get(ref)
        if made is not None and made.dtype == dtype:
            return ref
        if (ref, dtype) not in self.faked:
            name = self._unused(f"{ref.name}_{ref.output}_{dtype}")
            params = self.network.read_as(ref, dtype)
            self._fake(ref, params, 0.0, Node(name, ""))
            self.faked[ref, dtype] = Ref(name)
        return self.faked[ref, dtype]

    def _halved(self, ref: Ref, params: QParams) -> Ref:
        """What a kernel finds that reads u8 codes as s8 ones, by half: ``mkldnn_quantized_batch_norm.cc``."""
        half = QParams(INT8, params.scale / 2)
        name, scale = self._unused(f"{ref.name}_halved"), float(MXNET.top(INT8) / MXNET.top(UINT8) * params.scale)
        self._fake(ref, half, 0.0, Node(f"{name}_steps", ""))
        self.nodes[name] = Node(
            name, "_mul_scalar", {"scalar": repr(float(half.scale) / scale)}, (Ref(f"{name}_steps"),)
        )
        return Ref(name)

    def _fake(self, ref: Ref, params: QParams, offset: float, end: Node) -> None:
        """Writes `QParams.fake` of ``ref``; the last operator takes the name and the label of ``end``."""
        if params.spec.axis is not None:
            raise QuantizeError(f"tensor {str(ref)!r} is {params.spec}; allowed here: one scale for a tensor")
        steps = list(_fake_steps(params, offset))
        for i, (op, attrs) in enumerate(steps, start=1):
            last = i == len(steps)
            name = end.name if last else self._unused(f"{end.name}_fake{i}")
            self.nodes[name] = Node(name, op, attrs, (ref,), label=end.label if last else "")
            ref = Ref(name)

    def _unused(self, name: str) -> str:
        return self.network.fused.graph.unused(name, self.nodes)


def _fake_steps(params: QParams, offset: float) -> Iterator[tuple[str, dict[str, str]]]:
    """The operators of `QParams.fake`, after ``offset`` was added and before it is taken away."""
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = params.spec.lowest - zero, params.spec.highest - zero
    if offset:
        yield "_plus_scalar", {"scalar": repr(offset)}
    yield "_mul_scalar", {"scalar": repr(scale)}
    yield "clip", {"a_min": repr(low - 1.0), "a_max": repr(high + 1.0)}
    yield "_plus_scalar", {"scalar": repr(TO_WHOLE)}
    yield "_minus_scalar", {"scalar": repr(TO_WHOLE)}
    yield "clip", {"a_min": repr(float(low)), "a_max": repr(float(high))}
    yield "_div_scalar", {"scalar": repr(scale)}
    if offset:
        yield "_minus_scalar", {"scalar": repr(offset)}


SIMULATED_MXNET: Final[Backend] = Simulated("simulate", get("mxnet"))
