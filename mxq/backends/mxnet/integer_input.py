"""Integer input: the network is fed int8 codes or uint8 pixels, and nothing of it quantizes floats at its door.

"int8" (`take_codes`)::

    Before:  data (float32) -> _contrib_quantize_v2 -> _sg_mkldnn_conv(codes, min, max)
    After:   data (int8)    -------------------------> _sg_mkldnn_conv(data, data_min, data_max)

"uint8" (`normalize_pixels`)::

    After:   data (uint8) -> data_normalize = _sg_mkldnn_conv(1x1) -> _sg_mkldnn_conv(codes, min, max)

Formula. With ``x = (p * scale - mean_c) / std_c = a_c * p + b_c`` for pixel p of channel c:

* int8: the caller feeds ``q = saturate(rint(x * s))`` with s the quantize node's own scale (`mxq.quant.MXNET`), so the
  network computes the bits that it computed from floats. Of a pixel that is a table of 256 entries (`mxq.data`).
* uint8, where ``b_c = 0`` and all ``a_c`` are the same a: the pixels are codes of the range [0, 255.5 a], whose scale
  is 1 / a. No operator is needed.
* uint8 otherwise: a convolution over (1, 1) with the weight ``diag(a)`` and the bias b, from u8 in [0, 255.5] (scale
  1) to the codes of the range that was calibrated. The kernel takes ``w * 127.5 / absmax`` for its integer, 128, which
  saturates to 127, so ``a * 127.5 / 127`` is written. It rounds once, as quantizing does; seldom is a code off by one.

Why the normalisation is not multiplied into the first layer's own weights: that layer pads x with 0, which is no
pixel; and on CPUs without VNNI its sums of two products of pixels and weights would saturate (8 % of a ResNet-18's
first results are off then, and its logits are 10 dB worse). The diagonal never sums two.

Conditions: the network has one input; a quantize node with a calibrated range reads it. Float readers read the codes
dequantized. Where no such node is, as with ranges found at run time, "uint8" casts and normalises in float, operation
by operation as `Preprocess` does, and "int8" is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mxq import quant
from mxq.backends.protocol import Lowered
from mxq.data.preprocess import Preprocess
from mxq.errors import GraphError, QuantizeError
from mxq.graph.annotation import Annotation
from mxq.graph.annotation_text import CENTRED, NORMALIZE, NORMALIZED
from mxq.graph.ir import INPUT_TYPES, VARIABLE, Array, Graph, Model, Node, Ref, toposort
from mxq.passes.fed_codes import INT8, PIXEL_TOP, UINT8, affine, factor, preprocess_of
from mxq.quant import MXNET
from mxq.quant.plan import InputRecord, TensorRecord
from mxq.quant.thresholds import Range
from mxq.rewrite import Event, Trace

_FLAGS = {dtype: flag for flag, dtype in INPUT_TYPES.items()}
_FLOAT32 = "float32"
_QUANTIZE = "_contrib_quantize_v2"
_STEP = "integer_input"


def with_integer_input(lowered: Lowered, asked: InputRecord | None) -> Lowered:
    """Gives an int8 network the input that is ``asked`` for, coded as `mxq.passes.fed_codes` has it.

    Raises:
        QuantizeError: codes were asked for, but no int8 layer reads the input.
        GraphError: a name that is needed is taken.
    """
    if asked is None:
        return lowered
    door = _Door(lowered.model, asked)
    settings = preprocess_of(asked)
    made = door.codes() if asked.dtype == INT8 or settings is None else door.pixels(settings)
    gone = {n.name for n in lowered.model.graph.operators} - {n.name for n in made.graph.operators}
    kept = {k: v for k, v in lowered.tensors.items() if k not in gone}
    return Lowered(made, {**door.records, **kept}, door.input, lowered.trace + Trace(tuple(door.events)))


@dataclass
class _Door:
    """The int8 model's only input, and what becomes of it."""

    model: Model
    input: InputRecord
    records: dict[str, TensorRecord] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.input.name

    def codes(self) -> Model:
        """The codes that the quantize node would make are fed."""
        found = self._quantizer(INT8)
        if found is None:
            readers = self.model.graph.consumers[self.name]
            calibrated = "at run time" if any(n.op == _QUANTIZE for n in readers) else "by no int8 layer"
            what = "its range is found" if calibrated == "at run time" else "it is read"
            raise QuantizeError(
                f"input_dtype is 'int8', but input {self.name!r} has no range: {what} {calibrated}; "
                "allowed: 'uint8' with preprocess, or 'float32'"
            )
        scale = MXNET.params(quant.INT8, _range(found).min, _range(found).max).scale
        self.input = replace(self.input, scale=float(scale))
        return self._take_codes(found, INT8)

    def pixels(self, settings: Preprocess) -> Model:
        """Pixels are fed: they are codes already, or a convolution makes the codes, or float operators the input."""
        found, times = self._quantizer(UINT8), factor(settings)
        if found is not None and times is not None and _range(found).max == float(np.float32(PIXEL_TOP * times)):
            return self._take_codes(found, UINT8)
        found = found or self._quantizer(INT8)
        if found is None or settings.layout != "NCHW":
            return self._in_float(settings)
        return self._normalize(found, settings)

    def _quantizer(self, dtype: str) -> Node | None:
        """The node that quantizes the input as ``dtype`` in a calibrated range."""
        readers = (n for n in self.model.graph.consumers[self.name] if n.op == _QUANTIZE)
        return next((n for n in readers if n.attrs["out_type"] == dtype and "min_calib_range" in n.attrs), None)

    def _take_codes(self, quantize: Node, dtype: str) -> Model:
        span = _range(quantize)
        low, high = f"{self.name}_min", f"{self.name}_max"
        coded = (Ref(self.name), Ref(low), Ref(high))
        self.records[self.name] = TensorRecord(dtype, span.min, span.max, f"fed as {dtype}")
        args = {low: _number(span.min), high: _number(span.max)}
        return self._coded("take_codes", quantize, (), coded, args, dtype)

    def _normalize(self, quantize: Node, settings: Preprocess) -> Model:
        name, (a, b) = self.name + NORMALIZE, affine(settings)
        dtype, low, high = quantize.attrs["out_type"], f"{self.name}_min", f"{self.name}_max"
        weight = np.diag(a * (MXNET.top(quant.INT8) / quant.INT8.highest)).astype(np.float32)
        args = {
            f"{name}_weight": weight.reshape(*weight.shape, 1, 1),
            f"{name}_bias": b.astype(np.float32),
            low: _number(0.0),
            high: _number(PIXEL_TOP),
        }
        ranges = {k: quantize.attrs[k] for k in ("min_calib_range", "max_calib_range")}
        attrs = {"quantized": "true", **ranges, **({"with_act": "true"} if dtype == UINT8 else {})}
        inputs = (Ref(self.name), *map(Ref, args))
        inside, note = (_pointwise(len(a), dtype),), Annotation(tensor=self.name)
        conv = Node(name, "_sg_mkldnn_conv", attrs, inputs, inside, note=note)
        span = _range(quantize)
        self.records[name] = TensorRecord(dtype, span.min, span.max, "normalised from pixels")
        coded = (Ref(name), Ref(name, 1), Ref(name, 2))
        return self._coded("normalize_pixels", quantize, (conv,), coded, args, UINT8)

    def _in_float(self, settings: Preprocess) -> Model:
        """Cast, times scale, less mean, over std: the operations of `Preprocess` in its order, so the bits are its."""
        name = self.name
        shape = (1, -1, 1, 1) if settings.layout == "NCHW" else (1, 1, 1, -1)
        args = {f"{name}_{k}": np.asarray(getattr(settings, k), np.float32).reshape(shape) for k in ("mean", "std")}
        cast = Node(f"{name}_cast", "Cast", {"dtype": _FLOAT32}, (Ref(name),))
        scaled = Node(f"{name}_scaled", "_mul_scalar", {"scalar": repr(float(settings.scale))}, (cast.out,))
        centred = Node(name + CENTRED, "broadcast_sub", {}, (scaled.out, Ref(f"{name}_mean")))
        divided = Node(name + NORMALIZED, "broadcast_div", {}, (centred.out, Ref(f"{name}_std")))
        nodes = (cast, scaled, centred, divided.noted(tensor=name))
        return self._rewired("normalize_in_float", nodes, {Ref(name): nodes[-1].out}, args, UINT8)

    def _coded(
        self,
        rule: str,
        quantize: Node,
        nodes: Sequence[Node],
        coded: tuple[Ref, Ref, Ref],
        args: Mapping[str, Array],
        dtype: str,
    ) -> Model:
        """What read ``quantize`` reads ``coded`` (values, minimum, maximum); float readers read that dequantized."""
        plain = Node(f"{self.name}_dequantize", "_contrib_dequantize", {}, coded)  # it goes where nothing reads it
        outputs = (quantize.out, Ref(quantize.name, 1), Ref(quantize.name, 2))
        moved = {Ref(self.name): plain.out, **dict(zip(outputs, coded, strict=True))}
        return self._rewired(rule, (*nodes, plain), moved, args, dtype, dropped=quantize.name)

    def _rewired(
        self,
        rule: str,
        nodes: Sequence[Node],
        moved: Mapping[Ref, Ref],
        args: Mapping[str, Array],
        dtype: str,
        dropped: str = "",
    ) -> Model:
        """The graph with new ``nodes`` and parameters at its door, where others' inputs have ``moved``."""
        graph = self.model.graph
        added = (*nodes, *(Node(k, VARIABLE) for k in args))
        taken = [n.name for n in added if n.name in graph]
        if taken:
            raise GraphError(f"input_dtype {self.input.dtype!r} needs the name {taken[0]!r}, but a node has it")
        others = (n for n in graph if n.name not in (self.name, dropped))
        rewired = (replace(n, inputs=tuple(moved.get(r, r) for r in n.inputs)) for n in others)
        heads = tuple(moved.get(h, h) for h in graph.heads)
        fed = graph[self.name].with_attrs(__dtype__=_FLAGS[dtype])
        self.events.append(Event(_STEP, rule, self.name))
        return self.model.with_graph(toposort((fed, *added, *rewired), heads, graph.attrs), args)


def _pointwise(channels: int, dtype: str) -> Graph:
    """What is inside the normalising convolution; a ReLU makes its result u8, which has no negative part to lose."""
    slots = tuple(Node(f"normalize_{k}_slot", VARIABLE) for k in ("data", "weight", "bias"))
    attrs = {"kernel": "(1, 1)", "num_filter": str(channels), "no_bias": "False"}
    nodes = [*slots, Node("normalize", "Convolution", attrs, tuple(s.out for s in slots))]
    if dtype == UINT8:
        nodes.append(Node("normalize_relu", "Activation", {"act_type": "relu"}, (Ref("normalize"),)))
    return Graph(tuple(nodes), (nodes[-1].out,))


def _range(quantize: Node) -> Range:
    return Range(quantize.number("min_calib_range", 0.0), quantize.number("max_calib_range", 0.0))


def _number(value: float) -> Array:
    return np.array([value], np.float32)
