"""Codes in ONNX files: QuantizeLinear and DequantizeLinear (Q, DQ) where a `QuantizedNetwork` has codes.

Before:  x -> conv{Convolution, relu} (reads u8) -> y
After:   x -> Q -> DQ -> Conv (codes -> DQ) -> Relu -> y      which runtimes fuse to one integer convolution

The network is that of `mxq.backends.simulate`, with an identity where that writes a chain of operators: what reads it
reads through Q and DQ. So what is written computes what the simulation does, but for biases, which are int32 codes
whose step is the product of those of data and weight, as integer kernels add them.

Scales and zero points of tensors have rank 0: ONNX Runtime fuses no sum of others. A bias in codes may be of 31 bits: a
weight whose channel is nearly dead gets a larger step where its bias would have more, as 32 bits overflow without a
word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from mxq.backends.onnx.context import Builder, Context, FloatFeed, plain
from mxq.backends.simulate import Simulator
from mxq.errors import QuantizeError
from mxq.graph.inline import inlined
from mxq.graph.ir import VARIABLE, Array, Model, Node, Ref
from mxq.quant import QParams, QuantizedNetwork
from mxq.quant.spec import LEAST_IN_FILES

LARGEST_BIAS: Final = 2**30
"""Of a bias in codes; products of codes are added to it in 32 bits."""
FUSED: Final = ("_sg_mkldnn_conv", "_sg_mkldnn_fully_connected")
LAYERS: Final = ("Convolution", "FullyConnected", "Deconvolution")
"""Operators with a weight at place 1 and a bias at place 2."""


@dataclass
class _Marker(Simulator):
    """Puts an identity where codes are made, and keeps of which kind they are in ``marked``."""

    marked: dict[Ref, QParams] = field(default_factory=dict)

    def _fake(self, ref: Ref, params: QParams, offset: float, end: Node) -> None:
        if offset or params.spec.axis is not None or params.spec.bits != 8:
            raise QuantizeError(
                f"tensor {str(ref)!r} is {params.spec}; allowed in an ONNX file: 8 bits, one scale, no offset, as "
                "runtimes compute with no others"
            )
        self.nodes[end.name] = Node(end.name, "_copy", {}, (ref,), label=end.label)
        self.marked[Ref(end.name)] = params


@dataclass(frozen=True)
class Coded:
    """A network on its way to an ONNX file.

    Attributes:
        model: of plain operators, with an identity where tensors are codes.
        tensors: each of these -> scale and zero point.
        weights: parameter -> those of its codes.
    """

    model: Model
    tensors: Mapping[Ref, QParams]
    weights: Mapping[str, QParams]

    @staticmethod
    def of(network: QuantizedNetwork) -> Coded:
        """The parts of ``network``.

        Raises:
            QuantizeError: it has codes that such files do not have.
        """
        marker = _Marker(network)
        model = plain_operators(marker.model)
        weights = dict(network.weights)
        for name, params in weights.items():
            if params.spec.bits < LEAST_IN_FILES:
                raise QuantizeError(
                    f"weight {name!r} is {params.spec}; allowed in an ONNX file: {LEAST_IN_FILES} to 8 bits, as "
                    "runtimes read none of fewer"
                )
        return _with_room(_with_biases(Coded(model, marker.marked, weights)))

    def bias_step(self, layer: Node) -> Array | None:
        """Of an integer layer that has a bias: (O,) float64, or one number; None for others."""
        if layer.op not in LAYERS or len(layer.inputs) < 3:
            return None
        data, weight = self.tensors.get(plain(layer.inputs[0])), self.weights.get(layer.inputs[1].name)
        if data is None or weight is None or layer.inputs[2].name not in self.model.args:
            return None
        return np.asarray(data.step.astype(np.float64) * weight.step)


def plain_operators(model: Model) -> Model:
    """``model`` with the operators that fused ones are made of."""
    return model.with_graph(inlined(model.graph, FUSED))


def _with_biases(coded: Coded) -> Coded:
    """``coded`` whose fully connected layers have a bias each, see `_bias`."""
    changes, args = dict[str, tuple[Node, ...]](), dict[str, Array]()
    for layer in coded.model.graph.operators:
        on_codes = layer.op == "FullyConnected" and layer.inputs[1].name in coded.weights
        if on_codes and layer.flag("no_bias"):
            name = coded.model.graph.unused(f"{layer.name}_bias", args)
            args[name] = np.zeros(len(coded.model.args[layer.inputs[1].name]), np.float32)
            made = replace(layer, attrs={**layer.attrs, "no_bias": "False"}, inputs=(*layer.inputs[:2], Ref(name)))
            changes[layer.name] = (Node(name, VARIABLE), made)
    if not changes:
        return coded
    return replace(coded, model=coded.model.with_graph(coded.model.graph.replace(changes), args))


def _with_room(coded: Coded) -> Coded:
    """``coded`` whose weights have steps as large as the biases beside them ask for, in all layers that share them."""
    for layer in coded.model.graph.operators:
        step = coded.bias_step(layer)
        if step is None:
            continue
        name, bias = layer.inputs[1].name, coded.model.args[layer.inputs[2].name].astype(np.float64)
        room = np.abs(bias) / (step * LARGEST_BIAS)
        if (room > 1).any():
            params = coded.weights[name]
            share = room if params.spec.axis is not None else room.max()
            wider = QParams(params.spec, params.scale / np.maximum(share, 1), params.zero_point)
            coded = replace(coded, weights={**coded.weights, name: wider})
    return coded


@dataclass
class CodeFeed(FloatFeed):
    """What operators of ``coded`` read: by way of codes where it has such.

    Attributes:
        coded: the network.
        held: what a DequantizeLinear made of codes -> these.
    """

    coded: Coded
    held: dict[str, str] = field(default_factory=dict)

    def row(self, node: Node) -> Callable[[Context], str] | None:
        """Another form of an operator that makes codes alone, which runtimes compute with these."""
        if node.op not in _ON_CODES or not (made := self._made_as(node)):
            return None
        if node.op == "_minimum_scalar":
            fits = _end_by(made, node.number("scalar", 0.0))
        else:
            fits = plain(node.inputs[0]) in self.coded.tensors
        if node.op == "hard_sigmoid":
            fits = fits and node.number("alpha", 0.2) > 0 and _end_by(made, 1.0, 0.0)
        if not fits:
            return None
        return lambda context: _ON_CODES[node.op](context, self)

    def _made_as(self, node: Node) -> tuple[QParams, ...]:
        """As which codes the result is read; empty where some of its readers take it as it is."""
        graph, tensors = self.coded.model.graph, self.coded.tensors
        readers = graph.consumers[node.name]
        if node.name in graph.head_names or any(reader.out not in tensors for reader in readers):
            return ()
        return tuple(tensors[reader.out] for reader in readers)

    def scaled(self, context: Context, factor: float) -> str:
        """What a node reads as codes, times a positive ``factor``: the same codes with another step."""
        params = self.coded.tensors[plain(context.node.inputs[0])]
        zero = params.zero_point.astype(params.spec.dtype)
        parts = _parts(context.builder, params.step * np.float32(factor), zero)
        return context.emit("DequantizeLinear", self.held[context.raw()], *parts)

    def made(self, builder: Builder, ref: Ref, tensor: str) -> str:
        params = self.coded.tensors.get(ref)
        return tensor if params is None else self._through_codes(builder, ref, params, tensor)

    def read(self, context: Context, place: int, moved: Callable[[str], str]) -> str:
        """Codes are moved as such: integer layers ask for a DequantizeLinear right before them."""
        params = self.coded.tensors.get(plain(context.node.inputs[place]))
        if params is None:
            return moved(context.raw(place))
        codes = self.held[context.raw(place)]
        found = moved(codes)
        if found == codes:
            return context.raw(place)
        zero = params.zero_point.astype(params.spec.dtype)
        return context.emit("DequantizeLinear", found, *_parts(context.builder, params.step, zero))

    def weight(self, context: Context, place: int, value: Array, axes: tuple[int, ...]) -> str:
        name, builder = context.node.inputs[place].name, context.builder
        params = self.coded.weights.get(name)
        if params is not None:
            return _weight(builder, name, params, value, axes)
        step = self.coded.bias_step(context.node) if place == 2 else None
        if step is None:
            return super().weight(context, place, value, axes)
        return _bias(builder, name, step, value, may_be_none=context.node.op != "FullyConnected")

    def _through_codes(self, builder: Builder, ref: Ref, params: QParams, tensor: str) -> str:
        parts = _parts(builder, params.step, params.zero_point.astype(params.spec.dtype))
        (codes,) = builder.emit(ref.name, "QuantizeLinear", [tensor, *parts], {})
        (found,) = builder.emit(ref.name, "DequantizeLinear", [codes, *parts], {})
        self.held[found] = codes
        return found


def _parts(builder: Builder, step: Array, zero: Array) -> tuple[str, str]:
    return builder.constant(np.asarray(step, np.float32), "scale"), builder.constant(zero, "zero_point")


def _end_by(made: Collection[QParams], top: float, bottom: float = -np.inf) -> bool:
    """Whether no code stands for a value beyond these, so that saturation does what a clip would."""
    return all(p.high <= top + p.step / 2 and p.low >= bottom - p.step / 2 for p in made)


def _number(context: Context, value: float) -> str:
    """A constant as one code, which is exact."""
    top = np.uint8(np.iinfo(np.uint8).max)
    code, zero = (top, np.uint8(0)) if value >= 0 else (np.uint8(0), top)
    step = np.float32(abs(value) / top) if value else np.float32(1)
    code = code if value else np.uint8(0)
    parts = _parts(context.builder, np.asarray(step), np.asarray(zero))
    return context.emit("DequantizeLinear", context.builder.constant(np.asarray(code), "code"), *parts)


def _hard_sigmoid(context: Context, feed: CodeFeed) -> str:
    """Alpha x + beta; codes from 0 to at most 1 do the rest by saturation."""
    alpha, beta = context.node.number("alpha", 0.2), context.node.number("beta", 0.5)
    return context.emit("Add", feed.scaled(context, alpha), _number(context, beta))


def _scalar(kind: str) -> Callable[[Context, CodeFeed], str]:
    return lambda context, _: context.emit(kind, context.read(), _number(context, context.node.number("scalar", 0.0)))


_ON_CODES: Final[Mapping[str, Callable[[Context, CodeFeed], str]]] = {
    "hard_sigmoid": _hard_sigmoid,
    "_plus_scalar": _scalar("Add"),
    "_mul_scalar": _scalar("Mul"),
    "_minimum_scalar": lambda context, _: context.raw(),
}
"""Operators on one tensor -> how they are written where codes alone are made of their result."""


def _weight(builder: Builder, name: str, params: QParams, value: Array, axes: tuple[int, ...]) -> str:
    codes = np.ascontiguousarray(params.quantize(value).transpose(axes))
    axis = None if params.spec.axis is None else axes.index(params.spec.axis)
    if params.spec.bits == LEAST_IN_FILES:
        parts = [builder.narrow_constant(codes, f"{name}_codes"), builder.constant(params.step, f"{name}_scale")]
        return builder.emit(name, "DequantizeLinear", parts, {"axis": axis})[0]
    zero = np.asarray(params.zero_point.astype(params.spec.dtype))
    return _dequantized(builder, name, {"codes": codes, "scale": params.step, "zero_point": zero}, axis)


def _bias(builder: Builder, name: str, step: Array, value: Array, *, may_be_none: bool) -> str:
    """Codes of 32 bits; without ``may_be_none`` one of them is 1 where all are 0.

    OpenVINO 2026.4 drops a bias of zeros, and then takes sums for floats where it computes two fully connected layers
    in one operator. One step of a bias is one of the sum of products: less than anything that rounds it.
    """
    codes = np.clip(np.rint(value.astype(np.float64) / step), -(2**31), 2**31 - 1).astype(np.int32)
    if not may_be_none and not codes.any():
        codes[:1] = 1
    scale = step.astype(np.float32)
    zero = np.zeros(scale.shape, np.int32)
    return _dequantized(builder, name, {"codes": codes, "scale": scale, "zero_point": zero}, 0 if scale.ndim else None)


def _dequantized(builder: Builder, name: str, values: Mapping[str, Array], axis: int | None) -> str:
    parts = [builder.constant(value, f"{name}_{part}") for part, value in values.items()]
    return builder.emit(name, "DequantizeLinear", parts, {"axis": axis})[0]
