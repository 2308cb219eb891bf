"""A histogram that grows with its data in one pass, loses no count, and merges exactly.

The bins are powers of two wide. With ``2^k`` the smallest power of two above every absolute value, a value ``x``
counts in bin ``trunc(x * 2^(12 - k))``: 8191 bins from -4095 to 4095, each ``2^(k - 12)`` wide but the middle
one, (-width, width), which is twice that. When ``k`` rises by one, bins join in pairs, and because
``trunc(trunc(v) / 2) = trunc(v / 2)`` that gives the histogram the wider bins would have given from the start.
So the state depends on the values alone: batch by batch, at once, in any order, merged in any way, bit for bit.

Multiplying by a power of two is exact in float32; where it underflows, the bin is 0 either way (rounding down
instead of towards zero would tell -1e-40 from 0, or not, by the order of arrival).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.observers.base import Extent, Floats, flat
from mxq.thresholds import Range

Counts = NDArray[np.int64]

BITS: Final = 12
HALF: Final = 2**BITS - 1
"""Bins on each side of the middle one; index of the middle one."""

MIN_EXPONENT: Final = -100
"""Where growth starts: values below 2^-100 share few bins, and 2^(12 + 100) still fits float32."""

CHUNK: Final = 1 << 16
"""Values per step: the temporaries (0.8 MB) stay in the second-level cache."""


def _no_counts() -> Counts:
    return _frozen(np.zeros(2 * HALF + 1, dtype=np.int64))


def _frozen(counts: Counts) -> Counts:
    counts.flags.writeable = False
    return counts


@dataclass(frozen=True, slots=True, eq=False)
class HistogramState:
    """Counts over [-2^exponent, 2^exponent], and the exact extent.

    ``counts``: (8191,) int64, read-only, the middle bin at index `HALF`; their sum is ``extent.count``.
    """

    exponent: int = MIN_EXPONENT
    counts: Counts = field(default_factory=_no_counts)
    extent: Extent = field(default_factory=Extent)

    @property
    def width(self) -> float:
        """Width of a bin, in activation units."""
        return math.ldexp(1.0, self.exponent - BITS)

    def update(self, x: Floats) -> HistogramState:
        """The state with the values of ``x`` added: (n,) float32, contiguous."""
        extent = self.extent.update(x)
        if extent is self.extent:
            return self
        exponent = max(self.exponent, _exponent(extent.absmax))
        counts = _widened(self.counts, exponent - self.exponent)
        _add(counts, x, exponent)
        return HistogramState(exponent, _frozen(counts), extent)

    def merge(self, other: HistogramState) -> HistogramState:
        """The state of the data of both."""
        exponent = max(self.exponent, other.exponent)
        counts = _widened(self.counts, exponent - self.exponent) + _widened(other.counts, exponent - other.exponent)
        return HistogramState(exponent, _frozen(counts), self.extent.merge(other.extent))

    def cropped(self) -> Counts:
        """The counts without the empty bins beyond the largest absolute value: (2 n + 1,) int64, symmetric."""
        last = min(int(self.extent.absmax / self.width), HALF)
        return self.counts[HALF - last : HALF + last + 1]


@dataclass(frozen=True)
class HistogramObserver(ABC):
    """An observer whose state is a `HistogramState`; a subclass names itself and chooses the range."""

    name: ClassVar[str]
    ordered: ClassVar[bool] = False

    def empty(self) -> HistogramState:
        return HistogramState()

    def update(self, state: HistogramState, x: ArrayLike) -> HistogramState:
        return state.update(flat(x))

    def merge(self, a: HistogramState, b: HistogramState) -> HistogramState:
        return a.merge(b)

    @abstractmethod
    def range(self, state: HistogramState, dtype: str) -> Range:
        """See `mxq.observers.base.Observer.range`."""

    def observed(self, state: HistogramState) -> Range | None:
        return state.extent.range

    def note(self, state: HistogramState) -> str:
        return state.extent.note


def _exponent(absmax: float) -> int:
    """The smallest k with ``absmax < 2^k``; for 0 the least there is."""
    return math.frexp(absmax)[1] if absmax else MIN_EXPONENT


def _widened(counts: Counts, steps: int) -> Counts:
    """A fresh copy whose bins are ``2^steps`` times as wide."""
    if steps == 0:
        return counts.copy()
    joined = 1 << min(steps, BITS)
    positive = counts[HALF:].reshape(-1, joined).sum(axis=1)
    negative = counts[HALF::-1].reshape(-1, joined).sum(axis=1)
    negative[0] -= counts[HALF]  # both sides hold the middle bin
    wide = np.zeros_like(counts)
    side = len(positive)
    wide[HALF : HALF + side] += positive
    wide[HALF - side + 1 : HALF + 1] += negative[::-1]
    return wide


def _add(counts: Counts, x: Floats, exponent: int) -> None:
    """Counts the values of ``x`` (all below 2^exponent) into ``counts``, in place."""
    factor = np.float32(math.ldexp(1.0, BITS - exponent))
    scaled = np.empty(min(CHUNK, x.size), dtype=np.float32)
    index = np.empty(scaled.shape, dtype=np.intp)
    for start in range(0, x.size, CHUNK):
        part = x[start : start + CHUNK]
        n = part.size
        with np.errstate(under="ignore"):
            np.multiply(part, factor, out=scaled[:n])
        index[:n] = scaled[:n]  # truncates
        index[:n] += HALF
        counts += np.bincount(index[:n], minlength=counts.size)
