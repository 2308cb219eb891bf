"""Schemes: from the range of a tensor, or of each of its channels, to its `QParams`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.errors import ConfigError
from mxq.numerics import ZERO_RANGE_SCALE
from mxq.quant.qparams import QParams
from mxq.quant.spec import QuantSpec

Reals: TypeAlias = NDArray[np.floating[Any]]

LARGEST: Final = float(np.finfo(np.float32).max)
"""The largest float32."""


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
        lows, highs = _bounds(low, high)
        if spec.symmetric != self.symmetric:
            kind = "no zero point" if self.symmetric else "a zero point"
            raise ConfigError(f"the scheme {self.name!r} is for specs with {kind}; found: {spec}")
        spec = spec.settled(float(lows.min(initial=0)))
        width = _extent(spec, lows, highs) if self.symmetric else highs - lows
        scale = _scale(self.top(spec), width)
        if spec.scale == "power_of_two":
            scale = np.exp2(np.floor(np.log2(scale))).astype(np.float32)
        if self.symmetric:
            return QParams(spec, scale)
        return QParams(spec, scale, _zeros(spec, lows, scale))


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


def _extent(spec: QuantSpec, lows: Reals, highs: Reals) -> Reals:
    """The largest absolute value that codes without zero point have to hold."""
    return np.maximum(-lows, highs) if spec.lowest < 0 else highs


def _scale(top: float, width: Reals) -> NDArray[np.float32]:
    """``top / width`` in float32, as MXNet's kernels compute it."""
    narrow = width.astype(np.float32)
    with np.errstate(over="ignore"):
        ratio = np.float32(top) / np.where(narrow == 0, np.float32(1), narrow)
    empty = (narrow == 0) | ~np.isfinite(ratio)
    return np.asarray(np.where(empty, np.float32(ZERO_RANGE_SCALE), ratio), dtype=np.float32)


def _zeros(spec: QuantSpec, lows: Reals, scale: NDArray[np.float32]) -> NDArray[np.int64]:
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


def scheme_of(spec: QuantSpec) -> Scheme:
    """The usual scheme of a spec, where no kernel asks for another."""
    return SYMMETRIC if spec.symmetric else AFFINE
