"""The "entropy" observer: the threshold whose histogram of codes diverges least from the real one.

Sources: S. Migacz, "8-bit inference with TensorRT", GTC 2017 (s7310), "Entropy calibration: pseudocode";
MXNet's ``calib_mode='entropy'``: ``src/operator/quantization/calibrate.cc`` and ``_get_optimal_threshold`` in
``python/mxnet/contrib/quantization.py``, whose level counts and candidates are used here.

For a candidate that keeps ``i`` bins on each side of zero (``i`` from half the levels up):

- P: the ``2 i + 1`` kept bins, with everything outside added to the two end bins (it saturates there).
- Q: the same bins *without* the outside, cut into ``levels`` groups of ``(2 i + 1) // levels`` bins (the last one
  takes the rest); each group's sum is spread evenly over those of its bins where P is not empty.
- KL(P || Q), both normalized. The sources take the candidate of the least divergence.

The divergence is flat and jagged around its minimum (the last group grows and shrinks with ``i``), so the least is
often a matter of chance, while what is clipped is lost for certain. Of all candidates within `EntropyParams.tolerance`
of the least divergence the *largest* is taken. On real networks that costs ResNets about 0.4 dB of output SQNR and
gains up to 1 dB elsewhere (``benchmarks/accuracy.py``; the default was chosen on those networks). ``tolerance=0`` is
the sources' rule, the smallest of equals.

Where a group of Q is empty and P is not, Q counts `EPSILON`. MXNet adds that constant to every empty bin and takes
it off the others; on the same histogram its divergences differ from these by about EPSILON * bins / values, and by
the one bin at the lower end that its Q leaves out.

Codes of fewer bits have fewer ``levels``, and bins are joined, so that a group has as many of them as for 8 bits. With
bins as fine as those, a few about zero could stand for all: there every bin is a group, and nothing diverges.

Where no more than ``levels`` bins hold anything, the histogram says nothing about what is lost (every value can have
a code of its own), and the divergence may be 0 where all of it is clipped: of values 0 and 5, both in the wide
last group, a threshold of 1 looks perfect. Such a tensor is not clipped, unlike in MXNet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from mxq.errors import ConfigError
from mxq.observers.histogram import Counts, HistogramObserver, HistogramState
from mxq.quant import INT8, MXNET, QuantSpec, Scheme

Reals = NDArray[np.float64]
Indices = NDArray[np.intp]

EPSILON: Final = 1e-4
"""The count that stands for none in Q, MXNet's smoothing constant."""


@dataclass(frozen=True, slots=True)
class EntropyParams:
    """``levels``: groups that stand for signed codes of 8 bits, odd; other codes get as many in proportion (`groups`).

    Both halves of the axis are always searched, so for unsigned codes there are twice as many groups, and one.

    ``tolerance``: how much above the least divergence, as a share of it, a candidate may be that clips less.
    """

    levels: int = 255
    tolerance: float = 0.25

    def __post_init__(self) -> None:
        if self.levels < 3 or self.levels % 2 == 0:
            raise ConfigError(f"levels is {self.levels!r}; allowed: odd numbers from 3")
        if not self.tolerance >= 0:
            raise ConfigError(f"tolerance is {self.tolerance!r}; allowed: 0 or more")

    def groups(self, spec: QuantSpec) -> int:
        """How many groups stand for codes of a settled ``spec``, odd: 255 for int8, 511 for uint8, 15 for int4."""
        return max(3, (self.levels + 1) * (spec.highest + 1) // (INT8.highest + 1) - 1 | 1)


@dataclass(frozen=True)
class EntropyObserver(HistogramObserver):
    """Clips outliers where resolution for the rest is worth more; may cost accuracy where the tail matters."""

    name: ClassVar[str] = "entropy"
    in_auto: ClassVar[tuple[str, ...]] = ("entropy",)
    in_tune: ClassVar[tuple[str, ...]] = ("entropy",)
    params: EntropyParams = EntropyParams()

    def threshold(self, state: HistogramState, spec: QuantSpec, scheme: Scheme = MXNET) -> float:
        """An upper edge of a bin."""
        counts = _counts(state, spec)
        if self._sparse(counts, spec):
            return state.extent.absmax
        kept = _best_candidate(counts, self.params.groups(spec), self.params.tolerance)
        return math.ldexp((kept + 1) * state.width, _joined(spec))

    def note(self, state: HistogramState, spec: QuantSpec) -> str:
        settled = state.extent.settled(spec)
        sparse = state.extent.count and self._sparse(_counts(state, settled), settled)
        return state.extent.note or ("few distinct values, not clipped" if sparse else "")

    def _sparse(self, counts: Counts, spec: QuantSpec) -> bool:
        """Whether there are no more filled bins than groups that these values can be in."""
        groups = self.params.groups(spec)
        return int(np.count_nonzero(counts)) <= (groups if spec.signed else groups // 2)


def _counts(state: HistogramState, spec: QuantSpec) -> Counts:
    """The histogram in bins for codes of ``spec``."""
    return state.cropped(_joined(spec))


def _joined(spec: QuantSpec) -> int:
    """How often bins are joined in pairs for codes of ``spec``."""
    return INT8.bits - spec.bits


def _best_candidate(counts: Counts, levels: int, tolerance: float) -> int:
    """The number of bins to keep on each side."""
    # Rounding noise of equal divergences must not choose between them.
    found = np.round(divergences(counts, levels), 12)
    if tolerance == 0:
        return levels // 2 + int(np.argmin(found))
    return levels // 2 + int(np.flatnonzero(found <= found.min() * (1 + tolerance))[-1])


def divergences(counts: Counts, levels: int) -> Reals:
    """KL(P || Q) of every candidate, in nats.

    Args:
        counts: (2 n + 1,) int64, a histogram symmetric about its middle bin, not all zero.
        levels: odd, at most ``2 n + 1``: the number of groups.

    Returns:
        (n + 1 - levels // 2,) float64: entry ``c`` belongs to ``i = levels // 2 + c`` bins on each side; inf where
        every value is outside.
    """
    h = counts.astype(np.float64)
    n = len(h) // 2
    sums, filled, entropy = _prefix(h), _prefix(h > 0), _prefix(_xlogx(h))
    i = np.arange(levels // 2, n + 1)
    start, stop = n - i, n + i + 1
    width = (stop - start) // levels
    first, last = start + width, start + (levels - 1) * width  # end of the first group, begin of the last

    total, kept = sums[-1], sums[stop] - sums[start]
    below, above = sums[start], total - sums[stop]
    p_log_p = entropy[stop - 1] - entropy[start + 1] + _xlogx(h[start] + below) + _xlogx(h[stop - 1] + above)
    p_log_q = _full_groups(sums, filled, first, last, width)
    for begin, end, end_bin, outside in ((start, first, start, below), (last, stop, stop - 1, above)):
        held = sums[end] - sums[begin]
        support = filled[end] - filled[begin] + ((h[end_bin] == 0) & (outside > 0))
        p_log_q += (held + outside) * np.log(np.maximum(held / np.maximum(support, 1), EPSILON))
    with np.errstate(divide="ignore"):
        found: Reals = (p_log_p - p_log_q) / total - np.log(total) + np.log(kept)
    return np.where(kept > 0, found, np.inf)


def _full_groups(sums: Reals, filled: Reals, first: Indices, last: Indices, width: Indices) -> Reals:
    """For each candidate the sum of ``P log Q`` over its groups from ``first`` to ``last``, all ``width`` bins wide.

    Candidates of one width use windows of one kind, so a running sum over every ``width``-th window serves all.
    """
    result = np.empty(len(width))
    for w in np.unique(width):
        held = sums[w:] - sums[:-w]
        support = filled[w:] - filled[:-w]
        gain = held * np.log(np.where(held > 0, held, 1) / np.maximum(support, 1))
        padded = np.zeros((len(gain) // w + 2) * w)
        padded[w : w + len(gain)] = gain
        running = padded.reshape(-1, w).cumsum(axis=0).reshape(-1)  # running[k]: windows k - w, k - 2 w, ...
        mine = width == w
        result[mine] = running[last[mine]] - running[first[mine]]
    return result


def _prefix(x: NDArray[np.bool_] | Reals) -> Reals:
    """(n,) -> (n + 1,): entry k is the sum of the first k."""
    return np.concatenate([np.zeros(1), np.cumsum(x, dtype=np.float64)])


def _xlogx(x: Reals) -> Reals:
    """``x log x``, 0 at 0."""
    result: Reals = x * np.log(np.where(x > 0, x, 1))
    return result
