"""What the user asks for: `QuantConfig` and its parts. Each validates itself; its errors say what is allowed."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeAlias

from mxq.errors import ConfigError, one_of
from mxq.ir import Node

DTYPES = ("auto", "int8", "uint8")
GRANULARITIES = ("channel-wise",)
MODES = ("smart", "full")

Selector: TypeAlias = str | Callable[[Node], bool]
"""A shell pattern over node names ("stage1_*", "*conv0*"; case matters) or a predicate over nodes."""


@dataclass(frozen=True, slots=True)
class Budget:
    """How much calibration data to use: ``count`` examples, or a ``percent`` of what there is.

    The default, 5 %, is kept between 32 and 1024 examples. A plain count or percentage is kept as it is.
    """

    count: int | None = None
    percent: float | None = None
    least: int = 1
    most: int | None = None

    @staticmethod
    def parse(value: int | str | None) -> Budget:
        """Reads ``num_calib_examples``: None (the default), 500, "500" or "5%".

        Raises:
            ConfigError: not positive, or a percentage outside (0, 100].
        """
        if value is None:
            return Budget(percent=5.0, least=32, most=1024)
        text = str(value).strip()
        number = text.removesuffix("%")
        try:
            amount = float(number)
        except ValueError:
            amount = -1.0
        if text.endswith("%") and 0 < amount <= 100:
            return Budget(percent=amount)
        if not text.endswith("%") and 0 < amount < math.inf and amount == int(amount):
            return Budget(count=int(amount))
        raise ConfigError(
            f"num_calib_examples is {value!r}; allowed: a positive count such as 500, a percentage such as '5%', "
            "or None"
        )

    def examples(self, available: int | None) -> int | None:
        """The number of examples to use of ``available`` (None: unknown); None where only the end of data ends it."""
        if self.count is not None:
            return self.count if available is None else min(self.count, available)
        if available is None:
            return self.most
        wanted = max(round(available * (self.percent or 100.0) / 100), self.least, 1)
        return min(wanted, self.most or wanted, available)


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """What one layer does differently; None leaves the network's setting.

    ``quantize=False`` leaves it in float. ``calib_mode``, ``dtype`` and ``threshold`` (a pair, activation
    units) apply to the layer's *output* tensor.
    """

    quantize: bool | None = None
    calib_mode: str | None = None
    dtype: str | None = None
    threshold: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise one_of("overrides: dtype", self.dtype, DTYPES)
        if self.threshold is not None and not _is_interval(self.threshold):
            raise ConfigError(f"overrides: threshold is {self.threshold!r}; allowed: (min, max), finite, min <= max")
        if self.quantize not in (None, True, False):
            raise one_of("overrides: quantize", self.quantize, (True, False, None))


def _is_interval(value: Any) -> bool:
    try:
        low, high = map(float, value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(low) and math.isfinite(high) and low <= high


@dataclass(frozen=True)
class QuantConfig:
    """Everything about how to quantize. Names shared with `mxnet.contrib.quantization.quantize_net` mean the same.

    Attributes:
        calib_mode: an observer's name ("naive", "entropy"), or "none": ranges are found at run time.
        quantized_dtype: activations as "int8", "uint8" (needs non-negative tensors), or "auto", u8 where the
            calibrated range has no negative part.
        quantize_mode: "smart" quantizes convolutions, fully connected layers and what lies between them;
            "full" everything that has an int8 kernel.
        quantize_granularity: "channel-wise", a scale for each output channel of a weight. (MXNet's other choice,
            "tensor-wise", concerns fully connected layers only, is less accurate and no faster; it is not offered.)
        exclude_layers: names or shell patterns of nodes to leave in float, or predicates over nodes.
        exclude_layers_match: plain substrings of node names, as in MXNet.
        exclude_operators: op types to leave in float, e.g. "FullyConnected".
        include_layers: where given, only these are quantized.
        overrides: pattern -> `LayerConfig`; later patterns win.
        num_calib_examples: count or percentage, see `Budget`.
    """

    calib_mode: str = "naive"
    quantized_dtype: str = "auto"
    quantize_mode: str = "smart"
    quantize_granularity: str = "channel-wise"
    exclude_layers: tuple[Selector, ...] = ()
    exclude_layers_match: tuple[str, ...] = ()
    exclude_operators: tuple[str, ...] = ()
    include_layers: tuple[Selector, ...] = ()
    overrides: Mapping[str, LayerConfig] = field(default_factory=dict)
    num_calib_examples: int | str | None = None

    def __post_init__(self) -> None:
        for name in ("exclude_layers", "exclude_layers_match", "exclude_operators", "include_layers"):
            object.__setattr__(self, name, _as_tuple(name, getattr(self, name)))
        for name, allowed in (
            ("quantized_dtype", DTYPES),
            ("quantize_mode", MODES),
            ("quantize_granularity", GRANULARITIES),
        ):
            if getattr(self, name) not in allowed:
                raise one_of(name, getattr(self, name), allowed)
        if not isinstance(self.calib_mode, str):
            raise ConfigError(f"calib_mode is {self.calib_mode!r}; allowed: the name of an observer, or 'none'")
        Budget.parse(self.num_calib_examples)
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"overrides is {self.overrides!r}; allowed: a mapping of patterns to settings")
        overrides = {k: _layer_config(k, v) for k, v in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)

    @property
    def budget(self) -> Budget:
        return Budget.parse(self.num_calib_examples)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary; predicates appear by their name."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["overrides"] = {k: asdict(v) for k, v in self.overrides.items()}
        for name in ("exclude_layers", "include_layers"):
            data[name] = [s if isinstance(s, str) else f"<predicate {selector_name(s)}>" for s in data[name]]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _layer_config(pattern: str, value: Any) -> LayerConfig:
    if isinstance(value, LayerConfig):
        return value
    allowed = [f.name for f in fields(LayerConfig)]
    unknown = [k for k in value if k not in allowed] if isinstance(value, Mapping) else [value]
    if unknown:
        raise ConfigError(f"overrides: {pattern!r} has {unknown[0]!r}; allowed: {', '.join(allowed)}")
    return LayerConfig(**value)


def selector_name(selector: Selector) -> str:
    """How a selector is called in messages."""
    return selector if isinstance(selector, str) else getattr(selector, "__name__", repr(selector))


def selects(selector: Selector, node: Node) -> bool:
    """Whether ``selector`` chooses ``node``: a predicate's answer, or its whole name matched as a shell pattern."""
    if callable(selector):
        return bool(selector(node))
    return re.fullmatch(fnmatch.translate(selector), node.name) is not None


def _as_tuple(name: str, value: Any) -> tuple[Any, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or callable(value):
        return (value,)
    try:
        items = tuple(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; allowed: names, patterns or predicates") from None
    for item in items:
        if not (isinstance(item, str) or callable(item)):
            raise ConfigError(f"{name} holds {item!r}; allowed: names, patterns or predicates")
    return items
