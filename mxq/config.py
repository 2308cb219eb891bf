"""What the user asks for: `QuantConfig` and its parts. Each validates itself; its errors say what is allowed."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from operator import index
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from mxq.backends import BACKENDS
from mxq.data.budget import Budget
from mxq.errors import ConfigError, nearest, one_of
from mxq.formats.params import LARGEST
from mxq.graph.ir import Node
from mxq.graph.operator_names import OWN_NAME
from mxq.quant import ANY8, INT8, UINT8, QuantSpec
from mxq.quant.bits import Bits, Width
from mxq.quant.hardware import HARDWARE, hardware_of
from mxq.quant.spec import LEAST_IN_FILES, MOST_BITS
from mxq.registry import Registry
from mxq.weights.methods import BIAS_CORRECTIONS, ROUNDINGS, Methods

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SPECS: Mapping[str, QuantSpec] = MappingProxyType({"auto": ANY8, "int8": INT8, "uint8": UINT8})
"""What users call a type of activations -> its spec."""
DTYPES = tuple(SPECS)
GRANULARITIES = ("channel-wise",)
MODES = ("smart", "full")
INPUT_DTYPES = ("float32", "int8", "uint8")
EFFORTS = ("fast", "default", "best")
RANGE_CHOICES = ("tensor", "layer")
STEMS = ("float", "int8")
MXNET, ONNX = "mxnet", "onnx"
"""Backends: pairs for stock MXNet, and files for other runtimes."""
TARGETS = ("native", "avx512_vnni", "avx512", "avx2")

CLOSED: Mapping[str, tuple[str | None, ...]] = {
    "quantized_dtype": DTYPES,
    "quantize_mode": MODES,
    "quantize_granularity": GRANULARITIES,
    "input_dtype": INPUT_DTYPES,
    "effort": EFFORTS,
    "range_choice": (*RANGE_CHOICES, None),
    "stem": (*STEMS, None),
    "target": TARGETS,
}
"""Field of `QuantConfig` -> all values that it may have."""
METHOD_REGISTRIES: Mapping[str, Registry[Any]] = {"bias_correction": BIAS_CORRECTIONS, "rounding": ROUNDINGS}
"""Field of `QuantConfig` -> what knows the values that it may have, beside None."""

Selector: TypeAlias = str | Callable[[Node], bool]
"""A shell pattern over node names ("stage1_*", "*conv0*"; case matters), one over op types after `OP`
("op:Convolution", "op:*Pooling"), or a predicate over nodes."""
C = TypeVar("C", bound="DataclassInstance")
MOST_AXES = 32
"""Of an array, numpy's and MXNet's; one is the batch."""
OP = "op:"
Shape: TypeAlias = tuple[int, ...]
"""Of one example: (3, 224, 224)."""
_PREDICATE = "<predicate "
_BY_SETTINGS = ("mxnet_run_time", "simulate")
"""Backends that other settings choose."""
_LISTS = ("exclude_layers", "exclude_layers_match", "exclude_operators", "exclude_passes", "include_layers")


def quant_spec(dtype: str) -> QuantSpec:
    """The spec that users call ``dtype``.

    Raises:
        ConfigError: there is no such type.
    """
    if not isinstance(dtype, str) or dtype not in SPECS:
        raise one_of("dtype", dtype, DTYPES)
    return SPECS[dtype]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What one layer does differently; None leaves the network's setting.

    ``quantize=False`` leaves it in float. ``calib_mode``, ``dtype`` and ``threshold`` (a pair, activation
    units) apply to the layer's *output* tensor, ``weight_calib_mode`` to its own weight. ``bits``, in a simulation, are
    those of a layer's weight and of what it reads: 4, "W4A8" or (4, 8).
    """

    quantize: bool | None = None
    calib_mode: str | None = None
    weight_calib_mode: str | None = None
    dtype: str | None = None
    threshold: tuple[float, float] | None = None
    bits: Width | None = None

    def __post_init__(self) -> None:
        if self.bits is not None:
            object.__setattr__(self, "bits", str(Bits.parse(self.bits, "overrides: bits")))
        if not (self.quantize is None or isinstance(self.quantize, bool)):  # 0 is not False: `is` decides later
            raise one_of("overrides: quantize", self.quantize, (True, False, None))
        for name in ("calib_mode", "weight_calib_mode"):
            if getattr(self, name) is not None:
                _check_calibrator(name, getattr(self, name), "overrides: ")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise one_of("overrides: dtype", self.dtype, DTYPES)
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _interval(self.threshold))


def _interval(value: Any) -> tuple[float, float]:
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else ()
    if pair and all(isinstance(v, Real) and not isinstance(v, bool) for v in pair):
        try:
            low, high = map(float, pair)
        except OverflowError:  # an integer of more than 308 digits
            low, high = math.inf, math.inf
        if math.isfinite(low) and math.isfinite(high) and low <= high:
            return low, high
    raise ConfigError(f"overrides: threshold is {value!r}; allowed: (min, max), finite, min <= max")


def _check_calibrator(name: str, value: Any, where: str = "") -> None:
    """Only that it is text: which calibrators and parameters there are is known where they are used."""
    if not isinstance(value, str) or not value.strip():
        none = ", or 'none'" if name == "calib_mode" else ""
        raise ConfigError(
            f"{where}{name} is {value!r}; allowed: the name of an observer{none}, "
            "where it has parameters with those, such as 'percentile:99.99'"
        )


def choices(name: str) -> tuple[str, ...]:
    """What the field ``name`` of `QuantConfig`, or "algorithm" of `mxq.qat.QatConfig`, may be, by names.

    Those of other packages are among them.

    Calibrators may be followed by parameters: "percentile:99.9".
    """
    if name in CLOSED:
        return tuple(value for value in CLOSED[name] if value is not None)
    if name in METHOD_REGISTRIES:
        return METHOD_REGISTRIES[name].names()
    if name == "backend":
        return tuple(each for each in BACKENDS.names() if each not in _BY_SETTINGS)
    if name == "hardware":
        return HARDWARE.names()
    if name == "algorithm":
        from mxq.qat.algorithms import ALGORITHMS  # noqa: PLC0415 - as below

        return ALGORITHMS.names()
    from mxq import observers  # noqa: PLC0415 - it compiles kernels, of which settings have no need

    return (*observers.names(), "none") if name == "calib_mode" else observers.names()


def _check_method(name: str, value: Any, registry: Registry[Any]) -> None:
    """A method that is asked for exists and can be imported."""
    if value is None:
        return
    if not isinstance(value, str) or value not in registry:
        raise one_of(name, value, (*registry.names(), None))
    registry.get(value)


_ALL = Methods(
    equalize=True, bias_correction="empirical", rounding="reconstruction", range_choice="layer", stem="float"
)
METHODS: Mapping[str, Methods] = {
    "fast": Methods(equalize=False, bias_correction="none", rounding="nearest", range_choice="tensor", stem="int8"),
    "default": _ALL,
    "best": _ALL,
}
"""What each effort stands for."""


@dataclass(frozen=True)
class QuantConfig:
    """Everything about how to quantize. Names shared with `mxnet.contrib.quantization.quantize_net` mean the same.

    Attributes:
        calib_mode: how ranges are found, an observer's name and its parameters: "naive", "percentile:99.99",
            "ema_minmax:momentum=0.9"; or "none": at run time.
        weight_calib_mode: how weights are clipped, each output channel to the range that an observer finds for
            it; "naive" keeps them as they are.
        quantized_dtype: activations as "int8", "uint8" (needs non-negative tensors), or "auto", u8 where the
            calibrated range has no negative part.
        quantize_mode: "smart" quantizes convolutions, fully connected layers and what lies between them, but for the
            average pooling of a head; "full" everything that has an int8 kernel.
        quantize_granularity: "channel-wise", a scale for each output channel of a weight. (MXNet's other choice,
            "tensor-wise", concerns fully connected layers only, is less accurate and no faster; it is not offered.)
        exclude_layers: names or shell patterns of nodes to leave in float, op types ("op:*Pooling"), or predicates
            over nodes.
        exclude_layers_match: plain substrings of node names, as in MXNet.
        exclude_operators: op types to leave in float, e.g. "FullyConnected".
        exclude_passes: graph passes that are not run, such as an installed package's; `mxq.passes.order` lists mxq's.
        include_layers: where given, only these are quantized.
        overrides: pattern -> `LayerConfig`; later patterns win. A pattern is one over names, or "op:" and one over
            op types.
        num_calib_examples: count or percentage, see `Budget`.
        input_dtype: what the network is fed: "float32", as before; "int8", the codes that its first quantization would
            make; or "uint8", pixels, which it normalises itself. `mxq.data` makes the integers.
        preprocess: how a picture becomes the float network's input: a `mxq.images.Preprocess` or its fields, as in a
            ``preprocess.json``. Needed for "uint8"; with "int8" it goes into the record, for `mxq.data`.
        effort: "fast" takes ranges from observers and rounds weights to the nearest code; "default" adds the methods
            below, in 64 examples or fewer; "best" gives them more of the data.
        equalize: whether channels are scaled so that they share a tensor's range evenly.
        bias_correction: "empirical", from calibration data on the quantized prefix; "analytic", from BatchNorm's
            statistics alone; or "none".
        rounding: of weights: to the "nearest" code, or by "reconstruction" of the layer's output. `choices` lists
            also the roundings and bias corrections of other packages.
        range_choice: of activations: by the "tensor"'s observer alone, or narrowed where that helps the output of the
            "layer"s that read it.
        recalibrate_batchnorm: whether the channels of layers that took in a BatchNorm get back the means and variances
            that they have in the float network, as from a BatchNorm with new statistics (`mxq.recalibration`).
        stem: "float" leaves in float, in mode "smart", the layers of little work whose rounding calibration data shows
            to be much of the network's noise (`mxq.noisy`): stems of few channels as of MobileNets, learned poolings.
            "int8" has them in int8, which is quicker, and the default where the network is fed integers
            (``input_dtype``).
        target: the CPU that the network is for, "avx512_vnni", "avx512" or "avx2"; "native": this one. Without VNNI
            sums of two products saturate in 16 bits, which the network is then kept from.
        input_shape: of one example, (3, 224, 224) or "3x224x224", by name where there are several inputs, if the
            network will be fed no other: less is left to compute (`mxq.passes.fix_shape`), and it refuses others.
            None: any that the network takes.
        backend: what the network is planned for: "mxnet", or "onnx", files for other runtimes, which is a simulation
            until `mxq.export_onnx` writes it. Other packages' backends have names of their own (`mxq.backends`).
        simulate: whether to make, instead of an int8 network, a float one that computes what codes of ``hardware`` with
            so many ``bits`` would. Without, there are oneDNN's kernels of 8 bits alone.
        hardware: whose codes, and which tensors have them (`mxq.quant.hardware`): "onednn", "tensorrt", ...
        bits: of codes, 2 to 8: 4, or of weights and of all else "W4A8" or (4, 8). None: 8.
    """

    calib_mode: str = "naive"
    weight_calib_mode: str = "naive"
    quantized_dtype: str = "auto"
    quantize_mode: str = "smart"
    quantize_granularity: str = "channel-wise"
    exclude_layers: tuple[Selector, ...] = ()
    exclude_layers_match: tuple[str, ...] = ()
    exclude_operators: tuple[str, ...] = ()
    exclude_passes: tuple[str, ...] = ()
    include_layers: tuple[Selector, ...] = ()
    overrides: Mapping[str, LayerConfig] = field(default_factory=dict)
    num_calib_examples: int | str | None = None
    input_dtype: str = "float32"
    preprocess: Mapping[str, Any] | None = None
    effort: str = "default"
    equalize: bool | None = None
    bias_correction: str | None = None
    rounding: str | None = None
    range_choice: str | None = None
    recalibrate_batchnorm: bool | None = None
    stem: str | None = None
    target: str = "native"
    input_shape: Shape | Mapping[str, Shape] | str | None = None
    backend: str = MXNET
    simulate: bool = False
    hardware: str = "onednn"
    bits: Width | None = None

    def __post_init__(self) -> None:
        self._settle_codes()
        for name in _LISTS:
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        for name, allowed in CLOSED.items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)) or value not in allowed:
                raise one_of(name, value, allowed)
        for name, registry in METHOD_REGISTRIES.items():
            _check_method(name, getattr(self, name), registry)
        for name in ("equalize", "recalibrate_batchnorm"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, bool)):  # 1 is not True: it is written to records
                raise one_of(name, value, (True, False, None))
        for name in ("calib_mode", "weight_calib_mode"):
            _check_calibrator(name, getattr(self, name))
        count = Budget.parse(self.num_calib_examples).count
        if count is not None:
            object.__setattr__(self, "num_calib_examples", count)  # a plain int also where it was text or a numpy one
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"overrides is {self.overrides!r}; allowed: a mapping of patterns to settings")
        overrides = {k: _layer_config(k, v) for k, v in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)
        self._check_layers()
        object.__setattr__(self, "preprocess", _settings(self.preprocess))
        object.__setattr__(self, "input_shape", _input_shape(self.input_shape))

    def _settle_codes(self) -> None:
        """One form for each of the settings that say what is simulated."""
        if not isinstance(self.backend, str) or self.backend not in choices("backend"):
            raise one_of("backend", self.backend, choices("backend"))
        object.__setattr__(self, "hardware", hardware_of(self.hardware).name)
        if self.backend == ONNX:
            self._settle_files()
        if self.bits is not None:
            object.__setattr__(self, "bits", str(Bits.parse(self.bits)))
        if not isinstance(self.simulate, bool):
            raise one_of("simulate", self.simulate, (True, False))

    def _settle_files(self) -> None:
        """Files for other runtimes have codes of their own, which MXNet can simulate."""
        hardware = ONNX if self.hardware == "onednn" else self.hardware
        if hardware_of(hardware).products is None:
            known = [name for name in HARDWARE.names() if hardware_of(name).products is not None]
            raise ConfigError(
                f"hardware is {hardware!r} for an ONNX file; allowed: that of its runtimes, {', '.join(known)}"
            )
        if self.bits is not None and not in_files(self.width):
            raise _not_in_files("bits", self.width)
        object.__setattr__(self, "hardware", hardware)
        object.__setattr__(self, "simulate", True)

    def _check_layers(self) -> None:
        """Whether files hold the codes of single layers."""
        for pattern, width in self._layer_widths.items():
            if self.backend == ONNX and not in_files(width):
                raise _not_in_files(f"overrides {pattern!r}: bits", width)

    @property
    def activation(self) -> QuantSpec:
        """The spec of what is quantized from float."""
        return quant_spec(self.quantized_dtype)

    @property
    def has_kernels(self) -> bool:
        """Whether all codes that are asked for are those of MXNet's kernels."""
        return self.hardware == "onednn" and all(w == Bits() for w in (self.width, *self._layer_widths.values()))

    @property
    def _layer_widths(self) -> dict[str, Bits]:
        return {p: Bits.parse(layer.bits) for p, layer in self.overrides.items() if layer.bits is not None}

    @property
    def width(self) -> Bits:
        """How many bits codes have."""
        return Bits() if self.bits is None else Bits.parse(self.bits)

    @property
    def budget(self) -> Budget:
        return Budget.parse(self.num_calib_examples)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Input -> its one shape; under "" that of the only input. Empty where any shape will do."""
        given = _input_shape(self.input_shape)
        return given if isinstance(given, Mapping) else {} if given is None else {"": given}

    @property
    def methods(self) -> Methods:
        """What ``effort`` stands for, with what was asked for by name instead."""
        asked = {f.name: value for f in fields(Methods) if (value := getattr(self, f.name)) is not None}
        usual = METHODS[self.effort]
        if self.input_dtype != "float32":
            usual = replace(usual, stem="int8")
        return replace(usual, **asked)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; predicates appear by their name."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["overrides"] = {k: asdict(v) for k, v in self.overrides.items()}
        if isinstance(self.input_shape, Mapping):
            data["input_shape"] = {name: list(shape) for name, shape in self.shapes.items()}
        for name in ("exclude_layers", "include_layers"):
            data[name] = [s if isinstance(s, str) else f"{_PREDICATE}{selector_name(s)}>" for s in data[name]]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    @staticmethod
    def from_json(data: Any) -> QuantConfig:
        """Reads what `to_json` wrote; fields that are missing have their defaults.

        Raises:
            ConfigError: an unknown field, a value that is not allowed, or a predicate, which is code.
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"settings are {data!r}; allowed: a mapping of fields to values")
        allowed = [f.name for f in fields(QuantConfig)]
        unknown = [name for name in data if name not in allowed]
        if unknown:
            raise ConfigError(f"unknown field {unknown[0]!r}; allowed: {', '.join(allowed)}")
        config = QuantConfig(**data)
        for name in ("exclude_layers", "include_layers"):
            for selector in getattr(config, name):
                if callable(selector) or selector.startswith(_PREDICATE):
                    raise ConfigError(
                        f"{name} holds {selector_name(selector)!r}; a predicate is code and cannot be written or read; "
                        "allowed: names and patterns"
                    )
        return config


def with_options(usual: C, config: C | None, options: Mapping[str, Any]) -> C:
    """``config``, or ``usual`` where there is none, with other values of some fields.

    Args:
        usual: settings of the kind that is allowed.
        config: what the user gave.
        options: values by field.

    Raises:
        ConfigError: ``config`` is of another kind, there is no such field, or a value is not allowed.
    """
    if not isinstance(config, type(usual) | None):
        kind = type(usual).__name__
        raise ConfigError(f"config is {_shown(config)}; allowed: a {kind}, or None and its fields as options")
    allowed = [f.name for f in fields(usual)]
    unknown = [name for name in options if name not in allowed]
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; allowed: {', '.join(allowed)}{nearest(unknown[0], allowed)}")
    return replace(usual if config is None else config, **options)


def in_files(bits: Bits) -> bool:
    """Whether an ONNX file can have such codes."""
    return bits.activations == MOST_BITS and bits.weights >= LEAST_IN_FILES


def _not_in_files(name: str, found: Bits) -> ConfigError:
    return ConfigError(
        f"{name} is {str(found)!r} for an ONNX file; allowed: W4A8 to W8A8, as runtimes read weights of 4 bits or more "
        "and compute with tensors of 8"
    )


def _input_shape(value: Any) -> Shape | dict[str, Shape] | None:
    if value is None:
        return None
    if isinstance(value, Mapping) and value:
        return {str(name): shape_of(shape) for name, shape in value.items()}
    return shape_of(value)


def shape_of(value: Any, field: str = "input_shape") -> Shape:
    """Three positive integers, or as many as an example has axes; in text with "x" between them.

    Raises:
        ConfigError: ``value`` is none; names the ``field``.
    """
    parts = value.split("x") if isinstance(value, str) else value
    try:
        shape = tuple(index(int(p) if isinstance(p, str) else p) for p in parts)
    except (TypeError, ValueError):
        shape = ()
    if not shape or min(shape) < 1 or any(isinstance(p, bool) for p in parts):
        raise ConfigError(
            f"{field} is {value!r}; allowed: the axes of one example, (3, 224, 224) or '3x224x224', or a mapping of "
            "inputs to such"
        )
    check_shape(field, shape)
    return shape


def check_shape(name: str, shape: Shape) -> None:
    """Whether an array can have the shape.

    Raises:
        ConfigError: it has too many axes or values; the setting ``name`` says so.
    """
    if math.prod(shape) > LARGEST or len(shape) >= MOST_AXES:
        raise ConfigError(
            f"{name} is {_shown(shape)}; allowed: fewer than {MOST_AXES} axes, and up to {LARGEST} values"
        )


def _layer_config(pattern: Any, value: Any) -> LayerConfig:
    if not isinstance(pattern, str):
        raise ConfigError(f"overrides: pattern is {pattern!r}; allowed: text, a name or pattern, or {OP!r} and a type")
    if isinstance(value, LayerConfig):
        return value
    allowed = [f.name for f in fields(LayerConfig)]
    if not isinstance(value, Mapping):
        raise ConfigError(f"overrides: {pattern!r} is {value!r}; allowed: a mapping of {', '.join(allowed)}")
    unknown = [k for k in value if k not in allowed]
    if unknown:
        raise ConfigError(f"overrides: {pattern!r} has {unknown[0]!r}; allowed: {', '.join(allowed)}")
    try:
        return LayerConfig(**value)
    except ConfigError as error:
        raise ConfigError(f"of {pattern!r} in {error}") from None


def _settings(value: Any) -> dict[str, Any] | None:
    """``preprocess`` as plain JSON. Which fields there are is known where they are used, as of calibrators."""
    table = value.to_json() if hasattr(value, "to_json") else value
    if table is None:
        return None
    if not isinstance(table, Mapping):
        raise ConfigError(f"preprocess is {value!r}; allowed: a mapping of fields such as mean and std, a Preprocess")
    return {str(k): list(v) if isinstance(v, tuple) else v for k, v in table.items()}


def by_op(selector: Selector) -> bool:
    """Whether ``selector`` is a pattern over op types, not over names."""
    return isinstance(selector, str) and selector.startswith(OP)


def selector_name(selector: Selector) -> str:
    """How a selector is called in messages."""
    return selector if isinstance(selector, str) else getattr(selector, "__name__", repr(selector))


def selects(selector: Selector, node: Node) -> bool:
    """Whether ``selector`` chooses ``node``.

    A predicate answers itself. A pattern must match the whole name, or after `OP` the whole op type, by any of MXNet's
    names for it; a name that holds characters of patterns ("block[0]") matches itself too.

    Raises:
        ConfigError: a predicate fails, or says neither yes nor no.
    """
    if callable(selector):
        try:
            return bool(selector(node))
        except Exception as failure:
            raise ConfigError(
                f"the predicate {selector_name(selector)!r} failed on node {node.name!r} ({node.op}): "
                f"{type(failure).__name__}: {failure}; allowed: a function of a node that returns True or False"
            ) from failure
    if by_op(selector):
        wanted = selector.removeprefix(OP)
        return fnmatch.fnmatchcase(node.op, OWN_NAME.get(wanted, wanted)) or fnmatch.fnmatchcase(node.op, wanted)
    return selector == node.name or fnmatch.fnmatchcase(node.name, selector)


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    predicates = name in ("exclude_layers", "include_layers")
    allowed = "names, patterns or predicates" if predicates else "plain text, one or a list"

    def fits(item: Any) -> bool:
        return isinstance(item, str) or (predicates and callable(item))

    if value is None:
        return ()
    if fits(value):
        return (value,)
    if isinstance(value, Mapping):
        raise ConfigError(f"{name} is {_shown(value)}; allowed: {allowed}")
    try:
        items = tuple(value)
    except TypeError:
        raise ConfigError(f"{name} is {_shown(value)}; allowed: {allowed}") from None
    for item in items:
        if not fits(item):
            raise ConfigError(f"{name} holds {_shown(item)}; allowed: {allowed}")
    return items


def _shown(value: Any) -> str:
    """``value`` in a message: an array that came to the wrong argument is not printed."""
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a {type(value).__name__}"
