"""A histogram that grows with its data in one pass, loses no count, and merges exactly.

The bins are powers of two wide. With ``2^k`` the smallest power of two above every absolute value, a value ``x``
counts in bin ``trunc(x * 2^(12 - k))``: 8191 bins from -4095 to 4095, each ``2^(k - 12)`` wide but the middle
one, (-width, width), which is twice that. When ``k`` rises by one, bins join in pairs, and because
``trunc(trunc(v) / 2) = trunc(v / 2)`` that gives the histogram the wider bins would have given from the start.
So the state depends on the values alone: batch by batch, at once, in any order, merged in any way, bit for bit.

Multiplying by a power of two is exact in float32; where it underflows, the bin is 0 either way (rounding down
instead of towards zero would tell -1e-40 from 0, or not, by the order of arrival).

A state is 64 KiB: 8191 counts and the two bounds as float32, from which the number of values and the bins' width
follow.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import ClassVar, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mxq.host.parallel import in_parallel, pieces
from mxq.observers import kernels
from mxq.observers.base import MOST_VALUES, Arrays, Floats, Layout, MinMax, StateObserver, damaged, flat
from mxq.quant import MXNET, QuantSpec, Scheme
from mxq.quant.thresholds import Range

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]

BITS: Final = 12
HALF: Final = 2**BITS - 1
"""Bins on each side of the middle one; index of the middle one."""

MIN_EXPONENT: Final = -100
"""Where growth starts: values below 2^-100 share few bins, and 2^(12 + 100) still fits float32."""


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

    kind: ClassVar[str] = "histogram"
    layout: ClassVar[Layout] = MappingProxyType(
        {"counts": ("int64", (2 * HALF + 1,)), "bounds": MinMax.layout["bounds"]}
    )
    statistic: ClassVar[str] = kind
    counts: Counts = field(default_factory=_no_counts)
    extent: MinMax = field(default_factory=MinMax)

    @property
    def exponent(self) -> int:
        """The smallest k with every absolute value below ``2^k``, but at least `MIN_EXPONENT`."""
        return max(MIN_EXPONENT, _exponent(self.extent.absmax))

    @property
    def width(self) -> float:
        """Width of a bin, in activation units."""
        return math.ldexp(1.0, self.exponent - BITS)

    def update(self, x: Floats) -> HistogramState:
        """The state with the values of ``x`` added: (n,) float32, contiguous.

        Raises:
            DataError: ``x`` holds NaN or Inf.
        """
        extent = self.extent.update(x)
        if extent is self.extent:
            return self
        exponent = max(self.exponent, _exponent(extent.absmax))
        counts = _widened(self.counts, exponent - self.exponent) + _counted(x, exponent)
        return HistogramState(_frozen(counts), extent)

    def merge(self, other: HistogramState) -> HistogramState:
        """The state of the data of both."""
        extent = self.extent.merge(other.extent)
        exponent = max(self.exponent, other.exponent)
        counts = _widened(self.counts, exponent - self.exponent) + _widened(other.counts, exponent - other.exponent)
        return HistogramState(_frozen(counts), extent)

    def cropped(self, steps: int = 0) -> Counts:
        """The counts without the empty bins beyond the largest absolute value: (2 n + 1,) int64, symmetric.

        Args:
            steps: bins are ``2^steps`` times as wide as those of the state.
        """
        last = min(int(self.extent.absmax / math.ldexp(self.width, steps)), HALF)
        return _widened(self.counts, steps)[HALF - last : HALF + last + 1]

    def magnitudes(self) -> Counts:
        """Counts by absolute value: (4096,) int64; entry 0 is [0, width), entry i is [i width, (i + 1) width)."""
        folded = self.counts[HALF:].copy()
        folded[1:] += self.counts[HALF - 1 :: -1]
        return folded

    def centres(self) -> Reals:
        """The middle of every bin, (8191,) float64, in activation units; 0 for the middle one."""
        index = np.arange(-HALF, HALF + 1)
        centres: Reals = (index + 0.5 * np.sign(index)) * self.width
        return centres

    def filled(self) -> tuple[Reals, Reals]:
        """Edges (n, 2) and counts (n,), float64, of the bins that hold something, cut to the extent.

        Zeros are a value of their own (ReLU makes many), coded without an error in any range: the middle bin counts as
        being at zero.
        """
        index = np.flatnonzero(self.counts) - HALF
        edges = np.stack([index - (index < 0), index + (index > 0)], axis=1) * self.width
        edges = np.clip(edges, self.extent.min, self.extent.max)
        narrow = edges[:, 1] - edges[:, 0] < 1e-6 * self.width  # the only value of a bin, at its edge
        edges[narrow] = edges[narrow, :1] + np.array([-0.5e-6, 0.5e-6]) * self.width
        return edges, self.counts[index + HALF].astype(np.float64)

    def expected_errors(self, thresholds: Reals, spec: QuantSpec, scheme: Scheme = MXNET) -> Reals:
        """Mean squared error of quantizing with each threshold; see `kernels`.

        Args:
            thresholds: (m,) float64 > 0, in activation units.
            spec: of the codes, settled.
            scheme: how scales follow from a range.
        """
        edges, counts = self.filled()
        steps, zeros = scheme.steps(spec, *self.extent.ends(np.asarray(thresholds, np.float64), spec))
        found: Reals = kernels.expected_errors(edges, counts, steps, spec.lowest - zeros, spec.highest - zeros)
        return found

    def to_arrays(self) -> Arrays:
        return {"counts": self.counts, "bounds": self.extent.bounds}

    @staticmethod
    def from_arrays(arrays: Arrays) -> HistogramState:
        counts = np.array(arrays["counts"], np.int64)
        bounds = arrays["bounds"]
        if counts.shape != (2 * HALF + 1,) or counts.min() < 0 or counts.max() > MOST_VALUES // HALF:
            held = f", from {counts.min()} to {counts.max()}" if counts.size else ""
            raise damaged(f"counts of shape {counts.shape}{held}")
        state = HistogramState(_frozen(counts), MinMax.from_bounds(int(counts.sum()), bounds))
        if beyond := int(counts.sum() - state.cropped().sum()):
            raise damaged(
                f"{beyond:,} values beyond {state.extent.min} .. {state.extent.max}, its least and its largest"
            )
        return state


@dataclass(frozen=True)
class HistogramObserver(StateObserver, ABC):
    """An observer whose state is a `HistogramState`; a subclass names itself and finds a threshold.

    ``in_auto`` are the specs with which "auto" tries it for every tensor.
    """

    name: ClassVar[str]
    in_auto: ClassVar[tuple[str, ...]] = ()
    statistic: ClassVar[str] = HistogramState.statistic

    def reads(self, statistic: str) -> bool:
        return statistic == self.statistic

    def empty(self) -> HistogramState:
        return HistogramState()

    def update(self, state: HistogramState, x: ArrayLike) -> HistogramState:
        return state.update(flat(x))

    def merge(self, a: HistogramState, b: HistogramState) -> HistogramState:
        return a.merge(b)

    def range(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> Range:
        """(0, threshold) for a non-negative tensor whose codes may be unsigned, else (-threshold, threshold).

        With a zero point an end is that of the observed range where that is nearer. The threshold is never beyond the
        largest absolute value observed, which it is where all values are equal.
        """
        extent, seen = state.extent, state.extent.usable
        if not extent.absmax:
            return seen
        settled, bound = extent.settled(spec), seen.absmax
        if extent.min != extent.max:
            bound = min(self.threshold(state, settled, scheme), bound)
        return Range(*map(float, extent.ends(bound, settled)))

    @abstractmethod
    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        """The largest absolute value to represent, > 0, in activation units.

        Args:
            state: of at least two different values.
            spec: what codes are to be, settled for these values (`MinMax.settled`).
            scheme: how scales will follow from the range.
        """


def _exponent(absmax: float) -> int:
    """The smallest k with ``absmax < 2^k``; for 0 the least there is."""
    return math.frexp(absmax)[1] if absmax else MIN_EXPONENT


def _widened(counts: Counts, steps: int) -> Counts:
    """The counts in bins ``2^steps`` times as wide."""
    if steps == 0:
        return counts
    joined = 1 << min(steps, BITS)
    positive = counts[HALF:].reshape(-1, joined).sum(axis=1)
    negative = counts[HALF::-1].reshape(-1, joined).sum(axis=1)
    negative[0] -= counts[HALF]  # both sides hold the middle bin
    wide = np.zeros_like(counts)
    side = len(positive)
    wide[HALF : HALF + side] += positive
    wide[HALF - side + 1 : HALF + 1] += negative[::-1]
    return wide


def _counted(x: Floats, exponent: int) -> Counts:
    """Counts of ``x``, all of it below ``2^exponent``, in bins for that."""
    factor = np.float32(math.ldexp(1.0, BITS - exponent))

    def one(piece: Floats) -> Counts:
        lanes = np.zeros((kernels.LANES, 2 * HALF + 1), np.int64)
        kernels.count(piece, factor, HALF, lanes)
        return np.asarray(lanes.sum(axis=0), np.int64)

    return reduce(np.add, in_parallel(one, pieces(x)))
