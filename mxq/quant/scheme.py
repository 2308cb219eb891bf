"""Schemes: from the range of a tensor, or of each of its channels, to its `QParams`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import ConfigError
from mxq.numerics import LARGEST
from mxq.quant.qparams import Array, QParams
from mxq.quant.spec import QuantSpec

Reals: TypeAlias = NDArray[np.floating[Any]]

ZERO_RANGE_SCALE: Final = float(2**31 - 1)
"""The scale of an empty range: INT_MAX, as of ``GetQuantizeScale``, where a division would give infinity. `quantize_v2`
alone does divide by zero, and codes 0 as 127; an empty range must not reach it."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """A rule for scale and zero point.

    Attributes:
        name: of the rule.
        symmetric: whether it is for specs without a zero point.
        top: what the end of the range maps to, in codes, given a settled spec.
        source: the paper and equation, or the kernel's file.
    """

    name: str
    symmetric: bool
    top: Callable[[QuantSpec], float]
    source: str

    def params(self, spec: QuantSpec, low: ArrayLike, high: ArrayLike) -> QParams:
        """The parameters by which codes cover ``low`` .. ``high``.

        Args:
            spec: what codes are to be; ``signed`` None is settled by the lowest ``low``.
            low, high: units of the tensor: numbers, or (C,) with ``spec.axis``. Value 0 is always within: a range
                that does not hold it is widened to it.

        Returns:
            A scale that is a power of two is the largest that covers the range. A range of 0 alone gets the scale
            `ZERO_RANGE_SCALE`.

        Raises:
            ConfigError: a bound is not finite, ``low`` is above ``high``, or the spec is not of this scheme.
        """
        self._check(spec)
        lows, highs = _bounds(low, high)
        spec = spec.settled(float(lows.min(initial=0)))
        scale = _scale(self.top(spec), _width(spec, lows, highs))
        if spec.scale == "power_of_two":
            scale = np.exp2(np.floor(np.log2(scale))).astype(np.float32)
        if self.symmetric:
            return QParams(spec, scale)
        return QParams(spec, scale, _zeros(spec, lows, scale))

    def steps(self, spec: QuantSpec, low: ArrayLike, high: ArrayLike) -> tuple[Reals, Reals]:
        """What `params` makes of many ranges of one tensor, in float64 as a search through them needs it.

        Args:
            spec: settled.
            low, high: (m,), units of the tensor, ``low <= 0 < high``.

        Returns:
            (m,) each: units of value between two codes, and the code of value 0.

        Raises:
            ConfigError: the spec is not of this scheme.
        """
        self._check(spec)
        lows, highs = (np.asarray(bound, np.float64) for bound in (low, high))
        steps: Reals = _width(spec, lows, highs) / self.top(spec)
        if spec.scale == "power_of_two":
            steps = np.exp2(np.ceil(np.log2(steps)))
        return steps, np.zeros_like(steps) if self.symmetric else _zeros(spec, lows, 1 / steps).astype(np.float64)

    def _check(self, spec: QuantSpec) -> None:
        if spec.symmetric != self.symmetric:
            kind = "no zero point" if self.symmetric else "a zero point"
            raise ConfigError(f"the scheme {self.name!r} is for specs with {kind}; found: {spec}")

    def covering(self, spec: QuantSpec, x: Array) -> QParams:
        """The parameters by which codes cover all of ``x``, or all of each of its channels with ``spec.axis``.

        Without a zero point the range is symmetric, so that ``signed`` None settles to True.
        """
        others = None if spec.axis is None else tuple(i for i in range(x.ndim) if i != spec.axis)
        low, high = x.min(axis=others), x.max(axis=others)
        if spec.symmetric:
            high = np.maximum(-low, high)
            low = -high
        return self.params(spec, low, high)


def _bounds(low: ArrayLike, high: ArrayLike) -> tuple[Reals, Reals]:
    lows, highs = (np.asarray(bound, dtype=np.float64) for bound in (low, high))
    if lows.shape != highs.shape:
        raise ConfigError(f"the ranges' ends have shapes {lows.shape} and {highs.shape}; allowed: two equal shapes")
    for bound in (lows, highs):
        if not np.isfinite(bound).all() or np.any(np.abs(bound) > LARGEST):
            raise ConfigError(
                f"a range ends at {bound.flat[int(np.argmax(~(np.abs(bound) <= LARGEST)))]}; allowed: float32"
            )
    if np.any(lows > highs):
        raise ConfigError("a range has its minimum above its maximum")
    return np.minimum(lows, 0), np.maximum(highs, 0)


def _width(spec: QuantSpec, lows: Reals, highs: Reals) -> Reals:
    """What `Scheme.top` stands for: all of the range with a zero point, else the largest absolute value to hold."""
    if not spec.symmetric:
        return highs - lows
    return np.maximum(-lows, highs) if spec.signed else highs


def _scale(top: float, width: Reals) -> NDArray[np.float32]:
    """``top / width`` in float32, as MXNet's kernels compute it."""
    narrow = width.astype(np.float32)
    with np.errstate(over="ignore"):
        ratio = np.float32(top) / np.where(narrow == 0, np.float32(1), narrow)
    empty = (narrow == 0) | ~np.isfinite(ratio)
    return np.asarray(np.where(empty, np.float32(ZERO_RANGE_SCALE), ratio), dtype=np.float32)


def _zeros(spec: QuantSpec, lows: Reals, scale: Reals) -> NDArray[np.int64]:
    """arXiv:2004.09602, eq. 2: the lowest code is that of the range's minimum."""
    return np.asarray(np.clip(spec.lowest - np.rint(lows * scale), spec.lowest, spec.highest)).astype(np.int64)


MXNET: Final = Scheme(
    "mxnet",
    symmetric=True,
    top=lambda spec: spec.highest + 0.5,
    source="GetQuantizeScale in src/operator/quantization/quantization_utils.h of MXNet 1.9.1",
)
"""127.5 / absmax: the largest value lies between two codes, and saturates."""

SYMMETRIC: Final = Scheme(
    "symmetric", symmetric=True, top=lambda spec: spec.highest, source="Wu et al., arXiv:2004.09602, eq. 6"
)
"""127 / absmax."""

AFFINE: Final = Scheme(
    "affine",
    symmetric=False,
    top=lambda spec: spec.highest - spec.lowest,
    source="Wu et al., arXiv:2004.09602, eq. 1 and 2; MQBench (arXiv:2111.03759), eq. 1",
)
"""The range's ends are the lowest and the highest code; value 0 is a code."""

SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType({scheme.name: scheme for scheme in (MXNET, SYMMETRIC, AFFINE)})
"""All of them by name."""


def scheme_of(spec: QuantSpec) -> Scheme:
    """The usual scheme of a spec, where no kernel asks for another."""
    return SYMMETRIC if spec.symmetric else AFFINE
