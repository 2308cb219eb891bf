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
from dataclasses import dataclass, replace

import numpy as np

from mxq import quant
from mxq.config import LayerConfig, QuantConfig
from mxq.data.preprocess import Preprocess
from mxq.errors import ConfigError, GraphError, QuantizeError
from mxq.graph.annotation import Annotation
from mxq.graph.annotation_text import CENTRED, NORMALIZE, NORMALIZED
from mxq.graph.ir import INPUT_TYPES, VARIABLE, Array, Graph, Model, Node, Ref, toposort
from mxq.passes.overrides import LayerChoices
from mxq.quant import MXNET
from mxq.quant.plan import InputRecord, TensorRecord
from mxq.quant.thresholds import FIXED, Range, Threshold, Thresholds
from mxq.rewrite import Trace
from mxq.rewrite.driver import Event

INT8, UINT8, FLOAT32 = "int8", "uint8", "float32"
CODES, PIXELS = "codes", "pixels"
_FLAGS = {dtype: flag for flag, dtype in INPUT_TYPES.items()}
PIXEL_TOP = MXNET.top(quant.UINT8)
"""The maximum of a u8 range in which a code is a pixel."""
_QUANTIZE = "_contrib_quantize_v2"
_STEP = "integer_input"
_SLACK = 0.02
"""How far calibration data may lie outside of what pixels can become, as a share of that."""
_LEAST = 0.02
"""What share of it they must fill."""


def check_input(model: Model, config: QuantConfig) -> None:
    """Refuses, before anything runs, what `integer_input` could not do.

    Raises:
        ConfigError: pixels were asked for without ``preprocess``, or that is not allowed.
        QuantizeError: the network has several inputs.
    """
    settings = preprocess_of(config)
    if config.input_dtype == FLOAT32:
        return
    if len(model.inputs) != 1:
        raise QuantizeError(
            f"input_dtype is {config.input_dtype!r}, but the network has {len(model.inputs)} inputs "
            f"({', '.join(model.inputs)}); allowed: a network with one, or 'float32'"
        )
    if config.input_dtype == UINT8 and settings is None:
        raise ConfigError(
            "input_dtype is 'uint8', but preprocess is missing: how a pixel becomes the network's input; allowed: "
            "{'mean': [...], 'std': [...], 'scale': 1.0} or a Preprocess, or input_dtype 'int8'"
        )


def preprocess_of(config: QuantConfig) -> Preprocess | None:
    """The settings that ``config`` holds.

    Raises:
        FormatError: an unknown field.
        ConfigError: a field has a value that is not allowed.
    """
    return None if config.preprocess is None else Preprocess.from_json(config.preprocess)


def choose_codes(model: Model, thresholds: Thresholds, config: QuantConfig) -> tuple[Thresholds, QuantConfig]:
    """Settings for `quantize_graph` with which the input is coded as it will be fed.

    Args:
        model: the fused float model.
        thresholds: of its tensors.
        config: the user's settings.

    Raises:
        ConfigError: the settings contradict each other, or ``preprocess`` the data that was calibrated on.
    """
    if config.input_dtype == FLOAT32:
        return thresholds, config
    name, settings = model.inputs[0], preprocess_of(config)
    asked = LayerChoices.of(model.graph, config).dtype(name)
    if config.input_dtype == INT8 and asked == UINT8:
        raise ConfigError(f"input_dtype is 'int8', but overrides say that {name!r} is 'uint8'; allowed: one of them")
    if name not in thresholds:
        return thresholds, config
    if settings is not None:
        _check_span(name, thresholds[name], settings)
    if config.input_dtype == INT8:
        return thresholds, _with_dtype(config, name, INT8)
    factor = None if settings is None else _factor(settings)
    if factor is None or (asked or config.quantized_dtype) == INT8:
        return thresholds, config
    whole = Threshold(Range(0.0, PIXEL_TOP * factor), FIXED, source="input_dtype", note="its codes are the pixels")
    return Thresholds({**thresholds, name: whole}), _with_dtype(config, name, UINT8)


def integer_input(
    model: Model, tensors: Mapping[str, TensorRecord], config: QuantConfig, trace: Trace | None = None
) -> tuple[Model, Mapping[str, TensorRecord], InputRecord | None]:
    """Gives the int8 ``model`` the input that ``config`` asks for.

    Args:
        model: from `quantize_graph`, with the settings of `choose_codes`.
        tensors: how its int8 tensors are coded.
        config: the user's settings.
        trace: told what fired.

    Returns:
        The model, ``tensors`` for it, and what to feed it; the arguments and None for "float32".

    Raises:
        QuantizeError: codes were asked for, but no int8 layer reads the input.
        GraphError: a name that is needed is taken.
    """
    if config.input_dtype == FLOAT32:
        return model, tensors, None
    door = _Door(model, config, trace if trace is not None else Trace())
    settings = preprocess_of(config)
    made = door.codes() if config.input_dtype == INT8 or settings is None else door.pixels(settings)
    gone = {n.name for n in model.graph.operators} - {n.name for n in made.graph.operators}
    kept = {k: v for k, v in tensors.items() if k not in gone}
    return made, {**door.records, **kept}, door.input


def _check_span(name: str, found: Threshold, settings: Preprocess) -> None:
    """What was calibrated on can be what ``settings`` make of pixels: the mistake is to forget the settings."""
    a, b = _affine(settings)
    low, high = float(b.min()), float((255 * a + b).max())
    seen, span = found.observed, high - low
    if seen is None:
        return
    inside = seen.min >= low - _SLACK * span and seen.max <= high + _SLACK * span
    if not inside or seen.max - seen.min < _LEAST * span:
        raise ConfigError(
            f"preprocess takes pixels to {low:.6g} .. {high:.6g}, but the data that {name!r} was calibrated on is in "
            f"{seen.min:.6g} .. {seen.max:.6g}; give the preprocess that this data was made with"
        )


def _affine(settings: Preprocess) -> tuple[Array, Array]:
    """``a`` and ``b`` of x = a_c * p + b_c, each (C,) float64."""
    mean, std = np.asarray(settings.mean, np.float64), np.asarray(settings.std, np.float64)
    return settings.scale / std, (0.0 - mean) / std  # 0, not -0, where there is no mean


def _factor(settings: Preprocess) -> float | None:
    """The number that takes every pixel to the input; None where more is needed."""
    a, b = _affine(settings)
    return float(a[0]) if np.all(b == 0) and np.all(a == a[0]) else None


def _with_dtype(config: QuantConfig, name: str, dtype: str) -> QuantConfig:
    others = {k: v for k, v in config.overrides.items() if k != name}
    mine = replace(config.overrides.get(name, LayerConfig()), dtype=dtype)
    return replace(config, overrides={**others, name: mine})


@dataclass
class _Door:
    """The int8 model's only input, and what becomes of it."""

    model: Model
    config: QuantConfig
    trace: Trace

    def __post_init__(self) -> None:
        self.name = self.model.inputs[0]
        self.records: dict[str, TensorRecord] = {}
        self.input = InputRecord(self.name, UINT8, PIXELS, preprocess=self.config.preprocess)

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
        self.input = InputRecord(self.name, INT8, CODES, float(scale), self.config.preprocess)
        return self._take_codes(found, INT8)

    def pixels(self, settings: Preprocess) -> Model:
        """Pixels are fed: they are codes already, or a convolution makes the codes, or float operators the input."""
        found, factor = self._quantizer(UINT8), _factor(settings)
        if found is not None and factor is not None and _range(found).max == float(np.float32(PIXEL_TOP * factor)):
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
        name, (a, b) = self.name + NORMALIZE, _affine(settings)
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
        cast = Node(f"{name}_cast", "Cast", {"dtype": FLOAT32}, (Ref(name),))
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
            raise GraphError(f"input_dtype {self.config.input_dtype!r} needs the name {taken[0]!r}, but a node has it")
        others = (n for n in graph if n.name not in (self.name, dropped))
        rewired = (replace(n, inputs=tuple(moved.get(r, r) for r in n.inputs)) for n in others)
        heads = tuple(moved.get(h, h) for h in graph.heads)
        fed = graph[self.name].with_attrs(__dtype__=_FLAGS[dtype])
        self.trace.events.append(Event(_STEP, rule, self.name))
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
