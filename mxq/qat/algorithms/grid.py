"""`Grid`: the values that a fake-quantized tensor can take; and steps, which are above 0 whatever is learned.

Source of the arithmetic: `mxq.quant.QParams`, whose numbers these are, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mxq.qat.algorithms import kernels
from mxq.qat.algorithms.protocol import Floats, Site
from mxq.quant import QParams, QuantSpec
from mxq.quant.scheme import ZERO_RANGE_SCALE

Reals: TypeAlias = NDArray[np.float64]

LEAST_STEP: Final = 2.0**-31
MOST_STEP: Final = 2.0**31
"""A learned step is used as its absolute value, within these. So it can pass through 0 without a change of sign."""

NO_RANGE: Final = 2.0**-120
"""The width below which a range is empty: a division by it would give infinity."""


class Sums(NamedTuple):
    """What all gradients of a grid's ends and step are made of, (C,) each, given the gradient ``g`` of the result.

    Attributes:
        inside: of ``g (rint(u) - u)``, ``u = x / step``, over values within the grid.
        below, above: of ``g`` over values beyond its ends.
    """

    inside: Reals
    below: Reals
    above: Reals


@dataclass(frozen=True, eq=False, slots=True)
class Grid:
    """The values ``k / scale`` with whole ``k`` from ``low`` to ``high``: (C,) float32 each.

    ``low`` and ``high`` are the lowest and highest code less that of value 0.
    """

    scale: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, spec: QuantSpec, scale: Floats, zero: Floats | float = 0.0) -> Grid:
        """That of codes of ``spec`` whose code of value 0 is ``zero``."""
        ends = [np.array(np.broadcast_to(np.float32(end) - zero, scale.shape), np.float32) for end in ends_of(spec)]
        return cls(np.ascontiguousarray(scale, np.float32), *ends)

    def fake(self, x: Floats, out: Floats | None = None) -> Floats:
        """``x`` (A, C, B) with each value moved to the nearest of the grid, of two to the even ``k``."""
        out = np.empty_like(x) if out is None else out
        kernels.fake(x, self.scale, self.low, self.high, out)
        return out

    def gradients(self, x: Floats, grad: Floats, out: Floats | None = None) -> tuple[Floats, Sums]:
        """The gradient of ``x``, that of the result within the grid and 0 beyond; and of what others are made.

        Source: Wu et al., arXiv:2004.09602, eq. 13.
        """
        out = np.empty_like(x) if out is None else out
        return out, Sums(*kernels.gradients(x, grad, self.scale, self.low, self.high, out))

    def params(self, spec: QuantSpec) -> QParams:
        """As scale and zero point."""
        scale, zero = self.scale, (spec.lowest - self.low).astype(np.int32)
        return QParams(spec, scale, zero) if spec.axis is not None else QParams(spec, scale[0], zero[0])


def ends_of(spec: QuantSpec) -> tuple[int, int]:
    """The lowest and the highest code."""
    return spec.lowest, spec.highest


def used(spec: QuantSpec, step: Floats) -> tuple[Floats, Floats]:
    """The step that is used where ``step`` (C,) was learned, and its derivative, which passes the bounds.

    A power of two is the nearest in log2; the derivative passes the rounding of that.
    """
    size = positive(step)
    found = np.exp2(np.rint(np.log2(size))) if spec.scale == "power_of_two" else size
    return found, np.where(step < 0, -found, found) / size


def scale_of(site: Site, step: Floats) -> Floats:
    """Codes per unit of value for a step (C,) that is used: its reciprocal, or the last bit of a kernel's.

    A kernel divides by a range, which is made of the step. Pixels often lie in the very middle between two codes, and
    with another last bit become the other one.
    """
    top = np.float32(site.scheme.top(site.spec)) if has_range(site) else np.float32(1)
    return np.asarray(top / (top * step), np.float32)


def has_range(site: Site) -> bool:
    """Whether the rule of a site makes a float scale of a range."""
    return bool(site.rule) and site.spec.symmetric and site.spec.scale == "float"


def positive(x: Floats) -> Floats:
    """The absolute value, neither too small nor too large to divide by."""
    return np.clip(np.abs(x), np.float32(LEAST_STEP), np.float32(MOST_STEP))


def rounded(spec: QuantSpec, zero: Floats) -> Floats:
    """The code that a learned zero point (C,) stands for."""
    return np.asarray(np.clip(np.rint(zero), *ends_of(spec)), np.float32)


def zero_of(spec: QuantSpec, low: Floats, scale: Floats) -> Floats:
    """The code of value 0 in codes that begin at ``low`` (C,), <= 0: arXiv:2004.09602, eq. 2."""
    with np.errstate(over="ignore"):  # a product beyond float32 is a code like any other
        return rounded(spec, np.float32(spec.lowest) - np.rint(low * scale))


def covering(site: Site, low: Floats, high: Floats) -> Grid:
    """`mxq.quant.Scheme.params` of ranges (C,), low <= 0 <= high, as a grid, for which NaN is no error."""
    spec, width = site.spec, width_of(site.spec, low, high)
    empty = width < np.float32(NO_RANGE)
    scale = np.float32(site.scheme.top(spec)) / np.where(empty, np.float32(1), width)
    scale = np.where(empty, np.float32(ZERO_RANGE_SCALE), scale)
    if spec.scale == "power_of_two":
        scale = np.exp2(np.floor(np.log2(scale)))
    if spec.symmetric:
        return Grid.of(spec, scale)
    return Grid.of(spec, scale, zero_of(spec, low, scale))


def alive(site: Site, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Ranges (C,) from which a step can be learned: a channel without one gets the mean of the others', or 1."""
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    width = width_of(site.spec, low, high)
    dead = width < np.float32(LEAST_STEP)
    return low, np.where(dead, np.float32(1 if dead.all() else width[~dead].mean()), high)


def extent(x: Floats) -> tuple[Floats, Floats]:
    """The range of each channel of ``x`` (A, C, B), with 0 in it: (C,)."""
    return x.min(axis=(0, 2), initial=0), x.max(axis=(0, 2), initial=0)


def spread(x: Floats, deviations: float) -> Floats:
    """How far mean and ``deviations`` standard deviations of each channel of ``x`` (A, C, B) reach from 0: (C,)."""
    mean, deviation = x.mean(axis=(0, 2)), x.std(axis=(0, 2))
    return np.asarray(np.abs(mean) + np.float32(deviations) * deviation, np.float32)


def width_of(spec: QuantSpec, low: Floats, high: Floats) -> Floats:
    """What `mxq.quant.Scheme.top` stands for: all of the range with a zero point, else the largest value to hold."""
    if not spec.symmetric:
        return high - low
    return np.maximum(-low, high) if spec.signed else high
