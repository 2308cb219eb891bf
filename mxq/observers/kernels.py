"""The loops that touch every value or every bin.

MXNet's threads are idle while a tensor is looked at, so that `in_parallel` runs them on all cores.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from mxq.host.parallel import compiled, in_parallel, pieces

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
Reals = NDArray[np.float64]

LANES: Final = 4

SIGN: Final = 0x80000000


@compiled
def _extremes(signed: NDArray[np.int32], unsigned: NDArray[np.uint32]) -> tuple[int, int, int]:
    """The largest of the bits of float32 values read as int32, the largest and the smallest read as uint32."""
    highest, top, lowest = signed[0], unsigned[0], unsigned[0]
    for i in range(signed.size):
        highest = max(highest, signed[i])
        top = max(top, unsigned[i])
        lowest = min(lowest, unsigned[i])
    return highest, top, lowest


def extremes(x: Floats) -> tuple[float, float]:
    """The smallest and the largest of (n,) float32 values, n > 0; one of them is NaN or Inf where any value is.

    Integers can be compared many at a time, floats (because of NaN) cannot. Read as int32, positive floats sort like
    their values, above all negative ones; read as uint32, negative ones stand above all positive ones, the largest
    magnitude on top.
    """
    found = in_parallel(lambda piece: _extremes(piece.view(np.int32), piece.view(np.uint32)), pieces(x))
    highest, top = max(f[0] for f in found), max(f[1] for f in found)
    lowest = min(f[2] for f in found)
    bits = np.array([top if top >= SIGN else lowest, highest if highest >= 0 else lowest], np.uint32)
    low, high = bits.view(np.float32).tolist()
    return low + 0.0, high + 0.0  # which makes -0.0 into 0.0


@compiled
def count(x: Floats, factor: np.float32, half: int, lanes: Counts) -> None:
    """Counts ``trunc(x * factor) + half`` into ``lanes`` (4, 2 half + 1), in place; all of ``x`` (n,) must fit.

    Neighbouring values are often equal, and increments of one counter wait for each other, so four take turns.
    Unsigned indices spare the check for negative ones.
    """
    first, second, third, fourth = lanes[0], lanes[1], lanes[2], lanes[3]
    whole = x.size // 4 * 4
    for i in range(0, whole, 4):
        first[np.uint64(np.int64(x[i] * factor) + half)] += 1
        second[np.uint64(np.int64(x[i + 1] * factor) + half)] += 1
        third[np.uint64(np.int64(x[i + 2] * factor) + half)] += 1
        fourth[np.uint64(np.int64(x[i + 3] * factor) + half)] += 1
    for i in range(whole, x.size):
        first[np.uint64(np.int64(x[i] * factor) + half)] += 1


@compiled
def _antiderivative(x: float, step: float, whole: float, lowest: float, highest: float) -> float:
    code = min(max(np.rint(x / step), lowest), highest)
    rest = x - code * step
    found: float = code * whole + rest * rest * rest / 3
    return found


@compiled
def expected_errors(edges: Reals, counts: Reals, steps: Reals, lowest: Reals, highest: Reals) -> Reals:
    """Mean squared quantization error of values spread evenly over each bin, for each step ``s``.

    A value ``x`` becomes ``s clip(rint(x / s), lowest, highest)`` (arXiv:2004.09602, eq. 7 and 8). Its squared error
    has the antiderivative ``k s^3 / 12 + r^3 / 3`` with ``k = rint(x / s)``, ``r = x - k s`` (each whole step adds
    ``s^3 / 12``), beyond the last code ``(x - k s)^3 / 3`` with the clipped ``k``; no sampling.

    Args:
        edges: (n, 2) float64, lower and upper edge of each bin that holds something.
        counts: (n,) float64 > 0.
        steps: (m,) float64 > 0, units of value between two codes.
        lowest, highest: (m,) float64, the codes' bounds, less the code of value 0.

    Returns:
        (m,) float64, in squared activation units.
    """
    found = np.empty(len(steps))
    total = counts.sum()
    for j in range(len(steps)):
        step, first, last = steps[j], lowest[j], highest[j]
        whole = step * step * step / 12
        error, before, at = 0.0, np.nan, np.nan  # the antiderivative at the edge seen last
        for i in range(len(counts)):
            if edges[i, 0] != before:
                at = _antiderivative(edges[i, 0], step, whole, first, last)
            before = edges[i, 1]
            upper = _antiderivative(before, step, whole, first, last)
            error += counts[i] * (upper - at) / (before - edges[i, 0])
            at = upper
        found[j] = error / total
    return found
